//! The tools that talk to an echo server.

pub mod load;
pub mod pattern;
pub mod target;
