//! What kind of server it is that did not start for a scenario: found out by one message, before anything is shown.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use super::stage::{Book, Doing};
use crate::client::harness::Stop;
use crate::client::socket;
use crate::protocol::Framing;
use crate::units::time;

/// A server that speaks first does so within this time, and one that closes after its answer, too.
const SOON: Duration = Duration::from_millis(300);
/// A server that has not answered by then waits for more: the rest of a message, or the end of the stream.
const LATE: Duration = Duration::from_secs(2);
/// More than an echo of the message has.
const MOST: usize = 64;

/// How a server's conversation differs from a plain echo.
#[derive(Clone, Debug, Default)]
pub(super) struct Nature {
    /// Its answers are in upper case.
    pub(super) upper: bool,
    /// It closes after its first answer.
    pub(super) once: bool,
    /// It does not listen any more after its first client.
    pub(super) single: bool,
    /// Why nothing can be shown that takes an echo.
    pub(super) other: Option<Other>,
}

/// A server that does not echo.
#[derive(Clone, Debug)]
pub(super) enum Other {
    /// It does something else, which is this.
    Does(String),
    /// It should echo, and does this.
    Fails(String),
}

impl Other {
    pub(super) fn stop(&self) -> Stop {
        match self {
            Self::Does(what) => Stop::skipped(format!("this server {what}")),
            Self::Fails(seen) => Stop::failed("the server answers 'hello' with 'hello'", seen),
        }
    }
}

impl Nature {
    /// Says "hello", and looks at what comes back. A server that answers wrongly is an echo server that fails.
    pub(super) fn of(address: SocketAddr, framing: Framing, book: &Book<'_>) -> Result<Self, Stop> {
        book.touched.set(true);
        let stream = socket::tcp(address, None, book.cancel.within(book.timeout));
        let resets = || "resets each connection before the client has sent anything".to_owned();
        let stream = match stream {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                return Ok(Self { other: Some(Other::Does(resets())), ..Self::default() });
            }
            stream => stream.doing("the server accepts a connection")?,
        };
        let mut probe = Probe { stream, book };
        let other = match probe.read(SOON) {
            Err(error) if error.kind() == ErrorKind::TimedOut => None,
            Err(_) => Some(resets()),
            Ok(greeting) if greeting.is_empty() => {
                Some("closes each connection before the client has sent anything".to_owned())
            }
            Ok(greeting) => Some(format!(
                "sends '{}' before the client has sent anything",
                greeting.escape_ascii()
            )),
        };
        if let Some(other) = other.map(Other::Does) {
            return Ok(Self { other: Some(other), ..Self::default() });
        }
        let hello = framing.frame(b"hello");
        let (answer, end) = match probe.stream.write_all(&hello) {
            Ok(()) => probe.answer(hello.len()),
            Err(error) => (vec![], Err(error)),
        };
        let upper = answer == hello.to_ascii_uppercase();
        if answer == hello || upper {
            // It reads our FIN, and may go on with the next client.
            let _ = probe.stream.shutdown(Shutdown::Write);
            return Ok(Self { upper, once: end.is_ok(), ..Self::default() });
        }
        let other = Some(probe.without_echo(&answer, end)?);
        Ok(Self { other, ..Self::default() })
    }
}

/// The client of that message.
struct Probe<'a, 'b> {
    stream: TcpStream,
    book: &'a Book<'b>,
}

impl Probe<'_, '_> {
    fn read(&self, patience: Duration) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; MOST];
        let patience = patience.min(self.book.timeout);
        let length = self.book.cancel.within(patience).reader(&self.stream).read(&mut bytes)?;
        bytes.truncate(length);
        Ok(bytes)
    }

    /// What comes back, and how that ended: by the server's FIN, or by an error.
    fn answer(&self, expected: usize) -> (Vec<u8>, io::Result<()>) {
        let mut answer = Vec::new();
        while answer.len() < MOST {
            match self.read(if answer.len() < expected { LATE } else { SOON }) {
                Ok(more) if more.is_empty() => return (answer, Ok(())),
                Ok(more) => answer.extend(more),
                Err(error) => return (answer, Err(error)),
            }
        }
        (answer, Err(ErrorKind::FileTooLarge.into()))
    }

    /// What the server does instead.
    fn without_echo(&self, answer: &[u8], end: io::Result<()>) -> Result<Other, Stop> {
        let timed_out = |error: &io::Error| error.kind() == ErrorKind::TimedOut;
        Ok(match end {
            _ if !answer.is_empty() => Other::Fails(format!("'{}'", answer.escape_ascii())),
            Ok(()) => Other::Fails("it closes".to_owned()),
            Err(error) if !timed_out(&error) => Other::Fails(format!("it resets: {error}")),
            Err(_) => {
                let local = self.stream.local_addr().doing("a client has an address")?;
                let peer = self.stream.peer_addr().doing("a server has an address")?;
                let end = self.book.kernel.end(peer, local).map_err(Stop::kernel)?;
                if end.waits_to_be_accepted() {
                    return Ok(Other::Fails("it does not accept the connection".to_owned()));
                }
                if end.receive_queue > 0 {
                    return Ok(Other::Fails("it does not read".to_owned()));
                }
                let _ = self.stream.shutdown(Shutdown::Write);
                let patience = time(LATE.min(self.book.timeout));
                Other::Does(match self.read(LATE) {
                    Ok(late) if !late.is_empty() => format!(
                        "does not answer 'hello' within {patience}: it waits for the end of a line or of \
                         the stream, or is slow"
                    ),
                    _ => "reads, and does not answer".to_owned(),
                })
            }
        })
    }
}
