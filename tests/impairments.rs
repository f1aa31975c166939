//! A server that makes its answers worse on purpose, and whether clients count what it did.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use common::{Client, TestServer, config_with, pattern};
use evecho::{Design, Impairments, Limits, Server, Snapshot, Transport};

const DESIGNS: [Design; 3] = [Design::EventLoop, Design::Threaded, Design::Iterative];

fn start(design: Design, impair: impl FnOnce(&mut Impairments)) -> TestServer {
    TestServer::start(config_with(|config| {
        config.design = design;
        config.transport = Some(Transport::Udp);
        impair(&mut config.impairments);
    }))
}

/// What comes back for each of `count` datagrams: asked one by one, so that none is lost elsewhere. The
/// server has no delay.
fn fates(server: &TestServer, count: u64) -> Vec<Vec<Vec<u8>>> {
    let (socket, mut answered) = (server.udp(), 0);
    (0..count)
        .map(|number| {
            socket.send(&number.to_be_bytes()).unwrap();
            // Counted when all of them have left. A snapshot may be taken while the counters change; not the
            // second one, too.
            for _ in 0..2 {
                server.wait_for("a reply", |stats| {
                    let due = stats.udp_received + stats.udp_duplicated;
                    stats.udp_received == number + 1 && stats.udp_answered + stats.udp_lost == due
                });
            }
            let before = std::mem::replace(&mut answered, server.stats().udp_answered);
            (before..answered).map(|_| received(&socket)).collect()
        })
        .collect()
}

fn received(socket: &UdpSocket) -> Vec<u8> {
    let mut room = [0; 2_048];
    let length = socket.recv(&mut room).unwrap();
    room[..length].to_vec()
}

#[test]
fn the_same_seed_does_the_same_again() {
    let impair = |seed| {
        move |impairments: &mut Impairments| {
            impairments.loss = "20%".parse().unwrap();
            impairments.duplicate = "10%".parse().unwrap();
            impairments.corrupt = "5%".parse().unwrap();
            impairments.seed = Some(seed);
        }
    };
    let first = fates(&start(Design::EventLoop, impair(7)), 500);
    for design in DESIGNS {
        assert_eq!(fates(&start(design, impair(7)), 500), first, "{design}");
    }
    assert_ne!(fates(&start(Design::EventLoop, impair(8)), 500), first);
}

/// Whether so many are as many as they are to be, but for one case in a thousand.
fn is_probable(happened: u64, tries: u64, probability: f64) -> bool {
    let mean = tries as f64 * probability;
    (happened as f64 - mean).abs() <= 3.29 * (mean * (1.0 - probability)).sqrt()
}

#[test]
fn each_thing_happens_as_often_as_it_says_and_is_counted() {
    for design in DESIGNS {
        let server = start(design, |impairments| {
            impairments.loss = "20%".parse().unwrap();
            impairments.duplicate = "10%".parse().unwrap();
            impairments.corrupt = "5%".parse().unwrap();
            impairments.seed = Some(1);
        });
        let fates = fates(&server, 1_000);
        let stats = server.stop();
        assert!(is_probable(stats.udp_lost, 1_000, 0.2), "{stats}");
        assert!(is_probable(stats.udp_duplicated, 1_000, 0.1), "{stats}");
        let copies = 1_000 + stats.udp_duplicated - stats.udp_lost;
        assert!(is_probable(stats.udp_corrupted, copies, 0.05), "{stats}");
        // And the client saw that, and nothing else.
        let all: Vec<(u64, &Vec<u8>)> = (0..)
            .zip(&fates)
            .flat_map(|(number, copies)| copies.iter().map(move |copy| (number, copy)))
            .collect();
        assert_eq!((all.len() as u64, stats.udp_answered), (copies, copies), "{design}");
        let bits = |(number, copy): &(u64, &Vec<u8>)| {
            let sent = number.to_be_bytes();
            assert_eq!(copy.len(), sent.len());
            copy.iter().zip(sent).map(|(a, b)| (a ^ b).count_ones()).sum::<u32>()
        };
        let wrong: Vec<u32> = all.iter().map(bits).filter(|&bits| bits > 0).collect();
        assert!(wrong.iter().all(|&bits| bits == 1), "one bit of each");
        assert_eq!(wrong.len() as u64, stats.udp_corrupted);
    }
}

#[test]
fn answers_are_held_back_and_come_whole() {
    const DELAY: Duration = Duration::from_millis(30);
    for design in DESIGNS {
        let server = start(design, |impairments| impairments.delay = DELAY);
        let socket = server.udp();
        let begin = Instant::now();
        for number in 0..50u8 {
            socket.send(&[number; 100]).unwrap();
        }
        let mut room = [0; 200];
        for number in 0..50 {
            assert_eq!(socket.recv(&mut room).unwrap(), 100);
            assert!(begin.elapsed() >= DELAY, "{design}: {:?}", begin.elapsed());
            assert_eq!(room[..100], [number; 100], "{design}");
        }
        // Those that are still held back when it is told to stop leave, too.
        socket.send(b"last").unwrap();
        server.wait_for("the last", |stats| stats.udp_received == 51);
        assert_eq!(server.stop().udp_answered, 51, "{design}");
        assert_eq!(socket.recv(&mut room).unwrap(), 4);
    }
}

/// A server that delays each reply by this, over TCP too where the design can.
fn delaying(design: Design, delay: Duration, limit: impl FnOnce(&mut Limits)) -> TestServer {
    TestServer::start(config_with(|config| {
        config.design = design;
        config.transport = Some(Transport::Udp).filter(|_| design != Design::EventLoop);
        config.impairments.delay = delay;
        limit(&mut config.limits);
    }))
}

#[test]
fn no_connection_is_idle_while_a_reply_is_due() {
    let config = config_with(|config| {
        config.impairments.delay = Duration::from_secs(1);
        config.limits.idle_timeout = Some(Duration::from_millis(50));
    });
    let server = Server::bind(config).unwrap();
    let [mut open, mut half_closed] = [(); 2].map(|()| Client::connect(server.local_addrs()[0]));
    // This is there when the server begins, however long this thread stands still.
    half_closed.send(b"last");
    half_closed.half_close();
    open.send(b"one");
    let server = TestServer::of(server);
    // The second one waits in the socket until the first has its reply.
    server.wait_for("the first", |stats| stats.bytes_in == 7);
    open.send(b"two");
    open.expect(b"onetwo");
    assert_eq!(half_closed.rest(), b"last");
    server.wait_for("the end", |stats| stats.closed_idle == 1 && stats.closed_by_peer == 1);
}

#[test]
fn a_drain_sends_what_is_due_at_the_latest_when_its_time_is_over() {
    for design in DESIGNS {
        let server = delaying(design, Duration::from_secs(60), |limits| {
            limits.drain_timeout = Duration::from_millis(200);
        });
        let socket = server.udp();
        for number in 0..100_u8 {
            socket.send(&[number; 100]).unwrap();
        }
        server.wait_for("the datagrams", |stats| stats.udp_received == 100);
        let mut client = None;
        if design == Design::EventLoop {
            let client = client.insert(server.connect());
            client.send(b"hello");
            server.wait_for("the bytes", |stats| stats.bytes_in == 5);
            // This waits in the socket.
            client.send(b"again");
        }
        assert_eq!(server.stats().udp_answered, 0, "{design}");
        let stats = server.stop();
        assert_eq!((stats.udp_answered, stats.udp_dropped), (100, 0), "{design}");
        let mut room = [0; 200];
        for number in 0..100 {
            assert_eq!(socket.recv(&mut room).unwrap(), 100, "{design}");
            assert_eq!(room[..100], [number; 100], "{design}");
        }
        if let Some(mut client) = client {
            assert_eq!(client.rest(), b"helloagain");
        }
    }
}

#[test]
fn what_does_not_wait_overtakes() {
    let server = start(Design::EventLoop, |impairments| {
        impairments.delay = Duration::from_millis(300);
        impairments.reorder = "30%".parse().unwrap();
        impairments.seed = Some(3);
    });
    let socket = server.udp();
    (0..100u8).for_each(|number| assert_eq!(socket.send(&[number]).unwrap(), 1));
    let mut room = [0; 8];
    let order: Vec<u8> = (0..100)
        .map(|_| {
            socket.recv(&mut room).unwrap();
            room[0]
        })
        .collect();
    let overtook = server.stop().udp_reordered as usize;
    assert!(is_probable(overtook as u64, 100, 0.3));
    // Two rows, each in order. A machine that stalls can mix them, and no number is missing.
    let mut sorted = order.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, (0..100).collect::<Vec<u8>>());
    assert_ne!(order, sorted);
}

#[test]
fn more_than_can_be_held_back_is_dropped_and_counted() {
    let server = start(Design::EventLoop, |impairments| {
        impairments.delay = Duration::from_secs(60);
    });
    let socket = server.udp();
    const COUNT: u64 = 400;
    // 16 MiB are some 260 of these.
    let long = vec![b'x'; 65_000];
    for number in 1..=COUNT {
        socket.send(&long).unwrap();
        server.wait_for("a datagram", |stats| stats.udp_received == number);
    }
    let dropped = COUNT - (16 << 20) / 65_000;
    server.wait_for("those that are dropped", |stats| stats.udp_overflowed >= dropped);
    let Snapshot { udp_overflowed, udp_answered, .. } = server.stats();
    assert_eq!((udp_answered, udp_overflowed), (0, dropped));
    server.abort();
    server.ended();
}

#[test]
fn a_stream_is_late_and_whole() {
    const DELAY: Duration = Duration::from_millis(30);
    let server = TestServer::start(config_with(|config| {
        config.impairments.delay = DELAY;
        config.impairments.jitter = DELAY / 3;
    }));
    let mut client = server.connect();
    for _ in 0..3 {
        let begin = Instant::now();
        client.exchange(b"hello");
        assert!(begin.elapsed() >= DELAY * 2 / 3, "{:?}", begin.elapsed());
    }
    // More than is held back at a time, from several clients, and the end in its place.
    let clients: Vec<_> = (0..4)
        .map(|seed| {
            let mut client = server.connect();
            std::thread::spawn(move || {
                let bytes = pattern(seed, 3 << 20);
                let mut sender = Client(client.0.try_clone().unwrap());
                let sent = bytes.clone();
                let sending = std::thread::spawn(move || {
                    sender.send(&sent);
                    sender.half_close();
                });
                client.expect(&bytes);
                assert_eq!(client.rest(), b"");
                sending.join().unwrap();
            })
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().unwrap());
    client.half_close();
    assert_eq!(client.rest(), b"");
    let stats = server.stop();
    assert_eq!((stats.closed_by_peer, stats.closed()), (5, 5), "{stats}");
}

#[test]
fn a_stream_that_is_reset_while_it_is_late_is_over() {
    let server = TestServer::start(config_with(|config| {
        config.impairments.delay = Duration::from_millis(20);
    }));
    for _ in 0..10 {
        let mut client = server.connect();
        client.send(b"hello");
        client.reset();
    }
    server.wait_for("the end of all", |stats| stats.accepted == 10 && stats.open() == 0);
}

#[test]
fn what_cannot_be_done_is_refused_in_a_sentence() {
    let refusal = |change: &dyn Fn(&mut evecho::Config)| {
        Server::bind(config_with(|config| change(config))).unwrap_err().to_string()
    };
    let loss = |config: &mut evecho::Config| {
        config.transport = Some(Transport::Tcp);
        config.impairments.loss = "30%".parse().unwrap();
    };
    assert!(refusal(&loss).contains("TCP sends again what is lost"), "{}", refusal(&loss));
    let threads = |config: &mut evecho::Config| {
        config.design = Design::Threaded;
        config.impairments.delay = Duration::from_millis(1);
    };
    assert!(refusal(&threads).contains("the event loop"), "{}", refusal(&threads));
    let jitter = |config: &mut evecho::Config| {
        config.impairments.jitter = Duration::from_millis(1);
    };
    assert!(refusal(&jitter).contains("`jitter`"), "{}", refusal(&jitter));
}

/// The tools that count such things, held against a server that knows what it did.
#[cfg(feature = "client")]
mod clients {
    use evecho::Transport::Udp;
    use evecho::client::load::{self, Errors, Length};
    use evecho::client::{Cancel, ping};

    use super::common::DEADLINE;
    use super::*;

    fn ping(server: &TestServer, count: u64, wait: Duration) -> ping::Summary {
        let mut config = ping::Config::new(server.address().to_string().parse().unwrap());
        config.transport = Udp;
        config.count = Some(count);
        config.interval = Duration::from_millis(1);
        config.wait = wait;
        ping::run(&config, &Cancel::default(), |_| {}).unwrap()
    }

    #[test]
    fn ping_counts_what_was_lost() {
        let server = start(Design::EventLoop, |impairments| {
            impairments.loss = "20%".parse().unwrap();
            impairments.seed = Some(2);
        });
        let summary = ping(&server, 1_000, Duration::from_millis(500));
        let Snapshot { udp_lost: lost, udp_missed: missed, .. } = server.stop();
        assert!(is_probable(lost, 1_000, 0.2), "{lost}");
        // Where this machine stood still, an answer that came counts as lost, and as late; and the server's socket may
        // have had no room for a ping.
        assert_eq!(summary.lost - summary.late, lost + missed, "{summary:?}");
        assert_eq!((summary.sent, summary.received + summary.lost), (1_000, 1_000), "{summary:?}");
    }

    #[test]
    fn ping_counts_what_came_twice_and_what_came_wrong() {
        let server = start(Design::EventLoop, |impairments| {
            impairments.duplicate = "30%".parse().unwrap();
            impairments.seed = Some(3);
        });
        let summary = ping(&server, 300, DEADLINE);
        let duplicated = server.stop().udp_duplicated;
        // It ends with the first answer to the last ping.
        assert!((duplicated - 1..=duplicated).contains(&summary.duplicates), "{summary:?}");
        assert!(is_probable(duplicated, 300, 0.3), "{duplicated}");

        let server = start(Design::EventLoop, |impairments| {
            impairments.corrupt = "20%".parse().unwrap();
            impairments.seed = Some(4);
        });
        let summary = ping(&server, 300, DEADLINE);
        let corrupted = server.stop().udp_corrupted;
        assert_eq!(summary.corrupt, corrupted, "{summary:?}");
        assert_eq!(summary.received + summary.late, 300 - corrupted, "{summary:?}");
    }

    #[test]
    fn ping_counts_what_was_overtaken() {
        let server = start(Design::EventLoop, |impairments| {
            impairments.delay = Duration::from_millis(200);
            impairments.reorder = "10%".parse().unwrap();
            impairments.seed = Some(5);
        });
        let summary = ping(&server, 100, DEADLINE);
        let overtook = server.stop().udp_reordered;
        assert!(is_probable(overtook, 100, 0.1), "{overtook}");
        // Nobody overtakes who was overtaken: those have waited.
        assert!((1..=100 - overtook).contains(&summary.reordered), "{summary:?}");
        let times = summary.times.unwrap().latency;
        assert!(times.max >= Some(Duration::from_millis(200)), "{times:?}");
    }

    /// The faults that a load of 500 messages sees, and what the server did.
    fn faults(timeout: Duration, impair: impl FnOnce(&mut Impairments)) -> (Errors, Snapshot) {
        let server = start(Design::EventLoop, impair);
        let mut config = load::Config::new(Udp, server.address());
        config.connections = 4;
        config.depth = 16;
        config.length = Length::Messages(500);
        config.timeout = timeout;
        let report = load::run(&config, &Cancel::default(), |_| {}).unwrap();
        (report.errors, server.stop())
    }

    #[test]
    fn load_counts_what_was_lost_doubled_spoilt_and_overtaken() {
        let (errors, stats) = faults(Duration::from_secs(1), |impairments| {
            impairments.loss = "5%".parse().unwrap();
            impairments.seed = Some(1);
        });
        // As with ping.
        let lost = stats.udp_lost + stats.udp_missed;
        assert!(stats.udp_lost > 0 && errors.lost - errors.late == lost, "{errors:?} {stats}");

        let (errors, stats) = faults(DEADLINE, |impairments| {
            impairments.duplicate = "5%".parse().unwrap();
            impairments.seed = Some(1);
        });
        // A socket ends with the first answer to its last message, of which a second may follow.
        let seen = stats.udp_duplicated - 4..=stats.udp_duplicated;
        assert!(
            stats.udp_duplicated > 10 && seen.contains(&errors.duplicates),
            "{errors:?} {stats}"
        );

        let (errors, stats) = faults(DEADLINE, |impairments| {
            impairments.corrupt = "5%".parse().unwrap();
            impairments.seed = Some(1);
        });
        assert!(stats.udp_corrupted > 0, "{stats}");
        assert_eq!(errors.corrupt, stats.udp_corrupted, "{errors:?}");

        let (errors, stats) = faults(DEADLINE, |impairments| {
            impairments.delay = Duration::from_millis(20);
            impairments.reorder = "5%".parse().unwrap();
            impairments.seed = Some(1);
        });
        assert!(stats.udp_reordered > 0, "{stats}");
        assert!(
            (1..=stats.udp_received - stats.udp_reordered).contains(&errors.reordered),
            "{errors:?}"
        );

        let (errors, stats) = faults(DEADLINE, |impairments| {
            impairments.delay = Duration::from_millis(20);
        });
        assert_eq!((errors, stats.udp_reordered), (Errors::default(), 0));
    }
}
