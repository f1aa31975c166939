//! The phases of a run (open, warm up, measure, drain) and the event loop that carries them.

use std::io;
use std::time::Duration;

use mio::event::Event;
use mio::{Events, Poll, Token};

use super::Error;
use super::config::{Length, Share};
use super::crew::{Crew, Done};
use super::faults::Errors;
use super::report::{Phase, Progress};
use super::run::Run;
use crate::busy_poll::{BusyPoll, Wait};
use crate::sys::timer::Timer;
use crate::units::nanoseconds;

/// The loop looks up at least this often, in nanoseconds.
const TICK: u64 = 10_000_000;

/// The caller hears of the progress this often, in nanoseconds.
const PROGRESS: u64 = 100_000_000;

/// Messages that are sent before the loop looks what came back.
const BURST: usize = 64;

/// In the open loop: how long before a message is due the loop wakes up, in nanoseconds, and how
/// long it polls for a reply before it sleeps. To be woken takes tens of microseconds; latencies
/// would have them on top.
const EARLY: u64 = 200_000;
const REPLY: Duration = Duration::from_millis(2);

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

    /// Sends the messages that [`Run::next`] lets the place begin.
    fn fill(&mut self, run: &mut Run, place: usize) -> Result<(), Error>;

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

    /// The error of a run that ends before all connections are open.
    fn give_up(&mut self, run: &mut Run, error: &io::Error) -> Error {
        // What is out is no fault; what came and is wrong is.
        run.stopped = true;
        self.finish(run);
        run.unreachable(error)
    }
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

/// Whether there is more than the timer.
fn has_come(events: &Events) -> bool {
    events.iter().any(|event| event.token() != TIMER)
}

/// Hears of the progress of all threads.
pub(super) type Listener<'a> = &'a mut (dyn FnMut(&Progress) + 'a);

/// A thread of a run.
pub(super) struct Worker<'r, 'a> {
    poll: Poll,
    run: Run<'r>,
    timer: Option<Timer>,
    busy_poll: BusyPoll,
    phase: Phase,
    crew: &'a Crew<'a>,
    thread: usize,
    /// One of the threads has it.
    progress: Option<Listener<'a>>,
    next_progress: u64,
    next_sweep: u64,
    /// Which interval goes on.
    interval: u64,
    /// Faults that intervals have counted.
    counted_errors: Errors,
}

impl<'r, 'a> Worker<'r, 'a> {
    pub(super) fn new(
        share: &'r Share,
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
            busy_poll: BusyPoll::new(rate.map_or(Duration::ZERO, |_| REPLY)),
            phase: Phase::Opening,
            crew,
            thread: share.thread as usize,
            progress,
            next_progress: 0,
            next_sweep: 0,
            interval: 0,
            counted_errors: Errors::default(),
        })
    }

    /// Opens, warms up, measures and drains.
    pub(super) fn measure<D: Driver>(mut self, mut driver: D) -> Result<Run<'r>, Error> {
        let mut end = self.open(&mut driver)?;
        if end == LoopExit::Reached && !self.run.config.warmup.is_zero() {
            self.enter(Phase::WarmUp);
            let start = self.crew.meet();
            self.kick(&mut driver, start, u64::MAX)?;
            let warm = start.saturating_add(nanoseconds(self.run.config.warmup));
            end = self.pump(&mut driver, Some(warm), |_| false)?;
        }
        let is_measured = matches!(end, LoopExit::Reached | LoopExit::Elapsed);
        if is_measured {
            self.measure_window(&mut driver)?;
            self.run.close_window();
        }
        self.enter(Phase::Draining);
        let end = self.drain(&mut driver)?;
        self.run.give_up_backlog();
        self.note_progress();
        if is_measured {
            self.crew.meet();
        } else {
            self.crew.leave();
        }
        self.enter(Phase::Over);
        if is_measured {
            // The listener has looked at the server before any connection is closed.
            self.crew.meet();
        }
        Ok(self.conclude(driver, end))
    }

    /// Lets every connection echo one message, be silent, and echo one more.
    pub(super) fn idle<D: Driver>(mut self, mut driver: D) -> Result<Run<'r>, Error> {
        let mut end = self.open(&mut driver)?;
        self.enter(Phase::Measuring);
        let start = self.crew.meet();
        self.run.open_window(start);
        if end == LoopExit::Reached {
            end = self.echo_once(&mut driver)?;
        }
        if end == LoopExit::Reached
            && let Length::Time(silence) = self.run.config.length
        {
            let over = self.run.look_at_clock().saturating_add(nanoseconds(silence));
            end = self.pump(&mut driver, Some(over), |_| false)?;
        }
        if end == LoopExit::Elapsed {
            end = self.echo_once(&mut driver)?;
        }
        self.run.close_window();
        self.crew.meet();
        self.enter(Phase::Over);
        self.crew.meet();
        Ok(self.conclude(driver, end))
    }

    fn open<D: Driver>(&mut self, driver: &mut D) -> Result<LoopExit, Error> {
        let asked = self.run.config.connections;
        driver.open(&mut self.run)?;
        let end = self.pump(driver, None, |run| run.opened >= asked)?;
        if end == LoopExit::Stalled {
            return Err(driver.give_up(&mut self.run, &io::ErrorKind::TimedOut.into()));
        }
        Ok(end)
    }

    /// Measures for the time, or until the messages have been begun.
    fn measure_window<D: Driver>(&mut self, driver: &mut D) -> Result<(), Error> {
        // Before the window opens: what the caller does now delays no message that counts.
        self.enter(Phase::Measuring);
        let start = self.crew.meet();
        self.run.open_window(start);
        let (count, deadline) = match self.run.config.length {
            Length::Messages(count) => (count, None),
            Length::Time(time) => (u64::MAX, Some(start.saturating_add(nanoseconds(time)))),
        };
        self.kick(driver, start, count)?;
        self.pump(driver, deadline, |run| run.schedule.is_over())?;
        if deadline.is_some() {
            self.run.window.end = self.run.now;
        }
        Ok(())
    }

    /// Waits for what is out, and first sends what is due, as far as there is time for it. A run that
    /// was stopped waits for nothing.
    fn drain<D: Driver>(&mut self, driver: &mut D) -> Result<LoopExit, Error> {
        self.run.schedule.end(self.run.now);
        if let Length::Time(time) = self.run.config.length {
            let grace = nanoseconds((time / 10).clamp(GRACE[0], GRACE[1]));
            let until = self.run.now.saturating_add(grace);
            self.pump(driver, Some(until), |run| run.schedule.is_over())?;
            self.run.give_up_backlog();
        }
        self.pump(driver, None, |run| run.out == 0 && run.schedule.is_over())
    }

    /// Lets every place send one message, and waits for the echoes.
    fn echo_once<D: Driver>(&mut self, driver: &mut D) -> Result<LoopExit, Error> {
        let start = self.run.look_at_clock();
        self.kick(driver, start, u64::MAX)?;
        self.run.schedule.end(self.run.now);
        self.pump(driver, None, |run| run.out == 0)
    }

    /// Lets every place begin, with this number of messages in all.
    fn kick<D: Driver>(&mut self, driver: &mut D, start: u64, messages: u64) -> Result<(), Error> {
        self.run.look_at_clock();
        self.run.schedule.begin(start, messages);
        (0..self.run.config.connections as usize)
            .try_for_each(|place| driver.fill(&mut self.run, place))
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
            self.end_intervals();
            if self.run.ended.is_some() {
                self.crew.fail();
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
            let most = deadline.map_or(TICK, |deadline| TICK.min(deadline - now));
            self.wait(&mut events, if more { 0 } else { most })?;
            for event in events.iter().filter(|event| event.token() != TIMER) {
                driver.ready(&mut self.run, event)?;
            }
            more = driver.turn(&mut self.run)?;
            if !more && events.iter().count() < events.capacity() {
                self.run.looked = now;
            }
        }
    }

    fn is_stalled<D: Driver>(&self) -> bool {
        let run = &self.run;
        let opening = run.opened < run.config.connections;
        if self.phase != Phase::Opening && run.open == 0 {
            return true;
        }
        let waiting = opening || (run.out > 0 && !D::GIVES_UP);
        waiting && run.is_overdue(run.moved)
    }

    /// Sends what is due.
    fn follow_schedule<D: Driver>(&mut self, driver: &mut D) -> Result<(), Error> {
        for _ in 0..BURST {
            let Some(place) = self.run.occupy() else { break };
            driver.fill(&mut self.run, place)?;
        }
        Ok(())
    }

    /// Waits for events, for `most` nanoseconds or until a message is due: polls while a reply may
    /// be near or the message nearly is, and else sleeps.
    fn wait(&mut self, events: &mut Events, most: u64) -> Result<(), Error> {
        let due = self.run.next_due();
        let start = self.run.look_at_clock();
        let until = start.saturating_add(most).min(due);
        let window = nanoseconds(self.busy_poll.window());
        let mut first = true;
        loop {
            // What moved last was a reply, or the first message that waits for one.
            let waited = self.run.now.saturating_sub(self.run.moved);
            let is_near = self.run.out > 0 && waited < window;
            let early = if is_near || self.run.out == 0 { EARLY } else { 0 };
            if self.run.now < until && !is_near && self.run.now + early < due {
                return self.sleep(events, until - self.run.now, due - early);
            }
            let before = self.run.now;
            self.poll(events, 0)?;
            self.run.look_at_clock();
            if has_come(events) {
                let how = if first { Wait::AtOnce } else { Wait::Win };
                self.busy_poll.learn(how, Duration::from_nanos(waited));
                return Ok(());
            }
            if most > 0 {
                self.run.polled += self.run.now - before;
            }
            if self.run.now >= until {
                return Ok(());
            }
            first = false;
        }
    }

    /// Sleeps until there is an event, for at most `most` nanoseconds, and not beyond `until`.
    fn sleep(&mut self, events: &mut Events, mut most: u64, until: u64) -> Result<(), Error> {
        if let Some(timer) = &mut self.timer {
            let arm = |error| Error::System { what: "set the timer", error };
            most = timer.arm(until, self.run.now, most).map_err(arm)?;
        }
        self.poll(events, most)?;
        let waited = self.run.look_at_clock().saturating_sub(self.run.moved);
        if has_come(events) {
            let how = if self.busy_poll.window().is_zero() { Wait::Slept } else { Wait::Loss };
            self.busy_poll.learn(how, Duration::from_nanos(waited));
        }
        Ok(())
    }

    fn poll(&mut self, events: &mut Events, most: u64) -> Result<(), Error> {
        match self.poll.poll(events, Some(Duration::from_nanos(most))) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                Err(Error::System { what: "wait for events", error })
            }
            _ => Ok(()),
        }
    }

    /// Enters a phase, of which the listener hears at once.
    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.run.look_at_clock();
        self.report_progress();
    }

    fn note_progress(&self) {
        let (opened, messages) = (self.run.opened, self.run.window.all_messages);
        let errors = self.run.faults.errors.total();
        self.crew.note(self.thread, Done { opened, messages, errors });
    }

    fn report_progress(&mut self) {
        self.note_progress();
        self.next_progress = self.run.now + PROGRESS;
        if let Some(listener) = &mut self.progress {
            self.crew.report(*listener, self.phase, Duration::ZERO);
        }
    }

    /// When the interval ends that goes on; the last one ends with the run.
    fn interval_end(&self) -> u64 {
        let (start, every) = (self.run.window.start, nanoseconds(self.crew.config.every));
        let end = start.saturating_add(every.saturating_mul(self.interval + 1));
        match self.run.config.length {
            Length::Time(time) if end >= start.saturating_add(nanoseconds(time)) => u64::MAX,
            _ => end,
        }
    }

    /// Counts the intervals that are over.
    fn end_intervals(&mut self) {
        while self.run.window.end == u64::MAX && self.run.now >= self.interval_end() {
            self.count_interval(false);
            self.interval += 1;
        }
    }

    fn count_interval(&mut self, last: bool) {
        let errors = self.run.faults.errors;
        let counts = &mut self.run.window.counts;
        counts.errors = errors.since(&std::mem::replace(&mut self.counted_errors, errors));
        self.crew.end_interval(self.thread, self.interval, counts, last);
    }

    fn conclude<D: Driver>(mut self, mut driver: D, end: LoopExit) -> Run<'r> {
        self.run.stopped = end == LoopExit::Stopped;
        driver.finish(&mut self.run);
        self.count_interval(true);
        self.run
    }
}
