//! Programs that embed the server: what each of them needs of the library, against its public API.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use common::{TestServer, config_with, wait_until};
use evecho::protocol::{Context, Flow, FrameError, Message, Replies, service_fn};
use evecho::{Config, Design, Framing, Server, Service};

const DESIGNS: [Design; 3] = [Design::EventLoop, Design::Threaded, Design::Iterative];

fn framed(design: Design, framing: Framing) -> Config {
    config_with(|config| {
        (config.design, config.protocol.framing, config.protocol.max_frame) = (design, framing, 64);
    })
}

/// An answer that is there already, or is on its way; `None` if there is none.
fn receive(socket: &UdpSocket) -> Option<Vec<u8>> {
    let mut room = [0; 100];
    match socket.recv(&mut room) {
        Ok(length) => Some(room[..length].to_vec()),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("{error}"),
    }
}

// ---- an echo server inside another program

#[test]
fn a_program_runs_an_echo_server_beside_its_own_work() {
    let server = Server::bind(Config::loopback()).unwrap().spawn().unwrap();

    let mut client = TcpStream::connect(server.local_addrs()[0]).unwrap();
    client.write_all(b"hello").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut echo = String::new();
    client.read_to_string(&mut echo).unwrap();
    assert_eq!(echo, "hello");

    let stats = server.stop().unwrap();
    assert_eq!((stats.accepted, stats.closed_by_peer, stats.bytes_out), (1, 1, 5));
}

// ---- a stateful line protocol

/// What all conversations of the store tell: how many were opened and closed, by whom.
#[derive(Default)]
struct Visitors {
    opened: Mutex<Vec<SocketAddr>>,
    closed: Mutex<Vec<SocketAddr>>,
}

impl Visitors {
    fn all(&self) -> (Vec<SocketAddr>, Vec<SocketAddr>) {
        let sorted = |visitors: &Mutex<Vec<SocketAddr>>| {
            let mut visitors = visitors.lock().unwrap().clone();
            visitors.sort();
            visitors
        };
        (sorted(&self.opened), sorted(&self.closed))
    }
}

/// `set NAME VALUE`, `get NAME`, `list`, `quit`: variables that belong to one connection.
#[derive(Clone)]
struct Store {
    visitors: Arc<Visitors>,
    variables: HashMap<String, String>,
}

impl Service for Store {
    fn open(&mut self, replies: &mut Replies<'_>, context: &Context<'_>) -> Flow {
        self.visitors.opened.lock().unwrap().push(context.peer());
        let greeting = format!("welcome to {}\n", context.local().unwrap());
        replies.send(greeting.as_bytes());
        Flow::Continue
    }

    fn serve(&mut self, message: Message<'_>, replies: &mut Replies<'_>, _: &Context<'_>) -> Flow {
        let line = String::from_utf8_lossy(message.bytes());
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["set", name, value] => {
                self.variables.insert(name.to_owned(), value.to_owned());
            }
            ["get", name] => {
                let value = self.variables.get(name).map_or("(nothing)", String::as_str);
                replies.send(format!("{value}\n").as_bytes());
            }
            ["list"] => {
                let mut names: Vec<&String> = self.variables.keys().collect();
                names.sort();
                for name in names {
                    replies.send(format!("{name}\n").as_bytes());
                }
            }
            ["quit"] => {
                replies.send(b"bye\n");
                return Flow::Close;
            }
            _ => replies.echo(),
        }
        Flow::Continue
    }

    fn broken(&mut self, error: FrameError, replies: &mut Replies<'_>, _: &Context<'_>) {
        assert_eq!(error, FrameError::TooLong { announced: None });
        replies.send(b"that was too long\n");
    }

    fn close(&mut self, context: &Context<'_>) {
        self.visitors.closed.lock().unwrap().push(context.peer());
    }
}

#[test]
fn a_stateful_line_protocol() {
    for design in DESIGNS {
        let visitors = Arc::new(Visitors::default());
        let store = Store { visitors: Arc::clone(&visitors), variables: HashMap::new() };
        let server = TestServer::with_service(framed(design, Framing::Lines), store);
        let greeting = format!("welcome to {}\n", server.address());

        let mut first = server.connect();
        first.expect(greeting.as_bytes());
        first.send(b"set a 1\nset b 2\nget a\nlist\nwhat?\n");
        first.expect(b"1\na\nb\nwhat?\n");
        first.send(b"quit\nget a\n");
        assert_eq!(first.rest(), b"bye\n");

        let mut second = server.connect();
        second.expect(greeting.as_bytes());
        second.send(b"get a\n");
        second.expect(b"(nothing)\n");
        second.send(&[b'x'; 65]);
        assert_eq!(second.rest(), b"that was too long\n");
        drop((first, second));

        let stats = server.stop();
        assert_eq!((stats.closed_by_service, stats.closed_by_frame_error), (1, 1), "{design}");
        let (opened, closed) = visitors.all();
        assert_eq!((opened.len(), opened), (2, closed), "{design}");
    }
}

#[test]
fn a_conversation_ends_once_however_it_ends() {
    for design in DESIGNS {
        let visitors = Arc::new(Visitors::default());
        let store = Store { visitors: Arc::clone(&visitors), variables: HashMap::new() };
        let mut config = framed(design, Framing::Lines);
        config.limits.drain_timeout = Duration::ZERO;
        let server = TestServer::with_service(config, store);
        server.connect().reset();
        server.wait_for("the reset", |stats| stats.closed() == 1);
        let mut staying = server.connect();
        staying.send(b"get a\n");
        staying.expect(format!("welcome to {}\n(nothing)\n", server.address()).as_bytes());
        server.abort();
        server.ended();
        let (opened, closed) = visitors.all();
        assert_eq!((opened.len(), opened), (2, closed), "{design}");
    }
}

// ---- a UDP pinger that drops 30 %

#[test]
fn a_server_that_loses_three_datagrams_of_ten() {
    for design in DESIGNS {
        let seen = Arc::new(AtomicU64::new(0));
        let lossy = service_fn(move |_, replies, context| {
            assert!(context.is_datagram());
            if seen.fetch_add(1, Ordering::Relaxed) % 10 >= 3 {
                replies.echo();
            }
            Flow::Continue
        });
        let config = config_with(|config| config.design = design);
        let server = TestServer::with_service(config, lossy);
        let socket = server.udp();
        let mut answers = 0;
        for ping in 0..200_u64 {
            socket.send(&ping.to_be_bytes()).unwrap();
            if ping % 10 >= 3 {
                // The ones before it are not answered late either.
                assert_eq!(receive(&socket).as_deref(), Some(&ping.to_be_bytes()[..]), "{design}");
                answers += 1;
            }
        }
        socket.set_nonblocking(true).unwrap();
        server.wait_for("all datagrams", |stats| stats.udp_received == 200);
        assert_eq!(receive(&socket), None, "{design}");
        assert_eq!((answers, server.stop().udp_answered), (140, 140), "{design}");
    }
}

#[test]
fn no_answer_and_an_empty_answer_are_different_things() {
    let server = TestServer::with_service(
        Config::loopback(),
        service_fn(|message, replies, _| {
            match message {
                b"silence" => {}
                b"nothing" => replies.send(b""),
                b"several" => {
                    replies.send(b"one");
                    replies.send(b"");
                    replies.echo();
                }
                _ => replies.echo(),
            }
            Flow::Continue
        }),
    );
    let socket = server.udp();
    let ask = |message: &[u8]| socket.send(message).unwrap();
    ask(b"silence");
    ask(b"nothing");
    assert_eq!(receive(&socket).unwrap(), b"");
    ask(b"");
    assert_eq!(receive(&socket).unwrap(), b"", "the echo of an empty datagram");
    ask(b"several");
    for answer in [&b"one"[..], b"", b"several"] {
        assert_eq!(receive(&socket).unwrap(), answer);
    }
    assert_eq!(server.stop().udp_answered, 5);
}

#[test]
fn udp_peers_share_no_state_by_accident() {
    /// Remembers the last thing that it was told.
    #[derive(Clone, Default)]
    struct Memory(Vec<u8>);
    impl Service for Memory {
        fn serve(
            &mut self,
            message: Message<'_>,
            replies: &mut Replies<'_>,
            _: &Context<'_>,
        ) -> Flow {
            let before = std::mem::replace(&mut self.0, message.bytes().to_vec());
            replies.send(&before);
            Flow::Continue
        }
    }
    for design in DESIGNS {
        let config = config_with(|config| config.design = design);
        let server = TestServer::with_service(config, Memory::default());
        let (peer, stranger) = (server.udp(), server.udp());
        for socket in [&peer, &stranger, &peer] {
            socket.send(b"secret=42").unwrap();
            assert_eq!(receive(socket).unwrap(), b"", "{design}");
        }
        // A stream has a memory of its own.
        let mut client = server.connect();
        client.send(b"secret=43");
        server.wait_for("the bytes", |stats| stats.bytes_in == 9);
        client.send(b"?");
        client.expect(b"secret=43");
    }
}

// ---- a test harness

/// What a test has a server do, chosen when the conversation begins.
type Behaviour = Box<dyn Service>;

#[test]
fn a_harness_chooses_the_service_of_each_conversation() {
    for design in DESIGNS {
        let count = Arc::new(AtomicU64::new(0));
        let make = move || -> Behaviour {
            match count.fetch_add(1, Ordering::Relaxed) {
                0 => Box::new(service_fn(|bytes, replies, _| {
                    replies.send(&bytes.to_ascii_uppercase());
                    Flow::Continue
                })),
                1 => Box::new(service_fn(|_, _, _| Flow::Close)),
                _ => Box::new(evecho::protocol::Echo),
            }
        };
        let server = TestServer::with_each(config_with(|config| config.design = design), make);
        let mut upper = server.connect();
        upper.send(b"abc");
        upper.expect(b"ABC");
        upper.half_close();
        upper.expect_end();
        let mut closing = server.connect();
        closing.send(b"abc");
        assert_eq!(closing.rest(), b"");
        drop(closing);
        server.connect().exchange(b"abc");
    }
}

#[test]
fn a_service_learns_who_asks() {
    for design in DESIGNS {
        let describe = service_fn(|_, replies, context| {
            let (peer, local) = (context.peer(), context.local().unwrap());
            let description = format!("{peer} {local} {}", context.is_datagram());
            replies.send(description.as_bytes());
            Flow::Continue
        });
        // Which of all addresses it is, nobody can tell beforehand.
        let config = config_with(|config| {
            (config.design, config.bind) = (design, vec![Ipv4Addr::UNSPECIFIED.into()]);
        });
        let server = TestServer::with_service(config, describe);
        let address = SocketAddr::from(([127, 0, 0, 3], server.address().port()));

        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"who?").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut description = String::new();
        stream.read_to_string(&mut description).unwrap();
        assert_eq!(description, format!("{} {address} false", stream.local_addr().unwrap()));

        let socket = common::udp(address);
        socket.send(b"who?").unwrap();
        let description = String::from_utf8(receive(&socket).unwrap()).unwrap();
        assert_eq!(description, format!("{} {address} true", socket.local_addr().unwrap()));
    }
}

#[test]
fn each_reply_is_a_frame() {
    let server = TestServer::with_service(
        framed(Design::EventLoop, Framing::LengthPrefixed),
        service_fn(|message, replies, _| {
            replies.send_with(|reply| reply.extend(message.iter().rev()));
            replies.echo();
            replies.send(b"");
            replies.send(b"end.");
            Flow::Continue
        }),
    );
    let mut client = server.connect();
    client.send(b"\0\0\0\x02ab");
    client.expect(b"\0\0\0\x02ba\0\0\0\x02ab\0\0\0\0\0\0\0\x04end.");
}

#[test]
fn what_comes_while_a_thread_computes_is_answered_in_the_drain() {
    let answered = || {
        let (open, gate) = channel();
        let gate = Arc::new(Mutex::new(gate));
        let slow = service_fn(move |message, replies, _| {
            if message == b"first" {
                gate.lock().unwrap().recv().unwrap();
            }
            replies.echo();
            Flow::Continue
        });
        let server = TestServer::with_service(
            config_with(|config| {
                config.design = Design::Threaded;
                config.limits.drain_timeout = Duration::from_secs(1);
            }),
            slow,
        );
        let (mut client, mut other) = (server.connect(), server.connect());
        client.send(b"first");
        server.wait_for("both", |stats| stats.accepted == 2 && stats.bytes_in == 5);
        client.send(b", second");
        server.drain();
        // So both have been asked to leave.
        other.expect_end();
        open.send(()).unwrap();
        let mut rest = Vec::new();
        client.0.read_to_end(&mut rest).is_ok() && rest == b"first, second"
    };
    // A quarter of a second is left for that. A machine that is busy may take longer once.
    assert!((0..3).any(|_| answered()));
}

/// Where a service panics.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Place {
    Make,
    Clone,
    Open,
    Serve,
    Broken,
    Close,
    Drop,
}

/// What a panic is about. It panics itself where it is dropped.
struct Payload;

impl Drop for Payload {
    fn drop(&mut self) {
        panic!("as the test wants it");
    }
}

/// Panics at a place, once it has been armed.
struct Fragile {
    place: Place,
    armed: Arc<AtomicBool>,
    closed: Arc<AtomicU64>,
}

impl Fragile {
    fn pass(&self, place: Place) {
        let panics = place == self.place && self.armed.swap(false, Ordering::Relaxed);
        if panics {
            panic_any(Payload);
        }
    }

    fn again(&self) -> Fragile {
        let Fragile { place, armed, closed } = self;
        Fragile { place: *place, armed: Arc::clone(armed), closed: Arc::clone(closed) }
    }
}

impl Clone for Fragile {
    fn clone(&self) -> Fragile {
        self.pass(Place::Clone);
        self.again()
    }
}

impl Drop for Fragile {
    fn drop(&mut self) {
        self.pass(Place::Drop);
    }
}

impl Service for Fragile {
    fn open(&mut self, _: &mut Replies<'_>, _: &Context<'_>) -> Flow {
        self.pass(Place::Open);
        Flow::Continue
    }

    fn serve(&mut self, message: Message<'_>, replies: &mut Replies<'_>, _: &Context<'_>) -> Flow {
        if message.bytes() == b"panic\n" {
            self.pass(Place::Serve);
        }
        replies.echo();
        Flow::Continue
    }

    fn broken(&mut self, _: FrameError, _: &mut Replies<'_>, _: &Context<'_>) {
        self.pass(Place::Broken);
    }

    fn close(&mut self, _: &Context<'_>) {
        self.closed.fetch_add(1, Ordering::Relaxed);
        self.pass(Place::Close);
    }
}

/// The errors that servers of this process have logged.
static ERRORS: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Errors;

impl log::Log for Errors {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        ERRORS.lock().unwrap().push(record.args().to_string());
    }

    fn flush(&self) {}
}

/// Whether an error with these words about this peer has been logged.
fn is_logged(words: &str, peer: SocketAddr) -> bool {
    let peer = peer.to_string();
    ERRORS.lock().unwrap().iter().any(|line| line.contains(words) && line.contains(&peer))
}

/// A conversation over TCP and one over UDP, in each of which the service panics once.
fn panic_at(place: Place, design: Design) {
    let what = format!("{design}, {place:?}");
    let (armed, closed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let fragile = Fragile { place, armed: Arc::clone(&armed), closed: Arc::clone(&closed) };
    let config = framed(design, Framing::Lines);
    let server = match place {
        Place::Clone => TestServer::with_service(config, fragile),
        // What makes the services is not one of them.
        _ => {
            let fragile = Arc::new(fragile);
            TestServer::with_each(config, move || {
                fragile.pass(Place::Make);
                fragile.again()
            })
        }
    };
    let socket = server.udp();
    common::exchange_datagram(&socket, b"fine\n");
    armed.store(true, Ordering::Relaxed);
    let mut client = server.connect();
    let before = place == Place::Make || place == Place::Clone || place == Place::Open;
    if !before {
        client.send(b"one\n");
        client.expect(b"one\n");
        client.send(if place == Place::Broken { &[b'x'; 65] } else { b"panic\ntwo\n" });
        if matches!(place, Place::Close | Place::Drop) {
            client.expect(b"panic\ntwo\n");
            client.half_close();
        }
    }
    client.expect_end();
    let peer = client.0.local_addr().unwrap();
    drop(client);
    server.wait_for(&what, |stats| stats.closed_by_panic == 1 && stats.open() == 0);
    assert!(is_logged("the service panicked", peer), "{what}");
    // A frame of a datagram cannot be broken.
    if place != Place::Broken {
        armed.store(true, Ordering::Relaxed);
        socket.send(b"panic\n").unwrap();
        if matches!(place, Place::Close | Place::Drop) {
            let mut room = [0; 64];
            assert_eq!(socket.recv(&mut room).unwrap(), 6, "{what}");
        }
        server.wait_for(&what, |stats| stats.udp_panics == 1);
        common::exchange_datagram(&socket, b"fine\n");
        assert!(is_logged("the service panicked", socket.local_addr().unwrap()), "{what}");
    }
    common::exchange_datagram(&socket, b"fine\n");
    let mut client = server.connect();
    client.exchange(b"fine\n");
    drop(client);
    let unmade = 2 * u64::from(place == Place::Make || place == Place::Clone);
    wait_until("all are closed", || {
        let stats = server.stats();
        closed.load(Ordering::Relaxed) + unmade == stats.accepted + stats.udp_received
    });
    let stats = server.stop();
    assert_eq!((stats.accepted, stats.closed_by_panic), (2, 1), "{what}");
    assert_eq!(stats.closed(), 2, "{what}");
}

#[test]
fn a_panic_ends_its_conversation_and_nothing_else() {
    use Place::{Broken, Clone, Close, Drop, Make, Open, Serve};
    log::set_logger(&Errors).unwrap();
    log::set_max_level(log::LevelFilter::Error);
    for design in DESIGNS {
        for place in [Make, Clone, Open, Serve, Broken, Close, Drop] {
            panic_at(place, design);
        }
    }
}

// ---- a server on a thread of its own

#[test]
fn a_forgotten_client_does_not_delay_the_end() {
    for design in DESIGNS {
        let config = config_with(|config| {
            config.design = design;
            config.limits.drain_timeout = Duration::from_secs(3_600);
        });
        let server = Server::bind(config).unwrap().spawn().unwrap();
        let mut forgotten = common::Client::connect(server.local_addrs()[0]);
        forgotten.exchange(b"hello");
        let handle = server.handle();
        drop(server);
        forgotten.expect_end();
        assert_eq!((handle.stats().open(), handle.is_ready()), (0, false), "{design}");
    }
}

#[test]
fn a_stop_lets_clients_finish() {
    for design in DESIGNS {
        let config = config_with(|config| {
            config.design = design;
            config.limits.drain_timeout = Duration::from_millis(200);
        });
        let server = Server::bind(config).unwrap().spawn().unwrap();
        let server = server.with_drain_timeout(Duration::MAX);
        let mut client = common::Client::connect(server.local_addrs()[0]);
        client.exchange(b"hello");
        let stopping = thread::spawn(|| server.stop());
        client.expect_end();
        drop(client);
        let stats = stopping.join().unwrap().unwrap();
        assert_eq!((stats.closed(), stats.bytes_out), (1, 5), "{design}");
    }
}

#[test]
fn a_panic_of_the_servers_thread_is_handed_over() {
    /// Panics before the server serves: there is no conversation yet that would end.
    struct Unclonable;
    impl Clone for Unclonable {
        fn clone(&self) -> Self {
            panic!("as the test wants it")
        }
    }
    impl Service for Unclonable {
        fn serve(&mut self, _: Message<'_>, _: &mut Replies<'_>, _: &Context<'_>) -> Flow {
            Flow::Close
        }
    }
    let spawn = || Server::bind(Config::loopback()).unwrap().spawn_with(Unclonable).unwrap();
    let joined = catch_unwind(AssertUnwindSafe(|| spawn().join()));
    assert_eq!(joined.unwrap_err().downcast_ref(), Some(&"as the test wants it"));
    // A drop has nobody to hand it to.
    drop(spawn());
}

#[test]
fn an_error_of_the_server_is_handed_over() {
    let listener = std::net::TcpListener::bind((common::LOCALHOST, 0)).unwrap();
    let kept = listener.try_clone().unwrap();
    let server = Server::adopt(Config::default(), [listener.into()]).unwrap().spawn().unwrap();
    wait_until("it serves", || server.is_ready());
    // Its only socket is gone.
    socket2::SockRef::from(&kept).shutdown(Shutdown::Both).unwrap();
    assert!(server.join().unwrap_err().to_string().contains("cannot go on"));
}

/// What [`evecho::Handle::stats`] promises to a client that has its reply.
#[test]
fn what_came_in_is_counted_before_the_reply_leaves() {
    for design in DESIGNS {
        let server = TestServer::start(config_with(|config| config.design = design));
        let (mut client, socket) = (server.connect(), server.udp());
        for count in 1..=500 {
            client.exchange(b"hello");
            common::exchange_datagram(&socket, b"hi");
            let stats = server.stats();
            assert_eq!((stats.accepted, stats.bytes_in), (1, 5 * count), "{design}");
            assert_eq!((stats.udp_received, stats.udp_bytes_in), (count, 2 * count), "{design}");
        }
        drop(client);
        let stats = server.stop();
        assert_eq!((stats.bytes_out, stats.udp_answered), (2_500, 500), "{design}");
    }
}
