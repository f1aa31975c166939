//! Scenarios about the end of a connection.

use std::io::{self, Read};
use std::net::TcpListener;
use std::time::Duration;

use socket2::Socket;

use super::talking::connect;
use crate::client::harness::Stop;
use crate::client::states::fact::What::{Is, Received, ReceivedSome, Sent, ZeroWindow};
use crate::client::states::fact::{Fact, answered, client, established, server};
use crate::client::states::report::State::{
    CloseWait, Closed, Established, FinWait2, LastAck, TimeWait,
};
use crate::client::states::stage::{Doing, Lesson, Stage, accept, listen, to_client, to_server};
use crate::client::states::{Context, Needs};

/// `half-close`
pub(super) fn half_close(cx: &Context<'_>) -> Result<(), Stop> {
    let mut stage = cx.stage(&cx.needs_raw()?)?;
    stage.connect_narrow()?;
    fill(&mut stage)?;
    stage.shut_down(1)?;
    stage.show(&Lesson {
        calls: &["client: shutdown(3, SHUT_WR)"],
        segments: &[to_server(1, "FIN"), to_client(1, "ACK")],
        facts: &[client(1, [Is(FinWait2), Sent(0)]), server(1, [Is(CloseWait), ZeroWindow])],
        why: "The client has ended its side, and the server's kernel has acknowledged that. The server has \
              not: first it reads what is before the FIN. It can still send, and the client can still read.",
        source: "RFC 9293, 3.6 and 3.6.1",
    })?;
    stage.read_until_closed_by_server(1)?;
    stage.show(&Lesson {
        calls: &["client: read(3) of a part of the answer", "server: read(4) = 0, close(4)"],
        segments: &[],
        facts: &[client(1, [Is(FinWait2)]), server(1, [Is(LastAck), ZeroWindow])],
        why: "The server has read everything and the FIN, has written the rest of its answer, and has \
              closed. The kernel keeps the connection without it: its FIN waits behind the bytes that \
              the client has not read.",
        source: "RFC 9293, 3.10.4",
    })?;
    stage.read_all(1, true)?;
    stage.show(&Lesson {
        calls: &["client: read(3) of all the rest, read(3) = 0"],
        segments: &[to_client(1, "bytes"), to_client(1, "FIN"), to_server(1, "ACK")],
        facts: &[client(1, [Is(TimeWait)]), server(1, [Is(Closed)])],
        why: "Every byte came back, then the FIN. TIME_WAIT is on the side that closed first: it stays to \
              acknowledge that FIN again, should the ACK be lost, and so that no old segment gets into a \
              new connection. On Linux it lasts 60 s.",
        source: "RFC 9293, 3.6 and 3.3.2",
    })?;
    bind_after_client(&stage)
}

/// Sends until the server stops to read, since its answer is not read.
fn fill(stage: &mut Stage<'_>) -> Result<(), Stop> {
    if stage.seen {
        stage.fill(1, true)?;
        return stage.show(&Lesson {
            calls: &[
                "client: connect(3, server), write(3, ...) again and again, and no read",
                "server: accept(3) = 4, read(4), write(4, ...) that does not return, or EAGAIN",
            ],
            segments: &[to_server(1, "bytes"), to_client(1, "bytes")],
            facts: &[
                client(1, [Is(Established), Sent(0), ReceivedSome]),
                server(1, [Is(Established), ReceivedSome, ZeroWindow]),
            ],
            why: "The client does not read. So its receive queue is full, then the server's send queue; \
                  then the server stops to read. This keeps the server busy for the steps to come.",
            source: "RFC 9293, 3.8.6",
        });
    }
    stage.write_some(1, 64 << 10)?;
    stage.show(&Lesson {
        calls: &["client: connect(3, server), write(3, ...) of 64 KiB, and no read"],
        segments: &[to_server(1, "bytes"), to_client(1, "bytes")],
        facts: &[client(1, [Is(Established), Sent(0), ReceivedSome])],
        why: "The client does not read: a part of the answer is in its receive queue.",
        source: "RFC 9293, 3.8.6",
    })
}

/// `server-closes`
pub(super) fn server_closes(cx: &Context<'_>) -> Result<(), Stop> {
    /// How long another's server may take to close after its answer, or it does not do so.
    const SOON: Duration = Duration::from_secs(2);
    let mut stage = cx.stage(&Needs { once: true, ..cx.needs_raw()? })?;
    connect(&mut stage)?;
    stage.write(1, b"hello")?;
    if !cx.is_own() {
        let (_, open) = stage.wait(&[client(1, [Is(CloseWait)])], SOON)?;
        if open.is_some() {
            return Err(Stop::skipped(
                "the server does not close after its first answer: it waits for the client to close",
            ));
        }
    }
    stage.show(&Lesson {
        calls: &["client: write(3, \"hello\", 5) = 5", "server: read(4), write(4, \"hello\", 5), close(4)"],
        segments: &[
            to_server(1, "5 bytes"),
            to_client(1, "5 bytes"),
            to_client(1, "FIN"),
            to_server(1, "ACK"),
        ],
        facts: &[client(1, [Is(CloseWait), Received(6)]), server(1, [Is(FinWait2)])],
        why: "The server has closed first. The client has not noticed: the answer and the FIN, which counts \
              as one byte, wait in its receive queue.",
        source: "RFC 9293, 3.6",
    })?;
    stage.expect(1, b"hello")?;
    if !stage.read(1, 1)?.doing("a client may read")?.is_empty() {
        return Err(Stop::failed("the answer ends", "more comes"));
    }
    stage.show(&Lesson {
        calls: &["client: read(3) = 5, read(3) = 0"],
        segments: &[],
        facts: &[client(1, [Is(CloseWait), Received(0)]), server(1, [Is(FinWait2)])],
        why: "read(2) returns 0: the server will send no more. The client is in CLOSE_WAIT until it closes. \
              A program that forgets to close stays there for ever.",
        source: "RFC 9293, 3.10.3",
    })?;
    stage.close(1);
    stage.show(&Lesson {
        calls: &["client: close(3)"],
        segments: &[to_server(1, "FIN"), to_client(1, "ACK")],
        facts: &[client(1, [Is(Closed)]), server(1, [Is(TimeWait)])],
        why: "The client's FIN is acknowledged, and its end is gone. The server closed first, so TIME_WAIT \
              is on its side, and on its port.",
        source: "RFC 9293, 3.6",
    })?;
    bind_after_server(&stage)
}

/// A server that has ended gets its port again when the client closed first: in slow motion.
fn bind_after_client(stage: &Stage<'_>) -> Result<(), Stop> {
    let (mut own, listener) = stage.own()?;
    own.connect()?;
    let accepted = accept(&listener)?;
    own.close(1);
    own.wait(&[server(1, [Is(CloseWait)])], own.patience())?;
    drop(accepted);
    let facts = [client(1, [Is(TimeWait)]), server(1, [Is(Closed)])];
    own.wait(&facts, own.patience())?;
    drop(listener);
    let _listener = listen(own.address, false).doing("the port can be bound again")?;
    own.show(&Lesson {
        calls: &["the server has ended, and starts again: bind(3, the same port) = 0"],
        segments: &[],
        facts: &facts,
        why: "The client closed first, so TIME_WAIT is on the port of the client. It does not keep the \
              server from its port.",
        source: "socket(7), SO_REUSEADDR",
    })
}

/// The same when the server closed first: its connection in TIME_WAIT keeps the port.
fn bind_after_server(stage: &Stage<'_>) -> Result<(), Stop> {
    let (own, listener, _port) = closed_by_server(stage)?;
    bind_again(&own, listener).map(drop)
}

/// `time-wait`
pub(super) fn time_wait(cx: &Context<'_>) -> Result<(), Stop> {
    let (mut own, listener, port) = closed_by_server(&cx.any_stage(&cx.needs())?)?;
    own.show(&Lesson {
        calls: &[
            "client: bind(3, a port), connect(3, server) = 0",
            "server: accept(3) = 4, close(4)",
            "client: read(3) = 0, close(3)",
        ],
        segments: &[to_client(1, "FIN"), to_server(1, "ACK"), to_server(1, "FIN"), to_client(1, "ACK")],
        facts: &time_wait_at_server(),
        why: "The server closed first, so TIME_WAIT is on its side. The kernel keeps this connection without \
              a process: on Linux for 60 s, which cannot be changed.",
        source: "RFC 9293, 3.6.1",
    })?;
    let listener = bind_again(&own, listener)?;
    own.connect_from(&port)?;
    let _accepted = accept(&listener)?;
    own.show(&Lesson {
        calls: &["client: bind(3, the port that it had), connect(3, server) = 0", "server: accept(3) = 4"],
        segments: &[to_server(1, "SYN"), to_client(1, "SYN+ACK"), to_server(1, "ACK")],
        facts: &established(1),
        why: "The same client from the same port, within the minute: its SYN ends TIME_WAIT early. The server's \
              kernel allows this because the sequence number or the timestamp of the SYN is higher than all \
              of the old connection, so that no old segment can be taken for a new one.",
        source: "RFC 9293, 3.6.1; RFC 6191",
    })
}

fn time_wait_at_server() -> [Fact; 2] {
    [client(1, [Is(Closed)]), server(1, [Is(TimeWait)])]
}

/// A connection that a server of our own has closed first, and the client's port.
fn closed_by_server<'a>(stage: &Stage<'a>) -> Result<(Stage<'a>, TcpListener, Socket), Stop> {
    let (mut own, listener) = stage.own()?;
    let port = own.reserve_port()?;
    own.connect_from(&port)?;
    drop(accept(&listener)?);
    own.wait(&[client(1, [Is(CloseWait)])], own.patience())?;
    own.close(1);
    own.wait(&time_wait_at_server(), own.patience())?;
    Ok((own, listener, port))
}

/// Ends that server and starts it again.
fn bind_again(own: &Stage<'_>, listener: TcpListener) -> Result<TcpListener, Stop> {
    drop(listener);
    let seen = match listen(own.address, false) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => None,
        Err(error) => Some(error.to_string()),
        Ok(_) => Some("it could".to_owned()),
    };
    if let Some(seen) = seen {
        return Err(Stop::failed("the port cannot be bound again without SO_REUSEADDR", seen));
    }
    let listener =
        listen(own.address, true).doing("the port can be bound again with SO_REUSEADDR")?;
    own.show(&Lesson {
        calls: &[
            "the server has ended, and starts again: bind(3, the same port) = -1 EADDRINUSE",
            "and once more: setsockopt(3, SO_REUSEADDR), bind(3, the same port) = 0",
        ],
        segments: &[],
        facts: &time_wait_at_server(),
        why: "TIME_WAIT keeps the port for a minute, unless both the old socket and the new one have \
              SO_REUSEADDR. That is why every server sets it.",
        source: "socket(7), SO_REUSEADDR",
    })?;
    Ok(listener)
}

/// `reset`
pub(super) fn reset(cx: &Context<'_>) -> Result<(), Stop> {
    let mut stage = cx.stage(&cx.needs_raw()?)?;
    connect(&mut stage)?;
    stage.set_linger_zero(1)?;
    stage.close(1);
    stage.show(&Lesson {
        calls: &["client: setsockopt(3, SO_LINGER, {1, 0}), close(3)"],
        segments: &[to_server(1, "RST")],
        facts: &[client(1, [Is(Closed)]), server(1, [Is(Closed)])],
        why: "close(2) with a linger time of 0 aborts: an RST and no FIN. Both ends are gone at once. There is \
              no TIME_WAIT, and what was on the way is lost.",
        source: "RFC 9293, 3.10.5; socket(7)",
    })?;
    stage.connect()?;
    stage.write(2, b"hello")?;
    stage.show(&Lesson {
        calls: &["client 2: connect(4, server), write(4, \"hello\", 5), and no read"],
        segments: &[to_server(2, "5 bytes"), to_client(2, "5 bytes")],
        facts: &answered(2, 5),
        why: "Another client. The answer waits in its receive queue.",
        source: "RFC 9293, 3.8",
    })?;
    stage.close(2);
    stage.show(&Lesson {
        calls: &["client 2: close(4), with 5 bytes unread"],
        segments: &[to_server(2, "RST")],
        facts: &[client(2, [Is(Closed)]), server(2, [Is(Closed)])],
        why: "These bytes will not be read any more. A FIN would say that all is well; so the kernel sends \
              an RST, and the server learns that data was lost.",
        source: "RFC 9293, 3.6.1",
    })?;
    what_the_other_reads(&stage)
}

/// A server that is reset, in slow motion.
fn what_the_other_reads(stage: &Stage<'_>) -> Result<(), Stop> {
    let (mut own, listener) = stage.own()?;
    own.connect()?;
    let mut accepted = accept(&listener)?;
    own.set_linger_zero(1)?;
    own.close(1);
    let gone = [client(1, [Is(Closed)]), server(1, [Is(Closed)])];
    own.wait(&gone, own.patience())?;
    match accepted.read(&mut [0]) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
        other => return Err(Stop::failed("the other end reads ECONNRESET", format!("{other:?}"))),
    }
    own.show(&Lesson {
        calls: &["client: setsockopt(3, SO_LINGER, {1, 0}), close(3)", "server: read(4) = -1 ECONNRESET"],
        segments: &[to_server(1, "RST")],
        facts: &gone,
        why: "This is what the other end reads: an error, where a FIN would be the end of the stream. It \
              is about this client alone; a server goes on with the others.",
        source: "RFC 9293, 3.5.3",
    })
}
