//! Keeps UDP sockets busy.

use std::io;

use mio::Interest;
use mio::event::Event;
use mio::net::UdpSocket;

use super::Error;
use super::config::Config;
use super::run::Run;
use super::socket;
use super::worker::Driver;
use crate::client::message::{Messages, Pattern};
use crate::client::tracker::{Reply, Tracker};
use crate::protocol::MAX_DATAGRAM;
use crate::sys::SHORT_READ_EMPTIES;
use crate::sys::socket::is_not_now;
use crate::{random, units};

/// A socket is replaced after this many losses in a row, once nothing has come back for this time, in nanoseconds:
/// the path may keep its port for a server that has moved.
const ROW: u32 = 3;
const SILENCE: u64 = 1_000_000_000;

/// All sockets of a run.
#[derive(Debug)]
pub(super) struct Udp {
    sockets: Vec<Socket>,
    incoming: Box<[u8]>,
    outgoing: Box<[u8]>,
}

#[derive(Debug)]
struct Socket {
    socket: UdpSocket,
    tracker: Tracker,
    /// Whether the last send did not work out: the next sweep tries again.
    blocked: bool,
    /// Datagrams that were lost since something came back, or since it was opened.
    row: u32,
    /// When something came back, or else when it was opened.
    heard: u64,
}

impl Socket {
    /// Opens the socket of this place, with a port of its own.
    fn open(run: &mut Run, place: usize) -> Result<UdpSocket, Error> {
        let opened = socket::open(run.config, run.first + place as u32);
        let opened = opened.map_err(|error| run.unreachable(&error))?;
        let mut socket = UdpSocket::from_std(opened.into());
        run.watch(&mut socket, place, Interest::READABLE | Interest::WRITABLE)?;
        Ok(socket)
    }

    fn is_deaf(&self, run: &Run) -> bool {
        run.heard && self.row >= ROW && run.now.saturating_sub(self.heard) >= SILENCE
    }

    /// Goes on from another port. Where none can be had, it stays.
    fn replace(&mut self, run: &mut Run, place: usize) {
        if let Ok(socket) = Self::open(run, place) {
            self.socket = socket;
            run.replaced += 1;
        }
        (self.row, self.heard) = (0, run.now);
    }

    /// Gives up the datagrams whose time is over. Whether there were any.
    fn expire(&mut self, run: &mut Run, place: usize) -> bool {
        let waiting = self.tracker.waiting();
        while let Some(seq) = self.tracker.expire(run.now) {
            let (socket, wait) = (run.first + place as u32, units::time(run.config.timeout));
            run.out -= 1;
            self.row += 1;
            run.faults.errors.lost += 1;
            run.faults.note(|| format!("socket {socket}: seq={seq}: no reply within {wait}"));
        }
        self.tracker.waiting() < waiting
    }

    /// Takes in a datagram that came back.
    fn accept(&mut self, run: &mut Run, place: usize, datagram: &[u8]) {
        self.expire(run, place);
        (self.row, self.heard) = (0, run.now);
        let waiting = self.tracker.waiting();
        let reply = self.tracker.receive(datagram, run.now);
        run.out -= waiting - self.tracker.waiting();
        run.faults.count(run.first + place as u32, &reply);
        if let Reply::Echo { time, .. } = reply {
            run.count(place, Some(run.now - units::nanoseconds(time)));
        }
    }
}

impl Udp {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            sockets: Vec::with_capacity(config.connections as usize),
            // One byte more than any datagram has: what is too long is seen as such.
            incoming: vec![0; MAX_DATAGRAM + 1].into_boxed_slice(),
            outgoing: vec![0; config.size].into_boxed_slice(),
        }
    }

    /// Takes in what came back. Once nothing is in flight, the next datagram will be a new event, where the
    /// selector does not want the socket emptied for that.
    fn receive(&mut self, run: &mut Run, place: usize) -> Result<(), Error> {
        let one = &mut self.sockets[place];
        while one.tracker.waiting() > 0 || !SHORT_READ_EMPTIES {
            let count = match one.socket.recv(&mut self.incoming) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // An earlier datagram was refused: nothing listens, or no longer (udp(7)).
                Err(error) if !run.heard => return Err(run.unreachable(&error)),
                Err(_) => continue,
            };
            run.look_at_clock();
            run.hear();
            one.accept(run, place, &self.incoming[..count]);
        }
        Ok(())
    }
}

impl Driver for Udp {
    const GIVES_UP: bool = true;

    fn open(&mut self, run: &mut Run) -> Result<(), Error> {
        for place in 0..run.config.connections as usize {
            let socket = Socket::open(run, place)?;
            let (size, key) = (run.config.size, random::draw());
            let upper = run.config.upper;
            // Of binary messages there is no upper case.
            let pattern = if upper { Pattern::Ascii } else { Pattern::Binary };
            let messages = Messages { size, pattern, upper, key };
            let tracker = Tracker::new(messages, run.config.timeout);
            let heard = run.look_at_clock();
            self.sockets.push(Socket { socket, tracker, blocked: false, row: 0, heard });
            run.count_opened();
        }
        Ok(())
    }

    fn fill(&mut self, run: &mut Run, place: usize) -> Result<(), Error> {
        let one = &mut self.sockets[place];
        one.blocked = false;
        while let Some(due) = run.next(place, one.tracker.waiting()) {
            one.tracker.write_next(&mut self.outgoing);
            match one.socket.send(&self.outgoing) {
                Ok(_) => {
                    run.begin(due);
                    one.tracker.send(due, run.now);
                }
                Err(error) => {
                    one.blocked = true;
                    let full = error.raw_os_error() == Some(nix::errno::Errno::ENOBUFS as i32);
                    let passes = full || is_not_now(&error);
                    if !passes && !run.heard {
                        return Err(run.unreachable(&error));
                    }
                    break;
                }
            }
        }
        Ok(())
    }

    fn ready(&mut self, run: &mut Run, event: &Event) -> Result<(), Error> {
        let place = event.token().0;
        if event.is_readable() || event.is_error() {
            self.receive(run, place)?;
        }
        self.fill(run, place)
    }

    fn sweep(&mut self, run: &mut Run) -> Result<(), Error> {
        // One in a sweep, however many there are.
        let deaf = self.sockets.iter().position(|one| one.is_deaf(run));
        if let Some(place) = deaf {
            self.sockets[place].replace(run, place);
        }
        for place in 0..self.sockets.len() {
            let one = &mut self.sockets[place];
            let again = one.expire(run, place) || one.blocked;
            if again {
                self.fill(run, place)?;
            }
        }
        Ok(())
    }
}
