//! The tools that talk to an echo server.

pub mod check;
pub mod compare;
pub mod load;
pub mod pattern;
pub mod ping;
pub mod process;
pub mod send;
pub mod target;
mod wait;
