//! A single-threaded, event-loop TCP and UDP echo server, and the tools to test and measure any
//! echo server.

pub mod client;
pub mod config;
pub mod protocol;
pub mod server;
mod socket;
mod stats;

pub use config::{Config, Design, GuardPorts, Limits, ServiceKind, Transport};
pub use protocol::{Framing, Protocol, Reply, Service};
pub use server::{Error, Handle, Server};
pub use socket::{BindError, raise_open_file_limit};
pub use stats::Snapshot;
