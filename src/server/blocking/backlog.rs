//! Where clients wait until they are accepted.

use std::io::{self, ErrorKind, PipeReader};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags};

use super::clients::{Clients, Phase};
use super::{Client, wait_for_any};
use crate::server::admission::AcceptError;
use crate::server::story::{self, Awaited};

/// The listeners of a blocking design, as one.
pub(in crate::server) struct Backlog<'a> {
    listeners: Vec<TcpListener>,
    /// The first phase in which nobody is accepted.
    closed_in: Phase,
    until_stop: PipeReader,
    clients: &'a Clients,
    /// The listener that is asked first: each in turn.
    first: usize,
}

impl<'a> Backlog<'a> {
    pub(super) fn new(
        listeners: Vec<TcpListener>,
        hand_over: bool,
        until_stop: PipeReader,
        clients: &'a Clients,
    ) -> io::Result<Self> {
        // Who waits for one of several cannot wait inside accept(2). What is accepted blocks.
        listeners.iter().try_for_each(|listener| listener.set_nonblocking(true))?;
        let closed_in = if hand_over { Phase::Draining } else { Phase::Asked };
        Ok(Backlog { listeners, closed_in, until_stop, clients, first: 0 })
    }

    /// Waits for the next client, when there is a slot to put it in; `None` when no more are to be
    /// served.
    pub(in crate::server) fn accept(&mut self) -> io::Result<Option<Client<'a>>> {
        let clients = self.clients;
        while clients.wait_for_slot() && clients.phase() < self.closed_in {
            match self.try_accept() {
                Ok((stream, address)) => {
                    if let Some(client) = clients.admit(stream, address.into()) {
                        return Ok(Some(client));
                    }
                }
                Err(error) => match clients.judge(&error) {
                    AcceptError::Connection => {}
                    AcceptError::Starved if clients.wait_for_resources() => {}
                    AcceptError::Empty if clients.phase() == Phase::Serving => self.wait()?,
                    // Who comes now comes too late.
                    AcceptError::Empty | AcceptError::Starved => break,
                },
            }
        }
        Ok(None)
    }

    /// Waits until another try to start a thread may do better than the one that gave this error;
    /// false when no more clients are to be served.
    pub(in crate::server) fn wait_for_thread(&self, error: &io::Error) -> bool {
        self.clients.wait_for_thread(error)
    }

    /// Takes a client from the first listener that has one.
    fn try_accept(&mut self) -> io::Result<(std::net::TcpStream, SocketAddr)> {
        let count = self.listeners.len();
        for step in 0..count {
            let index = (self.first + step) % count;
            match self.listeners[index].accept() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                outcome => {
                    self.first = index + 1;
                    return outcome;
                }
            }
        }
        Err(ErrorKind::WouldBlock.into())
    }

    /// Waits until a listener has a client, or the server is to stop.
    fn wait(&self) -> io::Result<()> {
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut all = vec![readable(self.until_stop.as_fd())];
        all.extend(self.listeners.iter().map(|listener| readable(listener.as_fd())));
        story::waits_for(Awaited::Client);
        wait_for_any(&mut all, None)
    }
}
