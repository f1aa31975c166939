//! The tools that talk to an echo server.

pub mod check;
pub mod load;
pub mod pattern;
pub mod process;
pub mod target;
