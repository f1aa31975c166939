//! Opens and closes TCP connections: connect, one message, half-close, the server's FIN, close.

use std::io;
use std::net::Shutdown;

use mio::Interest;
use mio::event::Event;

use super::Error;
use super::config::Share;
use super::run::Run;
use super::socket::Connection;
use super::worker::Driver;
use crate::client::socket::lacks_port;

/// The connections of a run that are there at one time.
#[derive(Debug)]
pub(super) struct Churn {
    places: Vec<Option<Cycle>>,
    /// The number of the next connection.
    next: u32,
    size: u64,
    buffer: Box<[u8]>,
    /// Places whose connection could not be opened: the next sweep tries again.
    waiting: Vec<usize>,
}

/// The life of one connection.
#[derive(Debug)]
struct Cycle {
    connection: Connection,
    /// When it was due, when it was begun, and when the server was seen to have accepted it.
    due: u64,
    begun: u64,
    connected: Option<u64>,
    /// When the whole message was back: the FIN is sent.
    shut: Option<u64>,
}

impl Churn {
    pub(super) fn new(share: &Share) -> Self {
        Self {
            places: (0..share.config.connections).map(|_| None).collect(),
            next: share.first,
            size: share.config.size as u64,
            buffer: vec![0; 64 << 10].into_boxed_slice(),
            waiting: Vec::new(),
        }
    }

    /// Begins a connection; on loopback the handshake is usually over when connect returns, and
    /// the message goes out at once.
    fn begin(&mut self, run: &mut Run, place: usize, due: u64) -> Result<(), Error> {
        run.begin(due);
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        let begun = run.look_at_clock();
        let opened = Connection::open(run.config, number).and_then(|mut connection| {
            let connected = run.look_at_clock();
            connection.send(self.size)?;
            let connected = (connection.sent > 0).then_some(connected);
            Ok((connection, connected))
        });
        let (mut connection, connected) = match opened {
            Ok(opened) => opened,
            Err(error) => return self.fail(run, place, &error),
        };
        let interest = match connection.sent < self.size {
            true => Interest::READABLE | Interest::WRITABLE,
            false => Interest::READABLE,
        };
        run.watch(&mut connection.socket, place, interest)?;
        self.places[place] = Some(Cycle { connection, due, begun, connected, shut: None });
        Ok(())
    }

    /// A connection could not be opened. The first of all ends the run, and so does the lack of
    /// ports, which the server has no part in: what was measured by then is reported.
    fn fail(&mut self, run: &mut Run, place: usize, error: &io::Error) -> Result<(), Error> {
        run.out -= 1;
        if lacks_port(error) {
            run.ended = Some(run.unreachable(error));
            return Ok(());
        }
        if !run.heard {
            return Err(run.unreachable(error));
        }
        run.faults.errors.failed += 1;
        run.faults.note(|| format!("a connection could not be opened: {error}"));
        self.places[place] = None;
        self.waiting.push(place);
        Ok(())
    }

    /// Ends the cycle of a place: the connection is closed as `error` says, or it took too long.
    fn end(&mut self, run: &mut Run, place: usize, error: Option<&io::Error>) {
        let Some(cycle) = self.places[place].take() else { return };
        let Cycle { connection, due, begun, connected, shut } = cycle;
        let Connection { number, sent, mut checker, .. } = connection;
        run.out -= 1;
        match error {
            // All bytes were back.
            Some(error) if shut.is_some() && error.kind() == io::ErrorKind::UnexpectedEof => {
                checker.close(sent, &mut run.faults);
                if checker.is_whole(0) {
                    run.count(place, Some(due));
                    if let Some((connected, back)) = connected.zip(shut) {
                        run.count_parts(due, connected - begun, back - connected);
                    }
                }
                return;
            }
            Some(error) => run.faults.close(number, error),
            None if shut.is_some() => {
                run.faults.errors.unclosed += 1;
                run.faults.note(|| format!("connection {number}: the server did not close it"));
            }
            None => {}
        }
        checker.finish(self.size, &mut run.faults);
    }
}

impl Cycle {
    /// An error when the connection is over.
    fn turn(
        &mut self,
        run: &mut Run,
        size: u64,
        event: &Event,
        buffer: &mut [u8],
    ) -> io::Result<()> {
        if event.is_writable() {
            self.connected.get_or_insert_with(|| run.look_at_clock());
            self.connection.send(size)?;
        }
        // The server's FIN will be a new event, unless it is there by now.
        let mut more = event.is_readable();
        while more {
            more = self.connection.receive(run, buffer, event.is_read_closed())?;
            if self.connection.checker.front() == size && self.shut.is_none() {
                self.shut = Some(run.look_at_clock());
                self.connection.socket.shutdown(Shutdown::Write)?;
            }
        }
        Ok(())
    }
}

impl Driver for Churn {
    const GIVES_UP: bool = true;

    fn open(&mut self, run: &mut Run) -> Result<(), Error> {
        (0..run.config.connections).for_each(|_| run.count_opened());
        Ok(())
    }

    fn fill(&mut self, run: &mut Run, place: usize) -> Result<(), Error> {
        if self.places[place].is_some() {
            return Ok(());
        }
        match run.next(place, 0) {
            Some(due) => self.begin(run, place, due),
            None => Ok(()),
        }
    }

    fn ready(&mut self, run: &mut Run, event: &Event) -> Result<(), Error> {
        let place = event.token().0;
        let Some(cycle) = &mut self.places[place] else { return Ok(()) };
        if cycle.connection.sent == 0
            && let Ok(Some(error)) = cycle.connection.socket.take_error()
        {
            return self.fail(run, place, &error);
        }
        let turn = cycle.turn(run, self.size, event, &mut self.buffer);
        run.look_at_clock();
        let Err(error) = turn else { return Ok(()) };
        self.end(run, place, Some(&error));
        self.fill(run, place)
    }

    fn sweep(&mut self, run: &mut Run) -> Result<(), Error> {
        for place in std::mem::take(&mut self.waiting) {
            self.fill(run, place)?;
        }
        for place in 0..self.places.len() {
            let cycle = &self.places[place];
            if cycle.as_ref().is_some_and(|cycle| run.is_overdue(cycle.begun)) {
                if !run.heard {
                    return Err(run.unreachable(&io::ErrorKind::TimedOut.into()));
                }
                self.end(run, place, None);
                self.fill(run, place)?;
            }
        }
        Ok(())
    }

    fn finish(&mut self, run: &mut Run) {
        if !run.stopped {
            (0..self.places.len()).for_each(|place| self.end(run, place, None));
        }
    }
}
