//! Where a scenario is played: a server, clients that are moved call by call, and the kernel, which is
//! asked after each.

use std::cell::{Cell, RefCell};
use std::io::{self, Read, Write};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket,
};
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};

use super::fact::{self, Fact, View, What};
use super::kernel::Kernel;
use super::report::{Connection, Segment, Side, State, Step};
use super::wire::Wire;
use super::{ENDED, Progress};
use crate::client::cancel::{Deadline, LOOK_AGAIN};
use crate::client::harness::Stop;
use crate::client::pattern::Alphabet;
use crate::client::process::ServerProcess;
use crate::client::{Cancel, pattern, socket};
use crate::sys::socket::is_not_now;
use crate::units::{size, time};

/// Queues that have not changed for this long, and in this many looks, are full: nothing reads any more. On a
/// machine that is busy a look takes as long as the server waits for a CPU, too.
const QUIET: Duration = Duration::from_millis(300);
const QUIET_LOOKS: u32 = 100;

/// A server that takes more than this without an answer being read has no back-pressure.
const MOST: u64 = 128 << 20;

/// What a client does to a server is done by then.
const A_MOMENT: Duration = Duration::from_millis(200);

/// What a run writes and what it asks, in whatever scenario.
pub(super) struct Book<'a> {
    pub(super) kernel: Kernel,
    pub(super) cancel: &'a Cancel,
    pub(super) timeout: Duration,
    /// Whether segments are to be seen.
    pub(super) segments: bool,
    /// Whether the scenario has sent anything to the server that runs.
    pub(super) touched: Cell<bool>,
    pub(super) steps: RefCell<Vec<Step>>,
    pub(super) observe: RefCell<&'a mut dyn FnMut(Progress<'_>)>,
}

/// A server and its clients. The clients leave before the server is ended.
pub(super) struct Stage<'a> {
    book: &'a Book<'a>,
    pub(super) address: SocketAddr,
    /// Whether the server's ends can be seen.
    pub(super) seen: bool,
    /// Whether the server's end is our own.
    own_listener: bool,
    /// Whether there are connections to see: datagrams have none.
    has_connections: bool,
    /// Whether the server answers in upper case.
    pub(super) upper: bool,
    /// Whether the server serves one client, and no other.
    pub(super) single: bool,
    clients: Vec<Client>,
    /// `None` where segments are not seen.
    wire: Option<Wire>,
    process: Option<ServerProcess>,
}

struct Client {
    /// `None` when it was closed.
    socket: Option<TcpStream>,
    local: SocketAddr,
    sent: u64,
    received: u64,
}

/// A step before it is taken: what was called and is to be seen then.
pub(super) struct Lesson<'a> {
    pub(super) calls: &'a [&'a str],
    pub(super) segments: &'a [Segment],
    pub(super) facts: &'a [Fact],
    pub(super) why: &'a str,
    pub(super) source: &'static str,
}

/// A segment of the client with this number.
pub(super) fn to_server(client: usize, what: &'static str) -> Segment {
    Segment { client, from: Side::Client, what: what.into(), at: None, header: None, icmp: None }
}

/// A segment to the client with this number.
pub(super) fn to_client(client: usize, what: &'static str) -> Segment {
    Segment { from: Side::Server, ..to_server(client, what) }
}

impl<'a> Stage<'a> {
    pub(super) fn new(
        book: &'a Book<'a>,
        address: SocketAddr,
        seen: bool,
        process: Option<ServerProcess>,
    ) -> Self {
        // Whether segments can be seen was asked before; otherwise they are told from the states.
        let wire = book.segments.then(|| Wire::open(address).ok()).flatten();
        Self {
            book,
            address,
            seen,
            own_listener: false,
            has_connections: true,
            upper: false,
            single: false,
            clients: vec![],
            wire,
            process,
        }
    }

    /// A stage whose server is a listener of this process, in slow motion.
    pub(super) fn own(&self) -> Result<(Self, TcpListener), Stop> {
        let listener = listen(self.loopback(), true).doing("a listener of our own is bound")?;
        let address = listener.local_addr().doing("a listener has an address")?;
        let mut own = Self::new(self.book, address, true, None);
        own.own_listener = true;
        Ok((own, listener))
    }

    /// A stage whose server is a UDP socket of this process.
    pub(super) fn own_udp(&self) -> Result<(Self, UdpSocket), Stop> {
        let server = socket::bind_udp(self.loopback()).doing("a UDP socket is bound")?;
        let address = server.local_addr().doing("a socket has an address")?;
        let mut own = Self::new(self.book, address, false, None);
        own.has_connections = false;
        Ok((own, server))
    }

    /// An address on loopback, of the same family and with a port that is free.
    fn loopback(&self) -> SocketAddr {
        match self.address.ip().to_canonical() {
            IpAddr::V4(_) => (Ipv4Addr::LOCALHOST, 0).into(),
            IpAddr::V6(_) => (Ipv6Addr::LOCALHOST, 0).into(),
        }
    }

    /// Whether the server was there before the scenario, and is to be there after it.
    fn runs_on(&self) -> bool {
        self.process.is_none() && !self.own_listener
    }

    /// How long a state may take to come.
    pub(super) fn patience(&self) -> Duration {
        self.book.timeout
    }

    /// A deadline from now on.
    pub(super) fn within(&self, patience: Duration) -> Deadline<'a> {
        self.book.cancel.within(patience)
    }

    // ---- calls

    /// connect(2), and waits until it has returned; the number of the client.
    pub(super) fn connect(&mut self) -> Result<usize, Stop> {
        self.connect_with(None)
    }

    /// The same, with a receive buffer so small that little fills it.
    pub(super) fn connect_narrow(&mut self) -> Result<usize, Stop> {
        self.connect_with(Some(8 << 10))
    }

    fn connect_with(&mut self, receive_buffer: Option<usize>) -> Result<usize, Stop> {
        if self.single && !self.clients.is_empty() {
            return Err(Stop::skipped("this server serves a single client"));
        }
        let stream = socket::tcp(self.address, receive_buffer, self.within(self.patience()));
        let stream = stream.doing("the server accepts a connection");
        self.enter(stream.map_err(|stop| self.blamed(stop))?)
    }

    /// Says of a failure that the server that was started has ended, if so.
    fn blamed(&self, stop: Stop) -> Stop {
        match stop {
            Stop::Failed { expected, seen }
                if self.process.as_ref().is_some_and(|one| one.wait(A_MOMENT).is_some()) =>
            {
                Stop::Failed { expected, seen: format!("{seen}; {ENDED}") }
            }
            stop => stop,
        }
    }

    /// Begins a connection, and does not wait for it.
    pub(super) fn begin_to_connect(&mut self) -> Result<usize, Stop> {
        let stream = socket::begin_tcp(self.address, None);
        self.enter(stream.doing("a client may begin to connect")?)
    }

    /// A port for a client to connect from more than once: as long as this socket has it, no other gets it.
    pub(super) fn reserve_port(&self) -> Result<Socket, Stop> {
        bind(SocketAddr::new(self.address.ip(), 0), true).doing("a socket gets a port")
    }

    /// The only client, from a port that was reserved.
    pub(super) fn connect_from(&mut self, port: &Socket) -> Result<(), Stop> {
        let local = port.local_addr().doing("a socket has an address")?;
        let local = local.as_socket().expect("it was bound to one of IP");
        let stream = socket::tcp_from(local, self.address, self.within(self.patience()));
        self.clients.clear();
        self.enter(stream.doing("the server accepts a connection from this port")?).map(drop)
    }

    fn enter(&mut self, stream: TcpStream) -> Result<usize, Stop> {
        if self.runs_on() {
            self.book.touched.set(true);
        }
        let local = stream.local_addr().doing("a client has an address")?;
        self.clients.push(Client { socket: Some(stream), local, sent: 0, received: 0 });
        Ok(self.clients.len())
    }

    /// A client that sends datagrams.
    pub(super) fn enter_udp(&mut self, client: &UdpSocket) -> Result<(), Stop> {
        let local = client.local_addr().doing("a client has an address")?;
        self.clients.push(Client { socket: None, local, sent: 0, received: 0 });
        Ok(())
    }

    /// The socket of a client.
    pub(super) fn socket(&self, client: usize) -> &TcpStream {
        self.clients[client - 1].socket.as_ref().expect("a scenario does not use what it closed")
    }

    /// write(2), of what fits at once.
    pub(super) fn write(&self, client: usize, bytes: &[u8]) -> Result<(), Stop> {
        let written = self.socket(client).write(bytes).doing("a client may write")?;
        match written == bytes.len() {
            true => Ok(()),
            false => Err(Stop::failed(
                format!("a client may write {} bytes", bytes.len()),
                format!("{written} were taken"),
            )),
        }
    }

    /// A single read(2) of up to `most` bytes, when there is something to read.
    pub(super) fn read(&self, client: usize, most: usize) -> Result<io::Result<Vec<u8>>, Stop> {
        let Book { cancel, timeout, .. } = *self.book;
        let mut bytes = vec![0; most];
        match cancel.within(timeout).reader(self.socket(client)).read(&mut bytes) {
            _ if cancel.is_cancelled() => Err(Stop::stopped()),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(Stop::failed(
                format!("client {client} gets something to read"),
                format!("nothing came in {}", time(timeout)),
            )),
            result => Ok(result.map(|length| {
                bytes.truncate(length);
                bytes
            })),
        }
    }

    /// Reads what has to come.
    pub(super) fn expect(&self, client: usize, expected: &[u8]) -> Result<(), Stop> {
        let expected = &self.answer(expected)[..];
        let mut bytes = Vec::new();
        while bytes.len() < expected.len() {
            let more =
                self.read(client, expected.len() - bytes.len())?.doing("a client may read")?;
            if more.is_empty() {
                break;
            }
            bytes.extend(more);
        }
        if bytes == expected {
            return Ok(());
        }
        let shown = |bytes: &[u8]| format!("'{}'", bytes.escape_ascii());
        Err(Stop::failed(format!("the answer is {}", shown(expected)), shown(&bytes)))
    }

    /// What the server answers to this.
    pub(super) fn answer(&self, bytes: &[u8]) -> Vec<u8> {
        if self.upper { bytes.to_ascii_uppercase() } else { bytes.to_vec() }
    }

    /// shutdown(2) of our side.
    pub(super) fn shut_down(&self, client: usize) -> Result<(), Stop> {
        self.socket(client).shutdown(Shutdown::Write).doing("a client may end its side")
    }

    /// Lets close(2) send an RST and no FIN.
    pub(super) fn set_linger_zero(&self, client: usize) -> Result<(), Stop> {
        SockRef::from(self.socket(client))
            .set_linger(Some(Duration::ZERO))
            .doing("SO_LINGER can be set")
    }

    /// close(2).
    pub(super) fn close(&mut self, client: usize) {
        self.clients[client - 1].socket = None;
    }

    // ---- much at once

    /// Writes the pattern up to `most` bytes, as much as fits at once; how much that was.
    fn write_pattern(&mut self, number: usize, most: usize) -> Result<usize, Stop> {
        let client = &mut self.clients[number - 1];
        let mut socket = client.socket.as_ref().expect("it was not closed");
        match socket.write(Alphabet::Letters.slice(0, client.sent, most)) {
            Ok(length) => {
                client.sent += length as u64;
                Ok(length)
            }
            Err(error) if is_not_now(&error) => Ok(0),
            Err(error) => Err(error).doing("the connection stays while the client writes"),
        }
    }

    /// Writes until nothing moves any more, though nothing is read. With `arrived`, all that was written is in
    /// the server's receive queue in the end, and the server could be sent more.
    pub(super) fn fill(&mut self, client: usize, arrived: bool) -> Result<(), Stop> {
        /// More than the narrow client has taken since the server looked last, and less than what
        /// the receive buffer of any server has room for.
        const ENOUGH: u32 = 24 << 10;
        let chunk = if arrived { 8 << 10 } else { 64 << 10 };
        let (mut before, mut since, mut looks) = (None, Instant::now(), 0);
        let deadline = since + self.book.timeout;
        loop {
            let view = self.look()?;
            let Connection { client: near, server: far, .. } = &view.connections[client - 1];
            let unread = far.as_ref().map(|far| far.receive_queue);
            // A server that is slow, and not kept from writing, has an empty queue for a while.
            let is_full =
                far.as_ref().is_none_or(|far| far.receive_queue > 0 && far.send_queue > 0);
            let enough = arrived && (near.send_queue > 0 || unread >= Some(ENOUGH));
            if Instant::now() >= deadline {
                let timeout = time(self.book.timeout);
                return Err(Stop::skipped(format!(
                    "the server is slow: its queues are not full after {timeout}"
                )));
            }
            if !enough && self.write_pattern(client, chunk)? > 0 {
                (before, since, looks) = (None, Instant::now(), 0);
                if self.clients[client - 1].sent > MOST {
                    return Err(Stop::skipped(format!(
                        "the server takes {} though none of its answer is read: it has no back-pressure",
                        size(MOST)
                    )));
                }
                continue;
            }
            looks += 1;
            if before.as_ref() != Some(&view.connections) {
                (before, since, looks) = (Some(view.connections), Instant::now(), 0);
            } else if since.elapsed() >= QUIET && looks >= QUIET_LOOKS && is_full {
                return Ok(());
            }
            self.book.pause(deadline + QUIET, Stop::stopped)?;
        }
    }

    /// That many bytes of the pattern.
    pub(super) fn write_some(&mut self, client: usize, bytes: usize) -> Result<(), Stop> {
        let deadline = Instant::now() + self.book.timeout;
        let mut left = bytes;
        while left > 0 {
            match self.write_pattern(client, left)? {
                0 => self.book.pause(deadline, || {
                    Stop::failed(
                        format!("a client may write {bytes} bytes"),
                        format!("{left} are left"),
                    )
                })?,
                written => left -= written,
            }
        }
        Ok(())
    }

    /// Reads some of the pattern and compares; `None` at the server's FIN.
    fn read_pattern(&mut self, number: usize, most: usize) -> Result<Option<usize>, Stop> {
        let Client { sent, received, .. } = self.clients[number - 1];
        let bytes = match self.read(number, most) {
            // Only a FIN was missing.
            Err(Stop::Failed { seen, .. }) if received == sent => {
                Err(Stop::failed("the server closes after the client's FIN", seen))
            }
            read => read?.doing("every byte comes back"),
        }?;
        let client = &mut self.clients[number - 1];
        let alphabet = if self.upper { Alphabet::Capitals } else { Alphabet::Letters };
        if bytes != alphabet.slice(0, client.received, bytes.len()) {
            return Err(Stop::failed("the same bytes come back", "they are others"));
        }
        client.received += bytes.len() as u64;
        Ok(Some(bytes.len()).filter(|length| *length > 0))
    }

    /// Reads so little at a time that the server reads our FIN, and closes, while there is still some
    /// of the answer that we have not read.
    pub(super) fn read_until_closed_by_server(&mut self, client: usize) -> Result<(), Stop> {
        /// The server may take so long to notice that it can go on.
        const TURN: Duration = Duration::from_millis(10);
        /// A server is told of room in its send queue only when there is plenty.
        const PLENTY: u32 = 1 << 20;
        let deadline = Instant::now() + self.book.timeout;
        let mut since = Instant::now();
        while self.seen {
            let view = self.look()?;
            let end = view.connections[client - 1].server.as_ref().expect("it can be seen");
            if end.state == State::LastAck {
                break;
            }
            // Our FIN counts as one.
            if end.receive_queue <= 1 && since.elapsed() < TURN {
                self.book.pause(deadline, || {
                    Stop::failed("the server answers the FIN by its own", end.to_string())
                })?;
                continue;
            }
            since = Instant::now();
            let most = if end.send_queue > PLENTY { 64 << 10 } else { 4 << 10 };
            if self.read_pattern(client, most)?.is_none() {
                return Err(Stop::skipped(
                    "the server is slow: it closes only after the client has read its whole answer",
                ));
            }
        }
        Ok(())
    }

    /// Reads the rest, which has to be all that was written, up to the FIN if one is to come.
    pub(super) fn read_all(&mut self, client: usize, fin: bool) -> Result<(), Stop> {
        let deadline = Instant::now() + self.book.timeout;
        while fin || self.clients[client - 1].received < self.clients[client - 1].sent {
            if Instant::now() >= deadline {
                let Client { sent, received, .. } = self.clients[client - 1];
                let timeout = time(self.book.timeout);
                return Err(Stop::skipped(format!(
                    "the server is slow: {received} of {sent} bytes come back in {timeout}"
                )));
            }
            if self.read_pattern(client, pattern::WINDOW / 4)?.is_none() {
                break;
            }
        }
        let Client { sent, received, .. } = self.clients[client - 1];
        match sent == received {
            true => Ok(()),
            false => Err(Stop::failed(
                format!("all {sent} bytes come back"),
                format!("{received} came before the server's FIN"),
            )),
        }
    }

    /// Whether nothing comes for a while, though the server has read what it was sent.
    pub(super) fn is_silent(&self, client: usize) -> Result<bool, Stop> {
        let comes = [fact::client(client, [What::ReceivedSome])];
        let (_, missing) = self.wait(&comes, QUIET)?;
        Ok(missing.is_some())
    }

    // ---- what there is to see

    /// What the kernel has.
    pub(super) fn look(&self) -> Result<View, Stop> {
        if let Some(wire) = &self.wire {
            wire.collect().doing("segments can be seen")?;
        }
        let Book { kernel, .. } = self.book;
        let mut connections = Vec::new();
        for Client { local, .. } in self.clients.iter().filter(|_| self.has_connections) {
            let client = kernel.end(*local, self.address).map_err(Stop::kernel)?;
            let server = self.seen.then(|| kernel.end(self.address, *local));
            let server = server.transpose().map_err(Stop::kernel)?;
            connections.push(Connection { address: *local, client, server });
        }
        let listener = self.seen.then(|| kernel.listener(self.address)).transpose();
        Ok(View { connections, listener: listener.map_err(Stop::kernel)?.flatten() })
    }

    /// Waits until all facts hold, at most for `patience`; what there is then, and what the first fact that does
    /// not hold says of it.
    pub(super) fn wait(
        &self,
        facts: &[Fact],
        patience: Duration,
    ) -> Result<(View, Option<[String; 2]>), Stop> {
        let deadline = Instant::now() + patience;
        let runs = self.runs_on();
        let mut listened = false;
        loop {
            let view = self.look()?;
            let differs = facts.iter().find_map(|fact| fact.differs(&view));
            // Of a server that has ended nothing more is to come.
            let has_ended = runs && listened && view.listener.is_none();
            listened |= view.listener.is_some();
            if differs.is_none() || has_ended || Instant::now() >= deadline {
                return Ok((view, differs));
            }
            self.book.pause(deadline + QUIET, Stop::stopped)?;
        }
    }

    /// Lets time pass, in which only the kernel does something.
    pub(super) fn let_pass(&self, time: Duration) -> Result<(), Stop> {
        self.book.cancel.sleep(time);
        if self.book.cancel.is_cancelled() { Err(Stop::stopped()) } else { Ok(()) }
    }

    /// Takes a step: waits for its facts, and shows what there is.
    pub(super) fn show(&self, lesson: &Lesson<'_>) -> Result<(), Stop> {
        if self.book.cancel.is_cancelled() {
            return Err(Stop::stopped());
        }
        let (view, missing) = self.wait(lesson.facts, self.book.timeout)?;
        if let Some([fact, seen]) = missing {
            let last = lesson.calls.last().unwrap_or(&"the start");
            return Err(self.blamed(Stop::failed(format!("after {last}: {fact}"), seen)));
        }
        let (segments, segments_left_out) = self.segments(lesson)?;
        let step = Step {
            calls: lesson.calls.iter().map(|call| (*call).to_owned()).collect(),
            segments,
            segments_left_out,
            address: self.address,
            own_listener: self.own_listener,
            connections: view.connections,
            listener: view.listener,
            why: lesson.why.to_owned(),
            source: lesson.source,
        };
        (self.book.observe.borrow_mut())(Progress::Step(&step));
        self.book.steps.borrow_mut().push(step);
        Ok(())
    }
}

/// The clients leave as clients do: they read what is theirs, and end their side. An RST would be the end of many
/// a server that runs.
impl Drop for Stage<'_> {
    fn drop(&mut self) {
        /// A server that has not closed by then waits for other things.
        const SOON: Duration = Duration::from_millis(200);
        if !self.runs_on() {
            return;
        }
        let deadline = self.within(SOON);
        for mut socket in self.clients.iter().filter_map(|client| client.socket.as_ref()) {
            let _ = socket.shutdown(Shutdown::Write);
            let mut rest = deadline.reader(&mut socket);
            while rest.read(&mut [0; 4 << 10]).is_ok_and(|length| length > 0) {}
        }
    }
}

impl Stage<'_> {
    /// The segments of a step, and how many were left out of them.
    fn segments(&self, lesson: &Lesson<'_>) -> Result<(Vec<Segment>, usize), Stop> {
        /// How many of the first and of the last are kept.
        const MOST: usize = 8;
        let Some(wire) = &self.wire else { return Ok((lesson.segments.to_vec(), 0)) };
        let clients: Vec<_> = self.clients.iter().map(|client| client.local).collect();
        let mut segments = wire.take(&clients).doing("segments can be seen")?;
        let left_out = segments.len().saturating_sub(2 * MOST);
        if left_out > 0 {
            segments.drain(MOST..MOST + left_out);
        }
        Ok((segments, left_out))
    }
}

impl Book<'_> {
    /// Whether a server still listens a moment after a client has left.
    pub(super) fn listens_on(&self, address: SocketAddr) -> io::Result<bool> {
        let look = || match self.kernel.listener(address) {
            Ok(Some(_)) => None,
            other => Some(other),
        };
        self.cancel.within(A_MOMENT).find(look).transpose().map(|ended| ended.is_none())
    }

    /// Waits a moment for what nothing announces, or says why not when the time is over.
    fn pause(&self, deadline: Instant, late: impl FnOnce() -> Stop) -> Result<(), Stop> {
        if self.cancel.is_cancelled() {
            return Err(Stop::stopped());
        }
        if Instant::now() >= deadline {
            return Err(late());
        }
        self.cancel.sleep(LOOK_AGAIN);
        Ok(())
    }
}

/// A listener of our own.
pub(super) fn listen(address: SocketAddr, reuse: bool) -> io::Result<TcpListener> {
    let socket = bind(address, reuse)?;
    socket.listen(8)?;
    Ok(socket.into())
}

fn bind(address: SocketAddr, reuse: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(reuse)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// accept(2) of a client that has connected.
pub(super) fn accept(listener: &TcpListener) -> Result<TcpStream, Stop> {
    listener.accept().map(|(stream, _)| stream).doing("a connection can be accepted")
}

/// Says what should have been possible when the system refuses a call.
pub(super) trait Doing<T> {
    fn doing(self, expected: &str) -> Result<T, Stop>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, expected: &str) -> Result<T, Stop> {
        self.map_err(|error| match socket::lacks_port(&error) {
            true => Stop::skipped(error.to_string()),
            false => Stop::failed(expected, error.to_string()),
        })
    }
}
