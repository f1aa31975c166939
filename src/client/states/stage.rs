//! Where a scenario is played: a server, clients that are moved call by call, and the kernel, which is
//! asked after each.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};

use super::fact::{Fact, View};
use super::kernel::Kernel;
use super::report::{Connection, Segment, Side, State, Step};
use super::{Progress, Stop};
use crate::client::process::ServerProcess;
use crate::client::{Cancel, pattern};
use crate::sys::socket::is_not_now;
use crate::units::{size, time};

/// How often the kernel is asked for what has not come yet. Nothing tells when it has.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Queues that have not changed for so long, and in so many looks, are full: nobody reads any more. On a
/// machine that is busy a look takes as long as the server waits for a CPU, too.
const QUIET: Duration = Duration::from_millis(300);
const QUIET_LOOKS: u32 = 100;

/// Who takes more than this without an answer being read has no back-pressure.
const MOST: u64 = 128 << 20;

/// What a run writes and whom it asks, in whatever scenario.
pub(super) struct Book<'a> {
    pub(super) kernel: Kernel,
    pub(super) cancel: &'a Cancel,
    pub(super) timeout: Duration,
    pub(super) steps: RefCell<Vec<Step>>,
    pub(super) observe: RefCell<&'a mut dyn FnMut(Progress<'_>)>,
}

/// A server and its clients. The clients leave before the server is ended.
pub(super) struct Stage<'a> {
    book: &'a Book<'a>,
    pub(super) address: SocketAddr,
    /// Whether the server's ends can be seen.
    seen: bool,
    /// Whether the server's end is our own.
    own_listener: bool,
    clients: Vec<Client>,
    _process: Option<ServerProcess>,
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
pub(super) const fn to_server(client: usize, what: &'static str) -> Segment {
    Segment { client, from: Side::Client, what }
}

/// A segment to the client with this number.
pub(super) const fn to_client(client: usize, what: &'static str) -> Segment {
    Segment { client, from: Side::Server, what }
}

impl<'a> Stage<'a> {
    pub(super) fn new(
        book: &'a Book<'a>,
        address: SocketAddr,
        seen: bool,
        process: Option<ServerProcess>,
    ) -> Self {
        let clients = Vec::new();
        Self { book, address, seen, own_listener: false, clients, _process: process }
    }

    /// A stage whose server is a listener of this process, in slow motion.
    pub(super) fn own(&self, backlog: i32) -> Result<(Self, Listening), Stop> {
        let ip = if self.address.ip().to_canonical().is_ipv4() {
            Ipv4Addr::LOCALHOST.into()
        } else {
            Ipv6Addr::LOCALHOST.into()
        };
        let listener = Listening::bind(SocketAddr::new(ip, 0), true, backlog)
            .doing("a listener of our own is bound")?;
        let address = listener.0.local_addr().doing("a listener has an address")?;
        let mut own = Self::new(self.book, address, true, None);
        own.own_listener = true;
        Ok((own, listener))
    }

    /// Whether the server's ends can be seen.
    pub(super) fn sees_server(&self) -> bool {
        self.seen
    }

    /// How long a state may take to come.
    pub(super) fn patience(&self) -> Duration {
        self.book.timeout
    }

    // ---- calls

    /// connect(2), and waits until it has returned; the number of the client.
    pub(super) fn connect(&mut self) -> Result<usize, Stop> {
        let stream = TcpStream::connect_timeout(&self.address, self.book.timeout)
            .doing("the server accepts a connection")?;
        self.enter(stream)
    }

    /// The same, with a receive buffer so small that little fills it.
    pub(super) fn connect_narrow(&mut self) -> Result<usize, Stop> {
        let socket = self.socket_for_client()?;
        socket.set_recv_buffer_size(8 << 10).doing("a receive buffer can be set")?;
        socket
            .connect_timeout(&self.address.into(), self.book.timeout)
            .doing("the server accepts a connection")?;
        self.enter(socket.into())
    }

    /// Begins a connection, and does not wait for it.
    pub(super) fn begin_to_connect(&mut self) -> Result<usize, Stop> {
        let socket = self.socket_for_client()?;
        socket.set_nonblocking(true).doing("a socket can be told not to block")?;
        match socket.connect(&self.address.into()) {
            Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EINPROGRESS as i32) => {}
            result => result.doing("a client may begin to connect")?,
        }
        self.enter(socket.into())
    }

    fn socket_for_client(&self) -> Result<Socket, Stop> {
        Socket::new(Domain::for_address(self.address), Type::STREAM, None)
            .doing("this machine has a socket for a client")
    }

    fn enter(&mut self, stream: TcpStream) -> Result<usize, Stop> {
        stream.set_nonblocking(true).doing("a socket can be told not to block")?;
        stream.set_nodelay(true).doing("a socket sends at once")?;
        let local = stream.local_addr().doing("a client has an address")?;
        self.clients.push(Client { socket: Some(stream), local, sent: 0, received: 0 });
        Ok(self.clients.len())
    }

    fn socket(&self, client: usize) -> &TcpStream {
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
        let mut bytes = vec![0; most];
        let deadline = Instant::now() + self.book.timeout;
        loop {
            match self.socket(client).read(&mut bytes) {
                Err(error) if is_not_now(&error) => self.book.pause(deadline, || {
                    let expected = format!("client {client} gets something to read");
                    Stop::failed(expected, format!("nothing came in {}", time(self.book.timeout)))
                })?,
                result => {
                    return Ok(result.map(|length| {
                        bytes.truncate(length);
                        bytes
                    }));
                }
            }
        }
    }

    /// Reads what has to come.
    pub(super) fn expect(&self, client: usize, expected: &[u8]) -> Result<(), Stop> {
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
        match socket.write(pattern::slice(0, client.sent, most)) {
            Ok(length) => {
                client.sent += length as u64;
                Ok(length)
            }
            Err(error) if is_not_now(&error) => Ok(0),
            Err(error) => Err(error).doing("a client may write"),
        }
    }

    /// Writes until nothing moves any more, though nobody reads. With `arrived`, all that was written is in
    /// the server's receive queue in the end, and the server could be sent more.
    pub(super) fn fill(&mut self, client: usize, arrived: bool) -> Result<(), Stop> {
        /// More than the narrow client has taken since the server looked last, and less than what
        /// the receive buffer of any server has room for.
        const ENOUGH: u32 = 24 << 10;
        let chunk = if arrived { 8 << 10 } else { 64 << 10 };
        let (mut before, mut since, mut looks) = (None, Instant::now(), 0);
        loop {
            let view = self.look()?;
            let Connection { client: near, server: far, .. } = &view.connections[client - 1];
            let unread = far.as_ref().map(|far| far.receive_queue);
            let enough = arrived && (near.send_queue > 0 || unread >= Some(ENOUGH));
            if !enough && self.write_pattern(client, chunk)? > 0 {
                (before, since, looks) = (None, Instant::now(), 0);
                if self.clients[client - 1].sent > MOST {
                    return Err(Stop::not_shown(format!(
                        "the server takes {} though none of its answer is read: it has no back-pressure",
                        size(MOST)
                    )));
                }
                continue;
            }
            looks += 1;
            if before.as_ref() != Some(&view.connections) {
                (before, since, looks) = (Some(view.connections), Instant::now(), 0);
            } else if since.elapsed() >= QUIET && looks >= QUIET_LOOKS && unread != Some(0) {
                return Ok(());
            }
            self.book.pause(since + QUIET + self.book.timeout, || {
                Stop::failed("the server stops to read", "its receive queue stays empty")
            })?;
        }
    }

    /// So many bytes of the pattern.
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
        let bytes = self.read(number, most)?.doing("every byte comes back")?;
        let client = &mut self.clients[number - 1];
        if bytes != pattern::slice(0, client.received, bytes.len()) {
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
                break;
            }
        }
        Ok(())
    }

    /// Reads the rest, which has to be all that was written, up to the FIN if one is to come.
    pub(super) fn read_all(&mut self, client: usize, fin: bool) -> Result<(), Stop> {
        while fin || self.clients[client - 1].received < self.clients[client - 1].sent {
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
        let comes = [super::fact::client(client).received_some()];
        let (_, missing) = self.wait(&comes, QUIET)?;
        Ok(missing.is_some())
    }

    // ---- what there is to see

    /// What the kernel has.
    pub(super) fn look(&self) -> Result<View, Stop> {
        let Book { kernel, .. } = self.book;
        let mut connections = Vec::new();
        for Client { local, .. } in &self.clients {
            let client = kernel.end(*local, self.address).map_err(Stop::kernel)?;
            let server = match self.seen {
                true => Some(kernel.end(self.address, *local).map_err(Stop::kernel)?),
                false => None,
            };
            connections.push(Connection { address: *local, client, server });
        }
        let listener = match self.seen {
            true => kernel.listener(self.address).map_err(Stop::kernel)?,
            false => None,
        };
        Ok(View { connections, listener })
    }

    /// Waits until all facts hold, at most for `patience`; what there is then, and the first fact that does
    /// not hold.
    pub(super) fn wait(
        &self,
        facts: &[Fact],
        patience: Duration,
    ) -> Result<(View, Option<Fact>), Stop> {
        let deadline = Instant::now() + patience;
        loop {
            let view = self.look()?;
            let Some(fact) = facts.iter().find(|fact| !fact.holds(&view)) else {
                return Ok((view, None));
            };
            if Instant::now() >= deadline {
                return Ok((view, Some(*fact)));
            }
            self.book.pause(deadline + QUIET, Stop::stopped)?;
        }
    }

    /// Takes a step: waits for its facts, and shows what there is.
    pub(super) fn show(&self, lesson: &Lesson<'_>) -> Result<(), Stop> {
        let (view, missing) = self.wait(lesson.facts, self.book.timeout)?;
        let step = Step {
            calls: lesson.calls.iter().map(|call| (*call).to_owned()).collect(),
            segments: lesson.segments.to_vec(),
            address: self.address,
            own_listener: self.own_listener,
            connections: view.connections,
            listener: view.listener,
            why: lesson.why.to_owned(),
            source: lesson.source,
        };
        if let Some(fact) = missing {
            let view = View { connections: step.connections, listener: step.listener };
            return Err(Stop::failed(
                format!("after {}: {fact}", lesson.calls.last().unwrap_or(&"the start")),
                fact.seen(&view),
            ));
        }
        (self.book.observe.borrow_mut())(Progress::Step(&step));
        self.book.steps.borrow_mut().push(step);
        Ok(())
    }
}

impl Book<'_> {
    /// Waits a moment for what nobody announces, or says why not when the time is over.
    fn pause(&self, deadline: Instant, late: impl FnOnce() -> Stop) -> Result<(), Stop> {
        if self.cancel.is_cancelled() {
            return Err(Stop::stopped());
        }
        if Instant::now() >= deadline {
            return Err(late());
        }
        thread::sleep(LOOK_AGAIN);
        Ok(())
    }
}

/// A listener of our own.
pub(super) struct Listening(TcpListener);

impl Listening {
    pub(super) fn bind(address: SocketAddr, reuse: bool, backlog: i32) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(reuse)?;
        socket.bind(&address.into())?;
        socket.listen(backlog)?;
        Ok(Self(socket.into()))
    }

    /// accept(2) of a client that has connected.
    pub(super) fn accept(&self) -> Result<TcpStream, Stop> {
        self.0.accept().map(|(stream, _)| stream).doing("a connection can be accepted")
    }
}

/// Says what should have been possible when the system refuses a call.
pub(super) trait Doing<T> {
    fn doing(self, expected: &str) -> Result<T, Stop>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, expected: &str) -> Result<T, Stop> {
        self.map_err(|error| Stop::failed(expected, error.to_string()))
    }
}
