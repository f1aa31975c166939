//! The phases of a run (open, warm up, measure, drain) and the event loop that carries them.

use std::io;
use std::time::Duration;

use mio::event::Event;
use mio::{Events, Poll, Token};

use super::Error;
use super::config::{Length, Share};
use super::crew::Crew;
use super::faults::Errors;
use super::report::{Phase, Progress};
use super::run::Run;
use super::schedule::Timer;

/// The loop looks up at least so often, in nanoseconds.
const TICK: u64 = 10_000_000;

/// The caller hears of the progress so often, in nanoseconds.
const PROGRESS: u64 = 100_000_000;

/// The open loop's timer; connections have the tokens from 0 on.
const TIMER: Token = Token(usize::MAX);

/// One way to keep a server busy. It has *places*: each is a connection, and may have room for
/// messages.
pub(super) trait Driver {
    /// Whether [`Driver::sweep`] gives up messages that are overdue. Otherwise the run ends when
    /// nothing has come back for the timeout.
    const GIVES_UP: bool;

    /// Opens what is to be open before the load begins, or begins to. [`Run::opened`] counts.
    fn open(&mut self, run: &mut Run) -> Result<(), Error>;

    /// Sends messages in the place, as long as it has room and [`Run::next`] has some; then, if
    /// it still has room, leaves it with [`Run::vacate`].
    fn fill(&mut self, run: &mut Run, place: u32) -> Result<(), Error>;

    /// Acts on an event of a connection.
    fn ready(&mut self, run: &mut Run, event: &Event) -> Result<(), Error>;

    /// Goes on with what an earlier turn left over. Whether there is still more.
    fn turn(&mut self, _run: &mut Run) -> Result<bool, Error> {
        Ok(false)
    }

    /// Looks for what is overdue; called every 10 ms or so.
    fn sweep(&mut self, _run: &mut Run) -> Result<(), Error> {
        Ok(())
    }

    /// Judges what is still out.
    fn finish(&mut self, _run: &mut Run) {}
}

/// Why the event loop was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LoopExit {
    /// What it was to wait for is there.
    Reached,
    /// The time is over.
    Elapsed,
    /// Nothing came for the timeout, or nothing is left to come.
    Stalled,
    /// The caller stopped the run.
    Stopped,
}

/// After the measured part, what was due in it may still be sent for a tenth of its length, within
/// these bounds.
const GRACE: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(1)];

/// What a thread has to say when its part is over.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) opened: u32,
    /// Messages that came back in the measured part on each connection.
    pub(super) by_connection: Box<[u64]>,
    /// The measured part, in nanoseconds of the run: its end, or when the last message came back.
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) errors: Errors,
    pub(super) first_error: Option<String>,
    pub(super) stopped: bool,
}

/// Hears of the progress of all threads.
pub(super) type Listener<'a> = &'a mut (dyn FnMut(&Progress) + 'a);

/// A thread of a run.
pub(super) struct Worker<'a> {
    poll: Poll,
    run: Run<'a>,
    timer: Option<Timer>,
    phase: Phase,
    crew: &'a Crew<'a>,
    thread: usize,
    /// One of the threads has it.
    progress: Option<Listener<'a>>,
    next_progress: u64,
    next_sweep: u64,
    /// When the interval ends, and which it is.
    interval_end: u64,
    interval: u64,
    /// Faults that intervals have counted.
    counted_errors: u64,
}

impl<'a> Worker<'a> {
    pub(super) fn new(
        share: &'a Share,
        crew: &'a Crew<'a>,
        progress: Option<Listener<'a>>,
    ) -> Result<Self, Error> {
        let system = |error| Error::System { what: "set up the event loop", error };
        let poll = Poll::new().map_err(system)?;
        let registry = poll.registry().try_clone().map_err(system)?;
        let rate = share.config.rate;
        let timer = rate.map(|_| Timer::new(&registry, TIMER)).transpose().map_err(system)?;
        Ok(Self {
            poll,
            run: Run::new(share, registry, crew.epoch),
            timer,
            phase: Phase::Opening,
            crew,
            thread: share.thread as usize,
            progress,
            next_progress: 0,
            next_sweep: 0,
            interval_end: u64::MAX,
            interval: 0,
            counted_errors: 0,
        })
    }

    /// Opens, warms up, measures and drains.
    pub(super) fn measure<D: Driver>(mut self, mut driver: D) -> Result<Part, Error> {
        let mut end = self.open(&mut driver)?;
        if end == LoopExit::Reached && !self.run.config.warmup.is_zero() {
            self.enter(Phase::WarmUp);
            let start = self.crew.meet();
            self.kick(&mut driver, start, u64::MAX)?;
            let warm = start + nanoseconds(self.run.config.warmup);
            end = self.pump(&mut driver, Some(warm), |_| false)?;
        }
        let is_measured = matches!(end, LoopExit::Reached | LoopExit::Elapsed);
        if is_measured {
            end = self.measure_window(&mut driver)?;
        }
        self.enter(Phase::Draining);
        if end != LoopExit::Stopped {
            end = self.drain(&mut driver)?;
        }
        self.run.give_up_backlog();
        self.tell();
        if is_measured {
            self.crew.meet();
        } else {
            self.crew.leave();
        }
        self.enter(Phase::Over);
        self.run.stopped = end == LoopExit::Stopped;
        Ok(self.conclude(driver))
    }

    /// Lets every connection echo one message, be silent, and echo one more.
    pub(super) fn idle<D: Driver>(mut self, mut driver: D) -> Result<Part, Error> {
        let mut end = self.open(&mut driver)?;
        self.enter(Phase::Measuring);
        let start = self.crew.meet();
        self.begin_window(start);
        if end == LoopExit::Reached {
            end = self.echo_once(&mut driver)?;
        }
        if end == LoopExit::Reached
            && let Length::Time(silence) = self.run.config.length
        {
            let over = self.run.look_at_clock() + nanoseconds(silence);
            end = self.pump(&mut driver, Some(over), |_| false)?;
        }
        if end == LoopExit::Elapsed {
            end = self.echo_once(&mut driver)?;
        }
        self.run.stopped = end == LoopExit::Stopped;
        Ok(self.conclude(driver))
    }

    fn open<D: Driver>(&mut self, driver: &mut D) -> Result<LoopExit, Error> {
        let asked = self.run.config.connections;
        driver.open(&mut self.run)?;
        let end = self.pump(driver, None, |run| run.opened >= asked)?;
        if end == LoopExit::Stalled {
            let timed_out = io::ErrorKind::TimedOut.into();
            return Err(super::socket::unreachable(self.run.config, self.run.opened, &timed_out));
        }
        Ok(end)
    }

    /// Measures for the time, or until the messages have been begun.
    fn measure_window<D: Driver>(&mut self, driver: &mut D) -> Result<LoopExit, Error> {
        // Before the window opens: what the caller does now delays no message that counts.
        self.enter(Phase::Measuring);
        let start = self.crew.meet();
        self.begin_window(start);
        let (count, deadline) = match self.run.config.length {
            Length::Messages(count) => (count, None),
            Length::Time(time) => (u64::MAX, Some(start + nanoseconds(time))),
        };
        self.kick(driver, start, count)?;
        let end = self.pump(driver, deadline, |run| run.all_begun())?;
        if deadline.is_some() {
            self.run.window.end = self.run.now;
        }
        Ok(end)
    }

    fn begin_window(&mut self, start: u64) {
        self.run.look_at_clock();
        self.run.open_window(start);
        self.interval_end = start;
        self.set_interval_end();
    }

    /// The last interval ends with the run.
    fn set_interval_end(&mut self) {
        let end = match self.run.config.length {
            Length::Time(time) => self.run.window.start.saturating_add(nanoseconds(time)),
            Length::Messages(_) => u64::MAX,
        };
        let next = self.interval_end.saturating_add(nanoseconds(self.crew.config.every));
        self.interval_end = if next < end { next } else { u64::MAX };
    }

    /// Waits for what is out, and first sends what is due, as far as there is time for it.
    fn drain<D: Driver>(&mut self, driver: &mut D) -> Result<LoopExit, Error> {
        self.run.close_schedule();
        if let Length::Time(time) = self.run.config.length {
            let grace = nanoseconds((time / 10).clamp(GRACE[0], GRACE[1]));
            let until = self.run.now.saturating_add(grace);
            match self.pump(driver, Some(until), |run| run.all_begun())? {
                LoopExit::Stopped => return Ok(LoopExit::Stopped),
                _ => self.run.give_up_backlog(),
            }
        }
        self.pump(driver, None, |run| run.out == 0 && run.all_begun())
    }

    /// Lets every place send one message, and waits for the echoes.
    fn echo_once<D: Driver>(&mut self, driver: &mut D) -> Result<LoopExit, Error> {
        let start = self.run.look_at_clock();
        self.kick(driver, start, u64::MAX)?;
        self.run.close_schedule();
        self.pump(driver, None, |run| run.out == 0)
    }

    /// Lets every place begin, with so many messages in all.
    fn kick<D: Driver>(&mut self, driver: &mut D, start: u64, messages: u64) -> Result<(), Error> {
        self.run.look_at_clock();
        self.run.allow(start, messages);
        (0..self.run.config.connections).try_for_each(|place| driver.fill(&mut self.run, place))
    }

    /// The event loop: until `done`, or one of the other reasons to leave it.
    fn pump<D: Driver>(
        &mut self,
        driver: &mut D,
        deadline: Option<u64>,
        done: impl Fn(&Run) -> bool,
    ) -> Result<LoopExit, Error> {
        let mut events = Events::with_capacity(1024);
        self.run.moved = self.run.look_at_clock();
        let mut more = driver.turn(&mut self.run)?;
        loop {
            let now = self.run.look_at_clock();
            if now >= self.next_progress {
                self.report_progress();
            }
            if now >= self.interval_end && self.run.window.end == u64::MAX {
                self.end_interval();
            }
            if self.crew.is_over() {
                return Ok(LoopExit::Stopped);
            }
            if done(&self.run) {
                return Ok(LoopExit::Reached);
            }
            if deadline.is_some_and(|deadline| now >= deadline) {
                return Ok(LoopExit::Elapsed);
            }
            if self.is_stalled::<D>() {
                return Ok(LoopExit::Stalled);
            }
            self.follow_schedule(driver)?;
            if now >= self.next_sweep {
                self.next_sweep = now + TICK;
                driver.sweep(&mut self.run)?;
            }
            let wait = deadline.map_or(TICK, |deadline| TICK.min(deadline - now));
            let timeout = Duration::from_nanos(if more { 0 } else { wait });
            match self.poll.poll(&mut events, Some(timeout)) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    return Err(Error::System { what: "wait for events", error });
                }
                _ => {}
            }
            for event in events.iter().filter(|event| event.token() != TIMER) {
                driver.ready(&mut self.run, event)?;
            }
            more = driver.turn(&mut self.run)?;
        }
    }

    fn is_stalled<D: Driver>(&self) -> bool {
        let run = &self.run;
        let opening = run.opened < run.config.connections;
        if self.phase != Phase::Opening && run.open == 0 {
            return true;
        }
        let waiting = opening || (run.out > 0 && !D::GIVES_UP);
        waiting && run.now.saturating_sub(run.moved) > nanoseconds(run.config.timeout)
    }

    /// Sends what is due, and sets the timer to what is due next.
    fn follow_schedule<D: Driver>(&mut self, driver: &mut D) -> Result<(), Error> {
        let Some(timer) = &mut self.timer else { return Ok(()) };
        let run = &mut self.run;
        while run.has_backlog()
            && let Some(place) = run.occupy()
        {
            driver.fill(run, place)?;
        }
        // What is due and was not sent goes out as soon as a place has room.
        if let Some(at) = run.next_due().filter(|&at| at > run.now) {
            let arm = |error| Error::System { what: "set the timer", error };
            timer.arm(at, run.now).map_err(arm)?;
        }
        Ok(())
    }

    /// Enters a phase, of which the listener hears at once.
    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.run.look_at_clock();
        self.report_progress();
    }

    fn tell(&self) {
        let errors = self.run.faults.errors.total();
        self.crew.tell(self.thread, self.run.opened, self.run.window.all_messages, errors);
    }

    fn report_progress(&mut self) {
        self.tell();
        self.next_progress = self.run.now + PROGRESS;
        let Some(listener) = &mut self.progress else { return };
        let (phase, elapsed) = (self.phase, Duration::from_nanos(self.run.now));
        report(self.crew, *listener, phase, elapsed, Duration::ZERO);
    }

    /// An interval is over, or several.
    fn end_interval(&mut self) {
        while self.run.now >= self.interval_end {
            self.count_interval(false);
            self.interval += 1;
            self.set_interval_end();
        }
    }

    fn count_interval(&mut self, last: bool) {
        let errors = self.run.faults.errors.total();
        let counts = &mut self.run.window.counts;
        counts.errors = errors - std::mem::replace(&mut self.counted_errors, errors);
        self.crew.end_interval(self.thread, self.interval, counts, last);
    }

    fn conclude<D: Driver>(mut self, mut driver: D) -> Part {
        let start = self.run.window.start;
        driver.finish(&mut self.run);
        self.count_interval(true);
        let Run { config, opened, faults, window, by_connection, stopped, .. } = self.run;
        let end = match config.length {
            Length::Time(_) if window.end < u64::MAX => window.end,
            _ => window.last,
        };
        let (errors, first_error) = (faults.errors, faults.first);
        Part { opened, by_connection, start, end, errors, first_error, stopped }
    }
}

/// Tells the listener of the intervals that are over, or else of the progress alone. `measured` is
/// how long the measured part has lasted, once that is known.
pub(super) fn report(
    crew: &Crew<'_>,
    listener: &mut dyn FnMut(&Progress),
    phase: Phase,
    elapsed: Duration,
    measured: Duration,
) {
    let (opened, messages, errors) = crew.done();
    let mut progress =
        Progress { phase, elapsed, opened, messages, errors, interval: None, so_far: None };
    let mut is_told = false;
    while let Some((interval, so_far)) = crew.next_interval(measured) {
        (progress.interval, progress.so_far) = (Some(interval), Some(so_far));
        listener(&progress);
        is_told = true;
    }
    if !is_told {
        listener(&progress);
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / 4)
}
