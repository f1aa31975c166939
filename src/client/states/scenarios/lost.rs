//! Scenarios in which segments are lost: a filter at one end drops what arrives there, so that what follows can
//! be seen one segment at a time.

use std::io::Write;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use socket2::{SockFilter, SockRef, Socket};

use crate::client::harness::Stop;
use crate::client::states::Context;
use crate::client::states::fact::What::{
    Is, NotAccepted, Received, ReceivedSome, Sent, SentSome, ZeroWindow,
};
use crate::client::states::fact::{Fact, answered, client, established, server, waiting};
use crate::client::states::report::State::{
    CloseWait, Closed, Closing, Established, FinWait1, FinWait2, LastAck, SynRecv, SynSent,
    TimeWait,
};
use crate::client::states::scenarios::talking::connect;
use crate::client::states::stage::{Doing, Lesson, Stage, accept, to_client, to_server};
use crate::units::time;

/// A filter at one end of a connection, or at a listener, that drops every segment that arrives there (socket(7),
/// SO_ATTACH_FILTER).
struct Filter(Socket);

impl Filter {
    fn at(socket: &impl AsFd) -> Result<Self, Stop> {
        SockRef::from(socket).try_clone().map(Self).doing("a descriptor can be duplicated")
    }

    fn set(&self) -> Result<(), Stop> {
        /// BPF_RET: this many bytes of a packet are kept.
        const RETURN: u16 = 0x06;
        self.0.attach_filter(&[SockFilter::new(RETURN, 0, 0, 0)]).doing("a filter can be set")
    }

    fn remove(&self) -> Result<(), Stop> {
        self.0.detach_filter().doing("a filter can be taken away")
    }
}

/// A client and a server's end of our own, connected and accepted.
fn pair<'a>(cx: &Context<'a>) -> Result<(Stage<'a>, TcpListener, TcpStream), Stop> {
    let (mut own, listener) = cx.any_stage(&cx.needs())?.own()?;
    own.connect()?;
    let accepted = accept(&listener)?;
    own.show(&Lesson {
        calls: &["server: listen(3, 8)", "client: connect(3, server) = 0", "server: accept(3) = 4"],
        segments: &[to_server(1, "SYN"), to_client(1, "SYN+ACK"), to_server(1, "ACK")],
        facts: &established(1),
        why: "A connection between a client and a listener of our own, so that both ends can be held still.",
        source: "RFC 9293, 3.5",
    })?;
    Ok((own, listener, accepted))
}

/// `handshake`
pub(super) fn handshake(cx: &Context<'_>) -> Result<(), Stop> {
    let (mut own, listener) = cx.any_stage(&cx.needs())?.own()?;
    let at_server = Filter::at(&listener)?;
    at_server.set()?;
    own.begin_to_connect()?;
    own.show(&Lesson {
        calls: &["server: listen(3, 8); what arrives is lost", "client: connect(3, server) does not return"],
        segments: &[to_server(1, "SYN")],
        facts: &[client(1, [Is(SynSent)]), server(1, [Is(Closed)])],
        why: "The first segment has the bit SYN and the number from which the client counts its bytes. It is \
              lost: the client is in SYN_SENT, and the server knows nothing of it.",
        source: "RFC 9293, 3.4.1 and 3.5",
    })?;
    let at_client = Filter::at(own.socket(1))?;
    at_client.set()?;
    at_server.remove()?;
    own.show(&Lesson {
        calls: &["what arrives at the server is not lost any more; what arrives at the client is"],
        segments: &[to_server(1, "SYN"), to_client(1, "SYN+ACK")],
        facts: &[client(1, [Is(SynSent)]), server(1, [Is(SynRecv)])],
        why: "After a second without an answer the client sends its SYN again. The server answers with a \
              SYN of its own, which also acknowledges that of the client. It is in SYN_RECV: it does not know \
              whether the client hears it. Nothing waits to be accepted.",
        source: "RFC 6298, 2.1; RFC 9293, 3.5",
    })?;
    at_server.set()?;
    at_client.remove()?;
    third_segment(&own, &at_server)?;
    accept(&listener).map(drop)
}

/// The acknowledgement of a handshake: it is lost, and the first bytes stand in for it.
fn third_segment(own: &Stage<'_>, at_server: &Filter) -> Result<(), Stop> {
    own.show(&Lesson {
        calls: &["what arrives at the client is not lost any more: connect(3, server) = 0"],
        segments: &[to_client(1, "SYN+ACK"), to_server(1, "ACK")],
        facts: &[client(1, [Is(Established)]), server(1, [Is(SynRecv)])],
        why: "The server repeats its SYN+ACK. The client is ESTABLISHED and acknowledges, and this third \
              segment is lost. The two ends do not agree, and the client cannot know.",
        source: "RFC 9293, 3.5",
    })?;
    at_server.remove()?;
    own.write(1, b"hello")?;
    own.show(&Lesson {
        calls: &["nothing is lost any more", "client: write(3, \"hello\", 5) = 5"],
        segments: &[to_server(1, "5 bytes"), to_client(1, "ACK")],
        facts: &[
            client(1, [Is(Established)]),
            server(1, [Is(Established), NotAccepted, Received(5)]),
            waiting(1),
        ],
        why: "Every segment but the first has an acknowledgement, so the bytes do what the lost ACK should \
              have done. The connection waits to be accepted, with 5 bytes in its receive queue.",
        source: "RFC 9293, 3.10.7.4",
    })
}

/// `close`
pub(super) fn close(cx: &Context<'_>) -> Result<(), Stop> {
    let (own, _listener, accepted) = pair(cx)?;
    let (at_client, at_server) = (Filter::at(own.socket(1))?, Filter::at(&accepted)?);
    close_first(&own, &at_client, &at_server)?;
    at_client.set()?;
    accepted.shutdown(Shutdown::Write).doing("the server may end its side")?;
    close_last(&own, &at_client, &at_server)
}

/// The client's FIN and its acknowledgement.
fn close_first(own: &Stage<'_>, at_client: &Filter, at_server: &Filter) -> Result<(), Stop> {
    at_server.set()?;
    own.shut_down(1)?;
    own.show(&Lesson {
        calls: &["what arrives at the server is lost", "client: shutdown(3, SHUT_WR)"],
        segments: &[to_server(1, "FIN")],
        facts: &[client(1, [Is(FinWait1)]), server(1, [Is(Established)])],
        why: "The FIN says that the client will send no more. It takes a sequence number, so it can be \
              acknowledged. Until that happens the client is in FIN_WAIT1.",
        source: "RFC 9293, 3.6",
    })?;
    at_client.set()?;
    at_server.remove()?;
    // The acknowledgement is delayed by up to 40 ms, and is to be lost, too. The next FIN comes after some 200 ms.
    own.wait(&[server(1, [Is(CloseWait)])], own.patience())?;
    own.let_pass(Duration::from_millis(100))?;
    own.show(&Lesson {
        calls: &["what arrives at the server is not lost any more; what arrives at the client is"],
        segments: &[to_server(1, "FIN"), to_client(1, "ACK")],
        facts: &[client(1, [Is(FinWait1)]), server(1, [Is(CloseWait)])],
        why: "The FIN is sent again, and arrives: the server is in CLOSE_WAIT, where it may still send. Its \
              acknowledgement is lost.",
        source: "RFC 9293, 3.6",
    })?;
    at_client.remove()?;
    own.show(&Lesson {
        calls: &["nothing is lost any more"],
        segments: &[to_server(1, "FIN"), to_client(1, "ACK")],
        facts: &[client(1, [Is(FinWait2)]), server(1, [Is(CloseWait)])],
        why: "Once more, and the acknowledgement arrives. The client is in FIN_WAIT2: half of the connection \
              is closed.",
        source: "RFC 9293, 3.6",
    })
}

/// The server's FIN, which is sent already and lost, and its acknowledgement.
fn close_last(own: &Stage<'_>, at_client: &Filter, at_server: &Filter) -> Result<(), Stop> {
    own.show(&Lesson {
        calls: &["what arrives at the client is lost", "server: shutdown(4, SHUT_WR)"],
        segments: &[to_client(1, "FIN")],
        facts: &[client(1, [Is(FinWait2)]), server(1, [Is(LastAck)])],
        why: "The server's FIN is lost. It is in LAST_ACK: only one acknowledgement is missing.",
        source: "RFC 9293, 3.6",
    })?;
    at_server.set()?;
    at_client.remove()?;
    own.show(&Lesson {
        calls: &["what arrives at the client is not lost any more; what arrives at the server is"],
        segments: &[to_client(1, "FIN"), to_server(1, "ACK")],
        facts: &[client(1, [Is(TimeWait)]), server(1, [Is(LastAck)])],
        why: "The FIN arrives, and its acknowledgement is lost. This is what TIME_WAIT is for: the client has \
              nothing left to do, and stays to acknowledge the FIN once more.",
        source: "RFC 9293, 3.3.2",
    })?;
    at_server.remove()?;
    own.show(&Lesson {
        calls: &["nothing is lost any more"],
        segments: &[to_client(1, "FIN"), to_server(1, "ACK")],
        facts: &[client(1, [Is(TimeWait)]), server(1, [Is(Closed)])],
        why: "The server sends its FIN again, is answered out of TIME_WAIT, and is gone. Without it, the \
              server would have been answered by an RST.",
        source: "RFC 9293, 3.10.7",
    })
}

/// `closing`
pub(super) fn closing(cx: &Context<'_>) -> Result<(), Stop> {
    let (own, _listener, accepted) = pair(cx)?;
    let (at_client, at_server) = (Filter::at(own.socket(1))?, Filter::at(&accepted)?);
    at_server.set()?;
    at_client.set()?;
    own.shut_down(1)?;
    accepted.shutdown(Shutdown::Write).doing("the server may end its side")?;
    own.show(&Lesson {
        calls: &["what arrives at either end is lost", "client: shutdown(3, SHUT_WR)", "server: shutdown(4, SHUT_WR)"],
        segments: &[to_server(1, "FIN"), to_client(1, "FIN")],
        facts: &[client(1, [Is(FinWait1)]), server(1, [Is(FinWait1)])],
        why: "Both ends close at the same time, as if the two FINs had crossed on their way. Neither has heard \
              of the other's.",
        source: "RFC 9293, 3.6, figure 13",
    })?;
    at_server.remove()?;
    own.show(&Lesson {
        calls: &["what arrives at the server is not lost any more"],
        segments: &[to_server(1, "FIN"), to_client(1, "ACK")],
        facts: &[client(1, [Is(FinWait1)]), server(1, [Is(Closing)])],
        why: "The server has the client's FIN, and no acknowledgement of its own: it is in CLOSING. In \
              FIN_WAIT2 the acknowledgement comes first; here the FIN did.",
        source: "RFC 9293, 3.6",
    })?;
    at_client.remove()?;
    own.show(&Lesson {
        calls: &["nothing is lost any more"],
        segments: &[to_client(1, "FIN"), to_server(1, "ACK")],
        facts: &[client(1, [Is(TimeWait)]), server(1, [Is(TimeWait)])],
        why: "Both FINs are acknowledged. Both ends have closed first, so both are in TIME_WAIT.",
        source: "RFC 9293, 3.6",
    })
}

/// `retransmit`
pub(super) fn retransmit(cx: &Context<'_>) -> Result<(), Stop> {
    let mut stage = cx.stage(&cx.needs_raw()?)?;
    connect(&mut stage)?;
    let at_client = Filter::at(stage.socket(1))?;
    at_client.set()?;
    stage.write(1, b"hello")?;
    stage.show(&Lesson {
        calls: &["what arrives at the client is lost", "client: write(3, \"hello\", 5) = 5"],
        segments: &[to_server(1, "5 bytes"), to_client(1, "5 bytes")],
        facts: &[client(1, [Sent(5), Received(0)]), server(1, [Is(Established), Received(0), Sent(5)])],
        why: "The bytes have arrived, and the answer is on its way; but what comes back is lost. So both \
              ends have 5 bytes that are not acknowledged, and each sends them again, with twice the wait \
              each time.",
        source: "RFC 6298, 5; RFC 9293, 3.8.1",
    })?;
    at_client.remove()?;
    stage.show(&Lesson {
        calls: &["nothing is lost any more"],
        segments: &[to_client(1, "5 bytes"), to_server(1, "ACK")],
        facts: &answered(1, 5),
        why: "The next try arrives. The programs have noticed nothing but the time that it took: the answer \
              is there once, though it was sent more than once.",
        source: "RFC 9293, 3.8.1",
    })?;
    stage.expect(1, b"hello")
}

/// `probe`
pub(super) fn probe(cx: &Context<'_>) -> Result<(), Stop> {
    let (mut own, listener) = cx.any_stage(&cx.needs())?.own()?;
    own.connect_narrow()?;
    let mut accepted = accept(&listener)?;
    accepted.set_nonblocking(true).doing("a socket can be made non-blocking")?;
    let mut written = 0;
    while let Ok(more) = accepted.write(&[b'x'; 4 << 10]) {
        written += more;
    }
    own.show(&Lesson {
        calls: &["client: connect(3, server), and no read", "server: write(4, ...) until EAGAIN"],
        segments: &[to_client(1, "bytes"), to_server(1, "ACK")],
        facts: &[client(1, [ReceivedSome]), server(1, [SentSome, ZeroWindow])],
        why: "The window that the client offers is what its receive queue has room for. Now it is 0: the \
              server may send nothing, however much it has.",
        source: "RFC 9293, 3.8.6",
    })?;
    // The first probe comes after some 200 ms, the second after 400 more.
    own.let_pass(Duration::from_secs(1))?;
    own.show(&Lesson {
        calls: &["nothing is called for a second"],
        segments: &[to_client(1, "probe"), to_server(1, "ACK")],
        facts: &[client(1, [ReceivedSome]), server(1, [ZeroWindow])],
        why: "The segment that opens a window may be lost, and then both ends would wait for ever. So the \
              server asks from time to time, by a segment that has to be acknowledged. A client that is alive \
              may keep its window closed as long as it likes.",
        source: "RFC 9293, 3.8.6.1",
    })?;
    let mut left = written;
    while left > 0 {
        let bytes = own.read(1, left)?.doing("a client may read")?;
        left -= bytes.len().max(1);
    }
    own.show(&Lesson {
        calls: &[&format!("client: read(3) of all {written} bytes")],
        segments: &[to_server(1, "ACK"), to_client(1, "bytes")],
        facts: &[client(1, [Received(0)]), server(1, [Sent(0)])],
        why: "The client reads: an acknowledgement with a new window lets the rest go.",
        source: "RFC 9293, 3.8.6.2.2",
    })
}

/// `nagle`
pub(super) fn nagle(cx: &Context<'_>) -> Result<(), Stop> {
    let (own, _listener, accepted) = pair(cx)?;
    let at_server = Filter::at(&accepted)?;
    at_server.set()?;
    write(&accepted, b"first")?;
    write(&accepted, b"second")?;
    let held: [Fact; 2] = [client(1, [Received(5)]), server(1, [Sent(11)])];
    own.show(&Lesson {
        calls: &[
            "what arrives at the server is lost, acknowledgements among it",
            "server: write(4, \"first\", 5) = 5, write(4, \"second\", 6) = 6",
        ],
        segments: &[to_client(1, "5 bytes")],
        facts: &held,
        why: "The second write is in the send queue, and no segment carries it: with bytes that are not \
              acknowledged, the kernel sends no more than full segments (Nagle's algorithm). It waits for the \
              client's ACK.",
        source: "RFC 9293, 3.7.4",
    })?;
    at_server.remove()?;
    own.show(&Lesson {
        calls: &["nothing is lost any more"],
        segments: &[to_server(1, "ACK"), to_client(1, "6 bytes")],
        facts: &[client(1, [Received(11)]), server(1, [Sent(0)])],
        why: "The acknowledgement lets the second segment go.",
        source: "RFC 9293, 3.7.4",
    })?;
    own.expect(1, b"firstsecond")?;
    in_time(&own, accepted)
}

/// The same at full speed, with and without TCP_NODELAY.
fn in_time(own: &Stage<'_>, accepted: TcpStream) -> Result<(), Stop> {
    let mut times = [Duration::ZERO; 2];
    for (no_delay, longest) in [false, true].into_iter().zip(&mut times) {
        accepted.set_nodelay(no_delay).doing("TCP_NODELAY can be set")?;
        // A client that asks before it reads, as most do: its kernel has no reason to acknowledge at once.
        for _ in 0..8 {
            own.write(1, b"?")?;
            let start = Instant::now();
            write(&accepted, b"first")?;
            write(&accepted, b"second")?;
            own.expect(1, b"firstsecond")?;
            *longest = start.elapsed().max(*longest);
        }
    }
    let [with, without] = times.map(time);
    own.show(&Lesson {
        calls: &[
            &format!("server: write(4, \"first\", 5), write(4, \"second\", 6): {with} until the client has both"),
            &format!("with setsockopt(4, TCP_NODELAY): {without}"),
        ],
        segments: &[],
        facts: &[],
        why: "The longest of eight. The client's kernel may wait up to 40 ms with an ACK, for an answer that \
              could carry it; the server's waits for that ACK. Each is right, and together they cost 40 ms for \
              a reply in two parts. An answer in one write, or TCP_NODELAY, ends it.",
        source: "RFC 1122, 4.2.3.2 and 4.2.3.4",
    })
}

fn write(mut stream: &TcpStream, bytes: &[u8]) -> Result<(), Stop> {
    stream.write_all(bytes).doing("the server may write")
}
