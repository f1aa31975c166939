//! The bytes that the tools send. Any fault of an echo shows in them.
//!
//! Byte `position` of stream `stream` is a fixed function of both. The bytes look random, and the
//! pattern repeats after a prime number of them. So a byte that is lost, repeated, swapped or
//! shifted, or that belongs to another stream, differs from what was expected within a few bytes,
//! whatever the sizes of messages and buffers. All bytes are in one table: sending borrows a slice
//! of it, and verifying compares with one.

use std::fmt;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

/// A stream repeats after this many bytes: a prime, so that it is no multiple of a message size.
pub const PERIOD: usize = 65_521;

/// The longest slice that [`Alphabet::slice`] lends.
pub const WINDOW: usize = 256 << 10;

/// How far apart two streams start in the table: a prime too, so that the first [`PERIOD`] streams
/// are all different.
const STRIDE: u64 = 7_919;

/// Of which bytes messages are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pattern {
    /// Lower-case letters and digits: servers that decode text understand them.
    #[default]
    Text,
    /// All byte values: shows servers that treat some of them differently.
    Binary,
}

/// Why a binary pattern cannot be framed in lines.
pub(super) const BINARY_LINES: &str =
    "a binary pattern cannot be framed in lines: it has line feeds in it";
/// Why a binary pattern cannot be answered in upper case.
pub(super) const BINARY_UPPER: &str = "a binary pattern has no upper case: use the text pattern";

impl Pattern {
    /// The bytes of messages.
    pub(super) fn alphabet(self) -> Alphabet {
        match self {
            Self::Text => Alphabet::Letters,
            Self::Binary => Alphabet::Bytes,
        }
    }

    /// The bytes of replies, which a service may put in upper case.
    pub(super) fn replies(self, upper: bool) -> Alphabet {
        if upper { Alphabet::Capitals } else { self.alphabet() }
    }
}

/// The bytes of each alphabet.
static TABLES: [LazyLock<Box<[u8]>>; 3] =
    [LazyLock::new(bytes), LazyLock::new(letters), LazyLock::new(capitals)];

/// Which bytes a stream is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alphabet {
    /// All of them.
    Bytes,
    /// Lower-case letters and digits: no byte ends a line, and a service that changes the case shows.
    Letters,
    /// The same in upper case.
    Capitals,
}

/// Those of [`Alphabet::Letters`], a power of two of them.
const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

fn letters() -> Box<[u8]> {
    TABLES[0].iter().map(|byte| LETTERS[usize::from(byte % 32)]).collect()
}

fn capitals() -> Box<[u8]> {
    TABLES[1].to_ascii_uppercase().into_boxed_slice()
}

fn bytes() -> Box<[u8]> {
    let mut bytes = Vec::with_capacity(PERIOD + WINDOW);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    bytes.extend((0..PERIOD).map(|_| {
        // xorshift64: see Marsaglia, "Xorshift RNGs" (2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    }));
    for at in 0..WINDOW {
        bytes.push(bytes[at]);
    }
    bytes.into_boxed_slice()
}

/// The index of the byte in the table.
fn offset(stream: u32, position: u64) -> usize {
    ((position % PERIOD as u64 + u64::from(stream) * STRIDE) % PERIOD as u64) as usize
}

impl Alphabet {
    /// The `length` bytes of `stream` from `position` on.
    ///
    /// # Panics
    ///
    /// When `length` is over [`WINDOW`].
    ///
    /// ```
    /// use evecho::client::pattern::Alphabet;
    ///
    /// let whole = Alphabet::Letters.slice(7, 0, 100);
    /// assert_eq!(Alphabet::Letters.slice(7, 40, 60), &whole[40..]);
    /// assert_ne!(Alphabet::Letters.slice(8, 0, 100), whole);
    /// ```
    pub fn slice(self, stream: u32, position: u64, length: usize) -> &'static [u8] {
        assert!(length <= WINDOW, "a slice of the pattern is at most {WINDOW} bytes");
        let start = offset(stream, position);
        &TABLES[self as usize][start..start + length]
    }

    /// Checks that `found` is what `stream` has from `position` on, at any length.
    ///
    /// # Errors
    ///
    /// The first byte that differs.
    pub fn verify(self, stream: u32, position: u64, found: &[u8]) -> Result<(), Mismatch> {
        let mut at = position;
        for found in found.chunks(WINDOW) {
            let expected = self.slice(stream, at, found.len());
            if expected != found {
                let index = common(expected, found);
                return Err(Mismatch {
                    position: at + index as u64,
                    expected: expected[index],
                    found: found[index],
                });
            }
            at += found.len() as u64;
        }
        Ok(())
    }

    /// Whether `found` is what `stream` has from `position` on, in upper case.
    pub(super) fn is_upper(self, stream: u32, position: u64, found: &[u8]) -> bool {
        // One byte alone may be any damage.
        self == Self::Letters
            && found.len() > 1
            && Self::Capitals.verify(stream, position, found).is_ok()
    }

    /// How many bytes of `found` are right, before the first that is not what `stream` has from
    /// `position` on.
    pub fn matching(self, stream: u32, position: u64, found: &[u8]) -> usize {
        match self.verify(stream, position, found) {
            Ok(()) => found.len(),
            Err(mismatch) => (mismatch.position - position) as usize,
        }
    }
}

/// A byte that is not the one that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The position of the byte in its stream.
    pub position: u64,
    /// The byte that was sent there.
    pub expected: u8,
    /// The byte that came back.
    pub found: u8,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { position, expected, found } = self;
        write!(f, "byte {position} came back as 0x{found:02x} instead of 0x{expected:02x}")
    }
}

impl std::error::Error for Mismatch {}

fn common(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALPHABETS: [Alphabet; 3] = [Alphabet::Bytes, Alphabet::Letters, Alphabet::Capitals];

    fn alphabets() -> impl Strategy<Value = Alphabet> {
        prop::sample::select(&ALPHABETS[..])
    }

    #[test]
    fn any_eight_bytes_stand_at_one_place_of_a_period_only() {
        for alphabet in ALPHABETS {
            let mut seen = std::collections::HashSet::new();
            for position in 0..PERIOD as u64 {
                let is_new = seen.insert(alphabet.slice(0, position, 8));
                assert!(is_new, "{alphabet:?} repeats at {position}");
            }
        }
    }

    #[test]
    fn every_byte_value_is_about_as_frequent() {
        let mut counts = [0; 256];
        Alphabet::Bytes.slice(0, 0, PERIOD).iter().for_each(|&byte| counts[usize::from(byte)] += 1);
        assert!(counts.iter().all(|count| (150..370).contains(count)), "{counts:?}");
    }

    #[test]
    fn the_far_end_of_a_stream_has_bytes_too() {
        assert_eq!(Alphabet::Letters.slice(u32::MAX, u64::MAX, WINDOW).len(), WINDOW);
    }

    proptest! {
        #[test]
        fn what_was_sent_verifies(alphabet in alphabets(), stream: u32, position in 0..1_u64 << 40, length in 0..600_000_usize) {
            let mut echo = Vec::new();
            while echo.len() < length {
                let part = WINDOW.min(length - echo.len());
                echo.extend_from_slice(alphabet.slice(stream, position + echo.len() as u64, part));
            }
            prop_assert_eq!(alphabet.verify(stream, position, &echo), Ok(()));
        }

        #[test]
        fn a_changed_byte_is_named(alphabet in alphabets(), stream: u32, position in 0..1_u64 << 40, at in 0..500_usize, flip in 1..=255_u8) {
            let mut echo = alphabet.slice(stream, position, 500).to_vec();
            echo[at] ^= flip;
            let expected = echo[at] ^ flip;
            prop_assert_eq!(
                alphabet.verify(stream, position, &echo),
                Err(Mismatch { position: position + at as u64, expected, found: echo[at] })
            );
            prop_assert_eq!(alphabet.matching(stream, position, &echo), at);
        }

        #[test]
        fn a_shift_cannot_go_unseen(alphabet in alphabets(), stream: u32, position in 0..1_u64 << 40, shift in 1..PERIOD as u64) {
            prop_assert!(alphabet.verify(stream, position, alphabet.slice(stream, position + shift, 8)).is_err());
        }

        #[test]
        fn a_neighbour_cannot_go_unseen(alphabet in alphabets(), stream in 0..1_u32 << 30, position in 0..1_u64 << 40, other in 1..PERIOD as u32) {
            prop_assert!(alphabet.verify(stream, position, alphabet.slice(stream + other, position, 8)).is_err());
        }
    }
}
