//! A server in this process, and clients that never wait for ever.
#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "each test binary uses a part, as of a library"
)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod signals;
mod wait;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::ops::Deref;
use std::thread;
use std::time::{Duration, Instant};

use evecho::{Config, RunningServer, Server, Service, Snapshot};
use socket2::{Domain, SockRef, Socket, Type};

pub(crate) use signals::{catches, with_default_signals};
pub use wait::{DEADLINE, wait_for, wait_until};

pub const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// The config of a test: a free port of 127.0.0.1, with a change.
pub fn config_with(change: impl FnOnce(&mut Config)) -> Config {
    let mut config = Config::loopback();
    change(&mut config);
    config
}

/// A server that runs on a thread of its own, and clients for it. It ends as [`RunningServer`] does.
#[derive(Debug)]
pub struct TestServer(RunningServer);

impl TestServer {
    /// Runs an echo server.
    pub fn start(config: Config) -> TestServer {
        TestServer::of(bind(config))
    }

    /// Runs a service of the test's.
    pub fn with_service<V>(config: Config, service: V) -> TestServer
    where
        V: Service + Clone + Send + 'static,
    {
        TestServer(bind(config).spawn_with(service).unwrap())
    }

    /// Runs services of the test's, each of them made for its conversation.
    pub fn with_each<V, F>(config: Config, make: F) -> TestServer
    where
        V: Service + 'static,
        F: FnMut() -> V + Clone + Send + 'static,
    {
        TestServer(bind(config).spawn_each(make).unwrap())
    }

    /// Runs a server that is bound.
    pub fn of(server: Server) -> TestServer {
        TestServer(server.spawn().unwrap())
    }

    /// The first address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.local_addrs()[0]
    }

    /// Waits until the counters say what the test waits for.
    pub fn wait_for(&self, what: &str, reached: impl Fn(&Snapshot) -> bool) {
        wait_until(what, || reached(&self.stats()));
    }

    pub fn connect(&self) -> Client {
        Client::connect(self.address())
    }

    pub fn udp(&self) -> UdpSocket {
        udp(self.address())
    }

    /// Tells it to drain, and waits for its end, however long the drain may take; what it counted.
    pub fn stop(self) -> Snapshot {
        self.drain();
        self.ended()
    }

    /// Waits for its end; what it counted.
    pub fn ended(self) -> Snapshot {
        wait_until("the end of the server", || self.is_finished());
        self.0.join().unwrap()
    }
}

impl Deref for TestServer {
    type Target = RunningServer;

    fn deref(&self) -> &RunningServer {
        &self.0
    }
}

fn bind(config: Config) -> Server {
    Server::bind(config).unwrap_or_else(|error| panic!("{error}"))
}

/// A TCP client whose every wait has a deadline.
#[derive(Debug)]
pub struct Client(pub TcpStream);

impl Client {
    pub fn connect(address: SocketAddr) -> Client {
        Client::new(TcpStream::connect_timeout(&address, DEADLINE).unwrap())
    }

    /// Connects from `source`, or with a receive buffer so small that a little fills it.
    pub fn connect_with(
        address: SocketAddr,
        source: Option<IpAddr>,
        receive_buffer: Option<usize>,
    ) -> Client {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
        if let Some(size) = receive_buffer {
            socket.set_recv_buffer_size(size).unwrap();
        }
        if let Some(source) = source {
            socket.bind(&SocketAddr::new(source, 0).into()).unwrap();
        }
        socket.connect_timeout(&address.into(), DEADLINE).unwrap();
        Client::new(socket.into())
    }

    fn new(stream: TcpStream) -> Client {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Client(stream)
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    /// Reads as many bytes as are expected; they have to be these.
    #[track_caller]
    pub fn expect(&mut self, expected: &[u8]) {
        let mut read = vec![0; expected.len()];
        self.0.read_exact(&mut read).unwrap();
        assert_same(&read, expected);
    }

    /// Sends, and has the same bytes come back.
    #[track_caller]
    pub fn exchange(&mut self, bytes: &[u8]) {
        self.send(bytes);
        self.expect(bytes);
    }

    /// Sends our FIN.
    pub fn half_close(&mut self) {
        self.0.shutdown(Shutdown::Write).unwrap();
    }

    /// Reads a line, with its line feed.
    pub fn line(&mut self) -> Vec<u8> {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            self.0.read_exact(&mut byte).unwrap();
            line.extend(byte);
        }
        line
    }

    /// Reads up to the server's FIN.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest).unwrap();
        rest
    }

    /// Waits for the server's FIN, or its RST; nothing else may come.
    #[track_caller]
    pub fn expect_end(&mut self) {
        match self.0.read(&mut [0; 64]) {
            Ok(0) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => panic!("not the end: {other:?}"),
        }
    }

    /// Closes by an RST.
    pub fn reset(self) {
        SockRef::from(&self.0).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Sends until the sockets on both sides are full, since nobody reads; how much went.
    pub fn fill(&mut self) -> usize {
        self.0.set_nonblocking(true).unwrap();
        let bytes = pattern(0, 64 << 10);
        let (mut sent, mut full_since) = (0, None);
        // The server may still make room for a while.
        while full_since.is_none_or(|since: Instant| since.elapsed() < Duration::from_millis(200)) {
            match self.0.write(&bytes[sent % bytes.len()..]) {
                Ok(taken) => (sent, full_since) = (sent + taken, None),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    full_since.get_or_insert_with(Instant::now);
                    thread::sleep(Duration::from_millis(1));
                }
                Err(error) => panic!("{error}"),
            }
        }
        self.0.set_nonblocking(false).unwrap();
        sent
    }
}

/// A UDP socket on 127.0.0.1 that sends to `address`, and receives from it alone.
pub fn udp(address: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((LOCALHOST, 0)).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket.connect(address).unwrap();
    socket
}

/// Has one datagram come back as it went.
#[track_caller]
pub fn exchange_datagram(socket: &UdpSocket, bytes: &[u8]) {
    assert_eq!(socket.send(bytes).unwrap(), bytes.len());
    let mut room = vec![0; 65_536];
    let length = socket.recv(&mut room).unwrap();
    assert_same(&room[..length], bytes);
}

/// Bytes that differ from place to place, and for each seed.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    // xorshift64*: a place that is off by any number shows.
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 56) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// The children of a process.
#[cfg(target_os = "linux")]
pub fn children(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let list = std::fs::read_to_string(path).unwrap_or_default();
    list.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// Whether a process is there; one that nobody has waited for is dead all the same.
#[cfg(target_os = "linux")]
pub fn lives(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !matches!(stat.rsplit_once(") ").map(|(_, rest)| &rest[..1]), None | Some("Z" | "X"))
}

/// As `assert_eq`, without printing a megabyte.
#[track_caller]
pub fn assert_same(got: &[u8], expected: &[u8]) {
    // All at once, since byte by byte is slow without optimization.
    if got == expected {
        return;
    }
    let differ = got.iter().zip(expected).position(|(a, b)| a != b);
    let at = differ.or((got.len() != expected.len()).then(|| got.len().min(expected.len())));
    if let Some(at) = at {
        let near = |bytes: &[u8]| bytes[at.min(bytes.len())..bytes.len().min(at + 16)].to_vec();
        panic!(
            "{} bytes instead of {}, the first difference at {at}: {:x?} instead of {:x?}",
            got.len(),
            expected.len(),
            near(got),
            near(expected)
        );
    }
}
