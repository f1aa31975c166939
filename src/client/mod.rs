//! The tools that talk to an echo server.
