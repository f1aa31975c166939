//! Ends a tool's run early, from wherever; and waits that end with it: for descriptors of any kind (sockets,
//! pipes, terminals, files), or for what only looking tells.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

use crate::sys::signals::{hold_back, is_ignored};
use crate::sys::socket::is_not_now;
use crate::sys::wait::poll;

/// The longest time that a tool waits for one thing, a day; a longer timeout is cut to it.
pub const LONGEST_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

/// Tells a run of a tool to end early. Clones share one flag, which is never taken back.
///
/// Whatever the run waits for, it ends soon after, with the report of what it has done so far.
///
/// ```
/// use evecho::client::Cancel;
///
/// let cancel = Cancel::default();
/// let other = cancel.clone();
/// std::thread::spawn(move || other.cancel()).join().unwrap();
/// assert!(cancel.is_cancelled());
/// ```
#[derive(Clone, Debug, Default)]
pub struct Cancel {
    flag: Arc<AtomicBool>,
}

impl Cancel {
    /// One that SIGINT, SIGTERM and SIGHUP cancel from now on. A second signal ends the process at
    /// once, with 128 and its number as the exit code. SIGHUP is left alone where it is ignored, as
    /// under nohup(1), which only Linux tells.
    ///
    /// # Errors
    ///
    /// When the system refuses the handlers.
    pub fn at_signals() -> io::Result<Self> {
        let (cancel, again) = (Self::default(), Arc::default());
        let taken = if is_ignored(SIGHUP) { 2 } else { 3 };
        let signals = &[SIGINT, SIGTERM, SIGHUP][..taken];
        hold_back(signals, || {
            for &signal in signals {
                flag::register(signal, Arc::clone(&cancel.flag))?;
                flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&again))?;
                flag::register(signal, Arc::clone(&again))?;
            }
            Ok(())
        })?;
        Ok(cancel)
    }

    /// Ends every run that has a clone of this.
    pub fn cancel(&self) {
        self.flag.store(true, Ordering::Relaxed);
    }

    /// Whether [`Cancel::cancel`] was called on this or a clone.
    pub fn is_cancelled(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }

    /// An input (a terminal, a pipe, a file) that ends, as at its end, when the run is cancelled.
    pub fn reader<'a, R: Read + AsFd + 'a>(&'a self, input: R) -> impl Read + 'a {
        self.within(Duration::MAX).reader(input)
    }

    /// A deadline from now on, cut to [`LONGEST_WAIT`]; with [`Duration::MAX`], none but the end of
    /// the run.
    pub(super) fn within(&self, patience: Duration) -> Deadline<'_> {
        let is_limited = patience < Duration::MAX;
        Deadline::new(is_limited.then(|| Instant::now() + patience.min(LONGEST_WAIT)), self)
    }

    pub(super) fn sleep(&self, time: Duration) {
        // Without a descriptor nothing is ready, and nothing fails.
        let _ = self.within(time).poll(&mut []);
    }
}

/// How often a tool that waits looks up, to notice that it is cancelled.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// How often something that cannot be waited for is looked at again.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// The end of a wait: a moment that has come, too, when the run is cancelled. Once it has come, what
/// is there already is still taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline<'a> {
    at: Option<Instant>,
    /// When the wait began.
    began: Instant,
    pub(super) cancel: &'a Cancel,
}

impl<'a> Deadline<'a> {
    pub(super) fn new(at: Option<Instant>, cancel: &'a Cancel) -> Self {
        Self { at, began: Instant::now(), cancel }
    }

    /// The same, but at the latest after `patience`.
    pub(super) fn sooner(self, patience: Duration) -> Self {
        let at = Instant::now().checked_add(patience);
        Self { at: [at, self.at].into_iter().flatten().min(), ..self }
    }

    /// How long it has been waited by now, since the deadline was made.
    pub(super) fn lasted(self) -> Duration {
        self.began.elapsed()
    }

    pub(super) fn left(self) -> Duration {
        match self.at {
            _ if self.cancel.is_cancelled() => Duration::ZERO,
            None => LONGEST_WAIT,
            Some(at) => at.saturating_duration_since(Instant::now()),
        }
    }

    pub(super) fn is_over(self) -> bool {
        self.left().is_zero()
    }

    /// Waits until one of `watched` is ready for what is asked of it, and returns what each became
    /// ready for, in the same order: all empty when the time is over.
    pub(super) fn ready<const N: usize>(
        self,
        watched: [Option<(BorrowedFd<'_>, PollFlags)>; N],
    ) -> io::Result<[PollFlags; N]> {
        let mut polled: Vec<PollFd<'_>> =
            watched.iter().flatten().map(|&(fd, flags)| PollFd::new(fd, flags)).collect();
        self.poll(&mut polled)?;
        let mut answers = polled.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        Ok(watched
            .map(|watched| watched.and_then(|_| answers.next()).unwrap_or(PollFlags::empty())))
    }

    /// The same for one.
    pub(super) fn is_ready(self, fd: impl AsFd, flags: PollFlags) -> io::Result<bool> {
        self.poll(&mut [PollFd::new(fd.as_fd(), flags)])
    }

    /// The same for any number. Whether one of them is ready.
    ///
    /// poll(2) and not epoll: regular files are among the descriptors (a file is sent as it is).
    pub(super) fn poll(self, watched: &mut [PollFd<'_>]) -> io::Result<bool> {
        loop {
            match poll(watched, self.left().min(TICK)) {
                Ok(0) | Err(Errno::EINTR) if self.is_over() => return Ok(false),
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(true),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// An input that fails when the time is over, and ends when the run is cancelled.
    pub(super) fn reader<R: Read + AsFd>(self, input: R) -> Reader<'a, R> {
        Reader { input, deadline: self }
    }

    /// Calls `look` until it finds something; `None` when the time is over.
    pub(super) fn find<T>(self, mut look: impl FnMut() -> Option<T>) -> Option<T> {
        loop {
            let found = look();
            if found.is_some() || self.is_over() {
                return found;
            }
            self.cancel.sleep(LOOK_AGAIN.min(self.left()));
        }
    }
}

/// See [`Deadline::reader`].
pub(super) struct Reader<'a, R> {
    input: R,
    deadline: Deadline<'a>,
}

impl<R: Read + AsFd> Read for Reader<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let is_ready = self.deadline.is_ready(&self.input, PollFlags::POLLIN)?;
            if self.deadline.cancel.is_cancelled() {
                return Ok(0);
            }
            if !is_ready {
                return Err(io::ErrorKind::TimedOut.into());
            }
            match self.input.read(buffer) {
                Err(error) if is_not_now(&error) => {}
                result => return result,
            }
        }
    }
}
