//! Asks the kernel for its sockets (sock_diag(7)). Any process may ask, for sockets of any process and
//! for those that no process has: not accepted yet, closed already, in TIME_WAIT.

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_sock_diag::constants as kernel;
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponse, InetResponseHeader, SocketId, StateFlags, Timer,
};
use netlink_packet_sock_diag::{AF_INET, AF_INET6, IPPROTO_TCP, SockDiagMessage};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr as NetlinkAddr};

use super::report::{End, Listener, State};

/// More than the kernel puts into one part of an answer (NLMSG_GOODSIZE).
const ROOM: usize = 32 << 10;
const ANY_V4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const ANY_V6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// The kernel's sockets of this network namespace.
pub(in crate::client) struct Kernel {
    socket: Socket,
    asked: Cell<u32>,
}

impl Kernel {
    /// # Errors
    ///
    /// When the kernel may not be asked here, or does not answer that.
    pub(in crate::client) fn open() -> io::Result<Self> {
        let socket = Socket::new(NETLINK_SOCK_DIAG)?;
        let kernel = Self { socket, asked: Cell::new(0) };
        // A kernel without sock_diag for TCP says so here: later, "not found" means no such end.
        kernel.listener((Ipv4Addr::LOCALHOST, 1).into())?;
        Ok(kernel)
    }

    /// One end of a connection: [`State::Closed`] where there is none.
    pub(super) fn end(&self, local: SocketAddr, peer: SocketAddr) -> io::Result<End> {
        let answers = self.connection(local, peer, ExtensionFlags::empty())?;
        // Without a connection, the kernel finds the socket that listens there.
        let mut ends = answers.iter().filter_map(|answer| end_of(&answer.header));
        Ok(ends.find(|end| end.state != State::Listen).unwrap_or(End::CLOSED))
    }

    /// How many bytes that were written at one end the kernel has not sent even once (`tcpi_notsent_bytes`); none
    /// where there is no such end.
    pub(in crate::client) fn not_sent(
        &self,
        local: SocketAddr,
        peer: SocketAddr,
    ) -> io::Result<u32> {
        /// Where it is in `struct tcp_info` (linux/tcp.h), to which the kernel only ever appends.
        const AT: std::ops::Range<usize> = 144..148;
        let answers = self.connection(local, peer, ExtensionFlags::INFO)?;
        let infos = answers.iter().flat_map(|answer| &answer.nlas).filter_map(|nla| match nla {
            Nla::TcpInfo(info) => info.get(AT)?.try_into().ok().map(u32::from_ne_bytes),
            _ => None,
        });
        Ok(infos.sum())
    }

    fn connection(
        &self,
        local: SocketAddr,
        peer: SocketAddr,
        extensions: ExtensionFlags,
    ) -> io::Result<Vec<InetResponse>> {
        let zone = match local {
            SocketAddr::V6(address) => address.scope_id(),
            SocketAddr::V4(_) => 0,
        };
        let id = SocketId { interface_id: zone, ..between(local, peer) };
        match self.ask(NLM_F_REQUEST, StateFlags::all(), extensions, id) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(vec![]),
            answers => answers,
        }
    }

    /// What listens at an address, on it alone or on all.
    pub(super) fn listener(&self, address: SocketAddr) -> io::Result<Option<Listener>> {
        let mut found = None;
        for any in [ANY_V4, ANY_V6] {
            let local = SocketAddr::new(any, address.port());
            let id = between(local, SocketAddr::new(any, 0));
            let answers = self.dump(StateFlags::LISTEN, id)?;
            let headers = answers.iter().map(|answer| &answer.header);
            for answer in headers.filter(|answer| listens_at(answer, address)) {
                let listener = found.get_or_insert_with(Listener::default);
                listener.waiting += answer.recv_queue;
                listener.backlog += answer.send_queue;
                listener.room += answer.send_queue.saturating_add(1);
            }
        }
        Ok(found)
    }

    /// How many TCP sockets of this side are connected to `server`, or were in the last minute (TIME_WAIT): each
    /// has a local port.
    pub(in crate::client) fn ports_taken(&self, server: SocketAddr) -> io::Result<u64> {
        let any = if server.is_ipv4() { ANY_V4 } else { ANY_V6 };
        let peer = SocketAddr::new(any, server.port());
        let id = between(SocketAddr::new(any, 0), peer);
        let answers = self.dump(StateFlags::all(), id)?;
        let to_server = answers.iter().filter(|answer| {
            answer.header.socket_id.destination_address.to_canonical() == server.ip().to_canonical()
        });
        Ok(to_server.count() as u64)
    }

    /// All sockets that are like this one.
    fn dump(&self, states: StateFlags, id: SocketId) -> io::Result<Vec<InetResponse>> {
        self.ask(NLM_F_REQUEST | NLM_F_DUMP, states, ExtensionFlags::empty(), id)
    }

    fn ask(
        &self,
        flags: u16,
        states: StateFlags,
        extensions: ExtensionFlags,
        socket_id: SocketId,
    ) -> io::Result<Vec<InetResponse>> {
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.asked.get().wrapping_add(1);
        self.asked.set(header.sequence_number);
        let family = if socket_id.source_address.is_ipv4() { AF_INET } else { AF_INET6 };
        let request = InetRequest { family, protocol: IPPROTO_TCP, extensions, states, socket_id };
        let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send_to(&bytes, &NetlinkAddr::new(0, 0), 0)?;
        let mut answers = Vec::new();
        loop {
            let part = self.receive()?;
            if take(&part, header.sequence_number, flags, &mut answers)? {
                return Ok(answers);
            }
        }
    }

    /// A part of an answer: the next one is there as soon as the one before was read.
    fn receive(&self) -> io::Result<Vec<u8>> {
        let mut part = Vec::with_capacity(ROOM);
        loop {
            match self.socket.recv(&mut part, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                received => return received.map(|_| part),
            }
        }
    }
}

/// The socket with these ends; an address of all, or a port of 0, is any.
fn between(local: SocketAddr, peer: SocketAddr) -> SocketId {
    SocketId {
        source_port: local.port(),
        destination_port: peer.port(),
        source_address: local.ip().to_canonical(),
        destination_address: peer.ip().to_canonical(),
        interface_id: 0,
        // Any cookie will do (INET_DIAG_NOCOOKIE).
        cookie: [0xff; 8],
    }
}

/// Takes the messages of one part of an answer; whether it was the last one.
fn take(
    mut part: &[u8],
    number: u32,
    flags: u16,
    answers: &mut Vec<InetResponse>,
) -> io::Result<bool> {
    while !part.is_empty() {
        let message = NetlinkMessage::<SockDiagMessage>::deserialize(part)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
        let length = (message.header.length as usize).next_multiple_of(4).max(4);
        part = part.get(length..).unwrap_or_default();
        if message.header.sequence_number != number {
            continue;
        }
        match message.payload {
            NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                answers.push(*response);
                if flags & NLM_F_DUMP == 0 {
                    return Ok(true);
                }
            }
            NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
            NetlinkPayload::Done(_) | NetlinkPayload::Error(_) => return Ok(true),
            _ => {}
        }
    }
    Ok(false)
}

fn end_of(answer: &InetResponseHeader) -> Option<End> {
    Some(End {
        state: state(answer.state)?,
        receive_queue: answer.recv_queue,
        send_queue: answer.send_queue,
        retransmissions: match answer.timer {
            Some(Timer::Retransmit(_, count)) => count,
            _ => 0,
        },
        owned: answer.inode != 0,
        zero_window: matches!(answer.timer, Some(Timer::Probe(_))),
    })
}

fn state(number: u8) -> Option<State> {
    Some(match number {
        kernel::TCP_ESTABLISHED => State::Established,
        kernel::TCP_SYN_SENT => State::SynSent,
        // The second is that of a request that has no socket of its own yet (TCP_NEW_SYN_RECV).
        kernel::TCP_SYN_RECV | 12 => State::SynRecv,
        kernel::TCP_FIN_WAIT1 => State::FinWait1,
        kernel::TCP_FIN_WAIT2 => State::FinWait2,
        kernel::TCP_TIME_WAIT => State::TimeWait,
        kernel::TCP_CLOSE => State::Closed,
        kernel::TCP_CLOSE_WAIT => State::CloseWait,
        kernel::TCP_LAST_ACK => State::LastAck,
        kernel::TCP_LISTEN => State::Listen,
        kernel::TCP_CLOSING => State::Closing,
        _ => return None,
    })
}

/// Whether this listening socket gets what is sent to `address`.
fn listens_at(answer: &InetResponseHeader, address: SocketAddr) -> bool {
    let bound = answer.socket_id.source_address.to_canonical();
    answer.socket_id.source_port == address.port()
        && (bound == address.ip().to_canonical()
            || bound.is_unspecified() && (bound.is_ipv6() || address.is_ipv4()))
}

#[cfg(test)]
mod tests {
    use std::net::{Shutdown, TcpListener, TcpStream};

    use socket2::SockRef;

    use super::*;

    #[test]
    fn both_ends_and_the_listener_are_found() {
        let kernel = Kernel::open().unwrap();
        for bind in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            let listener = TcpListener::bind(bind).unwrap();
            let port = listener.local_addr().unwrap().port();
            let ip: IpAddr = if bind == "[::1]:0" {
                Ipv6Addr::LOCALHOST.into()
            } else {
                Ipv4Addr::LOCALHOST.into()
            };
            let client = TcpStream::connect((ip, port)).unwrap();
            let (local, peer) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
            let found = kernel.listener(peer).unwrap().unwrap();
            assert_eq!((found.waiting, found.room), (1, found.backlog + 1), "{bind}");
            let end = kernel.end(local, peer).unwrap();
            assert_eq!((end.state, end.owned), (State::Established, true), "{bind}");
            let end = kernel.end(peer, local).unwrap();
            assert!(end.waits_to_be_accepted(), "{bind}: {end}");
            let (accepted, _) = listener.accept().unwrap();
            let end = kernel.end(peer, local).unwrap();
            assert!(!end.waits_to_be_accepted(), "{bind}: {end}");
            // At once, though a process that another test is starting may have them, too.
            for stream in [client, accepted] {
                stream.shutdown(Shutdown::Both).unwrap();
            }
            assert_eq!(kernel.end(local, peer).unwrap().state, State::TimeWait, "{bind}");
            assert_eq!(kernel.end(peer, local).unwrap(), End::CLOSED, "{bind}");
            SockRef::from(&listener).shutdown(Shutdown::Both).unwrap();
            assert_eq!(kernel.listener(peer).unwrap(), None, "{bind}");
        }
    }

    #[test]
    fn what_a_small_window_holds_back_is_not_sent() {
        let kernel = Kernel::open().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (local, peer) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        assert_eq!(kernel.not_sent(local, peer).unwrap(), 0);
        client.set_nonblocking(true).unwrap();
        while io::Write::write(&mut &client, &[0; 1 << 16]).is_ok() {}
        let queued = kernel.end(local, peer).unwrap().send_queue;
        let not_sent = kernel.not_sent(local, peer).unwrap();
        assert!(0 < not_sent && not_sent <= queued, "{not_sent} of {queued}");
        drop(listener);
        assert_eq!(kernel.not_sent(local, (Ipv4Addr::LOCALHOST, 1).into()).unwrap(), 0);
    }

    #[test]
    fn what_is_cut_anywhere_does_no_harm() {
        let kernel = Kernel::open().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let request = InetRequest {
            family: AF_INET,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::all(),
            socket_id: SocketId::new_v4(),
        };
        let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        kernel.socket.send_to(&bytes, &NetlinkAddr::new(0, 0), 0).unwrap();
        let part = kernel.receive().unwrap();
        for length in 0..part.len().min(1_000) {
            let _ = take(&part[..length], 0, NLM_F_DUMP, &mut Vec::new());
        }
    }

    #[test]
    fn a_listener_on_all_addresses_hears_those_of_its_family() {
        let at = |bound: &str, port| {
            let (family, source_address): (u8, IpAddr) = match bound.parse().unwrap() {
                v4 @ IpAddr::V4(_) => (AF_INET, v4),
                v6 => (AF_INET6, v6),
            };
            InetResponseHeader {
                family,
                state: kernel::TCP_LISTEN,
                timer: None,
                socket_id: SocketId { source_port: port, source_address, ..SocketId::new_v4() },
                recv_queue: 0,
                send_queue: 0,
                uid: 0,
                inode: 1,
            }
        };
        for (bound, address, hears) in [
            ("127.0.0.1", "127.0.0.1:7", true),
            ("127.0.0.1", "127.0.0.2:7", false),
            ("0.0.0.0", "127.0.0.2:7", true),
            ("0.0.0.0", "[::1]:7", false),
            ("::", "[::1]:7", true),
            ("::", "127.0.0.1:7", true),
            ("::ffff:127.0.0.1", "127.0.0.1:7", true),
            ("::1", "127.0.0.1:7", false),
        ] {
            assert_eq!(
                listens_at(&at(bound, 7), address.parse().unwrap()),
                hears,
                "{bound} {address}"
            );
            assert!(!listens_at(&at(bound, 8), address.parse().unwrap()));
        }
    }
}
