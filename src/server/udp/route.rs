//! Routes that refuse several datagrams in one call. Pure: `now` is an argument.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::Duration;

use crate::server::clock::Moment;
use crate::sys::datagram::Route;

/// Routes that refused segmentation offload a short time ago.
///
/// One path is too narrow for the segments, another one leaves through a device or a tunnel without
/// offload: that says nothing of other routes, and it changes with the path. The table never grows.
/// Routes are spread over it by a keyed hash, and one that is forgotten for another only costs a further
/// try.
#[derive(Debug)]
pub(in crate::server) struct Unjoinable {
    slots: Box<[Option<(IpAddr, Moment)>]>,
    hasher: RandomState,
    /// All are forgotten from here on.
    until: Moment,
}

impl Unjoinable {
    const SLOTS: usize = 256;
    /// How long a refusal is remembered: the kernel itself remembers a path MTU for ten minutes.
    pub(in crate::server) const MEMORY: Duration = Duration::from_secs(60);

    pub(super) fn new() -> Self {
        Unjoinable {
            slots: vec![None; Self::SLOTS].into_boxed_slice(),
            hasher: RandomState::new(),
            until: Moment::default(),
        }
    }

    /// Notes that a route has refused.
    pub(super) fn remember(&mut self, route: &Route, now: Moment) {
        self.until = now + Self::MEMORY;
        let slot = self.slot(route);
        self.slots[slot] = Some((route.peer.ip(), self.until));
    }

    /// Whether a route has refused a short time ago.
    pub(super) fn holds(&self, route: &Route, now: Moment) -> bool {
        // Usually there are none, and nothing has to be looked up.
        !self.until.since(now).is_zero()
            && self.slots[self.slot(route)]
                .is_some_and(|(ip, until)| ip == route.peer.ip() && now < until)
    }

    fn slot(&self, route: &Route) -> usize {
        self.hasher.hash_one(route.peer.ip()) as usize % self.slots.len()
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn route(host: u32, port: u16) -> Route {
        let peer = SocketAddr::new(IpAddr::V4(host.into()), port);
        Route { peer, local: None, interface: 0 }
    }

    #[test]
    fn a_refusal_is_of_one_host_and_for_a_while() {
        let mut unjoinable = Unjoinable::new();
        let start = Moment::default() + Duration::from_secs(5);
        assert!(!unjoinable.holds(&route(1, 1), start));
        unjoinable.remember(&route(1, 1), start);
        let last = start + (Unjoinable::MEMORY - Duration::from_nanos(1));
        for now in [start, last] {
            assert!(unjoinable.holds(&route(1, 2), now));
            assert!(!unjoinable.holds(&route(2, 1), now));
        }
        // Another one does not make it last longer.
        let other = (2..1_000)
            .find(|&host| unjoinable.slot(&route(host, 1)) != unjoinable.slot(&route(1, 1)));
        let other = route(other.unwrap(), 1);
        unjoinable.remember(&other, last);
        let end = start + Unjoinable::MEMORY;
        assert!(!unjoinable.holds(&route(1, 1), end));
        assert!(unjoinable.holds(&other, end));
        assert!(!unjoinable.holds(&other, last + Unjoinable::MEMORY));
    }

    #[test]
    fn the_memory_is_bounded() {
        let mut unjoinable = Unjoinable::new();
        let now = Moment::default();
        for host in 0..100_000 {
            unjoinable.remember(&route(host, 1), now);
            assert!(unjoinable.holds(&route(host, 1), now));
        }
        assert_eq!(unjoinable.slots.len(), Unjoinable::SLOTS);
        let held = (0..100_000).filter(|&host| unjoinable.holds(&route(host, 1), now)).count();
        assert_eq!(held, Unjoinable::SLOTS, "they are spread over the table");
    }
}
