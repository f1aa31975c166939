//! What becomes of replies on purpose, in the terms of tc-netem(8): loss, delay, jitter, duplicates,
//! reordering and corruption. Pure: `now` is an argument, and the random numbers come from a seed.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::time::Duration;

use super::budget;
use super::clock::Moment;
use crate::impairments::{Impairments, Probability};
use crate::protocol::try_copy;
use crate::random::SplitMix64;
use crate::stats::Stats;
use crate::sys::datagram::Route;
use crate::sys::limits;

/// How many replies may be in a queue, ...
const MAX_DELAYED: usize = 16_384;
/// ... and how many bytes of them, unless a limit on memory leaves less.
const MAX_DELAYED_BYTES: usize = 16 << 20;
/// For how many replies an empty queue keeps its memory.
const KEPT: usize = 256;
/// What a reply takes besides its bytes, at most: its place in a queue that has just doubled, ...
const OVERHEAD: usize = 3 * size_of::<Reverse<Delayed>>();
/// ... and under a limit on address space a page, since a thread has no heap of its own then (glibc).
const PAGE: usize = 4096;

/// The queue that the replies of one socket pass where they are impaired. The same seed makes the same of
/// the same replies again.
#[derive(Debug)]
pub(super) struct Netem {
    impairments: Impairments,
    random: SplitMix64,
    /// The next one to leave first.
    delayed: BinaryHeap<Reverse<Delayed>>,
    bytes: usize,
    /// How many bytes the queue may take, with what its replies take besides their own.
    room: usize,
    /// How many bytes a reply takes besides its own.
    overhead: usize,
    /// The number of the latest one.
    number: u64,
    /// None waits any more.
    hastened: bool,
}

/// A reply in the queue.
#[derive(Debug)]
pub(super) struct Delayed {
    /// When it leaves, and its number: those that leave at one time keep the order in which they came.
    at: (Moment, u64),
    pub(super) route: Route,
    pub(super) bytes: Vec<u8>,
}

impl Ord for Delayed {
    fn cmp(&self, other: &Self) -> Ordering {
        self.at.cmp(&other.at)
    }
}

impl PartialOrd for Delayed {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Delayed {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl Eq for Delayed {}

/// What becomes of one copy of a reply.
struct Treatment {
    delay: Duration,
    /// It does not wait for the delay that others have.
    reordered: bool,
    /// The bit to flip, modulo the length of the reply.
    corrupt: Option<u64>,
}

impl Netem {
    /// Makes the queue of the socket with this index, which draws from its own random sequence. This number
    /// of queues share the memory that there is for them. Returns none where nothing is impaired.
    pub(super) fn new(impairments: &Impairments, index: usize, queues: usize) -> Option<Self> {
        if impairments.is_none() {
            return None;
        }
        let seed = impairments.seed.unwrap_or_default();
        let mut seeds = SplitMix64::new(seed);
        let seed = (0..=index).fold(seed, |_, _| seeds.next());
        Some(Netem {
            impairments: *impairments,
            random: SplitMix64::new(seed),
            delayed: BinaryHeap::new(),
            bytes: 0,
            // All of them take half of what connections leave.
            room: budget::possible(usize::MAX).0 / (2 * queues.max(1)),
            overhead: OVERHEAD + if limits::address_space_left() < u64::MAX { PAGE } else { 0 },
            number: 0,
            hastened: false,
        })
    }

    /// Whether anything is delayed.
    pub(super) fn delays(&self) -> bool {
        !self.impairments.delay.is_zero()
    }

    /// Draws the delay of the next reply: evenly spread around the mean, as far as the jitter goes.
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

    /// Takes a reply: what is left of it leaves the queue when it is time. A second copy leaves only
    /// where `admit_duplicate` allows it.
    pub(super) fn enqueue(
        &mut self,
        reply: &[u8],
        route: Route,
        now: Moment,
        stats: &Stats,
        admit_duplicate: impl FnOnce() -> bool,
    ) {
        let Impairments { loss, duplicate, .. } = self.impairments;
        let duplicated = self.happens(duplicate);
        let lost = self.happens(loss);
        // Both are drawn for every reply, so that the next one finds the same numbers.
        let treatments = [self.treatment(), self.treatment()];
        let duplicated = duplicated && admit_duplicate();
        stats.udp_duplicated.add(duplicated.into());
        stats.udp_lost.add(lost.into());
        // As in netem, a reply that is lost and duplicated leaves once.
        let copies = 1 + usize::from(duplicated) - usize::from(lost);
        for Treatment { delay, reordered, corrupt } in treatments.into_iter().take(copies) {
            stats.udp_reordered.add(reordered.into());
            stats.udp_corrupted.add(corrupt.is_some().into());
            let Some(mut bytes) = self.copy(reply) else {
                stats.udp_overflowed.increment();
                continue;
            };
            if let Some(bit) = corrupt {
                flip(&mut bytes, bit);
            }
            self.push(now + delay, route, bytes);
        }
    }

    fn treatment(&mut self) -> Treatment {
        let Impairments { corrupt, reorder, .. } = self.impairments;
        let corrupt = self.happens(corrupt).then(|| self.random.next());
        let reordered = self.happens(reorder);
        let delay = if reordered { Duration::ZERO } else { self.delay() };
        Treatment { delay, reordered, corrupt }
    }

    /// Draws a number only for what is possible.
    fn happens(&mut self, probability: Probability) -> bool {
        !probability.is_zero() && probability.holds(self.random.next())
    }

    /// Copies a reply for the queue. None where that is full, or no memory is left.
    fn copy(&mut self, reply: &[u8]) -> Option<Vec<u8>> {
        let (number, bytes) = (self.delayed.len() + 1, self.bytes + reply.len());
        let fits = number <= MAX_DELAYED && bytes <= MAX_DELAYED_BYTES;
        if !fits || bytes + number * self.overhead > self.room {
            return None;
        }
        self.delayed.try_reserve(1).ok()?;
        try_copy(reply).ok()
    }

    /// Puts a copy into the queue.
    fn push(&mut self, at: Moment, route: Route, bytes: Vec<u8>) {
        self.bytes += bytes.len();
        self.number += 1;
        self.delayed.push(Reverse(Delayed { at: (at, self.number), route, bytes }));
    }

    /// Lets all replies leave at once, in their order.
    pub(super) fn hasten(&mut self) {
        self.hastened = true;
    }

    /// When the next reply leaves.
    pub(super) fn next_at(&self) -> Option<Moment> {
        let at = self.delayed.peek().map(|Reverse(next)| next.at.0)?;
        Some(if self.hastened { Moment::default() } else { at })
    }

    /// Takes the next reply whose time has come out of the queue.
    pub(super) fn dequeue(&mut self, now: Moment) -> Option<Delayed> {
        self.next_at().filter(|&at| at <= now)?;
        let Reverse(reply) = self.delayed.pop()?;
        self.bytes -= reply.bytes.len();
        if self.delayed.is_empty() {
            self.delayed.shrink_to(KEPT);
        }
        Some(reply)
    }
}

/// Flips one bit, counted modulo the length.
fn flip(bytes: &mut [u8], bit: u64) {
    if !bytes.is_empty() {
        let bit = bit % (8 * bytes.len() as u64);
        bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::stats::Snapshot;

    fn impairments(text: &str) -> Impairments {
        let mut all = Impairments { seed: Some(7), ..Impairments::default() };
        for part in text.split(' ') {
            let (name, value) = part.split_once('=').unwrap();
            let time = || Duration::from_millis(value.parse().unwrap());
            match name {
                "loss" => all.loss = value.parse().unwrap(),
                "duplicate" => all.duplicate = value.parse().unwrap(),
                "reorder" => all.reorder = value.parse().unwrap(),
                "corrupt" => all.corrupt = value.parse().unwrap(),
                "seed" => all.seed = value.parse().ok(),
                "delay" => all.delay = time(),
                "jitter" => all.jitter = time(),
                _ => panic!("{name}"),
            }
        }
        all
    }

    fn netem(text: &str, index: usize) -> Netem {
        Netem::new(&impairments(text), index, 1).unwrap()
    }

    fn route() -> Route {
        Route { peer: ([192, 0, 2, 1], 9).into(), local: None, interface: 0 }
    }

    /// The copies of a reply: after which delay each leaves, and its bytes.
    type Copies = Vec<(Duration, Vec<u8>)>;

    /// What leaves for each of `count` replies of three bytes; and the counters.
    fn play(text: &str, index: usize, count: usize) -> (Vec<Copies>, Snapshot) {
        let (mut netem, stats) = (netem(text, index), Stats::default());
        let copies = (0..count).map(|_| {
            netem.enqueue(&[0x55; 3], route(), Moment::default(), &stats, || true);
            let next = || {
                let delay = netem.next_at()? - Moment::default();
                let Delayed { bytes, .. } = netem.dequeue(Moment::LAST)?;
                Some((delay, bytes))
            };
            std::iter::from_fn(next).collect()
        });
        (copies.collect(), stats.snapshot())
    }

    #[test]
    fn a_delay_delays_and_nothing_else_does() {
        assert!(netem("delay=1 loss=10%", 0).delays());
        assert!(!netem("loss=10% duplicate=10%", 0).delays());
    }

    #[test]
    fn without_impairments_there_is_no_queue() {
        assert!(Netem::new(&impairments("seed=1"), 0, 1).is_none());
        for text in ["loss=0.0000001%", "delay=1", "duplicate=1%", "corrupt=1%"] {
            assert!(Netem::new(&impairments(text), 0, 1).is_some(), "{text}");
        }
    }

    #[test]
    fn the_same_seed_decides_the_same_and_each_socket_differs() {
        let all = "loss=20% duplicate=10% reorder=5% corrupt=5% delay=50 jitter=50";
        let copies = |seed, index| play(&format!("{all} seed={seed}"), index, 1_000).0;
        assert_eq!(copies(7, 0), copies(7, 0));
        assert_ne!(copies(7, 0), copies(8, 0));
        // Nor is one socket's sequence the other's, some replies later.
        let (one, other) = (copies(7, 0), copies(7, 1));
        assert!(!(0..500).any(|skip| one[skip..skip + 500] == other[..500]));
    }

    /// A duplicate that is not admitted does not change what becomes of the next replies.
    #[test]
    fn a_duplicate_leaves_where_it_is_admitted() {
        let all = "duplicate=50% corrupt=50% delay=50 jitter=50 loss=10%";
        let (with, _) = play(all, 0, 1_000);
        let (mut netem, stats) = (netem(all, 0), Stats::default());
        for copies in with {
            netem.enqueue(&[0x55; 3], route(), Moment::default(), &stats, || false);
            let left = std::iter::from_fn(|| netem.dequeue(Moment::LAST)).count();
            assert!(left <= copies.len().min(1));
        }
        assert_eq!(stats.snapshot().udp_duplicated, 0);
    }

    /// The bounds of the binomial 99.9 % interval, by its normal approximation.
    fn is_probable(happened: u64, tries: u64, probability: f64) -> bool {
        let mean = tries as f64 * probability;
        let deviation = (mean * (1.0 - probability)).sqrt();
        (happened as f64 - mean).abs() <= 3.29 * deviation
    }

    #[test]
    fn each_happens_as_often_as_it_says() {
        const TRIES: u64 = 100_000;
        let text = "loss=30% duplicate=1% reorder=5% corrupt=0.1% delay=50 seed=42";
        let (copies, stats) = play(text, 0, TRIES as usize);
        let copies: Vec<_> = copies.concat();
        let (lost, duplicated) = (stats.udp_lost, stats.udp_duplicated);
        let left = copies.len() as u64;
        assert_eq!(left, TRIES + duplicated - lost);
        let reordered = copies.iter().filter(|(delay, _)| delay.is_zero()).count() as u64;
        let corrupt = copies.iter().filter(|(_, bytes)| bytes != &[0x55; 3]).count() as u64;
        assert_eq!((stats.udp_reordered, stats.udp_corrupted), (reordered, corrupt));
        assert!(is_probable(lost, TRIES, 0.3), "{lost}");
        assert!(is_probable(duplicated, TRIES, 0.01), "{duplicated}");
        assert!(is_probable(reordered, left, 0.05), "{reordered}");
        assert!(is_probable(corrupt, left, 0.001), "{corrupt}");
        let delays = [Duration::ZERO, Duration::from_millis(50)];
        assert!(copies.iter().all(|(delay, _)| delays.contains(delay)));
    }

    #[test]
    fn jitter_is_spread_evenly_around_the_delay() {
        let (copies, _) = play("delay=50 jitter=10 seed=3", 0, 10_000);
        let delays: Vec<Duration> = copies.iter().map(|copies| copies[0].0).collect();
        let [least, middle, most] = [40, 50, 60].map(Duration::from_millis);
        assert!(delays.iter().all(|delay| (least..=most).contains(delay)));
        let below = delays.iter().filter(|&&delay| delay < middle).count() as u64;
        assert!(is_probable(below, 10_000, 0.5), "{below}");
        let near = delays.iter().filter(|&&delay| delay < Duration::from_millis(42)).count() as u64;
        assert!(is_probable(near, 10_000, 0.1), "{near}");
    }

    #[test]
    fn jitter_reaches_both_ends() {
        let nanosecond = Duration::from_nanos(1);
        let impairments =
            Impairments { delay: nanosecond, jitter: nanosecond, ..Impairments::default() };
        let mut netem = Netem::new(&impairments, 0, 1).unwrap();
        let delays: BTreeSet<Duration> = (0..100).map(|_| netem.delay()).collect();
        assert!(delays.into_iter().eq([0, 1, 2].map(Duration::from_nanos)));
    }

    #[test]
    fn one_bit_is_flipped_and_no_more() {
        let (copies, _) = play("corrupt=100% seed=5", 0, 1_000);
        let mut seen = [0; 3];
        for (_, bytes) in copies.concat() {
            let flipped: Vec<u8> = bytes.iter().map(|byte| byte ^ 0x55).collect();
            assert_eq!(flipped.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
            seen.iter_mut().zip(flipped).for_each(|(seen, byte)| *seen |= byte);
        }
        assert_eq!(seen, [0xff; 3]);
        // There is nothing to flip.
        flip(&mut [], 5);
    }

    #[test]
    fn replies_leave_when_it_is_time_and_in_order() {
        let mut netem = netem("delay=1", 0);
        let at = |millis| Moment::default() + Duration::from_millis(millis);
        for (millis, text) in [(50, b"b"), (40, b"a"), (50, b"c"), (60, b"d")] {
            netem.push(at(millis), route(), text.to_vec());
        }
        let mut leave = |millis| netem.dequeue(at(millis)).map(|reply| reply.bytes[0]);
        assert_eq!(
            [39, 50, 50, 50, 50].map(&mut leave),
            [None, Some(b'a'), Some(b'b'), Some(b'c'), None]
        );
        assert_eq!([99, 99].map(leave), [Some(b'd'), None]);
        assert_eq!(netem.next_at(), None);
        // Those that do not wait for their time keep their order.
        for (millis, text) in [(120, b"f"), (110, b"e")] {
            netem.push(at(millis), route(), text.to_vec());
        }
        assert_eq!(netem.next_at(), Some(at(110)));
        netem.hasten();
        assert_eq!(netem.next_at(), Some(at(0)));
        let mut leave = |millis| netem.dequeue(at(millis)).map(|reply| reply.bytes[0]);
        assert_eq!([99, 99, 99].map(&mut leave), [Some(b'e'), Some(b'f'), None]);
    }

    #[test]
    fn the_queue_is_bounded_in_number_and_in_bytes() {
        let mut netem = netem("delay=1", 0);
        let push = |netem: &mut Netem, length: usize| {
            let copy = netem.copy(&vec![0; length]);
            copy.map(|copy| netem.push(Moment::default(), route(), copy)).is_some()
        };
        assert!((0..MAX_DELAYED).all(|_| push(&mut netem, 0)));
        assert!(!push(&mut netem, 0));
        netem.dequeue(Moment::LAST);
        assert!(push(&mut netem, 0));
        while netem.dequeue(Moment::LAST).is_some() {}
        assert!((0..2).all(|_| push(&mut netem, MAX_DELAYED_BYTES / 2)));
        assert!(!push(&mut netem, 1) && push(&mut netem, 0));
        netem.dequeue(Moment::LAST);
        assert!(push(&mut netem, MAX_DELAYED_BYTES / 2) && !push(&mut netem, 1));
        let stats = Stats::default();
        netem.enqueue(b"x", route(), Moment::default(), &stats, || true);
        assert_eq!(stats.snapshot().udp_overflowed, 1);
    }

    #[test]
    fn the_queue_fits_into_the_memory_that_is_left() {
        let mut netem = netem("delay=1", 0);
        netem.room = 10 * (1_000 + netem.overhead);
        let stats = Stats::default();
        (0..12)
            .for_each(|_| netem.enqueue(&[0; 1_000], route(), Moment::default(), &stats, || true));
        assert_eq!((netem.delayed.len(), stats.snapshot().udp_overflowed), (10, 2));
    }
}
