//! The datagrams of a UDP socket, in a world in which the input is chance: it decides who asks, what
//! the ways to them are like, what every call returns, and in which order things happen.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|chance: &[u8]| evecho::fuzzing::play_datagrams(chance));
