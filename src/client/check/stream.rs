//! One TCP connection of the grader: never blocks, and gives up when its case does.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use socket2::SockRef;

use super::seen::is_early;
use crate::client::cancel::{Deadline, LOOK_AGAIN};
use crate::client::harness::Stop;
use crate::client::socket;
use crate::client::states::Kernel;
use crate::client::target::has_overflowed;
use crate::sys::socket::{acknowledge_late, is_not_now};
use crate::units::{size, time};

/// A connection to the server under test.
#[derive(Debug)]
pub(super) struct TcpClient<'a> {
    stream: TcpStream,
    deadline: Deadline<'a>,
}

/// What one look at a connection found.
pub(super) enum Got {
    Bytes(usize),
    Nothing,
    End,
}

impl<'a> TcpClient<'a> {
    pub(super) fn connect(address: SocketAddr, deadline: Deadline<'a>) -> Result<Self, Stop> {
        Self::connect_with(address, None, deadline)
    }

    /// The same with a receive buffer of this size. The kernel doubles it and keeps a minimum.
    pub(super) fn connect_with(
        address: SocketAddr,
        receive_buffer: Option<usize>,
        deadline: Deadline<'a>,
    ) -> Result<Self, Stop> {
        let began = Instant::now();
        match socket::tcp(address, receive_buffer, deadline) {
            Ok(stream) => Ok(Self { stream, deadline }),
            Err(error) if error.kind() == ErrorKind::TimedOut => {
                let full = match has_overflowed(address) {
                    true => ": the queue of its listener (backlog) has been full",
                    false => "",
                };
                let waited = time(began.elapsed());
                Err(Stop::broken(format!(
                    "no connection to {address} came about in {waited}{full}"
                )))
            }
            Err(error) => Err(Stop::of_call(&format!("connecting to {address}"), &error)),
        }
    }

    /// Writes what fits now; zero when nothing does.
    fn write_some(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.stream.write(bytes) {
            Err(error) if is_not_now(&error) => Ok(0),
            other => other,
        }
    }

    /// Reads what is there now.
    pub(super) fn read_some(&mut self, buffer: &mut [u8]) -> io::Result<Got> {
        match self.stream.read(buffer) {
            Ok(0) => Ok(Got::End),
            Ok(length) => Ok(Got::Bytes(length)),
            Err(error) if is_not_now(&error) => Ok(Got::Nothing),
            Err(error) => Err(error),
        }
    }

    /// Waits for readiness, at most for `patience` and until the deadline. False when the time
    /// is over.
    pub(super) fn wait(&self, flags: PollFlags, patience: Duration) -> bool {
        self.deadline.sooner(patience).is_ready(&self.stream, flags).unwrap_or(false)
    }

    /// Sends `sent` and reads at the same time, until exactly `answer` has come.
    pub(super) fn converse(&mut self, sent: &[u8], answer: &[u8]) -> Result<(), Stop> {
        let mut unsent = sent;
        let mut reading = Reading::new(answer);
        while !unsent.is_empty() || !reading.done() {
            let flags = match unsent.is_empty() {
                true => PollFlags::POLLIN,
                false => PollFlags::POLLIN | PollFlags::POLLOUT,
            };
            if !self.wait(flags, Duration::MAX) {
                return Err(reading.too_late(unsent.len(), self.deadline));
            }
            let length = unsent.len().min(64 << 10);
            if length > 0 {
                let written = self.write_some(&unsent[..length]);
                unsent = &unsent[written.map_err(|error| reading.broken(&error))?..];
            }
            reading.read(self)?;
        }
        Ok(())
    }

    /// Sends bytes that have to come back unchanged, and waits for them.
    pub(super) fn exchange(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        self.converse(bytes, bytes)
    }

    /// The same, with acknowledgements as late as this side may send them; and whether the server's kernel, if it is
    /// this one, held a part of the answer back though another part had come.
    pub(super) fn is_held_back(&mut self, bytes: &[u8], kernel: &Kernel) -> Result<bool, Stop> {
        let ends = self.stream.peer_addr().and_then(|peer| Ok((peer, self.stream.local_addr()?)));
        let (peer, local) = ends.map_err(|error| Stop::of_call("looking it up", &error))?;
        // As in a conversation that has lasted for a while (tcp(7)).
        acknowledge_late(&self.stream);
        self.send(bytes)?;
        let (mut reading, mut held) = (Reading::new(bytes), false);
        while !reading.done() {
            if self.wait(PollFlags::POLLIN, LOOK_AGAIN) {
                reading.read(self)?;
                continue;
            }
            if self.deadline.is_over() {
                return Err(reading.too_late(0, self.deadline));
            }
            // There is room for it here, so nothing else than an acknowledgement is missing.
            held |= reading.got > 0 && kernel.not_sent(peer, local).is_ok_and(|bytes| bytes > 0);
        }
        Ok(held)
    }

    /// Sends all of it without reading anything.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        let began = Instant::now();
        let mut unsent = bytes;
        while !unsent.is_empty() {
            if !self.wait(PollFlags::POLLOUT, Duration::MAX) {
                let (sent, all) = (bytes.len() - unsent.len(), bytes.len());
                let waited = time(began.elapsed());
                return Err(Stop::broken(format!(
                    "it took only {sent} of {all} bytes in {waited}"
                )));
            }
            let written = self.write_some(unsent);
            unsent = &unsent[written.map_err(|error| Stop::of_call("sending", &error))?..];
        }
        Ok(())
    }

    /// Sends of `bytes` what is taken while nothing is read, and says how much that was: stops
    /// when nothing more was taken for `patience`.
    pub(super) fn stuff(&mut self, bytes: &[u8], patience: Duration) -> Result<usize, Stop> {
        let mut sent = 0;
        while sent < bytes.len() && self.wait(PollFlags::POLLOUT, patience) {
            let piece = &bytes[sent..bytes.len().min(sent + (64 << 10))];
            sent += self.write_some(piece).map_err(|error| Stop::of_call("sending", &error))?;
        }
        Ok(sent)
    }

    /// Ends this side's stream (FIN); the other may go on.
    pub(super) fn finish(&self) -> Result<(), Stop> {
        self.stream.shutdown(Shutdown::Write).map_err(|error| Stop::of_call("half-closing", &error))
    }

    /// Waits for the server to end its stream, and for nothing before that.
    pub(super) fn expect_end(&mut self) -> Result<(), Stop> {
        let mut buffer = [0; 4096];
        let began = Instant::now();
        loop {
            if !self.wait(PollFlags::POLLIN, Duration::MAX) {
                let waited = time(began.elapsed());
                let what = format!("it kept the connection open, for {waited}");
                return Err(Stop::overdue(what, began, self.deadline));
            }
            match self.read_some(&mut buffer) {
                Ok(Got::End) => return Ok(()),
                Ok(Got::Nothing) => {}
                Ok(Got::Bytes(length)) => {
                    return Err(Stop::broken(format!("{length} or more bytes too many came")));
                }
                Err(error) => return Err(Stop::of_call("waiting for its end", &error)),
            }
        }
    }

    /// Ends the connection at once, with a reset (RST).
    pub(super) fn reset(self) {
        // Closing without lingering is what sends the reset; without it, a FIN is sent.
        let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
    }
}

/// Compares what comes with what has to come.
struct Reading<'a> {
    answer: &'a [u8],
    got: usize,
    buffer: Vec<u8>,
    /// When something came, or else when it began.
    heard: Instant,
}

impl<'a> Reading<'a> {
    fn new(answer: &'a [u8]) -> Self {
        // One byte more than is expected, so that one too many is seen.
        let buffer = vec![0; (answer.len() + 1).min(64 << 10)];
        Self { answer, got: 0, buffer, heard: Instant::now() }
    }

    fn done(&self) -> bool {
        self.got == self.answer.len()
    }

    fn read(&mut self, client: &mut TcpClient<'_>) -> Result<(), Stop> {
        match client.read_some(&mut self.buffer) {
            Ok(Got::Nothing) => Ok(()),
            Ok(Got::End) if self.done() => Ok(()),
            Ok(Got::End) => Err(self.stopped("it closed the connection")),
            Ok(Got::Bytes(length)) => self.compare(length),
            Err(error) => Err(self.broken(&error)),
        }
    }

    fn compare(&mut self, length: usize) -> Result<(), Stop> {
        let found = &self.buffer[..length];
        let wanted = &self.answer[self.got..self.answer.len().min(self.got + length)];
        // All at once, since byte by byte is slow without optimization.
        let common = wanted.len().min(found.len());
        if wanted[..common] != found[..common]
            && let Some(index) = wanted.iter().zip(found).position(|(a, b)| a != b)
        {
            let place = format!("byte {}", self.got + index);
            return Err(differs(&place, found[index], wanted[index]));
        }
        if found.len() > wanted.len() {
            let surplus = found.len() - wanted.len();
            return Err(Stop::broken(format!("{surplus} bytes more than expected came back")));
        }
        self.got += length;
        self.heard = Instant::now();
        Ok(())
    }

    fn stopped(&self, what: &str) -> Stop {
        let (got, all) = (size(self.got as u64), size(self.answer.len() as u64));
        Stop::broken(format!("{what} after {got} of {all}"))
    }

    fn too_late(&self, unsent: usize, deadline: Deadline<'_>) -> Stop {
        let (got, all) = (size(self.got as u64), size(self.answer.len() as u64));
        if is_early(self.heard, deadline) {
            return Stop::late(&format!("{got} of {all} had come back"), deadline);
        }
        let not_taken = match unsent {
            0 => String::new(),
            _ => format!(", and it does not take the last {}", size(unsent as u64)),
        };
        Stop::broken(format!("it stopped answering after {got} of {all}{not_taken}"))
    }

    fn broken(&self, error: &io::Error) -> Stop {
        match error.kind() {
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
                self.stopped("it reset the connection")
            }
            _ => Stop::of_call("the exchange", error),
        }
    }
}

/// A byte that came back as another one.
pub(super) fn differs(place: &str, found: u8, wanted: u8) -> Stop {
    let upper = if found == wanted.to_ascii_uppercase() { ", in upper case" } else { "" };
    Stop::broken(format!("{place} came back as 0x{found:02x} instead of 0x{wanted:02x}{upper}"))
}

/// The time until `deadline`; a connection attempt needs some.
pub(super) fn left(deadline: Deadline<'_>) -> Duration {
    deadline.left().max(Duration::from_millis(1))
}
