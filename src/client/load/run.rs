//! What a worker and its driver share: the clock, what may be sent, what was counted.

use std::collections::VecDeque;
use std::time::Instant;

use mio::Registry;

use super::config::{Config, Length, Share};
use super::counts::Counts;
use super::faults::Faults;
use super::schedule::Schedule;

/// What a worker and its driver share: the clock, what may be sent, what was counted.
pub(super) struct Run<'a> {
    pub(super) config: &'a Config,
    /// The number of its first connection.
    pub(super) first: u32,
    pub(super) registry: Registry,
    epoch: Instant,
    /// Nanoseconds since the run began, as of the last [`Run::look_at_clock`].
    pub(super) now: u64,
    /// Connections that finished opening, well or not.
    pub(super) opened: u32,
    /// Connections that are usable.
    pub(super) open: u32,
    /// Messages that are out.
    pub(super) out: u64,
    /// Whether anything ever came back.
    pub(super) heard: bool,
    pub(super) faults: Faults,
    /// Whether the run was stopped: what is out then is no fault.
    pub(super) stopped: bool,
    /// When something last moved.
    pub(super) moved: u64,
    /// Messages that may still be begun, in the closed loop.
    budget: u64,
    /// When messages are due, in the open loop.
    schedule: Option<Schedule>,
    /// Places with room, in the open loop, the one that waits longest first.
    vacant: VecDeque<u32>,
    /// Which places these are.
    is_vacant: Box<[bool]>,
    pub(super) window: Window,
    /// Messages that came back in the measured part on each connection.
    pub(super) by_connection: Box<[u64]>,
}

/// The measured part.
pub(super) struct Window {
    pub(super) start: u64,
    pub(super) end: u64,
    /// Messages that were due before this do not count.
    first_due: u64,
    /// When the last counted message came back.
    pub(super) last: u64,
    /// Messages that came back, those before the window too, for the progress.
    pub(super) all_messages: u64,
    /// Of this interval; its faults are counted at its end.
    pub(super) counts: Counts,
}

impl<'a> Run<'a> {
    /// A thread's part of a run that began at `epoch`. It may not send yet.
    pub(super) fn new(share: &'a Share, registry: Registry, epoch: Instant) -> Self {
        let config = &share.config;
        Self {
            config,
            first: share.first,
            registry,
            epoch,
            now: 0,
            opened: 0,
            open: 0,
            out: 0,
            heard: false,
            faults: Faults::default(),
            stopped: false,
            moved: 0,
            budget: 0,
            schedule: config.rate.map(|rate| Schedule::new(rate, share.thread, config.threads)),
            vacant: VecDeque::new(),
            is_vacant: vec![false; config.connections as usize].into_boxed_slice(),
            window: Window {
                start: u64::MAX,
                end: u64::MAX,
                first_due: 0,
                last: 0,
                all_messages: 0,
                counts: Counts::new(),
            },
            by_connection: vec![0; config.connections as usize].into_boxed_slice(),
        }
    }

    /// Reads the clock: once an event, after its system calls.
    pub(super) fn look_at_clock(&mut self) -> u64 {
        self.now = self.epoch.elapsed().as_nanos() as u64;
        self.now
    }

    /// The next message, if one may be begun now: when it was due. It counts as out.
    pub(super) fn next(&mut self) -> Option<u64> {
        let due = match &mut self.schedule {
            Some(schedule) => schedule.take(self.now)?,
            None => {
                self.budget = self.budget.checked_sub(1)?;
                self.now
            }
        };
        if self.out == 0 {
            self.moved = self.now;
        }
        self.out += 1;
        Some(due)
    }

    /// Gives the last of [`Run::next`] back: it could not be sent.
    pub(super) fn put_back(&mut self) {
        self.out -= 1;
        match &mut self.schedule {
            Some(schedule) => schedule.put_back(),
            None => self.budget += 1,
        }
    }

    /// The place has room for a message that is not due yet: in the open loop, it will be filled
    /// when one is.
    pub(super) fn vacate(&mut self, place: u32) {
        if self.schedule.is_some() && !std::mem::replace(&mut self.is_vacant[place as usize], true)
        {
            self.vacant.push_back(place);
        }
    }

    /// The place that has been vacant longest, to be filled.
    pub(super) fn occupy(&mut self) -> Option<u32> {
        let place = self.vacant.pop_front()?;
        self.is_vacant[place as usize] = false;
        Some(place)
    }

    /// From `start` on `messages` more may be begun, at the rate where there is one.
    pub(super) fn allow(&mut self, start: u64, messages: u64) {
        self.budget = messages;
        if let Some(schedule) = &mut self.schedule {
            schedule.begin(start, messages);
        }
    }

    /// Nothing more is begun but what is due by now.
    pub(super) fn close_schedule(&mut self) {
        self.budget = 0;
        if let Some(schedule) = &mut self.schedule {
            schedule.end(self.now);
        }
    }

    /// What is due and not sent will not be sent.
    pub(super) fn give_up_backlog(&mut self) {
        if let Some(schedule) = self.schedule.take_if(|_| self.window.start < u64::MAX) {
            self.window.counts.unsent += schedule.backlog(self.now);
        }
    }

    /// When the next message is due, in the open loop.
    pub(super) fn next_due(&self) -> Option<u64> {
        self.schedule.as_ref()?.next()
    }

    /// Whether a message is due, in the open loop.
    pub(super) fn has_backlog(&self) -> bool {
        self.next_due().is_some_and(|at| at <= self.now)
    }

    /// Whether all messages have been begun.
    pub(super) fn all_begun(&self) -> bool {
        match &self.schedule {
            Some(schedule) => schedule.next().is_none(),
            None => self.budget == 0,
        }
    }

    /// The measured part begins at `start`.
    pub(super) fn open_window(&mut self, start: u64) {
        let window = &mut self.window;
        (window.start, window.last) = (start, start);
        // A number of messages is that of those begun in it; in a time, what comes back counts.
        window.first_due = match self.config.length {
            Length::Messages(_) => start,
            Length::Time(_) => 0,
        };
    }

    /// A connection opened, or did not: the next may be opened.
    pub(super) fn count_opened(&mut self, well: bool) {
        self.opened += 1;
        self.open += u32::from(well);
        self.moved = self.now;
    }

    /// Bytes came back.
    pub(super) fn hear(&mut self) {
        self.heard = true;
        self.moved = self.now;
    }

    /// A message that was due at `due` came back whole on the connection at `place`, now.
    pub(super) fn record(&mut self, place: u32, due: u64) {
        // What was begun before the window may have waited for it to open.
        if due >= self.window.start {
            self.window.counts.times.record(self.now - due);
        }
        self.count(place, due);
    }

    /// The same, where how long it took says nothing.
    pub(super) fn count(&mut self, place: u32, due: u64) {
        let window = &mut self.window;
        window.all_messages += 1;
        if due >= window.first_due && (window.start..=window.end).contains(&self.now) {
            window.counts.messages += 1;
            window.last = self.now;
            self.by_connection[place as usize] += 1;
        }
    }
}
