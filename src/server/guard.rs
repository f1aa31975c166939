//! Who may be answered over UDP: the loop guard and the rate limit. Pure: `now` is an argument.
//!
//! A datagram's source address is whatever its sender wrote there, so that an echo server can be made
//! to talk to another one, or to itself, for ever (CERT CA-1996-01, CERT VU#417980).

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU32;

use super::clock::Moment;
use super::peer::{Peer, Source};

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
    /// Its source has had its share.
    Rate,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refusal::Port => "its port could begin a loop",
            Refusal::NotUnicast => "its address is not of one host",
            Refusal::NotToUsAlone => "it asked a group, or everyone",
            Refusal::Rate => "it has had its share",
        })
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

    /// Whether a datagram from `peer` that came at `now`, to an address of ours or to many hosts, may
    /// be answered.
    pub(crate) fn admit(
        &mut self,
        peer: Peer,
        to_us_alone: bool,
        now: Moment,
    ) -> Result<(), Refusal> {
        if !to_us_alone {
            return Err(Refusal::NotToUsAlone);
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

    /// Whether a datagram of `question` bytes from `peer` may have an answer of `answer` bytes.
    pub(crate) fn admit_answer(
        &mut self,
        peer: Peer,
        question: usize,
        answer: usize,
        now: Moment,
    ) -> Result<(), Refusal> {
        let _ = (peer, question, answer, now);
        Ok(())
    }
}

/// At most `burst + rate × time` answers to one source in any stretch of time.
///
/// The virtual scheduling form of the generic cell rate algorithm (ITU-T I.371): for each bucket only
/// the time at which it is full again is kept. The table never grows. Sources are spread over it by a
/// keyed hash; two that meet in a bucket share it, so that the bound holds for each of them, and
/// nobody outside can choose whom to meet.
#[derive(Debug)]
struct RateLimit {
    full_at: Box<[u64]>,
    hasher: RandomState,
    /// Nanoseconds between two answers at the full rate.
    interval: u64,
    burst: u32,
}

impl RateLimit {
    const BUCKETS: usize = 8192;

    fn new(rate: NonZeroU32) -> Self {
        RateLimit {
            full_at: vec![0; Self::BUCKETS].into_boxed_slice(),
            hasher: RandomState::new(),
            interval: 1_000_000_000_u64.div_ceil(rate.get().into()),
            // A tenth of a second's worth.
            burst: (rate.get() / 10).max(1),
        }
    }

    fn admit(&mut self, source: Source, now: Moment) -> bool {
        let bucket = self.hasher.hash_one(source) as usize % self.full_at.len();
        let full_at = &mut self.full_at[bucket];
        let start = (*full_at).max(now.nanos());
        let ahead = start - now.nanos();
        let allowed = ahead <= self.interval * u64::from(self.burst - 1);
        if allowed {
            *full_at = start + self.interval;
        }
        allowed
    }
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

    #[test]
    fn loops_are_not_begun() {
        let mut guard = Guard::new(vec![12000, 7, 0, 19], None);
        let mut admit = |address| guard.admit(peer(address), true, Moment::default());
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
            (0..10).filter(|_| guard.admit(peer(address), true, Moment::default()).is_ok()).count()
        };
        assert_eq!(admitted("127.0.0.2:9999"), 10);
        assert_eq!(admitted("[::1]:9999"), 10);
        assert_eq!(admitted("192.0.2.1:9999"), 1);
    }

    proptest! {
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
            prop_assert_eq!(limit.full_at.len(), RateLimit::BUCKETS);
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
