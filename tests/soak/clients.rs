//! Clients of every kind, all at once.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use evecho::Transport;
use evecho::client::Cancel;
use evecho::client::load::{self, Config, Errors, Length, Mode};
use socket2::SockRef;

use crate::daemon::{DEADLINE, connect, read_to_end};

/// The servers.
pub(crate) struct Who {
    pub(crate) plain: SocketAddr,
    pub(crate) lines: SocketAddr,
    pub(crate) impaired: SocketAddr,
    /// TCP and UDP, kept while a server is replaced.
    pub(crate) kept: [SocketAddr; 2],
}

/// What the clients did in a storm.
#[derive(Default)]
pub(crate) struct Done {
    pub(crate) connections: u64,
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    /// Answers of the impaired server that were missing, wrong, late or too many.
    pub(crate) impaired: u64,
    /// Servers that were replaced meanwhile.
    pub(crate) replaced: u64,
}

/// A storm of them.
pub(crate) struct Storm {
    pub(crate) who: Who,
    pub(crate) time: Duration,
}

/// So many clients do not read, or say nothing.
const SILENT: usize = 20;
/// Clients of one kind one after the other: so many a second, for what each of them leaves behind.
const PACE: Duration = Duration::from_millis(5);

impl Storm {
    /// Ends when all have ended; panics when somebody who behaved did not get what was due.
    pub(crate) fn rage(&self) -> Done {
        let end = Instant::now() + self.time;
        let Who { plain, lines, impaired, .. } = self.who;
        thread::scope(|scope| {
            let loads: Vec<_> =
                self.loads().into_iter().map(|load| scope.spawn(move || load.run())).collect();
            let others = [
                scope.spawn(move || never_read(plain, end)),
                scope.spawn(move || never_read(lines, end)),
                scope.spawn(move || never_read(impaired, end)),
                scope.spawn(move || reset(plain, end)),
                scope.spawn(move || reset(lines, end)),
                scope.spawn(move || half_close(plain, end)),
                scope.spawn(move || half_close(impaired, end)),
                scope.spawn(move || ask_in_lines(lines, end)),
                scope.spawn(move || break_the_framing(lines, end)),
            ];
            let mut done = Done::default();
            for load in loads {
                done.add(&load.join().expect("the load does not panic"));
            }
            for client in others {
                done.connections += client.join().expect("it got what was due");
            }
            done
        })
    }

    fn loads(&self) -> Vec<Load> {
        let Who { plain, impaired, kept: [kept_tcp, kept_udp], .. } = self.who;
        let load = |transport, address, change: fn(&mut Config)| {
            let mut config = Config::new(transport, address);
            config.length = Length::Time(self.time);
            // A busy machine is slow, but loses nothing.
            config.timeout = DEADLINE;
            config.connections = 10;
            change(&mut config);
            Load { config, impaired: false }
        };
        let mut loads = vec![
            load(Transport::Tcp, plain, |config| config.rate = Some(500.0)),
            load(Transport::Tcp, plain, |config| {
                (config.mode, config.rate) = (Mode::Churn, Some(200.0));
            }),
            load(Transport::Tcp, plain, |config| {
                (config.mode, config.connections) = (Mode::Idle, 300)
            }),
            load(Transport::Udp, plain, |config| (config.size, config.rate) = (1_400, Some(500.0))),
            load(Transport::Tcp, impaired, |config| config.rate = Some(200.0)),
            load(Transport::Udp, impaired, |config| {
                (config.rate, config.timeout) = (Some(200.0), Duration::from_millis(100));
            }),
            load(Transport::Tcp, kept_tcp, |config| {
                (config.mode, config.rate) = (Mode::Churn, Some(100.0));
            }),
            load(Transport::Udp, kept_udp, |config| config.rate = Some(100.0)),
            // As fast as possible: a part of the time is enough.
            load(Transport::Tcp, plain, |config| {
                (config.mode, config.connections, config.size) = (Mode::Stream, 2, 64 << 10);
                config.length = Length::Messages(2_000);
            }),
        ];
        let lossy = |load: &&mut Load| {
            load.config.address == impaired && load.config.transport == Transport::Udp
        };
        loads.iter_mut().filter(lossy).for_each(|load| load.impaired = true);
        loads
    }
}

impl Done {
    pub(crate) fn add(&mut self, other: &Done) {
        self.connections += other.connections;
        self.messages += other.messages;
        self.bytes += other.bytes;
        self.impaired += other.impaired;
        self.replaced += other.replaced;
    }
}

struct Load {
    config: Config,
    /// Whether the server loses on purpose.
    impaired: bool,
}

impl Load {
    fn run(&self) -> Done {
        let report = load::run(&self.config, &Cancel::default(), |_| {}).unwrap();
        assert!(report.messages > 0, "nothing came back: {:?}", report.first_error);
        let wrong: u64 = report.errors.kinds().iter().map(|(_, count)| count).sum();
        assert!(self.impaired || report.errors == Errors::default(), "{:?}", report.first_error);
        let connections =
            if self.config.mode == Mode::Churn { report.messages } else { report.opened.into() };
        let connections = if self.config.transport == Transport::Tcp { connections } else { 0 };
        Done {
            connections,
            messages: report.messages,
            bytes: report.bytes,
            impaired: wrong,
            replaced: 0,
        }
    }
}

/// Again and again, until the end; how often.
fn again(end: Instant, mut client: impl FnMut(usize)) -> u64 {
    let mut count = 0;
    while Instant::now() < end {
        client(count);
        count += 1;
        thread::sleep(PACE);
    }
    count as u64
}

/// They send until nothing fits any more, and hold on. Half of them then read all of it; the others just go.
fn never_read(address: SocketAddr, end: Instant) -> u64 {
    let clients: Vec<TcpStream> = (0..SILENT).map(|_| connect(address)).collect();
    let filled: Vec<usize> = clients.iter().map(fill).collect();
    thread::sleep(end.saturating_duration_since(Instant::now()));
    for (client, sent) in clients.iter().zip(filled).step_by(2) {
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(client).len(), sent, "all that was sent comes back");
    }
    SILENT as u64
}

/// Sends lines until the server takes no more; how many bytes it took.
fn fill(mut client: &TcpStream) -> usize {
    let lines = b"0123456789ABCDE\n".repeat(4 << 10);
    client.set_nonblocking(true).unwrap();
    let (mut sent, mut full) = (0, 0);
    // The server's own buffers fill up later than ours.
    while full < 20 {
        match client.write(&lines[sent % lines.len()..]) {
            Ok(length) => (sent, full) = (sent + length, 0),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                full += 1;
                thread::sleep(PACE);
            }
            Err(error) => panic!("{error}"),
        }
    }
    client.set_nonblocking(false).unwrap();
    sent
}

/// They send something, and reset the connection.
fn reset(address: SocketAddr, end: Instant) -> u64 {
    again(end, |count| {
        let mut client = connect(address);
        client.write_all(&vec![b'\n'; count % 5_000]).unwrap();
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    })
}

/// They send all, end their side, and then read: all of it, or nothing.
fn half_close(address: SocketAddr, end: Instant) -> u64 {
    again(end, |count| {
        let mut client = connect(address);
        let message = vec![b'm'; count % 3_000];
        client.write_all(&message).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        if count % 3 != 0 {
            assert!(read_to_end(&client) == message, "all that was sent comes back");
        }
    })
}

/// They send lines, cut at any byte.
fn ask_in_lines(address: SocketAddr, end: Instant) -> u64 {
    let mut client = connect(address);
    again(end, |count| {
        let line = format!("größe {count}\n");
        let (begin, rest) = line.as_bytes().split_at(count % line.len());
        client.write_all(begin).unwrap();
        client.write_all(rest).unwrap();
        let expected = format!("GRÖSSE {count}\n");
        let mut answer = vec![0; expected.len()];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(String::from_utf8(answer).unwrap(), expected);
        // A new connection now and then.
        if count % 100 == 99 {
            client = connect(address);
        }
    });
    1
}

/// They send a line that is too long, or leave in the middle of one.
fn break_the_framing(address: SocketAddr, end: Instant) -> u64 {
    again(end, |count| {
        let mut client = connect(address);
        let length = if count % 2 == 0 { 70_000 } else { 100 };
        // The server may have closed it by now.
        let _ = client.write_all(&vec![b'x'; length]);
    })
}
