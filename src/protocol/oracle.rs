//! The reply to a stream: the same rules, written a second time, as plainly as can be.

use super::{FrameError, Framing, Protocol, Verdict};

/// The reply to all that a peer sends, its FIN included, and how the conversation ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) bytes: Vec<u8>,
    pub(crate) verdict: Verdict,
}

impl Expected {
    /// Echo or upper case, for a stream that ends behind `input`. Unframed and with `once`, `input` is
    /// the first read.
    pub(crate) fn new(protocol: Protocol, upper: bool, input: &[u8]) -> Self {
        let mut expected = Expected { bytes: Vec::new(), verdict: Verdict::Finished };
        let mut rest = input;
        while !rest.is_empty() && expected.verdict == Verdict::Finished {
            let (head, message, behind) = match first_message(protocol, rest) {
                Ok(parts) => parts,
                Err(error) => {
                    expected.verdict = Verdict::Broken(error);
                    break;
                }
            };
            if upper {
                let upper = to_upper(message);
                if protocol.framing == Framing::LengthPrefixed {
                    expected.bytes.extend((upper.len() as u32).to_be_bytes());
                }
                expected.bytes.extend(upper);
            } else {
                expected.bytes.extend_from_slice(head);
                expected.bytes.extend_from_slice(message);
            }
            let has_end = protocol.framing != Framing::Lines || message.ends_with(b"\n");
            rest = behind;
            if protocol.once && has_end {
                expected.verdict = Verdict::Close;
            }
        }
        expected
    }
}

/// A conversation that a test plays.
#[cfg(test)]
pub(crate) struct Conversation<V> {
    pub(crate) session: super::Session<V>,
    scratch: super::Scratch,
    /// All replies so far.
    pub(crate) bytes: Vec<u8>,
}

/// A context for tests.
#[cfg(test)]
pub(crate) fn context() -> super::Context<'static> {
    super::Context::stream(1, ([192, 0, 2, 1], 9).into(), ([192, 0, 2, 2], 7).into())
}

#[cfg(test)]
impl<V: super::Service> Conversation<V> {
    pub(crate) fn new(protocol: Protocol, service: V) -> Self {
        let session = super::Session::new(protocol, service);
        Conversation { session, scratch: super::Scratch::default(), bytes: Vec::new() }
    }

    /// All replies to these reads and a FIN, and how it ends.
    pub(crate) fn all(mut self, reads: &[&[u8]]) -> Expected {
        let mut verdict = Verdict::Continue;
        for read in reads {
            verdict = self.read(read);
            if verdict != Verdict::Continue {
                break;
            }
        }
        if verdict == Verdict::Continue {
            verdict = self.end();
        }
        Expected { bytes: self.bytes, verdict }
    }

    /// Plays a read.
    pub(crate) fn read(&mut self, read: &[u8]) -> Verdict {
        let reply = self.session.receive(read, usize::MAX, &mut self.scratch, &context());
        self.bytes.extend_from_slice(&reply.bytes);
        reply.verdict
    }

    /// Plays a FIN.
    pub(crate) fn end(&mut self) -> Verdict {
        let reply = self.session.finish(&mut self.scratch, &context());
        self.bytes.extend_from_slice(&reply.bytes);
        reply.verdict
    }
}

/// Length prefix, message and what is behind it.
type Parts<'a> = (&'a [u8], &'a [u8], &'a [u8]);

fn first_message(protocol: Protocol, rest: &[u8]) -> Result<Parts<'_>, FrameError> {
    let max = protocol.max_frame as usize;
    match protocol.framing {
        Framing::Raw => Ok((&[], rest, &[])),
        Framing::Lines => {
            let feed = rest.iter().position(|&byte| byte == b'\n');
            // A line without end is as long as if its line feed came next.
            let length = feed.unwrap_or(rest.len()) + 1;
            let (line, behind) = rest.split_at(length.min(rest.len()));
            let too_long = Err(FrameError::TooLong { announced: None });
            if length > max { too_long } else { Ok((&[], line, behind)) }
        }
        Framing::LengthPrefixed => {
            let (head, body) = rest.split_first_chunk::<4>().ok_or(FrameError::Truncated)?;
            let length = u32::from_be_bytes(*head) as usize;
            if length > max {
                return Err(FrameError::TooLong { announced: Some(u32::from_be_bytes(*head)) });
            }
            let (message, behind) = body.split_at_checked(length).ok_or(FrameError::Truncated)?;
            Ok((&head[..], message, behind))
        }
    }
}

fn to_upper(message: &[u8]) -> Vec<u8> {
    let mut upper = Vec::new();
    for chunk in message.utf8_chunks() {
        upper.extend(chunk.valid().to_uppercase().bytes());
        upper.extend(chunk.invalid());
    }
    upper
}
