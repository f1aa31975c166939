//! What a stream is answered: the same rules, written down a second time and without any cleverness.

use super::{FrameError, Framing, Protocol, Verdict};

/// The answer to all that a peer sends, its FIN included, and how the conversation ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) bytes: Vec<u8>,
    pub(crate) verdict: Verdict,
}

impl Expected {
    /// Echo or upper case, for a stream that ends behind `input`. In an unframed stream of which one
    /// message is answered, that is all of `input`.
    pub(crate) fn new(protocol: Protocol, upper: bool, input: &[u8]) -> Self {
        let mut expected = Expected { bytes: Vec::new(), verdict: Verdict::Continue };
        let mut rest = input;
        while !rest.is_empty() && expected.verdict == Verdict::Continue {
            let (head, message, behind) = match first_message(protocol, rest) {
                Ok(parts) => parts,
                Err(error) => {
                    expected.verdict = Verdict::Broken(error);
                    break;
                }
            };
            if upper {
                let message = to_upper(message);
                if protocol.framing == Framing::LengthPrefixed {
                    expected.bytes.extend((message.len() as u32).to_be_bytes());
                }
                expected.bytes.extend(message);
            } else {
                expected.bytes.extend_from_slice(head);
                expected.bytes.extend_from_slice(message);
            }
            rest = behind;
            if protocol.once {
                expected.verdict = Verdict::Close;
            }
        }
        expected
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
            // A line that was not ended is judged as if its line feed came next.
            let length = feed.unwrap_or(rest.len()) + 1;
            let (line, behind) = rest.split_at(length.min(rest.len()));
            if length > max { Err(FrameError::TooLong) } else { Ok((&[], line, behind)) }
        }
        Framing::LengthPrefixed => {
            let (head, body) = rest.split_first_chunk::<4>().ok_or(FrameError::Truncated)?;
            let length = u32::from_be_bytes(*head) as usize;
            if length > max {
                return Err(FrameError::TooLong);
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
