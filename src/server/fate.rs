//! What becomes of an answer that the server impairs on purpose. Pure: chance comes from a seed.

use std::time::Duration;

use crate::impairments::{Impairments, Probability};
use crate::random::SplitMix64;
use crate::stats::Stats;

/// Decides for one answer after the other. The same seed decides the same again.
#[derive(Debug, Clone)]
pub(super) struct Fates {
    impairments: Impairments,
    random: SplitMix64,
}

/// What becomes of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fate {
    /// One of those that would leave does not.
    pub(super) lost: bool,
    pub(super) duplicated: bool,
    copies: [Passage; 2],
}

/// How one of the copies leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Passage {
    /// How long it is held back.
    pub(super) delay: Duration,
    /// It does not wait for the delay that others have.
    pub(super) reordered: bool,
    /// One of its bits is changed: this one, counted from any number round and round.
    pub(super) corrupt: Option<u64>,
}

impl Fate {
    /// Those that leave: as in netem, one that is lost and duplicated leaves once.
    pub(super) fn copies(&self) -> &[Passage] {
        let count = 1 + usize::from(self.duplicated) - usize::from(self.lost);
        &self.copies[..count]
    }

    /// Adds it to the counters.
    pub(super) fn count(&self, stats: &Stats) {
        let of =
            |is: fn(&Passage) -> bool| self.copies().iter().filter(|copy| is(copy)).count() as u64;
        stats.udp_lost.add(self.lost.into());
        stats.udp_duplicated.add(self.duplicated.into());
        stats.udp_reordered.add(of(|copy| copy.reordered));
        stats.udp_corrupted.add(of(|copy| copy.corrupt.is_some()));
    }
}

impl Fates {
    /// For the socket with this index: each has chance of its own. None where nothing is impaired.
    pub(super) fn of(impairments: &Impairments, index: usize) -> Option<Self> {
        if impairments.is_none() {
            return None;
        }
        let seed = impairments.seed.unwrap_or_default();
        let mut seeds = SplitMix64::new(seed);
        let seed = (0..=index).fold(seed, |_, _| seeds.next());
        Some(Fates { impairments: *impairments, random: SplitMix64::new(seed) })
    }

    /// Whether anything is held back.
    pub(super) fn delays(&self) -> bool {
        !self.impairments.delay.is_zero()
    }

    /// The fate of the next answer.
    pub(super) fn next(&mut self) -> Fate {
        let Impairments { loss, duplicate, .. } = self.impairments;
        let duplicated = self.happens(duplicate);
        let lost = self.happens(loss);
        let mut fate = Fate { lost, duplicated, copies: Default::default() };
        for copy in 0..fate.copies().len() {
            fate.copies[copy] = self.passage();
        }
        fate
    }

    fn passage(&mut self) -> Passage {
        let Impairments { corrupt, reorder, .. } = self.impairments;
        let corrupt = self.happens(corrupt).then(|| self.random.next());
        let reordered = self.happens(reorder);
        let delay = if reordered { Duration::ZERO } else { self.delay() };
        Passage { delay, reordered, corrupt }
    }

    /// Evenly spread around the delay, as far as the jitter goes.
    pub(super) fn delay(&mut self) -> Duration {
        let Impairments { delay, jitter, .. } = self.impairments;
        if jitter.is_zero() {
            return delay;
        }
        let nanos =
            |time: Duration| u64::try_from(time.as_nanos()).expect("a delay is at most a minute");
        let spread = self.random.below(2 * nanos(jitter) + 1);
        delay - jitter + Duration::from_nanos(spread)
    }

    /// Chance is asked only for what can happen.
    fn happens(&mut self, probability: Probability) -> bool {
        !probability.is_zero() && probability.holds(self.random.next())
    }
}

impl Passage {
    /// Whether it leaves as it is, at once.
    pub(super) fn is_clear(&self) -> bool {
        self.delay.is_zero() && self.corrupt.is_none()
    }

    /// Changes the bit that it says.
    pub(super) fn spoil(&self, bytes: &mut [u8]) {
        let bits = bytes.len() as u64 * 8;
        if let (Some(bit), 1..) = (self.corrupt, bits) {
            let bit = bit % bits;
            bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn impairments(text: &str) -> Impairments {
        let mut all = Impairments::default();
        for part in text.split(' ') {
            let (name, value) = part.split_once('=').unwrap();
            let time = || Duration::from_millis(value.parse().unwrap());
            match name {
                "loss" => all.loss = value.parse().unwrap(),
                "duplicate" => all.duplicate = value.parse().unwrap(),
                "reorder" => all.reorder = value.parse().unwrap(),
                "corrupt" => all.corrupt = value.parse().unwrap(),
                "delay" => all.delay = time(),
                "jitter" => all.jitter = time(),
                _ => panic!("{name}"),
            }
        }
        all
    }

    fn fates(text: &str, seed: u64, count: usize) -> Vec<Fate> {
        let mut fates =
            Fates::of(&Impairments { seed: Some(seed), ..impairments(text) }, 0).unwrap();
        (0..count).map(|_| fates.next()).collect()
    }

    #[test]
    fn a_delay_delays_and_nothing_else_does() {
        let delays = |text| Fates::of(&impairments(text), 0).unwrap().delays();
        assert!(delays("delay=1 loss=10%"));
        assert!(!delays("loss=10% duplicate=10%"));
    }

    #[test]
    fn without_impairments_there_is_nothing_to_decide() {
        let seeded = Impairments { seed: Some(1), ..Impairments::default() };
        assert!(Fates::of(&seeded, 0).is_none());
        for text in ["loss=0.0000001%", "delay=1", "duplicate=1%", "corrupt=1%"] {
            assert!(Fates::of(&impairments(text), 0).is_some(), "{text}");
        }
    }

    #[test]
    fn the_same_seed_decides_the_same_and_each_socket_differs() {
        let all = "loss=20% duplicate=10% reorder=5% corrupt=5% delay=50 jitter=50";
        assert_eq!(fates(all, 7, 1_000), fates(all, 7, 1_000));
        assert_ne!(fates(all, 7, 1_000), fates(all, 8, 1_000));
        let of = |index| {
            let mut fates =
                Fates::of(&Impairments { seed: Some(7), ..impairments(all) }, index).unwrap();
            (0..1_000).map(|_| fates.next()).collect::<Vec<_>>()
        };
        assert_eq!(of(0), fates(all, 7, 1_000));
        // Nor is one the other, some answers later.
        let later = |skip: usize| of(0)[skip..skip + 500] == of(1)[..500];
        assert!(!(0..500).any(later));
    }

    /// The bounds of the binomial 99.9 % interval, by its normal approximation.
    fn is_probable(happened: usize, tries: usize, probability: f64) -> bool {
        let mean = tries as f64 * probability;
        let deviation = (mean * (1.0 - probability)).sqrt();
        (happened as f64 - mean).abs() <= 3.29 * deviation
    }

    #[test]
    fn each_happens_as_often_as_it_says() {
        const TRIES: usize = 100_000;
        let all = fates("loss=30% duplicate=1% reorder=5% corrupt=0.1% delay=50", 42, TRIES);
        let lost = all.iter().filter(|fate| fate.lost).count();
        let duplicated = all.iter().filter(|fate| fate.duplicated).count();
        let copies: Vec<Passage> = all.iter().flat_map(|fate| fate.copies()).copied().collect();
        assert_eq!(copies.len(), TRIES + duplicated - lost);
        let reordered = copies.iter().filter(|copy| copy.reordered).count();
        let corrupt = copies.iter().filter(|copy| copy.corrupt.is_some()).count();
        assert!(is_probable(lost, TRIES, 0.3), "{lost}");
        assert!(is_probable(duplicated, TRIES, 0.01), "{duplicated}");
        assert!(is_probable(reordered, copies.len(), 0.05), "{reordered}");
        assert!(is_probable(corrupt, copies.len(), 0.001), "{corrupt}");
        for copy in copies {
            let delay = Duration::from_millis(if copy.reordered { 0 } else { 50 });
            assert_eq!(copy.delay, delay);
        }
    }

    #[test]
    fn jitter_is_spread_evenly_around_the_delay() {
        let delays: Vec<Duration> = fates("delay=50 jitter=10", 3, 10_000)
            .iter()
            .map(|fate| fate.copies()[0].delay)
            .collect();
        let [least, middle, most] = [40, 50, 60].map(Duration::from_millis);
        assert!(delays.iter().all(|delay| (least..=most).contains(delay)));
        let below = delays.iter().filter(|&&delay| delay < middle).count();
        assert!(is_probable(below, delays.len(), 0.5), "{below}");
        let near = delays.iter().filter(|&&delay| delay < Duration::from_millis(42)).count();
        assert!(is_probable(near, delays.len(), 0.1), "{near}");
    }

    #[test]
    fn jitter_reaches_both_ends() {
        let nanosecond = Duration::from_nanos(1);
        let impairments =
            Impairments { delay: nanosecond, jitter: nanosecond, ..Impairments::default() };
        let mut fates = Fates::of(&impairments, 0).unwrap();
        let delays: BTreeSet<Duration> = (0..100).map(|_| fates.delay()).collect();
        assert!(delays.into_iter().eq([0, 1, 2].map(Duration::from_nanos)));
    }

    #[test]
    fn what_is_not_delayed_and_not_changed_is_clear() {
        let all = fates("loss=50% reorder=50% delay=1", 1, 100);
        for copy in all.iter().flat_map(|fate| fate.copies()) {
            assert_eq!(copy.is_clear(), copy.reordered);
        }
    }

    #[test]
    fn one_bit_is_changed_and_no_more() {
        for fate in fates("corrupt=100%", 5, 1_000) {
            let [copy] = fate.copies() else { panic!("{fate:?}") };
            for before in [0x00, 0xff] {
                let mut bytes = [before; 3];
                copy.spoil(&mut bytes);
                let changed = bytes.iter().map(|byte| (byte ^ before).count_ones());
                assert_eq!(changed.sum::<u32>(), 1);
            }
            assert!(!copy.is_clear());
            // There is nothing to change.
            copy.spoil(&mut []);
        }
        let mut seen = [0; 3];
        for fate in fates("corrupt=100%", 5, 1_000) {
            let mut bytes = [0; 3];
            fate.copies()[0].spoil(&mut bytes);
            seen.iter_mut().zip(bytes).for_each(|(seen, byte)| *seen |= byte);
        }
        assert_eq!(seen, [0xff; 3]);
    }

    #[test]
    fn counters_count_what_leaves() {
        let stats = Stats::default();
        let all = fates("loss=50% duplicate=50% reorder=50% corrupt=50% delay=1", 9, 1_000);
        all.iter().for_each(|fate| fate.count(&stats));
        let snapshot = stats.snapshot();
        let copies = || all.iter().flat_map(|fate| fate.copies());
        assert_eq!(snapshot.udp_lost, all.iter().filter(|fate| fate.lost).count() as u64);
        assert_eq!(
            snapshot.udp_duplicated,
            all.iter().filter(|fate| fate.duplicated).count() as u64
        );
        assert_eq!(snapshot.udp_reordered, copies().filter(|copy| copy.reordered).count() as u64);
        let corrupt = copies().filter(|copy| copy.corrupt.is_some()).count();
        assert_eq!(snapshot.udp_corrupted, corrupt as u64);
    }
}
