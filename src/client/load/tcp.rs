//! Keeps TCP connections busy that stay open: ping-pong, stream and idle.

use std::collections::VecDeque;
use std::io;

use mio::Interest;
use mio::event::Event;

use super::Error;
use super::config::{Config, Mode};
use super::run::Run;
use super::socket::Connection;
use super::worker::Driver;
use crate::client::pattern;

/// Connections that are opened side by side: what a listener's backlog takes.
const OPENING: u32 = 128;

/// The same, of those that [`greet`](Config::greet): a backlog of 5 was the most in 4.2BSD, and still is
/// what many programs ask for.
const GREETING: u32 = 4;

/// The most that one read takes in ping-pong; a read that gets less has emptied the socket.
const READ: usize = 64 << 10;

/// All connections of a run.
#[derive(Debug)]
pub(super) struct Tcp {
    /// `None` where the connection is closed.
    places: Vec<Option<Place>>,
    size: u64,
    stream: bool,
    buffer: Box<[u8]>,
    /// Connections in stream mode that had more to read or write when their turn ended.
    unfinished: VecDeque<usize>,
}

#[derive(Debug)]
struct Place {
    connection: Connection,
    open: bool,
    /// Messages begun, and settled.
    begun: u64,
    settled: u64,
    /// When each message that is out was due; not kept in stream mode.
    due: VecDeque<u64>,
    /// What the last events and calls said, in stream mode.
    readable: bool,
    writable: bool,
    /// Whether the server's FIN is there: then a short read has not emptied the socket.
    ending: bool,
    /// Whether it is among [`Tcp::unfinished`].
    listed: bool,
}

impl Place {
    /// Sends a first message, for which no schedule asks.
    fn greet(&mut self, run: &mut Run, size: u64) -> io::Result<()> {
        run.out += 1;
        self.begun += 1;
        self.due.push_back(run.now);
        self.connection.send(size)
    }

    /// Sends the messages that may be begun, once the stream has taken those before them.
    fn send(&mut self, run: &mut Run, place: usize, size: u64) -> io::Result<()> {
        self.connection.send(self.begun * size)?;
        if self.connection.sent == self.begun * size {
            while let Some(due) = run.next(place, self.begun - self.settled) {
                run.begin(due);
                self.due.push_back(due);
                self.begun += 1;
            }
        }
        self.connection.send(self.begun * size)
    }

    /// A turn of a stream connection: one read and some writes, so that all get their turn.
    /// Whether there is more to do.
    fn flow(
        &mut self,
        run: &mut Run,
        place: usize,
        size: u64,
        buffer: &mut [u8],
    ) -> io::Result<bool> {
        if self.readable {
            let more = self.connection.receive(run, buffer, self.ending);
            run.look_at_clock();
            self.settle(run, place);
            self.readable = more?;
        }
        let more = self.writable && self.pour(run, place, size)?;
        Ok(self.readable || more)
    }

    /// Sends message after message, some [`pattern::WINDOW`] bytes in all. Whether there is more.
    fn pour(&mut self, run: &mut Run, place: usize, size: u64) -> io::Result<bool> {
        let until = self.connection.sent + pattern::WINDOW as u64;
        while self.connection.sent < until {
            if self.connection.sent == self.begun * size {
                let Some(due) = run.next(place, 0) else { return Ok(false) };
                run.begin(due);
                self.begun += 1;
            }
            self.connection.send(self.begun * size)?;
            if self.connection.sent < self.begun * size {
                self.writable = false;
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Counts the messages that came back.
    fn settle(&mut self, run: &mut Run, place: usize) {
        let Connection { number, checker, .. } = &mut self.connection;
        while self.settled < checker.settled() {
            let message = self.settled;
            self.settled += 1;
            run.out -= 1;
            let due = self.due.pop_front();
            if !checker.is_whole(message) {
                continue;
            }
            run.count(place, due);
            if due.is_some_and(|due| run.is_late(due)) {
                run.faults.errors.late += 1;
                run.faults.note(|| {
                    format!("connection {number}: message {message} came after the timeout")
                });
            }
        }
    }
}

impl Tcp {
    pub(super) fn new(config: &Config) -> Self {
        let stream = config.mode == Mode::Stream;
        Self {
            places: Vec::with_capacity(config.connections as usize),
            size: config.size as u64,
            stream,
            buffer: vec![0; if stream { pattern::WINDOW } else { READ }].into_boxed_slice(),
            unfinished: VecDeque::new(),
        }
    }

    fn open_next(&mut self, run: &mut Run) -> Result<(), Error> {
        let place = self.places.len();
        let connection = Connection::open(run.config, run.first + place as u32);
        let mut connection = connection.map_err(|error| run.unreachable(&error))?;
        run.watch(&mut connection.socket, place, Interest::READABLE | Interest::WRITABLE)?;
        self.places.push(Some(Place {
            connection,
            open: false,
            begun: 0,
            settled: 0,
            due: VecDeque::new(),
            readable: false,
            writable: true,
            ending: false,
            listed: false,
        }));
        Ok(())
    }

    /// Whether the connection is open. Once it is, the next is opened.
    fn is_open(&mut self, run: &mut Run, place: usize) -> Result<bool, Error> {
        let Some(one) = &mut self.places[place] else { return Ok(false) };
        if one.open {
            return Ok(true);
        }
        match one.connection.socket.take_error().unwrap_or_else(Some) {
            Some(error) => return Err(run.unreachable(&error)),
            None if one.connection.socket.peer_addr().is_err() => return Ok(false),
            None => one.open = true,
        }
        if !run.config.greet {
            self.count_opened(run)?;
        } else if let Err(error) = one.greet(run, self.size) {
            return Err(run.unreachable(&error));
        }
        Ok(true)
    }

    fn count_opened(&mut self, run: &mut Run) -> Result<(), Error> {
        run.count_opened();
        if self.places.len() < run.config.connections as usize {
            self.open_next(run)?;
        }
        Ok(())
    }

    /// A turn of a ping-pong connection: what came back, and then what that made room for.
    fn pong(&mut self, run: &mut Run, place: usize, event: &Event) -> Result<(), Error> {
        let Some(one) = &mut self.places[place] else { return Ok(()) };
        let mut more = Ok(event.is_readable());
        while let Ok(true) = more {
            more = one.connection.receive(run, &mut self.buffer, event.is_read_closed());
        }
        run.look_at_clock();
        let greets = run.config.greet && one.settled == 0;
        one.settle(run, place);
        if greets && one.settled > 0 {
            self.count_opened(run)?;
        }
        match more {
            Err(error) if greets => return Err(self.give_up(run, &error)),
            Ok(_) => self.fill(run, place)?,
            Err(error) => self.close(run, place, &error),
        }
        Ok(())
    }

    /// Gives a stream connection its turn, and notes whether it needs another.
    fn flow(&mut self, run: &mut Run, place: usize) {
        let Some(one) = &mut self.places[place] else { return };
        match one.flow(run, place, self.size, &mut self.buffer) {
            Ok(more) => {
                one.listed = more;
                self.unfinished.extend(more.then_some(place));
            }
            Err(error) => self.close(run, place, &error),
        }
    }

    /// The connection ended while it was still to be used.
    fn close(&mut self, run: &mut Run, place: usize, error: &io::Error) {
        let Some(mut one) = self.places[place].take() else { return };
        run.open -= 1;
        run.out -= one.begun - one.settled;
        run.faults.close(one.connection.number, error);
        one.connection.checker.finish(one.begun * self.size, &mut run.faults);
    }
}

impl Driver for Tcp {
    const GIVES_UP: bool = false;

    fn open(&mut self, run: &mut Run) -> Result<(), Error> {
        let at_once = if run.config.greet { GREETING } else { OPENING };
        (0..run.config.connections.min(at_once)).try_for_each(|_| self.open_next(run))
    }

    fn fill(&mut self, run: &mut Run, place: usize) -> Result<(), Error> {
        let Some(one) = &mut self.places[place] else { return Ok(()) };
        if self.stream {
            if !one.listed {
                self.flow(run, place);
            }
            return Ok(());
        }
        if let Err(error) = one.send(run, place, self.size) {
            self.close(run, place, &error);
        }
        Ok(())
    }

    fn ready(&mut self, run: &mut Run, event: &Event) -> Result<(), Error> {
        let place = event.token().0;
        if !self.is_open(run, place)? {
            return Ok(());
        }
        if !self.stream {
            return self.pong(run, place, event);
        }
        if let Some(one) = &mut self.places[place] {
            one.readable |= event.is_readable();
            one.writable |= event.is_writable();
            one.ending |= event.is_read_closed();
        }
        self.fill(run, place)
    }

    fn turn(&mut self, run: &mut Run) -> Result<bool, Error> {
        for _ in 0..self.unfinished.len() {
            if let Some(place) = self.unfinished.pop_front() {
                self.flow(run, place);
            }
        }
        Ok(!self.unfinished.is_empty())
    }

    fn finish(&mut self, run: &mut Run) {
        for one in self.places.iter_mut().flatten() {
            let Connection { checker, sent, .. } = &mut one.connection;
            if run.stopped {
                checker.close(*sent, &mut run.faults);
            } else {
                checker.finish(one.begun * self.size, &mut run.faults);
            }
        }
    }
}
