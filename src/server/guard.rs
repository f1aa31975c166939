//! Which datagrams are answered: the loop guard and the rate limit, and what is logged and counted of
//! the others. Pure: `now` is an argument.
//!
//! A datagram's source address is whatever its sender wrote there. With a forged one, an echo server can
//! be made to talk to another one, or to itself, without end (CERT CA-1996-01, CERT VU#417980).

use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU32;
use std::ops::RangeInclusive;

use log::{debug, error, warn};

use super::clock::Moment;
use super::peer::{Peer, Source};
use super::rate_limited::RateLimited;
use crate::error::Setting;
use crate::protocol::MAX_DATAGRAM;
use crate::stats::{Counter, Stats};
use crate::sys::datagram::Received;
use crate::sys::socket::REPLY_HOP_LIMIT;

/// What a reply may have left of its hop limit when it arrives. Requests have at most 128, or more than
/// 200.
const HOPS_OF_REPLIES: RangeInclusive<u8> = 129..=REPLY_HOP_LIMIT;

/// Why a datagram is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Its source port is one of ours, or one where a service answers anything.
    Port,
    /// Its source is a multicast, broadcast or unspecified address.
    NotUnicast,
    /// It was sent to a multicast or broadcast address: all hosts there would answer one source, which
    /// may be forged. RFC 1122, 3.2.2, forbids ICMP errors for the same reason.
    NotToUsAlone,
    /// It is itself the reply of a server of this kind.
    Reply,
    /// Its source has reached its limit.
    Rate,
    /// The buffer was too short for it.
    Truncated,
    /// The service panicked.
    Panic,
    /// The service withholds a reply that would be longer than the datagram.
    TooShort,
    /// The reply has more bytes than a datagram can have.
    TooLong { bytes: usize, longest: usize },
    /// The network does not take the reply.
    Dropped,
}

impl Refusal {
    /// Its name in the log, and how a sentence says it.
    fn row(self) -> (&'static str, &'static str) {
        use Refusal::*;
        match self {
            Port => ("guarded_port", "a reply to its source port could start an endless loop"),
            NotUnicast => ("source_not_unicast", "its source is a multicast or broadcast address"),
            NotToUsAlone => ("not_to_us_alone", "it was sent to a multicast or broadcast address"),
            Reply => ("answer", "it is itself the reply of an echo server"),
            Rate => ("rate", "its source has reached the limit on replies"),
            Truncated => ("truncated", "the datagram was cut when it was received"),
            Panic => ("panic", "the service panicked"),
            TooShort => ("too_short", "the reply would be longer than the datagram"),
            TooLong { .. } => ("too_long", "the reply is longer than a datagram can be"),
            Dropped => ("dropped", "the network does not take the reply"),
        }
    }

    fn counter(self, stats: &Stats) -> &Counter {
        match self {
            Refusal::Port | Refusal::NotUnicast | Refusal::NotToUsAlone | Refusal::Reply => {
                &stats.udp_guarded
            }
            Refusal::Rate => &stats.udp_rate_limited,
            Refusal::Truncated => &stats.udp_truncated,
            Refusal::Panic => &stats.udp_panics,
            Refusal::TooShort => &stats.udp_too_short,
            Refusal::TooLong { .. } => &stats.udp_too_long,
            Refusal::Dropped => &stats.udp_dropped,
        }
    }
}

/// Logs and counts the datagrams of a socket that are not answered. Above level debug, each reason has
/// one line per episode.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    limited: RateLimited,
    panicked: RateLimited,
    too_long: RateLimited,
    dropped: RateLimited,
}

impl Refusals {
    /// Notes that `count` datagrams from `peer` are not answered.
    #[cold]
    pub(crate) fn note(
        &mut self,
        refusal: Refusal,
        peer: Peer,
        count: usize,
        stats: &Stats,
        now: Moment,
    ) {
        refusal.counter(stats).add(count as u64);
        self.log_begin(refusal, peer, now);
        let (reason, sentence) = refusal.row();
        debug!(
            event = "not_answered",
            peer:%,
            reason = reason;
            "{peer} is not answered: {sentence}"
        );
    }

    /// Notes that the service panicked on a datagram from `peer` after it had replied.
    #[cold]
    pub(crate) fn note_panic_at_end(&mut self, peer: Peer, stats: &Stats, now: Moment) {
        stats.udp_panics.increment();
        if self.panicked.begins((), now) {
            error!(
                event = "panicked",
                peer:%;
                "the service panicked after it had replied to a datagram from {peer}; further panics are counted"
            );
        }
    }

    fn log_begin(&mut self, refusal: Refusal, peer: Peer, now: Moment) {
        let (reason, _) = refusal.row();
        match refusal {
            Refusal::Rate if self.limited.begins((), now) => warn!(
                event = "not_answered",
                peer:%,
                reason = reason,
                setting:% = Setting::UdpRate;
                "{peer} has reached the limit for one source: what it sends beyond that is not answered"
            ),
            Refusal::Panic if self.panicked.begins((), now) => error!(
                event = "not_answered",
                peer:%,
                reason = reason;
                "the service panicked on a datagram from {peer}, which is not answered"
            ),
            Refusal::TooLong { bytes, longest } if self.too_long.begins((), now) => warn!(
                event = "answer_too_long",
                peer:%,
                bytes = bytes,
                longest = longest;
                "a reply of {bytes} bytes to {peer} is not sent: a datagram has at most {longest}; further ones are counted"
            ),
            Refusal::Dropped if self.dropped.begins((), now) => warn!(
                event = "send_buffer_full";
                "the send buffer is full of replies that the network does not take: those to neighbours that do not exist are dropped, and those without room"
            ),
            _ => {}
        }
    }
}

/// Decides which datagrams are answered.
#[derive(Debug)]
pub(crate) struct Guard {
    ports: Vec<u16>,
    rate: Option<RateLimit>,
}

impl Guard {
    /// Makes a guard against sources on any of `ports`, which include our own: an echo server elsewhere
    /// listens on the same port as this one, and the two would never end. One remote source gets replies
    /// to at most `rate` datagrams per second; without a rate there is no limit.
    pub(crate) fn new(mut ports: Vec<u16>, rate: Option<NonZeroU32>) -> Self {
        ports.sort_unstable();
        ports.dedup();
        Guard { ports, rate: rate.map(RateLimit::new) }
    }

    /// Decides whether what was received from `peer` may be answered.
    pub(crate) fn admit(&self, peer: Peer, received: &Received) -> Result<(), Refusal> {
        if received.truncated {
            return Err(Refusal::Truncated);
        }
        if received.to_group {
            return Err(Refusal::NotToUsAlone);
        }
        if received.hop_limit.is_some_and(|left| HOPS_OF_REPLIES.contains(&left)) {
            return Err(Refusal::Reply);
        }
        if self.ports.binary_search(&peer.port()).is_ok() {
            return Err(Refusal::Port);
        }
        if !peer.is_unicast() {
            return Err(Refusal::NotUnicast);
        }
        Ok(())
    }

    /// Decides whether one datagram of that is answered: its source may have reached its limit.
    pub(crate) fn admit_datagram(&mut self, peer: Peer, now: Moment) -> Result<(), Refusal> {
        let admitted = self.rate_of(peer).is_none_or(|rate| rate.admit(peer.source(), now));
        if admitted { Ok(()) } else { Err(Refusal::Rate) }
    }

    /// Decides whether a datagram of `request` bytes that was admitted gets a reply of `reply` bytes.
    /// A forged remote source has no more bytes sent to it than an echo would send, beyond an allowance.
    pub(crate) fn admit_reply(
        &mut self,
        peer: Peer,
        request: usize,
        reply: usize,
        now: Moment,
    ) -> Result<(), Refusal> {
        let admitted = request == reply
            || self
                .rate_of(peer)
                .is_none_or(|rate| rate.admit_growth(peer.source(), request, reply, now));
        if admitted { Ok(()) } else { Err(Refusal::Rate) }
    }

    /// The rate limit that is for this peer, if there is one.
    fn rate_of(&mut self, peer: Peer) -> Option<&mut RateLimit> {
        self.rate.as_mut().filter(|_| !peer.is_loopback())
    }
}

/// Limits the replies to one source to `burst + rate × time` in any stretch of time, and their bytes to
/// what it has sent, beyond the same for bytes.
///
/// The virtual scheduling form of the generic cell rate algorithm (ITU-T I.371): for each bucket only
/// the time at which it is full again is kept. The table never grows. Sources are spread over it by a
/// keyed hash; two that meet in a bucket share it, so that the bound holds for each of them, and an
/// attacker cannot choose the source to meet.
#[derive(Debug)]
struct RateLimit {
    buckets: Box<[Bucket]>,
    hasher: RandomState,
    /// Nanoseconds between two replies at the full rate.
    interval: u64,
    burst: u32,
}

/// When a bucket is full again: of replies, and of bytes that they may be longer than the requests.
#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    replies_at: u64,
    growth_at: u64,
}

impl RateLimit {
    const BUCKETS: usize = 8192;
    /// How many bytes replies may be longer than their requests, all together: any one reply, ...
    const GROWTH_BURST: u64 = MAX_DATAGRAM as u64;
    /// ... and this many more in a second: some hundred names or addresses for an empty request each.
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
        spend(&mut self.bucket(source).replies_at, interval, most, now)
    }

    /// Pays for the growth from a request to its reply; a reply that is shorter earns some.
    fn admit_growth(&mut self, source: Source, request: usize, reply: usize, now: Moment) -> bool {
        let growth_at = &mut self.bucket(source).growth_at;
        let time = |bytes: usize| bytes as u64 * Self::GROWTH_INTERVAL;
        if reply <= request {
            *growth_at = growth_at.saturating_sub(time(request - reply));
            return true;
        }
        let most = Self::GROWTH_BURST * Self::GROWTH_INTERVAL;
        spend(growth_at, time(reply - request), most, now)
    }
}

/// Takes `cost` from a bucket that holds `most`, both as the time in which they come back. Returns false
/// where the bucket holds less; that costs nothing.
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

    /// A datagram to an address of ours.
    fn received(hop_limit: Option<u8>) -> Received {
        let peer = ([192, 0, 2, 1], 9).into();
        Received { hop_limit, ..Received::new(8, peer) }
    }

    #[test]
    fn replies_and_datagrams_to_a_group_are_not_answered() {
        let guard = Guard::new(vec![], None);
        let admit = |received| guard.admit(peer("192.0.2.1:9"), &received);
        for hops in [0, 1, 64, 128, 201, 255] {
            assert_eq!(admit(received(Some(hops))), Ok(()), "{hops}");
        }
        for hops in [129, 150, 200] {
            assert_eq!(admit(received(Some(hops))), Err(Refusal::Reply), "{hops}");
        }
        let broadcast = Received { to_group: true, ..received(Some(64)) };
        assert_eq!(admit(broadcast), Err(Refusal::NotToUsAlone));
        let cut = Received { truncated: true, ..received(Some(64)) };
        assert_eq!(admit(cut), Err(Refusal::Truncated));
    }

    #[test]
    fn no_source_is_sent_more_than_it_sends() {
        let mut guard = Guard::new(vec![], NonZeroU32::new(10_000));
        let mut now = Moment::default();
        let (remote, local) = (peer("192.0.2.1:9"), peer("127.0.0.1:9"));
        let (mut asked, mut answered) = (0, 0);
        for _ in 0..10_000 {
            asked += 1_400;
            if guard.admit_reply(remote, 1_400, 4_200, now).is_ok() {
                answered += 4_200;
            }
            assert_eq!(guard.admit_reply(local, 1_400, 4_200, now), Ok(()));
            assert_eq!(guard.admit_reply(peer("192.0.2.2:9"), 1_400, 1_400, now), Ok(()));
            now = now + Duration::from_millis(1);
        }
        let allowance = RateLimit::GROWTH_BURST + 10 * RateLimit::GROWTH_RATE;
        assert!(answered > 0 && answered <= asked + allowance as usize, "{answered} for {asked}");
        // All of it is there again after a while, and a shorter reply earns a longer one.
        now = now + Duration::from_secs(4);
        assert_eq!(guard.admit_reply(remote, 0, MAX_DATAGRAM, now), Ok(()));
        assert_eq!(guard.admit_reply(remote, 0, 1, now), Err(Refusal::Rate));
        assert_eq!(guard.admit_reply(remote, 130, 30, now), Ok(()));
        assert_eq!(guard.admit_reply(remote, 20, 121, now), Err(Refusal::Rate));
        assert_eq!(guard.admit_reply(remote, 20, 120, now), Ok(()));
        assert_eq!(guard.admit_reply(remote, 0, 1, now), Err(Refusal::Rate));
        let mut unlimited = Guard::new(vec![], None);
        assert!((0..9).all(|_| unlimited.admit_reply(remote, 0, MAX_DATAGRAM, now).is_ok()));
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
        let guard = Guard::new(vec![12000, 7, 0, 19], None);
        let admit = |address| guard.admit(peer(address), &received(None));
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
            (0..10)
                .filter(|_| guard.admit_datagram(peer(address), Moment::default()).is_ok())
                .count()
        };
        assert_eq!(admitted("127.0.0.2:9999"), 10);
        assert_eq!(admitted("[::1]:9999"), 10);
        assert_eq!(admitted("192.0.2.1:9999"), 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig { max_shrink_iters: 500, failure_persistence: None, ..ProptestConfig::default() })]

        /// For any datagrams at any times: in every stretch of time, replies ≤ burst + rate × time.
        #[test]
        fn replies_are_bounded(
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
        fn a_source_that_keeps_to_the_rate_is_answered(rate in 1_u32..20_000, datagrams in 1_usize..500) {
            let mut limit = RateLimit::new(NonZeroU32::new(rate).unwrap());
            let mut now = Moment::default();
            for _ in 0..datagrams {
                prop_assert!(limit.admit(Source::Subnet([1; 8]), now));
                now = now + Duration::from_nanos(limit.interval);
            }
        }
    }
}
