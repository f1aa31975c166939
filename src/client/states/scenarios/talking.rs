//! Scenarios about opening a connection and exchanging bytes.

use std::time::Duration;

use crate::client::harness::Stop;
use crate::client::states::fact::What::{Is, Received, Sent};
use crate::client::states::fact::{client, established, not_accepted, server, waiting};
use crate::client::states::report::State::CloseWait;
use crate::client::states::stage::{Doing, Lesson, Stage, accept, to_client, to_server};
use crate::client::states::{Context, Needs};
use crate::protocol::Framing;

/// `open`
pub(super) fn open(cx: &Context<'_>) -> Result<(), Stop> {
    let mut stage = cx.any_stage(&cx.needs())?;
    stage.show(&Lesson {
        calls: &["server: socket(), bind(3, port), listen(3, backlog)"],
        segments: &[],
        facts: &[waiting(0)],
        why: "The server listens: its socket is in LISTEN, and belongs to no connection. Each connection \
              gets a socket of its own, and waits in the queue of this one until the server accepts it; the \
              backlog says how many may wait.",
        source: "RFC 9293, 3.3.2; listen(2)",
    })?;
    connect(&mut stage)?;
    before_accept(&stage)
}

/// Connects the first client, and waits until it is accepted.
pub(super) fn connect(stage: &mut Stage<'_>) -> Result<(), Stop> {
    stage.connect()?;
    // A server that closes at once is soon past all this.
    let closed = [client(1, [Is(CloseWait)])];
    if stage.wait(&established(1), SOON)?.1.is_some() && stage.wait(&closed, SOON)?.1.is_none() {
        let reason = "this server closes each connection before the client has sent anything";
        return Err(Stop::skipped(reason));
    }
    stage.show(&Lesson {
        calls: &["client: connect(3, server)", "server: accept(3) = 4"],
        segments: &[to_server(1, "SYN"), to_client(1, "SYN+ACK"), to_server(1, "ACK")],
        facts: &established(1),
        why: "Three segments open the connection. Both ends are ESTABLISHED, and their queues are empty.",
        source: "RFC 9293, 3.5",
    })
}

/// How long a server may take to accept, or to close.
const SOON: Duration = Duration::from_secs(1);

/// What happens between connect and accept is too quick to be seen in a server. Here is one that is slow.
fn before_accept(stage: &Stage<'_>) -> Result<(), Stop> {
    let (mut own, listener) = stage.own()?;
    own.connect()?;
    own.show(&Lesson {
        calls: &["server: listen(3, 8), and no accept yet", "client: connect(3, server) = 0"],
        segments: &[to_server(1, "SYN"), to_client(1, "SYN+ACK"), to_server(1, "ACK")],
        facts: &[&not_accepted(1)[..], &[waiting(1)]].concat(),
        why: "The kernel has connected the client, and the server has not called accept(2). The client does not \
              notice: it could even write.",
        source: "RFC 9293, 3.5; listen(2)",
    })?;
    let accepted = accept(&listener)?;
    own.show(&Lesson {
        calls: &["server: accept(3) = 4"],
        segments: &[],
        facts: &[&established(1)[..], &[waiting(0)]].concat(),
        why: "accept(2) takes the connection from the queue of the listener and gives it a descriptor. No \
              segment is sent, and no state changes.",
        source: "accept(2)",
    })?;
    drop(accepted);
    Ok(())
}

/// `echo`
pub(super) fn echo(cx: &Context<'_>) -> Result<(), Stop> {
    let framing = cx.config.framing;
    let mut stage = cx.stage(&Needs { framing, ..cx.needs() })?;
    connect(&mut stage)?;
    match framing {
        Framing::Raw => stream(&stage),
        Framing::Lines | Framing::LengthPrefixed => messages(&stage, framing),
    }
}

fn stream(stage: &Stage<'_>) -> Result<(), Stop> {
    stage.write(1, b"hello")?;
    stage.show(&Lesson {
        calls: &["client: write(3, \"hello\", 5) = 5", "server: read(4) = 5, write(4, \"hello\", 5) = 5"],
        segments: &[to_server(1, "5 bytes"), to_client(1, "5 bytes")],
        facts: &[client(1, [Received(5), Sent(0)]), server(1, [Received(0), Sent(0)])],
        why: "The echo is back. It waits in the receive queue until the client reads it. The send queues \
              are empty, since everything is acknowledged.",
        source: "RFC 9293, 3.8",
    })?;
    stage.expect(1, b"hello")?;
    for message in [&b"one"[..], b"two", b"three"] {
        stage.write(1, message)?;
    }
    stage.show(&Lesson {
        calls: &[
            "client: read(3) = 5",
            "client: write(3, \"one\", 3), write(3, \"two\", 3), write(3, \"three\", 5)",
        ],
        segments: &[to_server(1, "11 bytes"), to_client(1, "11 bytes")],
        facts: &[client(1, [Received(11), Sent(0)]), server(1, [Received(0), Sent(0)])],
        why: "Three messages were written. The receive queue has 11 bytes, and does not know of messages.",
        source: "RFC 9293, 2.2",
    })?;
    let read = stage.read(1, 100)?.doing("a client may read")?;
    if read != stage.answer(b"onetwothree") {
        let seen = format!("'{}'", read.escape_ascii());
        return Err(Stop::failed("a single read returns 'onetwothree'", seen));
    }
    stage.show(&Lesson {
        calls: &["client: read(3, buffer, 100) = 11 \"onetwothree\""],
        segments: &[],
        facts: &[client(1, [Received(0)]), server(1, [Received(0)])],
        why: "Three writes, one read: TCP carries a stream of bytes. Where a message ends is for the two \
              programs to say, by a framing.",
        source: "RFC 9293, 2.2",
    })
}

fn messages(stage: &Stage<'_>, framing: Framing) -> Result<(), Stop> {
    let [one, two, three] =
        ["one", "two", "three"].map(|message| framing.frame(message.as_bytes()));
    let (begin, rest) = one.split_at(one.len() - 2);
    part_of_a_message(stage, framing, begin)?;
    let more = [rest, &two, &three].concat();
    stage.write(1, &more)?;
    let all = (one.len() + two.len() + three.len()) as u32;
    let call = format!("client: write(3, {}) = {}", shown(&more), more.len());
    stage.show(&Lesson {
        calls: &[&call, "server: read(4), write(4)"],
        segments: &[to_server(1, "the rest"), to_client(1, "messages")],
        facts: &[client(1, [Received(all), Sent(0)]), server(1, [Received(0), Sent(0)])],
        why: "One write had the end of a message and two more, and all three come back whole. The receive \
              queue still counts bytes.",
        source: "RFC 9293, 2.2",
    })?;
    stage.expect(1, &one)?;
    let call = format!("client: read(3) = {} {}", one.len(), shown(&one));
    stage.show(&Lesson {
        calls: &[&call],
        segments: &[],
        facts: &[client(1, [Received(all - one.len() as u32)])],
        why: "The client reads up to the end of the first message. Both programs know where that is, and \
              TCP does not.",
        source: "RFC 9293, 2.2",
    })?;
    stage.expect(1, &[two, three].concat())?;
    stage.show(&Lesson {
        calls: &["client: read(3), read(3)"],
        segments: &[],
        facts: &[client(1, [Received(0)])],
        why: "However the bytes were written, and in whatever pieces they come, three messages were sent \
              and three came back.",
        source: "RFC 9293, 2.2",
    })
}

/// Nothing comes back before a message is whole.
fn part_of_a_message(stage: &Stage<'_>, framing: Framing, begin: &[u8]) -> Result<(), Stop> {
    let (name, end) = match framing {
        Framing::Lines => ("a line", "its line feed"),
        _ => ("a frame", "as many bytes as its length says"),
    };
    stage.write(1, begin)?;
    stage.wait(&[server(1, [Received(0)])], stage.patience())?;
    if !stage.is_silent(1)? {
        return Err(Stop::skipped(
            "the server answers before a message is whole: it has no such framing",
        ));
    }
    let call = format!("client: write(3, {}) = {}", shown(begin), begin.len());
    stage.show(&Lesson {
        calls: &[&call, "server: read(4), and no write"],
        segments: &[to_server(1, "a part")],
        facts: &[client(1, [Received(0), Sent(0)]), server(1, [Received(0), Sent(0)])],
        why: &format!(
            "The server has read the beginning of {name}, and waits for {end}. All queues are empty: what \
             is not whole is in the memory of the server."
        ),
        source: "RFC 9293, 2.2",
    })
}

fn shown(bytes: &[u8]) -> String {
    format!("\"{}\"", bytes.escape_ascii())
}
