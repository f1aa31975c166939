//! `evecho send`: sends messages or a stream to a server, and writes what comes back.
//!
//! Over TCP one loop moves bytes between the input, the server and the output. It never waits for
//! only one of them, so it cannot deadlock, whatever the size of the file. It holds at most one
//! buffer each way (or one message). Over UDP each message is a datagram.

mod dialogue;

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use super::cancel::Deadline;
use super::target::{self, LONGEST_WAIT, Target};
use super::{Cancel, socket};
use crate::error::Transport;
use crate::protocol::{Framing, MAX_DATAGRAM};
use crate::sys::socket::is_not_now;
use crate::units;
use dialogue::{Dialogue, MAX_MESSAGE};

/// Bytes that are read at once.
const CHUNK: usize = 64 << 10;

/// What to send where. Made by [`Config::new`], then changed field by field.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// The server.
    pub target: Target,
    /// What carries the messages: over UDP each is a datagram. Default: what the target names, or TCP.
    pub transport: Transport,
    /// How messages are told apart over TCP. [`Framing::Raw`] marks no end: a reply is whole when
    /// it has as many bytes as its message, and the last one when the stream has ended.
    /// [`Input::Raw`] has no messages to frame. Default: lines.
    pub framing: Framing,
    /// How long connecting may take, and how long the server may then neither take nor send a byte
    /// while it is its turn. Waiting for input is never limited. At most
    /// [`LONGEST_WAIT`], whatever this says. Default: 5 s.
    pub timeout: Duration,
}

impl Config {
    /// The defaults for a server.
    pub fn new(mut target: Target) -> Self {
        Self {
            transport: target.take_transport().unwrap_or(Transport::Tcp),
            target,
            framing: Framing::Lines,
            timeout: Duration::from_secs(5),
        }
    }
}

/// What is sent.
#[derive(Debug)]
pub enum Input<R> {
    /// Each of these, one after the other's reply.
    Messages(Vec<Vec<u8>>),
    /// Each line, without its newline, one after the other's reply.
    Lines(R),
    /// Everything: over TCP as a stream that is half-closed at its end, over UDP as one datagram.
    Raw(R),
}

/// What was sent and received, and how it ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tally {
    /// Bytes that were sent, framing included.
    pub sent: u64,
    /// Bytes that came back, framing included.
    pub received: u64,
    /// Datagrams without a reply: the only loss that does not end the run.
    pub lost: u64,
    /// Everything came back, but the server did not close its side after ours was half-closed.
    pub left_open: bool,
    /// The reader of the output went away, and nothing further was sent.
    pub output_closed: bool,
    /// The run was cancelled, and nothing further was sent.
    pub cancelled: bool,
}

/// What a run tells while it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// Nothing came back for a datagram in time.
    Lost {
        /// Which message it was: the first is 1.
        message: u64,
    },
}

/// Sends the input and writes what comes back to `output`.
///
/// An output without a reader is a clean end, as in any filter. So is `cancel`: what came
/// back until then is written.
///
/// ```
/// use std::fs::File;
///
/// use evecho::client::Cancel;
/// use evecho::client::send::{self, Config, Input};
///
/// let server = evecho::Server::bind(evecho::Config::loopback())?.spawn()?;
/// let config = Config::new(server.local_addrs()[0].into());
/// let (input, output) = (File::open("Cargo.toml")?, File::create("/dev/null")?);
/// let tally = send::run(&config, Input::Raw(input), output, &Cancel::default(), |_| {})?;
/// assert!(tally.sent > 0 && tally.received == tally.sent);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// See [`Error`]. What came back of a whole reply, or before the server failed, is written.
pub fn run<R: Read + AsFd, W: Write + AsFd>(
    config: &Config,
    input: Input<R>,
    output: W,
    cancel: &Cancel,
    progress: impl FnMut(&Progress),
) -> Result<Tally, Error> {
    let timeout = config.timeout.min(LONGEST_WAIT);
    if config.transport == Transport::Udp {
        return datagrams(&config.target, timeout, input, output, cancel, progress);
    }
    let framing = config.framing;
    let (dialogue, input) = match input {
        Input::Messages(messages) if messages.iter().any(|m| m.len() > MAX_MESSAGE) => {
            return Err(Error::TooLong { max: MAX_MESSAGE });
        }
        Input::Messages(messages) => (Dialogue::messages(framing, messages), None),
        Input::Lines(input) => (Dialogue::lines(framing), Some(input)),
        Input::Raw(input) => (Dialogue::stream(), Some(input)),
    };
    let (stream, peer) = config.target.connect_tcp(timeout, cancel).map_err(Error::Target)?;
    let chunk = vec![0; CHUNK].into();
    let pump =
        Pump { stream, peer, dialogue, input, output, chunk, half_closed: false, failure: None };
    pump.run(timeout, cancel)
}

/// Moves bytes between input, server and output as each becomes ready.
struct Pump<R, W> {
    stream: TcpStream,
    peer: SocketAddr,
    dialogue: Dialogue,
    input: Option<R>,
    output: W,
    /// What is read lands here first.
    chunk: Box<[u8]>,
    half_closed: bool,
    /// What writing to the server failed with, if it did.
    failure: Option<io::Error>,
}

/// Why a pump stops.
enum Stop {
    /// Every reply has come.
    Answered,
    /// No more comes from the server.
    Server(Cause),
    /// The reader of the output is gone.
    OutputClosed,
    /// The caller wants no more.
    Cancelled,
}

impl<R: Read + AsFd, W: Write + AsFd> Pump<R, W> {
    fn run(mut self, timeout: Duration, cancel: &Cancel) -> Result<Tally, Error> {
        // When the server's turn began, or it last took or sent something.
        let mut since = Instant::now();
        let stop = loop {
            if self.dialogue.all_answered() && self.dialogue.printed.is_empty() {
                break Stop::Answered;
            }
            if cancel.is_cancelled() {
                break Stop::Cancelled;
            }
            self.half_close()?;
            // The server is not late while we wait for input, or for the reader of the output.
            let timed = self.dialogue.server_owes() && self.dialogue.printed.is_empty();
            let end = timed.then_some(since + timeout);
            let before = (self.dialogue.sent, self.dialogue.received);
            if let Some(stop) = self.turn(Deadline::new(end, cancel))? {
                break stop;
            }
            if !timed || before != (self.dialogue.sent, self.dialogue.received) {
                since = Instant::now();
            } else if since.elapsed() >= timeout {
                let cause = self.failure.take().map_or(Cause::Silent(timeout), Cause::from);
                break Stop::Server(cause);
            }
        };
        self.conclude(stop, cancel)
    }

    /// Waits for whatever can go on, and lets it.
    fn turn(&mut self, deadline: Deadline<'_>) -> Result<Option<Stop>, Error> {
        let dialogue = &self.dialogue;
        let input = self.input.as_ref().filter(|_| dialogue.wants_input());
        let reads = dialogue.printed.is_empty();
        let mut server = PollFlags::empty();
        server.set(PollFlags::POLLIN, reads);
        server.set(PollFlags::POLLOUT, !dialogue.outbound.is_empty());
        // With nothing to write, an output is still watched for its reader's end (POLLERR).
        let output = if reads { PollFlags::empty() } else { PollFlags::POLLOUT };
        let watched = [
            input.map(|input| (input.as_fd(), PollFlags::POLLIN)),
            (!server.is_empty()).then_some((self.stream.as_fd(), server)),
            Some((self.output.as_fd(), output)),
        ];
        let [input, server, output] = deadline.ready(watched).map_err(Error::Socket)?;

        if !output.is_empty()
            && (reads || !write_some(&mut self.output, &mut self.dialogue.printed)?)
        {
            return Ok(Some(Stop::OutputClosed));
        }
        if !input.is_empty() {
            self.read_input()?;
        }
        if !self.dialogue.outbound.is_empty() {
            self.write_server();
        }
        let ended = if reads && !server.is_empty() { self.read_server() } else { None };
        Ok(ended.map(Stop::Server))
    }

    /// Reads one chunk of input.
    fn read_input(&mut self) -> Result<(), Error> {
        let Some(input) = &mut self.input else { return Ok(()) };
        match input.read(&mut self.chunk) {
            Ok(0) => {
                self.input = None;
                self.dialogue.end_input();
            }
            Ok(count) if self.dialogue.input(&self.chunk[..count]) => {}
            Ok(_) => return Err(Error::TooLong { max: MAX_MESSAGE }),
            Err(error) if is_not_now(&error) => {}
            Err(error) => return Err(Error::Input(error)),
        }
        Ok(())
    }

    /// Writes what the server takes now. A server that broke the connection may have answered
    /// before it did, so the end is told by reading.
    fn write_server(&mut self) {
        match self.stream.write(self.dialogue.outbound.as_slices().0) {
            Ok(count) => self.dialogue.sent(count),
            Err(error) if is_not_now(&error) => {}
            Err(error) => {
                self.failure = Some(error);
                self.dialogue.cut_off();
            }
        }
    }

    /// Reads one chunk from the server, or how the connection has ended.
    fn read_server(&mut self) -> Option<Cause> {
        match self.stream.read(&mut self.chunk) {
            Ok(0) => return Some(self.failure.take().map_or(Cause::Closed, Cause::from)),
            Ok(count) => self.dialogue.receive(&self.chunk[..count]),
            Err(error) if is_not_now(&error) => {}
            Err(error) => return Some(error.into()),
        }
        None
    }

    /// Tells the server, once, that nothing more will come.
    fn half_close(&mut self) -> Result<(), Error> {
        if !self.half_closed && self.dialogue.may_half_close() {
            self.half_closed = true;
            match self.stream.shutdown(Shutdown::Write) {
                // The server was quicker: reading will tell.
                Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
                other => other.map_err(Error::Socket)?,
            }
        }
        Ok(())
    }

    /// Writes what is left to write, and says how it ended.
    fn conclude(self, stop: Stop, cancel: &Cancel) -> Result<Tally, Error> {
        let Self { peer, mut dialogue, mut output, .. } = self;
        let left_open = matches!(stop, Stop::Server(Cause::Silent(_)));
        let cancelled = matches!(stop, Stop::Cancelled);
        if matches!(stop, Stop::Server(_)) && !left_open {
            dialogue.end_receive();
        }
        let output_closed = matches!(stop, Stop::OutputClosed)
            || !write_all(&mut output, &mut dialogue.printed, cancel)?;
        let (sent, received) = (dialogue.sent, dialogue.received);
        match stop {
            Stop::Server(cause) if !dialogue.complete() => {
                Err(Error::Incomplete { peer, cause, sent, received })
            }
            _ => Ok(Tally { sent, received, lost: 0, left_open, output_closed, cancelled }),
        }
    }
}

/// Each message a datagram, and the reply to each awaited.
///
/// Each leaves from a port of its own, so that a reply that comes late or twice is never taken for
/// another's.
fn datagrams<R: Read + AsFd, W: Write + AsFd>(
    target: &Target,
    timeout: Duration,
    input: Input<R>,
    mut output: W,
    cancel: &Cancel,
    mut progress: impl FnMut(&Progress),
) -> Result<Tally, Error> {
    let newline: &[u8] = if matches!(input, Input::Raw(_)) { b"" } else { b"\n" };
    let messages: Box<dyn Iterator<Item = io::Result<Vec<u8>>> + '_> = match input {
        Input::Messages(messages) => Box::new(messages.into_iter().map(Ok)),
        Input::Lines(input) => Box::new(lines(cancel.reader(input))),
        Input::Raw(input) => Box::new(std::iter::once_with(move || whole(cancel.reader(input)))),
    };
    let address = target.choose(Transport::Udp, timeout, cancel).map_err(Error::Target)?;
    let mut tally = Tally::default();
    for (number, message) in (1..).zip(messages) {
        let message = message.map_err(Error::Input)?;
        if message.len() > MAX_DATAGRAM {
            return Err(Error::TooLong { max: MAX_DATAGRAM });
        }
        if cancel.is_cancelled() {
            break;
        }
        let reply = exchange(address, &message, timeout, cancel).map_err(|error| {
            let error = target::Error::unreachable(address, Transport::Udp, timeout, &error);
            Error::Target(error)
        })?;
        tally.sent += message.len() as u64;
        let Some(reply) = reply else {
            if cancel.is_cancelled() {
                break;
            }
            tally.lost += 1;
            progress(&Progress::Lost { message: number });
            continue;
        };
        tally.received += reply.len() as u64;
        if !write_all(&mut output, &mut [&reply, newline].concat().into(), cancel)? {
            return Ok(Tally { output_closed: true, ..tally });
        }
    }
    Ok(Tally { cancelled: cancel.is_cancelled(), ..tally })
}

/// Sends one datagram and awaits its reply: `None` when there is none in time, or the run is
/// cancelled.
fn exchange(
    address: SocketAddr,
    message: &[u8],
    timeout: Duration,
    cancel: &Cancel,
) -> io::Result<Option<Vec<u8>>> {
    let socket = socket::udp(address)?;
    socket.send(message)?;
    let mut reply = vec![0; 1 << 16];
    let received = socket::receive(&socket, &mut reply, cancel.within(timeout))?;
    Ok(received.map(|(length, _)| {
        reply.truncate(length);
        reply
    }))
}

/// The lines of `input`, without their newlines. A line that is too long for a datagram comes cut
/// to one byte more than fits.
fn lines(input: impl Read) -> impl Iterator<Item = io::Result<Vec<u8>>> {
    let mut input = BufReader::new(input);
    std::iter::from_fn(move || {
        let mut line = Vec::new();
        match input.by_ref().take(MAX_DATAGRAM as u64 + 1).read_until(b'\n', &mut line) {
            Ok(0) => None,
            Ok(_) => {
                line.pop_if(|last| *last == b'\n');
                Some(Ok(line))
            }
            Err(error) => Some(Err(error)),
        }
    })
}

/// All of `input`, cut to one byte more than fits a datagram.
fn whole(input: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    input.take(MAX_DATAGRAM as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Writes everything or, once the run is cancelled, what is taken at once. `false` when the reader
/// is gone.
fn write_all<W: Write + AsFd>(
    output: &mut W,
    from: &mut VecDeque<u8>,
    cancel: &Cancel,
) -> Result<bool, Error> {
    while !from.is_empty() {
        let forever = cancel.within(Duration::MAX);
        if !forever.is_ready(&*output, PollFlags::POLLOUT).map_err(Error::Output)? {
            break;
        }
        if !write_some(output, from)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Writes once, and keeps what was not taken. `false` when the reader is gone.
fn write_some(output: &mut impl Write, from: &mut VecDeque<u8>) -> Result<bool, Error> {
    match output.write(from.as_slices().0) {
        Ok(0) => Err(Error::Output(io::ErrorKind::WriteZero.into())),
        Ok(count) => {
            from.drain(..count);
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) if is_not_now(&error) => Ok(true),
        Err(error) => Err(Error::Output(error)),
    }
}

/// Why sending ended before its time: one sentence, with what to do where that helps.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The server cannot be reached.
    Target(target::Error),
    /// The socket failed.
    Socket(io::Error),
    /// The input cannot be read.
    Input(io::Error),
    /// The output cannot be written.
    Output(io::Error),
    /// A message is longer than its transport carries.
    TooLong {
        /// The most that it carries, in bytes.
        max: usize,
    },
    /// The server did not send everything back, or sent more than it was sent.
    Incomplete {
        /// The server.
        peer: SocketAddr,
        /// How it ended.
        cause: Cause,
        /// Bytes that were sent.
        sent: u64,
        /// Bytes that came back.
        received: u64,
    },
}

/// Why no more came from the server.
#[derive(Debug)]
#[non_exhaustive]
pub enum Cause {
    /// It closed the connection.
    Closed,
    /// It reset the connection: an RST was read, or a write came after it.
    Reset,
    /// The connection failed otherwise.
    Failed(io::Error),
    /// It was the server's turn, and it did nothing for this long.
    Silent(Duration),
}

impl From<io::Error> for Cause {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::Reset,
            _ => Self::Failed(error),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Target(error) => error.fmt(f),
            Self::Socket(_) => f.write_str("the connection failed"),
            Self::Input(_) => f.write_str("cannot read standard input"),
            Self::Output(_) => f.write_str("cannot write to standard output"),
            Self::TooLong { max } => {
                write!(f, "a message has at most {max} bytes here; send less at once")
            }
            Self::Incomplete { peer, cause, sent, received } => {
                match cause {
                    Cause::Closed => write!(f, "{peer} closed the connection"),
                    Cause::Reset => write!(f, "{peer} reset the connection"),
                    Cause::Failed(_) => write!(f, "the connection to {peer} failed"),
                    Cause::Silent(time) => {
                        write!(f, "{peer} did nothing for {}", units::time(*time))
                    }
                }?;
                write!(f, " after {} sent and {received} came back", units::were(*sent, "byte"))?;
                if let Cause::Silent(_) = cause {
                    f.write_str(
                        "; does it frame messages in another way, or need a longer timeout?",
                    )?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Socket(error)
            | Self::Input(error)
            | Self::Output(error)
            | Self::Incomplete { cause: Cause::Failed(error), .. } => Some(error),
            _ => None,
        }
    }
}
