//! A small server that keeps every rule of `evecho check`, or breaks exactly one of them.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::SockRef;

/// What a double does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    None,

    /// Swaps the two bytes of a connection that begins with two.
    SwapsTwo,
    /// Drops bytes that are zero.
    DropsNuls,
    /// Changes a byte after 64 reads of one byte in a row.
    MangleSingles,
    /// Answers the end of a stream with a reset.
    ResetsAtEnd,
    /// Keeps a connection open that ends without a byte.
    KeepsEmptyOpen,
    /// Drops a byte as soon as it holds 1 MiB for a reader that is late.
    DropsForTheLate,
    /// Waits for a connection's first byte before it accepts the next.
    AcceptsOneByOne,
    /// Writes to one connection at a time, and blocks in it.
    WritesOneByOne,
    /// Ends every connection when 20 were reset.
    DiesOfResets,
    /// Turns its 450th connection away.
    Counts,
    /// Turns connections away while it has 200.
    TooFew,
    /// Keeps a client waiting for over a second while another that has sent much is served.
    Starves,
    /// Answers wrong bytes over TCP on IPv6.
    WrongOnIpv6,

    /// Cuts a datagram of 512 bytes.
    Cuts512,
    /// Receives at most 2,048 bytes of a datagram.
    SmallBuffer,
    /// Does not answer an empty datagram.
    SkipsEmpty,
    /// Takes a datagram for text that a NUL ends.
    CutsAtNul,
    /// Answers from a port of its own.
    OtherPort,
    /// Answers from 127.0.0.1 what was asked of 127.0.0.2.
    OtherAddress,
    /// Answers every datagram twice.
    AnswersTwice,
    /// Keeps a datagram waiting for over a second while a TCP client with much is served.
    StarvesDatagrams,
    /// Has no UDP socket on IPv6.
    NoUdpOnIpv6,
    /// Ends the UDP service when a client turns out to be gone.
    DiesOfRefusal,

    /// Reads all that it gets into memory.
    Hoards,
    /// Spins while it has many idle connections.
    SpinsIdle,
    /// Spins while a connection takes no more.
    SpinsBlocked,
    /// Keeps the thread of a connection that has ended.
    KeepsThreads,
    /// Keeps the descriptor of a connection that has ended.
    KeepsDescriptors,
    /// Keeps the descriptor of a connection that was reset after 100 bytes.
    KeepsReset,
    /// Stops accepting for ever at the limit of descriptors.
    StopsAccepting,
    /// Tries to accept without a pause at the limit of descriptors.
    SpinsAccepting,
    /// Ends at the limit of descriptors.
    DiesAtLimit,
    /// Ends when a zero byte comes.
    DiesOfNuls,
    /// Leaves SIGTERM to the system's default.
    NoHandler,
    /// Exits with 1 on SIGTERM.
    ExitsWith1,

    /// Answers itself.
    AnswersItself,
    /// Ends the UDP service when an answer cannot be sent.
    DiesOfPortZero,
    /// Answers other echo services.
    AnswersEchoPorts,
    /// Answers broadcasts.
    AnswersBroadcasts,

    /// Does not know the capital of the German sharp s.
    KeepsSharpS,
    /// Takes every read for a text of its own.
    NoCarry,
    /// Replaces a byte that is no text.
    Replaces,
    /// Drops a character that the end of the stream cuts.
    DropsCutEnd,
    /// Goes on in a datagram where the last one ended.
    CarriesOn,
}

impl Fault {
    pub(crate) fn by_name(name: &str) -> Self {
        let all = ALL.iter().find(|fault| format!("{fault:?}") == name);
        *all.unwrap_or_else(|| panic!("no fault is called {name}"))
    }
}

/// Those that need a process.
const ALL: &[Fault] = &[
    Fault::None,
    Fault::Hoards,
    Fault::SpinsIdle,
    Fault::SpinsBlocked,
    Fault::KeepsThreads,
    Fault::KeepsDescriptors,
    Fault::StopsAccepting,
    Fault::SpinsAccepting,
    Fault::DiesAtLimit,
    Fault::DiesOfNuls,
    Fault::NoHandler,
    Fault::ExitsWith1,
    Fault::AnswersItself,
    Fault::DiesOfPortZero,
    Fault::AnswersEchoPorts,
    Fault::AnswersBroadcasts,
    Fault::KeepsReset,
];

/// Much, for a client of which others must not suffer.
const MUCH: usize = 512 << 10;

/// Longer than anyone may be kept waiting.
const TOO_LONG: Duration = Duration::from_millis(1_200);

/// What the threads of a double share.
pub(crate) struct Double {
    fault: Fault,
    upper: bool,
    port: u16,
    state: Mutex<State>,
    changed: Condvar,
    writing: Mutex<()>,
}

#[derive(Default)]
struct State {
    accepted: usize,
    open: usize,
    resets: usize,
    with_much: usize,
    streams: Vec<TcpStream>,
    kept: Vec<TcpStream>,
}

/// Binds once the port is free: another process may have it on one of the addresses for a moment, a client for its
/// own end, or a tool that looks whether it is free.
fn once_free<T>(mut bind: impl FnMut() -> io::Result<T>) -> T {
    loop {
        match bind() {
            Ok(bound) => return bound,
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{error}"),
        }
        thread::sleep(Duration::from_millis(1));
    }
}

impl Double {
    /// Serves on a free port of 127.0.0.1, 127.0.0.2 and ::1 until the process ends.
    pub(crate) fn start(fault: Fault, upper: bool) -> SocketAddr {
        loop {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let address = listener.local_addr().unwrap();
            // The other addresses may not have this port free.
            if Self::serve(fault, upper, listener).is_ok() {
                return address;
            }
        }
    }

    /// Serves on `port`, and ends the process with 0 on SIGTERM.
    pub(crate) fn main(fault: Fault, upper: bool, port: u16) -> ! {
        if fault != Fault::NoHandler {
            let (mut signalled, signal) = UnixStream::pair().unwrap();
            signal_hook::low_level::pipe::register(signal_hook::consts::SIGTERM, signal).unwrap();
            thread::spawn(move || {
                signalled.read_exact(&mut [0]).unwrap();
                std::process::exit(i32::from(fault == Fault::ExitsWith1));
            });
        }
        let listener = once_free(|| TcpListener::bind((Ipv4Addr::LOCALHOST, port)));
        once_free(|| Self::serve(fault, upper, listener.try_clone()?));
        drop(listener);
        for_ever()
    }

    fn serve(fault: Fault, upper: bool, listener: TcpListener) -> io::Result<()> {
        let port = listener.local_addr()?.port();
        let on = |ip: IpAddr| SocketAddr::new(ip, port);
        let (home, other) =
            (on(Ipv4Addr::LOCALHOST.into()), on(Ipv4Addr::new(127, 0, 0, 2).into()));
        let ipv6 = on(Ipv6Addr::LOCALHOST.into());
        let listener_6 = TcpListener::bind(ipv6)?;
        let home = UdpSocket::bind(home)?;
        let mut sockets = vec![home.try_clone()?, UdpSocket::bind(other)?];
        if fault != Fault::NoUdpOnIpv6 {
            sockets.push(UdpSocket::bind(ipv6)?);
        }
        // Clients may take all descriptors as soon as they are accepted: ours come before.
        let mut pairs = Vec::new();
        for socket in sockets {
            pairs.push((speaker(fault, &socket, &home)?, socket));
        }
        let double = Arc::new(Self {
            fault,
            upper,
            port,
            state: Mutex::default(),
            changed: Condvar::new(),
            writing: Mutex::default(),
        });
        if fault == Fault::AnswersBroadcasts {
            let everyone = UdpSocket::bind(on(Ipv4Addr::new(127, 255, 255, 255).into()))?;
            pairs.push((home.try_clone()?, everyone));
        }
        for (speaker, socket) in pairs {
            let double = double.clone();
            thread::spawn(move || double.datagrams(&socket, &speaker));
        }
        for listener in [listener, listener_6] {
            let double = double.clone();
            thread::spawn(move || double.accept(&listener));
        }
        if fault == Fault::SpinsIdle {
            thread::spawn(move || double.spin_while_many());
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    // TCP

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        loop {
            let open = self.state().open;
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(_) => match self.fault {
                    Fault::StopsAccepting => for_ever(),
                    Fault::SpinsAccepting => continue,
                    Fault::DiesAtLimit => std::process::exit(3),
                    _ => {
                        self.wait_for_fewer(open);
                        continue;
                    }
                },
            };
            self.bury_the_reset();
            if self.takes() {
                self.take(stream);
            }
        }
    }

    fn wait_for_fewer(&self, open: usize) {
        let fewer = self.changed.wait_while(self.state(), |state| state.open >= open);
        drop(fewer.unwrap());
    }

    /// Whether a connection is served at all.
    fn takes(&self) -> bool {
        let mut state = self.state();
        state.accepted += 1;
        match self.fault {
            Fault::Counts => state.accepted != 450,
            Fault::TooFew => state.open < 200,
            _ => true,
        }
    }

    fn take(self: &Arc<Self>, stream: TcpStream) {
        if self.fault == Fault::AcceptsOneByOne {
            let _ = stream.peek(&mut [0]);
        }
        let mut state = self.state();
        state.open += 1;
        if self.fault == Fault::DiesOfResets {
            state.streams.push(stream.try_clone().unwrap());
        }
        drop(state);
        let double = self.clone();
        thread::spawn(move || {
            let mut connection = Connection::new(&double, stream);
            let ended = connection.run();
            if ended.is_err() {
                double.state().resets += 1;
            }
            let Connection { stream, much, total, .. } = connection;
            if ended.is_err() && total > 100 && double.fault == Fault::KeepsReset {
                let kept = stream.try_clone().unwrap();
                double.state().kept.push(kept);
            }
            if much {
                double.state().with_much -= 1;
            }
            double.end(stream);
        });
    }

    /// What is left when a connection has ended.
    fn end(&self, stream: TcpStream) {
        let many = self.state().open > 40;
        if self.fault == Fault::DiesOfResets {
            // The list has it too.
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        if self.fault == Fault::KeepsDescriptors && many {
            let _ = stream.shutdown(std::net::Shutdown::Both);
            self.state().kept.push(stream);
        } else {
            drop(stream);
        }
        self.state().open -= 1;
        self.changed.notify_all();
        if self.fault == Fault::KeepsThreads && many {
            for_ever();
        }
    }

    /// Ends all connections when too many were reset. Those of which no thread has heard yet
    /// are found by their pending error.
    fn bury_the_reset(&self) {
        let mut state = self.state();
        let pending =
            state.streams.iter().filter(|stream| matches!(stream.take_error(), Ok(Some(_))));
        let found = pending.count();
        state.resets += found;
        if self.fault == Fault::DiesOfResets && state.resets >= 20 {
            for stream in state.streams.drain(..) {
                let _ = stream.shutdown(std::net::Shutdown::Both);
            }
        }
    }

    fn spin_while_many(&self) {
        loop {
            drop(self.changed.wait_timeout(self.state(), Duration::from_millis(5)).unwrap());
            while self.state().open >= 40 {
                std::hint::spin_loop();
            }
        }
    }

    // UDP

    fn datagrams(&self, socket: &UdpSocket, speaker: &UdpSocket) {
        let own = socket.local_addr().unwrap();
        let mut refused = 0;
        let size = if self.fault == Fault::SmallBuffer { 2_048 } else { 1 << 16 };
        let mut buffer = vec![0; size];
        let mut carry = Vec::new();
        loop {
            let (length, from) = match socket.recv_from(&mut buffer) {
                Ok(received) => received,
                // A client of the cases before may have been gone too.
                Err(_) if self.fault == Fault::DiesOfRefusal && refused == 5 => return,
                Err(_) => {
                    refused += 1;
                    continue;
                }
            };
            if self.ignores(from, own) {
                continue;
            }
            let Some(answer) = self.datagram(&buffer[..length], &mut carry) else { continue };
            let sent = speaker.send_to(&answer, from);
            if self.fault == Fault::AnswersTwice {
                let _ = speaker.send_to(&answer, from);
            }
            if sent.is_err() && self.fault == Fault::DiesOfPortZero {
                return;
            }
        }
    }

    fn ignores(&self, from: SocketAddr, own: SocketAddr) -> bool {
        match from.port() {
            7 | 19 => self.fault != Fault::AnswersEchoPorts,
            port if port == self.port => from == own && self.fault != Fault::AnswersItself,
            _ => false,
        }
    }

    /// The answer to a datagram, if it gets one.
    fn datagram(&self, data: &[u8], carry: &mut Vec<u8>) -> Option<Vec<u8>> {
        if self.fault == Fault::StarvesDatagrams && self.state().with_much > 0 {
            thread::sleep(TOO_LONG);
        }
        let data = match self.fault {
            Fault::Cuts512 if data.len() == 512 => &data[..511],
            Fault::SkipsEmpty if data.is_empty() => return None,
            Fault::CutsAtNul => data.split(|&byte| byte == 0).next().unwrap_or(data),
            _ => data,
        };
        if !self.upper {
            return Some(data.to_vec());
        }
        if self.fault == Fault::CarriesOn {
            return Some(upper_of(carry, data));
        }
        let mut none = Vec::new();
        let mut answer = upper_of(&mut none, data);
        answer.append(&mut none);
        Some(answer)
    }
}

/// The socket that answers what comes to `socket`.
fn speaker(fault: Fault, socket: &UdpSocket, home: &UdpSocket) -> io::Result<UdpSocket> {
    let own = socket.local_addr()?;
    match fault {
        Fault::OtherPort => UdpSocket::bind((own.ip(), 0)),
        Fault::OtherAddress if own.is_ipv4() => home.try_clone(),
        #[cfg(target_os = "linux")]
        Fault::DiesOfRefusal if own.is_ipv4() => {
            use nix::sys::socket::{setsockopt, sockopt};

            setsockopt(socket, sockopt::Ipv4RecvErr, &true)?;
            socket.try_clone()
        }
        _ => socket.try_clone(),
    }
}

fn for_ever() -> ! {
    loop {
        thread::park();
    }
}

/// One TCP connection of a double.
struct Connection<'a> {
    double: &'a Double,
    stream: TcpStream,
    total: usize,
    singles: usize,
    much: bool,
    delayed: bool,
    /// Bytes of a character that is not complete yet.
    carry: Vec<u8>,
}

impl<'a> Connection<'a> {
    fn new(double: &'a Double, stream: TcpStream) -> Self {
        let (total, singles, much, delayed) = (0, 0, false, false);
        Self { double, stream, total, singles, much, delayed, carry: Vec::new() }
    }

    /// Echoes until the client has ended its stream.
    fn run(&mut self) -> io::Result<()> {
        match self.double.fault {
            Fault::Hoards => return self.hoard(None),
            Fault::DropsForTheLate => return self.hoard(Some(1 << 20)),
            _ => {}
        }
        let mut buffer = vec![0; 64 << 10];
        loop {
            let length = self.stream.read(&mut buffer)?;
            if length == 0 {
                return self.finish();
            }
            self.count(length);
            self.stall();
            let answer = self.answer(&buffer[..length]);
            self.write(&answer)?;
        }
    }

    fn count(&mut self, length: usize) {
        self.total += length;
        self.singles = if length == 1 { self.singles + 1 } else { 0 };
        if self.total > MUCH && !self.much {
            self.much = true;
            self.double.state().with_much += 1;
        }
    }

    fn stall(&mut self) {
        let starves = self.double.fault == Fault::Starves && !self.much && !self.delayed;
        if starves && self.double.state().with_much > 0 {
            self.delayed = true;
            thread::sleep(TOO_LONG);
        }
    }

    fn answer(&mut self, read: &[u8]) -> Vec<u8> {
        let mut answer = self.serve(read);
        match self.double.fault {
            Fault::SwapsTwo if self.total == 2 && read.len() == 2 => answer.swap(0, 1),
            Fault::DiesOfNuls if read.contains(&0) => {
                // Not by eprintln, which the test harness may capture.
                let _ = io::stderr().write_all(b"a NUL came\n");
                std::process::exit(3);
            }
            Fault::DropsNuls => answer.retain(|&byte| byte != 0),
            Fault::MangleSingles if self.singles > 64 => answer[0] ^= 1,
            Fault::WrongOnIpv6 if self.stream.local_addr().is_ok_and(|own| own.is_ipv6()) => {
                answer[0] ^= 1;
            }
            _ => {}
        }
        answer
    }

    /// What the service makes of the bytes, faults of the upper-case service included.
    fn serve(&mut self, read: &[u8]) -> Vec<u8> {
        if !self.double.upper {
            return read.to_vec();
        }
        let mut answer = upper_of(&mut self.carry, read);
        match self.double.fault {
            Fault::KeepsSharpS => answer = replaced(&answer, b"SS", "ß".as_bytes()),
            Fault::NoCarry => answer.append(&mut self.carry),
            Fault::Replaces => {
                answer.iter_mut().filter(|byte| **byte == 0xff).for_each(|byte| *byte = b'?')
            }
            _ => {}
        }
        answer
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self.double.fault {
            Fault::WritesOneByOne => {
                let _only = self.double.writing.lock().unwrap();
                self.stream.write_all(bytes)
            }
            Fault::SpinsBlocked => {
                self.stream.set_nonblocking(true)?;
                let written = self.spin(bytes);
                self.stream.set_nonblocking(false)?;
                written
            }
            _ => self.stream.write_all(bytes),
        }
    }

    fn spin(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(length) => bytes = &bytes[length..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads always, and holds what it cannot write yet. One byte is lost when it first holds
    /// `too_much`.
    fn hoard(&mut self, mut too_much: Option<usize>) -> io::Result<()> {
        self.stream.set_nonblocking(true)?;
        let mut held = std::collections::VecDeque::new();
        let mut buffer = vec![0; 64 << 10];
        let mut ended = false;
        while !ended || !held.is_empty() {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::POLLIN, !ended);
            flags.set(PollFlags::POLLOUT, !held.is_empty());
            poll(&mut [PollFd::new(self.stream.as_fd(), flags)], PollTimeout::NONE)?;
            match self.stream.read(&mut buffer) {
                Ok(0) => ended = true,
                Ok(length) => held.extend(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if too_much.is_some_and(|most| held.len() > most) {
                held.pop_back();
                too_much = None;
            }
            match self.stream.write(held.as_slices().0) {
                Ok(length) => drop(held.drain(..length)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The client has ended its stream.
    fn finish(&mut self) -> io::Result<()> {
        if self.double.fault != Fault::DropsCutEnd {
            let rest = std::mem::take(&mut self.carry);
            self.stream.write_all(&rest)?;
        }
        match self.double.fault {
            Fault::ResetsAtEnd if self.total > 0 => {
                SockRef::from(&self.stream).set_linger(Some(Duration::ZERO))?;
            }
            Fault::KeepsEmptyOpen if self.total == 0 => {
                let kept = self.stream.try_clone()?;
                self.double.state().kept.push(kept);
            }
            _ => {}
        }
        Ok(())
    }
}

fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    match bytes.windows(from.len()).position(|window| window == from) {
        None => bytes.to_vec(),
        Some(at) => [&bytes[..at], to, &bytes[at + from.len()..]].concat(),
    }
}

/// The capitals of what `carry` and `read` have together; a character that the end cuts stays in
/// `carry`.
fn upper_of(carry: &mut Vec<u8>, read: &[u8]) -> Vec<u8> {
    let bytes = [carry.as_slice(), read].concat();
    carry.clear();
    let mut answer = Vec::new();
    let mut at = 0;
    for chunk in bytes.utf8_chunks() {
        answer.extend(chunk.valid().to_uppercase().into_bytes());
        at += chunk.valid().len() + chunk.invalid().len();
        let cut = at == bytes.len()
            && std::str::from_utf8(chunk.invalid()).is_err_and(|error| error.error_len().is_none());
        if cut { &mut *carry } else { &mut answer }.extend(chunk.invalid());
    }
    answer
}
