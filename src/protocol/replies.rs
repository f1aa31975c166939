//! What a service replies, put together for the wire.

use std::borrow::Cow;
use std::ops::Range;

use super::framing::{self, Framing};

/// The replies of a service to one message: none, one or several.
///
/// With [`Framing::LengthPrefixed`] each reply is a frame of its own, its length in front; a frame that
/// is echoed keeps the length that it came with. Each reply to a datagram is a datagram of its own.
/// In other streams the bytes of the replies follow one another: a line needs its line feed.
#[derive(Debug)]
pub struct Replies<'a> {
    /// The bytes that hold the message and what is echoed so far: the input, or a frame that came in
    /// pieces.
    source: &'a [u8],
    /// Where the message stands in `source`, its prefix included. None when a conversation opens or
    /// ends.
    message: Option<Range<usize>>,
    /// The framing of the stream; none for a datagram.
    framing: Option<Framing>,
    scratch: &'a mut Scratch,
}

impl<'a> Replies<'a> {
    pub(crate) fn new(
        source: &'a [u8],
        message: Option<Range<usize>>,
        framing: Option<Framing>,
        scratch: &'a mut Scratch,
    ) -> Self {
        Replies { source, message, framing, scratch }
    }

    /// Sends the message back as it came, without a copy. Sends nothing when there is no message: when a
    /// conversation opens, or a stream ends.
    pub fn echo(&mut self) {
        let Some(message) = self.message.clone() else { return };
        let scratch = &mut *self.scratch;
        if self.framing.is_none() {
            scratch.push_datagram(None);
        } else if scratch.joined.is_empty() && scratch.echoed.is_empty() {
            scratch.echoed = message;
        } else if scratch.joined.is_empty() && scratch.echoed.end == message.start {
            scratch.echoed.end = message.end;
        } else {
            scratch.copy_echoed(self.source);
            scratch.append(&self.source[message]);
        }
    }

    /// Sends these bytes as one message. Without bytes it is a message, too: an empty datagram, or a
    /// frame without payload.
    ///
    /// # Panics
    ///
    /// With [`Framing::LengthPrefixed`], if there are 4 GiB of them or more.
    pub fn send(&mut self, bytes: &[u8]) {
        self.scratch.copy_echoed(self.source);
        match self.framing {
            Some(Framing::Raw | Framing::Lines) => {}
            Some(Framing::LengthPrefixed) => self.scratch.append(&framing::prefix(bytes.len())),
            None => {
                let start = self.scratch.joined.len();
                self.scratch.push_datagram(Some(start..start + bytes.len()));
            }
        }
        self.scratch.append(bytes);
    }

    /// Sends one message: what `write` puts into the buffer, which starts empty.
    pub fn send_with(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut reply = std::mem::take(&mut self.scratch.spare);
        reply.clear();
        write(&mut reply);
        self.send(&reply);
        self.scratch.spare = reply;
    }

    /// Sends these bytes as one message, like [`send`](Replies::send), unless they are more than the
    /// datagram that they reply to has. Such a reply is withheld and counted
    /// ([`udp_too_short`](crate::Snapshot::udp_too_short)): a forged source must not get more bytes
    /// through this server than were sent to it.
    pub fn send_no_longer(&mut self, bytes: &[u8]) {
        match &self.message {
            Some(message) if self.framing.is_none() && message.len() < bytes.len() => {
                self.scratch.withheld = true;
            }
            _ => self.send(bytes),
        }
    }

    /// What `call` sends in reply to `message`, each reply by itself, and what it returns: for tests of a
    /// service without a server. [`echo`](Replies::echo) and [`send_no_longer`](Replies::send_no_longer) do
    /// what they do for a datagram.
    ///
    /// ```
    /// use evecho::Service;
    /// use evecho::protocol::{Context, Flow, Message, Replies, service_fn};
    ///
    /// let mut reverse = service_fn(|message, replies, _context| {
    ///     replies.send_with(|reply| reply.extend(message.iter().rev()));
    ///     Flow::Continue
    /// });
    /// let (peer, local) = (([192, 0, 2, 1], 40_000).into(), ([192, 0, 2, 2], 7).into());
    /// let context = Context::stream(1, peer, local);
    /// let (replies, flow) = Replies::capture(b"abc", |replies| {
    ///     reverse.serve(Message::Chunk(b"abc"), replies, &context)
    /// });
    /// assert_eq!((&replies[..], flow), (&[b"cba".to_vec()][..], Flow::Continue));
    /// ```
    pub fn capture<T>(
        message: &[u8],
        call: impl FnOnce(&mut Replies<'_>) -> T,
    ) -> (Vec<Vec<u8>>, T) {
        let mut scratch = Scratch::default();
        let returned = call(&mut Replies::new(message, Some(0..message.len()), None, &mut scratch));
        (scratch.datagram_replies(message, false).map(<[u8]>::to_vec).collect(), returned)
    }

    /// As [`send_with`](Self::send_with), where `write` writes no more than this many bytes: without memory
    /// for them, it is not called.
    pub(super) fn send_with_room(&mut self, most: usize, write: impl FnOnce(&mut Vec<u8>)) {
        self.scratch.spare.clear();
        match self.scratch.spare.try_reserve(most) {
            Ok(()) => self.send_with(write),
            Err(_) => self.fail(),
        }
    }

    /// There is no memory for a reply.
    pub(super) fn fail(&mut self) {
        self.scratch.failed = true;
    }
}

/// Buffers for replies, lent to one session after the other.
#[derive(Debug, Default)]
pub struct Scratch {
    /// One reply, while a service writes it.
    spare: Vec<u8>,
    /// Replies put together. Empty as long as they are one piece of the input.
    joined: Vec<u8>,
    /// That piece of the input.
    echoed: Range<usize>,
    /// A frame that came in pieces, and is the whole reply.
    frame: Option<Vec<u8>>,
    /// The replies to a datagram: each one's place in `joined`, or `None` for the datagram itself.
    datagrams: Vec<Option<Range<usize>>>,
    /// A reply was longer than the datagram, and must not be.
    withheld: bool,
    /// There was no memory for a reply.
    pub(super) failed: bool,
}

impl Scratch {
    /// The most that a buffer keeps from one reply to the next.
    const KEPT: usize = 1 << 20;

    /// Forgets the last reply.
    pub(super) fn clear(&mut self) {
        self.trim();
        self.joined.clear();
        self.datagrams.clear();
        (self.echoed, self.frame) = (0..0, None);
        (self.failed, self.withheld) = (false, false);
    }

    /// Gives back memory that only a large reply needed. The reply that stands in it is gone.
    pub fn trim(&mut self) {
        for buffer in [&mut self.spare, &mut self.joined] {
            if buffer.capacity() > Self::KEPT {
                *buffer = Vec::new();
            }
        }
    }

    /// The bytes of memory that it holds.
    pub fn held(&self) -> usize {
        self.spare.capacity() + self.joined.capacity()
    }

    /// The replies to `input`, put together.
    pub(super) fn replies<'a>(&'a mut self, input: &'a [u8]) -> Cow<'a, [u8]> {
        match self.frame.take() {
            Some(frame) => Cow::Owned(frame),
            None if self.echoed.is_empty() => Cow::Borrowed(&self.joined),
            None => Cow::Borrowed(&input[self.echoed.clone()]),
        }
    }

    /// The replies to the datagram `input`: none where one of them found no memory.
    pub(super) fn datagram_replies<'a>(
        &'a mut self,
        input: &'a [u8],
        panicked_at_end: bool,
    ) -> DatagramReplies<'a> {
        if self.failed {
            self.datagrams.clear();
        }
        let Scratch { joined, datagrams, withheld, .. } = self;
        let left = datagrams.iter();
        DatagramReplies { input, joined, left, withheld: *withheld, panicked_at_end }
    }

    /// Makes `frame` the whole reply, if it is echoed and `is_last` says that no other message follows.
    /// Otherwise what is echoed of it is copied.
    pub(super) fn hand_over(&mut self, frame: Vec<u8>, is_last: bool) {
        if is_last && !self.echoed.is_empty() {
            self.echoed = 0..0;
            self.frame = Some(frame);
        } else {
            self.copy_echoed(&frame);
        }
    }

    /// Copies what is echoed to the replies that are put together.
    fn copy_echoed(&mut self, source: &[u8]) {
        let echoed = std::mem::take(&mut self.echoed);
        self.append(&source[echoed]);
    }

    fn push_datagram(&mut self, reply: Option<Range<usize>>) {
        self.failed |= self.datagrams.try_reserve(1).is_err();
        if !self.failed {
            self.datagrams.push(reply);
        }
    }

    fn append(&mut self, bytes: &[u8]) {
        self.failed |= self.joined.try_reserve(bytes.len()).is_err();
        // Nothing follows a reply that is cut off.
        if !self.failed {
            self.joined.extend_from_slice(bytes);
        }
    }
}

/// The replies to a datagram, each a datagram of its own.
#[derive(Debug, Clone)]
pub(crate) struct DatagramReplies<'a> {
    input: &'a [u8],
    joined: &'a [u8],
    left: std::slice::Iter<'a, Option<Range<usize>>>,
    withheld: bool,
    panicked_at_end: bool,
}

impl DatagramReplies<'_> {
    /// Whether a reply is missing because it is longer than the datagram
    /// ([`Replies::send_no_longer`]).
    pub(crate) fn withheld(&self) -> bool {
        self.withheld
    }

    /// Whether the service panicked after it had replied.
    pub(crate) fn panicked_at_end(&self) -> bool {
        self.panicked_at_end
    }
}

impl<'a> Iterator for DatagramReplies<'a> {
    type Item = &'a [u8];

    /// The next reply: `input` itself where it is an echo.
    fn next(&mut self) -> Option<&'a [u8]> {
        match self.left.next()? {
            None => Some(self.input),
            Some(range) => Some(&self.joined[range.clone()]),
        }
    }
}
