//! The signals of the process, which a server takes while it lives.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::raw::c_int;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use log::error;
use mio::{Interest, Registry, Token};
use nix::sys::signal::{SigSet, Signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook_mio::v1_0::Signals as Pending;

use super::system::signals::dispositions;

/// The request of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    /// SIGTERM, SIGINT, or SIGHUP of the terminal.
    Stop,
    /// SIGHUP where there is no terminal: to daemons it means to read settings again.
    Reload,
    /// SIGUSR1.
    Report,
}

/// Handles SIGTERM, SIGINT, SIGHUP and SIGUSR1 until it is dropped. SIGHUP and SIGINT are left alone if they
/// are ignored, as under nohup(1) and in the background of a script.
pub(crate) struct Signals {
    pending: Pending,
    /// What SIGHUP asks for.
    hangup: Request,
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
        let mut wanted = vec![SIGTERM, SIGUSR1];
        wanted.extend([SIGINT, SIGHUP].into_iter().filter(|&signal| !is_in(ignored, signal)));
        let pending = hold_back(&wanted, || {
            for &signal in &wanted {
                if !is_in(ignored | caught, signal) && !taken.defaults.contains(&signal) {
                    signal_hook::flag::register_conditional_default(signal, &GIVEN_BACK)?;
                    taken.defaults.push(signal);
                }
            }
            let mut pending = Pending::new(&wanted)?;
            registry.register(&mut pending, token, Interest::READABLE)?;
            // Before those are handled that wait.
            GIVEN_BACK.store(false, Ordering::SeqCst);
            Ok(pending)
        })?;
        taken.servers += 1;
        // At the signal it would be too late to ask: a terminal that has hung up is gone.
        let has_terminal = File::open("/dev/tty").is_ok();
        let hangup = if has_terminal { Request::Stop } else { Request::Reload };
        Ok(Signals { pending, hangup, registry: registry.try_clone()?, token })
    }

    /// The requests of the signals that have arrived.
    pub(crate) fn requests(&mut self) -> Vec<Request> {
        let hangup = self.hangup;
        let request = |signal| match signal {
            SIGUSR1 => Request::Report,
            SIGHUP => hangup,
            _ => Request::Stop,
        };
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

/// Installs handlers while this thread blocks their signals: a signal that arrives at a handler whose
/// actions are not stored yet is lost. Then unblocks them, as a parent process may have blocked them.
pub(crate) fn hold_back<T>(
    signals: &[c_int],
    install: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    let signals = signals.iter().map(|&signal| Signal::try_from(signal));
    let signals: SigSet = signals.collect::<Result<_, _>>()?;
    signals.thread_block()?;
    let installed = install();
    signals.thread_unblock()?;
    installed
}

/// Whether the process is known to ignore the signal.
#[cfg(feature = "client")]
pub(crate) fn is_ignored(signal: c_int) -> bool {
    is_in(dispositions()[0], signal)
}

/// Whether a mask has the signal's bit.
pub(super) fn is_in(mask: u64, signal: c_int) -> bool {
    mask >> (signal - 1) & 1 == 1
}
