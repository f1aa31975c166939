//! Who waits for whom: a handful of clients at once, of which the first is slow.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use serde::Serialize;

use super::report::Report;
use super::trial::{exchange, start};
use super::{Config, Contender};
use crate::client::Cancel;
use crate::client::cancel::Deadline;
use crate::client::plot::{self, Block, Row};
use crate::client::socket;
use crate::error::Transport;
use crate::units;

/// The clients.
const CLIENTS: [&str; 6] =
    ["slow client", "client 2", "client 3", "client 4", "client 5", "client 6"];
/// The messages of each.
const MESSAGES: u32 = 5;
/// How much longer the slow one takes.
const SLOWER: u32 = 10;

/// How clients of a server waited for one another.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Waits {
    /// The server's name.
    pub server: String,
    /// The clients, in the order in which they connected. The first is the slow one.
    pub clients: Vec<Visit>,
    /// Why there are none.
    pub fault: Option<String>,
}

/// What a client saw, and when, in seconds since all of them began to connect.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Visit {
    /// When each reply had come.
    pub replies: Vec<f64>,
    /// When it closed, or gave up.
    pub left: f64,
    /// Why it gave up, where it did.
    pub fault: Option<String>,
}

/// Lets clients visit each server, once. Each connects, sends messages, with a pause after each reply, and closes.
/// The slow one takes as long as a trial, and the others a tenth of that.
///
/// Over UDP, where a server knows no clients, there are none. After `cancel` it has the servers before. Call it from a thread that lives on: the servers end with it.
pub fn waits(config: &Config, cancel: &Cancel) -> Vec<Waits> {
    let waits = config.contenders.iter().map(|contender| wait(config, contender, cancel));
    let waits = waits.take_while(|_| !cancel.is_cancelled());
    if config.transport == Transport::Tcp { waits.collect() } else { vec![] }
}

fn wait(config: &Config, contender: &Contender, cancel: &Cancel) -> Waits {
    // Each may have to wait for all others.
    let patience = config.timeout.saturating_add(config.time.saturating_mul(2));
    let clients = start(config, contender, cancel).map_err(|error| error.to_string());
    let clients = clients.and_then(|server| {
        let visits = visits(config, server.address(), cancel.within(patience));
        visits.map_err(|error| format!("no thread for a client: {error}"))
    });
    let fault = clients.as_ref().err().cloned();
    Waits { server: contender.name.clone(), clients: clients.unwrap_or_default(), fault }
}

/// All connect in order before one of them sends, so that the slow one is the first in the server's queue.
fn visits(config: &Config, address: SocketAddr, deadline: Deadline<'_>) -> io::Result<Vec<Visit>> {
    let (pause, begin) = (config.time / MESSAGES, Instant::now());
    let streams = CLIENTS.map(|_| socket::begin_tcp(address, None));
    thread::scope(|scope| {
        let visits = streams.into_iter().zip(0..).map(|(stream, index)| {
            let pause = if index == 0 { pause } else { pause / SLOWER };
            let visit = move || visit(config, stream, index, pause, begin, deadline);
            thread::Builder::new().spawn_scoped(scope, visit)
        });
        let visits = visits.collect::<io::Result<Vec<_>>>()?;
        Ok(visits.into_iter().map(|visit| visit.join().unwrap_or_default()).collect())
    })
}

fn visit(
    config: &Config,
    stream: io::Result<TcpStream>,
    index: u32,
    pause: Duration,
    begin: Instant,
    deadline: Deadline<'_>,
) -> Visit {
    let mut replies = Vec::new();
    let talked = stream.and_then(|mut stream| {
        if !deadline.is_ready(&stream, PollFlags::POLLOUT)? {
            return Err(ErrorKind::TimedOut.into());
        }
        for _ in 0..MESSAGES {
            exchange(&mut stream, index, config.replies(), deadline)?;
            replies.push(begin.elapsed().as_secs_f64());
            deadline.cancel.sleep(pause);
        }
        Ok(stream)
    });
    // The next client's turn comes only as the stream is dropped.
    let left = begin.elapsed().as_secs_f64();
    let fault = talked.err().map(|error| match error.kind() {
        ErrorKind::TimedOut => "no reply came".to_owned(),
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
            "the connection was closed".to_owned()
        }
        _ => error.to_string(),
    });
    Visit { replies, left, fault }
}

/// Draws who waited for whom, as SVG: a row for each client, with time to the right. `None` without clients.
pub fn waits_svg(report: &Report, waits: &[Waits]) -> Option<String> {
    let names = ["waits", "is served", "is served, and slow"];
    let blocks: Vec<Block> = waits.iter().filter_map(block).collect();
    let label = |seconds| match seconds {
        0.0 => "0".to_owned(),
        _ => units::time(Duration::from_secs_f64(seconds)).to_string(),
    };
    let pause = Duration::from_secs_f64(report.seconds) / MESSAGES;
    let fault = |Waits { server, clients, fault }: &Waits| {
        let mut clients = clients.iter().zip(CLIENTS);
        let client = clients.find_map(|(client, name)| {
            Some(format!("{server}, {name}: {}.", client.fault.as_ref()?))
        });
        client.or_else(|| Some(format!("{server}: {}.", fault.as_ref()?)))
    };
    let how = [
        format!(
            "Each client connects, sends {MESSAGES} messages, one after the other, and closes. A notch is a \
             reply."
        ),
        format!(
            "After each reply the slow client pauses for {}, the others for {}.",
            units::time(pause),
            units::time(pause / SLOWER)
        ),
        format!("Measured once, by evecho {}.", report.version),
    ];
    let notes: Vec<String> = waits.iter().filter_map(fault).chain(how).collect();
    let title = "Who waits for whom: six clients at once, the first of them slow";
    let across = ("time since they connected", label as fn(f64) -> String);
    (!blocks.is_empty()).then(|| plot::rows(title, &names, &blocks, across, &notes))
}

fn block(waits: &Waits) -> Option<Block> {
    let row = |(client, name): (&Visit, _)| {
        let served = if name == CLIENTS[0] { 2 } else { 1 };
        let mut bars = vec![(0, [0.0, client.replies.first().copied().unwrap_or(client.left)])];
        bars.extend(client.replies.first().map(|first| (served, [*first, client.left])));
        Row { name, bars, notches: client.replies.clone() }
    };
    let rows: Vec<Row> = waits.clients.iter().zip(CLIENTS).map(row).collect();
    (!rows.is_empty()).then(|| Block { title: waits.server.clone(), rows })
}
