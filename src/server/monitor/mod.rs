//! Monitors look at the server from outside: metrics, health and readiness over HTTP, as one more service
//! on the event loop.

mod http;
mod metrics;
mod site;

pub(super) use self::metrics::Passes;
pub(super) use self::site::{rules, service};
