//! The service that answers in upper case.

use super::replies::Replies;
use super::service::{Context, Flow, Message, Service};
use super::uppercase::to_upper;

/// So many bytes are looked at in a call: some ten microseconds of work.
const PIECE: usize = 32 << 10;

/// Text comes back in Unicode upper case, as [`str::to_uppercase`] has it; bytes that are not UTF-8
/// come back unchanged. A character split over two chunks is put together first.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Upper {
    /// Boxed, since there seldom is one, and an idle connection pays for it.
    unfinished: Option<Box<Unfinished>>,
}

/// What has to be remembered until the next call.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Unfinished {
    /// The first bytes of a character whose rest has not come yet.
    Character(Beginning),
    /// How long the upper case of a long message is, up to a place in it.
    Measuring { at: usize, length: usize },
    /// The upper case of a long message is sent up to a place in it.
    Sending { at: usize },
}

impl Service for Upper {
    fn serve(&mut self, message: Message<'_>, replies: &mut Replies<'_>, _: &Context<'_>) -> Flow {
        match message {
            Message::Whole(bytes) if bytes.len() > PIECE => return self.long(bytes, replies),
            Message::Whole(bytes) => replies.send_with(|reply| upper_into(reply, bytes)),
            Message::Chunk(bytes) => replies.send_with(|reply| self.chunk(bytes, reply)),
            Message::End => replies.send(self.take_beginning().bytes()),
        }
        Flow::Continue
    }

    fn read_limit(&self) -> usize {
        PIECE
    }
}

impl Upper {
    /// Answers a message piece by piece: first how long its upper case is, then the upper case.
    fn long(&mut self, bytes: &[u8], replies: &mut Replies<'_>) -> Flow {
        let unfinished = self.unfinished.take().map(|unfinished| *unfinished);
        let next = match unfinished {
            Some(Unfinished::Sending { at }) => {
                let piece = first_piece(&bytes[at..]);
                to_upper(piece, |block| replies.push(block));
                Unfinished::Sending { at: at + piece.len() }
            }
            other => {
                let (at, mut length) = match other {
                    Some(Unfinished::Measuring { at, length }) => (at, length),
                    _ => (0, 0),
                };
                let piece = first_piece(&bytes[at..]);
                to_upper(piece, |block| length += block.len());
                Unfinished::Measuring { at: at + piece.len(), length }
            }
        };
        self.unfinished = Some(Box::new(match next {
            Unfinished::Measuring { at, length } if at == bytes.len() => {
                replies.begin(length);
                Unfinished::Sending { at: 0 }
            }
            Unfinished::Sending { at } if at == bytes.len() => {
                self.unfinished = None;
                return Flow::Continue;
            }
            unfinished => unfinished,
        }));
        Flow::Again
    }

    fn chunk(&mut self, mut bytes: &[u8], reply: &mut Vec<u8>) {
        let mut beginning = self.take_beginning();
        while !beginning.bytes().is_empty() {
            let Some((&next, rest)) = bytes.split_first() else { break };
            let mut joined = [0; 4];
            let length = beginning.bytes().len() + 1;
            joined[..length - 1].copy_from_slice(beginning.bytes());
            joined[length - 1] = next;
            let joined = &joined[..length];
            if unfinished(joined) == length {
                beginning = Beginning::of(joined);
                bytes = rest;
                continue;
            }
            beginning = Beginning::default();
            if std::str::from_utf8(joined).is_ok() {
                upper_into(reply, joined);
                bytes = rest;
            } else {
                // It never becomes a character; `next` may begin one.
                reply.extend_from_slice(&joined[..length - 1]);
            }
        }
        let (whole, kept) = bytes.split_at(bytes.len() - unfinished(bytes));
        upper_into(reply, whole);
        if !kept.is_empty() {
            beginning = Beginning::of(kept);
        }
        if !beginning.bytes().is_empty() {
            self.unfinished = Some(Box::new(Unfinished::Character(beginning)));
        }
    }

    fn take_beginning(&mut self) -> Beginning {
        match self.unfinished.take().map(|unfinished| *unfinished) {
            Some(Unfinished::Character(beginning)) => beginning,
            _ => Beginning::default(),
        }
    }
}

/// Up to three bytes that may become a character.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Beginning {
    bytes: [u8; 3],
    length: u8,
}

impl Beginning {
    fn of(bytes: &[u8]) -> Self {
        let mut beginning = Beginning { bytes: [0; 3], length: bytes.len() as u8 };
        beginning.bytes[..bytes.len()].copy_from_slice(bytes);
        beginning
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

fn upper_into(reply: &mut Vec<u8>, bytes: &[u8]) {
    reply.reserve(bytes.len());
    to_upper(bytes, |block| reply.extend_from_slice(block));
}

/// The beginning of `bytes`, not cut inside a character.
fn first_piece(bytes: &[u8]) -> &[u8] {
    let Some(piece) = bytes.get(..PIECE) else { return bytes };
    &piece[..PIECE - unfinished(piece)]
}

/// How many bytes at the end of `bytes` may still become a character: 0 to 3.
fn unfinished(bytes: &[u8]) -> usize {
    let may_become = |tail: &[u8]| {
        std::str::from_utf8(tail)
            .is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
    };
    (1..=bytes.len().min(3)).find(|&n| may_become(&bytes[bytes.len() - n..])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::oracle::{Conversation, context};
    use crate::protocol::{Framing, Protocol, Scratch, Session, Verdict};

    fn upper_of(chunks: &[&[u8]]) -> Vec<u8> {
        Conversation::new(Protocol::default(), Upper::default()).all(chunks).bytes
    }

    #[test]
    fn a_split_character_comes_out_whole() {
        let text = "naïve ß ŉ ὐ 😀 ǆ";
        for cut in 0..=text.len() {
            let (a, b) = text.as_bytes().split_at(cut);
            assert_eq!(upper_of(&[a, b]), text.to_uppercase().as_bytes(), "cut at {cut}");
        }
        let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
        assert_eq!(upper_of(&bytes), text.to_uppercase().as_bytes());
    }

    #[test]
    fn what_is_not_text_passes_unchanged() {
        let cases: [(&[&[u8]], &[u8]); 5] = [
            (&[b"a\xffb"], b"A\xffB"),
            (&[b"a\xe2\x82", b"b"], b"A\xe2\x82B"),
            (&[b"a\xe2\x82"], b"A\xe2\x82"),
            (&[b"\xe2", b"\xe2\x82\xac"], b"\xe2\xe2\x82\xac"),
            (&[b"\xf0\x9f", b"\xc3", b"\xa9"], b"\xf0\x9f\xc3\x89"),
        ];
        for (chunks, expected) in cases {
            assert_eq!(upper_of(chunks), expected, "{chunks:x?}");
        }
    }

    #[test]
    fn a_message_that_is_not_long_is_answered_at_once() {
        let mut protocol = Protocol::default();
        (protocol.framing, protocol.max_frame) = (Framing::Lines, u32::MAX);
        for (length, verdict) in [(PIECE, Verdict::Continue), (PIECE + 1, Verdict::Again)] {
            let line = [&vec![b'a'; length - 1][..], b"\n"].concat();
            let (mut session, mut scratch) =
                (Session::new(protocol, Upper::default()), Scratch::default());
            let answer = session.receive(&line, usize::MAX, &mut scratch, &context());
            assert_eq!(answer.verdict, verdict);
            assert_eq!(session.read_limit(), PIECE);
        }
    }

    #[test]
    fn a_long_message_is_answered_piece_by_piece() {
        let text = "naïve ß ŉ ὐ 😀 ǆ ΐ".repeat(20 << 10);
        let frame = [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat();
        let mut protocol = Protocol::default();
        (protocol.framing, protocol.max_frame) = (Framing::LengthPrefixed, u32::MAX);
        let mut session = Session::new(protocol, Upper::default());
        let (mut scratch, mut all, mut turns) = (Scratch::default(), Vec::new(), 0);
        let answer = session.receive(&frame, usize::MAX, &mut scratch, &context());
        assert_eq!((&answer.bytes[..], answer.verdict), (&b""[..], Verdict::Again));
        loop {
            let answer = session.resume(usize::MAX, &mut scratch, &context());
            assert!(answer.bytes.len() <= 3 * PIECE, "{}", answer.bytes.len());
            all.extend_from_slice(&answer.bytes);
            turns += 1;
            if answer.verdict == Verdict::Continue {
                break;
            }
        }
        let upper = text.to_uppercase();
        let expected = [&(upper.len() as u32).to_be_bytes(), upper.as_bytes()].concat();
        assert!(all == expected, "{} of {} bytes", all.len(), expected.len());
        assert!(turns >= 2 * text.len() / PIECE, "{turns} turns");
        assert_eq!(session.held(), 0);
    }
}
