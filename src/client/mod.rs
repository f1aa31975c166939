//! The tools that talk to an echo server.
//!
//! Each is a function `run` that takes what to do (a plain `Config`), a [`Cancel`] that ends it early,
//! and a closure that hears of its progress; it returns what came of it.

mod cancel;
pub mod check;
pub mod compare;
mod harness;
mod histogram;
pub mod load;
mod message;
mod nanoseconds;
#[doc(hidden)]
pub mod pattern;
pub mod ping;
#[doc(hidden)]
pub mod plot;
pub mod process;
pub mod send;
mod socket;
#[cfg_attr(not(target_os = "linux"), path = "no_states.rs")]
pub mod states;
pub mod target;
mod tracker;

pub use cancel::Cancel;
