//! One stream whose calls return what a script says, in the order that the script says.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;

use super::*;
use crate::config::Config;
use crate::impairments::Impairments;
use crate::protocol::{Echo, Framing, Protocol, Upper, Who};

/// A call that is to come next, and what it returns.
#[derive(Debug)]
enum Call {
    Reads(&'static [u8]),
    ReadFails(ErrorKind),
    /// A write, of which so many bytes are taken.
    Takes(usize),
    WriteFails(ErrorKind),
    Shutdown,
    ShutdownFails(ErrorKind),
    /// The question whether all is acknowledged, and that it is not.
    Unacknowledged(bool),
}

use Call::*;
use ErrorKind::{BrokenPipe, ConnectionReset, Interrupted, NotConnected, TimedOut, WouldBlock};

#[derive(Default)]
struct Script {
    calls: VecDeque<Call>,
    written: Vec<u8>,
}

#[derive(Clone, Default)]
struct Scripted(Rc<RefCell<Script>>);

impl Read for Scripted {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        match self.0.borrow_mut().calls.pop_front() {
            Some(Reads(bytes)) => {
                room[..bytes.len()].copy_from_slice(bytes);
                Ok(bytes.len())
            }
            Some(ReadFails(kind)) => Err(kind.into()),
            other => panic!("a read instead of {other:?}"),
        }
    }
}

impl Write for Scripted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Script { calls, written } = &mut *self.0.borrow_mut();
        match calls.pop_front() {
            Some(Takes(length)) => {
                written.extend_from_slice(&bytes[..length]);
                Ok(length)
            }
            Some(WriteFails(kind)) => Err(kind.into()),
            other => panic!("a write of {bytes:?} instead of {other:?}"),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        panic!("there is nothing to flush in a socket")
    }
}

impl Stream for Scripted {
    fn shutdown_write(&mut self) -> io::Result<()> {
        match self.0.borrow_mut().calls.pop_front() {
            Some(Shutdown) => Ok(()),
            Some(ShutdownFails(kind)) => Err(kind.into()),
            other => panic!("a FIN instead of {other:?}"),
        }
    }

    fn is_unacknowledged(&self) -> bool {
        match self.0.borrow_mut().calls.pop_front() {
            Some(Unacknowledged(answer)) => answer,
            other => panic!("a question instead of {other:?}"),
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(([192, 0, 2, 2], 7).into())
    }
}

/// A connection, its script and its time.
struct Bench<V> {
    connection: Connection<Scripted, V>,
    script: Scripted,
    shared: Shared,
    now: Moment,
}

const LINES: Protocol = Protocol { framing: Framing::Lines, max_frame: 8, once: false };
const READABLE: Readiness = Readiness { readable: true, writable: false, closed: false };
const WRITABLE: Readiness = Readiness { readable: false, writable: true, closed: false };
const CLOSED: Readiness = Readiness { readable: true, writable: true, closed: true };
const SECOND: Duration = Duration::from_secs(1);
const LIMIT: usize = 1 << 20;
const IDLE_TIME: Duration = Duration::from_secs(30);

fn raw() -> Bench<Echo> {
    bench(Protocol::default(), Echo)
}

fn bench<V: Service>(protocol: Protocol, service: V) -> Bench<V> {
    let script = Scripted::default();
    let (now, peer) = (Moment::default() + SECOND, SocketAddr::from(([192, 0, 2, 1], 5)));
    let session = Session::new(protocol, service);
    let connection = Connection::new(script.clone(), 1, peer.into(), session, now);
    let rules = Rules::of(&Config::default());
    let rules = Rules { idle_timeout: Some(IDLE_TIME), max_buffered: LIMIT, ..rules };
    let shared = Shared::new(rules, Arc::default(), None);
    Bench { connection, script, shared, now }
}

impl<V: Service> Bench<V> {
    /// An event, and turns until nothing can be done; these calls have to be made, and no others.
    fn event(&mut self, readiness: Readiness, calls: impl IntoIterator<Item = Call>) -> Turn {
        self.connection.hint(readiness);
        self.turns(calls)
    }

    fn turns(&mut self, calls: impl IntoIterator<Item = Call>) -> Turn {
        self.script.0.borrow_mut().calls.extend(calls);
        let (mut buffer, mut scratch) = ([0; 16], Scratch::default());
        let (mut outcome, mut count) = (Ok(()), 0);
        while outcome.is_ok() && self.connection.can_act(self.now) {
            count += 1;
            assert!(count < 1_000_000, "it goes on and on");
            let Bench { connection, shared, now, .. } = self;
            outcome = connection.turn(&mut buffer, &mut scratch, shared, *now);
        }
        self.done(outcome)
    }

    fn done(&self, outcome: Turn) -> Turn {
        let left = &self.script.0.borrow().calls;
        assert!(left.is_empty(), "not called: {left:?}");
        outcome
    }

    fn close(&mut self, end: CloseReason, calls: impl IntoIterator<Item = Call>) -> Turn {
        self.script.0.borrow_mut().calls.extend(calls);
        let outcome = self.connection.close(end, self.now);
        self.done(outcome)
    }

    /// Its deadline has passed, and it is looked at once more.
    fn expire(&mut self, calls: impl IntoIterator<Item = Call>) -> Turn {
        self.connection.expire(Some(IDLE_TIME), self.now)?;
        self.turns(calls)
    }

    fn deadline(&self, idle_timeout: Option<Duration>) -> Option<Moment> {
        self.connection.deadline(idle_timeout, self.now)
    }

    fn written(&self) -> Vec<u8> {
        self.script.0.borrow().written.clone()
    }
}

#[test]
fn what_was_read_gets_a_reply() {
    let mut bench = raw();
    // A short read: there is no more.
    assert_eq!(bench.event(READABLE, [Reads(b"abc"), Takes(3)]), Ok(()));
    // A full one says nothing about what is behind it.
    let full = [Reads(b"0123456789abcdef"), Takes(16), ReadFails(WouldBlock)];
    assert_eq!(bench.event(READABLE, full), Ok(()));
    assert_eq!(bench.event(READABLE, [ReadFails(WouldBlock)]), Ok(()), "an event without cause");
    assert_eq!(bench.event(WRITABLE, []), Ok(()));
    assert_eq!(bench.written(), b"abc0123456789abcdef");
    assert_eq!(bench.connection.held(), 0);
}

#[test]
fn a_short_read_before_a_fin_is_not_the_last() {
    let mut bench = raw();
    let calls = [Reads(b"abc"), Takes(3), Reads(b"")];
    assert_eq!(bench.event(CLOSED, calls), Err(CloseReason::PeerFin));
}

#[test]
fn a_half_closed_peer_gets_everything_before_we_close() {
    let mut bench = bench(LINES, Echo);
    let calls = [Reads(b"one\nla"), Takes(2), WriteFails(WouldBlock)];
    assert_eq!(bench.event(CLOSED, calls), Ok(()));
    let calls = [Takes(2), Reads(b"st"), Reads(b""), Takes(1), WriteFails(WouldBlock)];
    assert_eq!(bench.event(WRITABLE, calls), Ok(()));
    assert_eq!(bench.event(WRITABLE, [Takes(1), WriteFails(WouldBlock)]), Ok(()));
    assert_eq!(bench.event(WRITABLE, [Takes(2)]), Err(CloseReason::PeerFin));
    assert_eq!(bench.written(), b"one\nlast");
}

#[test]
fn a_character_kept_back_is_answered_at_the_fin() {
    let mut bench = bench(Protocol::default(), Upper::default());
    assert_eq!(bench.event(READABLE, [Reads(b"a\xe2\x82"), Takes(1)]), Ok(()));
    assert_eq!(bench.event(CLOSED, [Reads(b""), Takes(2)]), Err(CloseReason::PeerFin));
    assert_eq!(bench.written(), b"A\xe2\x82");
}

#[test]
fn nothing_is_read_while_output_is_pending() {
    let mut bench = raw();
    let calls = [Reads(b"0123456789abcdef"), Takes(6), WriteFails(WouldBlock)];
    assert_eq!(bench.event(READABLE, calls), Ok(()));
    assert_eq!(bench.connection.unsent(), 10);
    assert_eq!(bench.event(READABLE, []), Ok(()), "more input has to wait");
    assert_eq!(bench.event(WRITABLE, [Takes(4), WriteFails(WouldBlock)]), Ok(()));
    assert_eq!((bench.connection.unsent(), bench.connection.held()), (6, 10));
    // The last of it, and the read that waited for it.
    assert_eq!(bench.event(WRITABLE, [Takes(6), Reads(b"x"), Takes(1)]), Ok(()));
    assert_eq!(bench.connection.held(), 0, "the buffer is given back");
    assert_eq!(bench.written(), b"0123456789abcdefx");
}

#[test]
fn an_interrupted_call_is_made_again() {
    let mut bench = raw();
    let calls = [ReadFails(Interrupted), Reads(b"ab"), WriteFails(Interrupted), Takes(1), Takes(1)];
    assert_eq!(bench.event(READABLE, calls), Ok(()));
    assert_eq!(bench.written(), b"ab");
}

#[test]
fn errors_end_the_connection_with_their_name() {
    for (kind, end) in [
        (ConnectionReset, CloseReason::Reset),
        (BrokenPipe, CloseReason::Reset),
        (TimedOut, CloseReason::Failed(TimedOut)),
        (ErrorKind::HostUnreachable, CloseReason::Failed(ErrorKind::HostUnreachable)),
    ] {
        assert_eq!(raw().event(CLOSED, [ReadFails(kind)]), Err(end), "read");
        assert_eq!(raw().event(READABLE, [Reads(b"a"), WriteFails(kind)]), Err(end), "write");
        let mut pending = raw();
        assert_eq!(pending.event(READABLE, [Reads(b"a"), WriteFails(WouldBlock)]), Ok(()));
        assert_eq!(pending.event(CLOSED, [WriteFails(kind)]), Err(end), "write again");
        let mut lingering = raw();
        assert_eq!(lingering.close(CloseReason::Drain, [Shutdown]), Ok(()));
        assert_eq!(lingering.event(CLOSED, [ReadFails(kind)]), Err(end), "linger");
    }
    let none_taken = [Reads(b"a"), Takes(0)];
    assert_eq!(raw().event(READABLE, none_taken), Err(CloseReason::Failed(ErrorKind::WriteZero)));
}

#[test]
fn a_fin_after_the_peers_rst_is_a_reset() {
    assert_eq!(
        raw().close(CloseReason::Drain, [ShutdownFails(NotConnected)]),
        Err(CloseReason::Reset)
    );
}

#[test]
fn a_frame_error_is_answered_with_the_frames_before_it_and_a_fin() {
    let mut bench = bench(LINES, Echo);
    let calls = [Reads(b"one\ntwo\n12345678"), Takes(5), WriteFails(WouldBlock)];
    assert_eq!(bench.event(READABLE, calls), Ok(()));
    // No FIN before the answer is out, nothing answered after it.
    let calls = [Takes(3), Shutdown, Reads(b"three\n")];
    assert_eq!(bench.event(WRITABLE, calls), Ok(()));
    let end = CloseReason::FrameTooLong;
    assert_eq!(bench.event(CLOSED, [Reads(b"four\n"), Reads(b"")]), Err(end));
    assert_eq!(bench.written(), b"one\ntwo\n");
}

#[test]
fn a_frame_cut_short_by_the_fin_needs_no_lingering() {
    let protocol = Protocol { framing: Framing::LengthPrefixed, ..LINES };
    let mut bench = bench(protocol, Echo);
    let calls = [Reads(b"\0\0\0\x01a\0\0\0\x02b"), Takes(5), Reads(b"")];
    assert_eq!(bench.event(CLOSED, calls), Err(CloseReason::FrameTruncated));
}

#[test]
fn once_is_answered_then_closed() {
    let mut bench = bench(Protocol { once: true, ..LINES }, Echo);
    let calls = [Reads(b"one\ntwo\n"), Takes(4), Shutdown];
    assert_eq!(bench.event(READABLE, calls), Ok(()));
    assert_eq!(bench.event(CLOSED, [Reads(b"")]), Err(CloseReason::Service));
    assert_eq!(bench.written(), b"one\n");
}

#[test]
fn lingering_is_bounded_in_bytes() {
    let mut bench = raw();
    assert_eq!(bench.close(CloseReason::Drain, [Shutdown]), Ok(()));
    let most = (1 << 20) / 16;
    let calls = (0..most).map(|_| Reads(b"0123456789abcdef")).chain([ReadFails(WouldBlock)]);
    assert_eq!(bench.event(READABLE, calls), Ok(()));
    // Not before the peer's kernel has all that was sent.
    let calls = [Reads(b"0"), Unacknowledged(true)];
    assert_eq!(bench.event(READABLE, calls), Ok(()));
    let calls = [Reads(b"0"), Unacknowledged(false)];
    assert_eq!(bench.event(READABLE, calls), Err(CloseReason::Drain));
}

#[test]
fn lingering_is_bounded_in_time() {
    let mut bench = raw();
    assert_eq!(bench.close(CloseReason::Idle, [Shutdown]), Ok(()));
    let deadline = bench.now + LINGER_TIME;
    assert_eq!(bench.deadline(None), Some(deadline));
    bench.now = bench.now + SECOND;
    assert_eq!(bench.event(READABLE, [Reads(b"more")]), Ok(()));
    assert_eq!(bench.deadline(None), Some(deadline), "what still comes is no excuse");
    bench.connection.hint(READABLE);
    bench.now = deadline;
    assert_eq!(bench.expire([]), Err(CloseReason::Idle));
}

#[test]
fn an_idle_connection_is_told_with_a_fin() {
    let mut bench = raw();
    assert_eq!(bench.deadline(None), None);
    assert_eq!(bench.deadline(Some(IDLE_TIME)), Some(bench.now + IDLE_TIME));
    bench.now = bench.now + SECOND;
    assert_eq!(bench.event(READABLE, [Reads(b"a"), Takes(1)]), Ok(()));
    assert_eq!(bench.deadline(Some(IDLE_TIME)), Some(bench.now + IDLE_TIME));
    bench.now = bench.now + IDLE_TIME;
    assert_eq!(bench.expire([ReadFails(WouldBlock), Shutdown]), Ok(()));
    assert_eq!(bench.event(CLOSED, [Reads(b"")]), Err(CloseReason::Idle));
}

#[test]
fn an_idle_connection_that_takes_no_output_ends_without_a_fin() {
    let mut open = raw();
    assert_eq!(open.event(READABLE, [Reads(b"ab"), WriteFails(WouldBlock)]), Ok(()));
    open.now = open.now + SECOND;
    assert_eq!(open.event(WRITABLE, [Takes(1), WriteFails(WouldBlock)]), Ok(()));
    let deadline = open.deadline(Some(IDLE_TIME));
    assert_eq!(deadline, Some(open.now + IDLE_TIME), "the peer reads, if slowly");
    open.now = open.now + IDLE_TIME;
    assert_eq!(open.expire([WriteFails(WouldBlock)]), Err(CloseReason::Idle));

    let mut half_closed = bench(LINES, Echo);
    let calls = [Reads(b"a"), Reads(b""), WriteFails(WouldBlock)];
    assert_eq!(half_closed.event(CLOSED, calls), Ok(()));
    assert_eq!(half_closed.deadline(None), None);
    half_closed.now = half_closed.now + IDLE_TIME;
    assert_eq!(half_closed.expire([WriteFails(WouldBlock)]), Err(CloseReason::Idle));
}

#[test]
fn what_came_before_the_idle_timeout_was_noticed_is_answered() {
    let mut bench = raw();
    bench.now = bench.now + IDLE_TIME;
    // No event has told of it yet.
    assert_eq!(bench.expire([Reads(b"a"), Takes(1)]), Ok(()));
    assert_eq!(bench.deadline(Some(IDLE_TIME)), Some(bench.now + IDLE_TIME));
    // A look that found something is the last one no more.
    assert_eq!(bench.event(READABLE, [ReadFails(WouldBlock)]), Ok(()));
    bench.now = bench.now + IDLE_TIME;
    assert_eq!(bench.expire([ReadFails(Interrupted), Reads(b"b"), Takes(1)]), Ok(()));
    bench.now = bench.now + IDLE_TIME;
    assert_eq!(bench.expire([Reads(b"")]), Err(CloseReason::PeerFin));
}

#[test]
fn output_that_is_taken_before_the_timeout_was_noticed_is_sent() {
    for (protocol, end) in
        [(LINES, CloseReason::Idle), (Protocol { once: true, ..LINES }, CloseReason::Service)]
    {
        let mut bench = bench(protocol, Echo);
        let calls = [Reads(b"one\n"), WriteFails(WouldBlock)];
        assert_eq!(bench.event(READABLE, calls), Ok(()));
        bench.now = bench.now + IDLE_TIME;
        assert_eq!(bench.expire([Takes(1), WriteFails(WouldBlock)]), Ok(()));
        bench.now = bench.now + IDLE_TIME;
        assert_eq!(bench.expire([WriteFails(WouldBlock)]), Err(end));
    }
    // A drain has waited for long enough; what can be sent at once is.
    let mut bench = bench(LINES, Echo);
    assert_eq!(bench.event(READABLE, [Reads(b"one\n"), WriteFails(WouldBlock)]), Ok(()));
    assert_eq!(bench.close(CloseReason::Drain, []), Ok(()));
    bench.now = bench.now + LINGER_TIME;
    assert_eq!(bench.expire([Takes(4), Shutdown]), Err(CloseReason::Drain));
    assert_eq!(bench.written(), b"one\n");
}

#[test]
fn a_slow_reader_of_the_last_answer_has_time_while_it_reads() {
    let mut bench = bench(Protocol { once: true, ..LINES }, Echo);
    let calls = [Reads(b"one\n"), WriteFails(WouldBlock)];
    assert_eq!(bench.event(READABLE, calls), Ok(()));
    for _ in 0..3 {
        bench.now = bench.now + SECOND;
        assert_eq!(bench.event(WRITABLE, [Takes(1), WriteFails(WouldBlock)]), Ok(()));
        assert_eq!(bench.deadline(None), Some(bench.now + LINGER_TIME));
    }
    bench.now = bench.now + LINGER_TIME;
    assert_eq!(
        bench.expire([WriteFails(WouldBlock)]),
        Err(CloseReason::Service),
        "but not for ever"
    );
}

#[test]
fn a_drain_does_not_wait_for_a_half_closed_peer_that_does_not_read() {
    let stuck = || {
        let mut bench = bench(LINES, Echo);
        let calls = [Reads(b"last"), Reads(b""), WriteFails(WouldBlock)];
        assert_eq!(bench.event(CLOSED, calls), Ok(()));
        bench.now = bench.now + SECOND;
        assert_eq!(bench.close(CloseReason::Drain, []), Ok(()));
        assert_eq!(bench.deadline(None), Some(bench.now + LINGER_TIME));
        bench
    };
    let mut never = stuck();
    never.now = never.now + LINGER_TIME;
    assert_eq!(never.expire([WriteFails(WouldBlock)]), Err(CloseReason::Drain));
    // One that reads after all is let go with all it is owed.
    let mut bench = stuck();
    assert_eq!(bench.event(WRITABLE, [Takes(4), Shutdown, Reads(b"")]), Err(CloseReason::Drain));
    assert_eq!(bench.written(), b"last");
}

#[test]
fn a_drain_does_not_wait_for_a_peer_that_reads_bit_by_bit() {
    for protocol in [LINES, Protocol { once: true, ..LINES }] {
        let mut bench = bench(protocol, Echo);
        let calls = [Reads(b"one\n"), WriteFails(WouldBlock)];
        assert_eq!(bench.event(READABLE, calls), Ok(()));
        assert_eq!(bench.close(CloseReason::Drain, []), Ok(()));
        let deadline = bench.deadline(None);
        bench.now = bench.now + SECOND;
        assert_eq!(bench.event(WRITABLE, [Takes(1), WriteFails(WouldBlock)]), Ok(()));
        assert_eq!(bench.deadline(None), deadline);
    }
}

#[test]
fn traffic_is_counted() {
    let mut bench = raw();
    let calls = [Reads(b"0123456789abcdef"), Takes(6), Takes(10), Reads(b"a"), Takes(1)];
    assert_eq!(bench.event(READABLE, calls), Ok(()));
    let traffic =
        Traffic { bytes_in: 17, bytes_out: 17, reads: 2, writes: 3, short_writes: 1, paused: 0 };
    assert_eq!(bench.connection.traffic, traffic);
    let line = bench.connection.summary(CloseReason::Reset, bench.now).to_string();
    assert!(
        line.starts_with("192.0.2.1:5 closed by the peer's RST: 17 bytes in 2 reads"),
        "{line}"
    );
}

#[test]
fn the_summary_tells_what_moved_and_what_did_not() {
    let mut bench = raw();
    let calls = [Reads(b"12345"), Takes(2), WriteFails(WouldBlock)];
    assert_eq!(bench.event(READABLE, calls), Ok(()));
    bench.now = bench.now + 2 * SECOND;
    let summary = |bench: &Bench<Echo>| {
        let line = bench.connection.summary(CloseReason::Idle, bench.now).to_string();
        line.rsplit_once(": ").unwrap().1.to_owned()
    };
    let line = "5 bytes in 1 read, 2 bytes out in 1 write (1 short), 3 bytes unsent, \
                paused 2 s by back-pressure, open 2 s";
    assert_eq!(summary(&bench), line);
    assert_eq!(bench.event(WRITABLE, [Takes(1), WriteFails(WouldBlock)]), Ok(()));
    assert!(summary(&bench).contains("(2 short), 2 bytes unsent"), "{}", summary(&bench));
    bench.now = bench.now + SECOND;
    assert_eq!(bench.event(WRITABLE, [Takes(2)]), Ok(()));
    assert_eq!(bench.connection.traffic.paused, 30_000);
    bench.now = bench.now + SECOND;
    let line = "5 bytes in 1 read, 5 bytes out in 3 writes (2 short), \
                paused 3 s by back-pressure, open 4 s";
    assert_eq!(summary(&bench), line);
}

#[test]
fn what_is_lost_is_unsent() {
    let unsent = |bench: &Bench<Echo>, reason| bench.connection.summary(reason, bench.now).unsent;
    let reset = Err(CloseReason::Reset);
    for taken in [0, 2] {
        let mut bench = raw();
        let takes = (taken > 0).then_some(Takes(taken));
        let calls = [Reads(b"12345")].into_iter().chain(takes).chain([WriteFails(BrokenPipe)]);
        assert_eq!(bench.event(READABLE, calls), reset);
        assert_eq!(unsent(&bench, CloseReason::Reset), 5 - taken);
    }
    let mut bench = raw();
    assert_eq!(bench.event(READABLE, [Reads(b"12345"), WriteFails(WouldBlock)]), Ok(()));
    bench.now = bench.now + SECOND;
    assert_eq!(bench.event(WRITABLE, [Takes(2), WriteFails(ConnectionReset)]), reset);
    let summary = bench.connection.summary(CloseReason::Reset, bench.now);
    assert_eq!((summary.unsent, summary.traffic.paused), (3, 10_000));
    // No memory is left for it.
    let mut bench = raw();
    bench.shared.budget.adjust(0, LIMIT - 2);
    let calls = [Reads(b"12345"), Takes(2), WriteFails(WouldBlock)];
    assert_eq!(bench.event(READABLE, calls), Err(CloseReason::OverBudget));
    assert_eq!(unsent(&bench, CloseReason::OverBudget), 3);
    assert_eq!(bench.connection.held(), 0);
}

#[test]
fn what_is_dropped_is_read_whatever_the_share() {
    let mut bench = raw();
    assert_eq!(bench.connection.read_limit(7), 7);
    assert_eq!(bench.close(CloseReason::Drain, [Shutdown]), Ok(()));
    assert_eq!(bench.connection.read_limit(7), 16 << 10);
}

/// A connection that delays each reply by this.
fn delayed<V: Service>(protocol: Protocol, service: V, delay: Duration) -> Bench<V> {
    let mut bench = bench(protocol, service);
    bench.shared.netem = Netem::new(&Impairments { delay, ..Impairments::default() }, 0, 1);
    bench
}

#[test]
fn a_delayed_reply_leaves_when_its_time_has_come() {
    let mut bench = delayed(Protocol::default(), Echo, SECOND);
    assert_eq!(bench.event(READABLE, [Reads(b"ab")]), Ok(()));
    assert_eq!(bench.deadline(None), Some(bench.now + SECOND));
    assert_eq!((bench.connection.held(), bench.connection.unsent()), (2, 2));
    // Nothing else is read meanwhile, whatever comes.
    assert_eq!(bench.event(CLOSED, []), Ok(()));
    // Nor does a turn that comes too early send it.
    let Bench { connection, shared, now, .. } = &mut bench;
    let early = connection.turn(&mut [0; 16], &mut Scratch::default(), shared, *now);
    assert_eq!(early, Ok(()));
    bench.now = bench.now + SECOND;
    let calls = [Takes(1), WriteFails(WouldBlock)];
    assert_eq!(bench.turns(calls), Ok(()));
    assert_eq!(bench.deadline(None), None);
    assert_eq!(bench.event(WRITABLE, [Takes(1), Reads(b"")]), Err(CloseReason::PeerFin));
    assert_eq!((bench.connection.held(), bench.shared.budget.held()), (0, 0));
}

#[test]
fn no_time_runs_out_while_a_reply_is_delayed() {
    let mut bench = delayed(Protocol { once: true, ..LINES }, Echo, 2 * IDLE_TIME);
    assert_eq!(bench.event(READABLE, [Reads(b"one\n")]), Ok(()));
    assert_eq!(bench.deadline(Some(IDLE_TIME)), Some(bench.now + 2 * IDLE_TIME));
    bench.now = bench.now + IDLE_TIME + LINGER_TIME;
    assert_eq!(bench.expire([]), Ok(()));
    bench.now = bench.now + IDLE_TIME;
    assert_eq!(bench.turns([Takes(4), Shutdown]), Ok(()));
    // A drain does not wait for it, nor lose it.
    for protocol in [LINES, Protocol { once: true, ..LINES }] {
        let mut bench = delayed(protocol, Echo, 2 * IDLE_TIME);
        assert_eq!(bench.event(READABLE, [Reads(b"one\n")]), Ok(()));
        assert_eq!(bench.connection.hasten(bench.now), Ok(()));
        assert_eq!(bench.close(CloseReason::Drain, []), Ok(()));
        assert_eq!(bench.deadline(None), Some(bench.now + LINGER_TIME));
        // Had the peer's FIN been read already, it would be found again.
        let calls = [Takes(4), Shutdown].into_iter();
        let looks = protocol.once.then_some(ReadFails(WouldBlock));
        assert_eq!(bench.turns(calls.chain(looks)), Ok(()));
    }
}

/// As large as a stream in a release build: a descriptor.
type Fd = std::os::fd::RawFd;

#[test]
fn a_connection_is_small_on_purpose() {
    assert_eq!(size_of::<Option<Connection<Fd, Echo>>>(), 120);
    assert_eq!(size_of::<Option<Connection<Fd, Upper>>>(), 128);
    assert_eq!(size_of::<Option<Connection<Fd, Who>>>(), 128);
}
