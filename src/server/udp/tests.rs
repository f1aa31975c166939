//! What leaves joined has to arrive as it would have one by one.

use std::net::SocketAddrV4;

use proptest::prelude::*;

use super::*;

/// A reply, and what decides whether it may be joined to the one before.
#[derive(Debug, Clone)]
struct Reply {
    place: Place,
    length: usize,
    /// Bytes in front of it that are not answered.
    gap: usize,
    came_joined: bool,
    may_join: bool,
    route: Route,
}

/// Few lengths, peers and kinds, so that neighbours are often alike.
fn replies() -> impl Strategy<Value = Vec<Reply>> {
    let length = prop_oneof![
        4 => Just(100_usize),
        2 => Just(1_000),
        1 => Just(0),
        1 => 0_usize..1_421,
        1 => Just(30_000),
        1 => Just(65_507),
    ];
    let route = (0_u8..4, 0_u8..6).prop_map(|(peer, local)| Route {
        peer: SocketAddrV4::new([192, 0, 2, peer / 3].into(), 9).into(),
        local: (local == 0).then_some(Local::V4([127, 0, 0, 1])),
    });
    let place = prop_oneof![5 => Just(Place::Room), 1 => Just(Place::Written)];
    let rarely = || prop::bool::weighted(0.1);
    let reply = (place, length, rarely(), rarely(), prop::bool::weighted(0.9), route).prop_map(
        |(place, length, refused, came_joined, may_join, route)| {
            let gap = if refused { 100 } else { 0 };
            Reply { place, length, gap, came_joined, may_join, route }
        },
    );
    // Stretches of the same, as a peer sends them.
    prop::collection::vec((reply, 1_usize..70), 0..8)
        .prop_map(|stretches| stretches.into_iter().flat_map(|(r, n)| vec![r; n]).collect())
}

/// Where each reply stands, and the runs of them.
fn enlisted(replies: &[Reply]) -> (Vec<Run>, Vec<Run>) {
    let (mut room, mut written) = (0, 0);
    let (mut alone, mut runs) = (Vec::new(), Vec::new());
    for &Reply { place, length, gap, came_joined, may_join, route } in replies {
        // What is answered with something else has come all the same.
        let came = room + gap..room + gap + length;
        room = came.end;
        let bytes = match place {
            Place::Room => came,
            Place::Written => written..written + length,
        };
        written += if place == Place::Written { length } else { 0 };
        let run = Run { place, segment: length, bytes, came_joined, route };
        alone.push(run.clone());
        enlist(&mut runs, run, may_join);
    }
    (alone, runs)
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// The same datagrams, in the same order, on the same way back, whenever joining is given up; and
    /// no more in a call than the kernel takes.
    #[test]
    fn runs_cut_again_are_the_datagrams(replies in replies(), join_until in 0_usize..200) {
        let (alone, runs) = enlisted(&replies);
        let mut arrived = Vec::new();
        for mut run in runs {
            loop {
                let (taken, joined) = run.next_piece(arrived.len() < join_until);
                let (before, end) = (arrived.len(), run.bytes.start + taken);
                let mut start = run.bytes.start;
                loop {
                    // udp(7), UDP_SEGMENT: the last one may be shorter.
                    let cut = if joined { end.min(start + run.segment) } else { end };
                    arrived.push((run.place, start..cut, run.came_joined, run.route));
                    start = cut;
                    if start == end {
                        break;
                    }
                }
                let count = arrived.len() - before;
                prop_assert_eq!(run.datagrams_in(taken), count);
                prop_assert!(!joined || (count <= MAX_SEGMENTS && taken <= MAX_PAYLOAD));
                run.bytes.start = end;
                if run.bytes.is_empty() {
                    break;
                }
            }
        }
        let whole = |run: Run| (run.place, run.bytes, run.came_joined, run.route);
        let expected: Vec<_> = alone.into_iter().map(whole).collect();
        prop_assert_eq!(arrived, expected);
    }

    /// A stretch of equal ones does leave in few calls.
    #[test]
    fn equal_datagrams_are_joined(count in 1_usize..300, length in 1_usize..1_421) {
        let peer = SocketAddrV4::new([192, 0, 2, 1].into(), 9).into();
        let route = Route { peer, local: None };
        let reply = Reply {
            place: Place::Room, length, gap: 0, came_joined: false, may_join: true, route,
        };
        let (_, runs) = enlisted(&vec![reply; count]);
        let fit = MAX_SEGMENTS.min(MAX_PAYLOAD / length);
        prop_assert_eq!(runs.len(), count.div_ceil(fit));
    }
}
