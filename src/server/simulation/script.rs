//! What peers send.

use super::random::Random;
use crate::protocol::{Framing, Protocol};

/// Whether `protocol` replies to the first read, however much the network put into it.
pub(super) fn answers_one_read(protocol: Protocol) -> bool {
    protocol.once && protocol.framing == Framing::Raw
}

/// What a peer sends, mostly well-formed.
pub(super) fn script(random: &mut Random, protocol: Protocol, most: usize) -> Vec<u8> {
    let length = random.size(most);
    if answers_one_read(protocol) {
        // What one read may cut must not change the answer.
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

/// Words that repeat after a while: `length` bytes or a few more.
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
