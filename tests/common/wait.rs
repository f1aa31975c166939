//! Waiting for what cannot be waited for otherwise.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

use std::thread;
use std::time::Duration;

/// Nothing takes this long, unless it hangs; not even on a virtual machine that its host has paused for a while.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// Waits until it is so.
#[track_caller]
pub fn wait_until(what: &str, reached: impl Fn() -> bool) {
    wait_for(what, || reached().then_some(()));
}

/// Waits until it is found. Looks every millisecond, since a look all the time takes the processor from what is waited
/// for. The deadline is counted in looks: where this process stands still, so may what it waits for.
#[track_caller]
pub fn wait_for<T>(what: &str, find: impl Fn() -> Option<T>) -> T {
    for _ in 0..DEADLINE.as_millis() {
        if let Some(found) = find() {
            return found;
        }
        thread::sleep(Duration::from_millis(1));
    }
    panic!("not reached: {what}");
}
