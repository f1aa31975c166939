//! What a numbered message looks like, and which number some bytes name. Pure.
//!
//! A message starts with its sequence number and then with that number mixed with a key: if one is
//! damaged, the other still tells whose reply it is. The rest is the checked pattern.

use crate::client::pattern::{Alphabet, Pattern};

/// The bytes before the pattern, two numbers of 8: the shortest message.
pub(super) const HEADER: usize = 16;

/// Makes the messages of one socket, and reads replies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Messages {
    /// The length of each in bytes, at least [`HEADER`].
    pub(super) size: usize,
    pub(super) pattern: Pattern,
    /// Whether the replies are in upper case.
    pub(super) upper: bool,
    /// Tells these messages from those of other sockets and runs.
    pub(super) key: u64,
}

impl Messages {
    /// Writes message number `seq`, which fills `message`.
    pub(super) fn write(&self, seq: u64, message: &mut [u8]) {
        let (header, rest) = message.split_at_mut(HEADER);
        header.copy_from_slice(&self.header(seq));
        rest.copy_from_slice(payload(self.pattern.alphabet(), seq, rest.len()));
    }

    fn header(&self, seq: u64) -> [u8; HEADER] {
        let mixed = seq ^ self.key;
        match self.pattern {
            Pattern::Text => hexadecimal(seq << 32 | u64::from(mixed as u32)),
            Pattern::Binary => (u128::from(seq) << 64 | u128::from(mixed)).to_be_bytes(),
        }
    }

    /// The header of the reply that message number `seq` has to get, and what follows it.
    fn expected(&self, seq: u64) -> ([u8; HEADER], &'static [u8]) {
        let mut header = self.header(seq);
        if self.upper {
            header.make_ascii_uppercase();
        }
        (header, payload(self.pattern.replies(self.upper), seq, self.size - HEADER))
    }

    /// The reply that message number `seq` has to get.
    pub(super) fn reply(&self, seq: u64) -> Vec<u8> {
        let (header, rest) = self.expected(seq);
        [&header, rest].concat()
    }

    /// The first byte of `bytes`, as long as a reply, that the reply to message `seq` does not have.
    pub(super) fn first_wrong(&self, seq: u64, bytes: &[u8]) -> Option<usize> {
        let (header, rest) = self.expected(seq);
        let right = bytes[..HEADER] == header && bytes[HEADER..] == *rest;
        let differs = || bytes.iter().zip(header.iter().chain(rest)).position(|(a, b)| a != b);
        // Byte by byte is slow, and hardly ever needed.
        if right { None } else { differs() }
    }

    /// The sequence numbers that these bytes name, first as it stands and then mixed with the key,
    /// when `sent` messages are sent.
    pub(super) fn claims(&self, bytes: &[u8], sent: u64) -> [Option<u64>; 2] {
        let number = |at: usize| {
            let digits = bytes.get(at..)?.first_chunk()?;
            match self.pattern {
                Pattern::Text => number_of(digits),
                Pattern::Binary => Some(u64::from_be_bytes(*digits)),
            }
        };
        let numbers = [number(0), number(8).map(|mixed| mixed ^ self.key)];
        match self.pattern {
            // The number not above `sent` that ends in these 32 bits.
            Pattern::Text => numbers.map(|low| {
                let below = sent.wrapping_sub(low?) as u32;
                Some(sent.wrapping_sub(below.into()))
            }),
            Pattern::Binary => numbers,
        }
    }
}

/// Streams have numbers of 32 bits: messages that far apart are never out at the same time.
fn payload(alphabet: Alphabet, seq: u64, length: usize) -> &'static [u8] {
    alphabet.slice(seq as u32, 0, length)
}

fn hexadecimal(number: u64) -> [u8; 16] {
    std::array::from_fn(|place| b"0123456789abcdef"[(number >> (60 - 4 * place) & 15) as usize])
}

fn number_of(digits: &[u8; 8]) -> Option<u64> {
    digits.iter().try_fold(0, |number, &digit| {
        let value = char::from(digit).to_digit(16)?;
        Some(number << 4 | u64::from(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn messages(pattern: Pattern, upper: bool) -> Messages {
        Messages { size: 40, pattern, upper, key: 0x0123_4567_89ab_cdef }
    }

    #[test]
    fn text_messages_are_words_that_an_upper_case_service_changes() {
        let plain = messages(Pattern::Text, false).reply(7);
        assert!(plain.starts_with(b"0000000789abcde8"), "{}", plain.escape_ascii());
        assert!(plain.iter().all(u8::is_ascii_alphanumeric) && plain.len() == 40);
        let upper = messages(Pattern::Text, true);
        let mut request = [0; 40];
        upper.write(7, &mut request);
        assert_eq!(request, *plain);
        assert_eq!(upper.reply(7), plain.to_ascii_uppercase());
        assert_ne!(upper.reply(7), plain);
    }

    proptest! {
        #[test]
        fn a_reply_names_its_message(seq: u64, after in 0..1_u64 << 20, binary: bool, upper: bool) {
            let pattern = if binary { Pattern::Binary } else { Pattern::Text };
            let messages = messages(pattern, upper && !binary);
            let sent = seq.saturating_add(after);
            let claims = messages.claims(&messages.reply(seq), sent);
            prop_assert_eq!(claims, [Some(seq), Some(seq)]);
        }

        #[test]
        fn a_changed_byte_is_found(seq: u64, at in 0..40_usize, flip in 1..=255_u8, binary: bool) {
            let messages = messages(if binary { Pattern::Binary } else { Pattern::Text }, false);
            let mut reply = messages.reply(seq);
            prop_assert_eq!(messages.first_wrong(seq, &reply), None);
            reply[at] ^= flip;
            prop_assert_eq!(messages.first_wrong(seq, &reply), Some(at));
        }

        #[test]
        fn what_was_not_sent_is_none_of_the_latest(sent in 0..u64::MAX - 9, ahead in 1..9_u64) {
            let messages = messages(Pattern::Text, false);
            let claims = messages.claims(&messages.reply(sent + ahead), sent);
            for claim in claims.into_iter().flatten() {
                prop_assert!(sent.wrapping_sub(claim) > 1 << 31);
            }
        }
    }
}
