//! Where one message of a stream ends and the next begins.

use std::fmt;
use std::io::Read;

/// How a TCP stream is cut into messages. A datagram is a message of its own in any framing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "client", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "client", serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Framing {
    /// No messages: bytes are served as they come (RFC 862).
    #[default]
    Raw,
    /// Lines: each ends with its line feed, which belongs to it as a carriage return before it does.
    /// What follows the last line feed is served when the peer ends its side.
    Lines,
    /// Frames: a length in four bytes, big-endian, then that number of bytes of payload.
    LengthPrefixed,
}

/// The rules of a conversation, the same for every connection of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Protocol {
    /// How the stream is cut into messages.
    pub framing: Framing,
    /// The longest frame that is served, in bytes: of a line with its line feed, of a payload without
    /// its length: 1 byte to 16 MiB. Without meaning for [`Framing::Raw`].
    ///
    /// A frame is served in one call, and the event loop serves no other connection meanwhile. Of letters
    /// that are not ASCII, 64 KiB (the default) take [`Upper`](super::Upper) about 1 ms, and each MiB
    /// 15 to 30 ms.
    pub max_frame: u32,
    /// Close after the reply to the first message.
    pub once: bool,
}

impl Default for Protocol {
    fn default() -> Self {
        Protocol { framing: Framing::Raw, max_frame: 64 << 10, once: false }
    }
}

/// Why a stream cannot be understood any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FrameError {
    /// A frame is longer than [`Protocol::max_frame`] allows.
    TooLong {
        /// The length in front of the frame, in bytes. A line announces none.
        announced: Option<u32>,
    },
    /// The peer ended its side in the middle of a length-prefixed frame.
    Truncated,
    /// There is no memory left for the frame, or for the reply to it.
    NoRoom,
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrameError::TooLong { announced: None } => {
                f.write_str("a line longer than `max_frame`")
            }
            FrameError::TooLong { announced: Some(length) } => {
                write!(f, "a frame of {length} bytes, longer than `max_frame`")
            }
            FrameError::Truncated => f.write_str("the stream ended inside a frame"),
            FrameError::NoRoom => f.write_str("there is no memory left for the frame"),
        }
    }
}

impl std::error::Error for FrameError {}

/// The number of bytes in front of a length-prefixed payload.
pub(crate) const PREFIX: usize = 4;

impl Framing {
    /// A message as a frame. A line feed in it ends a line of its own.
    #[cfg(feature = "client")]
    pub(crate) fn frame(self, message: &[u8]) -> Vec<u8> {
        match self {
            Framing::Raw => message.to_vec(),
            Framing::Lines => [message, b"\n"].concat(),
            Framing::LengthPrefixed => [&prefix(message.len())[..], message].concat(),
        }
    }
}

impl Protocol {
    /// The number of bytes of `input` that complete the frame that began with `begun`; `None` if its
    /// end is not among them. Searches `input` alone, so that a line that trickles in costs no more than
    /// its length.
    pub(crate) fn frame_end(
        &self,
        begun: &[u8],
        input: &[u8],
    ) -> Result<Option<usize>, FrameError> {
        match self.framing {
            Framing::Raw => Ok(Some(input.len())),
            Framing::Lines => self.line_end(begun, input),
            Framing::LengthPrefixed => self.payload_end(begun, input),
        }
    }

    fn line_end(&self, begun: &[u8], input: &[u8]) -> Result<Option<usize>, FrameError> {
        let end = memchr::memchr(b'\n', input).map(|at| at + 1);
        // Without its line feed a line is at least one byte longer than what is here.
        let length = begun.len() + end.unwrap_or(input.len() + 1);
        if length > self.max_frame as usize {
            Err(FrameError::TooLong { announced: None })
        } else {
            Ok(end)
        }
    }

    fn payload_end(&self, begun: &[u8], input: &[u8]) -> Result<Option<usize>, FrameError> {
        let Some(length) = announced(begun, input) else { return Ok(None) };
        if length > self.max_frame {
            return Err(FrameError::TooLong { announced: Some(length) });
        }
        let needed = PREFIX + length as usize - begun.len();
        Ok((needed <= input.len()).then_some(needed))
    }

    /// The most bytes that the frame can have that begins with `begun` and `input`.
    pub(super) fn longest(&self, begun: &[u8], input: &[u8]) -> usize {
        match self.framing {
            Framing::Raw => input.len(),
            Framing::Lines => self.max_frame as usize,
            Framing::LengthPrefixed => {
                PREFIX + announced(begun, input).map_or(0, |length| length as usize)
            }
        }
    }

    /// The part of a frame that is the message; of a line, all of it.
    pub(crate) fn payload<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        match self.framing {
            Framing::Raw | Framing::Lines => frame,
            Framing::LengthPrefixed => frame.get(PREFIX..).unwrap_or_default(),
        }
    }
}

/// What stands in front of a payload of this length.
///
/// # Panics
///
/// If there are 4 GiB of it or more.
pub(super) fn prefix(length: usize) -> [u8; PREFIX] {
    u32::try_from(length).expect("a message is shorter than 4 GiB").to_be_bytes()
}

/// The length in front of a frame, once all of its bytes are there.
pub(crate) fn announced(begun: &[u8], input: &[u8]) -> Option<u32> {
    let mut prefix = [0; PREFIX];
    begun.chain(input).read_exact(&mut prefix).ok()?;
    Some(u32::from_be_bytes(prefix))
}

#[cfg(all(test, feature = "client"))]
mod tests {
    use super::*;

    #[test]
    fn a_message_as_a_frame_ends_where_a_frame_does() {
        for (framing, frame) in [
            (Framing::Raw, &b"abc"[..]),
            (Framing::Lines, b"abc\n"),
            (Framing::LengthPrefixed, b"\0\0\0\x03abc"),
        ] {
            let protocol = Protocol { framing, max_frame: 8, once: false };
            assert_eq!(framing.frame(b"abc"), frame);
            assert_eq!(protocol.frame_end(b"", frame), Ok(Some(frame.len())));
        }
    }
}
