//! Histories from seeds: `SIMULATION_SEED=n` repeats one, `SIMULATION_SEEDS=n` plays the first n.

use std::env;

use super::play_with;
use super::random::Random;
use super::udp;

/// How many histories a run plays by default.
const SEEDS: u64 = 3_000;

#[test]
fn every_order_of_events_keeps_the_promises() {
    play_all(play_with);
}

#[test]
fn datagrams_keep_the_promises_in_every_order_of_events() {
    play_all(udp::play);
}

fn play_all(play: fn(Random)) {
    let number = |name| env::var(name).ok().map(|text| text.parse().expect("a number"));
    if let Some(seed) = number("SIMULATION_SEED") {
        return play(Random::new(seed));
    }
    for seed in 0..number("SIMULATION_SEEDS").unwrap_or(SEEDS) {
        let _named = NamedOnPanic(seed);
        play(Random::new(seed));
    }
}

/// What a fuzzer found once, in the server or in the model.
#[test]
fn what_was_found_stays_found() {
    let found: [&[u8]; 1] = [
        // EINTR for the last read of a half-closed peer, after a drain asked it to leave.
        b"\x31\x31\x31\x31\x39\x31\x31\x31\x31\x31\x31\x39\x31\x31\x31",
    ];
    for input in found {
        play_with(Random::chosen(input));
    }
    let found: [&[u8]; 1] = [
        // Replies are dropped, and those to the next batch have to wait, in one turn.
        b"\xfd\x06\x97\x26\x05",
    ];
    for input in found {
        udp::play(Random::chosen(input));
    }
}

/// Says which history went wrong.
struct NamedOnPanic(u64);

impl Drop for NamedOnPanic {
    #[expect(clippy::print_stderr, reason = "a panic message cannot be amended")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("this was seed {0}: SIMULATION_SEED={0} plays it again", self.0);
        }
    }
}
