//! Waiting for what cannot be waited for otherwise.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

use std::thread;
use std::time::{Duration, Instant};

/// Nothing takes this long, unless it hangs.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Looks every millisecond, since a look all the time takes the processor from what is waited for.
#[track_caller]
pub fn wait_until(what: &str, reached: impl Fn() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !reached() {
        assert!(Instant::now() < end, "not reached: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}
