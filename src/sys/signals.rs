//! The signals of the process, which a server takes while it lives.

use std::fmt;
use std::fs;
use std::io;
use std::os::raw::c_int;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use log::error;
use mio::{Interest, Registry, Token};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook_mio::v1_0::Signals as Pending;

/// The request of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    /// SIGTERM, SIGINT, SIGHUP.
    Stop,
    /// SIGUSR1.
    Report,
}

/// Handles SIGTERM, SIGINT, SIGHUP and SIGUSR1 until it is dropped. SIGHUP is left alone if it is ignored,
/// as under nohup(1).
pub(crate) struct Signals {
    pending: Pending,
    registry: Registry,
    token: Token,
}

/// Whether handlers act like the default disposition. A handler, once installed, stays: without unsafe
/// code the default disposition does not come back. So each signal that had it gets a handler that acts
/// like it while this is true.
static GIVEN_BACK: AtomicBool = AtomicBool::new(true);

/// The number of servers that have the signals, and the signals with a handler that can act like the
/// default.
struct Taken {
    servers: usize,
    defaults: Vec<c_int>,
}

static TAKEN: Mutex<Taken> = Mutex::new(Taken { servers: 0, defaults: Vec::new() });

fn taken() -> MutexGuard<'static, Taken> {
    TAKEN.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Signals {
    /// Takes the signals. Each is an event for `token` from then on.
    pub(crate) fn take(registry: &Registry, token: Token) -> io::Result<Self> {
        let mut taken = taken();
        let [ignored, caught] = dispositions();
        let mut wanted = vec![SIGTERM, SIGINT, SIGUSR1];
        wanted.extend((!is_in(ignored, SIGHUP)).then_some(SIGHUP));
        for &signal in &wanted {
            if !is_in(ignored | caught, signal) && !taken.defaults.contains(&signal) {
                signal_hook::flag::register_conditional_default(signal, &GIVEN_BACK)?;
                taken.defaults.push(signal);
            }
        }
        let mut pending = Pending::new(&wanted)?;
        registry.register(&mut pending, token, Interest::READABLE)?;
        taken.servers += 1;
        GIVEN_BACK.store(false, Ordering::SeqCst);
        Ok(Signals { pending, registry: registry.try_clone()?, token })
    }

    /// The requests of the signals that have arrived.
    pub(crate) fn requests(&mut self) -> Vec<Request> {
        let request = |signal| if signal == SIGUSR1 { Request::Report } else { Request::Stop };
        let requests = self.pending.pending().map(request).collect();
        // They were read behind mio's back, which with poll(2) would not ask for more of them.
        let interest = Interest::READABLE;
        if let Err(error) = self.registry.reregister(&mut self.pending, self.token, interest) {
            error!(
                event = "signals_unwatched",
                errno = error.raw_os_error();
                "further signals may go unnoticed: {error}"
            );
        }
        requests
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

/// The signals that this process ignores, and those that it catches: a bit for each
/// (proc_pid_status(5)).
fn dispositions() -> [u64; 2] {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    ["SigIgn:", "SigCgt:"].map(|name| {
        let mask = status.lines().find_map(|line| line.strip_prefix(name));
        mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
    })
}

fn is_in(mask: u64, signal: c_int) -> bool {
    mask >> (signal - 1) & 1 == 1
}
