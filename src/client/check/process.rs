//! The cases that look at the server's process.

use std::io;
use std::sync::mpsc;
use std::thread::{self, Builder};
use std::time::{Duration, Instant};

use super::Need::{Lasting, Process, Served, Several, Start, Tcp};
use super::context::{Context, payload};
use super::seen::Expecting;
use super::stream::{TcpClient, left};
use super::tcp::{OVERFLOWING, STALLED, answered, blocked};
use super::{Case, Group, case};
use crate::client::harness::{Stop, ensure};
use crate::client::process::{ServerProcess, Usage};
use crate::units::size;

pub(super) static CASES: &[Case] = &[
    case(Group::Process, "process-memory", &[Tcp, Lasting, Process, Served])
        .rule("a client that sends up to 64 MiB and never reads costs at most 4 MiB of memory")
        .source("RFC 9293 section 3.8.6 (the window is there to hold the sender)")
        .run(|cx| {
            let mut client = cx.connect_narrow()?;
            // What the first megabyte makes it allocate is not counted.
            client.exchange(&payload(30, 1 << 20)).expecting("1 MiB comes back")?;
            let before = cx.usage()?.resident;
            let sent = client.stuff(&payload(31, 64 << 20), STALLED)?;
            let grown = cx.usage()?.resident.saturating_sub(before);
            client.reset();
            ensure(grown <= 4 << 20, || {
                format!("{} were taken, and memory grew by {}", size(sent as u64), size(grown))
            })
        }),
    case(Group::Process, "process-idle-cpu", &[Lasting, Process, Several])
        .rule("idle, with 50 connections if it has TCP, it uses at most 1 % of a CPU")
        .source("poll(2), epoll_wait(2): waiting costs nothing")
        .run(|cx| {
            let clients = if cx.probe.tcp { 50 } else { 0 };
            let mut idle = answered(cx, clients).collect::<Result<Vec<_>, _>>()?;
            cx.is_served()?;
            stays_idle(cx)?;
            // They have been connections all the time.
            idle.iter_mut().try_for_each(|client| {
                client.exchange(&payload(0, 100)).expecting("each is answered again after that")
            })
        }),
    case(Group::Process, "process-blocked-cpu", &[Tcp, Lasting, Process])
        .rule("with clients that do not read, half-closed or not, it uses at most 1 % of a CPU")
        .source("epoll(7), level-triggered and edge-triggered; poll(2), POLLRDHUP")
        .run(|cx| {
            let _never_reads = blocked(cx)?;
            let half_closed = blocked(cx)?;
            half_closed.finish()?;
            stays_idle(cx)
        }),
    case(Group::Process, "process-threads", &[Tcp, Process, Served])
        .rule("when 100 clients have left, at most 8 more threads than before remain")
        .source("pthread_detach(3), wait(2)")
        .run(|cx| are_given_back(cx, |usage| usage.threads)),
    case(Group::Process, "process-descriptors", &[Tcp, Process, Served])
        .rule("when 100 clients have left, at most 8 more open descriptors than before remain")
        .source("close(2)")
        .run(|cx| are_given_back(cx, |usage| usage.descriptors)),
    case(Group::Process, "process-reset", &[Tcp, Lasting, Process, Several])
        .rule(
            "when 20 clients that do not read have half-closed and then reset, at most 8 more open \
             descriptors than before remain, at no CPU",
        )
        .source(
            "RFC 9293 section 3.10.7.4 (a reset ends the connection in every state); epoll(7), \
             EPOLLRDHUP and EPOLLHUP",
        )
        .run(|cx| {
            let before = cx.usage()?.descriptors;
            let bytes = payload(32, OVERFLOWING);
            let mut clients = Vec::new();
            for _ in 0..20 {
                let mut client = cx.connect_narrow()?;
                // One after the other: none finds the queue of the listener full.
                client.exchange(&bytes[..100])?;
                clients.push(client);
            }
            thread::scope(|scope| {
                let stuff = |client| {
                    let stuff = || TcpClient::stuff(client, &bytes, STALLED);
                    Builder::new().spawn_scoped(scope, stuff)
                };
                let all: io::Result<Vec<_>> = clients.iter_mut().map(stuff).collect();
                all.map_err(Stop::thread)?.into_iter().try_for_each(|one| {
                    let stuffed = one.join().expect("it does not panic");
                    stuffed.map(drop).expecting("a peer that never reads may send")
                })
            })?;
            clients.iter().try_for_each(TcpClient::finish)?;
            clients.into_iter().for_each(TcpClient::reset);
            goes_back(cx, before, |usage| usage.descriptors)?;
            stays_idle(cx)
        }),
    case(Group::Process, "process-exhaustion", &[Tcp, Start, Process, Several])
        .rule(
            "with 32 descriptors and 80 clients: those without room wait in the backlog at no CPU, \
             and are served when others leave, with no new client to wake the server",
        )
        .source("accept(2), EMFILE; listen(2), backlog; epoll(7), edge-triggered")
        .run(|cx| {
            let (server, probe) = cx.start(Some(32))?;
            exhaust(&cx.of(&server, &probe), server, 80)
        }),
    case(Group::Process, "process-sigterm", &[Start, Served])
        .rule("SIGTERM ends it, with exit status 0")
        .source("daemon(7), new-style daemons")
        .run(|cx| {
            let (server, probe) = cx.start(None)?;
            cx.of(&server, &probe).is_served()?;
            match server.terminate(left(cx.deadline)) {
                Some(status) => ensure(status.success(), || status.to_string()),
                None => Err(Stop::broken("it was still there when the time was over")),
            }
        }),
];

/// Whether the server uses no CPU worth the name, in two of a few looks: what it still had to do
/// when the first began is done when the next one does. One that was ready to run most of the time
/// is not idle, though it did not get the CPU: as long as it gets hardly any, it is looked at again.
fn stays_idle(cx: &Context<'_>) -> Result<(), Stop> {
    const WINDOW: Duration = Duration::from_millis(400);
    const SHARE: f64 = 0.01;
    let (mut least, mut idle) = (f64::INFINITY, 0);
    let mut looks = 0;
    while looks < 5 || least.is_infinite() && !cx.deadline.is_over() {
        looks += 1;
        let (before, began) = (cx.usage()?, Instant::now());
        cx.deadline.cancel.sleep(WINDOW);
        let (after, time) = (cx.usage()?, began.elapsed());
        let used = after.cpu.saturating_sub(before.cpu);
        let share = used.as_secs_f64() / time.as_secs_f64();
        let was_ready = used + after.delayed.saturating_sub(before.delayed) > time / 2;
        idle += u32::from(share <= SHARE && !was_ready);
        if idle == 2 {
            return Ok(());
        }
        if share > SHARE {
            least = least.min(share);
        }
    }
    if least.is_infinite() {
        return Err(Stop::broken(
            "it was ready to run most of the time; other programs had the CPU",
        ));
    }
    Err(Stop::broken(format!("{:.1} % of a CPU", 100.0 * least)))
}

/// Whether something that a server has more of with clients goes back when they have left.
fn are_given_back(cx: &Context<'_>, count: fn(Usage) -> u64) -> Result<(), Stop> {
    let before = count(cx.usage()?);
    let mut clients = answered(cx, 100);
    if cx.serves_one_by_one() {
        clients.try_for_each(|client| client.map(drop))?;
    } else {
        drop(clients.collect::<Result<Vec<_>, _>>()?);
    }
    goes_back(cx, before, count)
}

/// Waits until there is hardly more of it than before.
fn goes_back(cx: &Context<'_>, before: u64, count: fn(Usage) -> u64) -> Result<(), Stop> {
    let most = before + 8;
    let mut after = count(cx.usage()?);
    while after > most && !cx.deadline.is_over() {
        cx.deadline.cancel.sleep(Duration::from_millis(10));
        after = count(cx.usage()?);
    }
    ensure(after <= most, || format!("{before} before, {after} after"))
}

/// More clients than the server has descriptors for. Those that it has answered leave when it has come to
/// rest at its limit, and later ones at once.
fn exhaust(cx: &Context<'_>, server: ServerProcess, clients: usize) -> Result<(), Stop> {
    const QUIET: Duration = Duration::from_millis(150);
    // The case gives up before its clients do.
    const SPARE: Duration = Duration::from_secs(1);
    let patient =
        &Context { deadline: cx.deadline.cancel.within(left(cx.deadline) + SPARE), ..*cx };
    let (ended, results) = mpsc::channel();
    thread::scope(|scope| {
        // Ends before the threads are waited for: clients that still wait do not wait any longer.
        let _server = server;
        for _ in 0..clients {
            let ended = ended.clone();
            let client = move || answered(patient, 1).try_for_each(|client| ended.send(client));
            Builder::new().spawn_scoped(scope, client).map_err(Stop::thread)?;
        }
        drop(ended);
        let (mut waiting, mut quiet) = (clients, QUIET);
        while waiting > 0 {
            let left_waiting = |_| Stop::broken(format!("{waiting} clients were left waiting"));
            let first = results.recv_timeout(left(cx.deadline)).map_err(left_waiting)?;
            let mut served = vec![first.map_err(turned_away)?];
            while let Ok(client) = results.recv_timeout(quiet) {
                served.push(client.map_err(turned_away)?);
            }
            waiting -= served.len();
            if quiet == QUIET && waiting > 0 {
                stays_idle(cx)?;
            }
            quiet = Duration::ZERO;
        }
        cx.is_served()
    })
}

fn turned_away(stop: Stop) -> Stop {
    match stop {
        Stop::Failed { seen, .. } => {
            Stop::broken(format!("a client was turned away unanswered: {seen}"))
        }
        other => other,
    }
}
