//! Upper case of text, at the speed of memory where text is common.

use std::sync::LazyLock;

/// So much is put together before it is handed on.
const BLOCK: usize = 1024;
/// More than one step writes: eight bytes at once, or the longest upper case that a character has,
/// three characters of up to four bytes.
const STEP: usize = 16;

/// Hands on the upper case of text, block by block, as [`char::to_uppercase`] has it; bytes that are
/// not UTF-8 as they are.
pub(super) fn to_upper(mut bytes: &[u8], mut sink: impl FnMut(&[u8])) {
    let table = &*TABLE;
    let mut block = [0; BLOCK + STEP];
    while !bytes.is_empty() {
        let window = &bytes[..bytes.len().min(BLOCK)];
        let (taken, length) = if window.is_ascii() {
            block[..window.len()].copy_from_slice(window);
            block[..window.len()].make_ascii_uppercase();
            (window.len(), window.len())
        } else {
            table.fill(&mut block, bytes)
        };
        sink(&block[..length]);
        bytes = &bytes[taken..];
    }
}

/// What has upper case, and which.
struct Table {
    /// Of each character of two bytes (U+0080 to U+07FF: Latin, Greek, Cyrillic and others): its upper
    /// case in up to seven bytes, and how many they are.
    two_bytes: Box<[[u8; 8]]>,
    /// Of each 64 characters up to U+1FFFF that differ in their last byte: whether all are their own
    /// upper case, as in most of Chinese, Japanese and Korean.
    caseless: Box<[bool]>,
}

static TABLE: LazyLock<Table> = LazyLock::new(Table::new);

impl Table {
    fn new() -> Self {
        let two_bytes = (0..0x800).map(|code| {
            let mut entry = [0; 8];
            let upper: String =
                char::from_u32(code).into_iter().flat_map(char::to_uppercase).collect();
            entry[..upper.len()].copy_from_slice(upper.as_bytes());
            entry[7] = upper.len() as u8;
            entry
        });
        let is_caseless = |code| char::from_u32(code).is_some_and(|c| c.to_uppercase().eq([c]));
        // What fits two bytes is never three.
        let caseless = (0..0x800)
            .map(|block| block >= 0x20 && (block * 64..(block + 1) * 64).all(is_caseless));
        Table { two_bytes: two_bytes.collect(), caseless: caseless.collect() }
    }

    /// Fills a block with the upper case of the beginning of `bytes`; how many bytes that took, and how
    /// many it became.
    fn fill(&self, block: &mut [u8; BLOCK + STEP], bytes: &[u8]) -> (usize, usize) {
        let (mut at, mut length) = (0, 0);
        while length < BLOCK {
            match bytes[at..] {
                [] => break,
                [a @ ..0x80, b, c, d, e, f, g, h, ..] => {
                    let word = [a, b, c, d, e, f, g, h];
                    // All are written; those behind the first that is not ASCII are written over.
                    block[length..length + 8].copy_from_slice(&word.to_ascii_uppercase());
                    let others = u64::from_le_bytes(word) & 0x8080_8080_8080_8080;
                    let ascii = others.trailing_zeros() as usize / 8;
                    (at, length) = (at + ascii, length + ascii);
                }
                [byte @ ..0x80, ..] => {
                    block[length] = byte.to_ascii_uppercase();
                    (at, length) = (at + 1, length + 1);
                }
                [first @ 0xc2..0xe0, second @ 0x80..0xc0, ..] => {
                    let entry = self.two_bytes[index(first & 0x1f, second)];
                    block[length..length + 8].copy_from_slice(&entry);
                    (at, length) = (at + 2, length + usize::from(entry[7]));
                }
                [first @ 0xe0..0xf0, second @ 0x80..0xc0, third @ 0x80..0xc0, ..]
                    if self.caseless[index(first & 0x0f, second)] =>
                {
                    block[length..length + 3].copy_from_slice(&[first, second, third]);
                    (at, length) = (at + 3, length + 3);
                }
                // 😀 and its like: U+10000 to U+1FFFF.
                [0xf0, second @ 0x90..0xa0, third @ 0x80..0xc0, fourth @ 0x80..0xc0, ..]
                    if self.caseless[index(second & 0x3f, third)] =>
                {
                    block[length..length + 4].copy_from_slice(&[0xf0, second, third, fourth]);
                    (at, length) = (at + 4, length + 4);
                }
                ref rest => {
                    let (taken, written) = one_to_upper(rest, &mut block[length..]);
                    (at, length) = (at + taken, length + written);
                }
            }
        }
        (at, length)
    }
}

/// Writes the upper case of the first character, or what stands there and is none; how many bytes that
/// took, and how many it became.
fn one_to_upper(bytes: &[u8], to: &mut [u8]) -> (usize, usize) {
    let Some(chunk) = bytes[..bytes.len().min(4)].utf8_chunks().next() else { return (0, 0) };
    let Some(character) = chunk.valid().chars().next() else {
        let invalid = chunk.invalid();
        to[..invalid.len()].copy_from_slice(invalid);
        return (invalid.len(), invalid.len());
    };
    let mut written = 0;
    for upper in character.to_uppercase() {
        written += upper.encode_utf8(&mut to[written..]).len();
    }
    (character.len_utf8(), written)
}

/// The place in a table that the bits of a leading byte and of the byte behind it name.
fn index(leading: u8, following: u8) -> usize {
    usize::from(leading) * 64 + usize::from(following % 64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn upper(bytes: &[u8]) -> Vec<u8> {
        let mut all = Vec::new();
        to_upper(bytes, |block| all.extend_from_slice(block));
        all
    }

    #[test]
    fn every_character_has_its_upper_case() {
        for block in 0..=u32::from(char::MAX) / 64 {
            let characters = || (block * 64..(block + 1) * 64).filter_map(char::from_u32);
            // Next to one another, and where eight bytes are looked at together.
            let apart = characters().flat_map(|character| ['a', character, 'b', 'c', 'd']);
            for text in [characters().collect(), apart.collect::<String>()] {
                assert!(upper(text.as_bytes()) == text.to_uppercase().as_bytes(), "{text:?}");
            }
        }
    }

    #[test]
    fn blocks_are_full_at_any_character() {
        for filler in ["a", "я", "ΐ", "漢", "ﬃ", "😀", "a\u{390}"] {
            for before in 0..20 {
                let text = "x".repeat(before) + &filler.repeat(3 * BLOCK);
                assert!(upper(text.as_bytes()) == text.to_uppercase().as_bytes(), "{filler}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn it_is_what_the_standard_library_has(text in "([ -~]{0,20}|[à-ÿΐ-ώа-я]{0,20}|\\PC{0,9}){0,50}") {
            prop_assert!(upper(text.as_bytes()) == text.to_uppercase().as_bytes());
        }

        #[test]
        fn what_is_not_text_stays(bytes in prop::collection::vec(any::<u8>(), 0..3_000)) {
            let mut expected = Vec::new();
            for chunk in bytes.utf8_chunks() {
                expected.extend(chunk.valid().to_uppercase().bytes());
                expected.extend(chunk.invalid());
            }
            prop_assert!(upper(&bytes) == expected);
        }
    }
}
