//! The tools that talk to an echo server.

pub mod pattern;
pub mod process;
pub mod target;
