//! A single-threaded, event-loop TCP and UDP echo server, and the tools to test and measure any
//! echo server.

pub mod client;
