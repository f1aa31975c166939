//! What every design has to do, seen from outside: the same cases for all of them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{
    Client, DEADLINE, LOCALHOST, TestServer, assert_same, config_with, exchange_datagram, pattern,
    udp, wait_until,
};
use evecho::protocol::Upper;
use evecho::{Config, Design, Framing, GuardPorts, Limits, Server, Transport};
use socket2::{Domain, Socket, Type};

/// Makes a test of each case for each design. Where a design is left out, the reason is beside it.
macro_rules! conformance {
    ($($case:ident $(: not for $left_out:ident, since $reason:literal)?;)*) => {
        mod event_loop {
            $(#[test] fn $case() { super::$case(super::Design::EventLoop); })*
        }
        mod threaded {
            $(#[test] fn $case() { super::$case(super::Design::Threaded); })*
        }
        mod iterative {
            $(conformance!(@unless $($left_out)? { #[test] fn $case() { super::$case(super::Design::Iterative); } });)*
        }
    };
    (@unless iterative { $($test:item)* }) => {};
    (@unless { $($test:item)* }) => { $($test)* };
}

conformance! {
    bytes_of_any_number_come_back_however_they_are_split;
    more_than_all_buffers_hold_comes_back;
    a_slow_reader_gets_all_it_is_owed_after_its_fin;
    an_empty_conversation_ends;
    lines_are_answered_whole;
    frames_are_answered_whole;
    upper_case_comes_back;
    once_is_once;
    a_frame_too_long_ends_the_connection_after_the_answers_before_it;
    the_last_answer_comes_whole_while_the_client_goes_on_sending;
    a_frame_cut_short_ends_the_connection;
    a_reset_is_the_peers_affair;
    who_is_idle_is_closed;
    who_does_not_read_is_idle;
    the_backlog_waits_for_a_slot;
    clients_are_served_side_by_side: not for iterative, since "it cannot see a second client";
    a_source_has_so_many_connections: not for iterative, since "nobody has two at a time";
    datagrams_of_any_size_come_back;
    a_reply_leaves_from_the_address_that_was_asked;
    guarded_ports_are_not_answered;
    datagrams_are_answered_while_a_stream_is_silent;
    udp_alone_is_served;
    both_addresses_are_served;
    everybody_is_served_until_the_drain_begins;
    a_delay_is_over_though_nothing_happens;
    who_is_here_may_finish_the_drain;
    who_waits_in_the_backlog_is_served_in_the_drain;
    who_comes_in_the_drain_is_refused: not for iterative, since "it sees nobody while it has a client";
    what_waits_is_left_to_the_next_server;
    a_row_of_servers_loses_nobody;
    who_does_not_finish_the_drain_is_closed;
    who_does_not_read_does_not_hold_up_the_drain;
    who_is_asked_to_leave_gets_all_it_is_owed: not for iterative, since "nobody else shows when that is";
    who_does_not_leave_when_asked_is_cut_off;
    a_drain_of_no_time_ends_at_once;
    to_abort_a_drain_ends_it_at_once;
    what_is_held_shows;
    to_abort_cuts_who_does_not_read;
    a_port_in_use_is_an_error;
}

fn of(design: Design) -> Config {
    config_with(|config| config.design = design)
}

fn framed(design: Design, framing: Framing, max_frame: u32) -> Config {
    let mut config = of(design);
    (config.protocol.framing, config.protocol.max_frame) = (framing, max_frame);
    config
}

fn limited(design: Design, limit: impl FnOnce(&mut Limits)) -> Config {
    let mut config = of(design);
    limit(&mut config.limits);
    config
}

/// Sends `bytes` in pieces of `step` while it reads; what comes back up to the server's FIN.
fn converse(mut client: Client, bytes: &[u8], step: usize) -> Vec<u8> {
    let mut writer = Client(client.0.try_clone().unwrap());
    thread::scope(|scope| {
        scope.spawn(move || {
            bytes.chunks(step).for_each(|piece| writer.send(piece));
            writer.half_close();
        });
        client.rest()
    })
}

// ---- streams

fn bytes_of_any_number_come_back_however_they_are_split(design: Design) {
    let server = TestServer::start(of(design));
    let mut total = 0;
    for length in
        [1_usize, 2, 3, 63, 64, 1_000, 4_095, 4_096, 4_097, 8_192, 65_535, 65_536, 300_000]
    {
        for step in [1, 7, 4_096, length] {
            // Thousands of single bytes prove no more than a thousand.
            if length.div_ceil(step) > 1_000 {
                continue;
            }
            let bytes = pattern(length as u64, length);
            assert_same(&converse(server.connect(), &bytes, step), &bytes);
            total += length as u64;
        }
    }
    let stats = server.stop();
    assert_eq!((stats.bytes_in, stats.bytes_out), (total, total));
    assert_eq!((stats.open(), stats.closed_by_peer), (0, stats.accepted));
}

fn more_than_all_buffers_hold_comes_back(design: Design) {
    let server = TestServer::start(of(design));
    let bytes = pattern(1, 16 << 20);
    assert_same(&converse(server.connect(), &bytes, 100_000), &bytes);
}

fn a_slow_reader_gets_all_it_is_owed_after_its_fin(design: Design) {
    let server = TestServer::start(of(design));
    let mut client = Client::connect_with(server.address(), None, Some(4 << 10));
    let sent = client.fill();
    client.half_close();
    let block = pattern(0, 64 << 10);
    let expected: Vec<u8> = block.iter().copied().cycle().take(sent).collect();
    assert_same(&client.rest(), &expected);
    assert_eq!(server.stop().closed_by_peer, 1);
}

fn an_empty_conversation_ends(design: Design) {
    let server = TestServer::start(of(design));
    assert_same(&converse(server.connect(), b"", 1), b"");
    let stats = server.stop();
    assert_eq!((stats.closed_by_peer, stats.bytes_in), (1, 0));
}

fn lines_are_answered_whole(design: Design) {
    let server = TestServer::start(framed(design, Framing::Lines, 64));
    let mut client = server.connect();
    for piece in [&b"on"[..], b"e", b"\ntwo\r\n\nthr"] {
        client.send(piece);
    }
    client.expect(b"one\ntwo\r\n\n");
    client.half_close();
    assert_same(&client.rest(), b"thr");
}

fn frames_are_answered_whole(design: Design) {
    let server = TestServer::start(framed(design, Framing::LengthPrefixed, 64));
    let frames = b"\0\0\0\x03one\0\0\0\0\0\0\0\x02ab";
    for step in [1, 5, frames.len()] {
        assert_same(&converse(server.connect(), frames, step), frames);
    }
}

fn upper_case_comes_back(design: Design) {
    let server = TestServer::with_service(of(design), Upper::default());
    let text = "naïve ß 😀 ";
    assert_same(&converse(server.connect(), text.as_bytes(), 1), text.to_uppercase().as_bytes());
    let socket = server.udp();
    socket.send("é".as_bytes()).unwrap();
    let mut room = [0; 8];
    let length = socket.recv(&mut room).unwrap();
    assert_eq!(&room[..length], "É".as_bytes());
}

fn once_is_once(design: Design) {
    let mut config = framed(design, Framing::Lines, 64);
    config.protocol.once = true;
    let server = TestServer::start(config);
    let mut client = server.connect();
    client.send(b"one\ntwo\n");
    assert_same(&client.rest(), b"one\n");
    drop(client);
    server.wait_for("the end of the connection", |stats| stats.closed() == 1);
    assert_eq!(server.stop().closed_by_service, 1);
}

fn a_frame_too_long_ends_the_connection_after_the_answers_before_it(design: Design) {
    let server = TestServer::start(framed(design, Framing::Lines, 8));
    let mut client = server.connect();
    client.send(b"good\n");
    // More than what was read when the error was found: without lingering, it would be answered by an
    // RST, which could overtake the answer.
    client.send(&[b'x'; 200_000]);
    assert_same(&client.rest(), b"good\n");
    client.send(&[b'y'; 1_000]);
    drop(client);
    server.wait_for("the end of the connection", |stats| stats.closed() == 1);
    assert_eq!(server.stop().closed_by_frame_error, 1);
}

fn the_last_answer_comes_whole_while_the_client_goes_on_sending(design: Design) {
    let mut config = framed(design, Framing::Lines, 64 << 10);
    config.protocol.once = true;
    let server = TestServer::start(config);
    let line = [&[b'a'; 40_000][..], b"\n"].concat();
    let comes_whole = || {
        let mut client = Client::connect_with(server.address(), None, Some(4 << 10));
        client.send(&line);
        // More than is dropped of a client that has its answer: this one does not read it yet.
        let enough = server.stats().bytes_in + (3 << 20);
        while server.stats().bytes_in < enough && client.0.write_all(&line).is_ok() {}
        let mut answer = vec![0; line.len()];
        client.0.read_exact(&mut answer).is_ok() && answer == line
    };
    // That takes milliseconds, and after 2 s it is over. A machine that is busy may take longer once.
    assert!((0..3).any(|_| comes_whole()));
}

fn a_frame_cut_short_ends_the_connection(design: Design) {
    let server = TestServer::start(framed(design, Framing::LengthPrefixed, 8));
    assert_same(&converse(server.connect(), b"\0\0\0\x01a\0\0\0\x02b", 3), b"\0\0\0\x01a");
    assert_eq!(server.stop().closed_by_frame_error, 1);
}

fn a_reset_is_the_peers_affair(design: Design) {
    let server = TestServer::start(of(design));
    let mut client = server.connect();
    client.exchange(b"hello");
    client.reset();
    server.wait_for("the reset", |stats| stats.closed_by_reset == 1);
    server.connect().exchange(b"still here");
}

fn who_is_idle_is_closed(design: Design) {
    let idle_timeout = Some(Duration::from_millis(50));
    let server = limited(design, |limits| limits.idle_timeout = idle_timeout);
    let server = Server::bind(server).unwrap();
    let mut client = Client::connect(server.local_addrs()[0]);
    // It is there when the server begins, however long this thread stands still.
    client.send(b"hello");
    let server = TestServer::of(server);
    assert_same(&client.rest(), b"hello");
    drop(client);
    server.wait_for("the end of the connection", |stats| stats.closed_idle == 1);
}

fn who_does_not_read_is_idle(design: Design) {
    let idle_timeout = Some(Duration::from_millis(50));
    let server = TestServer::start(limited(design, |limits| limits.idle_timeout = idle_timeout));
    let mut client = Client::connect_with(server.address(), None, Some(4 << 10));
    let bytes = pattern(0, 64 << 10);
    // Until the server has had enough: it does not read either, and then is gone.
    while client.0.write_all(&bytes).is_ok() {}
    server.wait_for("the end of the connection", |stats| stats.closed() == 1);
    assert_eq!(server.stop().closed_idle, 1);
}

fn the_backlog_waits_for_a_slot(design: Design) {
    let max_connections = NonZeroUsize::new(1);
    let server =
        TestServer::start(limited(design, |limits| limits.max_connections = max_connections));
    let mut first = server.connect();
    first.exchange(b"first");
    // Connected, as far as it can tell; it is answered when the first has left.
    let mut second = server.connect();
    second.send(b"second");
    if design != Design::Iterative {
        server.wait_for("the pause", |stats| stats.accept_pauses == 1);
    }
    assert_eq!(server.stats().accepted, 1);
    first.exchange(b"still the only one");
    first.half_close();
    first.rest();
    second.expect(b"second");
}

fn clients_are_served_side_by_side(design: Design) {
    let server = TestServer::start(of(design));
    let mut stuck = Client::connect_with(server.address(), None, Some(4 << 10));
    stuck.fill();
    let mut clients: Vec<Client> = (0..50).map(|_| server.connect()).collect();
    for round in 0..3 {
        for (index, client) in clients.iter_mut().enumerate() {
            client.send(&pattern(100 * round + index as u64, 100));
        }
        for (index, client) in clients.iter_mut().enumerate().rev() {
            client.expect(&pattern(100 * round + index as u64, 100));
        }
    }
    assert_eq!(server.stats().open(), 51);
}

fn a_source_has_so_many_connections(design: Design) {
    let per_source_connections = NonZeroUsize::new(1);
    let server = TestServer::start(limited(design, |limits| {
        limits.per_source_connections = per_source_connections;
    }));
    let mut first = server.connect();
    first.exchange(b"first");
    server.connect().expect_end();
    let other = Some([127, 0, 0, 3].into());
    Client::connect_with(server.address(), other, None).exchange(b"from elsewhere");
    first.half_close();
    first.rest();
    server.wait_for("the first to leave", |stats| stats.open() == 0);
    server.connect().exchange(b"again");
    assert_eq!(server.stats().refused, 1);
}

// ---- datagrams

fn datagrams_of_any_size_come_back(design: Design) {
    let server = TestServer::start(of(design));
    let socket = server.udp();
    let sizes = [0, 1, 15, 16, 512, 1_472, 1_473, 9_000, 32_768, 65_506, 65_507];
    for size in sizes {
        exchange_datagram(&socket, &pattern(size as u64, size));
    }
    drop(socket);
    let stats = server.stop();
    assert_eq!(stats.udp_answered, sizes.len() as u64);
    assert_eq!(stats.udp_bytes_out, sizes.iter().sum::<usize>() as u64);
}

fn a_reply_leaves_from_the_address_that_was_asked(design: Design) {
    let mut config = of(design);
    config.bind = vec![];
    let server = TestServer::start(config);
    let asked = SocketAddr::new([127, 0, 0, 2].into(), server.address().port());
    // A connected socket receives from there alone.
    exchange_datagram(&udp(asked), b"who are you?");
}

fn guarded_ports_are_not_answered(design: Design) {
    // Below our own, so that the system gives it to nobody else.
    let guarded = udp(SocketAddr::new(LOCALHOST, 9));
    let guard_ports = GuardPorts::from_iter([guarded.local_addr().unwrap().port()]);
    let server = TestServer::start(limited(design, |limits| limits.guard_ports = guard_ports));
    guarded.connect(server.address()).unwrap();
    guarded.send(b"loop?").unwrap();
    // What comes later is answered later.
    exchange_datagram(&server.udp(), b"hello");
    guarded.set_nonblocking(true).unwrap();
    assert_eq!(guarded.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
    server.wait_for("the count", |stats| (stats.udp_guarded, stats.udp_answered) == (1, 1));
}

fn datagrams_are_answered_while_a_stream_is_silent(design: Design) {
    let server = TestServer::start(of(design));
    let mut silent = server.connect();
    silent.exchange(b"hello");
    exchange_datagram(&server.udp(), b"and you?");
}

fn udp_alone_is_served(design: Design) {
    let mut config = of(design);
    config.transport = Some(Transport::Udp);
    // No other test's listener has the same port.
    let (_tcp, server) = loop {
        let tcp = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        tcp.bind(&SocketAddr::from((LOCALHOST, 0)).into()).unwrap();
        config.port = tcp.local_addr().unwrap().as_socket().unwrap().port();
        match Server::bind(config.clone()) {
            Ok(server) => break (tcp, TestServer::of(server)),
            Err(error) => assert!(error.to_string().contains("has that port"), "{error}"),
        }
    };
    exchange_datagram(&server.udp(), b"hello");
    assert!(TcpStream::connect_timeout(&server.address(), DEADLINE).is_err());
    assert_eq!(server.stop().udp_answered, 1);
}

fn both_addresses_are_served(design: Design) {
    let mut config = of(design);
    config.bind = vec![LOCALHOST.into(), Ipv4Addr::new(127, 0, 0, 2).into()];
    let server = TestServer::start(config);
    assert_eq!(server.local_addrs().len(), 2);
    for _ in 0..2 {
        for &address in server.local_addrs() {
            assert_same(&converse(Client::connect(address), b"hello", 5), b"hello");
            exchange_datagram(&udp(address), b"hello");
        }
    }
}

fn what_is_held_shows(design: Design) {
    let server = TestServer::start(framed(design, Framing::Lines, 1 << 20));
    let mut client = server.connect();
    client.send(&[b'x'; 100_000]);
    server.wait_for("a frame that has begun", |stats| stats.buffered >= 100_000);
    client.send(b"\n");
    client.expect(&[&[b'x'; 100_000][..], b"\n"].concat());
    client.half_close();
    client.rest();
    server.wait_for("nothing held", |stats| stats.buffered == 0);
}

// ---- the end

fn everybody_is_served_until_the_drain_begins(design: Design) {
    let drain_delay = Duration::from_secs(3_600);
    let bound = Server::bind(limited(design, |limits| limits.drain_delay = drain_delay)).unwrap();
    let handle = bound.handle();
    assert!(!handle.is_ready());
    let server = TestServer::of(bound);
    wait_until("ready", || handle.is_ready());
    handle.drain();
    assert!(!handle.is_ready());
    for _ in 0..3 {
        let mut client = server.connect();
        client.exchange(b"a new one");
        exchange_datagram(&server.udp(), b"and this");
    }
    handle.drain();
    server.connect().exchange(b"told twice");
    handle.abort();
    server.ended();
    assert!(!handle.is_ready());
}

fn a_delay_is_over_though_nothing_happens(design: Design) {
    let drain_delay = Duration::from_millis(50);
    let server = TestServer::start(limited(design, |limits| limits.drain_delay = drain_delay));
    let start = Instant::now();
    server.drain();
    server.ended();
    assert!(start.elapsed() >= drain_delay);
}

fn who_is_here_may_finish_the_drain(design: Design) {
    let drain_timeout = Duration::from_secs(3_600);
    let server = TestServer::start(limited(design, |limits| limits.drain_timeout = drain_timeout));
    let mut client = server.connect();
    client.exchange(b"before");
    server.drain();
    client.exchange(b"after");
    client.send(b"last");
    client.half_close();
    assert_same(&client.rest(), b"last");
    assert_eq!(server.ended().closed_by_peer, 1);
}

fn who_waits_in_the_backlog_is_served_in_the_drain(design: Design) {
    let server = Server::bind(of(design)).unwrap();
    let address = server.local_addrs()[0];
    let mut clients: Vec<Client> = (0..10).map(|_| Client::connect(address)).collect();
    // Told to stop before it runs: they all are in the backlog.
    server.handle().drain();
    let server = TestServer::of(server);
    for client in &mut clients {
        client.send(b"am I late?");
        client.half_close();
    }
    for client in &mut clients {
        assert_same(&client.rest(), b"am I late?");
    }
    assert_eq!(server.ended().closed_by_peer, 10);
}

fn who_comes_in_the_drain_is_refused(design: Design) {
    let drain_timeout = Duration::from_secs(3_600);
    let server = TestServer::start(limited(design, |limits| limits.drain_timeout = drain_timeout));
    let mut client = server.connect();
    client.exchange(b"hello");
    server.drain();
    wait_until("refused", || TcpStream::connect(server.address()).is_err());
    client.exchange(b"still here");
    drop(client);
    server.ended();
}

/// A listener and a UDP socket, as a service manager keeps them.
struct Kept(TcpListener, UdpSocket);

impl Kept {
    fn new() -> Kept {
        Kept(TcpListener::bind((LOCALHOST, 0)).unwrap(), UdpSocket::bind((LOCALHOST, 0)).unwrap())
    }

    /// A server that is handed the sockets, and does not bind them.
    fn server(&self, design: Design) -> Server {
        let Kept(listener, socket) = self;
        let mut config = of(design);
        config.hand_over = true;
        let sockets = [listener.try_clone().unwrap().into(), socket.try_clone().unwrap().into()];
        Server::adopt(config, sockets).unwrap()
    }

    fn connect(&self) -> Client {
        Client::connect(self.0.local_addr().unwrap())
    }

    fn udp(&self) -> UdpSocket {
        udp(self.1.local_addr().unwrap())
    }
}

fn what_waits_is_left_to_the_next_server(design: Design) {
    let kept = Kept::new();
    // As the service manager has it: options are set again, by each server.
    let first = kept.server(design);
    let mut clients: Vec<Client> = (0..10).map(|_| kept.connect()).collect();
    for client in &mut clients {
        client.send(b"whoever you are");
        client.half_close();
    }
    let sockets: Vec<UdpSocket> = (0..10).map(|_| kept.udp()).collect();
    for socket in &sockets {
        socket.send(b"and you").unwrap();
    }
    // Told to stop before it runs: it has seen nobody yet.
    let handle = first.handle();
    handle.drain();
    first.run().unwrap();
    if design == Design::EventLoop {
        assert_eq!((handle.stats().accepted, handle.stats().udp_received), (0, 0));
    }
    let next = TestServer::of(kept.server(design));
    for client in &mut clients {
        assert_same(&client.rest(), b"whoever you are");
    }
    for socket in &sockets {
        let mut room = [0; 16];
        assert_eq!(socket.recv(&mut room).unwrap(), 7);
    }
    let (one, other) = (handle.stats(), next.stop());
    assert_eq!((one.accepted + other.accepted, one.refused + other.refused), (10, 0));
    assert_eq!(one.udp_answered + other.udp_answered, 10);
}

fn a_row_of_servers_loses_nobody(design: Design) {
    let kept = Kept::new();
    let (done, mut last) = (AtomicBool::new(false), None);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let mut client = kept.connect();
                client.send(b"hello");
                client.half_close();
                assert_same(&client.rest(), b"hello");
            }
        });
        scope.spawn(|| {
            let socket = kept.udp();
            while !done.load(Ordering::Relaxed) {
                exchange_datagram(&socket, b"hello");
            }
        });
        for _ in 0..5 {
            let server = TestServer::of(kept.server(design));
            server.wait_for("served", |stats| stats.closed_by_peer > 9 && stats.udp_answered > 9);
            let stats = server.stop();
            assert_eq!(stats.closed(), stats.closed_by_peer);
            assert_eq!(stats.udp_received, stats.udp_answered);
        }
        // Who is in the middle of something needs one more.
        last = Some(TestServer::of(kept.server(design)));
        done.store(true, Ordering::Relaxed);
    });
    drop(last);
}

fn who_does_not_finish_the_drain_is_closed(design: Design) {
    let drain_timeout = Duration::from_millis(20);
    let server = TestServer::start(limited(design, |limits| limits.drain_timeout = drain_timeout));
    let mut client = server.connect();
    client.exchange(b"hello");
    server.drain();
    assert_same(&client.rest(), b"");
    // The client stays: one that leaves when it is asked to has not been cut off.
    assert_eq!(server.ended().closed_draining, 1);
    drop(client);
}

fn who_does_not_read_does_not_hold_up_the_drain(design: Design) {
    let drain_timeout = Duration::ZERO;
    let server = TestServer::start(limited(design, |limits| limits.drain_timeout = drain_timeout));
    let mut client = Client::connect_with(server.address(), None, Some(4 << 10));
    client.fill();
    server.drain();
    assert_eq!(server.ended().closed_draining, 1);
}

fn who_is_asked_to_leave_gets_all_it_is_owed(design: Design) {
    let answer = pattern(0, 40_000);
    let gets_all = || {
        let limit = |limits: &mut Limits| limits.drain_timeout = Duration::from_secs(1);
        let server = TestServer::start(limited(design, limit));
        let mut client = Client::connect_with(server.address(), None, Some(4 << 10));
        client.send(&answer);
        let mut other = server.connect();
        server.wait_for("the answer", |stats| stats.bytes_out == 40_000 && stats.accepted == 2);
        server.drain();
        other.expect_end();
        // It cannot see the FIN yet, which is behind the answer, and goes on sending.
        let mut got = vec![0; answer.len()];
        let mut pieces = got.chunks_mut(100);
        pieces.all(|piece| {
            let _ = client.0.write_all(b"more");
            client.0.read_exact(piece).is_ok()
        }) && got == answer
    };
    // A quarter of a second is left for that. A machine that is busy may take longer once.
    assert!((0..3).any(|_| gets_all()));
}

fn who_does_not_leave_when_asked_is_cut_off(design: Design) {
    let drain_timeout = Duration::from_millis(100);
    let drained = || {
        let limit = |limits: &mut Limits| limits.drain_timeout = drain_timeout;
        let server = TestServer::start(limited(design, limit));
        let mut client = server.connect();
        client.exchange(b"hello");
        let start = Instant::now();
        server.drain();
        // Asked; it stays all the same.
        assert_same(&client.rest(), b"");
        assert_eq!(server.ended().closed_draining, 1);
        start.elapsed()
    };
    // To linger takes 2 s where nothing bounds it. A machine that is busy may take longer once.
    assert!((0..3).any(|_| drained() < Duration::from_millis(1_900)));
}

fn a_drain_of_no_time_ends_at_once(design: Design) {
    let server = TestServer::start(limited(design, |limits| limits.drain_timeout = Duration::ZERO));
    let mut client = server.connect();
    client.exchange(b"hello");
    server.drain();
    assert_eq!(server.ended().closed_draining, 1);
    client.expect_end();
}

fn to_abort_a_drain_ends_it_at_once(design: Design) {
    let drain_timeout = Duration::from_secs(3_600);
    let server = TestServer::start(limited(design, |limits| limits.drain_timeout = drain_timeout));
    let mut client = server.connect();
    client.exchange(b"hello");
    server.drain();
    client.exchange(b"still here");
    server.drain();
    client.exchange(b"and still here");
    server.abort();
    server.ended();
    client.expect_end();
}

fn to_abort_cuts_who_does_not_read(design: Design) {
    let drain_timeout = Duration::from_secs(3_600);
    let server = TestServer::start(limited(design, |limits| limits.drain_timeout = drain_timeout));
    let mut client = Client::connect_with(server.address(), None, Some(4 << 10));
    client.fill();
    server.abort();
    server.ended();
    // Ends, one way or the other.
    while matches!(client.0.read(&mut [0; 4_096]), Ok(1..)) {}
}

fn a_port_in_use_is_an_error(design: Design) {
    let server = TestServer::start(of(design));
    let port = server.address().port();
    let mut config = of(design);
    config.port = port;
    let error = Server::bind(config).unwrap_err();
    // Whoever prints the cause as well prints nothing twice.
    let cause = std::error::Error::source(&error).unwrap().to_string();
    let error = error.to_string();
    assert!(!error.contains(&cause), "{error}");
    assert!(error.contains("another socket has that port"), "{error}");
}
