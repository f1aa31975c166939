//! Keeps UDP sockets busy.

use std::io;

use mio::event::Event;
use mio::net::UdpSocket;
use mio::{Interest, Token};

use super::Error;
use super::config::Config;
use super::datagram::{Exchange, Freed};
use super::run::Run;
use super::socket::{Opener, unreachable};
use super::worker::Driver;
use crate::protocol::MAX_DATAGRAM;
use crate::sys::socket::is_not_now;

/// All sockets of a run.
#[derive(Debug)]
pub(super) struct Udp {
    opener: Opener,
    sockets: Vec<Socket>,
    size: usize,
    depth: u16,
    incoming: Box<[u8]>,
    outgoing: Box<[u8]>,
    /// Slots that a sweep freed.
    given_up: Vec<Freed>,
}

#[derive(Debug)]
struct Socket {
    socket: UdpSocket,
    exchange: Exchange,
    /// Slots with nothing in flight.
    free: Vec<u16>,
    /// Whether the last send did not work out: the next sweep tries again.
    blocked: bool,
}

impl Udp {
    pub(super) fn new(config: &Config, first: u32) -> Self {
        Self {
            opener: Opener::new(config, first),
            sockets: Vec::with_capacity(config.connections as usize),
            size: config.size,
            depth: config.depth,
            // One byte more than any datagram has: what is too long is seen as such.
            incoming: vec![0; MAX_DATAGRAM + 1].into_boxed_slice(),
            outgoing: vec![0; MAX_DATAGRAM].into_boxed_slice(),
            given_up: Vec::new(),
        }
    }

    /// Takes in what came back. Once nothing is in flight, the next datagram will be a new event.
    fn receive(&mut self, run: &mut Run, place: u32) -> Result<(), Error> {
        let Socket { socket, exchange, free, .. } = &mut self.sockets[place as usize];
        while free.len() < usize::from(self.depth) {
            let count = match socket.recv(&mut self.incoming) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // An earlier datagram was refused: nobody listens, or not any more (udp(7)).
                Err(error) if !run.heard => return Err(unreachable(run.config, 0, &error)),
                Err(_) => continue,
            };
            run.look_at_clock();
            run.hear();
            let Some(freed) = exchange.accept(&self.incoming[..count], &mut run.faults) else {
                continue;
            };
            free.push(freed.slot);
            run.out -= 1;
            if freed.whole {
                run.record(place, freed.intended);
            }
        }
        Ok(())
    }
}

impl Driver for Udp {
    const GIVES_UP: bool = true;

    fn open(&mut self, run: &mut Run) -> Result<(), Error> {
        for place in 0..run.config.connections {
            let opened = self.opener.open();
            let opened = opened.map_err(|error| unreachable(run.config, run.opened, &error))?;
            let mut socket = UdpSocket::from_std(opened.into());
            let both = Interest::READABLE | Interest::WRITABLE;
            run.registry
                .register(&mut socket, Token(place as usize), both)
                .map_err(|error| Error::System { what: "watch a socket", error })?;
            self.sockets.push(Socket {
                socket,
                exchange: Exchange::new(run.first + place, self.size, self.depth),
                free: (0..self.depth).rev().collect(),
                blocked: false,
            });
            run.count_opened(true);
        }
        Ok(())
    }

    fn fill(&mut self, run: &mut Run, place: u32) -> Result<(), Error> {
        let one = &mut self.sockets[place as usize];
        one.blocked = false;
        while let Some(&slot) = one.free.last() {
            let Some(due) = run.next() else {
                run.vacate(place);
                break;
            };
            let datagram = one.exchange.build(slot, due, run.now, &mut self.outgoing);
            match one.socket.send(datagram) {
                Ok(_) => {
                    one.free.pop();
                }
                Err(error) => {
                    one.exchange.unbuild(slot);
                    run.put_back();
                    one.blocked = true;
                    let full = error.raw_os_error() == Some(nix::errno::Errno::ENOBUFS as i32);
                    let passes = full || is_not_now(&error);
                    if !passes && !run.heard {
                        return Err(unreachable(run.config, 0, &error));
                    }
                    break;
                }
            }
        }
        Ok(())
    }

    fn ready(&mut self, run: &mut Run, event: &Event) -> Result<(), Error> {
        let place = event.token().0 as u32;
        if event.is_readable() || event.is_error() {
            self.receive(run, place)?;
        }
        self.fill(run, place)
    }

    fn sweep(&mut self, run: &mut Run) -> Result<(), Error> {
        let timeout = u64::try_from(run.config.timeout.as_nanos()).unwrap_or(u64::MAX);
        let limit = run.now.saturating_sub(timeout);
        for place in 0..self.sockets.len() as u32 {
            let one = &mut self.sockets[place as usize];
            self.given_up.extend(one.exchange.give_up(limit, &mut run.faults));
            let again = one.blocked || !self.given_up.is_empty();
            for freed in self.given_up.drain(..) {
                one.free.push(freed.slot);
                run.out -= 1;
            }
            if again {
                self.fill(run, place)?;
            }
        }
        Ok(())
    }
}
