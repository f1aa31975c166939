//! One peer's conversation.

use std::borrow::Cow;
use std::mem::forget;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::framing::{FrameError, Framing, Protocol};
use super::replies::{DatagramReplies, Replies, Scratch};
use super::service::{Context, Flow, Message, Service};
use super::try_box;

/// One peer's conversation over a stream: framing and service, and what they remember between two
/// reads.
///
/// It holds nothing on the heap but a frame whose end has not come.
///
/// The order of calls: [`open`](Session::open); [`receive`](Session::receive) for each read;
/// [`finish`](Session::finish) at the end of the stream; [`close`](Session::close) when it is over.
/// After any verdict but [`Verdict::Continue`] only [`close`](Session::close) follows.
#[derive(Debug, Clone)]
pub struct Session<V> {
    service: V,
    protocol: Protocol,
    /// The beginning of a frame. Boxed, so that an idle connection pays for the pointer alone.
    begun: Option<Box<[Vec<u8>; 1]>>,
}

/// What a session replies to some input.
#[derive(Debug)]
#[non_exhaustive]
pub struct Reply<'a> {
    /// The bytes to send. They are owned where a frame that came in pieces is echoed, and borrowed from
    /// the input or the scratch otherwise.
    pub bytes: Cow<'a, [u8]>,
    /// What follows once they are sent.
    pub verdict: Verdict,
}

/// How a conversation goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Verdict {
    /// With more input.
    Continue,
    /// It ends: the service, or [`Protocol::once`], asked to close.
    Close,
    /// It ends: the peer ended its side, and has the reply to all that it sent.
    Finished,
    /// It ends: the input broke the framing, so that what follows cannot be understood.
    Broken(FrameError),
    /// It ends: the service panicked.
    Panicked,
}

/// What a session is called with: input, room for the replies, and the peer.
struct Exchange<'a> {
    input: &'a [u8],
    scratch: &'a mut Scratch,
    context: &'a Context<'a>,
}

/// A service panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Panicked;

impl<V: Service> Session<V> {
    /// Makes a conversation that is not open yet.
    pub fn new(protocol: Protocol, service: V) -> Self {
        Session { service, protocol, begun: None }
    }

    /// Opens the conversation; the reply is the service's greeting.
    pub fn open<'a>(&mut self, scratch: &'a mut Scratch, context: &Context<'_>) -> Reply<'a> {
        scratch.clear();
        let mut replies = Replies::new(&[], None, Some(self.protocol.framing), scratch);
        let verdict = match guarded(|| self.service.open(&mut replies, context)) {
            Err(Panicked) => Verdict::Panicked,
            Ok(_) if scratch.failed => Verdict::Broken(FrameError::NoRoom),
            Ok(Flow::Continue) => Verdict::Continue,
            Ok(Flow::Close) => Verdict::Close,
        };
        Reply { bytes: scratch.replies(&[]), verdict }
    }

    /// Serves the next bytes of a stream. How the stream was cut into reads makes no difference to
    /// frames.
    ///
    /// `budget` is the number of bytes of memory by which the session may grow. It grows as the bytes of
    /// a frame come, not by the length that is announced. Where the budget is too small, or the system
    /// has no memory, the conversation ends with [`FrameError::NoRoom`].
    pub fn receive<'a>(
        &mut self,
        input: &'a [u8],
        budget: usize,
        scratch: &'a mut Scratch,
        context: &Context<'_>,
    ) -> Reply<'a> {
        scratch.clear();
        let limit = self.held().saturating_add(budget);
        let mut exchange = Exchange { input, scratch: &mut *scratch, context };
        let (mut at, mut verdict) = (0, Verdict::Continue);
        while verdict == Verdict::Continue && at < input.len() {
            verdict = match self.serve_next(&mut exchange, &mut at, limit) {
                Ok(verdict) => verdict,
                Err(error) => self.break_off(error, &mut exchange),
            };
        }
        Reply { bytes: scratch.replies(input), verdict }
    }

    /// Serves what is left at the end of the stream: a line without line feed, or what a service kept
    /// back.
    pub fn finish<'a>(&mut self, scratch: &'a mut Scratch, context: &Context<'_>) -> Reply<'a> {
        scratch.clear();
        let mut exchange = Exchange { input: &[], scratch: &mut *scratch, context };
        let verdict = match (self.protocol.framing, &self.begun) {
            (Framing::Raw, _) => self.serve(Message::End, None, &mut exchange),
            (_, None) => Verdict::Finished,
            (Framing::Lines, Some(_)) => self.serve_begun(true, &mut exchange),
            (Framing::LengthPrefixed, Some(_)) => {
                self.break_off(FrameError::Truncated, &mut exchange)
            }
        };
        let verdict = match verdict {
            Verdict::Continue | Verdict::Close => Verdict::Finished,
            other => other,
        };
        Reply { bytes: scratch.replies(&[]), verdict }
    }

    /// Ends the conversation, whatever the reason. Returns false if the service panicked.
    pub fn close(self, context: &Context<'_>) -> bool {
        end(self.service, context).is_ok()
    }

    /// The bytes of memory that a frame takes whose end has not come.
    pub fn held(&self) -> usize {
        self.begun.as_deref().map_or(0, |[begun]| size_of::<Vec<u8>>() + begun.capacity())
    }

    /// The bytes of a frame whose end has not come, or those that the service keeps, and where the end is sought.
    pub(crate) fn begun(&self) -> Option<(usize, Framing)> {
        let kept = self.begun.as_deref().map_or_else(|| self.service.kept(), |[begun]| begun.len());
        (kept > 0).then_some((kept, self.protocol.framing))
    }

    /// Serves the frame at `at`, or keeps the beginning that has come; `at` is then behind it.
    fn serve_next(
        &mut self,
        exchange: &mut Exchange<'_>,
        at: &mut usize,
        limit: usize,
    ) -> Result<Verdict, FrameError> {
        let input = exchange.input;
        let rest = &input[*at..];
        let begun = self.begun.as_deref().map_or(&[][..], |[begun]| begun);
        let end = self.protocol.frame_end(begun, rest)?;
        let piece = *at..*at + end.unwrap_or(rest.len());
        *at = piece.end;
        if end.is_some() && begun.is_empty() {
            return Ok(self.serve_input(piece, exchange));
        }
        self.keep(&input[piece], limit)?;
        Ok(match end {
            Some(_) => self.serve_begun(*at == input.len(), exchange),
            None => Verdict::Continue,
        })
    }

    /// Serves a frame that stands in the input, or unframed input as it came.
    fn serve_input(&mut self, piece: Range<usize>, exchange: &mut Exchange<'_>) -> Verdict {
        let bytes = &exchange.input[piece.clone()];
        let message = match self.protocol.framing {
            Framing::Raw => Message::Chunk(bytes),
            Framing::Lines | Framing::LengthPrefixed => {
                Message::Whole(self.protocol.payload(bytes))
            }
        };
        match self.serve(message, Some(piece), exchange) {
            // Only the first read is served.
            Verdict::Continue if self.protocol.once => self.serve(Message::End, None, exchange),
            verdict => verdict,
        }
    }

    /// Serves the frame that came in pieces; `is_last` if no other message follows in this input.
    fn serve_begun(&mut self, is_last: bool, exchange: &mut Exchange<'_>) -> Verdict {
        let frame = self.begun.take().map_or_else(Vec::new, |begun| {
            let [begun] = *begun;
            begun
        });
        let message = Message::Whole(self.protocol.payload(&frame));
        let mut whole =
            Exchange { input: &frame, scratch: exchange.scratch, context: exchange.context };
        let verdict = self.serve(message, Some(0..frame.len()), &mut whole);
        exchange.scratch.hand_over(frame, is_last);
        if exchange.scratch.failed { Verdict::Broken(FrameError::NoRoom) } else { verdict }
    }

    /// Serves a message, which stands at `place` of the input; the end of a stream stands nowhere.
    fn serve(
        &mut self,
        message: Message<'_>,
        place: Option<Range<usize>>,
        exchange: &mut Exchange<'_>,
    ) -> Verdict {
        let framing = Some(self.protocol.framing);
        let mut replies = Replies::new(exchange.input, place, framing, exchange.scratch);
        let flow = guarded(|| self.service.serve(message, &mut replies, exchange.context));
        let is_last = match message {
            Message::Chunk(_) => false,
            Message::Whole(_) => self.protocol.once,
            Message::End => true,
        };
        match flow {
            Err(Panicked) => Verdict::Panicked,
            Ok(_) if exchange.scratch.failed => Verdict::Broken(FrameError::NoRoom),
            Ok(Flow::Continue) if !is_last => Verdict::Continue,
            Ok(Flow::Continue | Flow::Close) => Verdict::Close,
        }
    }

    /// Ends a stream that broke its framing: the service has the last word.
    fn break_off(&mut self, error: FrameError, exchange: &mut Exchange<'_>) -> Verdict {
        self.begun = None;
        let framing = Some(self.protocol.framing);
        let mut replies = Replies::new(exchange.input, None, framing, exchange.scratch);
        match guarded(|| self.service.broken(error, &mut replies, exchange.context)) {
            Ok(()) => Verdict::Broken(error),
            Err(Panicked) => Verdict::Panicked,
        }
    }

    /// Appends `bytes` to the frame that has begun. The session holds no more than `limit` bytes then.
    fn keep(&mut self, bytes: &[u8], limit: usize) -> Result<(), FrameError> {
        let limit = limit.checked_sub(size_of::<Vec<u8>>()).ok_or(FrameError::NoRoom)?;
        if self.begun.is_none() {
            self.begun = Some(try_box(Vec::new()).map_err(|_| FrameError::NoRoom)?);
        }
        let Some([begun]) = self.begun.as_deref_mut() else { return Ok(()) };
        let needed = begun.len() + bytes.len();
        if needed > limit.max(begun.capacity()) {
            return Err(FrameError::NoRoom);
        }
        if needed > begun.capacity() {
            // Doubles: growing by little again and again would be a copy each time.
            let longest = self.protocol.longest(begun, bytes);
            let capacity = (2 * begun.capacity()).min(longest).min(limit).max(needed);
            let more = capacity - begun.len();
            begun.try_reserve_exact(more).map_err(|_| FrameError::NoRoom)?;
        }
        begun.extend_from_slice(bytes);
        Ok(())
    }
}

/// Calls a service, or what makes one. A panic ends its conversation alone, and what it left half-done is
/// never seen.
pub(crate) fn guarded<T>(call: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|payload| {
        // Its destructor may panic, too: what that panic is about is never dropped.
        forget(catch_unwind(AssertUnwindSafe(|| drop(payload))));
        Panicked
    })
}

/// Ends the conversation of a service.
fn end<V: Service>(mut service: V, context: &Context<'_>) -> Result<(), Panicked> {
    let closed = guarded(|| service.close(context));
    // A destructor may panic, too.
    guarded(|| drop(service)).and(closed)
}

/// Serves one datagram, which is a conversation of its own: `service` serves nothing else.
///
/// # Errors
///
/// If the service panicked before it ended: there is no reply then.
pub(crate) fn reply_to_datagram<'a, V: Service>(
    mut service: V,
    input: &'a [u8],
    scratch: &'a mut Scratch,
    context: &Context<'_>,
) -> Result<DatagramReplies<'a>, Panicked> {
    scratch.clear();
    let served = guarded(|| {
        let mut replies = Replies::new(input, None, None, scratch);
        if service.open(&mut replies, context) == Flow::Continue {
            let mut replies = Replies::new(input, Some(0..input.len()), None, scratch);
            let _ = service.serve(Message::Whole(input), &mut replies, context);
        }
    });
    let ended = end(service, context);
    served?;
    Ok(scratch.datagram_replies(input, ended.is_err()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::oracle::context;
    use crate::protocol::{Echo, Upper, service_fn};

    const MIB: usize = 1 << 20;
    /// What a frame takes besides its bytes.
    const OVERHEAD: usize = size_of::<Vec<u8>>();

    fn framed(framing: Framing) -> Protocol {
        Protocol { framing, max_frame: 16 << 20, once: false }
    }

    /// The verdict on some input with this budget, and the length of the reply.
    fn receive<V: Service>(
        session: &mut Session<V>,
        input: &[u8],
        budget: usize,
    ) -> (Verdict, usize) {
        let mut scratch = Scratch::default();
        let reply = session.receive(input, budget, &mut scratch, &context());
        (reply.verdict, reply.bytes.len())
    }

    #[test]
    fn what_is_kept_until_more_comes_is_known() {
        fn begun(
            framing: Framing,
            service: impl Service,
            input: &[u8],
        ) -> Option<(usize, Framing)> {
            let mut session = Session::new(framed(framing), service);
            receive(&mut session, input, MIB);
            session.begun()
        }
        let lines = Framing::Lines;
        assert_eq!(begun(lines, Echo, b"a\nbc"), Some((2, lines)));
        assert_eq!(begun(lines, Echo, b"a\n"), None);
        let raw = Framing::Raw;
        assert_eq!(begun(raw, Echo, b"abc"), None);
        let boxed: Box<dyn Service> = Box::new(Upper::default());
        assert_eq!(begun(raw, boxed, "漢".as_bytes().split_at(2).0), Some((2, raw)));
        assert_eq!(begun(raw, Upper::default(), "漢".as_bytes()), None);
    }

    #[test]
    fn a_frame_takes_memory_as_it_comes_and_no_more_than_it_needs() {
        let length = 5 * MIB + 77;
        let frame = [&(length as u32).to_be_bytes()[..], &vec![b'x'; length]].concat();
        let mut session = Session::new(framed(Framing::LengthPrefixed), Echo);
        let (mut came, mut most) = (0, 0);
        for read in frame.chunks(10_000) {
            let budget = 2 * came + 20_000;
            let (verdict, replied) = receive(&mut session, read, budget);
            came += read.len();
            assert_eq!(verdict, Verdict::Continue);
            assert_eq!(replied, if came == frame.len() { came } else { 0 });
            let held = session.held();
            assert!(held <= 2 * came + OVERHEAD, "{held} bytes for {came}");
            most = most.max(held);
        }
        assert!(most <= frame.len() + OVERHEAD, "{most} bytes");
        assert_eq!(session.held(), 0);
    }

    #[test]
    fn a_frame_beyond_the_budget_is_the_end_and_holds_nothing() {
        let no_room = Verdict::Broken(FrameError::NoRoom);
        for (framing, beginning, last_word) in
            [(Framing::Lines, &b"abc"[..], 8), (Framing::LengthPrefixed, b"\0\0\x01\0abc", 12)]
        {
            let mut session = Session::new(framed(framing), Polite::default());
            let first = OVERHEAD + beginning.len();
            assert_eq!(receive(&mut session, beginning, first), (Verdict::Continue, 0));
            assert_eq!(session.held(), first, "{framing:?}");
            // It grows by all of its budget, which lasts for a while.
            assert_eq!(receive(&mut session, b"d", 3), (Verdict::Continue, 0));
            assert_eq!(receive(&mut session, b"e", 0), (Verdict::Continue, 0));
            let verdict = receive(&mut session, &[b'f'; 100], 50);
            assert_eq!(verdict, (no_room, last_word), "{framing:?}");
            assert_eq!((session.held(), session.service.0), (0, Some(FrameError::NoRoom)));
        }
        let mut session = Session::new(framed(Framing::Lines), Echo);
        assert_eq!(receive(&mut session, b"a", OVERHEAD), (no_room, 0));
        assert_eq!(receive(&mut session, b"a", OVERHEAD - 1), (no_room, 0));
    }

    #[test]
    fn a_frame_that_ends_leaves_its_memory_to_the_next() {
        let mut session = Session::new(framed(Framing::Lines), Echo);
        assert_eq!(receive(&mut session, &[b'a'; 1_000], 1_024), (Verdict::Continue, 0));
        let next = |length| [&b"\n"[..], &vec![b'b'; length]].concat();
        assert_eq!(receive(&mut session, &next(1_001), 1), (Verdict::Continue, 1_001));
        assert_eq!(session.held(), OVERHEAD + 1_001);
        let no_room = Verdict::Broken(FrameError::NoRoom);
        assert_eq!(receive(&mut session, &next(1_003), 1), (no_room, 1_002));
    }

    #[test]
    fn a_frame_doubles_its_buffer_when_it_needs_more() {
        let mut session = Session::new(framed(Framing::Lines), Echo);
        for (length, capacity) in [(1_000, 1_000), (1, 2_000), (999, 2_000), (1, 4_000)] {
            let verdict = receive(&mut session, &vec![b'a'; length], MIB);
            assert_eq!(verdict, (Verdict::Continue, 0));
            assert_eq!(session.held(), OVERHEAD + capacity, "{length}");
        }
    }

    /// Says good bye, and keeps the error.
    #[derive(Default)]
    struct Polite(Option<FrameError>);

    impl Service for Polite {
        fn serve(&mut self, _: Message<'_>, replies: &mut Replies<'_>, _: &Context<'_>) -> Flow {
            replies.echo();
            Flow::Continue
        }

        fn broken(&mut self, error: FrameError, replies: &mut Replies<'_>, _: &Context<'_>) {
            self.0 = Some(error);
            replies.send(b"good bye");
        }
    }

    #[test]
    fn the_last_word_comes_after_what_is_echoed() {
        let short = Protocol { max_frame: 4, ..framed(Framing::Lines) };
        for (first, rest) in [(0, &b"one\ntwo\n"[..]), (2, &b"one\ntwo\n"[..])] {
            let mut session = Session::new(short, Polite::default());
            let (mut scratch, mut all) = (Scratch::default(), Vec::new());
            for read in [&rest[..first], &[&rest[first..], b"three"].concat()] {
                let reply = session.receive(read, MIB, &mut scratch, &context());
                all.extend_from_slice(&reply.bytes);
            }
            assert_eq!(all, b"one\ntwo\ngood bye");
        }
    }

    #[test]
    fn the_end_of_a_stream_comes_after_what_is_echoed() {
        struct Ending;
        impl Service for Ending {
            fn serve(
                &mut self,
                message: Message<'_>,
                replies: &mut Replies<'_>,
                _: &Context<'_>,
            ) -> Flow {
                replies.echo();
                if message == Message::End {
                    replies.send(b".");
                }
                Flow::Continue
            }
        }
        let mut session = Session::new(Protocol { once: true, ..framed(Framing::Raw) }, Ending);
        let mut scratch = Scratch::default();
        let reply = session.receive(b"all", 0, &mut scratch, &context());
        assert_eq!((&reply.bytes[..], reply.verdict), (&b"all."[..], Verdict::Close));
    }

    #[test]
    fn a_frame_in_pieces_that_is_echoed_alone_is_handed_over() {
        for (beginning, end, is_owned) in [
            (&b"whole\n"[..], &b""[..], false),
            (b"a li", b"ne\n", true),
            (b"a li", b"ne\nnext", false),
            (b"a li", b"ne\nnext\n", false),
        ] {
            let mut session = Session::new(framed(Framing::Lines), Echo);
            let (mut scratch, mut all) = (Scratch::default(), Vec::new());
            for read in [beginning, end] {
                let reply = session.receive(read, usize::MAX, &mut scratch, &context());
                assert_eq!(reply.verdict, Verdict::Continue);
                let owns = matches!(reply.bytes, Cow::Owned(_));
                assert_eq!(owns, is_owned && read == end, "{end:?}");
                all.extend_from_slice(&reply.bytes);
            }
            let lines = [beginning, end].concat();
            let whole = memchr::memrchr(b'\n', &lines).map_or(0, |at| at + 1);
            assert_eq!(all, lines[..whole]);
        }
        let mut session = Session::new(framed(Framing::Lines), Echo);
        let mut scratch = Scratch::default();
        session.receive(b"last", MIB, &mut scratch, &context());
        let reply = session.finish(&mut scratch, &context());
        assert!(matches!(reply.bytes, Cow::Owned(bytes) if bytes == b"last"));
        // Not alone: the service has more to say.
        let talkative = service_fn(|_, replies, _| {
            replies.echo();
            replies.send(b"!");
            replies.echo();
            Flow::Continue
        });
        let mut session = Session::new(framed(Framing::Lines), talkative);
        assert_eq!(receive(&mut session, b"a li", usize::MAX), (Verdict::Continue, 0));
        assert_eq!(receive(&mut session, b"ne\n", usize::MAX), (Verdict::Continue, 15));
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
        for (flow, verdict) in [(Flow::Continue, Verdict::Continue), (Flow::Close, Verdict::Close)]
        {
            let mut session = Session::new(framed(Framing::LengthPrefixed), Greeting(flow));
            let mut scratch = Scratch::default();
            let reply = session.open(&mut scratch, &context());
            assert_eq!(&reply.bytes[..], b"\0\0\0\x11hello 192.0.2.1:9");
            assert_eq!(reply.verdict, verdict);
        }
    }

    #[test]
    fn where_there_is_no_memory_for_a_reply_the_conversation_ends() {
        struct Unlucky;
        impl Service for Unlucky {
            fn open(&mut self, replies: &mut Replies<'_>, _: &Context<'_>) -> Flow {
                replies.fail();
                Flow::Continue
            }

            fn serve(
                &mut self,
                _: Message<'_>,
                replies: &mut Replies<'_>,
                _: &Context<'_>,
            ) -> Flow {
                replies.send(b"one");
                replies.fail();
                Flow::Continue
            }
        }
        let mut session = Session::new(framed(Framing::Lines), Unlucky);
        let no_room = Verdict::Broken(FrameError::NoRoom);
        let mut scratch = Scratch::default();
        assert_eq!(session.open(&mut scratch, &context()).verdict, no_room);
        assert_eq!(receive(&mut session, b"x\n", usize::MAX).0, no_room);
        let replies = reply_to_datagram(Unlucky, b"x", &mut scratch, &context());
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
        for (megabytes, kept) in [(3, 0), (1, 2 * MIB), (2, 0)] {
            let input = vec![0; megabytes];
            let reply = session.receive(&input, 0, &mut scratch, &context());
            assert_eq!(reply.bytes.len(), megabytes * MIB);
            scratch.trim();
            assert_eq!(scratch.held(), kept);
        }
    }
}
