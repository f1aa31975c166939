//! All connections of the event loop, in a world in which the input is chance: it decides what peers
//! do, what every call returns, and in which order events come.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|chance: &[u8]| evecho::fuzzing::play(chance));
