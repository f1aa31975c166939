//! The event loop at its limits: who waits, who is refused, who is not answered, and that nobody
//! else notices.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{
    Client, LOCALHOST, TestServer, config_with, exchange_datagram, pattern, udp, wait_until,
};
use evecho::{Config, Framing, Limits, Server, Snapshot};
use socket2::{Domain, SockRef, Socket, Type};

fn limited(limit: impl FnOnce(&mut Limits)) -> TestServer {
    TestServer::start(config_with(|config| limit(&mut config.limits)))
}

/// All that makes it fast, switched on and off: segmentation offload, polling before a sleep.
fn fast_and_plain(test: impl Fn(&TestServer)) {
    let fast = config_with(|config| config.bind = vec![]);
    let mut plain = fast.clone();
    (plain.udp_offload, plain.busy_poll) = (false, Duration::ZERO);
    for how in [fast, plain] {
        let server = TestServer::start(how);
        test(&server);
    }
}

fn local(server: &TestServer) -> SocketAddr {
    SocketAddr::new(LOCALHOST, server.address().port())
}

// ---- connections

#[test]
fn over_the_limit_clients_wait_and_are_served_without_a_new_event() {
    let server = limited(|limits| limits.max_connections = NonZeroUsize::new(2));
    let mut clients: Vec<Client> = (0..6).map(|_| server.connect()).collect();
    clients.iter_mut().for_each(|client| client.send(b"hello"));
    server.wait_for("a pause of accept", |stats| stats.accept_pauses > 0);
    assert_eq!(server.stats().open(), 2);
    for client in &mut clients {
        client.expect(b"hello");
        client.half_close();
        assert_eq!(client.rest(), b"");
    }
    assert_eq!(server.stop().accepted, 6);
}

#[test]
fn one_source_may_have_so_many_connections() {
    let server = limited(|limits| limits.per_source_connections = NonZeroUsize::new(2));
    let (mut first, mut second) = (server.connect(), server.connect());
    first.exchange(b"first");
    second.exchange(b"second");
    server.connect().expect_end();
    let elsewhere = Some(IpAddr::from([127, 0, 0, 2]));
    Client::connect_with(server.address(), elsewhere, None).exchange(b"another source");
    drop(first);
    server.wait_for("one that left", |stats| stats.closed() >= 2);
    server.connect().exchange(b"a place that is free again");
    second.exchange(b"still here");
    drop(second);
    assert_eq!(server.stop().refused, 1);
}

#[test]
fn floods_leave_room_for_others() {
    let server = TestServer::start(Config::loopback());
    let (address, over) = (server.address(), &AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(move || {
                let mut flood = Client::connect(address);
                let block = pattern(7, 64 << 10);
                while !over.load(Ordering::Relaxed) {
                    flood.exchange(&block);
                }
            });
        }
        server.wait_for("a flood", |stats| stats.bytes_in > 1 << 20);
        // A server that reads a flood to its end would never come to these.
        let (mut client, socket) = (server.connect(), server.udp());
        for round in 0..200_u64 {
            client.exchange(&round.to_be_bytes());
            exchange_datagram(&socket, &round.to_be_bytes());
        }
        over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_client_that_never_reads_stops_nobody() {
    let server = TestServer::start(Config::loopback());
    let mut silent = server.connect();
    let sent = silent.fill();
    for round in 0..100_u64 {
        server.connect().exchange(&round.to_be_bytes());
    }
    // And it loses nothing by having waited.
    let mut expected = pattern(0, 64 << 10).repeat(sent / (64 << 10) + 1);
    expected.truncate(sent);
    silent.half_close();
    common::assert_same(&silent.rest(), &expected);
}

#[test]
fn an_idle_connection_is_closed_by_a_fin() {
    let config = config_with(|config| {
        config.limits.idle_timeout = Some(Duration::from_millis(50));
    });
    let server = Server::bind(config).unwrap();
    let mut client = Client::connect(server.local_addrs()[0]);
    // It is there when the server begins, however long this thread stands still.
    client.send(b"hello");
    let server = TestServer::of(server);
    assert_eq!(client.rest(), b"hello");
    drop(client);
    server.wait_for("its end", |stats| stats.closed_idle == 1);
}

#[test]
fn a_frame_too_long_ends_in_a_fin_while_the_client_still_sends() {
    let server = TestServer::start(config_with(|config| {
        config.protocol.framing = Framing::LengthPrefixed;
        config.protocol.max_frame = 1000;
    }));
    let mut client = server.connect();
    let mut input = b"\0\0\0\x05hello\0\0\x04\0".to_vec();
    // What follows the broken frame is dropped, and must not cost the client its answer.
    input.extend(pattern(3, 500_000));
    client.send(&input);
    assert_eq!(client.rest(), b"\0\0\0\x05hello");
    drop(client);
    server.wait_for("its end", |stats| stats.closed_by_frame_error == 1);
}

#[test]
fn resets_end_nothing_but_themselves() {
    let server = TestServer::start(Config::loopback());
    let mut other = server.connect();
    for round in 0..50_u64 {
        let mut client = server.connect();
        if round % 2 == 0 {
            client.exchange(b"hello");
        } else {
            client.send(&pattern(round, 100_000));
        }
        client.reset();
        other.exchange(&round.to_be_bytes());
    }
    server.wait_for("all ends", |stats| stats.closed() == 50);
}

// ---- where it listens

#[test]
fn each_address_may_have_a_port_of_its_own() {
    let server = TestServer::start(config_with(|config| {
        config.bind = ["127.0.0.1", "127.0.0.2:0", "127.0.0.3"].map(|a| a.parse().unwrap()).into();
    }));
    let ports: Vec<u16> = server.local_addrs().iter().map(SocketAddr::port).collect();
    // Three listeners, and each UDP socket where one of them is.
    assert_eq!((ports.len(), ports[0]), (3, ports[2]));
    for &address in server.local_addrs() {
        Client::connect(address).exchange(b"hello");
        exchange_datagram(&udp(address), b"hello");
    }
}

#[test]
fn sockets_bound_elsewhere_are_served_as_if_bound_here() {
    for any in [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()] {
        let listener = TcpListener::bind((any, 0)).unwrap();
        let (address, datagrams) =
            (listener.local_addr().unwrap(), UdpSocket::bind((any, 0)).unwrap());
        let udp_port = datagrams.local_addr().unwrap().port();
        // By what they are, not by their order.
        let sockets = [OwnedFd::from(datagrams), listener.into()];
        let server = TestServer::of(Server::adopt(Config::default(), sockets).unwrap());
        let mut client = Client::connect((LOCALHOST, address.port()).into());
        client.exchange(b"hello");
        // The reply leaves from the address that was asked: that option is set again.
        let elsewhere = SocketAddr::new([127, 0, 0, 2].into(), udp_port);
        exchange_datagram(&udp(elsewhere), b"hello");
        SockRef::from(&client.0).send_out_of_band(b"!").unwrap();
        client.expect(b"!");
        drop(client);
        assert_eq!(server.stop().accepted, 1);
    }
}

#[test]
fn what_cannot_be_served_is_not_adopted() {
    let refused = |socket: OwnedFd, why: &str| {
        let error = Server::adopt(Config::default(), [socket]).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    };
    let new = |domain, kind| OwnedFd::from(Socket::new(domain, kind, None).unwrap());
    refused(new(Domain::UNIX, Type::STREAM), "neither IPv4 nor IPv6");
    refused(new(Domain::IPV4, Type::STREAM), "not bound");
    refused(new(Domain::IPV6, Type::DGRAM), "not bound");
    let socket = UdpSocket::bind((LOCALHOST, 0)).unwrap();
    socket.connect((LOCALHOST, 9)).unwrap();
    refused(socket.into(), "connected");
    refused(std::fs::File::open("/dev/null").unwrap().into(), "cannot be read");
    let none = Server::adopt(Config::default(), []).unwrap_err().to_string();
    assert!(none.contains("there is none"), "{none}");
    assert!(Server::adopt(Config::default(), []).is_err());
}

// ---- datagrams

#[test]
fn a_datagram_is_answered_by_its_like() {
    fast_and_plain(|server| {
        let socket = udp(local(server));
        for length in [0, 1, 2, 511, 1_472, 1_473, 9_000, 40_000, 65_506, 65_507] {
            exchange_datagram(&socket, &pattern(length as u64, length));
        }
    });
}

#[test]
fn boundaries_are_kept_in_bursts_of_any_sizes() {
    fast_and_plain(|server| {
        let socket = udp(local(server));
        for seed in 0..40_u64 {
            // Runs of one size, shorter ones between them, and empty ones.
            let size = [64, 1_400, 9, 3_000][seed as usize % 4];
            let burst: Vec<Vec<u8>> = (0..24_u64)
                .map(|n| {
                    pattern(
                        seed * 100 + n,
                        [size, size, size, size / 2, 0][(n * (seed + 1)) as usize % 5],
                    )
                })
                .collect();
            burst
                .iter()
                .for_each(|datagram| assert_eq!(socket.send(datagram).unwrap(), datagram.len()));
            let mut room = vec![0; 65_536];
            for datagram in &burst {
                let length = socket.recv(&mut room).unwrap();
                common::assert_same(&room[..length], datagram);
            }
        }
    });
}

#[cfg(target_os = "linux")]
#[test]
fn segments_that_come_joined_go_back_apart() {
    fast_and_plain(|server| {
        let socket = udp(local(server));
        for (segment, length) in
            [(100_u16, 1_000), (100, 1_050), (1_400, 64_400), (1, 60), (999, 1_000)]
        {
            nix::sys::socket::setsockopt(
                &socket,
                nix::sys::socket::sockopt::UdpGsoSegment,
                &i32::from(segment),
            )
            .unwrap();
            let bytes = pattern(length as u64, length);
            assert_eq!(socket.send(&bytes).unwrap(), length);
            let mut room = vec![0; 65_536];
            for datagram in bytes.chunks(segment.into()) {
                let received = socket.recv(&mut room).unwrap();
                common::assert_same(&room[..received], datagram);
            }
        }
    });
}

#[test]
fn the_reply_leaves_from_the_address_that_was_asked() {
    fast_and_plain(|server| {
        let port = server.address().port();
        for (ip, any) in [
            (IpAddr::from([127, 0, 0, 2]), IpAddr::from(Ipv4Addr::UNSPECIFIED)),
            (IpAddr::from([127, 0, 0, 3]), Ipv4Addr::UNSPECIFIED.into()),
            (Ipv6Addr::LOCALHOST.into(), Ipv6Addr::UNSPECIFIED.into()),
        ] {
            // Not connected: it would also take a reply from elsewhere.
            let socket = UdpSocket::bind((any, 0)).unwrap();
            socket.set_read_timeout(Some(common::DEADLINE)).unwrap();
            // Two in a row may leave as one run.
            for _ in 0..2 {
                socket.send_to(b"hello", (ip, port)).unwrap();
            }
            for _ in 0..2 {
                let mut room = [0; 16];
                let (length, from) = socket.recv_from(&mut room).unwrap();
                assert_eq!((&room[..length], from), (&b"hello"[..], (ip, port).into()));
            }
        }
    });
}

#[test]
fn senders_that_are_gone_change_nothing() {
    fast_and_plain(|server| {
        // First, so that it does not get the port of a sender that is gone, and then its answer.
        let still_there = udp(local(server));
        for _ in 0..50 {
            udp(local(server)).send(b"nobody waits for the answer").unwrap();
        }
        exchange_datagram(&still_there, b"still there");
        server.wait_for("an answer to all", |stats| stats.udp_answered == 51);
    });
}

#[test]
fn a_guarded_port_is_not_answered() {
    let guarded = UdpSocket::bind((LOCALHOST, 0)).unwrap();
    let port = guarded.local_addr().unwrap().port();
    let server = limited(|limits| limits.guard_ports = port.to_string().parse().unwrap());
    guarded.send_to(b"hello", server.address()).unwrap();
    // Once the next is answered, the first was dealt with.
    exchange_datagram(&server.udp(), b"hello");
    server.wait_for("the one to be answered", |stats| stats.udp_answered > 0);
    let Snapshot { udp_guarded, udp_answered, .. } = server.stats();
    assert_eq!((udp_guarded, udp_answered), (1, 1));
}

/// Sends a datagram from wherever it says; false where the machine does not let us (raw(7)).
fn spoof(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> bool {
    // IPPROTO_RAW: the packet comes with its IP header.
    let socket = match Socket::new(Domain::IPV4, Type::RAW, Some(255.into())) {
        Ok(socket) => socket,
        Err(error) => {
            println!("skipped: a raw socket needs CAP_NET_RAW: {error}");
            return false;
        }
    };
    let udp_length = 8 + payload.len() as u16;
    let mut packet = vec![0x45, 0];
    packet.extend((20 + udp_length).to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    packet.extend(from.ip().octets());
    packet.extend(to.ip().octets());
    packet.extend(from.port().to_be_bytes());
    packet.extend(to.port().to_be_bytes());
    packet.extend(udp_length.to_be_bytes());
    // No checksum, as RFC 768 allows.
    packet.extend([0, 0]);
    packet.extend(payload);
    socket.send_to(&packet, &SocketAddr::from(to).into()).unwrap();
    true
}

#[test]
fn spoofed_datagrams_begin_no_loop() {
    fast_and_plain(|server| {
        let port = server.address().port();
        let ours = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        let sources = [
            ours,
            SocketAddrV4::new([127, 0, 0, 2].into(), port),
            SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0),
            SocketAddrV4::new(Ipv4Addr::LOCALHOST, 7),
            SocketAddrV4::new(Ipv4Addr::LOCALHOST, 19),
        ];
        for source in sources {
            if !spoof(source, ours, b"to whom?") {
                return;
            }
        }
        server.wait_for("all of them", |stats| stats.udp_received == 5);
        exchange_datagram(&udp(local(server)), b"hello");
        server.wait_for("the one to be answered", |stats| stats.udp_answered > 0);
        let Snapshot { udp_received, udp_answered, udp_guarded, .. } = server.stats();
        assert_eq!((udp_received, udp_answered, udp_guarded), (6, 1, 5));
    });
}

#[test]
fn a_full_socket_of_a_peer_blocks_nobody() {
    fast_and_plain(|server| {
        // Never read: what does not fit is the peer's loss (udp(7)).
        let deaf = udp(local(server));
        for _ in 0..2_000 {
            deaf.send(&[7; 1_400]).unwrap();
        }
        let socket = udp(local(server));
        let mut answered = false;
        for attempt in 0..100_u8 {
            // The server's own queue may be full of the others for a moment.
            socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            socket.send(&[attempt; 32]).unwrap();
            answered |= socket.recv(&mut [0; 64]).is_ok();
            if answered {
                break;
            }
        }
        assert!(answered);
        let stats = server.stats();
        wait_until("all that came was answered", || {
            let stats = server.stats();
            stats.udp_answered + stats.udp_errors == stats.udp_received
        });
        assert!(stats.udp_received > 1);
    });
}
