//! The signals of the process, while a server has them.

use std::fmt;
use std::fs;
use std::io;
use std::os::raw::c_int;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use mio::{Interest, Registry, Token};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook_mio::v1_0::Signals as Pending;

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    /// SIGTERM, SIGINT, SIGHUP.
    Stop,
    /// SIGUSR1.
    Report,
}

/// SIGTERM, SIGINT, SIGHUP and SIGUSR1, as long as this lives. SIGHUP is left alone where it is
/// ignored, as nohup(1) has it.
pub(crate) struct Signals(Pending);

/// A handler, once installed, stays: without unsafe code the default disposition does not come back.
/// Instead each signal that had it gets a handler that acts like it while this says so.
static GIVEN_BACK: AtomicBool = AtomicBool::new(true);

/// How many servers have the signals, and which of them act like the default when nobody has.
struct Taken {
    servers: usize,
    defaults: Vec<c_int>,
}

static TAKEN: Mutex<Taken> = Mutex::new(Taken { servers: 0, defaults: Vec::new() });

fn taken() -> MutexGuard<'static, Taken> {
    TAKEN.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Signals {
    /// Takes the signals: from here on `token` has an event for each.
    pub(crate) fn take(registry: &Registry, token: Token) -> io::Result<Self> {
        let mut taken = taken();
        let before = Dispositions::read();
        let mut wanted = vec![SIGTERM, SIGINT, SIGUSR1];
        wanted.extend((!before.ignored(SIGHUP)).then_some(SIGHUP));
        for &signal in &wanted {
            if before.default(signal) && !taken.defaults.contains(&signal) {
                signal_hook::flag::register_conditional_default(signal, &GIVEN_BACK)?;
                taken.defaults.push(signal);
            }
        }
        let mut pending = Pending::new(&wanted)?;
        registry.register(&mut pending, token, Interest::READABLE)?;
        taken.servers += 1;
        GIVEN_BACK.store(false, Ordering::SeqCst);
        Ok(Signals(pending))
    }

    /// What the signals that have come ask for.
    pub(crate) fn requests(&mut self) -> impl Iterator<Item = Request> + '_ {
        self.0.pending().map(|signal| match signal {
            SIGUSR1 => Request::Report,
            _ => Request::Stop,
        })
    }
}

impl fmt::Debug for Signals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signals")
    }
}

/// Gives the signals back.
impl Drop for Signals {
    fn drop(&mut self) {
        let mut taken = taken();
        taken.servers -= 1;
        GIVEN_BACK.store(taken.servers == 0, Ordering::SeqCst);
    }
}

/// What the process does with signals, from proc_pid_status(5).
struct Dispositions {
    ignored: u64,
    caught: u64,
}

impl Dispositions {
    fn read() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mask = |name| {
            let mask = status.lines().find_map(|line| line.strip_prefix(name));
            mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
        };
        Dispositions { ignored: mask("SigIgn:"), caught: mask("SigCgt:") }
    }

    fn ignored(&self, signal: c_int) -> bool {
        self.ignored >> (signal - 1) & 1 == 1
    }

    fn default(&self, signal: c_int) -> bool {
        (self.ignored | self.caught) >> (signal - 1) & 1 == 0
    }
}
