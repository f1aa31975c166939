//! The replies of a batch, and which of them leave in one call. Pure: `now` is an argument.

use std::collections::{HashMap, TryReserveError};
use std::io::IoSlice;
use std::net::IpAddr;
use std::ops::Range;
use std::time::Duration;

use super::{BUFFER, MAX_JOINED_SEGMENT};
use crate::protocol::MAX_DATAGRAM;
use crate::server::clock::Moment;
use crate::sys::datagram::Route;

/// The most segments that every kernel with UDP_SEGMENT takes in a call.
pub(super) const MAX_SEGMENTS: usize = 64;
/// Entries for the latest run of a peer, by its port.
const PEERS: usize = 1024;

/// How long a route that has refused a run is sent none: the kernel itself remembers a path MTU for ten
/// minutes.
pub(in crate::server) const REFUSED_FOR: Duration = Duration::from_secs(60);
/// The most hosts for which that is remembered.
const MAX_REFUSED: usize = 256;

/// A queue of replies. Those to one peer keep their order.
#[derive(Debug)]
pub(super) struct SendQueue {
    /// Replies that are not what was received, one after the other.
    written: Vec<u8>,
    pieces: Vec<Piece>,
    runs: Vec<Run>,
    /// How many of the runs have been sent.
    sent: usize,
    /// The latest run for any peer with such a port: an index, good if that run is for the peer.
    latest: Box<[usize]>,
    /// Whether the kernel cuts runs into datagrams, ...
    offload: bool,
    /// ... and the hosts on whose routes it does not, for a while each. One path is too narrow for the
    /// segments, another one leaves through a device or a tunnel without offload: that says nothing of
    /// other routes, and it changes with the path.
    refused: HashMap<IpAddr, Moment>,
}

/// Replies that may leave in one call: to one peer, of `segment` bytes each, the last of no more.
#[derive(Debug)]
struct Run {
    route: Route,
    /// Whether its requests came as runs: then the route carries such segments.
    came_joined: bool,
    segment: usize,
    length: usize,
    count: usize,
    /// Indices of its pieces; between these two, each names the next.
    first: usize,
    last: usize,
}

/// The place of a reply, or of several that lie one behind the other.
#[derive(Debug)]
struct Piece {
    buffer: Buffer,
    bytes: Range<usize>,
    /// The index of the next piece of its run, if that has one.
    next: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Buffer {
    Received,
    Written,
}

/// What leaves next in one call: `count` replies of the first run, which the kernel cuts into datagrams
/// of `segment` bytes where there are several.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    pub(super) count: usize,
    pub(super) length: usize,
    pub(super) segment: Option<u16>,
    pub(super) route: Route,
}

impl SendQueue {
    pub(super) fn new(offload: bool) -> Self {
        SendQueue {
            written: Vec::new(),
            pieces: Vec::new(),
            runs: Vec::new(),
            sent: 0,
            latest: vec![0; PEERS].into_boxed_slice(),
            offload,
            refused: HashMap::new(),
        }
    }

    /// Forgets what has been sent, and gives back a long buffer.
    pub(super) fn clear(&mut self) {
        self.pieces.clear();
        self.runs.clear();
        self.sent = 0;
        self.written.clear();
        self.written.shrink_to(BUFFER);
    }

    /// Whether everything has been sent.
    pub(super) fn is_empty(&self) -> bool {
        self.sent == self.runs.len()
    }

    /// Whether the service has written enough for one batch.
    pub(super) fn is_full(&self) -> bool {
        self.written.len() >= BUFFER
    }

    /// Appends a reply that is a piece of what was received, if there is memory for it.
    pub(super) fn push_received(
        &mut self,
        bytes: Range<usize>,
        route: Route,
        came_joined: bool,
    ) -> Result<(), TryReserveError> {
        self.push(Buffer::Received, bytes, route, came_joined)
    }

    /// Appends a reply of these bytes, if there is memory for it.
    pub(super) fn push_written(
        &mut self,
        bytes: &[u8],
        route: Route,
        came_joined: bool,
    ) -> Result<(), TryReserveError> {
        let start = self.written.len();
        self.written.try_reserve(bytes.len())?;
        self.written.extend_from_slice(bytes);
        self.push(Buffer::Written, start..start + bytes.len(), route, came_joined)
    }

    /// Appends a reply: to the latest run for its peer, where it fits that.
    fn push(
        &mut self,
        buffer: Buffer,
        bytes: Range<usize>,
        route: Route,
        came_joined: bool,
    ) -> Result<(), TryReserveError> {
        let (length, new) = (bytes.len(), self.pieces.len());
        let latest = &mut self.latest[usize::from(route.peer.port()) % PEERS];
        let run = self.runs.get_mut(*latest);
        if let Some(run) = run.filter(|run| run.may_grow_by(length, &route, came_joined)) {
            let last = &mut self.pieces[run.last];
            if last.buffer == buffer && last.bytes.end == bytes.start {
                last.bytes.end = bytes.end;
            } else {
                self.pieces.try_reserve(1)?;
                self.pieces[run.last].next = new;
                self.pieces.push(Piece { buffer, bytes, next: new });
                run.last = new;
            }
            run.length += length;
            run.count += 1;
            return Ok(());
        }
        self.pieces.try_reserve(1)?;
        self.runs.try_reserve(1)?;
        *latest = self.runs.len();
        let (segment, count, first, last) = (length, 1, new, new);
        self.pieces.push(Piece { buffer, bytes, next: new });
        self.runs.push(Run { route, came_joined, segment, length, count, first, last });
        Ok(())
    }

    /// Returns what is to leave next: a whole run where its route takes that, else one reply.
    pub(super) fn next_call(&self, now: Moment) -> Option<Call> {
        let &Run { route, segment, length, count, .. } = self.runs.get(self.sent)?;
        let refused = || self.refused.get(&route.peer.ip()).is_some_and(|&until| now < until);
        if count > 1 && self.offload && !refused() {
            let segment = u16::try_from(segment).expect("a reply is no longer than a datagram");
            return Some(Call { count, length, segment: Some(segment), route });
        }
        Some(Call { count: 1, length: length.min(segment), segment: None, route })
    }

    /// Points `slices` to the bytes of the next call; how many slices that takes. `received` is the
    /// buffer of what was received.
    pub(super) fn gather<'a>(
        &'a self,
        call: &Call,
        received: &'a [u8],
        slices: &mut [IoSlice<'a>; MAX_SEGMENTS],
    ) -> usize {
        let mut count = 0;
        for (slice, (buffer, bytes)) in slices.iter_mut().zip(self.pieces(call)) {
            *slice = IoSlice::new(match buffer {
                Buffer::Received => &received[bytes],
                Buffer::Written => &self.written[bytes],
            });
            count += 1;
        }
        count
    }

    fn pieces(&self, call: &Call) -> impl Iterator<Item = (Buffer, Range<usize>)> {
        let mut at = self.runs[self.sent].first;
        let mut left = Some(call.length);
        std::iter::from_fn(move || {
            let Piece { buffer, ref bytes, next } = self.pieces[at];
            let taken = bytes.len().min(left?);
            left = left.map(|left| left - taken).filter(|&left| left > 0);
            at = next;
            Some((buffer, bytes.start..bytes.start + taken))
        })
    }

    /// Removes what the next call was to send.
    pub(super) fn advance(&mut self, call: &Call) {
        let run = &mut self.runs[self.sent];
        run.count -= call.count;
        run.length -= call.length;
        if run.count == 0 {
            self.sent += 1;
            return;
        }
        // Less than a run is one reply, which is in one piece.
        let piece = &mut self.pieces[run.first];
        piece.bytes.start += call.length;
        if piece.bytes.is_empty() {
            run.first = piece.next;
        }
    }

    /// Notes that a route has refused a run: replies on it are sent one by one for a while.
    pub(super) fn note_refused(&mut self, route: &Route, now: Moment) {
        self.refused.retain(|_, until| now < *until);
        // One that is forgotten only costs a further try.
        if self.refused.len() >= MAX_REFUSED {
            self.refused.clear();
        }
        if self.refused.try_reserve(1).is_ok() {
            self.refused.insert(route.peer.ip(), now + REFUSED_FOR);
        }
    }

    /// The bytes that it holds on the heap.
    #[cfg(any(test, fuzzing))]
    pub(super) fn held(&self) -> usize {
        self.written.capacity()
            + self.pieces.capacity() * size_of::<Piece>()
            + self.runs.capacity() * size_of::<Run>()
            + size_of_val(&*self.latest)
    }
}

impl Run {
    /// Whether a reply may be sent in one call with this run: same way back, every datagram but the
    /// last of one size, and not too much in all.
    fn may_grow_by(&self, length: usize, route: &Route, came_joined: bool) -> bool {
        let carried = self.came_joined
            || self.segment <= MAX_JOINED_SEGMENT
            || route.peer.ip().to_canonical().is_loopback();
        carried
            && came_joined == self.came_joined
            && length > 0
            && length <= self.segment
            && self.length == self.count * self.segment
            && self.length + length <= MAX_DATAGRAM
            && self.count < MAX_SEGMENTS
            && self.route == *route
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddrV4;

    use proptest::prelude::*;

    use super::*;

    /// The place of a reply.
    type Reply = (Buffer, Range<usize>);
    /// A reply, its way, and whether its request came in a run.
    type Pushed = (Reply, Route, bool);

    /// Few lengths, peers and kinds, so that many are alike.
    fn replies() -> impl Strategy<Value = Vec<Pushed>> {
        let length = prop_oneof![
            4 => Just(100_usize),
            2 => Just(1_000),
            1 => Just(0),
            1 => 0_usize..1_421,
            1 => Just(30_000),
            1 => Just(MAX_DATAGRAM),
        ];
        // The last peer but one has a port of the same place in the list as the first.
        let peers = [(1, 9), (2, 9), (1, 10), (1, 9 + PEERS as u16), (1, 11)];
        let route =
            (prop::sample::select(peers.to_vec()), 0_u8..6).prop_map(|((host, port), local)| {
                Route {
                    peer: SocketAddrV4::new([192, 0, 2, host].into(), port).into(),
                    local: (local == 0).then_some([127, 0, 0, 1].into()),
                    interface: 0,
                }
            });
        let buffer = prop_oneof![5 => Just(Buffer::Received), 1 => Just(Buffer::Written)];
        let came_joined = prop_oneof![8 => Just(false), 1 => Just(true)];
        // Stretches of the same, as a peer sends them, and others between.
        let stretch = ((buffer, length, route, came_joined), 1_usize..70);
        prop::collection::vec(stretch, 0..12).prop_map(|stretches| {
            let all = stretches.into_iter().flat_map(|(one, count)| vec![one; count]);
            let mut end = 0;
            all.map(|(buffer, length, route, came_joined)| {
                let start = end;
                end += length;
                ((buffer, start..end), route, came_joined)
            })
            .collect()
        })
    }

    fn queue(pushed: &[Pushed]) -> SendQueue {
        let mut queue = SendQueue::new(true);
        // What an earlier turn has left behind.
        for ((buffer, bytes), route, came_joined) in pushed.iter().rev() {
            queue.push(*buffer, bytes.clone(), *route, *came_joined).unwrap();
        }
        queue.clear();
        for ((buffer, bytes), route, came_joined) in pushed {
            queue.push(*buffer, bytes.clone(), *route, *came_joined).unwrap();
        }
        queue
    }

    /// Takes everything out: each call with the datagrams that leave in it.
    fn calls(mut queue: SendQueue, join: impl Fn(usize) -> bool) -> Vec<(Call, Vec<Reply>)> {
        let mut calls = Vec::new();
        queue.offload = join(0);
        while let Some(call) = queue.next_call(Moment::default()) {
            calls.push((call, datagrams(&call, queue.pieces(&call))));
            queue.advance(&call);
            queue.offload = join(calls.len());
        }
        assert!(queue.is_empty());
        calls
    }

    /// What the kernel makes of a call: it cuts all of it every `segment` bytes (udp(7)).
    fn datagrams(call: &Call, pieces: impl Iterator<Item = Reply>) -> Vec<Reply> {
        let segment = call.segment.map_or(call.length.max(1), usize::from);
        let mut datagrams = Vec::new();
        let mut length = 0;
        for (buffer, bytes) in pieces {
            assert!(length % segment == 0, "a datagram begins where its piece does");
            length += bytes.len();
            for start in (bytes.start..bytes.end.max(bytes.start + 1)).step_by(segment) {
                datagrams.push((buffer, start..bytes.end.min(start + segment)));
            }
        }
        assert_eq!((length, datagrams.len()), (call.length, call.count));
        datagrams
    }

    proptest! {
        #![proptest_config(ProptestConfig { max_shrink_iters: 500, failure_persistence: None, ..ProptestConfig::default() })]

        /// Every peer gets its datagrams, in its order, whenever joining is given up.
        #[test]
        fn each_peer_gets_its_replies_in_order(pushed in replies(), join_until in 0_usize..200) {
            let calls = calls(queue(&pushed), |call| call < join_until);
            prop_assert!(calls.iter().skip(join_until).all(|(call, _)| call.count == 1));
            for (_, route, _) in &pushed {
                let expected: Vec<_> =
                    pushed.iter().filter(|(_, to, _)| to == route).map(|(reply, ..)| reply).collect();
                let sent: Vec<_> = calls
                    .iter()
                    .filter(|(call, _)| call.route == *route)
                    .flat_map(|(_, replies)| replies)
                    .collect();
                prop_assert_eq!(sent, expected);
            }
        }

        /// udp(7), UDP_SEGMENT: bounded in number and bytes; and none that may not be joined.
        #[test]
        fn a_call_is_what_the_kernel_takes(pushed in replies()) {
            for (call, sent) in calls(queue(&pushed), |_| true) {
                prop_assert_eq!(call.segment.is_some(), call.count > 1);
                if call.count == 1 {
                    continue;
                }
                prop_assert!(call.count <= MAX_SEGMENTS && call.length <= MAX_DATAGRAM);
                let came_joined = |sent: &Reply| {
                    pushed.iter().find(|(reply, ..)| reply == sent).map(|&(.., joined)| joined)
                };
                let joined = came_joined(&sent[0]);
                prop_assert!(sent.iter().all(|one| came_joined(one) == joined));
                let longest = usize::from(call.segment.unwrap_or_default());
                prop_assert!(joined == Some(true) || longest <= MAX_JOINED_SEGMENT);
            }
        }

        /// Equal ones leave in few calls, also with replies to other peers between them.
        #[test]
        fn equal_datagrams_are_joined(count in 1_usize..300, length in 1_usize..1_421, peers in 1_u16..50) {
            let mut queue = SendQueue::new(true);
            for _ in 0..count {
                for port in 1..=peers {
                    let peer = SocketAddrV4::new([192, 0, 2, 1].into(), port).into();
                    let route = Route { peer, local: None, interface: 0 };
                    queue.push_received(0..length, route, false).unwrap();
                }
            }
            let fit = MAX_SEGMENTS.min(MAX_DATAGRAM / length);
            prop_assert_eq!(calls(queue, |_| true).len(), count.div_ceil(fit) * usize::from(peers));
        }
    }

    fn route(host: u32, port: u16) -> Route {
        let peer = std::net::SocketAddr::new(IpAddr::V4(host.into()), port);
        Route { peer, local: None, interface: 0 }
    }

    /// Whether two replies to this host leave in one call.
    fn joins(queue: &mut SendQueue, host: u32, now: Moment) -> bool {
        queue.clear();
        for index in 0..2 {
            queue.push_received(index..index + 1, route(host, 9), false).unwrap();
        }
        queue.next_call(now).is_some_and(|call| call.count == 2)
    }

    #[test]
    fn a_refusal_is_of_one_host_and_for_a_while() {
        let mut queue = SendQueue::new(true);
        let start = Moment::default() + Duration::from_secs(5);
        assert!(joins(&mut queue, 1, start));
        queue.note_refused(&route(1, 1), start);
        let last = start + (REFUSED_FOR - Duration::from_nanos(1));
        for now in [start, last] {
            assert!(!joins(&mut queue, 1, now) && joins(&mut queue, 2, now));
        }
        // Another one does not make it last longer.
        queue.note_refused(&route(2, 1), last);
        let end = start + REFUSED_FOR;
        assert!(joins(&mut queue, 1, end) && !joins(&mut queue, 2, end));
        assert!(joins(&mut queue, 2, last + REFUSED_FOR));
    }

    #[test]
    fn the_memory_of_refusals_is_bounded() {
        let mut queue = SendQueue::new(true);
        for host in 0..10_000 {
            queue.note_refused(&route(host, 1), Moment::default());
            assert!(!joins(&mut queue, host, Moment::default()));
            assert_eq!(queue.refused.len(), host as usize % MAX_REFUSED + 1);
        }
        queue.note_refused(&route(1, 1), Moment::default() + REFUSED_FOR);
        assert_eq!(queue.refused.len(), 1);
    }
}
