//! The scenario about datagrams, which open no connection and have no states.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::libc::{sock_extended_err, sockaddr_in6};
use nix::poll::PollFlags;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use socket2::SockRef;

use crate::client::harness::Stop;
use crate::client::socket;
use crate::client::states::Context;
use crate::client::states::stage::{Doing, Lesson, Stage, to_client, to_server};
use crate::sys::socket::report_errors;
use crate::units::time;

/// A datagram that is not there after this time does not come.
const QUIET: Duration = Duration::from_millis(300);

/// `udp`
pub(super) fn udp(cx: &Context<'_>) -> Result<(), Stop> {
    let (mut stage, server) = cx.any_stage(&cx.needs())?.own_udp()?;
    let client = socket::udp(stage.address).doing("a client may connect a UDP socket")?;
    stage.enter_udp(&client)?;
    stage.show(&Lesson {
        calls: &[
            "server: socket(AF_INET, SOCK_DGRAM, 0), bind(3, port)",
            "client 1: socket(AF_INET, SOCK_DGRAM, 0), connect(3, server) = 0",
        ],
        segments: &[],
        facts: &[],
        why: "UDP opens no connection: connect(2) sends nothing, and would succeed without a server, too. It \
              notes the address to which this socket sends, and from which alone it receives. There are no \
              states to see.",
        source: "RFC 768; udp(7), connect(2)",
    })?;
    exchange(&stage, &client, &server)?;
    drop(server);
    refused(&stage, &client)?;
    unconnected(&mut stage)
}

/// Three datagrams and their replies.
fn exchange(stage: &Stage<'_>, client: &UdpSocket, server: &UdpSocket) -> Result<(), Stop> {
    let messages = [&b"one"[..], b"two", b"three"];
    for message in messages {
        client.send(message).doing("a client may send a datagram")?;
        let (received, from) = receive(stage, server)?.doing("the server may receive")?;
        server.send_to(&received, from).doing("the server may send a reply")?;
    }
    for message in messages {
        let (reply, _) = receive(stage, client)?.doing("a client may receive")?;
        if reply != message {
            let seen = format!("'{}'", reply.escape_ascii());
            return Err(Stop::failed("each reply is a datagram of its own", seen));
        }
    }
    stage.show(&Lesson {
        calls: &[
            "client 1: send(3, \"one\", 3), send(3, \"two\", 3), send(3, \"three\", 5)",
            "server: recvfrom(3, buffer, 100) = 3, sendto(3, \"one\", 3, client 1), and so on",
            "client 1: recv(3, buffer, 100) = 3 \"one\", = 3 \"two\", = 5 \"three\"",
        ],
        segments: &[
            to_server(1, "3 bytes"),
            to_client(1, "3 bytes"),
            to_server(1, "3 bytes"),
            to_client(1, "3 bytes"),
            to_server(1, "5 bytes"),
            to_client(1, "5 bytes"),
        ],
        facts: &[],
        why: "Each datagram is a message: three are sent, and three reads return them, where a stream would \
              have returned all bytes at once. Nothing is acknowledged: what is lost is not sent again.",
        source: "RFC 768; udp(7)",
    })
}

/// A port that no socket has any more.
fn refused(stage: &Stage<'_>, client: &UdpSocket) -> Result<(), Stop> {
    let unreachable = Unreachable::over(stage.address);
    client.send(b"hello").doing("a client may send a datagram")?;
    let deadline = stage.within(stage.patience());
    if !deadline.is_ready(client, PollFlags::POLLIN).doing("a socket can be waited for")? {
        let dropped = "no ICMP message came back: a firewall may have dropped it";
        return Err(Stop::skipped(dropped));
    }
    stage.show(&Lesson {
        calls: &["server: close(3)", "client 1: send(3, \"hello\", 5) = 5"],
        segments: &[to_server(1, "5 bytes"), to_client(1, "ICMP")],
        facts: &[],
        why: &format!(
            "The kernel has sent the datagram, so send(2) has succeeded. No socket has this port any more, and \
             the host of the server says so: {unreachable}, with the beginning of the datagram that it is about."
        ),
        source: unreachable.source,
    })?;
    assert_refused(stage, client)?;
    stage.show(&Lesson {
        calls: &["client 1: recv(3) = -1 ECONNREFUSED"],
        segments: &[],
        facts: &[],
        why: "The socket is connected, so the kernel knows which one the message is about. The next call on it \
              returns the error, once, whatever call that is. A firewall may drop the message, so a client \
              needs a timeout all the same.",
        source: "RFC 1122, 4.1.3.3; udp(7)",
    })
}

/// A client that sends without being connected.
fn unconnected(stage: &mut Stage<'_>) -> Result<(), Stop> {
    let client = socket::bind_udp(SocketAddr::new(stage.address.ip(), 0));
    let client = client.doing("a client gets a port")?;
    stage.enter_udp(&client)?;
    client.send_to(b"hello", stage.address).doing("a client may send a datagram")?;
    match socket::receive(&client, &mut [0; 100], stage.within(QUIET)) {
        Ok(None) => {}
        other => return Err(Stop::failed("recvfrom(2) does not return", format!("{other:?}"))),
    }
    stage.show(&Lesson {
        calls: &[
            "client 2: socket(AF_INET, SOCK_DGRAM, 0), sendto(4, \"hello\", 5, server) = 5",
            "client 2: recvfrom(4) does not return",
        ],
        segments: &[to_server(2, "5 bytes"), to_client(2, "ICMP")],
        facts: &[],
        why: "This socket is not connected and may send to many addresses, and an error could not say to \
              which. So the kernel drops the same message here. Without a timeout the client waits for ever.",
        source: "RFC 1122, 4.1.3.3; udp(7)",
    })?;
    with_errors(stage, &client)
}

/// The same client, which asks for errors.
fn with_errors(stage: &Stage<'_>, client: &UdpSocket) -> Result<(), Stop> {
    let unreachable = Unreachable::over(stage.address);
    report_errors(&SockRef::from(client), stage.address.is_ipv6())
        .doing("IP_RECVERR can be set")?;
    client.send_to(b"hello", stage.address).doing("a client may send a datagram")?;
    assert_refused(stage, client)?;
    let kept = reported(client).doing("the error can be read")?;
    if kept != Some((unreachable.kind, unreachable.code)) {
        return Err(Stop::failed(unreachable.to_string(), format!("{kept:?}")));
    }
    stage.show(&Lesson {
        calls: &[
            "client 2: setsockopt(4, IP_RECVERR), sendto(4, \"hello\", 5, server) = 5",
            "client 2: recvfrom(4) = -1 ECONNREFUSED, recvmsg(4, MSG_ERRQUEUE) = 5",
        ],
        segments: &[to_server(2, "5 bytes"), to_client(2, "ICMP")],
        facts: &[],
        why: &format!(
            "With this option it does not drop it: recvmsg(2) tells type and code ({}, {}), and the address \
             to which the datagram was sent.",
            unreachable.kind, unreachable.code
        ),
        source: "ip(7), IP_RECVERR; ipv6(7), IPV6_RECVERR",
    })
}

/// The ICMP message of a port that no socket has.
struct Unreachable {
    protocol: &'static str,
    kind: u8,
    code: u8,
    source: &'static str,
}

impl Unreachable {
    fn over(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(_) => {
                Self { protocol: "ICMP", kind: 3, code: 3, source: "RFC 792; RFC 1122, 4.1.3.1" }
            }
            SocketAddr::V6(_) => {
                Self { protocol: "ICMPv6", kind: 1, code: 4, source: "RFC 4443, 3.1" }
            }
        }
    }
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { protocol, kind, code, .. } = self;
        write!(
            f,
            "{protocol} destination unreachable (type {kind}), port unreachable (code {code})"
        )
    }
}

/// The next datagram and its sender, or the error of the socket. It fails when nothing comes.
fn receive(
    stage: &Stage<'_>,
    socket: &UdpSocket,
) -> Result<io::Result<(Vec<u8>, SocketAddr)>, Stop> {
    let mut buffer = [0; 100];
    let received = socket::receive(socket, &mut buffer, stage.within(stage.patience()));
    let received = received.transpose().ok_or_else(|| {
        let seen = format!("nothing came in {}", time(stage.patience()));
        Stop::failed("a datagram arrives", seen)
    })?;
    Ok(received.map(|(length, from)| (buffer[..length].to_vec(), from)))
}

/// Fails when the next call on a socket does not return ECONNREFUSED.
fn assert_refused(stage: &Stage<'_>, socket: &UdpSocket) -> Result<(), Stop> {
    match receive(stage, socket)? {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        other => Err(Stop::failed("the next call returns ECONNREFUSED", format!("{other:?}"))),
    }
}

/// Type and code of the ICMP message that a socket keeps (ip(7), IP_RECVERR).
fn reported(socket: &UdpSocket) -> io::Result<Option<(u8, u8)>> {
    let mut space = nix::cmsg_space!(sock_extended_err, sockaddr_in6);
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut [], Some(&mut space), flags)?;
    let kept = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4RecvErr(error, _) | ControlMessageOwned::Ipv6RecvErr(error, _) => {
            Some((error.ee_type, error.ee_code))
        }
        _ => None,
    });
    Ok(kept)
}
