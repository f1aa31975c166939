//! Monitors look at the server from outside: metrics, health and readiness over HTTP, as one more service
//! on the event loop.

#[cfg(feature = "daemon")]
mod http;
#[cfg(feature = "daemon")]
mod metrics;
mod passes;
#[cfg(feature = "daemon")]
mod site;

pub(super) use self::passes::Passes;
#[cfg(feature = "daemon")]
pub(super) use self::site::{rules, service};
