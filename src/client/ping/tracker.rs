//! Which pings wait for a reply, and what a reply means. Pure: no socket, and `now` is an argument.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::message::Messages;
use crate::client::histogram::{Histogram, nanoseconds};
use crate::client::load::Latency;

/// How many of the latest pings are remembered, to tell a late reply from a second one.
const MEMORY: u64 = 1 << 16;

/// What a reply is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reply {
    /// The first reply to a ping, in time and unharmed.
    Echo {
        /// Which ping it answers: the first is 1.
        seq: u64,
        /// The round-trip time.
        #[serde(rename = "time_ns", serialize_with = "nanoseconds")]
        time: Duration,
        /// Whether the reply to a later ping came before this one (RFC 4737).
        reordered: bool,
    },
    /// A ping that has had its reply had another.
    Duplicate {
        /// Which ping it answers.
        seq: u64,
        /// The time since that ping was sent.
        #[serde(rename = "time_ns", serialize_with = "nanoseconds")]
        time: Duration,
    },
    /// The ping had been given up, and stays lost.
    Late {
        /// Which ping it answers.
        seq: u64,
        /// The round-trip time.
        #[serde(rename = "time_ns", serialize_with = "nanoseconds")]
        time: Duration,
    },
    /// A byte differs from what was sent.
    Corrupt {
        /// Which ping it answers, unless too much of it is damaged to tell.
        seq: Option<u64>,
        /// The position of the first such byte, from 0.
        byte: usize,
    },
    /// The reply is not as long as what was sent.
    Cut {
        /// Which ping it answers, unless too little of it is left to tell.
        seq: Option<u64>,
        /// Its length in bytes.
        bytes: usize,
    },
    /// It answers a ping that was never sent, or not recently.
    Stray,
}

/// What has come of all pings so far. Each ping that was sent was answered, is lost, has had a
/// damaged reply (corrupt or cut), or is still waiting.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Summary {
    /// Pings that were sent, and those for which no connection could be made.
    pub sent: u64,
    /// Pings that were echoed in time and unharmed.
    pub received: u64,
    /// Pings that got no reply in time, or no connection.
    pub lost: u64,
    /// Pings that still had time left when the run ended.
    pub waiting: u64,
    /// Pings that were answered after a later one.
    pub reordered: u64,
    /// Replies to pings that were answered before.
    pub duplicates: u64,
    /// Replies to pings that had been given up.
    pub late: u64,
    /// Replies with a wrong byte.
    pub corrupt: u64,
    /// Replies of a wrong length.
    pub cut: u64,
    /// Replies to pings that were never sent, or not recently.
    pub stray: u64,
    /// Lost pings in percent of those that are not waiting.
    pub loss_percent: f64,
    /// Round-trip times of the received pings, if there are any.
    pub times: Option<Times>,
}

/// Round-trip times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Times {
    /// From the shortest to the longest: none of them is missing.
    #[serde(flatten)]
    pub latency: Latency,
    /// The standard deviation, as `ping(8)` has it.
    #[serde(rename = "mdev_ns", serialize_with = "nanoseconds")]
    pub mdev: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Answered,
    Damaged,
    Lost,
}

struct Ping {
    sent: Instant,
    state: State,
}

/// Knows every ping of one run.
pub(super) struct Tracker {
    messages: Messages,
    wait: Duration,
    /// The latest pings, up to number `sent`.
    memory: VecDeque<Ping>,
    sent: u64,
    /// No ping before this one is waiting.
    oldest: u64,
    waiting: u64,
    /// The highest number that was echoed.
    highest: u64,
    received: u64,
    lost: u64,
    reordered: u64,
    duplicates: u64,
    late: u64,
    corrupt: u64,
    cut: u64,
    stray: u64,
    times: Stopwatch,
}

impl Tracker {
    /// Pings with these messages that may take `wait`.
    pub(super) fn new(messages: Messages, wait: Duration) -> Self {
        Self {
            messages,
            wait,
            memory: VecDeque::new(),
            sent: 0,
            oldest: 1,
            waiting: 0,
            highest: 0,
            received: 0,
            lost: 0,
            reordered: 0,
            duplicates: 0,
            late: 0,
            corrupt: 0,
            cut: 0,
            stray: 0,
            times: Stopwatch::default(),
        }
    }

    /// The message of the next ping.
    pub(super) fn next(&self) -> Vec<u8> {
        self.messages.request(self.sent + 1)
    }

    /// How many pings were sent: the next one's number less one.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// How many pings were echoed in time and unharmed.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// Whether this ping is neither answered nor given up.
    pub(super) fn is_waiting(&self, seq: u64) -> bool {
        let index = seq.checked_sub(self.first()).map(|index| index as usize);
        let ping = index.and_then(|index| self.memory.get(index));
        ping.is_some_and(|ping| ping.state == State::Waiting)
    }

    /// How many pings are neither answered nor given up.
    pub(super) fn waiting(&self) -> u64 {
        self.waiting
    }

    /// Whether one more ping can be remembered without forgetting one that is waiting.
    pub(super) fn has_room(&self) -> bool {
        self.waiting == 0 || self.sent + 1 - self.oldest < MEMORY
    }

    /// Notes that the next ping is sent, and returns its number.
    pub(super) fn send(&mut self, now: Instant) -> u64 {
        if self.memory.len() as u64 == MEMORY {
            self.memory.pop_front();
        }
        self.memory.push_back(Ping { sent: now, state: State::Waiting });
        self.sent += 1;
        self.waiting += 1;
        self.sent
    }

    /// When the time of the oldest waiting ping is over.
    pub(super) fn deadline(&mut self) -> Option<Instant> {
        let wait = self.wait;
        self.oldest_waiting().map(|(_, ping)| ping.sent + wait)
    }

    /// Gives up the oldest waiting ping if its time is over. Call this until it returns `None`
    /// before [`Self::receive`], so that what comes too late is known to.
    pub(super) fn expire(&mut self, now: Instant) -> Option<u64> {
        let deadline = self.deadline()?;
        if now < deadline { None } else { self.give_up() }
    }

    /// Gives up the oldest waiting ping, whatever its time.
    pub(super) fn give_up(&mut self) -> Option<u64> {
        let (seq, _) = self.oldest_waiting()?;
        self.settle(seq, State::Lost);
        self.lost += 1;
        Some(seq)
    }

    /// Says what a reply is, and counts it.
    pub(super) fn receive(&mut self, bytes: &[u8], now: Instant) -> Reply {
        let Some(seq) = self.owner(bytes) else {
            return self.receive_unowned(bytes);
        };
        let message = self.messages.reply(seq);
        if bytes.len() != message.len() {
            self.cut += 1;
            self.damage(seq);
            return Reply::Cut { seq: Some(seq), bytes: bytes.len() };
        }
        if let Some(byte) = bytes.iter().zip(&message).position(|(came, sent)| came != sent) {
            self.corrupt += 1;
            self.damage(seq);
            return Reply::Corrupt { seq: Some(seq), byte };
        }
        let ping = self.ping(seq);
        let (time, state) = (now.saturating_duration_since(ping.sent), ping.state);
        self.settle(seq, State::Answered);
        match state {
            State::Waiting => self.echo(seq, time),
            State::Lost => {
                self.late += 1;
                Reply::Late { seq, time }
            }
            State::Answered | State::Damaged => {
                self.duplicates += 1;
                Reply::Duplicate { seq, time }
            }
        }
    }

    fn echo(&mut self, seq: u64, time: Duration) -> Reply {
        let reordered = seq < self.highest;
        self.highest = self.highest.max(seq);
        self.reordered += u64::from(reordered);
        self.received += 1;
        self.times.record(time);
        Reply::Echo { seq, time, reordered }
    }

    fn receive_unowned(&mut self, bytes: &[u8]) -> Reply {
        match self.claims(bytes) {
            [Some(seq), Some(same)] if seq == same => {
                self.stray += 1;
                Reply::Stray
            }
            _ if bytes.len() != self.messages.size() => {
                self.cut += 1;
                Reply::Cut { seq: None, bytes: bytes.len() }
            }
            _ => {
                self.corrupt += 1;
                Reply::Corrupt { seq: None, byte: 0 }
            }
        }
    }

    /// Whether these bytes name a ping that is remembered.
    pub(super) fn recognises(&self, bytes: &[u8]) -> bool {
        self.claims(bytes).into_iter().flatten().any(|seq| self.remembers(seq))
    }

    /// Whether the ping that this start of a reply belongs to is waiting, and has time left.
    pub(super) fn has_time_for(&mut self, partial: &[u8], now: Instant) -> bool {
        let wait = self.wait;
        self.owner(partial).is_some_and(|seq| {
            let ping = self.ping(seq);
            ping.state == State::Waiting && now < ping.sent + wait
        })
    }

    /// Which ping these bytes answer, however damaged they are. Where the two numbers in them
    /// disagree, the one whose message is more like them; where neither is known, the only ping
    /// that waits for a reply.
    fn owner(&mut self, bytes: &[u8]) -> Option<u64> {
        let claims = self.claims(bytes);
        let known = claims.into_iter().flatten().filter(|&seq| self.remembers(seq));
        let best = known.min_by_key(|&seq| {
            bytes.iter().zip(self.messages.reply(seq)).filter(|(came, sent)| *came != sent).count()
        });
        let genuine = matches!(claims, [Some(seq), Some(same)] if seq == same);
        match best {
            None if self.waiting == 1 && !genuine => self.oldest_waiting().map(|(seq, _)| seq),
            best => best,
        }
    }

    fn claims(&self, bytes: &[u8]) -> [Option<u64>; 2] {
        self.messages.claims(bytes, self.sent)
    }

    /// The pings that are neither answered nor given up.
    pub(super) fn outstanding(&self) -> impl Iterator<Item = u64> {
        let waits = |(_, ping): &(u64, &Ping)| ping.state == State::Waiting;
        (self.first()..).zip(&self.memory).filter(waits).map(|(seq, _)| seq)
    }

    /// What has come of all pings so far.
    pub(super) fn summary(&self) -> Summary {
        let due = self.sent - self.waiting;
        Summary {
            sent: self.sent,
            received: self.received,
            lost: self.lost,
            waiting: self.waiting,
            reordered: self.reordered,
            duplicates: self.duplicates,
            late: self.late,
            corrupt: self.corrupt,
            cut: self.cut,
            stray: self.stray,
            loss_percent: if due == 0 { 0.0 } else { self.lost as f64 * 100.0 / due as f64 },
            times: self.times.times(),
        }
    }

    /// The number of the first ping that is remembered.
    fn first(&self) -> u64 {
        self.sent + 1 - self.memory.len() as u64
    }

    fn remembers(&self, seq: u64) -> bool {
        (self.first()..=self.sent).contains(&seq)
    }

    fn ping(&mut self, seq: u64) -> &mut Ping {
        let index = seq - self.first();
        &mut self.memory[index as usize]
    }

    fn oldest_waiting(&mut self) -> Option<(u64, &Ping)> {
        self.oldest = self.oldest.max(self.first());
        while self.oldest <= self.sent {
            let seq = self.oldest;
            if self.ping(seq).state == State::Waiting {
                return Some((seq, self.ping(seq)));
            }
            self.oldest += 1;
        }
        None
    }

    fn settle(&mut self, seq: u64, state: State) {
        let before = std::mem::replace(&mut self.ping(seq).state, state);
        self.waiting -= u64::from(before == State::Waiting);
    }

    /// A ping whose first reply is damaged gets no other chance.
    fn damage(&mut self, seq: u64) {
        if self.ping(seq).state == State::Waiting {
            self.settle(seq, State::Damaged);
        }
    }
}

/// Adds up round-trip times.
struct Stopwatch {
    histogram: Histogram,
    min: Duration,
    max: Duration,
    sum: f64,
    sum_of_squares: f64,
}

impl Default for Stopwatch {
    fn default() -> Self {
        Self {
            histogram: Histogram::new(),
            min: Duration::MAX,
            max: Duration::ZERO,
            sum: 0.0,
            sum_of_squares: 0.0,
        }
    }
}

impl Stopwatch {
    fn record(&mut self, time: Duration) {
        self.min = self.min.min(time);
        self.max = self.max.max(time);
        self.sum += time.as_secs_f64();
        self.sum_of_squares += time.as_secs_f64().powi(2);
        self.histogram.record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    fn times(&self) -> Option<Times> {
        let count = self.histogram.count() as f64;
        let latency = Latency::of(&self.histogram, 0)?;
        let mean = self.sum / count;
        let variance = (self.sum_of_squares / count - mean * mean).max(0.0);
        // The histogram rounds up; what is shortest and longest is known exactly.
        let within = |time: Option<Duration>| time.map(|time| time.clamp(self.min, self.max));
        Some(Times {
            latency: Latency {
                min: self.min,
                mean: Duration::from_secs_f64(mean).clamp(self.min, self.max),
                p50: within(latency.p50),
                p90: within(latency.p90),
                p99: within(latency.p99),
                p999: within(latency.p999),
                max: Some(self.max),
            },
            mdev: Duration::from_secs_f64(variance.sqrt()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::ping::{Config, Pattern, Size};
    use proptest::prelude::*;

    const WAIT: Duration = Duration::from_millis(100);
    const MS: Duration = Duration::from_millis(1);

    fn tracker(size: usize) -> Tracker {
        patterned(size, Pattern::Ascii)
    }

    fn patterned(size: usize, pattern: Pattern) -> Tracker {
        let mut config = Config::new("localhost".parse().unwrap());
        config.size = Size::new(size).unwrap();
        config.pattern = pattern;
        Tracker::new(Messages::new(&config, 0x0123_4567_89ab_cdef), WAIT)
    }

    /// Sends `count` pings at once.
    fn sent(count: usize, now: Instant) -> Tracker {
        let mut tracker = tracker(56);
        for seq in 1..=count as u64 {
            assert_eq!(tracker.send(now), seq);
        }
        tracker
    }

    #[test]
    fn a_ping_is_answered() {
        let now = Instant::now();
        let mut tracker = sent(1, now);
        let reply = tracker.receive(&tracker.messages.reply(1), now + MS);
        assert_eq!(reply, Reply::Echo { seq: 1, time: MS, reordered: false });
        assert_eq!((tracker.waiting(), tracker.deadline()), (0, None));
        let summary = tracker.summary();
        assert_eq!((summary.sent, summary.received, summary.lost), (1, 1, 0));
        assert_eq!(summary.loss_percent, 0.0);
    }

    #[test]
    fn a_ping_is_lost_when_its_time_is_over_and_a_late_reply_does_not_help() {
        let now = Instant::now();
        let mut tracker = sent(1, now);
        assert_eq!(tracker.deadline(), Some(now + WAIT));
        assert_eq!(tracker.expire(now + WAIT - MS), None);
        assert_eq!(tracker.expire(now + WAIT), Some(1));
        assert_eq!(tracker.expire(now + WAIT), None);
        let message = tracker.messages.reply(1);
        assert_eq!(
            tracker.receive(&message, now + 2 * WAIT),
            Reply::Late { seq: 1, time: 2 * WAIT }
        );
        let reply = tracker.receive(&message, now + 3 * WAIT);
        assert_eq!(reply, Reply::Duplicate { seq: 1, time: 3 * WAIT });
        let summary = tracker.summary();
        assert_eq!(
            (summary.received, summary.lost, summary.late, summary.duplicates),
            (0, 1, 1, 1)
        );
        assert_eq!((summary.loss_percent, summary.times), (100.0, None));
    }

    #[test]
    fn replies_out_of_order_are_the_early_pings_that_come_after_later_ones() {
        let now = Instant::now();
        let mut tracker = sent(4, now);
        let late =
            [1, 4, 2, 3].map(|seq| match tracker.receive(&tracker.messages.reply(seq), now) {
                Reply::Echo { seq: of, reordered, .. } if of == seq => reordered,
                other => panic!("{other:?}"),
            });
        assert_eq!(late, [false, false, true, true]);
        assert_eq!((tracker.summary().received, tracker.summary().reordered), (4, 2));
    }

    #[test]
    fn a_second_reply_is_a_duplicate() {
        let now = Instant::now();
        let mut tracker = sent(2, now);
        for _ in 0..3 {
            tracker.receive(&tracker.messages.reply(2), now);
        }
        let summary = tracker.summary();
        assert_eq!((summary.received, summary.duplicates, summary.waiting), (1, 2, 1));
    }

    #[test]
    fn what_names_a_ping_that_was_never_sent_is_a_stray() {
        let now = Instant::now();
        let mut tracker = sent(1, now);
        for seq in [0, 2, u64::MAX] {
            assert_eq!(tracker.receive(&tracker.messages.reply(seq), now), Reply::Stray);
        }
        assert_eq!((tracker.summary().stray, tracker.waiting()), (3, 1));
    }

    #[test]
    fn garbage_answers_the_only_ping_that_waits() {
        let now = Instant::now();
        let mut one = sent(1, now);
        let reply = one.receive(b"HTTP/1.0 400 Bad Request", now);
        assert_eq!(reply, Reply::Cut { seq: Some(1), bytes: 24 });
        assert_eq!(one.waiting(), 0);
        let mut two = sent(2, now);
        assert_eq!(two.receive(&[7; 56], now), Reply::Corrupt { seq: None, byte: 0 });
        assert_eq!(two.receive(b"", now), Reply::Cut { seq: None, bytes: 0 });
        assert_eq!(two.waiting(), 2);
        assert!(!two.recognises(&[7; 56]) && two.recognises(&two.messages.reply(2)[..8]));
    }

    #[test]
    fn the_start_of_a_reply_is_awaited_as_long_as_its_ping() {
        let now = Instant::now();
        let mut tracker = sent(2, now);
        let start = tracker.messages.reply(2)[..20].to_vec();
        assert!(tracker.has_time_for(&start, now + WAIT - MS));
        assert!(!tracker.has_time_for(&start, now + WAIT));
        assert!(!tracker.has_time_for(&[9; 20], now));
        tracker.receive(&tracker.messages.reply(2), now);
        assert!(!tracker.has_time_for(&start, now));
    }

    #[test]
    fn memory_is_bounded_and_never_forgets_a_waiting_ping() {
        let now = Instant::now();
        let mut tracker = tracker(24);
        while tracker.has_room() {
            tracker.send(now);
        }
        assert_eq!(tracker.sent(), MEMORY);
        tracker.receive(&tracker.messages.reply(1), now);
        assert_eq!(tracker.deadline(), Some(now + WAIT));
        assert!(tracker.has_room());
        tracker.send(now);
        assert_eq!(tracker.memory.len() as u64, MEMORY);
        assert_eq!(tracker.receive(&tracker.messages.reply(1), now), Reply::Stray);
        assert!(matches!(
            tracker.receive(&tracker.messages.reply(2), now),
            Reply::Echo { seq: 2, .. }
        ));
    }

    #[test]
    fn times_are_added_up_as_ping_does() {
        let now = Instant::now();
        let mut tracker = sent(100, now);
        for seq in 1..=100 {
            tracker.receive(&tracker.messages.reply(seq), now + MS * seq as u32);
        }
        let Times { latency, mdev } = tracker.summary().times.unwrap();
        assert_eq!((latency.min, latency.max), (MS, Some(100 * MS)));
        let near = |time: Duration, ms: f64| {
            assert!((time.as_secs_f64() * 1e3 / ms - 1.0).abs() < 0.002, "{time:?} is not {ms} ms");
        };
        near(latency.mean, 50.5);
        // The standard deviation of 1 to n is the root of (n² - 1) / 12.
        near(mdev, (9999.0_f64 / 12.0).sqrt());
        near(latency.p50.unwrap(), 50.0);
        near(latency.p90.unwrap(), 90.0);
        near(latency.p99.unwrap(), 99.0);
    }

    /// What became of a ping.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Fate {
        Out,
        Received,
        Damaged,
        Lost,
        Late,
    }

    #[derive(Clone, Debug)]
    enum Step {
        Send,
        Pass(u32),
        Reply(prop::sample::Index, Damage),
    }

    #[derive(Clone, Copy, Debug)]
    enum Damage {
        None,
        Flip(usize, u8),
        Shorten(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let damage = prop_oneof![
            3 => Just(Damage::None),
            1 => (0..56_usize, 1..=255_u8).prop_map(|(at, bits)| Damage::Flip(at, bits)),
            1 => (8..56_usize).prop_map(Damage::Shorten),
        ];
        prop_oneof![
            3 => Just(Step::Send),
            1 => (1..60_u32).prop_map(Step::Pass),
            5 => (any::<prop::sample::Index>(), damage).prop_map(|(of, how)| Step::Reply(of, how)),
        ]
    }

    /// A tracker beside the simplest thing that knows what it should say.
    struct Model {
        tracker: Tracker,
        now: Instant,
        pings: Vec<(Instant, Fate)>,
        /// Replies of each kind.
        duplicates: u64,
        corrupt: u64,
        cut: u64,
    }

    impl Model {
        fn new(pattern: Pattern) -> Self {
            let (tracker, now) = (patterned(56, pattern), Instant::now());
            Self { tracker, now, pings: Vec::new(), duplicates: 0, corrupt: 0, cut: 0 }
        }

        fn step(&mut self, step: Step) {
            match step {
                Step::Send => {
                    self.pings.push((self.now, Fate::Out));
                    assert_eq!(self.tracker.send(self.now), self.pings.len() as u64);
                }
                Step::Pass(ms) => {
                    self.now += MS * ms;
                    self.expire();
                }
                Step::Reply(..) if self.pings.is_empty() => {}
                Step::Reply(of, damage) => {
                    let index = of.index(self.pings.len());
                    let message = self.tracker.messages.reply(index as u64 + 1);
                    let expected = self.expect(index, damage);
                    let reply = match damage {
                        Damage::None => message,
                        Damage::Flip(byte, bits) => {
                            let mut message = message;
                            message[byte] ^= bits;
                            message
                        }
                        Damage::Shorten(bytes) => message[..bytes].to_vec(),
                    };
                    assert_eq!(self.tracker.receive(&reply, self.now), expected);
                }
            }
        }

        fn expire(&mut self) {
            for (index, (sent, fate)) in self.pings.iter_mut().enumerate() {
                if *fate == Fate::Out && self.now >= *sent + WAIT {
                    assert_eq!(self.tracker.expire(self.now), Some(index as u64 + 1));
                    *fate = Fate::Lost;
                }
            }
            assert_eq!(self.tracker.expire(self.now), None);
        }

        /// What a reply to this ping has to be.
        fn expect(&mut self, index: usize, damage: Damage) -> Reply {
            let later = &self.pings[index + 1..];
            let reordered = later.iter().any(|(_, fate)| *fate == Fate::Received);
            let (sent, fate) = &mut self.pings[index];
            let (seq, time) = (index as u64 + 1, self.now - *sent);
            if !matches!(damage, Damage::None) && *fate == Fate::Out {
                *fate = Fate::Damaged;
            }
            match (damage, *fate) {
                (Damage::Flip(byte, _), _) => {
                    self.corrupt += 1;
                    Reply::Corrupt { seq: Some(seq), byte }
                }
                (Damage::Shorten(bytes), _) => {
                    self.cut += 1;
                    Reply::Cut { seq: Some(seq), bytes }
                }
                (Damage::None, Fate::Out) => {
                    *fate = Fate::Received;
                    Reply::Echo { seq, time, reordered }
                }
                (Damage::None, Fate::Lost) => {
                    *fate = Fate::Late;
                    Reply::Late { seq, time }
                }
                (Damage::None, Fate::Received | Fate::Damaged | Fate::Late) => {
                    self.duplicates += 1;
                    Reply::Duplicate { seq, time }
                }
            }
        }

        fn count(&self, fates: &[Fate]) -> u64 {
            self.pings.iter().filter(|(_, fate)| fates.contains(fate)).count() as u64
        }
    }

    proptest! {
        #[test]
        fn every_ping_has_one_fate(steps in prop::collection::vec(step(), 1..60), binary: bool) {
            let mut model = Model::new(if binary { Pattern::Binary } else { Pattern::Ascii });
            steps.into_iter().for_each(|step| model.step(step));
            let summary = model.tracker.summary();
            prop_assert_eq!(summary.sent, model.pings.len() as u64);
            prop_assert_eq!(summary.waiting, model.count(&[Fate::Out]));
            prop_assert_eq!(summary.waiting, model.tracker.outstanding().count() as u64);
            prop_assert_eq!(summary.received, model.count(&[Fate::Received]));
            prop_assert_eq!(summary.lost, model.count(&[Fate::Lost, Fate::Late]));
            prop_assert_eq!(summary.late, model.count(&[Fate::Late]));
            prop_assert_eq!(summary.duplicates, model.duplicates);
            prop_assert_eq!((summary.corrupt, summary.cut), (model.corrupt, model.cut));
        }
    }
}
