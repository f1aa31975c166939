//! The course of a run: open, warm up, measure, drain; and the event loop that carries it.

use std::io;
use std::time::Duration;

use mio::event::Event;
use mio::{Events, Poll, Token};

use super::Error;
use super::config::{Config, Length};
use super::pace::Pace;
use super::report::{Latency, Phase, Progress, Report};
use super::run::Run;
use crate::client::Cancel;

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

    /// Judges what is still out. Returns how many connections got nothing since `start`.
    fn finish(&mut self, run: &mut Run, start: u64) -> u32;
}

/// Why the loop was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// What it was to wait for is there.
    Reached,
    /// The time is over.
    Elapsed,
    /// Nothing came for the timeout, or nothing is left to come.
    Stalled,
    /// The caller stopped the run.
    Stopped,
}

/// A run under way.
pub(super) struct Course<'a> {
    poll: Poll,
    run: Run<'a>,
    pace: Option<Pace>,
    phase: Phase,
    cancel: &'a Cancel,
    progress: &'a mut dyn FnMut(&Progress),
    next_progress: u64,
    next_sweep: u64,
}

impl<'a> Course<'a> {
    pub(super) fn new(
        config: &'a Config,
        cancel: &'a Cancel,
        progress: &'a mut dyn FnMut(&Progress),
    ) -> Result<Self, Error> {
        let system = |error| Error::System { what: "set up the event loop", error };
        let poll = Poll::new().map_err(system)?;
        let registry = poll.registry().try_clone().map_err(system)?;
        let pace = config.rate.map(|rate| Pace::new(rate, &registry, TIMER)).transpose();
        let run = Run::new(config, registry);
        let pace = pace.map_err(system)?;
        let phase = Phase::Opening;
        Ok(Self { poll, run, pace, phase, cancel, progress, next_progress: 0, next_sweep: 0 })
    }

    /// Opens, warms up, measures and drains.
    pub(super) fn measure<D: Driver>(mut self, mut driver: D) -> Result<Report, Error> {
        let mut end = self.open(&mut driver)?;
        if end == End::Reached && !self.run.config.warmup.is_zero() {
            self.enter(Phase::WarmUp);
            self.run.budget = u64::MAX;
            self.kick(&mut driver)?;
            let warm = self.run.now + nanoseconds(self.run.config.warmup);
            end = self.pump(&mut driver, Some(warm), |_| false)?;
        }
        if matches!(end, End::Reached | End::Elapsed) {
            end = self.measure_window(&mut driver)?;
        }
        self.enter(Phase::Draining);
        self.run.budget = 0;
        if end != End::Stopped {
            end = self.pump(&mut driver, None, |run| run.out == 0 && run.due.is_empty())?;
        }
        self.enter(Phase::Over);
        self.run.stopped = end == End::Stopped;
        Ok(self.report(driver))
    }

    /// Lets every connection echo one message, be silent, and echo one more.
    pub(super) fn idle<D: Driver>(mut self, mut driver: D) -> Result<Report, Error> {
        let mut end = self.open(&mut driver)?;
        self.phase = Phase::Measuring;
        self.run.window.start = self.run.look_at_clock();
        if end == End::Reached {
            end = self.echo_once(&mut driver)?;
        }
        if end == End::Reached
            && let Length::Time(silence) = self.run.config.length
        {
            let over = self.run.look_at_clock() + nanoseconds(silence);
            end = self.pump(&mut driver, Some(over), |_| false)?;
        }
        if end == End::Elapsed {
            end = self.echo_once(&mut driver)?;
        }
        self.run.stopped = end == End::Stopped;
        Ok(self.report(driver))
    }

    fn open<D: Driver>(&mut self, driver: &mut D) -> Result<End, Error> {
        let asked = self.run.config.connections;
        driver.open(&mut self.run)?;
        let end = self.pump(driver, None, |run| run.opened >= asked)?;
        if end == End::Stalled {
            let timed_out = io::ErrorKind::TimedOut.into();
            return Err(super::socket::unreachable(self.run.config, self.run.opened, &timed_out));
        }
        Ok(end)
    }

    /// Measures for the time, or until the messages have been begun.
    fn measure_window<D: Driver>(&mut self, driver: &mut D) -> Result<End, Error> {
        let warm = self.phase == Phase::WarmUp;
        // Before the window begins: what the caller does now delays no message that counts.
        self.enter(Phase::Measuring);
        let start = self.run.look_at_clock();
        if warm {
            // What is due up to now is not measured.
            self.follow_pace(driver)?;
        }
        self.run.window.start = start;
        self.run.window.last = start;
        let (budget, deadline) = match self.run.config.length {
            Length::Messages(count) => (count, None),
            Length::Time(time) => (u64::MAX, Some(start + nanoseconds(time))),
        };
        self.run.budget = budget;
        if !warm {
            self.kick(driver)?;
        }
        let end = self.pump(driver, deadline, |run| run.budget == 0)?;
        if deadline.is_some() {
            self.run.window.end = self.run.now;
            self.run.leave_unsent();
        }
        Ok(end)
    }

    /// Lets every place send one message, and waits for the echoes.
    fn echo_once<D: Driver>(&mut self, driver: &mut D) -> Result<End, Error> {
        self.run.budget = u64::MAX;
        self.kick(driver)?;
        self.run.budget = 0;
        self.pump(driver, None, |run| run.out == 0)
    }

    /// Lets every place begin.
    fn kick<D: Driver>(&mut self, driver: &mut D) -> Result<(), Error> {
        self.run.look_at_clock();
        if let Some(pace) = &mut self.pace {
            pace.begin(self.run.now);
        }
        (0..self.run.config.connections).try_for_each(|place| driver.fill(&mut self.run, place))
    }

    /// The event loop: until `done`, or one of the other reasons to leave it.
    fn pump<D: Driver>(
        &mut self,
        driver: &mut D,
        deadline: Option<u64>,
        done: impl Fn(&Run) -> bool,
    ) -> Result<End, Error> {
        let mut events = Events::with_capacity(1024);
        self.run.moved = self.run.look_at_clock();
        let mut more = driver.turn(&mut self.run)?;
        loop {
            let now = self.run.look_at_clock();
            self.report_progress();
            if self.cancel.is_cancelled() {
                return Ok(End::Stopped);
            }
            if done(&self.run) {
                return Ok(End::Reached);
            }
            if deadline.is_some_and(|deadline| now >= deadline) {
                return Ok(End::Elapsed);
            }
            if self.is_stalled::<D>() {
                return Ok(End::Stalled);
            }
            self.follow_pace(driver)?;
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
    fn follow_pace<D: Driver>(&mut self, driver: &mut D) -> Result<(), Error> {
        let Some(pace) = &mut self.pace else { return Ok(()) };
        let run = &mut self.run;
        while run.budget > 0
            && let Some(due) = pace.due(run.now)
        {
            run.budget -= 1;
            run.due.push_back(due);
        }
        if run.budget > 0 {
            let arm = |error| Error::System { what: "set the timer", error };
            pace.arm(run.now).map_err(arm)?;
        }
        while !run.due.is_empty()
            && let Some(place) = run.occupy()
        {
            driver.fill(run, place)?;
        }
        Ok(())
    }

    /// Enters a phase, of which the caller hears at once.
    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.next_progress = 0;
        self.run.look_at_clock();
        self.report_progress();
    }

    fn report_progress(&mut self) {
        let run = &self.run;
        if run.now < self.next_progress {
            return;
        }
        self.next_progress = run.now + PROGRESS;
        (self.progress)(&Progress {
            phase: self.phase,
            elapsed: Duration::from_nanos(run.now),
            opened: run.opened,
            messages: run.window.all_messages,
            errors: run.faults.errors.total(),
        });
    }

    fn report<D: Driver>(mut self, mut driver: D) -> Report {
        let start = self.run.window.start;
        let starved = driver.finish(&mut self.run, start);
        self.run.leave_unsent();
        let Run { config, opened, faults, window, stopped, unsent, .. } = self.run;
        let end = match config.length {
            Length::Time(_) if window.end < u64::MAX => window.end,
            _ => window.last,
        };
        let duration = Duration::from_nanos(end.saturating_sub(window.start));
        let rate = match duration.as_secs_f64() {
            0.0 => 0.0,
            seconds => window.messages as f64 / seconds,
        };
        Report {
            config: config.clone(),
            opened,
            starved,
            duration,
            messages: window.messages,
            bytes: window.messages * config.size as u64,
            rate,
            latency: Latency::of(&window.latencies),
            errors: faults.errors,
            first_error: faults.first,
            unsent,
            stopped,
        }
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / 4)
}
