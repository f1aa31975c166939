//! The cases that look at the server's process.

use std::io::Write;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Socket, Type};

use super::Stop;
use super::context::{Context, payload};
use super::seen::Expecting;
use super::stream::{TcpClient, left};
use super::tcp::{self, OVERFLOWING, STALLED};
use crate::client::process::Usage;
use crate::units::size;

/// `process-memory`
pub(super) fn memory(cx: &Context<'_>) -> Result<(), Stop> {
    const SENT: usize = 64 << 20;
    const LIMIT: u64 = 4 << 20;
    let mut client = cx.connect_narrow()?;
    // What the first megabyte makes it allocate is not counted.
    client.exchange(&payload(30, 1 << 20)).expecting("1 MiB comes back")?;
    let before = cx.usage()?.resident;
    let sent = client.stuff(&payload(31, SENT), STALLED).expecting("a client may send")?;
    let grown = cx.usage()?.resident.saturating_sub(before);
    client.reset();
    if grown > LIMIT {
        return Err(Stop::failed(
            "a client that sends 64 MiB and never reads costs at most 4 MiB of memory",
            format!("{} were taken, and memory grew by {}", size(sent as u64), size(grown)),
        ));
    }
    Ok(())
}

/// `process-idle-cpu`
pub(super) fn idle_cpu(cx: &Context<'_>) -> Result<(), Stop> {
    const CONNECTIONS: u32 = 50;
    let mut clients = Vec::new();
    if cx.probe.tcp {
        for number in 0..CONNECTIONS {
            let mut client = cx.connect()?;
            client.exchange(&payload(number, 100)).expecting("a client is answered")?;
            clients.push(client);
        }
    } else {
        cx.is_served()?;
    }
    stays_idle(cx, "idle connections")
}

/// `process-blocked-cpu`
pub(super) fn blocked_cpu(cx: &Context<'_>) -> Result<(), Stop> {
    let _never_reads = tcp::blocked(cx)?;
    let half_closed = tcp::blocked(cx)?;
    half_closed.finish().expecting("a client may half-close")?;
    stays_idle(cx, "a client that never reads and one that has half-closed and not read")
}

/// Whether the server uses no CPU worth the name, in two of a few looks: what it still had to do
/// when the first began is done when the next one does, and in a single look it may just not have
/// got the CPU.
fn stays_idle(cx: &Context<'_>, with: &str) -> Result<(), Stop> {
    const WINDOW: Duration = Duration::from_millis(400);
    const SHARE: f64 = 0.01;
    let (mut least, mut idle) = (f64::INFINITY, 0);
    for _ in 0..5 {
        let (before, began) = (cx.usage()?.cpu, Instant::now());
        thread::sleep(WINDOW);
        let used = cx.usage()?.cpu.saturating_sub(before);
        let share = used.as_secs_f64() / began.elapsed().as_secs_f64();
        idle += u32::from(share <= SHARE);
        if idle == 2 {
            return Ok(());
        }
        if share > SHARE {
            least = least.min(share);
        }
    }
    Err(Stop::failed(
        format!("at most 1 % of a CPU with {with} and nothing to do"),
        format!("{:.1} % of a CPU", 100.0 * least),
    ))
}

/// `process-threads`
pub(super) fn threads(cx: &Context<'_>) -> Result<(), Stop> {
    let count = |usage: Usage| usage.threads;
    are_given_back(cx, "threads, of all its processes,", count)
}

/// `process-descriptors`
pub(super) fn descriptors(cx: &Context<'_>) -> Result<(), Stop> {
    let count = |usage: Usage| usage.descriptors;
    are_given_back(cx, "open descriptors", count)
}

/// `process-reset`
pub(super) fn reset(cx: &Context<'_>) -> Result<(), Stop> {
    const CLIENTS: usize = 20;
    let before = cx.usage()?.descriptors;
    let bytes = payload(32, OVERFLOWING);
    let clients: Result<Vec<TcpClient>, Stop> = thread::scope(|scope| {
        let clients = [(); CLIENTS].map(|()| scope.spawn(|| tcp::blocked_by(cx, &bytes)));
        clients.into_iter().map(|client| client.join().expect("it does not panic")).collect()
    });
    let clients = clients?;
    for client in &clients {
        client.finish().expecting("a client may half-close")?;
    }
    clients.into_iter().for_each(TcpClient::reset);
    let count = |usage: Usage| usage.descriptors;
    go_back(
        cx,
        before,
        &format!("{CLIENTS} clients that had half-closed"),
        "open descriptors",
        count,
    )?;
    stays_idle(cx, "clients gone that had half-closed and reset")
}

/// Whether something that a server has more of with clients goes back when they have left.
fn are_given_back(
    cx: &Context<'_>,
    of_what: &str,
    count: impl Fn(Usage) -> u64,
) -> Result<(), Stop> {
    const CLIENTS: u32 = 100;
    let before = count(cx.usage()?);
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let mut client = cx.connect()?;
        client.exchange(&payload(number, 100)).expecting("a client is answered")?;
        clients.push(client);
    }
    drop(clients);
    go_back(cx, before, &format!("{CLIENTS} clients"), of_what, count)
}

/// Waits until there is hardly more of it than before.
fn go_back(
    cx: &Context<'_>,
    before: u64,
    clients: &str,
    of_what: &str,
    count: impl Fn(Usage) -> u64,
) -> Result<(), Stop> {
    const SPARE: u64 = 8;
    let mut after = count(cx.usage()?);
    while after > before + SPARE && Instant::now() < cx.deadline {
        thread::sleep(Duration::from_millis(10));
        after = count(cx.usage()?);
    }
    if after > before + SPARE {
        return Err(Stop::failed(
            format!("when {clients} have left, at most {SPARE} more {of_what} than before"),
            format!("{before} before, {after} after"),
        ));
    }
    Ok(())
}

/// `process-sigterm`
pub(super) fn sigterm(cx: &Context<'_>) -> Result<(), Stop> {
    let (server, probe) = cx.start(None)?;
    cx.of(&server, &probe).is_served()?;
    let expected = "SIGTERM ends it, with exit status 0";
    match server.terminate(left(cx.deadline)) {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(Stop::failed(expected, status.to_string())),
        None => Err(Stop::failed(expected, "it was still there when the time was over")),
    }
}

/// `process-exhaustion`
pub(super) fn exhaustion(cx: &Context<'_>) -> Result<(), Stop> {
    const DESCRIPTORS: u64 = 32;
    const CLIENTS: usize = 80;
    const QUIET: Duration = Duration::from_millis(150);
    let (server, probe) = cx.start(Some(DESCRIPTORS))?;
    let cx = &cx.of(&server, &probe);
    let mut crowd = Crowd::gather(cx, CLIENTS)?;
    let mut first = true;
    while !crowd.waiting.is_empty() {
        // Once it has come to rest at its limit, clients leave as soon as they are served.
        crowd.serve(cx, if first { QUIET } else { Duration::ZERO })?;
        if first && !crowd.waiting.is_empty() {
            stays_idle(cx, "no descriptor left and clients in the backlog")?;
        }
        first = false;
        // Those that are served leave, and nobody new comes.
        crowd.served.clear();
    }
    cx.is_served()
}

/// More clients than a server has descriptors for.
struct Crowd {
    waiting: Vec<Client>,
    served: Vec<TcpStream>,
}

/// One of them: it sends a greeting as soon as it is connected, and waits for that to come back.
struct Client {
    stream: TcpStream,
    greeted: bool,
}

const GREETING: &[u8] = b"GREETING";

impl Crowd {
    fn gather(cx: &Context<'_>, clients: usize) -> Result<Self, Stop> {
        let mut waiting = Vec::new();
        for _ in 0..clients {
            let stream = begin_connecting(cx.address())
                .map_err(|error| Stop::skipped(format!("cannot open a socket: {error}")))?;
            waiting.push(Client { stream, greeted: false });
        }
        Ok(Self { waiting, served: Vec::new() })
    }

    /// Goes on until at least one was served, and then until no other is for the time of `quiet`.
    fn serve(&mut self, cx: &Context<'_>, quiet: Duration) -> Result<(), Stop> {
        let all = self.waiting.len() + self.served.len();
        while !self.waiting.is_empty() {
            let patience = if self.served.is_empty() { left(cx.deadline) } else { quiet };
            if !self.ready(patience.min(left(cx.deadline))) {
                break;
            }
            self.look(all)?;
        }
        if self.served.is_empty() {
            return Err(Stop::failed(
                "with 32 descriptors, clients in the backlog are served when others have left",
                format!("{all} clients were left waiting"),
            ));
        }
        Ok(())
    }

    /// Waits until a client can go on; false when none can within `patience`.
    fn ready(&self, patience: Duration) -> bool {
        let mut fds: Vec<_> = self
            .waiting
            .iter()
            .map(|client| {
                let flags = if client.greeted { PollFlags::POLLIN } else { PollFlags::POLLOUT };
                PollFd::new(client.stream.as_fd(), flags)
            })
            .collect();
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        // A signal in between is a reason to look, too.
        !matches!(poll(&mut fds, timeout), Ok(0))
    }

    fn look(&mut self, all: usize) -> Result<(), Stop> {
        let mut waiting = Vec::new();
        for mut client in self.waiting.drain(..) {
            match client.go_on() {
                Ok(true) => self.served.push(client.stream),
                Ok(false) => waiting.push(client),
                Err(why) => {
                    return Err(Stop::failed(
                        "with 32 descriptors and 80 clients, those that it has no room for wait",
                        format!("one of {all} was turned away unanswered: {why}"),
                    ));
                }
            }
        }
        self.waiting = waiting;
        Ok(())
    }
}

impl Client {
    /// One step; true when the greeting has come back.
    fn go_on(&mut self) -> std::io::Result<bool> {
        use std::io::ErrorKind::{NotConnected, WouldBlock};
        if let Some(error) = self.stream.take_error()? {
            return Err(error);
        }
        if !self.greeted {
            match self.stream.write(GREETING) {
                Ok(_) => self.greeted = true,
                Err(error) if matches!(error.kind(), WouldBlock | NotConnected) => {}
                Err(error) => return Err(error),
            }
            return Ok(false);
        }
        let mut answer = [0; GREETING.len()];
        match self.stream.peek(&mut answer) {
            Ok(0) => Err(std::io::Error::other("closed")),
            Ok(length) => Ok(length == GREETING.len()),
            Err(error) if error.kind() == WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn begin_connecting(address: std::net::SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::EINPROGRESS as i32) => Err(error),
        _ => Ok(socket.into()),
    }
}
