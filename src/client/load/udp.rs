//! Keeps UDP sockets busy.

use std::io;
use std::net::SocketAddr;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::thread;

use mio::Interest;
use mio::event::Event;
use mio::net::UdpSocket;

use super::Error;
use super::config::Config;
use super::run::Run;
use super::socket;
use super::worker::Driver;
use crate::client::Cancel;
use crate::client::message::Messages;
use crate::client::target::{self, Family, Target};
use crate::client::tracker::{Reply, Tracker};
use crate::error::Transport;
use crate::protocol::MAX_DATAGRAM;
use crate::sys::SHORT_READ_EMPTIES;
use crate::sys::socket::is_not_now;
use crate::{random, units};

/// How long an address is good for all sockets that are replaced, in nanoseconds.
const FRESH: u64 = 1_000_000_000;

/// Where the server is. Its name is resolved again on a thread of its own: the event loop goes on meanwhile.
#[derive(Debug)]
struct Whereabouts {
    name: Option<Target>,
    address: SocketAddr,
    cancel: Cancel,
    search: Option<Receiver<Result<SocketAddr, target::Error>>>,
    /// When a search was over.
    found: u64,
}

impl Whereabouts {
    fn new(config: &Config, cancel: &Cancel) -> Self {
        let &Config { address, ref target, ref sources, .. } = config;
        let family = if address.is_ipv4() { Family::V4 } else { Family::V6 };
        let name = target.clone().map(|target| match sources.is_empty() {
            true => target,
            false => target.with_family(family),
        });
        Self { name, address, cancel: cancel.clone(), search: None, found: 0 }
    }

    /// Whether the address is known, after a new look at the name. What cannot be found out stays as it is.
    fn is_known(&mut self, run: &Run) -> bool {
        let Some(name) = self.name.as_ref().filter(|_| run.now >= self.found + FRESH) else {
            return true;
        };
        let Some(search) = &self.search else {
            let (name, timeout, cancel) = (name.clone(), run.config.timeout, self.cancel.clone());
            let (sender, receiver) = mpsc::sync_channel(1);
            let search = move || sender.send(name.choose(Transport::Udp, timeout, &cancel));
            // Without a thread, there is no sender: nothing is found.
            let _ = thread::Builder::new().spawn(search);
            self.search = Some(receiver);
            return false;
        };
        match search.try_recv() {
            Err(TryRecvError::Empty) => return false,
            Ok(Ok(address)) => self.address = address,
            _ => {}
        }
        (self.search, self.found) = (None, run.now);
        true
    }
}

/// All sockets of a run.
#[derive(Debug)]
pub(super) struct Udp {
    server: Whereabouts,
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
}

impl Socket {
    /// Opens the socket of this place, with a port of its own.
    fn open(run: &mut Run, place: usize, address: SocketAddr) -> Result<UdpSocket, Error> {
        let opened = socket::open(run.config, address, run.first + place as u32);
        let opened = opened.map_err(|error| run.unreachable(&error))?;
        let mut socket = UdpSocket::from_std(opened.into());
        run.watch(&mut socket, place, Interest::READABLE | Interest::WRITABLE)?;
        Ok(socket)
    }

    /// Goes on from another port. Where none can be had, it stays.
    fn replace(&mut self, run: &mut Run, place: usize, address: SocketAddr) {
        if let Ok(socket) = Self::open(run, place, address) {
            self.socket = socket;
            run.replaced += 1;
        }
        self.tracker.hear(run.now);
    }

    /// Gives up the datagrams whose time is over. Whether there were any.
    fn expire(&mut self, run: &mut Run, place: usize) -> bool {
        let waiting = self.tracker.waiting();
        while let Some(seq) = self.tracker.expire(run.now) {
            let (socket, wait) = (run.first + place as u32, units::time(run.config.timeout));
            run.out -= 1;
            run.faults.errors.lost += 1;
            run.faults.note(|| format!("socket {socket}: seq={seq}: no reply within {wait}"));
        }
        self.tracker.waiting() < waiting
    }

    /// Takes in a datagram that came back.
    fn accept(&mut self, run: &mut Run, place: usize, datagram: &[u8]) {
        self.expire(run, place);
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
    pub(super) fn new(config: &Config, cancel: &Cancel) -> Self {
        Self {
            server: Whereabouts::new(config, cancel),
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
            let socket = Socket::open(run, place, self.server.address)?;
            let &Config { size, pattern, upper, .. } = run.config;
            let messages = Messages { size, pattern, upper, key: random::draw() };
            let mut tracker = Tracker::new(messages, run.config.timeout);
            tracker.hear(run.look_at_clock());
            self.sockets.push(Socket { socket, tracker, blocked: false });
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
        let deaf = self.sockets.iter().position(|one| run.heard && one.tracker.is_deaf(run.now));
        if let Some(place) = deaf.filter(|_| self.server.is_known(run)) {
            self.sockets[place].replace(run, place, self.server.address);
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
