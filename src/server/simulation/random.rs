//! A random generator whose sequence can be repeated.

use crate::random::SplitMix64;

/// The bytes of an input, which decide as long as there are any; then a generator.
#[derive(Debug)]
pub(super) struct Random {
    input: Vec<u8>,
    used: usize,
    generator: SplitMix64,
}

impl Random {
    #[cfg(test)]
    pub(super) fn new(seed: u64) -> Self {
        Random { input: Vec::new(), used: 0, generator: SplitMix64::new(seed) }
    }

    /// The sequence that a fuzzer chose.
    pub(super) fn chosen(input: &[u8]) -> Self {
        Random { input: input.to_vec(), used: 0, generator: SplitMix64::new(input.len() as u64) }
    }

    /// A number below `end`, which is not 0.
    pub(super) fn below(&mut self, end: usize) -> usize {
        let wanted = if end <= 1 << 8 { 1 } else { 4 };
        let number = match self.input.get(self.used..self.used + wanted) {
            Some(bytes) => {
                self.used += wanted;
                bytes.iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
            }
            None => self.generator.next(),
        };
        (number % end as u64) as usize
    }

    pub(super) fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Mostly small, seldom large: up to `most`.
    pub(super) fn size(&mut self, most: usize) -> usize {
        let magnitude = self.below(most.ilog2() as usize + 1);
        self.below((2 << magnitude).min(most + 1))
    }
}
