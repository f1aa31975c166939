//! Who may be answered over UDP: the loop guard and the rate limit. Pure: `now` is an argument.
//!
//! A datagram's source address is whatever its sender wrote there, so that an echo server can be made
//! to talk to another one, or to itself, for ever (CERT CA-1996-01, CERT VU#417980).

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU32;
use std::ops::RangeInclusive;

use super::clock::Moment;
use super::peer::{Peer, Source};
use crate::protocol::MAX_DATAGRAM;
use crate::sys::datagram::Arrival;
use crate::sys::socket::REPLY_HOP_LIMIT;

/// What an answer may have left of its hop limit when it arrives. Questions have at most 128, or more
/// than 200.
const HOPS_OF_ANSWERS: RangeInclusive<u8> = 129..=REPLY_HOP_LIMIT;

/// Why a datagram is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Its source port is one of ours, or one where something answers anything.
    Port,
    /// Its source is a group, everyone or no one.
    NotUnicast,
    /// It was sent to a group or to everyone: all of them would answer one source, which may be
    /// forged. RFC 1122, 3.2.2, forbids ICMP errors for the same reason.
    NotToUsAlone,
    /// It is itself the answer of a server of this kind.
    Answer,
    /// Its source has had its share.
    Rate,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refusal::Port => "an answer to its source port could start an endless loop",
            Refusal::NotUnicast => "its source is a multicast or broadcast address",
            Refusal::NotToUsAlone => "it was sent to a multicast or broadcast address",
            Refusal::Answer => "it is itself the answer of an echo server",
            Refusal::Rate => "its source has reached the limit on answers",
        })
    }
}

impl Refusal {
    /// Its name in the fields of the log.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Refusal::Port => "guarded_port",
            Refusal::NotUnicast => "source_not_unicast",
            Refusal::NotToUsAlone => "not_to_us_alone",
            Refusal::Answer => "answer",
            Refusal::Rate => "rate",
        }
    }
}

/// Decides who may be answered.
#[derive(Debug)]
pub(crate) struct Guard {
    ports: Vec<u16>,
    rate: Option<RateLimit>,
}

impl Guard {
    /// A guard against sources on any of `ports`, our own among them: an echo server elsewhere
    /// listens on the same port as we do, and two of them would never end. At most `rate` datagrams
    /// per second are answered to one remote source; no limit without it.
    pub(crate) fn new(mut ports: Vec<u16>, rate: Option<NonZeroU32>) -> Self {
        ports.sort_unstable();
        ports.dedup();
        Guard { ports, rate: rate.map(RateLimit::new) }
    }

    /// Whether a datagram from `peer` that came like this at `now` may be answered.
    pub(crate) fn admit(
        &mut self,
        peer: Peer,
        Arrival { to_us_alone, hop_limit }: Arrival,
        now: Moment,
    ) -> Result<(), Refusal> {
        if !to_us_alone {
            return Err(Refusal::NotToUsAlone);
        }
        if hop_limit.is_some_and(|left| HOPS_OF_ANSWERS.contains(&left)) {
            return Err(Refusal::Answer);
        }
        if self.ports.binary_search(&peer.port()).is_ok() {
            return Err(Refusal::Port);
        }
        if !peer.is_unicast() {
            return Err(Refusal::NotUnicast);
        }
        if let Some(rate) = &mut self.rate
            && !peer.is_loopback()
            && !rate.admit(peer.source(), now)
        {
            return Err(Refusal::Rate);
        }
        Ok(())
    }

    /// Whether a datagram of `question` bytes from `peer` that has been admitted may have an answer of
    /// `answer` bytes. Whoever forges a remote source has no more bytes sent to it than an echo would
    /// send, beyond an allowance.
    pub(crate) fn admit_answer(
        &mut self,
        peer: Peer,
        question: usize,
        answer: usize,
        now: Moment,
    ) -> Result<(), Refusal> {
        if let Some(rate) = &mut self.rate
            && question != answer
            && !peer.is_loopback()
            && !rate.admit_growth(peer.source(), question, answer, now)
        {
            return Err(Refusal::Rate);
        }
        Ok(())
    }
}

/// At most `burst + rate × time` answers to one source in any stretch of time, and as many bytes as it
/// has sent, beyond the same for bytes.
///
/// The virtual scheduling form of the generic cell rate algorithm (ITU-T I.371): for each bucket only
/// the time at which it is full again is kept. The table never grows. Sources are spread over it by a
/// keyed hash; two that meet in a bucket share it, so that the bound holds for each of them, and
/// nobody outside can choose whom to meet.
#[derive(Debug)]
struct RateLimit {
    buckets: Box<[Bucket]>,
    hasher: RandomState,
    /// Nanoseconds between two answers at the full rate.
    interval: u64,
    burst: u32,
}

/// When a bucket is full again: of answers, and of bytes that they may be longer than the questions.
#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    answers_at: u64,
    growth_at: u64,
}

impl RateLimit {
    const BUCKETS: usize = 8192;
    /// Answers may be this many bytes longer than their questions, all together: any one answer, ...
    const GROWTH_BURST: u64 = MAX_DATAGRAM as u64;
    /// ... and this many more in a second: some hundred names or addresses for an empty question each.
    const GROWTH_RATE: u64 = 16 << 10;
    /// Nanoseconds for a byte of growth at that rate.
    const GROWTH_INTERVAL: u64 = 1_000_000_000_u64.div_ceil(Self::GROWTH_RATE);

    fn new(rate: NonZeroU32) -> Self {
        RateLimit {
            buckets: vec![Bucket::default(); Self::BUCKETS].into_boxed_slice(),
            hasher: RandomState::new(),
            interval: 1_000_000_000_u64.div_ceil(rate.get().into()),
            // A tenth of a second's worth.
            burst: (rate.get() / 10).max(1),
        }
    }

    fn bucket(&mut self, source: Source) -> &mut Bucket {
        let bucket = self.hasher.hash_one(source) as usize % self.buckets.len();
        &mut self.buckets[bucket]
    }

    fn admit(&mut self, source: Source, now: Moment) -> bool {
        let (interval, most) = (self.interval, self.interval * u64::from(self.burst));
        spend(&mut self.bucket(source).answers_at, interval, most, now)
    }

    /// Pays for the growth from a question to its answer; an answer that is shorter earns some.
    fn admit_growth(
        &mut self,
        source: Source,
        question: usize,
        answer: usize,
        now: Moment,
    ) -> bool {
        let growth_at = &mut self.bucket(source).growth_at;
        let time = |bytes: usize| bytes as u64 * Self::GROWTH_INTERVAL;
        if answer <= question {
            *growth_at = growth_at.saturating_sub(time(question - answer));
            return true;
        }
        let most = Self::GROWTH_BURST * Self::GROWTH_INTERVAL;
        spend(growth_at, time(answer - question), most, now)
    }
}

/// Takes `cost` from a bucket that holds `most`, both as the time in which they come back; false where
/// there is not so much in it, which costs nothing.
fn spend(full_at: &mut u64, cost: u64, most: u64, now: Moment) -> bool {
    let spent = (*full_at).max(now.nanos()) + cost;
    let allowed = spent - now.nanos() <= most;
    if allowed {
        *full_at = spent;
    }
    allowed
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::SocketAddr;
    use std::time::Duration;

    fn peer(address: &str) -> Peer {
        address.parse::<SocketAddr>().unwrap().into()
    }

    const TO_US: Arrival = Arrival { to_us_alone: true, hop_limit: None };

    #[test]
    fn what_is_an_answer_or_asks_many_is_not_answered() {
        let mut guard = Guard::new(vec![], None);
        let mut admit = |arrival| guard.admit(peer("192.0.2.1:9"), arrival, Moment::default());
        for hops in [0, 1, 64, 128, 201, 255] {
            assert_eq!(admit(Arrival { hop_limit: Some(hops), ..TO_US }), Ok(()), "{hops}");
        }
        for hops in [129, 150, 200] {
            let arrival = Arrival { hop_limit: Some(hops), ..TO_US };
            assert_eq!(admit(arrival), Err(Refusal::Answer), "{hops}");
        }
        let broadcast = Arrival { to_us_alone: false, hop_limit: Some(64) };
        assert_eq!(admit(broadcast), Err(Refusal::NotToUsAlone));
    }

    #[test]
    fn no_source_is_sent_more_than_it_sends() {
        let mut guard = Guard::new(vec![], NonZeroU32::new(10_000));
        let mut now = Moment::default();
        let (remote, local) = (peer("192.0.2.1:9"), peer("127.0.0.1:9"));
        let (mut asked, mut answered) = (0, 0);
        for _ in 0..10_000 {
            asked += 1_400;
            if guard.admit_answer(remote, 1_400, 4_200, now).is_ok() {
                answered += 4_200;
            }
            assert_eq!(guard.admit_answer(local, 1_400, 4_200, now), Ok(()));
            assert_eq!(guard.admit_answer(peer("192.0.2.2:9"), 1_400, 1_400, now), Ok(()));
            now = now + Duration::from_millis(1);
        }
        let allowance = RateLimit::GROWTH_BURST + 10 * RateLimit::GROWTH_RATE;
        assert!(answered > 0 && answered <= asked + allowance as usize, "{answered} for {asked}");
        // All of it is there again after a while, and a shorter answer earns a longer one.
        now = now + Duration::from_secs(4);
        assert_eq!(guard.admit_answer(remote, 0, MAX_DATAGRAM, now), Ok(()));
        assert_eq!(guard.admit_answer(remote, 0, 1, now), Err(Refusal::Rate));
        assert_eq!(guard.admit_answer(remote, 130, 30, now), Ok(()));
        assert_eq!(guard.admit_answer(remote, 20, 121, now), Err(Refusal::Rate));
        assert_eq!(guard.admit_answer(remote, 20, 120, now), Ok(()));
        assert_eq!(guard.admit_answer(remote, 0, 1, now), Err(Refusal::Rate));
        let mut unlimited = Guard::new(vec![], None);
        assert!((0..9).all(|_| unlimited.admit_answer(remote, 0, MAX_DATAGRAM, now).is_ok()));
    }

    #[test]
    fn a_burst_is_answered_at_once() {
        for (rate, burst) in [(1, 1), (100, 10), (1_000, 100)] {
            let mut limit = RateLimit::new(NonZeroU32::new(rate).unwrap());
            let source = Source::V4([192, 0, 2, 1]);
            let mut admitted = |now| (0..200).filter(|_| limit.admit(source, now)).count();
            assert_eq!(admitted(Moment::default()), burst, "{rate}");
            // And then one after the other.
            let interval = Duration::from_secs(1) / rate;
            assert_eq!(admitted(Moment::default() + interval), 1, "{rate}");
        }
    }

    #[test]
    fn loops_are_not_begun() {
        let mut guard = Guard::new(vec![12000, 7, 0, 19], None);
        let mut admit = |address| guard.admit(peer(address), TO_US, Moment::default());
        for address in ["127.0.0.1:12000", "192.0.2.1:7", "192.0.2.1:0", "[::ffff:192.0.2.1]:19"] {
            assert_eq!(admit(address), Err(Refusal::Port), "{address}");
        }
        for address in ["224.0.0.1:9", "[ff02::1]:9", "255.255.255.255:9", "0.0.0.0:9", "[::]:9"] {
            assert_eq!(admit(address), Err(Refusal::NotUnicast), "{address}");
        }
        for address in ["127.0.0.1:12001", "192.0.2.1:40000", "[2001:db8::1]:9"] {
            assert_eq!(admit(address), Ok(()), "{address}");
        }
    }

    #[test]
    fn loopback_is_not_limited() {
        let mut guard = Guard::new(vec![], NonZeroU32::new(1));
        let mut admitted = |address| {
            (0..10).filter(|_| guard.admit(peer(address), TO_US, Moment::default()).is_ok()).count()
        };
        assert_eq!(admitted("127.0.0.2:9999"), 10);
        assert_eq!(admitted("[::1]:9999"), 10);
        assert_eq!(admitted("192.0.2.1:9999"), 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig { max_shrink_iters: 500, failure_persistence: None, ..ProptestConfig::default() })]

        /// For any datagrams at any times: in every stretch of time, answers ≤ burst + rate × time.
        #[test]
        fn answers_are_bounded(
            rate in prop_oneof![1_u32..2_000, 1_u32..20_000, Just(u32::MAX)],
            datagrams in prop::collection::vec((0_u8..4, 0_u64..40), 1..600),
        ) {
            let mut limit = RateLimit::new(NonZeroU32::new(rate).unwrap());
            let burst = f64::from((rate / 10).max(1));
            // From a flood to a trickle: sources that get more than their share, and some that do not.
            let gaps = |gap: u64| if gap < 30 { 0 } else { limit.interval << (gap - 30) };
            let datagrams: Vec<_> =
                datagrams.into_iter().map(|(source, gap)| (source, gaps(gap))).collect();
            let mut now = Moment::default();
            let mut answered: Vec<(u8, Moment)> = Vec::new();
            for (source, gap) in datagrams {
                now = now + Duration::from_nanos(gap);
                if limit.admit(Source::V4([192, 0, 2, source]), now) {
                    answered.push((source, now));
                }
            }
            prop_assert_eq!(limit.buckets.len(), RateLimit::BUCKETS);
            for source in 0..4 {
                let times: Vec<_> = answered.iter().filter(|a| a.0 == source).map(|a| a.1).collect();
                for (first, from) in times.iter().enumerate() {
                    for (last, to) in times.iter().enumerate().skip(first) {
                        let bound = burst + f64::from(rate) * (*to - *from).as_secs_f64();
                        prop_assert!((last - first + 1) as f64 <= bound + 1e-6);
                    }
                }
            }
        }

        /// A source that keeps to the rate is always answered.
        #[test]
        fn who_keeps_to_the_rate_is_answered(rate in 1_u32..20_000, datagrams in 1_usize..500) {
            let mut limit = RateLimit::new(NonZeroU32::new(rate).unwrap());
            let mut now = Moment::default();
            for _ in 0..datagrams {
                prop_assert!(limit.admit(Source::V6([1; 8]), now));
                now = now + Duration::from_nanos(limit.interval);
            }
        }
    }
}
