//! Text in upper case.

use super::replies::Replies;
use super::service::{Context, Flow, Message, Service};

/// Text comes back in Unicode upper case, as [`str::to_uppercase`] has it; bytes that are not UTF-8
/// come back unchanged. A character split over two chunks is put together first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Upper {
    /// The first bytes of a character whose rest has not come yet: at most three.
    kept: [u8; 3],
    kept_len: u8,
}

impl Service for Upper {
    fn serve(&mut self, message: Message<'_>, replies: &mut Replies<'_>, _: &Context<'_>) -> Flow {
        replies.send_with(|reply| match message {
            Message::Chunk(bytes) => self.chunk(bytes, reply),
            Message::Whole(bytes) => upper(bytes, reply),
            Message::End => reply.extend_from_slice(self.take_kept()),
        });
        Flow::Continue
    }
}

impl Upper {
    fn chunk(&mut self, mut bytes: &[u8], reply: &mut Vec<u8>) {
        while self.kept_len > 0 {
            let Some((&next, rest)) = bytes.split_first() else { return };
            let mut joined = [0; 4];
            let kept = self.take_kept();
            let length = kept.len() + 1;
            joined[..kept.len()].copy_from_slice(kept);
            joined[length - 1] = next;
            let joined = &joined[..length];
            if unfinished(joined) == length {
                self.keep(joined);
                bytes = rest;
            } else if std::str::from_utf8(joined).is_ok() {
                upper(joined, reply);
                bytes = rest;
            } else {
                // It never becomes a character; `next` may begin one.
                reply.extend_from_slice(&joined[..length - 1]);
            }
        }
        let (whole, kept) = bytes.split_at(bytes.len() - unfinished(bytes));
        upper(whole, reply);
        self.keep(kept);
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.kept[..bytes.len()].copy_from_slice(bytes);
        self.kept_len = bytes.len() as u8;
    }

    fn take_kept(&mut self) -> &[u8] {
        &self.kept[..usize::from(std::mem::take(&mut self.kept_len))]
    }
}

/// How many bytes at the end of `bytes` may still become a character: 0 to 3.
fn unfinished(bytes: &[u8]) -> usize {
    let may_become = |tail: &[u8]| {
        std::str::from_utf8(tail)
            .is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
    };
    (1..=bytes.len().min(3)).find(|&n| may_become(&bytes[bytes.len() - n..])).unwrap_or(0)
}

fn upper(bytes: &[u8], reply: &mut Vec<u8>) {
    for chunk in bytes.utf8_chunks() {
        let text = chunk.valid();
        if text.is_ascii() {
            let start = reply.len();
            reply.extend_from_slice(text.as_bytes());
            reply[start..].make_ascii_uppercase();
        } else {
            for character in text.chars().flat_map(char::to_uppercase) {
                reply.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        reply.extend_from_slice(chunk.invalid());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Protocol;
    use crate::protocol::oracle::Conversation;

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
}
