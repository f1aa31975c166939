//! What kind of server it is that did not start for a scenario: found out by one message, before anything is shown.

use std::io::Read;
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

use super::stage::{Book, Doing};
use crate::client::harness::Stop;
use crate::client::socket;
use crate::protocol::Framing;

/// A server that speaks first does so within this time, and one that closes after its answer, too.
const SOON: Duration = Duration::from_millis(300);
/// A server that has not answered by then waits for more: the rest of a message, or the end of the stream.
const LATE: Duration = Duration::from_secs(2);

/// How a server's conversation differs from a plain echo.
#[derive(Clone, Debug, Default)]
pub(super) struct Nature {
    /// Its answers are in upper case.
    pub(super) upper: bool,
    /// It closes after its first answer.
    pub(super) once: bool,
    /// Why nothing can be shown that takes an echo.
    pub(super) other: Option<String>,
}

impl Nature {
    /// Says "hello", and looks at what comes back. A server that answers wrongly is an echo server that fails.
    pub(super) fn of(address: SocketAddr, framing: Framing, book: &Book<'_>) -> Result<Self, Stop> {
        let stream = socket::tcp(address, None, book.cancel.within(book.timeout));
        let stream = stream.doing("the server accepts a connection")?;
        let read = |patience: Duration| {
            let mut bytes = vec![0; 256];
            let patience = patience.min(book.timeout);
            let read = book.cancel.within(patience).reader(&stream).read(&mut bytes);
            read.map(|length| bytes[..length].to_vec())
        };
        let mut nature = Self::default();
        if let Ok(greeting) = read(SOON) {
            let text = greeting.escape_ascii().to_string();
            let says = if text.is_empty() { "closes".into() } else { format!("says '{text}'") };
            nature.other = Some(format!("this server {says} before the client has said anything"));
            return Ok(nature);
        }
        let hello = framing.frame(b"hello");
        std::io::Write::write_all(&mut &stream, &hello).doing("a client may write")?;
        let mut answer = read(LATE).unwrap_or_default();
        while !answer.is_empty() && answer.len() < hello.len() {
            match read(LATE) {
                Ok(more) if !more.is_empty() => answer.extend(more),
                _ => break,
            }
        }
        nature.upper = answer == hello.to_ascii_uppercase();
        nature.once = !answer.is_empty() && matches!(read(SOON), Ok(end) if end.is_empty());
        // It reads our FIN, and may go on with the next client.
        let _ = stream.shutdown(Shutdown::Write);
        if answer.is_empty() && matches!(read(LATE), Ok(late) if !late.is_empty()) {
            let what = "this server answers only at the end of a line, or of the stream";
            nature.other = Some(what.to_owned());
        }
        Ok(nature)
    }
}
