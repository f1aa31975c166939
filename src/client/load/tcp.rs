//! Keeps TCP connections busy that stay open: ping-pong, stream and idle.

use std::collections::VecDeque;
use std::io::{self, Read, Write};

use mio::event::Event;
use mio::net::TcpStream;
use mio::{Interest, Token};

use super::Error;
use super::config::{Config, Mode};
use super::run::Run;
use super::socket::{Opener, unreachable};
use super::stream::Checker;
use super::worker::Driver;
use crate::client::pattern;

/// So many connections are opened side by side: what a listener's backlog takes.
const OPENING: u32 = 128;

/// The most that one read takes in ping-pong; a read that gets less has emptied the socket.
const READ: usize = 64 << 10;

/// All connections of a run.
#[derive(Debug)]
pub(super) struct Tcp {
    opener: Opener,
    /// The number of the first.
    first: u32,
    connections: Vec<Connection>,
    size: u64,
    depth: u64,
    stream: bool,
    buffer: Box<[u8]>,
    /// Connections in stream mode that had more to read or write when their turn ended.
    unfinished: VecDeque<u32>,
}

#[derive(Debug)]
struct Connection {
    /// `None` once it is closed.
    socket: Option<TcpStream>,
    open: bool,
    checker: Checker,
    /// Messages begun, and settled.
    begun: u64,
    settled: u64,
    /// Bytes sent.
    sent: u64,
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

/// What a read ended in.
enum Received {
    /// The socket has nothing more.
    All,
    /// There may be more.
    Part,
    /// The server closed the connection, or it broke.
    Closed(Option<io::Error>),
}

impl Tcp {
    pub(super) fn new(config: &Config, first: u32) -> Self {
        let stream = config.mode == Mode::Stream;
        Self {
            opener: Opener::new(config, first),
            first,
            connections: Vec::with_capacity(config.connections as usize),
            size: config.size as u64,
            depth: u64::from(config.depth),
            stream,
            buffer: vec![0; if stream { pattern::WINDOW } else { READ }].into_boxed_slice(),
            unfinished: VecDeque::new(),
        }
    }

    fn open_next(&mut self, run: &mut Run) -> Result<(), Error> {
        let place = self.connections.len() as u32;
        let connect = |error: io::Error| unreachable(run.config, run.opened, &error);
        let mut socket = TcpStream::from_std(self.opener.open().map_err(connect)?.into());
        let both = Interest::READABLE | Interest::WRITABLE;
        run.registry
            .register(&mut socket, Token(place as usize), both)
            .map_err(|error| Error::System { what: "watch a connection", error })?;
        self.connections.push(Connection {
            socket: Some(socket),
            open: false,
            checker: Checker::new(self.first + place, self.size),
            begun: 0,
            settled: 0,
            sent: 0,
            due: VecDeque::new(),
            readable: false,
            writable: true,
            ending: false,
            listed: false,
        });
        Ok(())
    }

    /// Looks whether the connection has opened.
    fn check_open(&mut self, run: &mut Run, place: usize) -> Result<(), Error> {
        let connection = &mut self.connections[place];
        let Some(socket) = &connection.socket else { return Ok(()) };
        match socket.take_error().unwrap_or_else(Some) {
            Some(error) => return Err(unreachable(run.config, run.opened, &error)),
            None if socket.peer_addr().is_err() => return Ok(()),
            None => connection.open = true,
        }
        run.count_opened(true);
        if self.connections.len() < run.config.connections as usize {
            self.open_next(run)?;
        }
        Ok(())
    }

    /// A turn of a ping-pong connection: what came back, and then what that made room for.
    fn pong(&mut self, run: &mut Run, place: usize, event: &Event) -> Result<(), Error> {
        let mut end = Received::Part;
        while event.is_readable() && matches!(end, Received::Part) {
            end = self.receive(run, place, event.is_read_closed());
        }
        run.look_at_clock();
        self.settle(run, place);
        match end {
            Received::Closed(error) => self.close(run, place, error),
            _ => self.fill(run, place as u32)?,
        }
        Ok(())
    }

    /// A turn of a stream connection: one read and some writes, so that all get their turn.
    fn flow(&mut self, run: &mut Run, place: usize) {
        if self.connections[place].socket.is_none() {
            return;
        }
        if self.connections[place].readable {
            match self.receive(run, place, self.connections[place].ending) {
                Received::All => self.connections[place].readable = false,
                Received::Part => {}
                Received::Closed(error) => {
                    self.settle(run, place);
                    return self.close(run, place, error);
                }
            }
            run.look_at_clock();
            self.settle(run, place);
        }
        let mut more = false;
        if self.connections[place].writable {
            more = self.pour(run, place);
        }
        let connection = &mut self.connections[place];
        connection.listed = connection.socket.is_some() && (connection.readable || more);
        if connection.listed {
            self.unfinished.push_back(place as u32);
        }
    }

    /// Writes message after message, some [`pattern::WINDOW`] bytes in all. Whether there is more.
    fn pour(&mut self, run: &mut Run, place: usize) -> bool {
        let until = self.connections[place].sent + pattern::WINDOW as u64;
        while self.connections[place].sent < until {
            let connection = &mut self.connections[place];
            if connection.sent == connection.begun * self.size {
                if run.next().is_none() {
                    return false;
                }
                connection.begun += 1;
            }
            if let Err(error) = self.flush(place) {
                self.close(run, place, Some(error));
                return false;
            }
            let connection = &mut self.connections[place];
            if connection.sent < connection.begun * self.size {
                connection.writable = false;
                return false;
            }
        }
        true
    }

    /// Reads once and checks what came.
    fn receive(&mut self, run: &mut Run, place: usize, until_end: bool) -> Received {
        let connection = &mut self.connections[place];
        let Some(socket) = &mut connection.socket else { return Received::All };
        loop {
            match socket.read(&mut self.buffer) {
                Ok(0) => return Received::Closed(None),
                Ok(count) => {
                    run.hear();
                    let bytes = &self.buffer[..count];
                    connection.checker.accept(bytes, connection.sent, &mut run.faults);
                    let all = count < self.buffer.len() && !until_end;
                    return if all { Received::All } else { Received::Part };
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Received::All,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Received::Closed(Some(error)),
            }
        }
    }

    /// Counts the messages that came back.
    fn settle(&mut self, run: &mut Run, place: usize) {
        let connection = &mut self.connections[place];
        let timeout = run.config.timeout.as_nanos();
        while connection.settled < connection.checker.settled() {
            let message = connection.settled;
            connection.settled += 1;
            run.out -= 1;
            let due = connection.due.pop_front();
            if !connection.checker.is_whole(message) {
                continue;
            }
            match due {
                // A number of messages counts in no stream.
                None => run.count(place as u32, run.now),
                Some(due) => {
                    run.record(place as u32, due);
                    if u128::from(run.now - due) > timeout {
                        run.faults.errors.late += 1;
                        let number = self.first + place as u32;
                        run.faults.note(|| {
                            format!("connection {number}: message {message} came after the timeout")
                        });
                    }
                }
            }
        }
    }

    /// Sends what is begun and not sent, as far as the socket takes it.
    fn flush(&mut self, place: usize) -> io::Result<()> {
        let connection = &mut self.connections[place];
        let Some(socket) = &mut connection.socket else { return Ok(()) };
        let end = connection.begun * self.size;
        while connection.sent < end {
            let length = (end - connection.sent).min(pattern::WINDOW as u64) as usize;
            match socket.write(pattern::slice(self.first + place as u32, connection.sent, length)) {
                Ok(count) => connection.sent += count as u64,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The connection ended while it was still to be used.
    fn close(&mut self, run: &mut Run, place: usize, error: Option<io::Error>) {
        let connection = &mut self.connections[place];
        if connection.socket.take().is_none() {
            return;
        }
        run.open -= 1;
        run.out -= connection.begun - connection.settled;
        run.faults.errors.closed += 1;
        let number = self.first + place as u32;
        run.faults.note(|| match error {
            None => format!("connection {number}: the server closed it"),
            Some(error) => format!("connection {number}: it broke: {error}"),
        });
        connection.checker.finish(connection.begun * self.size, &mut run.faults);
    }
}

impl Driver for Tcp {
    const GIVES_UP: bool = false;

    fn open(&mut self, run: &mut Run) -> Result<(), Error> {
        (0..run.config.connections.min(OPENING)).try_for_each(|_| self.open_next(run))
    }

    fn fill(&mut self, run: &mut Run, place: u32) -> Result<(), Error> {
        let index = place as usize;
        let connection = &mut self.connections[index];
        if connection.socket.is_none() {
            return Ok(());
        }
        if self.stream {
            if !connection.listed {
                self.flow(run, index);
            }
            return Ok(());
        }
        while connection.begun - connection.settled < self.depth
            && let Some(due) = run.next()
        {
            connection.due.push_back(due);
            connection.begun += 1;
        }
        if connection.begun - connection.settled < self.depth {
            run.vacate(place);
        }
        if let Err(error) = self.flush(index) {
            self.close(run, index, Some(error));
        }
        Ok(())
    }

    fn ready(&mut self, run: &mut Run, event: &Event) -> Result<(), Error> {
        let place = event.token().0;
        if !self.connections[place].open {
            self.check_open(run, place)?;
            if !self.connections[place].open {
                return Ok(());
            }
        }
        if !self.stream {
            return self.pong(run, place, event);
        }
        let connection = &mut self.connections[place];
        connection.readable |= event.is_readable();
        connection.writable |= event.is_writable();
        connection.ending |= event.is_read_closed();
        if !connection.listed {
            self.flow(run, place);
        }
        Ok(())
    }

    fn turn(&mut self, run: &mut Run) -> Result<bool, Error> {
        for _ in 0..self.unfinished.len() {
            if let Some(place) = self.unfinished.pop_front() {
                self.flow(run, place as usize);
            }
        }
        Ok(!self.unfinished.is_empty())
    }

    fn finish(&mut self, run: &mut Run) {
        for connection in self.connections.iter_mut().filter(|one| one.socket.is_some()) {
            if run.stopped {
                connection.checker.close(connection.sent, &mut run.faults);
            } else {
                connection.checker.finish(connection.begun * self.size, &mut run.faults);
            }
        }
    }
}
