//! The cases over TCP.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use super::Stop;
use super::context::{Context, payload};
use super::seen::Expecting;
use super::stream::{Got, TcpClient, left};
use crate::units::{size, time};

/// A writer that could send nothing for this long is held by back-pressure.
pub(super) const STALLED: Duration = Duration::from_millis(500);

/// More than the kernel's buffers of an unread connection hold, so that the server has to wait.
pub(super) const OVERFLOWING: usize = 16 << 20;

/// `tcp-sizes`
pub(super) fn sizes(cx: &Context<'_>) -> Result<(), Stop> {
    const SIZES: [usize; 10] = [1, 2, 100, 1_460, 4_096, 65_535, 65_536, 65_537, 1 << 20, 8 << 20];
    for (stream, length) in SIZES.into_iter().enumerate() {
        let expected = || format!("{} come back as they were sent", size(length as u64));
        cx.connect()?.exchange(&payload(stream as u32, length)).expecting(expected())?;
    }
    Ok(())
}

/// `tcp-bytes`
pub(super) fn values(cx: &Context<'_>) -> Result<(), Stop> {
    let all: Vec<u8> = (0..=255).cycle().take(4 * 256).collect();
    let answer = cx.answer(&all);
    let mut client = cx.connect()?;
    client.converse(&all, &answer).expecting("each of the 256 byte values is answered as it is")
}

/// `tcp-split`
pub(super) fn split(cx: &Context<'_>) -> Result<(), Stop> {
    let bytes = payload(1, 40_000);
    let mut client = cx.connect()?;
    for byte in bytes[..500].chunks(1) {
        client.exchange(byte).expecting("each of 500 single bytes is answered before the next")?;
    }
    // A server that takes one client at a time is not failed here.
    drop(client);
    let mut client = cx.connect()?;
    let mut sent = 0;
    // Segments of many sizes, none of them waited for.
    for size in (1..=200).cycle() {
        let piece = &bytes[sent..bytes.len().min(sent + size)];
        if piece.is_empty() {
            break;
        }
        client.send(piece).expecting("40,000 bytes are taken in pieces of 1 to 200")?;
        sent += piece.len();
    }
    client.converse(&[], &bytes).expecting("what was sent in pieces comes back whole")
}

/// `tcp-half-close`
pub(super) fn half_close(cx: &Context<'_>) -> Result<(), Stop> {
    for size in [1, 10_000, 1 << 20] {
        let bytes = payload(2, size);
        let expected = format!("{size} bytes and a FIN are answered by {size} bytes and a FIN");
        let mut client = cx.connect()?;
        // Nothing is read before the end was sent, as far as the server takes it unread.
        let sent = client.stuff(&bytes, STALLED).expecting(&expected)?;
        if sent == size {
            client.finish().expecting(&expected)?;
        }
        client.converse(&bytes[sent..], &bytes).expecting(&expected)?;
        if sent < size {
            client.finish().expecting(&expected)?;
        }
        client.expect_end().expecting(&expected)?;
    }
    Ok(())
}

/// `tcp-half-close-empty`
pub(super) fn half_close_empty(cx: &Context<'_>) -> Result<(), Stop> {
    let mut client = cx.connect()?;
    let expected = "a FIN with nothing before it is answered by a FIN";
    client.finish().expecting(expected)?;
    client.expect_end().expecting(expected)
}

/// `tcp-late-reader`
pub(super) fn late_reader(cx: &Context<'_>) -> Result<(), Stop> {
    let bytes = payload(3, OVERFLOWING);
    let expected = "16 MiB come back, of which nothing was read before no more was taken";
    let mut client = cx.connect_narrow()?;
    let sent = client.stuff(&bytes, STALLED).expecting(expected)?;
    client.converse(&bytes[sent..], &bytes).expecting(expected)
}

/// `tcp-idle-peer`
pub(super) fn idle_peer(cx: &Context<'_>) -> Result<(), Stop> {
    let _silent = cx.connect()?;
    cx.connect()?
        .exchange(&payload(4, 1_000))
        .expecting("a client is answered while another is connected and silent")
}

/// `tcp-never-reader`
pub(super) fn never_reader(cx: &Context<'_>) -> Result<(), Stop> {
    let _blocked = blocked(cx)?;
    let bytes = payload(5, 1_000);
    let mut client = cx.connect()?;
    for _ in 0..20 {
        client.exchange(&bytes).expecting("a client is answered while another never reads")?;
    }
    Ok(())
}

/// A peer that has sent all that is taken and read nothing.
pub(super) fn blocked(cx: &Context<'_>) -> Result<TcpClient, Stop> {
    blocked_by(cx, &payload(6, OVERFLOWING))
}

/// The same with these bytes, of which there are more than are taken.
pub(super) fn blocked_by(cx: &Context<'_>, bytes: &[u8]) -> Result<TcpClient, Stop> {
    let mut client = cx.connect_narrow()?;
    client.stuff(bytes, STALLED).expecting("a peer that never reads may send")?;
    Ok(client)
}

/// `tcp-reset`
pub(super) fn reset(cx: &Context<'_>) -> Result<(), Stop> {
    const ROUNDS: usize = 5;
    const PEERS: usize = 10;
    let bytes = payload(7, 20_000);
    let mut bystander = cx.connect()?;
    bystander.exchange(&bytes).expecting("a client is answered")?;
    for round in 1..=ROUNDS {
        for peer in 0..PEERS {
            let mut client = cx.connect()?;
            // Some reset before a byte, some amid an answer, some after one.
            let used = match peer % 3 {
                0 => Ok(()),
                1 => client.send(&bytes),
                _ => client.exchange(&bytes[..100]),
            };
            used.expecting("a client may send and then reset")?;
            client.reset();
        }
        let after = format!("after {} connections were reset", round * PEERS);
        cx.connect()?.exchange(&bytes).expecting(format!("a new client is answered {after}"))?;
        bystander
            .exchange(&bytes)
            .expecting(format!("a client from before is answered {after}"))?;
    }
    Ok(())
}

/// `tcp-churn`
pub(super) fn churn(cx: &Context<'_>) -> Result<(), Stop> {
    const CONNECTIONS: u32 = 500;
    for number in 1..=CONNECTIONS {
        let expected = || format!("connection {number} of {CONNECTIONS}, one by one, is answered");
        let mut client = TcpClient::connect(cx.address(), cx.deadline).expecting(expected())?;
        client.exchange(&payload(number, 100)).expecting(expected())?;
    }
    Ok(())
}

/// `tcp-many`
pub(super) fn many(cx: &Context<'_>) -> Result<(), Stop> {
    const CONNECTIONS: u32 = 300;
    let mut clients = Vec::new();
    for number in 1..=CONNECTIONS {
        let expected = || format!("connection {number} of {CONNECTIONS} held at once is answered");
        let mut client = TcpClient::connect(cx.address(), cx.deadline).expecting(expected())?;
        client.exchange(&payload(number, 100)).expecting(expected())?;
        clients.push(client);
    }
    for (number, client) in clients.iter_mut().enumerate().rev() {
        client
            .exchange(&payload(number as u32, 1_000))
            .expecting(format!("each of {CONNECTIONS} held connections is answered again"))?;
    }
    Ok(())
}

/// `tcp-fair`
pub(super) fn fair(cx: &Context<'_>) -> Result<(), Stop> {
    const ROUNDS: usize = 200;
    const MEDIAN: Duration = Duration::from_millis(50);
    let bytes = payload(8, 100);
    beside_floods(cx, || {
        best_of_three(|| {
            let mut client = cx.connect()?;
            let mut times = Vec::new();
            for _ in 0..ROUNDS {
                let began = Instant::now();
                client.exchange(&bytes).expecting("a client is answered while two others flood")?;
                times.push(began.elapsed());
                if times.last() > Some(&LONGEST) {
                    break;
                }
            }
            times.sort_unstable();
            let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
            if median > MEDIAN || longest > LONGEST {
                return Err(Stop::failed(
                    "beside two floods, a median round trip within 50 ms and none over 1 s",
                    format!("median {}, longest {}", time(median), time(longest)),
                ));
            }
            Ok(())
        })
    })
}

/// The longest that a client may wait beside floods.
pub(super) const LONGEST: Duration = Duration::from_secs(1);

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
            scope.spawn(|| flood(client, answered, &over));
        }
        while counts().iter().any(|&count| count < UNDER_WAY) {
            if left(cx.deadline) <= Duration::from_millis(1) {
                let [one, other] = counts().map(size);
                return Err(Stop::failed(
                    "two clients that flood are both answered",
                    format!("one got {one}, the other {other}"),
                ));
            }
            thread::sleep(Duration::from_millis(1));
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
fn flood(mut client: TcpClient, answered: &AtomicU64, over: &AtomicBool) {
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

/// `tcp-both-families`
pub(super) fn both_families(cx: &Context<'_>) -> Result<(), Stop> {
    let sibling = sibling(cx)?;
    let mut client = TcpClient::connect(sibling, cx.deadline)
        .map_err(|_| Stop::skipped(format!("nothing listens at {sibling}")))?;
    client.exchange(&payload(10, 10_000)).expecting(format!("{sibling} echoes too"))
}

/// The server's address in the other family.
pub(super) fn sibling(cx: &Context<'_>) -> Result<std::net::SocketAddr, Stop> {
    cx.probe.sibling.ok_or_else(|| {
        Stop::skipped(format!("no address of the other family is known for {}", cx.address()))
    })
}
