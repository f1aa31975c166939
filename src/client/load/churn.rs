//! Opens and closes TCP connections: connect, one message, half-close, the server's FIN, close.

use std::io::{self, Read, Write};
use std::net::Shutdown;

use mio::event::Event;
use mio::net::TcpStream;
use mio::{Interest, Token};

use super::Error;
use super::config::Config;
use super::run::Run;
use super::socket::{Opener, unreachable};
use super::stream::Checker;
use super::worker::Driver;
use crate::client::pattern;

/// The connections of a run that are there at one time.
#[derive(Debug)]
pub(super) struct Churn {
    opener: Opener,
    places: Vec<Option<Cycle>>,
    /// The number of the next connection, which is also that of its pattern.
    next: u32,
    size: u64,
    buffer: Box<[u8]>,
    /// Places whose connection could not be opened: the next sweep tries again.
    waiting: Vec<u32>,
}

/// The life of one connection.
#[derive(Debug)]
struct Cycle {
    socket: TcpStream,
    number: u32,
    /// When it was due, and when it was begun.
    due: u64,
    begun: u64,
    sent: u64,
    checker: Checker,
    /// Whether the FIN is sent.
    shut: bool,
}

/// Where a cycle stands after a turn.
enum Turn {
    Waits,
    /// The server's FIN came when all bytes were back.
    Complete,
    /// The server closed the connection before that, or it broke.
    Closed(Option<io::Error>),
}

impl Churn {
    pub(super) fn new(config: &Config, first: u32) -> Self {
        Self {
            opener: Opener::new(config, first),
            places: (0..config.connections).map(|_| None).collect(),
            next: first,
            size: config.size as u64,
            buffer: vec![0; 64 << 10].into_boxed_slice(),
            waiting: Vec::new(),
        }
    }

    /// Begins a connection; on loopback the handshake is usually over when connect returns, and
    /// the message goes out at once.
    fn begin(&mut self, run: &mut Run, place: u32, due: u64) -> Result<(), Error> {
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        let begun = run.now;
        let socket = match self.opener.open() {
            Ok(socket) => TcpStream::from_std(socket.into()),
            Err(error) => return self.fail(run, place, error),
        };
        let checker = Checker::new(number, self.size);
        let mut cycle = Cycle { socket, number, due, begun, sent: 0, checker, shut: false };
        if let Err(error) = cycle.flush(self.size) {
            return self.fail(run, place, error);
        }
        let interest = match cycle.sent < self.size {
            true => Interest::READABLE | Interest::WRITABLE,
            false => Interest::READABLE,
        };
        run.registry
            .register(&mut cycle.socket, Token(place as usize), interest)
            .map_err(|error| Error::System { what: "watch a connection", error })?;
        self.places[place as usize] = Some(cycle);
        Ok(())
    }

    /// A connection could not be opened. The first of all ends the run, and so does the lack of
    /// ports, which the server has no part in.
    fn fail(&mut self, run: &mut Run, place: u32, error: io::Error) -> Result<(), Error> {
        if !run.heard || error.kind() == io::ErrorKind::AddrNotAvailable {
            return Err(unreachable(run.config, 0, &error));
        }
        run.out -= 1;
        run.faults.errors.failed += 1;
        run.faults.note(|| format!("a connection could not be opened: {error}"));
        self.places[place as usize] = None;
        self.waiting.push(place);
        Ok(())
    }

    /// Ends the cycle of a place: all is well, or the server ended it, or nothing more came.
    fn end(&mut self, run: &mut Run, place: u32, turn: Turn) {
        let Some(mut cycle) = self.places[place as usize].take() else { return };
        let number = cycle.number;
        run.out -= 1;
        match turn {
            Turn::Complete => {
                cycle.checker.close(cycle.sent, &mut run.faults);
                if cycle.checker.is_whole(0) {
                    run.record(place, cycle.due);
                }
                return;
            }
            Turn::Closed(error) => {
                run.faults.errors.closed += 1;
                run.faults.note(|| match error {
                    None => format!("connection {number}: the server closed it too early"),
                    Some(error) => format!("connection {number}: it broke: {error}"),
                });
            }
            Turn::Waits if cycle.shut => {
                run.faults.errors.unclosed += 1;
                run.faults.note(|| format!("connection {number}: the server did not close it"));
            }
            Turn::Waits => {}
        }
        cycle.checker.finish(self.size, &mut run.faults);
    }
}

impl Cycle {
    fn flush(&mut self, size: u64) -> io::Result<()> {
        while self.sent < size {
            let length = (size - self.sent).min(pattern::WINDOW as u64) as usize;
            match self.socket.write(pattern::slice(self.number, self.sent, length)) {
                Ok(count) => self.sent += count as u64,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Not connected yet, or the send buffer is full.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn turn(&mut self, run: &mut Run, size: u64, event: &Event, buffer: &mut [u8]) -> Turn {
        if event.is_writable()
            && let Err(error) = self.flush(size)
        {
            return Turn::Closed(Some(error));
        }
        while event.is_readable() {
            match self.socket.read(buffer) {
                Ok(0) if self.shut => return Turn::Complete,
                Ok(0) => return Turn::Closed(None),
                Ok(count) => {
                    run.hear();
                    self.checker.accept(&buffer[..count], self.sent, &mut run.faults);
                    if self.checker.front() == size && !self.shut {
                        self.shut = true;
                        if let Err(error) = self.socket.shutdown(Shutdown::Write) {
                            return Turn::Closed(Some(error));
                        }
                    }
                    // The server's FIN will be a new event, unless it is there by now.
                    if count < buffer.len() && !event.is_read_closed() {
                        return Turn::Waits;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Turn::Waits,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Turn::Closed(Some(error)),
            }
        }
        Turn::Waits
    }
}

impl Driver for Churn {
    const GIVES_UP: bool = true;

    fn open(&mut self, run: &mut Run) -> Result<(), Error> {
        (0..run.config.connections).for_each(|_| run.count_opened(true));
        Ok(())
    }

    fn fill(&mut self, run: &mut Run, place: u32) -> Result<(), Error> {
        if self.places[place as usize].is_some() {
            return Ok(());
        }
        match run.next() {
            Some(due) => self.begin(run, place, due),
            None => {
                run.vacate(place);
                Ok(())
            }
        }
    }

    fn ready(&mut self, run: &mut Run, event: &Event) -> Result<(), Error> {
        let place = event.token().0 as u32;
        let Some(cycle) = &mut self.places[place as usize] else { return Ok(()) };
        if cycle.sent == 0
            && let Ok(Some(error)) = cycle.socket.take_error()
        {
            return self.fail(run, place, error);
        }
        let turn = cycle.turn(run, self.size, event, &mut self.buffer);
        run.look_at_clock();
        if matches!(turn, Turn::Waits) {
            return Ok(());
        }
        self.end(run, place, turn);
        self.fill(run, place)
    }

    fn sweep(&mut self, run: &mut Run) -> Result<(), Error> {
        for place in std::mem::take(&mut self.waiting) {
            self.fill(run, place)?;
        }
        let timeout = run.config.timeout.as_nanos();
        for place in 0..self.places.len() as u32 {
            let cycle = &self.places[place as usize];
            if cycle.as_ref().is_some_and(|cycle| u128::from(run.now - cycle.begun) > timeout) {
                if !run.heard {
                    let timed_out = io::ErrorKind::TimedOut.into();
                    return Err(unreachable(run.config, 0, &timed_out));
                }
                self.end(run, place, Turn::Waits);
                self.fill(run, place)?;
            }
        }
        Ok(())
    }

    fn finish(&mut self, run: &mut Run) {
        if !run.stopped {
            (0..self.places.len() as u32).for_each(|place| self.end(run, place, Turn::Waits));
        }
    }
}
