//! A single-threaded, event-loop TCP and UDP echo server, and the tools to test and measure any
//! echo server.
//!
//! One thread owns a TCP listener, every TCP stream and a UDP socket, and nothing blocks:
//!
//! ```
//! use evecho::{Config, Server};
//!
//! let server = Server::bind(Config::loopback())?.spawn()?; // on a thread of its own
//! println!("listening on {:?}", server.local_addrs());
//! server.stop()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Modules
//!
//! Data goes one way: from the configuration to the server, its connections, and the protocol.
//!
//! - `config`: the configuration of a server, plain values with defaults: [`Config`]. Beside it `address`,
//!   `impairments` and `error`, and `stats`, the counters.
//! - `server`: bind, run, stop: [`Server`]. Three designs that are siblings: the event loop, which is the default,
//!   the threaded and the iterative one.
//! - [`protocol`]: bytes in, bytes out, without any I/O. Framings, services, and the [`Service`] trait for
//!   one of your own.
//! - `sys`: everything that names an operating system.
//! - `client`: the tools that talk to any echo server.
//! - [`units`]: how all of them print times, sizes and rates.
//!
//! # Features
//!
//! The default is `cli`, the whole binary. `default-features = false` leaves only the server; `client` adds
//! the tools as a library, `daemon` the parts for service managers and monitors.
//!
//! # Where it runs
//!
//! On 64-bit Linux, macOS and FreeBSD: it names a connection in 64 bits. What differs between them stands in `sys`.

#[cfg(not(any(target_os = "linux", target_os = "macos", target_os = "freebsd")))]
compile_error!("evecho runs on Linux, macOS and FreeBSD; on Windows, build it in WSL2");
#[cfg(not(target_pointer_width = "64"))]
compile_error!("evecho names a connection in 64 bits: build it for a 64-bit target");

mod address;
mod busy_poll;
#[cfg(feature = "client")]
pub mod client;
mod config;
mod error;
mod impairments;
pub mod protocol;
mod random;
mod server;
mod stats;
mod sys;
pub mod units;

/// What the fuzz targets drive.
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing {
    use crate::protocol::oracle::Expected;
    use crate::protocol::{Protocol, Verdict};
    use crate::server::simulation;

    /// Plays the history of connections that these bytes choose.
    pub fn play(choices: &[u8]) {
        simulation::play_chosen(choices);
    }

    /// Plays the history of datagrams that these bytes choose.
    pub fn play_datagrams(choices: &[u8]) {
        simulation::play_datagrams_chosen(choices);
    }

    /// The reply of a session to `input` and a FIN.
    pub fn expected(protocol: Protocol, upper: bool, input: &[u8]) -> (Vec<u8>, Verdict) {
        let Expected { bytes, verdict } = Expected::new(protocol, upper, input);
        (bytes, verdict)
    }
}

pub use address::BindAddress;
pub use config::{Config, Design, GuardPorts, Limits, ServiceManager};
pub use error::{AdoptError, BindError, ConfigError, Error, ParseError, Setting, Transport};
pub use impairments::{Impairments, Probability};
pub use protocol::{Framing, Protocol, Service};
pub use server::{Handle, Preview, RunningServer, Server};
pub use stats::Snapshot;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub use sys::inherited;
pub use sys::limits::raise_open_file_limit;
#[cfg(feature = "daemon")]
pub use sys::service_manager::inherited_sockets;

/// The examples of the documentation compile.
#[cfg(doctest)]
#[doc = include_str!("../docs/library.md")]
struct Library;
