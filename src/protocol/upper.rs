//! The service that replies in upper case.

use super::replies::Replies;
use super::service::{Context, Flow, Message, Service};

/// Sends text back in Unicode upper case, as [`str::to_uppercase`] has it, and bytes that are not UTF-8
/// unchanged. Puts a character together that is split over two reads.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Upper {
    /// The first bytes of a character whose rest has not come yet.
    carry: [u8; 3],
    carried: u8,
}

impl Service for Upper {
    fn serve(&mut self, message: Message<'_>, replies: &mut Replies<'_>, _: &Context<'_>) -> Flow {
        match message {
            Message::Whole(bytes) => upper(bytes, replies),
            Message::Chunk(bytes) => self.chunk(bytes, replies),
            Message::End => {
                replies.send(self.carry());
                self.carried = 0;
            }
        }
        Flow::Continue
    }

    fn kept(&self) -> usize {
        self.carried.into()
    }
}

impl Upper {
    /// Replies with the upper case of the carry and `bytes`, less what is a carry again.
    fn chunk(&mut self, bytes: &[u8], replies: &mut Replies<'_>) {
        let mut joined = Vec::new();
        let text = match self.carry() {
            [] => bytes,
            carry if joined.try_reserve_exact(carry.len() + bytes.len()).is_ok() => {
                joined.extend_from_slice(carry);
                joined.extend_from_slice(bytes);
                &joined
            }
            _ => return replies.fail(),
        };
        let (whole, carry) = text.split_at(text.len() - unfinished(text));
        upper(whole, replies);
        *self = Upper { carry: [0; 3], carried: carry.len() as u8 };
        self.carry[..carry.len()].copy_from_slice(carry);
    }

    fn carry(&self) -> &[u8] {
        &self.carry[..self.carried.into()]
    }
}

/// What is put in upper case at a time, since [`str::to_uppercase`] allocates the result.
const PIECE: usize = 4 << 10;

/// Replies with the upper case of `bytes`, which may be three times as long ("ΐ": two bytes become six).
fn upper(bytes: &[u8], replies: &mut Replies<'_>) {
    if bytes.is_ascii() {
        return replies.send_with_room(bytes.len(), |reply| {
            reply.extend_from_slice(bytes);
            reply.make_ascii_uppercase();
        });
    }
    replies.send_with_room(3 * bytes.len(), |reply| {
        for chunk in bytes.utf8_chunks() {
            let mut valid = chunk.valid();
            while !valid.is_empty() {
                let (piece, rest) = valid.split_at(valid.floor_char_boundary(PIECE));
                reply.extend_from_slice(piece.to_uppercase().as_bytes());
                valid = rest;
            }
            reply.extend_from_slice(chunk.invalid());
        }
    });
}

/// The number of bytes at the end of `bytes` that may still become a character: 0 to 3.
fn unfinished(bytes: &[u8]) -> usize {
    let may_become = |tail: &[u8]| {
        std::str::from_utf8(tail)
            .is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
    };
    (1..=bytes.len().min(3)).find(|&n| may_become(&bytes[bytes.len() - n..])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use crate::protocol::oracle::Conversation;
    use crate::protocol::{Protocol, Upper};

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
    fn long_text_is_served_at_once() {
        for text in ["a", "я", "ΐ", "漢", "ﬃ", "😀", "a\u{390}"] {
            let text = text.repeat(50_000);
            assert!(upper_of(&[text.as_bytes()]) == text.to_uppercase().as_bytes());
        }
    }
}
