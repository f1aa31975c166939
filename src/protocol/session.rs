//! One peer's conversation.

use std::fmt;
use std::ops::{Deref, Range};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::buffer::Buffer;

use super::framing::{FrameError, Framing, Protocol};
use super::replies::{Origin, Replies, Scratch, Wire};
use super::service::{Context, Flow, Message, Service};

/// A frame of at least so many bytes is handed over where it alone is echoed; a shorter one is copied.
const HANDED_OVER: usize = 64 << 10;

/// One peer's conversation over a stream: framing and service, and what they remember between two
/// reads.
///
/// Nothing is on the heap until a frame is split over two reads, or a service has more to compute.
///
/// The order of calls: [`open`](Session::open); [`receive`](Session::receive) for each read;
/// [`finish`](Session::finish) at the end of the stream; [`close`](Session::close) when it is over.
/// After [`Verdict::Again`] comes [`resume`](Session::resume), until it says something else. After a
/// verdict that ends the conversation comes [`close`](Session::close) and nothing else.
#[derive(Debug, Clone)]
pub struct Session<V> {
    service: V,
    protocol: Protocol,
    held: Option<Box<Held>>,
}

/// What a session keeps from one call to the next.
#[derive(Debug, Clone, Default)]
struct Held {
    /// A frame that came in pieces: its beginning, or all of it while it is being answered.
    frame: Buffer,
    /// Input that has to wait, from `at` on. What is being answered is part of it where `frame` is
    /// empty.
    rest: Buffer,
    at: usize,
    /// There is more to compute.
    pending: Option<Pending>,
}

/// What has to be remembered of an answer that is not complete.
#[derive(Debug, Clone, Copy)]
struct Pending {
    /// The bytes that the last reply still lacks.
    owed: usize,
    /// The end of the stream is being answered ([`Message::End`]).
    at_end: bool,
    /// The peer has ended the stream.
    finished: bool,
}

/// What a session says to some input.
#[derive(Debug)]
#[non_exhaustive]
pub struct Answer<'a> {
    /// The bytes to send: a piece of the input wherever nothing had to be copied, and a buffer of
    /// their own where a large frame is handed over.
    pub bytes: Bytes<'a>,
    /// What comes after they are sent.
    pub verdict: Verdict,
}

/// The bytes of an answer.
#[derive(Debug, Clone)]
pub enum Bytes<'a> {
    /// They stand in the input, or in the scratch.
    Borrowed(&'a [u8]),
    /// They are a frame that the session had put together.
    Owned(Frame),
}

/// A frame that came in pieces.
#[derive(Debug, Clone)]
pub struct Frame(pub(crate) Buffer);

impl Deref for Bytes<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Borrowed(bytes) => bytes,
            Bytes::Owned(Frame(bytes)) => bytes,
        }
    }
}

/// Whether a conversation goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Verdict {
    /// More input is welcome.
    Continue,
    /// There is more to answer: [`Session::resume`] does it. Until then no input is taken.
    Again,
    /// The service, or [`Protocol::once`], asked to close.
    Close,
    /// All that the peer has sent up to its end of the stream is answered.
    Finished,
    /// The input broke the framing: what follows cannot be understood.
    Broken(FrameError),
    /// The service panicked.
    Panicked,
}

/// A service panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Panicked;

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the service panicked")
    }
}

impl std::error::Error for Panicked {}

/// What the caller of a session lends it for an answer.
struct Lent<'a, 'c> {
    input: &'a [u8],
    /// The bytes that the session may hold by the end of it.
    limit: usize,
    scratch: &'a mut Scratch,
    context: &'c Context<'c>,
    /// The frame that is the whole answer.
    handed_over: Option<Buffer>,
}

impl<'a, 'c> Lent<'a, 'c> {
    fn new(
        input: &'a [u8],
        limit: usize,
        scratch: &'a mut Scratch,
        context: &'c Context<'c>,
    ) -> Self {
        scratch.clear();
        Lent { input, limit, scratch, context, handed_over: None }
    }

    /// The answer, put together.
    fn bytes(self) -> Bytes<'a> {
        let Lent { input, scratch, handed_over, .. } = self;
        match handed_over {
            Some(frame) => Bytes::Owned(Frame(frame)),
            None if scratch.echoed.is_empty() => Bytes::Borrowed(&scratch.joined),
            None => Bytes::Borrowed(&input[scratch.echoed.clone()]),
        }
    }
}

impl<V: Service> Session<V> {
    /// A conversation that has not been opened.
    pub fn new(protocol: Protocol, service: V) -> Self {
        Session { service, protocol, held: None }
    }

    /// Tells the service that the conversation begins; what it greets the peer with. The verdict is
    /// [`Verdict::Continue`], [`Verdict::Close`] or [`Verdict::Panicked`].
    pub fn open<'a>(&mut self, scratch: &'a mut Scratch, context: &Context<'_>) -> Answer<'a> {
        let mut lent = Lent::new(&[], 0, scratch, context);
        let verdict = match self.call(&mut lent, Origin::Nowhere, V::open) {
            Ok(Flow::Continue | Flow::Again) => Verdict::Continue,
            Ok(Flow::Close) => Verdict::Close,
            Err(Panicked) => Verdict::Panicked,
        };
        Answer { bytes: lent.bytes(), verdict }
    }

    /// Answers the next bytes of a stream, however it was cut into reads. `room` is by how many bytes
    /// of memory the session may grow: for a frame that is not complete, and for input that waits. It
    /// grows as bytes come, never on an announcement alone. Where the room is too small, the verdict is
    /// [`FrameError::NoRoom`].
    pub fn receive<'a>(
        &mut self,
        input: &'a [u8],
        room: usize,
        scratch: &'a mut Scratch,
        context: &Context<'_>,
    ) -> Answer<'a> {
        debug_assert!(!self.is_pending(), "what came before is answered first");
        let limit = self.held().saturating_add(room);
        let mut lent = Lent::new(input, limit, scratch, context);
        let mut at = 0;
        let mut verdict = self.answer_input(&mut at, &mut lent);
        if verdict == Verdict::Again
            && let Err(error) = self.keep(&input[at..], &lent)
        {
            verdict = self.break_off(error, &mut lent);
        }
        Answer { bytes: lent.bytes(), verdict }
    }

    /// Answers more of what was received, after [`Verdict::Again`]; with `room` as in
    /// [`receive`](Session::receive).
    pub fn resume<'a>(
        &mut self,
        room: usize,
        scratch: &'a mut Scratch,
        context: &Context<'_>,
    ) -> Answer<'a> {
        let limit = self.held().saturating_add(room);
        let Some(Pending { owed, at_end, finished }) = self.take_pending() else {
            return Answer { bytes: Bytes::Borrowed(&[]), verdict: Verdict::Continue };
        };
        let held = self.held.get_or_insert_default();
        let (rest, mut at) = (std::mem::take(&mut held.rest), held.at);
        let is_frame = !held.frame.is_empty();
        let mut lent = Lent::new(&rest, limit, &mut *scratch, context);
        lent.scratch.owed = owed;
        let mut verdict = match (at_end, is_frame) {
            (true, _) => self.serve_end(&mut lent),
            (false, true) => self.serve_frame(at == rest.len(), &mut lent),
            (false, false) => Verdict::Continue,
        };
        if verdict == Verdict::Continue {
            verdict = self.answer_input(&mut at, &mut lent);
        }
        // The answer outlives the input that it may be a piece of.
        let handed_over = lent.handed_over.take();
        let echoed = std::mem::take(&mut lent.scratch.echoed);
        lent.scratch.append(&rest[echoed]);
        let verdict = self.put_back(rest, at, verdict, finished);
        let bytes = match handed_over {
            Some(frame) => Bytes::Owned(Frame(frame)),
            None => Bytes::Borrowed(&scratch.joined),
        };
        Answer { bytes, verdict }
    }

    /// Answers what was kept back for the end of the stream, since the peer sends no more.
    pub fn finish<'a>(&mut self, scratch: &'a mut Scratch, context: &Context<'_>) -> Answer<'a> {
        let mut lent = Lent::new(&[], usize::MAX, scratch, context);
        let verdict = match (self.protocol.framing, &self.held) {
            (Framing::Raw, _) => self.serve_end(&mut lent),
            (_, None) => Verdict::Continue,
            (Framing::Lines, Some(_)) => self.serve_frame(true, &mut lent),
            (Framing::LengthPrefixed, Some(_)) => self.break_off(FrameError::Truncated, &mut lent),
        };
        let verdict = self.put_back(Buffer::default(), 0, verdict, true);
        Answer { bytes: lent.bytes(), verdict }
    }

    /// Tells the service that the conversation is over, whatever the reason.
    pub fn close(&mut self, context: &Context<'_>) {
        // It is over in any case.
        let _ = guarded(|| self.service.close(context));
    }

    /// Whether there is more to answer before the next input: see [`Verdict::Again`].
    pub fn is_pending(&self) -> bool {
        self.held.as_ref().is_some_and(|held| held.pending.is_some())
    }

    /// The bytes of memory that it holds on the heap: unfinished frames, and input that waits.
    pub(crate) fn held(&self) -> usize {
        self.held
            .as_ref()
            .map_or(0, |held| size_of::<Held>() + held.frame.capacity() + held.rest.capacity())
    }

    /// How many bytes are to be read at once, at the most ([`Service::read_limit`]).
    pub fn read_limit(&self) -> usize {
        self.service.read_limit().max(1)
    }

    /// Answers the messages of the input, from `at` on; `at` is then behind what is answered.
    fn answer_input(&mut self, at: &mut usize, lent: &mut Lent<'_, '_>) -> Verdict {
        while *at < lent.input.len() {
            let rest = &lent.input[*at..];
            let partial = self.held.as_ref().map_or(&[][..], |held| &held.frame);
            let is_split = !partial.is_empty();
            let end = match self.protocol.frame_end(partial, rest) {
                Ok(end) => end,
                Err(error) => return self.break_off(error, lent),
            };
            let length = end.unwrap_or(rest.len());
            debug_assert!(length > 0, "no frame is empty, so that each round gets on");
            if is_split || end.is_none() {
                if let Err(error) = self.grow_frame(&rest[..length], lent) {
                    return self.break_off(error, lent);
                }
                *at += length;
            }
            let verdict = match (end, is_split) {
                (None, _) => Verdict::Continue,
                (Some(_), true) => self.serve_frame(*at == lent.input.len(), lent),
                (Some(length), false) => {
                    let verdict = self.serve_input(*at..*at + length, lent);
                    *at += if verdict == Verdict::Again { 0 } else { length };
                    verdict
                }
            };
            if verdict != Verdict::Continue {
                return verdict;
            }
        }
        Verdict::Continue
    }

    /// Answers a message that is a piece of the input.
    fn serve_input(&mut self, range: Range<usize>, lent: &mut Lent<'_, '_>) -> Verdict {
        let bytes = &lent.input[range.clone()];
        if self.protocol.framing != Framing::Raw {
            let message = Message::Whole(self.protocol.payload(bytes));
            return self.serve(message, Origin::Input(range), lent);
        }
        match self.serve(Message::Chunk(bytes), Origin::Input(range), lent) {
            // What has come is all that will be looked at.
            Verdict::Continue if self.protocol.once => self.serve_end(lent),
            verdict => verdict,
        }
    }

    /// Answers the frame that was put together; `is_last` where no more of the input is behind it.
    fn serve_frame(&mut self, is_last: bool, lent: &mut Lent<'_, '_>) -> Verdict {
        let held = self.held.get_or_insert_default();
        let frame = std::mem::take(&mut held.frame);
        let message = Message::Whole(self.protocol.payload(&frame));
        let verdict = self.serve(message, Origin::Frame(&frame), lent);
        let is_echo = std::mem::take(&mut lent.scratch.echoed_frame);
        let goes_on = verdict == Verdict::Again;
        if is_echo && is_last && !goes_on && frame.len() >= HANDED_OVER {
            self.held = None;
            lent.handed_over = Some(frame);
            return verdict;
        }
        if is_echo {
            lent.scratch.append(&frame);
        }
        if goes_on {
            self.held.get_or_insert_default().frame = frame;
        } else {
            self.held = None;
        }
        verdict
    }

    /// Answers the end of an unframed stream, which is the last that is answered.
    fn serve_end(&mut self, lent: &mut Lent<'_, '_>) -> Verdict {
        match self.serve(Message::End, Origin::Nowhere, lent) {
            Verdict::Continue => Verdict::Close,
            verdict => verdict,
        }
    }

    fn serve(
        &mut self,
        message: Message<'_>,
        origin: Origin<'_>,
        lent: &mut Lent<'_, '_>,
    ) -> Verdict {
        let flow = self.call(lent, origin, |service, replies, context| {
            service.serve(message, replies, context)
        });
        match flow {
            Err(Panicked) => Verdict::Panicked,
            // Nothing can be said either.
            Ok(_) if lent.scratch.failed => Verdict::Broken(FrameError::NoRoom),
            Ok(Flow::Again) => self.wait(lent.scratch.owed, message == Message::End),
            Ok(Flow::Continue) if !self.protocol.once || self.protocol.framing == Framing::Raw => {
                Verdict::Continue
            }
            Ok(Flow::Continue | Flow::Close) => Verdict::Close,
        }
    }

    /// The stream cannot be understood any further; the service has the last word, unless it is in
    /// the middle of another.
    fn break_off(&mut self, error: FrameError, lent: &mut Lent<'_, '_>) -> Verdict {
        self.held = None;
        if lent.scratch.owed > 0 {
            return Verdict::Broken(error);
        }
        let last_word = self.call(lent, Origin::Nowhere, |service, replies, context| {
            service.broken(error, replies, context);
            Flow::Close
        });
        last_word.map_or(Verdict::Panicked, |_| Verdict::Broken(error))
    }

    /// Calls the service.
    fn call(
        &mut self,
        lent: &mut Lent<'_, '_>,
        origin: Origin<'_>,
        call: impl FnOnce(&mut V, &mut Replies<'_>, &Context<'_>) -> Flow,
    ) -> Result<Flow, Panicked> {
        let wire = Wire::from(self.protocol.framing);
        let Lent { input, scratch, context, .. } = lent;
        guarded(|| {
            let mut replies = Replies { input, origin, wire, scratch };
            let flow = call(&mut self.service, &mut replies, context);
            if flow != Flow::Again {
                scratch.check_complete();
            }
            flow
        })
    }

    // ---- what is held

    /// Puts more bytes to the frame that comes in pieces.
    fn grow_frame(&mut self, bytes: &[u8], lent: &Lent<'_, '_>) -> Result<(), FrameError> {
        let held = self.held.get_or_insert_default();
        let most = self.protocol.most(&held.frame, bytes);
        // No input waits any more when a frame grows.
        grow(&mut held.frame, bytes, most, lent.limit.checked_sub(size_of::<Held>()))
    }

    /// Keeps input that has to wait.
    fn keep(&mut self, rest: &[u8], lent: &Lent<'_, '_>) -> Result<(), FrameError> {
        let held = self.held.get_or_insert_default();
        let others = size_of::<Held>() + held.frame.capacity();
        held.at = 0;
        grow(&mut held.rest, rest, rest.len(), lent.limit.checked_sub(others))
    }

    /// The next step is [`resume`](Session::resume).
    fn wait(&mut self, owed: usize, at_end: bool) -> Verdict {
        let held = self.held.get_or_insert_default();
        held.pending = Some(Pending { owed, at_end, finished: false });
        Verdict::Again
    }

    fn take_pending(&mut self) -> Option<Pending> {
        self.held.as_mut()?.pending.take()
    }

    /// The end of an answer that takes no more input: what is left of `rest` waits again.
    fn put_back(&mut self, rest: Buffer, at: usize, verdict: Verdict, finished: bool) -> Verdict {
        if verdict != Verdict::Again {
            self.held.take_if(|held| held.frame.is_empty());
        }
        match (verdict, &mut self.held) {
            (Verdict::Again, Some(held)) => {
                (held.rest, held.at) = (rest, at);
                if let Some(pending) = &mut held.pending {
                    pending.finished = finished;
                }
                verdict
            }
            (Verdict::Continue | Verdict::Close, _) if finished => Verdict::Finished,
            _ => verdict,
        }
    }
}

/// Appends `bytes`: doubles what `to` holds, but not beyond `most` nor the memory there is, which is
/// `room` in all.
fn grow(to: &mut Buffer, bytes: &[u8], most: usize, room: Option<usize>) -> Result<(), FrameError> {
    let room = room.ok_or(FrameError::NoRoom)?;
    let needed = to.len() + bytes.len();
    if needed > to.capacity() {
        // Growing by little again and again would be a copy each time.
        let capacity = (2 * to.capacity()).min(most).min(Buffer::capacity_in(room)).max(needed);
        // Mapped, where that is worth it: it goes back to the system at once.
        if Buffer::size_for(capacity, true) > room || to.grow(capacity, true).is_err() {
            return Err(FrameError::NoRoom);
        }
    }
    to.extend(bytes);
    Ok(())
}

/// A panic of a service is about its conversation alone, which is over with it: nobody sees what it
/// has left half-done.
fn guarded<T>(call: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|_| Panicked)
}

/// Answers one datagram, which is a conversation of its own: `service` serves nothing else. The
/// replies are to be sent as one datagram each.
///
/// # Errors
///
/// Where the service panicked: then nothing is to be sent.
pub fn answer_datagram<'a, V: Service>(
    mut service: V,
    input: &'a [u8],
    scratch: &'a mut Scratch,
    context: &Context<'_>,
) -> Result<Messages<'a>, Panicked> {
    scratch.clear();
    let origin = Origin::Nowhere;
    let mut replies = Replies { input, origin, wire: Wire::Datagrams, scratch: &mut *scratch };
    let answered = guarded(|| {
        let mut flow = service.open(&mut replies, context);
        replies.origin = Origin::Input(0..input.len());
        while flow != Flow::Close {
            flow = service.serve(Message::Whole(input), &mut replies, context);
            if flow == Flow::Continue {
                break;
            }
        }
        replies.scratch.check_complete();
    });
    let closed = guarded(|| service.close(context));
    answered.and(closed)?;
    if scratch.failed {
        scratch.messages.clear();
    }
    let Scratch { joined, messages, withheld, .. } = scratch;
    Ok(Messages { input, joined, left: messages.iter(), withheld: *withheld })
}

/// The replies to a datagram, each a datagram of its own.
#[derive(Debug, Clone)]
pub struct Messages<'a> {
    input: &'a [u8],
    joined: &'a [u8],
    left: std::slice::Iter<'a, Option<Range<usize>>>,
    withheld: bool,
}

impl Messages<'_> {
    /// Whether a reply is not among them because it would be longer than the datagram
    /// ([`Replies::send_no_longer`]).
    pub fn withheld(&self) -> bool {
        self.withheld
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = &'a [u8];

    /// The next reply; where it is an echo, `input` itself.
    fn next(&mut self) -> Option<&'a [u8]> {
        match self.left.next()? {
            None => Some(self.input),
            Some(range) => Some(&self.joined[range.clone()]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::oracle::{Conversation, context};
    use crate::protocol::{Echo, service_fn};

    const MIB: usize = 1 << 20;

    fn framed(framing: Framing) -> Protocol {
        Protocol { framing, max_frame: 16 << 20, once: false }
    }

    /// The verdict on some input, with this room; and how many bytes are answered.
    fn receive<V: Service>(
        session: &mut Session<V>,
        input: &[u8],
        room: usize,
    ) -> (Verdict, usize) {
        let mut scratch = Scratch::default();
        let answer = session.receive(input, room, &mut scratch, &context());
        (answer.verdict, answer.bytes.len())
    }

    #[test]
    fn a_frame_takes_memory_as_it_comes_and_no_more_than_it_needs() {
        let length = 5 * MIB + 77;
        let frame = [&(length as u32).to_be_bytes()[..], &vec![b'x'; length]].concat();
        let mut session = Session::new(framed(Framing::LengthPrefixed), Echo);
        let (mut came, mut most) = (0, 0);
        for read in frame.chunks(10_000) {
            let room = 2 * came + 20_000;
            let (verdict, answered) = receive(&mut session, read, room);
            came += read.len();
            assert_eq!(verdict, Verdict::Continue);
            assert_eq!(answered, if came == frame.len() { came } else { 0 });
            let held = session.held();
            assert!(held <= 2 * came + 8_192, "{held} bytes for {came}");
            most = most.max(held);
        }
        assert!(most <= frame.len() + size_of::<Held>() + 4_096, "{most} bytes");
        assert_eq!(session.held(), 0);
    }

    #[test]
    fn a_frame_that_has_no_room_is_the_end_and_holds_nothing() {
        for (framing, beginning, last_word) in
            [(Framing::Lines, &b"abc"[..], 8), (Framing::LengthPrefixed, b"\0\0\x01\0abc", 12)]
        {
            let service = Told::default();
            let mut session = Session::new(framed(framing), service);
            let first = size_of::<Held>() + beginning.len();
            assert_eq!(receive(&mut session, beginning, first), (Verdict::Continue, 0));
            assert_eq!(session.held(), first, "{framing:?}");
            // It grows by all of its room, which lasts for a while.
            assert_eq!(receive(&mut session, b"d", 3), (Verdict::Continue, 0));
            assert_eq!(receive(&mut session, b"e", 0), (Verdict::Continue, 0));
            let no_room = Verdict::Broken(FrameError::NoRoom);
            assert_eq!(
                receive(&mut session, &[b'f'; 100], 50),
                (no_room, last_word),
                "{framing:?}"
            );
            assert_eq!((session.held(), session.service.0), (0, Some(FrameError::NoRoom)));
        }
        let mut session = Session::new(framed(Framing::Lines), Echo);
        let no_room = Verdict::Broken(FrameError::NoRoom);
        assert_eq!(receive(&mut session, b"a", size_of::<Held>()), (no_room, 0));
        assert_eq!(receive(&mut session, b"a", size_of::<Held>() - 1), (no_room, 0));
    }

    #[test]
    fn a_frame_doubles_its_room_when_it_needs_more() {
        let mut session = Session::new(framed(Framing::Lines), Echo);
        for (length, capacity) in [(1_000, 1_000), (1, 2_000), (999, 2_000), (1, 4_000)] {
            let verdict = receive(&mut session, &vec![b'a'; length], MIB);
            assert_eq!(verdict, (Verdict::Continue, 0));
            assert_eq!(session.held(), size_of::<Held>() + capacity, "{length}");
        }
    }

    /// Tells what it was told.
    #[derive(Default)]
    struct Told(Option<FrameError>);

    impl Service for Told {
        fn serve(&mut self, _: Message<'_>, replies: &mut Replies<'_>, _: &Context<'_>) -> Flow {
            replies.begin(3);
            Flow::Again
        }

        fn broken(&mut self, error: FrameError, replies: &mut Replies<'_>, _: &Context<'_>) {
            self.0 = Some(error);
            replies.send(b"good bye");
        }
    }

    #[test]
    fn what_waits_needs_room_and_a_reply_that_was_begun_has_no_end() {
        let input = b"one\ntwo\n";
        let needed = size_of::<Held>() + input.len();
        let mut session = Session::new(framed(Framing::Lines), Told::default());
        assert_eq!(receive(&mut session, input, needed), (Verdict::Again, 0));
        assert_eq!((session.held(), session.is_pending()), (needed, true));
        let mut session = Session::new(framed(Framing::Lines), Told::default());
        let no_room = Verdict::Broken(FrameError::NoRoom);
        assert_eq!(receive(&mut session, input, needed - 1), (no_room, 0));
        assert_eq!((session.held(), session.service.0), (0, None));
    }

    #[test]
    fn a_frame_and_what_waits_behind_it_share_the_room() {
        let mut session = Session::new(framed(Framing::Lines), Told::default());
        let beginning = [b'a'; 1_000];
        assert_eq!(receive(&mut session, &beginning, 2_000), (Verdict::Continue, 0));
        let end = [&[b'a'; 400][..], b"\n", &[b'b'; 600]].concat();
        let no_room = Verdict::Broken(FrameError::NoRoom);
        assert_eq!(receive(&mut session, &end, 1_000), (no_room, 0));
    }

    #[test]
    fn a_large_frame_that_is_echoed_alone_is_handed_over() {
        let line = [&vec![b'x'; HANDED_OVER - 2][..], b"\n"].concat();
        for (beginning, end, handed_over) in [
            (&line[..], &line[..0], false),
            (&line[1..9], &line[8..], false),
            (&line[1..9], &line[7..], true),
            (b"x", &[&line[..], b"next"].concat()[..], false),
        ] {
            let mut session = Session::new(framed(Framing::Lines), Echo);
            let (mut scratch, mut all) = (Scratch::default(), Vec::new());
            for read in [beginning, end] {
                let answer = session.receive(read, usize::MAX, &mut scratch, &context());
                assert_eq!(answer.verdict, Verdict::Continue);
                let is_owned = matches!(answer.bytes, Bytes::Owned(_));
                assert_eq!(is_owned, handed_over && read.len() > 8);
                all.extend_from_slice(&answer.bytes);
            }
            let lines = [beginning, end].concat();
            let whole = memchr::memrchr(b'\n', &lines).map_or(0, |at| at + 1);
            assert!(all == lines[..whole], "{} of {whole}", all.len());
        }
        // Not alone: the service has more to say.
        let talkative = service_fn(|_, replies, _| {
            replies.echo();
            replies.send(b"!");
            Flow::Continue
        });
        let mut session = Session::new(framed(Framing::Lines), talkative);
        assert_eq!(receive(&mut session, &line[1..9], usize::MAX), (Verdict::Continue, 0));
        let verdict = receive(&mut session, &line, usize::MAX);
        assert_eq!(verdict, (Verdict::Continue, line.len() + 8 + 1));
    }

    #[test]
    fn a_large_frame_may_be_echoed_in_a_later_turn() {
        let line = [&vec![b'x'; HANDED_OVER][..], b"\n"].concat();
        for behind in [&b""[..], b"next\n", b"next\nlast"] {
            let mut hesitates = true;
            let hesitant = service_fn(move |_, replies, _| {
                if std::mem::take(&mut hesitates) {
                    return Flow::Again;
                }
                replies.echo();
                Flow::Continue
            });
            let expected = [&line[..], behind.strip_suffix(b"last").unwrap_or(behind)].concat();
            let (head, tail) = line.split_at(100);
            let mut conversation = Conversation::new(framed(Framing::Lines), hesitant);
            assert_eq!(conversation.read(head), Verdict::Continue);
            assert_eq!(conversation.read(&[tail, behind].concat()), Verdict::Continue);
            assert!(conversation.bytes == expected, "{} bytes", conversation.bytes.len());
        }
    }

    #[test]
    fn a_service_may_greet_and_may_hang_up_at_once() {
        struct Greeting(Flow);
        impl Service for Greeting {
            fn open(&mut self, replies: &mut Replies<'_>, context: &Context<'_>) -> Flow {
                replies.echo();
                replies.send(format!("hello {}", context.peer()).as_bytes());
                self.0
            }

            fn serve(&mut self, _: Message<'_>, _: &mut Replies<'_>, _: &Context<'_>) -> Flow {
                unreachable!("nothing was sent")
            }
        }
        for (flow, verdict) in [
            (Flow::Continue, Verdict::Continue),
            (Flow::Again, Verdict::Continue),
            (Flow::Close, Verdict::Close),
        ] {
            let mut session = Session::new(framed(Framing::LengthPrefixed), Greeting(flow));
            let mut scratch = Scratch::default();
            let answer = session.open(&mut scratch, &context());
            assert_eq!(&answer.bytes[..], b"\0\0\0\x11hello 192.0.2.1:9");
            assert_eq!(answer.verdict, verdict);
        }
    }

    #[test]
    fn a_reply_that_is_not_what_it_was_begun_with_is_a_panic() {
        let panics = |reply: fn(&mut Replies<'_>)| {
            let service = service_fn(move |_, replies, _| {
                reply(replies);
                Flow::Continue
            });
            let mut session = Session::new(framed(Framing::Lines), service);
            receive(&mut session, b"x\n", usize::MAX).0 == Verdict::Panicked
        };
        assert!(!panics(|replies| replies.begin(0)));
        assert!(panics(|replies| replies.begin(1)));
        assert!(panics(|replies| replies.push(b"a")));
        for another in [
            |replies: &mut Replies<'_>| replies.begin(0),
            |replies: &mut Replies<'_>| replies.echo(),
            |replies: &mut Replies<'_>| replies.send(b""),
            |replies: &mut Replies<'_>| replies.send_with(|_| {}),
        ] {
            let mut session = Session::new(
                framed(Framing::Lines),
                service_fn(move |_, replies, _| {
                    replies.begin(2);
                    replies.push(b"a");
                    another(replies);
                    replies.push(b"b");
                    Flow::Continue
                }),
            );
            assert_eq!(receive(&mut session, b"x\n", usize::MAX).0, Verdict::Panicked);
        }
    }

    #[test]
    fn where_there_is_no_memory_for_a_reply_nothing_more_is_said() {
        let unlucky = || {
            service_fn(|_, replies, _| {
                replies.send(b"one");
                // As when the allocator has no more.
                replies.scratch.failed = true;
                Flow::Continue
            })
        };
        let mut session = Session::new(framed(Framing::Lines), unlucky());
        let no_room = Verdict::Broken(FrameError::NoRoom);
        assert_eq!(receive(&mut session, b"x\n", usize::MAX).0, no_room);
        let mut scratch = Scratch::default();
        let replies = answer_datagram(unlucky(), b"x", &mut scratch, &context());
        assert_eq!(replies.map(Iterator::count), Ok(0));
    }

    #[test]
    fn a_large_reply_leaves_nothing_behind() {
        let mut scratch = Scratch::default();
        let service = service_fn(|message, replies, _| {
            replies.send_with(|reply| reply.resize(message.len() << 20, b'x'));
            Flow::Continue
        });
        let mut session = Session::new(framed(Framing::Raw), service);
        for (megabytes, kept) in [(3, 0), (1, MIB), (1, 2 * MIB)] {
            let input = vec![0; megabytes];
            let answer = session.receive(&input, 0, &mut scratch, &context());
            assert_eq!(answer.bytes.len(), megabytes * MIB);
            scratch.trim();
            assert_eq!(scratch.held(), kept);
        }
    }
}
