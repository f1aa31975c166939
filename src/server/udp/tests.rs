//! One turn after the other, with a scripted socket.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::outlet::STUCK_FOR;
use super::*;
use crate::impairments::Impairments;
use crate::protocol::{Context, Echo, Flow, MAX_DATAGRAM, Message, Replies, service_fn};
use crate::server::netem::Netem;
use crate::sys::datagram::Route;

fn responder<V: Service>(make_service: impl FnMut() -> V + 'static) -> Responder<V> {
    Responder::new(make_service, None, None, Arc::default())
}

/// What the socket is asked for, and what it returns.
#[derive(Default)]
struct Script {
    is_ipv6: bool,
    without_offload: bool,
    /// Datagrams to be received: the peer's port, length, and the length of each where they are a run.
    incoming: VecDeque<(u16, usize, Option<usize>)>,
    /// The error of every receive, if any, and those of the next sends.
    broken: Option<Errno>,
    refusals: VecDeque<Errno>,
    receives: usize,
    /// The segment and the length of each call that went well.
    sent: Vec<(Option<u16>, usize)>,
    sends: usize,
    /// Whether it was told to use the whole send buffer, or half of it.
    reserve: Vec<bool>,
    missing: Vec<IpAddr>,
    has_left: bool,
}

#[derive(Clone, Default)]
struct Scripted(Rc<RefCell<Script>>);

impl Socket for Scripted {
    fn receive(&mut self, _: &mut [u8]) -> Result<Received, Errno> {
        let mut script = self.0.borrow_mut();
        script.receives += 1;
        if let Some(error) = script.broken {
            return Err(error);
        }
        let (port, length, segment) = script.incoming.pop_front().ok_or(Errno::EAGAIN)?;
        let ip: IpAddr = if script.is_ipv6 { [1; 16].into() } else { [192, 0, 2, 1].into() };
        let segment = segment.unwrap_or(length);
        Ok(Received { segment, ..Received::new(length, (ip, port).into()) })
    }

    fn send(
        &mut self,
        pieces: &[IoSlice<'_>],
        segment: Option<u16>,
        _: &Route,
    ) -> Result<(), Errno> {
        let mut script = self.0.borrow_mut();
        script.sends += 1;
        if let Some(error) = script.refusals.pop_front() {
            return Err(error);
        }
        script.sent.push((segment, pieces.iter().map(|piece| piece.len()).sum()));
        Ok(())
    }

    fn offloads(&self) -> bool {
        !self.0.borrow().without_offload
    }

    fn use_reserve(&mut self, whole: bool) {
        self.0.borrow_mut().reserve.push(whole);
    }

    fn missing_neighbours(&mut self) -> Vec<IpAddr> {
        self.0.borrow().missing.clone()
    }

    fn leave(&mut self) {
        let mut script = self.0.borrow_mut();
        assert_eq!(script.receives, 0, "what came in between is lost");
        script.has_left = true;
    }
}

struct Bench {
    script: Scripted,
    endpoint: Endpoint<Scripted, Echo>,
    guard: Guard,
}

impl Bench {
    /// With `count` datagrams of this kind to be received.
    fn new(count: usize, length: usize, segment: Option<usize>) -> Self {
        let incoming = vec![(5, length, segment); count].into();
        Bench::with(Script { incoming, ..Script::default() })
    }

    fn with(script: Script) -> Self {
        Bench::of(script, responder(|| Echo))
    }

    fn of(script: Script, responder: Responder<Echo>) -> Self {
        let script = Scripted(Rc::new(RefCell::new(script)));
        let mut endpoint = Endpoint::new(script.clone(), responder);
        endpoint.hint(true, true);
        Bench { script, endpoint, guard: Guard::new(vec![], None) }
    }

    /// A datagram of `length` bytes comes.
    fn arrive(&mut self, port: u16, length: usize) {
        self.script.0.borrow_mut().incoming.push_back((port, length, None));
    }

    fn turn(&mut self, at: Duration) {
        self.endpoint.turn(&mut self.guard, Moment::default() + at);
    }

    fn sent(&self) -> usize {
        self.script.0.borrow().sent.iter().map(|&(_, length)| length).sum()
    }

    fn left(&self) -> usize {
        self.script.0.borrow().incoming.len()
    }

    fn stats(&self) -> crate::stats::Snapshot {
        self.endpoint.responder.stats.snapshot()
    }
}

#[test]
fn a_turn_takes_a_batch_of_what_an_ethernet_carries() {
    let mut bench = Bench::new(BATCH + 1, 1_400, None);
    bench.turn(Duration::ZERO);
    assert_eq!((bench.left(), bench.sent()), (1, BATCH * 1_400));
    assert!(bench.endpoint.can_act());
    bench.turn(Duration::ZERO);
    assert_eq!((bench.left(), bench.sent()), (0, (BATCH + 1) * 1_400));
    assert!(!bench.endpoint.can_act());
}

/// Its reply leaves, and its panic is counted.
#[test]
fn a_service_that_panics_as_it_ends_has_replied() {
    struct PanicsAtEnd;
    impl Service for PanicsAtEnd {
        fn serve(&mut self, _: Message<'_>, replies: &mut Replies<'_>, _: &Context<'_>) -> Flow {
            replies.echo();
            Flow::Continue
        }

        fn close(&mut self, _: &Context<'_>) {
            panic!("as it ends");
        }
    }
    let (mut responder, mut guard) = (responder(|| PanicsAtEnd), Guard::new(vec![], None));
    let received = Received::new(5, ([192, 0, 2, 1], 5).into());
    let mut replies = Vec::new();
    responder.serve(&received, b"hello", &mut guard, Moment::default(), |reply, _| {
        replies.extend_from_slice(reply);
    });
    assert_eq!((&*replies, responder.stats.snapshot().udp_panics), (&b"hello"[..], 1));
}

#[test]
fn what_the_kernel_dropped_is_counted() {
    let (mut responder, mut guard) = (responder(|| Echo), Guard::new(vec![], None));
    for (missed, all) in [(0, 0), (3, 3), (0, 3), (2, 5)] {
        let received = Received { missed, ..Received::new(5, ([192, 0, 2, 1], 5).into()) };
        responder.serve(&received, b"hello", &mut guard, Moment::default(), |_, _| {});
        assert_eq!(responder.stats.snapshot().udp_missed, all);
    }
}

#[test]
fn a_socket_that_fails_for_good_is_gone() {
    let lasting = [Errno::EPIPE, Errno::ESHUTDOWN, Errno::EBADF, Errno::ENOTSOCK, Errno::ENOSYS];
    for error in lasting {
        let mut bench = Bench::with(Script { broken: Some(error), ..Script::default() });
        bench.turn(Duration::ZERO);
        assert_eq!(bench.script.0.borrow().receives, 1, "{error}");
        assert!(bench.endpoint.is_gone() && bench.stats().sockets_gone == 1, "{error}");
        let mut bench = Bench::new(1, 5, None);
        bench.script.0.borrow_mut().refusals.push_back(error);
        bench.turn(Duration::ZERO);
        assert!(bench.endpoint.is_gone() && bench.stats().udp_errors == 1, "{error}");
    }
    let mut bench = Bench::with(Script { broken: Some(Errno::EPERM), ..Script::default() });
    bench.turn(Duration::ZERO);
    assert!(!bench.endpoint.is_gone());
    bench.endpoint.note_shut_down();
    assert!(bench.endpoint.is_gone());
}

#[test]
fn a_turn_takes_four_of_the_longest() {
    // A datagram, and as much of a run as comes in one piece.
    for (length, segment) in [(MAX_DATAGRAM, None), (MAX_RECEIVE, Some(MAX_RECEIVE / 51))] {
        let mut bench = Bench::new(9, length, segment);
        bench.turn(Duration::ZERO);
        assert_eq!((bench.left(), bench.sent()), (5, 4 * length));
    }
}

/// Each of a run may need a call of its own.
#[test]
fn a_turn_takes_few_runs() {
    let mut bench = Bench::new(64, 1_600, Some(100));
    bench.turn(Duration::ZERO);
    assert_eq!(bench.left(), 64 - MAX_TURN / 16);
    assert_eq!(bench.stats().udp_answered, 512);
}

#[test]
fn the_last_turns_reply_to_what_is_queued() {
    let count = BATCH * LAST_TURNS;
    let mut bench = Bench::new(count + 1, 1, None);
    bench.endpoint.finish(&mut bench.guard, Moment::default());
    assert_eq!((bench.left(), bench.sent()), (1, count));
    assert!(bench.script.0.borrow().has_left);
}

impl Bench {
    /// Has a turn after a datagram has come, in which the first sends fail like this.
    fn serve(&mut self, refusals: &[Errno], at: Duration) {
        self.arrive(5, 100);
        self.script.0.borrow_mut().refusals = refusals.to_vec().into();
        self.endpoint.hint(true, false);
        assert!(self.endpoint.can_act());
        self.turn(at);
    }

    fn reserve(&self) -> Vec<bool> {
        self.script.0.borrow().reserve.clone()
    }
}

#[test]
fn replies_without_room_wait_then_use_the_reserve_and_are_then_dropped() {
    let incoming = vec![(5, 100, None); 2].into();
    let mut bench = Bench::with(Script { incoming, without_offload: true, ..Script::default() });
    bench.serve(&[Errno::EAGAIN; 2], Duration::ZERO);
    assert!(!bench.endpoint.can_act());
    assert_eq!(bench.endpoint.deadline(), Some(Moment::default() + MAX_WAIT));
    let early = MAX_WAIT - Duration::from_nanos(1);
    bench.turn(early);
    assert_eq!((bench.script.0.borrow().sends, bench.stats().udp_paused), (1, 1));
    assert!(bench.reserve().is_empty());
    // One finds no room in the reserve, and the others leave.
    bench.turn(MAX_WAIT);
    assert_eq!((bench.sent(), bench.stats().udp_dropped), (200, 1));
    assert_eq!((bench.reserve(), bench.endpoint.deadline()), (vec![true], None));
    // It stays so, whatever an event says.
    let mut now = MAX_WAIT + (STUCK_FOR - Duration::from_nanos(1));
    bench.endpoint.hint(true, true);
    bench.serve(&[Errno::EAGAIN], now);
    assert_eq!((bench.stats().udp_dropped, bench.stats().udp_paused), (2, 1));
    // Half of the buffer is tried again: where that fails, no reply waits a second time.
    now = MAX_WAIT + STUCK_FOR;
    bench.serve(&[Errno::EAGAIN], now);
    assert_eq!((bench.stats().udp_dropped, bench.sent()), (2, 300));
    assert_eq!(bench.reserve(), [true, false, true]);
    now += STUCK_FOR;
    bench.serve(&[], now);
    assert_eq!(bench.reserve(), [true, false, true, false]);
    now += STUCK_FOR - Duration::from_nanos(1);
    bench.serve(&[Errno::EAGAIN], now);
    assert_eq!((bench.stats().udp_dropped, bench.stats().udp_paused), (2, 1));
    assert_eq!(bench.reserve(), [true, false, true, false, true]);
    // Then it is over: what finds no room waits again.
    now += STUCK_FOR;
    bench.serve(&[], now);
    now += STUCK_FOR;
    bench.serve(&[Errno::EAGAIN], now);
    assert_eq!((bench.stats().udp_dropped, bench.stats().udp_paused), (2, 2));
    assert!(!bench.endpoint.can_act());
    bench.endpoint.hint(false, true);
    assert!(bench.endpoint.can_act());
    bench.turn(now);
    assert_eq!((bench.stats().udp_answered, bench.stats().udp_dropped), (7, 2));
}

/// Replies to a neighbour that does not exist are dropped while the buffer is full of them.
#[test]
fn a_missing_neighbour_has_no_reserve() {
    let mut bench = Bench::new(0, 100, None);
    bench.script.0.borrow_mut().missing = vec![[192, 0, 2, 1].into()];
    bench.serve(&[Errno::EAGAIN], Duration::ZERO);
    // One is sent, since the kernel may not have looked for it yet.
    bench.turn(MAX_WAIT);
    assert_eq!((bench.stats().udp_answered, bench.stats().udp_dropped), (1, 0));
    bench.serve(&[], MAX_WAIT);
    assert_eq!((bench.stats().udp_answered, bench.stats().udp_dropped), (1, 1));
    bench.script.0.borrow_mut().missing.clear();
    bench.serve(&[], MAX_WAIT + Neighbours::MEMORY);
    bench.serve(&[], MAX_WAIT + Neighbours::MEMORY);
    assert_eq!((bench.stats().udp_answered, bench.stats().udp_dropped), (3, 1));
}

/// What is delayed on purpose holds up nothing that comes before it is due, and leaves before what comes then.
#[test]
fn a_delay_is_that_of_each_reply() {
    let delay = Duration::from_millis(10);
    let netem = Netem::new(&Impairments { delay, ..Impairments::default() }, 0, 1);
    let responder = Responder::new(|| Echo, None, netem, Arc::default());
    let mut bench = Bench::of(Script { without_offload: true, ..Script::default() }, responder);
    for (at, sent) in [(0, 0), (4, 0), (10, 1), (13, 1), (14, 2), (20, 3), (30, 6)] {
        bench.arrive(5, 1);
        bench.endpoint.hint(true, false);
        bench.turn(Duration::from_millis(at));
        bench.turn(Duration::from_millis(at));
        assert_eq!((bench.sent(), bench.left()), (sent, 0), "after {at} ms");
    }
}

#[test]
fn a_lasting_error_is_tried_seldom() {
    let mut bench = Bench::new(0, 0, None);
    bench.script.0.borrow_mut().broken = Some(Errno::EPERM);
    bench.turn(Duration::ZERO);
    assert_eq!(bench.script.0.borrow().receives, MAX_FAILURES as usize);
    assert!(!bench.endpoint.can_act());
    assert_eq!(bench.endpoint.deadline(), Some(Moment::default() + RETRY));
    bench.turn(RETRY - Duration::from_nanos(1));
    assert_eq!(bench.script.0.borrow().receives, MAX_FAILURES as usize);
    bench.turn(RETRY);
    assert_eq!(bench.script.0.borrow().receives, MAX_FAILURES as usize + 1);
    assert_eq!(bench.stats().udp_errors, u64::from(MAX_FAILURES) + 1);
    // It ends with the first receive that goes well.
    bench.script.0.borrow_mut().broken = None;
    bench.arrive(5, 10);
    bench.turn(2 * RETRY);
    assert_eq!((bench.sent(), bench.endpoint.deadline()), (10, None));
    bench.script.0.borrow_mut().broken = Some(Errno::EPERM);
    bench.endpoint.hint(true, false);
    bench.turn(2 * RETRY);
    assert_eq!(bench.stats().udp_errors, 2 * u64::from(MAX_FAILURES) + 1);
}

/// A call that was interrupted, or got the error of an earlier one, is made again, but not without end.
#[test]
fn a_send_is_repeated_for_what_is_not_about_it() {
    for error in [Errno::EINTR, Errno::ECONNREFUSED] {
        let mut bench = Bench::new(1, 10, None);
        bench.script.0.borrow_mut().refusals = vec![error; REPEATS].into();
        bench.turn(Duration::ZERO);
        assert_eq!((bench.sent(), bench.stats().udp_errors), (10, 0));
        let mut bench = Bench::new(1, 10, None);
        bench.script.0.borrow_mut().refusals = vec![error; REPEATS + 1].into();
        bench.turn(Duration::ZERO);
        assert_eq!((bench.sent(), bench.stats().udp_errors), (0, 1));
    }
}

/// An IPv6 header does not count (RFC 8200).
#[test]
fn a_reply_is_as_long_as_a_datagram_can_be() {
    for (is_ipv6, longest) in [(false, 65_507), (true, 65_527)] {
        for (length, sent) in [(longest, 1), (longest + 1, 0)] {
            let script = Scripted::default();
            let incoming = [(5, 1, None)].into();
            *script.0.borrow_mut() = Script { is_ipv6, incoming, ..Script::default() };
            let make = move || {
                service_fn(move |_, replies, _| {
                    replies.send(&vec![b'x'; length]);
                    Flow::Continue
                })
            };
            let mut endpoint = Endpoint::new(script.clone(), responder(make));
            endpoint.hint(true, true);
            endpoint.turn(&mut Guard::new(vec![], None), Moment::default());
            let too_long = endpoint.responder.stats.snapshot().udp_too_long;
            assert_eq!((script.0.borrow().sends, too_long), (sent, 1 - sent as u64), "{length}");
        }
    }
}

/// However much a service makes of little, a turn ends with as much as the buffer has.
#[test]
fn a_turn_makes_no_more_than_a_buffer_of_long_replies() {
    let script = Scripted::default();
    let incoming = vec![(5, 1, None); BATCH].into();
    *script.0.borrow_mut() = Script { incoming, ..Script::default() };
    let make = || {
        service_fn(|_, replies, _| {
            replies.send(&[b'x'; BUFFER / 5]);
            Flow::Continue
        })
    };
    let mut endpoint = Endpoint::new(script.clone(), responder(make));
    endpoint.hint(true, true);
    for turn in 1..=3 {
        endpoint.turn(&mut Guard::new(vec![], None), Moment::default());
        assert_eq!(script.0.borrow().incoming.len(), BATCH - 5 * turn);
    }
}

/// A datagram longer than an Ethernet frame carries leaves alone, but for one that came joined, or
/// where the way is not an Ethernet.
#[test]
fn long_ones_are_not_joined_unasked() {
    for (length, segment, calls) in [
        (2 * MAX_JOINED_SEGMENT, Some(MAX_JOINED_SEGMENT), 1),
        (2 * MAX_JOINED_SEGMENT + 2, Some(MAX_JOINED_SEGMENT + 1), 1),
    ] {
        let mut bench = Bench::new(1, length, segment);
        bench.turn(Duration::ZERO);
        assert_eq!(bench.script.0.borrow().sends, calls, "{segment:?}");
    }
    for (length, calls) in [(MAX_JOINED_SEGMENT, 1), (MAX_JOINED_SEGMENT + 1, 2)] {
        let mut bench = Bench::new(2, length, None);
        bench.turn(Duration::ZERO);
        assert_eq!(bench.script.0.borrow().sends, calls, "{length}");
    }
}
