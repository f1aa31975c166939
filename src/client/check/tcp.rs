//! The cases over TCP.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, Builder};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use super::Need::{Lasting, Served, Tcp};
use super::context::{Context, payload};
use super::seen::Expecting;
use super::stream::{Got, TcpClient, left};
use super::{Case, Group, case};
use crate::client::cancel::Deadline;
use crate::client::harness::{Stop, ensure};
use crate::client::states::Kernel;
use crate::units::{size, time};

pub(super) static CASES: &[Case] = &[
    case(Group::Tcp, "tcp-sizes", &[Tcp, Lasting])
        .rule("1 byte to 8 MiB come back exactly as they were sent")
        .source("RFC 862, TCP Based Echo Service")
        .run(|cx| {
            for length in [1, 2, 100, 1_460, 4_096, 65_535, 65_536, 65_537, 1 << 20, 8 << 20] {
                let expected = format!("{} come back as they were sent", size(length as u64));
                cx.connect()?.exchange(&payload(length as u32, length)).expecting(expected)?;
            }
            Ok(())
        }),
    case(Group::Tcp, "tcp-bytes", &[Tcp])
        .rule("all 256 byte values come back: no line ends, NULs or escapes are interpreted")
        .source("RFC 862, TCP Based Echo Service (\"any data received\")")
        .run(|cx| {
            for (count, expected) in [(128, ASCII_COMES_BACK), (256, REST_COMES_BACK)] {
                let bytes: Vec<u8> = (0..=255).take(count).cycle().take(4 * count).collect();
                cx.connect()?.converse(&bytes, &cx.answer(&bytes)).expecting(expected)?;
            }
            Ok(())
        }),
    case(Group::Tcp, "tcp-split", &[Tcp, Lasting])
        .rule("the answer does not depend on how the bytes were cut into segments")
        .source("RFC 9293 section 2.2 (a stream of bytes, no record boundaries)")
        .run(|cx| {
            let sizes = || (1..=200).chain(1..=200);
            let bytes = payload(1, sizes().sum());
            let mut client = cx.connect()?;
            client.exchange(&bytes[..1]).expecting("a single byte is answered")?;
            client
                .exchange(&bytes[1..2])
                .expecting("the connection goes on after its first message")?;
            for byte in bytes[2..500].chunks(1) {
                client.exchange(byte).expecting("each single byte is answered before the next")?;
            }
            // A server that takes one client at a time is not failed here.
            drop(client);
            let mut client = cx.connect()?;
            let mut unsent = &bytes[..];
            // Segments of many sizes, none of them waited for.
            for size in sizes() {
                let (piece, rest) = unsent.split_at(size);
                client.send(piece)?;
                unsent = rest;
            }
            client.converse(&[], &bytes).expecting("what was sent in pieces comes back whole")?;
            drop(client);
            for length in [100, 4_000] {
                if let Some(remark) = remark_on_nagle(cx.address(), length, cx.deadline)? {
                    cx.remark(remark);
                    break;
                }
            }
            Ok(())
        }),
    case(Group::Tcp, "tcp-half-close", &[Tcp, Lasting])
        .rule("after the client's FIN everything that it sent is still returned, then a FIN")
        .source("RFC 9293 section 3.6.1; RFC 1122 section 4.2.2.13")
        .run(|cx| {
            for size in [1, 10_000, 1 << 20] {
                let bytes = payload(2, size);
                let mut client = cx.connect()?;
                // Nothing is read before the end was sent, as far as the server takes it unread.
                let sent = client.stuff(&bytes, STALLED)?;
                if sent == size {
                    client.finish()?;
                }
                client.converse(&bytes[sent..], &bytes)?;
                if sent < size {
                    client.finish()?;
                }
                client.expect_end()?;
            }
            Ok(())
        }),
    case(Group::Tcp, "tcp-half-close-empty", &[Tcp])
        .rule("a client that ends its stream without a byte gets the server's FIN")
        .source(
            "RFC 862 (\"until the calling user terminates the connection\"); RFC 9293 section 3.6",
        )
        .run(|cx| {
            let mut client = cx.connect()?;
            client.finish()?;
            client.expect_end()
        }),
    case(Group::Tcp, "tcp-late-reader", &[Tcp, Lasting])
        .rule("a client that sends 16 MiB before it reads gets all of it, however long that waits")
        .source("RFC 9293 section 3.8.6.1 (zero windows); RFC 1122 section 4.2.2.17")
        .run(|cx| {
            let bytes = payload(3, OVERFLOWING);
            let mut client = cx.connect_narrow()?;
            let sent = client.stuff(&bytes, STALLED)?;
            client.converse(&bytes[sent..], &bytes)
        }),
    case(Group::Tcp, "tcp-idle-peer", &[Tcp, Served])
        .rule("a client that says nothing does not keep others from being served")
        .source("accept(2), listen(2): a connection that waits in the backlog is not served")
        .run(|cx| {
            let _silent = cx.connect()?;
            cx.connect()?
                .exchange(&payload(4, 1_000))
                .expecting("a client is answered while another is connected and silent")
        }),
    case(Group::Tcp, "tcp-never-reader", &[Tcp, Lasting, Served])
        .rule("a client that sends and never reads does not keep others from being served")
        .source("RFC 9293 section 3.8.6.1 (a zero window may last for ever); send(2)")
        .run(|cx| {
            let _blocked = blocked(cx)?;
            let mut client = cx.connect()?;
            (0..20).try_for_each(|_| client.exchange(&payload(5, 1_000)))
        }),
    case(Group::Tcp, "tcp-reset", &[Tcp, Lasting, Served])
        .rule("a client that resets its connection ends that connection and no other")
        .source("RFC 9293 section 3.5.3; accept(2), ECONNABORTED")
        .run(|cx| {
            let bytes = payload(7, 20_000);
            // A server of one client at a time would leave the others waiting for it.
            let mut bystander = match cx.serves_one_by_one() {
                true => None,
                false => Some(cx.connect()?),
            };
            if let Some(bystander) = &mut bystander {
                bystander.exchange(&bytes).expecting("a client is answered")?;
            }
            for _ in 0..5 {
                for peer in 0..10 {
                    let mut client = cx.connect()?;
                    // Some reset before a byte, some amid an answer, some after one.
                    match peer % 3 {
                        0 => {}
                        1 => client.send(&bytes)?,
                        _ => client.exchange(&bytes[..100])?,
                    }
                    client.reset();
                }
                cx.connect()?.exchange(&bytes).expecting("a new client is answered after that")?;
                if let Some(bystander) = &mut bystander {
                    bystander.exchange(&bytes).expecting("so is one from before")?;
                }
            }
            let alone = "new clients are answered after that; it serves no other at the same time";
            bystander.map(drop).ok_or_else(|| Stop::skipped(alone))
        }),
    case(Group::Tcp, "tcp-churn", &[Tcp])
        .rule("500 connections, opened and closed one by one, are all served")
        .source("RFC 862 (\"listens for TCP connections\")")
        .run(|cx| answered(cx, 500).try_for_each(|client| client.map(drop))),
    case(Group::Tcp, "tcp-many", &[Tcp, Lasting])
        .rule("300 connections that are held at once are all served, again and again")
        .source("RFC 862 (\"once a connection is established any data received is sent back\")")
        .run(|cx| {
            let mut clients = answered(cx, 300).collect::<Result<Vec<_>, _>>()?;
            for client in clients.iter_mut().rev() {
                client.exchange(&payload(0, 1_000)).expecting("each is answered again")?;
            }
            Ok(())
        }),
    case(Group::Tcp, "tcp-fair", &[Tcp, Lasting])
        .rule(
            "while two floods are served, round trips have a median within 50 ms and none is over \
             1 s",
        )
        .source("epoll(7), starvation")
        .run(|cx| {
            let trips = || {
                let mut client = cx.connect()?;
                let mut times = Vec::new();
                while times.len() < 200 && times.last() <= Some(&LONGEST) {
                    let began = Instant::now();
                    client.exchange(&payload(8, 100))?;
                    times.push(began.elapsed());
                }
                times.sort_unstable();
                let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
                ensure(median <= Duration::from_millis(50) && longest <= LONGEST, || {
                    format!("median {}, longest {}", time(median), time(longest))
                })
            };
            beside_floods(cx, || best_of_three(trips))
        }),
    case(Group::Tcp, "tcp-both-families", &[Tcp])
        .rule("a server that listens on IPv4 and on IPv6 echoes on both")
        .source("RFC 862; RFC 3493 section 3.7")
        .run(|cx| {
            let sibling = sibling(cx)?;
            let mut client = TcpClient::connect(sibling, cx.deadline)
                .map_err(|seen| Stop::skipped(seen.to_string()))?;
            client.exchange(&payload(10, 10_000)).expecting(format!("{sibling} echoes too"))
        }),
];

pub(super) const ASCII_COMES_BACK: &str = "the values of ASCII, 0 to 127, come back";
pub(super) const REST_COMES_BACK: &str =
    "those from 128 come back, too, as those of ASCII did: bytes need not be text";

/// Names the reason why a message of this length may take 40 ms.
pub(in crate::client) fn remark_on_nagle(
    address: SocketAddr,
    length: usize,
    deadline: Deadline<'_>,
) -> Result<Option<String>, Stop> {
    let Ok(kernel) = Kernel::open() else { return Ok(None) };
    let (mut client, bytes) = (TcpClient::connect(address, deadline)?, payload(11, length));
    let mut held = 0;
    for _ in 0..30 {
        held += u32::from(client.is_held_back(&bytes, &kernel)?);
        if held == 3 {
            return Ok(Some(format!(
                "the answer to {} is written in parts, and waits for an acknowledgement that \
                 this side may delay by 40 ms: Nagle's algorithm (RFC 9293 section 3.7.4) \
                 meets delayed acknowledgements (RFC 1122 section 4.2.3.2); set TCP_NODELAY, \
                 or answer in one write; `evecho states nagle` shows it",
                size(length as u64)
            )));
        }
    }
    Ok(None)
}

/// A writer that could send nothing for this long is held by back-pressure.
pub(super) const STALLED: Duration = Duration::from_millis(500);

/// More than the kernel's buffers of an unread connection hold, so that the server has to wait.
pub(super) const OVERFLOWING: usize = 16 << 20;

/// The longest that a client may wait beside floods.
pub(super) const LONGEST: Duration = Duration::from_secs(1);

/// `count` clients, one after the other, each of which is answered.
pub(super) fn answered<'a>(
    cx: &'a Context<'a>,
    count: u32,
) -> impl Iterator<Item = Result<TcpClient<'a>, Stop>> {
    (1..=count).map(move |number| {
        let client = TcpClient::connect(cx.address(), cx.deadline);
        client
            .and_then(|mut client| client.exchange(&payload(number, 100)).map(|()| client))
            .expecting(format!("client {number} of {count} is answered"))
    })
}

/// A peer that has sent all that is taken and read nothing.
pub(super) fn blocked<'a>(cx: &Context<'a>) -> Result<TcpClient<'a>, Stop> {
    let mut client = cx.connect_narrow()?;
    let bytes = payload(6, OVERFLOWING);
    client.stuff(&bytes, STALLED).expecting("a peer that never reads may send")?;
    Ok(client)
}

/// A machine that is busy with other things makes a good server look bad once, but not every time.
pub(super) fn best_of_three(mut attempt: impl FnMut() -> Result<(), Stop>) -> Result<(), Stop> {
    attempt().or_else(|first| attempt().or_else(|_| attempt()).map_err(|_| first))
}

/// Runs `body` while two clients send and read as fast as they can.
pub(super) fn beside_floods<T>(
    cx: &Context<'_>,
    body: impl FnOnce() -> Result<T, Stop>,
) -> Result<T, Stop> {
    /// A flood is under way when this much of it was answered.
    const UNDER_WAY: u64 = 1 << 20;
    let over = AtomicBool::new(false);
    let answered = [AtomicU64::new(0), AtomicU64::new(0)];
    let counts = || answered.each_ref().map(|count| count.load(Ordering::Relaxed));
    let mut clients = Vec::new();
    for _ in &answered {
        clients.push(cx.connect()?);
    }
    thread::scope(|scope| {
        let _stop = StopOnDrop(&over);
        for (client, answered) in clients.into_iter().zip(&answered) {
            let flood = || flood(client, answered, &over);
            Builder::new().spawn_scoped(scope, flood).map_err(Stop::thread)?;
        }
        let (mut last, mut heard) = (counts(), Instant::now());
        while last.iter().any(|&count| count < UNDER_WAY) {
            if left(cx.deadline) <= Duration::from_millis(1) {
                let [one, other] = last.map(size);
                let seen = format!("one got {one}, the other {other}");
                return Err(Stop::overdue(seen, heard, cx.deadline))
                    .expecting("two clients that flood are both answered");
            }
            cx.deadline.cancel.sleep(Duration::from_millis(1));
            let now = counts();
            // Of the one that got less.
            if now.iter().min() > last.iter().min() {
                heard = Instant::now();
            }
            last = now;
        }
        body()
    })
}

/// Ends the floods however the body of the case ends.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sends and reads as fast as it can. What comes back is counted, not compared.
fn flood(mut client: TcpClient<'_>, answered: &AtomicU64, over: &AtomicBool) {
    let bytes = payload(9, 64 << 10);
    let mut buffer = vec![0; 256 << 10];
    while !over.load(Ordering::Relaxed) {
        client.wait(PollFlags::POLLIN | PollFlags::POLLOUT, Duration::from_millis(50));
        if client.stuff(&bytes, Duration::ZERO).is_err() {
            return;
        }
        match client.read_some(&mut buffer) {
            Ok(Got::Bytes(length)) => {
                answered.fetch_add(length as u64, Ordering::Relaxed);
            }
            Ok(Got::Nothing) => {}
            Ok(Got::End) | Err(_) => return,
        }
    }
}

/// The server's address in the other family.
pub(super) fn sibling(cx: &Context<'_>) -> Result<SocketAddr, Stop> {
    cx.probe.sibling.ok_or_else(|| {
        Stop::skipped(format!("no address of the other family is known for {}", cx.address()))
    })
}
