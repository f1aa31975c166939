//! What a peer is owed: the same rules, written down a second time and without any cleverness.

use super::random::Random;
use crate::protocol::{Framing, Protocol};

/// The answer to all that a peer will ever send, and how the conversation ends.
#[derive(Debug, Clone)]
pub(super) struct Expected {
    pub(super) bytes: Vec<u8>,
    pub(super) outcome: Outcome,
    one_chunk: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Peer,
    Frame,
    Service,
}

impl Expected {
    pub(super) fn new(protocol: Protocol, upper: bool, script: &[u8]) -> Self {
        let mut expected = Expected { bytes: Vec::new(), outcome: Outcome::Peer, one_chunk: false };
        let mut rest = script;
        while !rest.is_empty() && expected.outcome == Outcome::Peer {
            let Some((head, message, behind)) = first_message(protocol, rest) else {
                expected.outcome = Outcome::Frame;
                break;
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
            // The last line has no line feed, and is answered at the end of the stream.
            let unended = protocol.framing == Framing::Lines && !message.ends_with(b"\n");
            if protocol.once && !unended {
                expected.outcome = Outcome::Service;
            }
        }
        expected.one_chunk = super::world::answers_one_chunk(protocol);
        expected
    }

    /// The first read: where one chunk is the message, it was this long.
    pub(super) fn begin(&mut self, length: usize) {
        if self.one_chunk {
            self.bytes.truncate(length);
        }
    }
}

/// Length prefix, message and what is behind it; none where the framing is broken.
fn first_message(protocol: Protocol, rest: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let max = protocol.max_frame as usize;
    match protocol.framing {
        Framing::Raw => Some((&[], rest, &[])),
        Framing::Lines => {
            let feed = rest.iter().position(|&byte| byte == b'\n');
            let end = feed.map_or(rest.len(), |at| at + 1);
            // A line that was not ended is judged as if its line feed came next.
            let length = feed.map_or(rest.len() + 1, |at| at + 1);
            (length <= max).then_some((&[], &rest[..end], &rest[end..]))
        }
        Framing::LengthPrefixed => {
            let (head, body) = rest.split_first_chunk::<4>()?;
            let length = u32::from_be_bytes(*head) as usize;
            (length <= max && length <= body.len())
                .then(|| (&head[..], &body[..length], &body[length..]))
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

/// Something for a peer to say, mostly well-formed.
pub(super) fn script(random: &mut Random, protocol: Protocol, most: usize) -> Vec<u8> {
    let length = random.size(most);
    if super::world::answers_one_chunk(protocol) {
        // What one chunk may cut must not change the answer.
        return words(random, &["a", "bc", "DEF", "01"], length);
    }
    let mut script = Vec::new();
    let pieces = ["a", "bc", "XYZ ", "é", "ß", "ŉ", "😀", "\0", "ὐ"];
    while script.len() < length {
        let max = protocol.max_frame as usize;
        let over = if random.one_in(50) { 9 } else { 0 };
        let wanted = random.size(max) + over;
        match protocol.framing {
            Framing::Raw => script.extend(words(random, &pieces, length)),
            Framing::Lines => {
                script.extend(words(random, &pieces, wanted.saturating_sub(8)));
                script.push(b'\n');
            }
            Framing::LengthPrefixed => {
                let body = words(random, &pieces, wanted);
                let length = if over > 0 { max + over } else { body.len().min(max) };
                script.extend((length as u32).to_be_bytes());
                script.extend(&body[..length.min(body.len())]);
            }
        }
        if random.one_in(12) {
            script.extend(random.pick(&[&b"\xff"[..], b"\xe2\x82", b"\xf0\x9f\x98", b"\r\n"]));
        }
    }
    if random.one_in(3) {
        // In the middle of anything.
        script.truncate(random.below(script.len() + 1));
    }
    script
}

/// Words that repeat after a while: so many bytes or a few more.
fn words(random: &mut Random, pieces: &[&str], length: usize) -> Vec<u8> {
    let mut period = Vec::new();
    for _ in 0..length.min(1 + random.below(257)) {
        period.extend(random.pick(pieces).bytes());
    }
    let mut all = Vec::with_capacity(length + period.len());
    while all.len() < length {
        all.extend_from_slice(&period);
    }
    all
}
