//! What a ping looks like, and which ping some bytes name. Pure.
//!
//! A message starts with its sequence number and then with that number mixed with the run's key: if
//! one is damaged, the other still tells whose reply it is. The rest is the checked pattern.

use super::{Config, Pattern};
use crate::client::pattern;

/// The bytes before the pattern: two numbers of 8.
const HEADER: usize = 16;

/// The letters of the ASCII pattern, a power of two of them: in lower case, so that a service that
/// changes the case shows.
const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// Makes the messages of one run, and reads replies.
#[derive(Debug)]
pub(super) struct Messages {
    size: usize,
    pattern: Pattern,
    upper: bool,
    key: u64,
}

impl Messages {
    /// `key` tells this run's messages from another's.
    pub(super) fn new(config: &Config, key: u64) -> Self {
        Self { size: config.size.bytes(), pattern: config.pattern, upper: config.upper, key }
    }

    /// The length of each in bytes.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// The message of ping number `seq`.
    pub(super) fn request(&self, seq: u64) -> Vec<u8> {
        let numbers = [seq, seq ^ self.key];
        let mut message = Vec::with_capacity(self.size);
        // Streams have numbers of 32 bits: pings that far apart are never out at the same time.
        let bytes = pattern::slice(seq as u32, 0, self.size - HEADER);
        match self.pattern {
            Pattern::Ascii => {
                for number in numbers {
                    message.extend_from_slice(format!("{:08x}", number as u32).as_bytes());
                }
                message.extend(bytes.iter().map(|byte| LETTERS[usize::from(byte % 32)]));
            }
            Pattern::Binary => {
                for number in numbers {
                    message.extend_from_slice(&number.to_be_bytes());
                }
                message.extend_from_slice(bytes);
            }
        }
        message
    }

    /// The reply that ping number `seq` has to get.
    pub(super) fn reply(&self, seq: u64) -> Vec<u8> {
        let mut message = self.request(seq);
        if self.upper {
            message.make_ascii_uppercase();
        }
        message
    }

    /// The sequence numbers that these bytes name, first as it stands and then mixed with the key,
    /// when `sent` pings are sent.
    pub(super) fn claims(&self, bytes: &[u8], sent: u64) -> [Option<u64>; 2] {
        let number = |at: usize, key: u64| {
            let digits: [u8; 8] = bytes.get(at..at + 8)?.try_into().ok()?;
            match self.pattern {
                Pattern::Binary => Some(u64::from_be_bytes(digits) ^ key),
                Pattern::Ascii => {
                    let low = hexadecimal(digits)? ^ key as u32;
                    // The number not above `sent` that ends in these 32 bits.
                    let below = (sent as u32).wrapping_sub(low);
                    Some(sent.wrapping_sub(u64::from(below)))
                }
            }
        };
        [number(0, 0), number(8, self.key)]
    }
}

fn hexadecimal(digits: [u8; 8]) -> Option<u32> {
    digits.iter().try_fold(0, |number, &digit| {
        let value = char::from(digit).to_digit(16)?;
        Some(number << 4 | value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::ping::Size;
    use proptest::prelude::*;

    fn messages(pattern: Pattern, upper: bool) -> Messages {
        let mut config = Config::new("localhost".parse().unwrap());
        (config.pattern, config.upper) = (pattern, upper);
        config.size = Size::new(40).unwrap();
        Messages::new(&config, 0x0123_4567_89ab_cdef)
    }

    #[test]
    fn ascii_messages_are_words_that_an_upper_case_service_changes() {
        let plain = messages(Pattern::Ascii, false).request(7);
        assert!(plain.starts_with(b"0000000789abcde8"), "{}", plain.escape_ascii());
        assert!(plain.iter().all(u8::is_ascii_alphanumeric) && plain.len() == 40);
        let upper = messages(Pattern::Ascii, true);
        assert_eq!(upper.request(7), plain);
        assert_eq!(upper.reply(7), plain.to_ascii_uppercase());
        assert_ne!(upper.reply(7), plain);
    }

    proptest! {
        #[test]
        fn a_reply_names_its_ping(seq: u64, after in 0..1_u64 << 20, binary: bool, upper: bool) {
            let pattern = if binary { Pattern::Binary } else { Pattern::Ascii };
            let messages = messages(pattern, upper && !binary);
            let sent = seq.saturating_add(after);
            let claims = messages.claims(&messages.reply(seq), sent);
            prop_assert_eq!(claims, [Some(seq), Some(seq)]);
        }

        #[test]
        fn a_ping_that_was_not_sent_is_none_of_the_latest(sent in 0..u64::MAX - 9, ahead in 1..9_u64) {
            let messages = messages(Pattern::Ascii, false);
            let claims = messages.claims(&messages.reply(sent + ahead), sent);
            for claim in claims.into_iter().flatten() {
                prop_assert!(sent.wrapping_sub(claim) > 1 << 31);
            }
        }
    }
}
