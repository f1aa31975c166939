//! What a worker and its driver share: the clock, what may be sent, what was counted.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use mio::event::Source;
use mio::{Interest, Registry, Token};

use super::Error;
use super::config::{Config, Length, Share};
use super::cost::{ClientUsage, ThreadUsage};
use super::faults::Faults;
use super::report::Counts;
use super::schedule::Schedule;
use crate::client::histogram::Histogram;
use crate::client::{target, tracker};
use crate::units;

/// What a worker and its driver share: the clock, what may be sent, what was counted.
pub(super) struct Run<'a> {
    pub(super) config: &'a Config,
    /// The number of its first connection.
    pub(super) first: u32,
    pub(super) registry: Registry,
    epoch: Instant,
    /// The configured timeout, in nanoseconds.
    timeout: u64,
    /// Nanoseconds since the run began, as of the last [`Run::look_at_clock`].
    pub(super) now: u64,
    /// What had come by then has been taken in. A machine that is paused is no reason to give up a reply.
    pub(super) looked: u64,
    /// Connections that were opened, and those of them that are usable.
    pub(super) opened: u32,
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
    /// When messages may be begun.
    pub(super) schedule: Schedule,
    /// Places with room, in the open loop, the one that waits longest first.
    vacant: VecDeque<usize>,
    /// Which places these are.
    is_vacant: Box<[bool]>,
    /// The place that may begin the next message, in the open loop.
    turn: Option<usize>,
    /// Messages that may be out in a place.
    room: u64,
    /// How often a place had no more room in the open loop.
    pub(super) bound_met: u64,
    /// UDP sockets that were replaced.
    pub(super) replaced: u64,
    /// How often a message was due and no place could take it.
    pub(super) blocked: u64,
    pub(super) window: Window,
    /// Since when the thread is measured, and what it has then used until the end.
    thread: Option<ThreadUsage>,
    pub(super) client: ClientUsage,
    /// How long it has polled in vain in the measured part, in nanoseconds.
    pub(super) polled: u64,
    /// Messages that came back in the measured part on each connection.
    pub(super) by_connection: Box<[u64]>,
    /// Churn: how long connections took until they were there, and then until their message was back.
    pub(super) connecting: Histogram,
    pub(super) exchange: Histogram,
    /// How late messages were sent after they were due, in the open loop.
    pub(super) send_delay: Histogram,
    /// Why it cannot go on, if so.
    pub(super) ended: Option<Error>,
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

impl Window {
    /// The measured part, in nanoseconds of the run: until its end, or until the last message came
    /// back.
    pub(super) fn range(&self) -> Range<u64> {
        self.start..if self.end < u64::MAX { self.end } else { self.last }
    }
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
            timeout: units::nanoseconds(config.timeout),
            now: 0,
            looked: 0,
            opened: 0,
            open: 0,
            out: 0,
            heard: false,
            faults: Faults::default(),
            stopped: false,
            moved: 0,
            schedule: Schedule::new(config.rate, share.thread, config.threads),
            vacant: VecDeque::new(),
            is_vacant: vec![false; config.connections as usize].into_boxed_slice(),
            turn: None,
            room: config.rate.map_or(config.depth.into(), |_| tracker::MOST as u64),
            bound_met: 0,
            replaced: 0,
            blocked: 0,
            window: Window {
                start: u64::MAX,
                end: u64::MAX,
                first_due: 0,
                last: 0,
                all_messages: 0,
                counts: Counts::default(),
            },
            thread: None,
            client: ClientUsage::default(),
            polled: 0,
            by_connection: vec![0; config.connections as usize].into_boxed_slice(),
            connecting: Histogram::default(),
            exchange: Histogram::default(),
            send_delay: Histogram::default(),
            ended: None,
        }
    }

    /// Reads the clock: once an event, after its system calls.
    pub(super) fn look_at_clock(&mut self) -> u64 {
        self.now = self.epoch.elapsed().as_nanos() as u64;
        self.now
    }

    /// When the next message was due, if the place, which has `out` of them, may begin it now.
    ///
    /// In the open loop places take turns; one with room that does not have the turn waits for it.
    pub(super) fn next(&mut self, place: usize, out: u64) -> Option<u64> {
        let is_open_loop = self.config.rate.is_some();
        if out >= self.room {
            self.bound_met += u64::from(is_open_loop);
            return None;
        }
        if is_open_loop && self.turn.take_if(|turn| *turn == place).is_none() {
            if !std::mem::replace(&mut self.is_vacant[place], true) {
                self.vacant.push_back(place);
            }
            return None;
        }
        self.schedule.due(self.now)
    }

    /// Begins the message of [`Run::next`], which was due at `due`: it is out.
    pub(super) fn begin(&mut self, due: u64) {
        self.schedule.take();
        if self.config.rate.is_some() && due >= self.window.start {
            self.send_delay.record(self.now - due);
        }
        if self.out == 0 {
            self.moved = self.now;
        }
        self.out += 1;
    }

    /// The place that has the turn to send a message that is due: the one that waits longest.
    pub(super) fn occupy(&mut self) -> Option<usize> {
        let now = self.look_at_clock();
        self.schedule.due(now)?;
        let place = self.vacant.pop_front();
        self.blocked += u64::from(place.is_none());
        let place = place?;
        self.is_vacant[place] = false;
        self.turn = Some(place);
        Some(place)
    }

    /// When the next message is due that a place waits for; else `u64::MAX`.
    pub(super) fn next_due(&self) -> u64 {
        self.schedule.next().filter(|_| !self.vacant.is_empty()).unwrap_or(u64::MAX)
    }

    /// What is due and not sent will not be sent.
    pub(super) fn give_up_backlog(&mut self) {
        if self.config.rate.is_some() && self.window.start < u64::MAX {
            let unsent = &mut self.window.counts.unsent;
            *unsent = unsent.saturating_add(self.schedule.backlog(self.now));
            self.schedule.begin(self.now, 0);
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
        self.polled = 0;
        self.thread = Some(ThreadUsage::now());
    }

    /// The measured part is over.
    pub(super) fn close_window(&mut self) {
        if let Some(begin) = self.thread.take() {
            self.client = ClientUsage::of_thread(&begin, Duration::from_nanos(self.polled));
        }
    }

    /// Registers the socket of a place with the poll.
    pub(super) fn watch(
        &self,
        socket: &mut impl Source,
        place: usize,
        interest: Interest,
    ) -> Result<(), Error> {
        let watched = self.registry.register(socket, Token(place), interest);
        watched.map_err(|error| Error::System { what: "watch a socket", error })
    }

    /// The error of a run that cannot reach its server.
    pub(super) fn unreachable(&self, error: &io::Error) -> Error {
        let &Config { address, transport, timeout, connections: asked, .. } = self.config;
        let error = target::Error::unreachable(address, transport, timeout, error);
        // Once all are open, as sockets or as places, their number says nothing.
        let opened = if self.opened < asked { self.opened } else { 0 };
        Error::Unreachable { error, opened, asked, wrong: self.faults.first.clone() }
    }

    /// A connection opened.
    pub(super) fn count_opened(&mut self) {
        self.opened += 1;
        self.open += 1;
        self.moved = self.now;
    }

    /// Bytes came back.
    pub(super) fn hear(&mut self) {
        self.heard = true;
        self.moved = self.now;
    }

    /// Whether more than the timeout has passed since `start`.
    pub(super) fn is_overdue(&self, start: u64) -> bool {
        self.looked.saturating_sub(start) > self.timeout
    }

    /// Whether what was due at `due` comes back too late now.
    pub(super) fn is_late(&self, due: u64) -> bool {
        self.now.saturating_sub(due) > self.timeout
    }

    /// How long the parts of a connection took, as long as what was due in the measured part counts.
    pub(super) fn count_parts(&mut self, due: u64, connecting: u64, exchange: u64) {
        if due >= self.window.start {
            self.connecting.record(connecting);
            self.exchange.record(exchange);
        }
    }

    /// A message came back whole on the connection at `place`, now. `due` is when it was due; in a
    /// stream, how long it took says nothing.
    pub(super) fn count(&mut self, place: usize, due: Option<u64>) {
        let window = &mut self.window;
        window.all_messages += 1;
        // What was begun before the window may have waited for it to open.
        if let Some(due) = due.filter(|&due| due >= window.start) {
            window.counts.times.record(self.now - due);
        }
        if due.unwrap_or(self.now) >= window.first_due
            && (window.start..=window.end).contains(&self.now)
        {
            window.counts.messages += 1;
            window.last = self.now;
            self.by_connection[place] += 1;
        }
    }
}
