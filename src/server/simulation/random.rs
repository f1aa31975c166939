//! Chance that can be had again.

/// The bytes of an input, which decide as long as there are any; then the SplitMix64 generator.
#[derive(Debug)]
pub(super) struct Random {
    input: Vec<u8>,
    used: usize,
    state: u64,
}

impl Random {
    #[cfg(test)]
    pub(super) fn new(seed: u64) -> Self {
        Random { input: Vec::new(), used: 0, state: seed }
    }

    /// Chance that somebody chose.
    pub(super) fn chosen(input: &[u8]) -> Self {
        Random { input: input.to_vec(), used: 0, state: input.len() as u64 }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is not 0.
    pub(super) fn below(&mut self, end: usize) -> usize {
        let wanted = if end <= 1 << 8 { 1 } else { 4 };
        let number = match self.input.get(self.used..self.used + wanted) {
            Some(bytes) => {
                self.used += wanted;
                bytes.iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
            }
            None => self.next(),
        };
        (number % end as u64) as usize
    }

    pub(super) fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Mostly few, seldom many: up to `most`.
    pub(super) fn size(&mut self, most: usize) -> usize {
        let magnitude = self.below(most.ilog2() as usize + 1);
        self.below((2 << magnitude).min(most + 1))
    }
}
