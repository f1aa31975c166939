//! Streams whose peers seem to be further away: what they send is held back for a time before it is
//! read. The connection knows nothing of it: until the time has come, a read finds nothing.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::rc::Rc;

use super::clock::Moment;
use super::connection::{ConnectionId, Stream};
use super::connections::Listener;
use super::netem::Netem;

/// Of one stream so much is held back, or a read more. What comes beyond that stays in the kernel.
const MAX_HELD: usize = 256 << 10;
/// So many bytes are read in one go.
const READ: usize = 16 << 10;
/// What each of these reads counts beyond its bytes: its place in the queue, and an alarm.
const OVERHEAD: usize = 128;

/// What is held with the bytes of a read.
fn cost(bytes: &[u8]) -> usize {
    OVERHEAD + bytes.len()
}

/// What the delayed streams of a loop share.
pub(super) struct Delays {
    netem: Netem,
    now: Box<dyn Fn() -> Moment>,
    /// When which stream may be read again.
    alarms: BinaryHeap<Reverse<(Moment, u32, u32)>>,
    /// The memory of what all of them hold back, and the most that it may be.
    held: usize,
    max_held: usize,
}

impl Delays {
    /// `now` tells the time. All streams together hold back no more than `max_held` bytes.
    pub(super) fn new(netem: Netem, now: impl Fn() -> Moment + 'static, max_held: usize) -> Self {
        let (now, alarms) = (Box::new(now), BinaryHeap::new());
        Delays { netem, now, alarms, held: 0, max_held }
    }

    /// When a stream may be read next.
    pub(super) fn deadline(&self) -> Option<Moment> {
        self.alarms.peek().map(|&Reverse((at, ..))| at)
    }

    /// A stream that may be read again, which may be gone by now.
    pub(super) fn pop(&mut self, now: Moment) -> Option<ConnectionId> {
        let &Reverse((at, slot, generation)) = self.alarms.peek()?;
        (at <= now).then(|| {
            self.alarms.pop();
            ConnectionId { slot, generation }
        })
    }

    fn wake(&mut self, ConnectionId { slot, generation }: ConnectionId, at: Moment) {
        self.alarms.push(Reverse((at, slot, generation)));
    }
}

/// A listener whose streams are delayed.
pub(super) struct DelayedListener<L> {
    inner: L,
    delays: Rc<RefCell<Delays>>,
}

impl<L> DelayedListener<L> {
    pub(super) fn new(inner: L, delays: &Rc<RefCell<Delays>>) -> Self {
        DelayedListener { inner, delays: Rc::clone(delays) }
    }
}

impl<L: Listener> Listener for DelayedListener<L> {
    type Stream = Delayed<L::Stream>;

    fn accept(&mut self) -> io::Result<(Self::Stream, SocketAddr)> {
        let (stream, peer) = self.inner.accept()?;
        Ok((Delayed::new(stream, Rc::clone(&self.delays)), peer))
    }

    fn register(&mut self, stream: &mut Self::Stream, id: ConnectionId) -> io::Result<()> {
        stream.id = Some(id);
        self.inner.register(&mut stream.inner, id)
    }
}

/// A stream that is read later than it might be.
pub(super) struct Delayed<S> {
    inner: S,
    delays: Rc<RefCell<Delays>>,
    /// None until it is registered.
    id: Option<ConnectionId>,
    pieces: VecDeque<Piece>,
    held: usize,
    /// Nothing comes after what is held back.
    ended: bool,
}

struct Piece {
    at: Moment,
    content: Content,
}

enum Content {
    /// Those from a place on.
    Bytes(Vec<u8>, usize),
    End,
    Failed(ErrorKind),
}

impl<S: Stream> Delayed<S> {
    fn new(inner: S, delays: Rc<RefCell<Delays>>) -> Self {
        Delayed { inner, delays, id: None, pieces: VecDeque::new(), held: 0, ended: false }
    }

    /// Reads what is there, as far as it may be held back.
    fn fill(&mut self, now: Moment) {
        while !self.ended && self.held < MAX_HELD {
            if !self.may_hold_more(now) {
                return;
            }
            let mut bytes = [0; READ];
            let content = match self.inner.read(&mut bytes) {
                Ok(0) => Content::End,
                Ok(length) => Content::Bytes(bytes[..length].to_vec(), 0),
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return,
                    ErrorKind::Interrupted => continue,
                    kind => Content::Failed(kind),
                },
            };
            self.hold(content, now);
        }
    }

    /// Where others hold back all that may be, this one tries again later.
    fn may_hold_more(&self, now: Moment) -> bool {
        let mut delays = self.delays.borrow_mut();
        if delays.held < delays.max_held {
            return true;
        }
        if let (true, Some(id)) = (self.pieces.is_empty(), self.id) {
            let at = now + delays.netem.delay();
            delays.wake(id, at);
        }
        false
    }

    /// Nothing overtakes what came before it.
    fn hold(&mut self, content: Content, now: Moment) {
        let mut delays = self.delays.borrow_mut();
        let last = self.pieces.back().map_or(now, |piece| piece.at);
        let at = last.max(now + delays.netem.delay());
        match &content {
            Content::Bytes(bytes, _) => {
                self.held += cost(bytes);
                delays.held += cost(bytes);
            }
            Content::End | Content::Failed(_) => self.ended = true,
        }
        if let Some(id) = self.id {
            delays.wake(id, at);
        }
        self.pieces.push_back(Piece { at, content });
    }

    /// Gives what may be read by now.
    fn take(&mut self, room: &mut [u8], now: Moment) -> io::Result<usize> {
        let mut used = 0;
        while used < room.len()
            && let Some(piece) = self.pieces.front_mut()
            && piece.at <= now
        {
            match &mut piece.content {
                Content::Bytes(bytes, start) => {
                    let length = (bytes.len() - *start).min(room.len() - used);
                    room[used..used + length].copy_from_slice(&bytes[*start..*start + length]);
                    (*start, used) = (*start + length, used + length);
                    if *start == bytes.len() {
                        self.held -= cost(bytes);
                        self.delays.borrow_mut().held -= cost(bytes);
                        self.pieces.pop_front();
                    }
                }
                _ if used > 0 => break,
                // Again and again, whenever it is read.
                Content::End => return Ok(0),
                Content::Failed(kind) => return Err((*kind).into()),
            }
        }
        match used {
            0 => Err(ErrorKind::WouldBlock.into()),
            _ => Ok(used),
        }
    }
}

impl<S: Stream> Read for Delayed<S> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let now = (self.delays.borrow().now)();
        self.fill(now);
        let outcome = self.take(room, now);
        // What was full has room again, and no event tells of it.
        self.fill(now);
        outcome
    }
}

impl<S: Stream> Write for Delayed<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<S: Stream> Stream for Delayed<S> {
    fn shutdown_write(&mut self) -> io::Result<()> {
        self.inner.shutdown_write()
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

impl<S> Drop for Delayed<S> {
    fn drop(&mut self) {
        self.delays.borrow_mut().held -= self.held;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::impairments::Impairments;

    /// What a peer has sent and nobody has read, and what it was sent.
    #[derive(Default)]
    struct Wire {
        bytes: VecDeque<u8>,
        end: Option<Option<ErrorKind>>,
        written: Vec<u8>,
        flushed: bool,
        shut_down: bool,
    }

    #[derive(Clone, Default)]
    struct Script(Rc<RefCell<Wire>>);

    impl Read for Script {
        fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
            let Wire { bytes, end, .. } = &mut *self.0.borrow_mut();
            match (bytes.is_empty(), *end) {
                (false, _) => bytes.read(room),
                (true, None) => Err(ErrorKind::WouldBlock.into()),
                (true, Some(None)) => Ok(0),
                (true, Some(Some(kind))) => Err(kind.into()),
            }
        }
    }

    impl Write for Script {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.borrow_mut().written.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            self.0.borrow_mut().flushed = true;
            Ok(())
        }
    }

    impl Stream for Script {
        fn shutdown_write(&mut self) -> io::Result<()> {
            self.0.borrow_mut().shut_down = true;
            Ok(())
        }

        fn local_addr(&self) -> io::Result<SocketAddr> {
            Err(ErrorKind::Unsupported.into())
        }
    }

    /// Who waits to be accepted, and who was registered.
    struct Backlog {
        waiting: VecDeque<Script>,
        registered: Vec<ConnectionId>,
    }

    impl Listener for Backlog {
        type Stream = Script;

        fn accept(&mut self) -> io::Result<(Script, SocketAddr)> {
            let stream = self.waiting.pop_front().ok_or(ErrorKind::WouldBlock)?;
            Ok((stream, ([127, 0, 0, 1], 40_000).into()))
        }

        fn register(&mut self, _: &mut Script, id: ConnectionId) -> io::Result<()> {
            self.registered.push(id);
            Ok(())
        }
    }

    /// A loop with delayed streams, and what has been read of each.
    struct Bench {
        now: Rc<Cell<Moment>>,
        delays: Rc<RefCell<Delays>>,
        wires: Vec<Script>,
        streams: Vec<Delayed<Script>>,
        read: Vec<Vec<(u8, Moment)>>,
        ends: Vec<Option<(Option<ErrorKind>, Moment)>>,
    }

    impl Bench {
        fn new(streams: usize, delay: u64, jitter: u64, max_held: usize) -> Self {
            let [delay, jitter] = [delay, jitter].map(Duration::from_millis);
            let impairments = Impairments { delay, jitter, ..Impairments::default() };
            let netem = Netem::new(&impairments, 0).unwrap();
            let now = Rc::new(Cell::new(Moment::default()));
            let clock = Rc::clone(&now);
            let delays = Rc::new(RefCell::new(Delays::new(netem, move || clock.get(), max_held)));
            let wires: Vec<_> = (0..streams).map(|_| Script::default()).collect();
            let backlog = Backlog { waiting: wires.clone().into(), registered: Vec::new() };
            let mut listener = DelayedListener::new(backlog, &delays);
            let accept = |slot| {
                let (mut stream, _) = listener.accept().unwrap();
                let id = ConnectionId { slot, generation: 1 };
                listener.register(&mut stream, id).unwrap();
                assert_eq!(listener.inner.registered.last(), Some(&id));
                stream
            };
            Bench {
                now,
                delays,
                wires,
                streams: (0..streams as u32).map(accept).collect(),
                read: vec![Vec::new(); streams],
                ends: vec![None; streams],
            }
        }

        /// As a connection with an event: it reads until nothing is there.
        fn read(&mut self, stream: usize) {
            let now = self.now.get();
            let mut room = [0; 1_000];
            loop {
                match self.streams[stream].read(&mut room) {
                    Ok(0) => break self.end(stream, None),
                    Ok(length) => {
                        self.read[stream].extend(room[..length].iter().map(|&byte| (byte, now)));
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => break self.end(stream, Some(error.kind())),
                }
            }
            let held: usize = self.streams.iter().map(|stream| stream.held).sum();
            assert_eq!(self.delays.borrow().held, held);
            assert!(self.streams.iter().all(|stream| stream.held < MAX_HELD + READ + OVERHEAD));
            assert!(held < self.delays.borrow().max_held.saturating_add(READ + OVERHEAD));
        }

        fn end(&mut self, stream: usize, kind: Option<ErrorKind>) {
            self.ends[stream].get_or_insert((kind, self.now.get()));
        }

        /// Time goes on, and the loop wakes whenever somebody is to be read.
        fn pass_to(&mut self, then: Moment) {
            loop {
                let deadline = self.delays.borrow().deadline();
                let Some(at) = deadline.filter(|&at| at <= then) else { break };
                self.now.set(self.now.get().max(at));
                let due = self.delays.borrow_mut().pop(self.now.get()).unwrap();
                self.read(due.slot as usize);
            }
            self.now.set(then);
        }
    }

    proptest! {
        #[test]
        fn all_comes_in_order_and_in_time(
            sends in prop::collection::vec((0u64..30, 0usize..3_000, 0usize..2), 1..12),
            delay in 1u64..100,
            jitter in 0u64..100,
            failed: bool,
        ) {
            let jitter = jitter.min(delay);
            let mut bench = Bench::new(2, delay, jitter, usize::MAX);
            let mut sent = [Vec::new(), Vec::new()];
            for (time, length, stream) in sends {
                let now = bench.now.get() + Duration::from_millis(time);
                bench.pass_to(now);
                let bytes = (0..length).map(|place| (place % 251) as u8);
                bench.wires[stream].0.borrow_mut().bytes.extend(bytes.clone());
                sent[stream].extend(bytes.map(|byte| (byte, now)));
                bench.read(stream);
            }
            let kind = failed.then_some(ErrorKind::ConnectionReset);
            let end_at = bench.now.get();
            for stream in 0..2 {
                bench.wires[stream].0.borrow_mut().end = Some(kind);
                bench.read(stream);
            }
            bench.pass_to(end_at + Duration::from_secs(60));
            let [least, most] = [delay - jitter, delay + jitter].map(Duration::from_millis);
            for stream in 0..2 {
                let bytes = |log: &[(u8, Moment)]| log.iter().map(|(byte, _)| *byte).collect::<Vec<_>>();
                prop_assert_eq!(bytes(&bench.read[stream]), bytes(&sent[stream]));
                for ((_, read), (_, sent)) in bench.read[stream].iter().zip(&sent[stream]) {
                    prop_assert!((*sent + least..=*sent + most).contains(read));
                }
                let (how, at) = bench.ends[stream].unwrap();
                prop_assert_eq!(how, kind);
                prop_assert!((end_at + least..=end_at + most).contains(&at));
            }
            prop_assert_eq!(bench.delays.borrow().held, 0);
            prop_assert_eq!(bench.delays.borrow().deadline(), None);
        }
    }

    #[test]
    fn what_cannot_be_held_back_waits_and_comes_later() {
        // The one who came first holds all that may be held.
        let mut bench = Bench::new(3, 10, 0, READ + OVERHEAD);
        for stream in 0..3 {
            bench.wires[stream].0.borrow_mut().bytes.extend(std::iter::repeat_n(7, 5 * READ));
            bench.read(stream);
        }
        let held: Vec<usize> = bench.streams.iter().map(|stream| stream.held).collect();
        assert_eq!(held, [READ + OVERHEAD, 0, 0]);
        let turns = Duration::from_millis(10) * 60;
        bench.pass_to(Moment::default() + turns);
        assert!(bench.read.iter().all(|read| read.len() == 5 * READ));
        // Whoever goes leaves its part to the others.
        bench.wires[0].0.borrow_mut().bytes.extend(std::iter::repeat_n(7, READ));
        bench.read(0);
        assert_eq!(bench.delays.borrow().held, READ + OVERHEAD);
        bench.streams.remove(0);
        assert_eq!(bench.delays.borrow().held, 0);
    }

    #[test]
    fn a_stream_that_nobody_reads_is_not_read_ahead_without_bound() {
        let mut bench = Bench::new(1, 10, 0, usize::MAX);
        bench.wires[0].0.borrow_mut().bytes.extend(std::iter::repeat_n(7, 2 * MAX_HELD));
        bench.read(0);
        let left = bench.wires[0].0.borrow().bytes.len();
        assert!((MAX_HELD - READ..=MAX_HELD + READ).contains(&left), "{left}");
        bench.pass_to(Moment::default() + Duration::from_millis(30));
        assert_eq!(bench.read[0].len(), 2 * MAX_HELD);
    }

    #[test]
    fn a_stream_holds_no_more_than_it_may_to_the_byte() {
        let mut bench = Bench::new(1, 10, 0, usize::MAX);
        let full = MAX_HELD / (READ + OVERHEAD);
        let rest = MAX_HELD - full * (READ + OVERHEAD) - OVERHEAD;
        for length in [full * READ + rest, 1] {
            bench.wires[0].0.borrow_mut().bytes.extend(std::iter::repeat_n(7, length));
            bench.read(0);
            assert_eq!(bench.streams[0].held, MAX_HELD);
        }
    }

    #[test]
    fn what_is_written_is_not_delayed() {
        let mut bench = Bench::new(1, 10, 0, usize::MAX);
        assert_eq!(bench.streams[0].write(b"at once").unwrap(), 7);
        bench.streams[0].flush().unwrap();
        bench.streams[0].shutdown_write().unwrap();
        let wire = bench.wires[0].0.borrow();
        assert_eq!(
            (&wire.written[..], wire.flushed, wire.shut_down),
            (&b"at once"[..], true, true)
        );
    }
}
