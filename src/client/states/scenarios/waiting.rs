//! Scenarios about waiting: for accept, for another client, for a reader.

use std::time::Duration;

use super::talking::connect;
use crate::client::harness::Stop;
use crate::client::states::fact::What::{
    Accepted, Is, NotAccepted, Received, ReceivedSome, Sent, SentAgain, SentSome, ZeroWindow,
};
use crate::client::states::fact::{answered, client, not_accepted, server, waiting};
use crate::client::states::report::State::{Closed, Established, SynSent, TimeWait};
use crate::client::states::stage::{Lesson, Stage, to_client, to_server};
use crate::client::states::{Context, Needs};
use crate::config::Design;
use crate::sys::socket::listen_overflows;

/// How long another's server may take for what it may do or not.
const SOON: Duration = Duration::from_secs(1);

/// `backlog`
pub(super) fn backlog(cx: &Context<'_>) -> Result<(), Stop> {
    let design = cx.config.design.unwrap_or(Design::Iterative);
    // The other designs serve many: they are told to serve one.
    let max_connections = (design != Design::Iterative).then_some(1);
    let needs = Needs { design, backlog: Some(1), max_connections, ..cx.needs_raw()? };
    let mut stage = cx.stage(&needs)?;
    let room = room(&stage)?;
    stage.show(&Lesson {
        calls: &["server: listen(3, backlog)"],
        segments: &[],
        facts: &[waiting(0)],
        why: "The backlog is how many connections may wait to be accepted. Linux lets one more wait than the \
              server has asked for.",
        source: "listen(2)",
    })?;
    serve_slow_client(&mut stage, "server")?;
    fill_backlog(cx, &mut stage, room)?;
    overflow_backlog(&mut stage, room)
}

/// The most that may wait for the scenario to be readable.
const MOST: u32 = 9;

fn room(stage: &Stage<'_>) -> Result<u32, Stop> {
    match stage.look()?.listener {
        None => Err(Stop::skipped("the server's listener is not on this machine")),
        Some(listener) if listener.room > MOST => Err(Stop::skipped(format!(
            "the backlog of the server is {}: this needs one of at most {}",
            listener.backlog,
            MOST - 1
        ))),
        Some(listener) => Ok(listener.room),
    }
}

/// The first client is answered, and stays without a word.
fn serve_slow_client(stage: &mut Stage<'_>, server_name: &str) -> Result<(), Stop> {
    stage.connect()?;
    stage.write(1, b"hello")?;
    stage.expect(1, b"hello")?;
    let serves = format!("{server_name}: accept(3) = 4, read(4) = 5, write(4, \"hello\", 5) = 5");
    stage.show(&Lesson {
        calls: &["client 1: connect(3, server), write(3, \"hello\", 5), read(3) = 5", &serves],
        segments: &[to_server(1, "5 bytes"), to_client(1, "5 bytes")],
        facts: &answered(1, 0),
        why: "Client 1 is served. It says nothing more, and does not leave.",
        source: "RFC 9293, 3.8",
    })
}

fn fill_backlog(cx: &Context<'_>, stage: &mut Stage<'_>, room: u32) -> Result<(), Stop> {
    let last = room as usize + 1;
    let mut facts = vec![waiting(room), server(1, [Accepted])];
    for number in 2..=last {
        stage.connect()?;
        facts.extend(not_accepted(number));
        if number == 2 && !cx.is_own() {
            let (view, _) = stage.wait(&[server(2, [Accepted])], SOON)?;
            if view.connections[1].server.as_ref().is_some_and(|end| !end.waits_to_be_accepted()) {
                return Err(Stop::skipped(
                    "the server accepts every client at once, so that none waits in its backlog",
                ));
            }
        }
    }
    let calls: Vec<String> = (2..=last)
        .map(|number| format!("client {number}: connect({}, server) = 0", number + 2))
        .collect();
    stage.show(&Lesson {
        calls: &calls.iter().map(String::as_str).collect::<Vec<_>>(),
        segments: &[],
        facts: &facts,
        why: "The kernel has connected these clients; the server has not accepted them yet. They wait in \
              the backlog, which is full now. They cannot tell: for them connect(2) has returned 0.",
        source: "listen(2), tcp(7)",
    })
}

fn overflow_backlog(stage: &mut Stage<'_>, room: u32) -> Result<(), Stop> {
    let overflows = listen_overflows();
    let late = stage.begin_to_connect()?;
    let call = format!("client {late}: connect({}, server), which does not return", late + 2);
    let dropped = [client(late, [Is(SynSent)]), server(late, [Is(Closed)]), waiting(room)];
    stage.show(&Lesson {
        calls: &[&call],
        segments: &[to_server(late, "SYN")],
        facts: &dropped,
        why: "There is no room: the kernel of the server drops the SYN, and says nothing. The client is in \
              SYN_SENT. The SYN counts as one byte in its send queue.",
        source: "RFC 9293, 3.8.1; tcp(7), tcp_abort_on_overflow",
    })?;
    let again = [&dropped[..], &[client(late, [SentAgain])]].concat();
    stage.wait(&again, stage.patience())?;
    let counts = match listen_overflows() > overflows {
        true => " It counts both (TcpExtListenOverflows).",
        false => "",
    };
    stage.show(&Lesson {
        calls: &["nothing is called for a second"],
        segments: &[to_server(late, "SYN")],
        facts: &again,
        why: &format!(
            "The client cannot tell whether the SYN was lost, and its kernel sends it again after a second. \
             The server's kernel drops that, too.{counts} This goes on until there is room, or connect(2) \
             fails with ETIMEDOUT, as a rule after two minutes."
        ),
        source: "RFC 6298, 2.1; tcp(7), tcp_syn_retries; nstat(8)",
    })?;
    stage.close(1);
    let mut facts = vec![
        client(1, [Is(TimeWait)]),
        server(1, [Is(Closed)]),
        server(2, [Accepted]),
        waiting(room),
    ];
    for number in 3..=late {
        facts.extend(not_accepted(number));
    }
    let retried = format!("client {late}: connect({}, server) = 0", late + 2);
    stage.show(&Lesson {
        calls: &["client 1: close(3)", "server: accept(3), which takes client 2", &retried],
        segments: &[to_server(late, "SYN"), to_client(late, "SYN+ACK"), to_server(late, "ACK")],
        facts: &facts,
        why: "Client 1 leaves, and the server accepts the next one. This makes room: the next SYN of the \
              last client is answered. No client was refused; all had to wait.",
        source: "RFC 9293, 3.5; listen(2)",
    })
}

/// `blocked`
pub(super) fn blocked(cx: &Context<'_>) -> Result<(), Stop> {
    let all = [Design::Iterative, Design::Threaded, Design::EventLoop];
    let needs = cx.needs_raw()?;
    match (cx.is_own(), cx.config.design) {
        (true, None) => all.into_iter().try_for_each(|design| {
            second_client(&mut cx.stage(&Needs { design, ..needs.clone() })?, Some(design))
        }),
        (true, design) => second_client(&mut cx.stage(&needs)?, design),
        (false, _) => second_client(&mut cx.stage(&needs)?, None),
    }
}

/// A second client comes while the first is silent. Of a server whose design is not known, what happens
/// tells it.
fn second_client(stage: &mut Stage<'_>, design: Option<Design>) -> Result<(), Stop> {
    let name = design.map_or_else(|| "server".to_owned(), |design| format!("{design} server"));
    serve_slow_client(stage, &name)?;
    stage.connect()?;
    stage.write(2, b"hello")?;
    let blocked = match design {
        Some(design) => design == Design::Iterative,
        None => stage.wait(&[client(2, [Received(5)])], SOON)?.1.is_some(),
    };
    if blocked {
        wait_for_the_first(stage, &name)
    } else {
        be_served_beside_the_first(stage, design, &name)
    }
}

fn be_served_beside_the_first(
    stage: &Stage<'_>,
    design: Option<Design>,
    name: &str,
) -> Result<(), Stop> {
    let how = match design {
        Some(Design::Threaded) => "each client has a thread, which waits in a read of its own",
        Some(_) => "one thread waits for all clients at once, and reads where something has come",
        None => "the server waits for both at once, or has a thread or a process for each",
    };
    let does = format!("{name}: accept(3), read(5) = 5, write(5, \"hello\", 5)");
    stage.show(&Lesson {
        calls: &["client 2: connect(4, server), write(4, \"hello\", 5)", &does],
        segments: &[to_server(2, "5 bytes"), to_client(2, "5 bytes")],
        facts: &[&answered(2, 5)[..], &[client(1, [Is(Established)])]].concat(),
        why: &format!("Client 2 is answered though client 1 is silent: {how}."),
        source: "accept(2), poll(2)",
    })
}

fn wait_for_the_first(stage: &mut Stage<'_>, name: &str) -> Result<(), Stop> {
    let does = format!("{name}: read(4), which does not return: it waits for client 1");
    stage.show(&Lesson {
        calls: &["client 2: connect(4, server), write(4, \"hello\", 5)", &does],
        segments: &[to_server(2, "5 bytes")],
        facts: &[
            client(2, [Is(Established), Received(0), Sent(0)]),
            server(2, [Is(Established), NotAccepted, Received(5)]),
            waiting(1),
        ],
        why: "Client 2 is connected, and its bytes have arrived and are acknowledged. The server has \
              not even accepted it: it serves one client at a time, and client 1 has not left.",
        source: "listen(2), accept(2)",
    })?;
    stage.close(1);
    let goes_on = format!(
        "{name}: read(4) = 0, close(4), accept(3) = 4, read(4) = 5, write(4, \"hello\", 5)"
    );
    stage.show(&Lesson {
        calls: &["client 1: close(3)", &goes_on],
        segments: &[to_client(2, "5 bytes")],
        facts: &[
            client(1, [Is(TimeWait)]),
            server(1, [Is(Closed)]),
            client(2, [Received(5)]),
            server(2, [Accepted, Received(0), Sent(0)]),
            waiting(0),
        ],
        why: "Client 1 leaves, and client 2 is answered at last. One slow client had held up all others.",
        source: "accept(2)",
    })
}

/// `window`
pub(super) fn window(cx: &Context<'_>) -> Result<(), Stop> {
    let mut stage = cx.stage(&cx.needs_raw()?)?;
    connect(&mut stage)?;
    stage.fill(1, false)?;
    stage.show(&Lesson {
        calls: &[
            "client: write(3, ...) until EAGAIN, and no read",
            "server: write(4, ...) that does not return, or EAGAIN; and no read",
        ],
        segments: &[],
        facts: &[
            client(1, [Is(Established), ReceivedSome, SentSome]),
            server(1, [Is(Established), ReceivedSome, SentSome, ZeroWindow]),
        ],
        why: "The client does not read, so its receive queue fills, and it offers a window of 0. The \
              server's send queue fills; a server that bounds its memory stops to read. So its receive queue fills, \
              too, and then the client's send queue: back-pressure. A sender that waits for a window asks \
              for it from time to time.",
        source: "RFC 9293, 3.8.6 and 3.8.6.1",
    })?;
    stage.read_all(1, false)?;
    stage.show(&Lesson {
        calls: &["client: read(3) until it has all that it wrote"],
        segments: &[to_server(1, "window"), to_client(1, "bytes")],
        facts: &answered(1, 0),
        why: "Each read makes room, the window opens, and everything flows again. All queues are empty, and \
              every byte came back: nothing was lost, it only had to wait.",
        source: "RFC 9293, 3.8.6",
    })
}
