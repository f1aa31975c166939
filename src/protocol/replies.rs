//! What a service replies, put together for the wire.

use std::ops::Range;

use super::framing::{Framing, PREFIX};

/// The replies of a service to one message: none, one or several.
///
/// Under [`Framing::LengthPrefixed`] each reply is a frame of its own, its length in front; a frame
/// that is echoed has the length that it came with. For a datagram each reply is a datagram of its
/// own. In other streams the bytes of the replies follow one another: a line needs its line feed.
#[derive(Debug)]
pub struct Replies<'a> {
    pub(super) input: &'a [u8],
    pub(super) origin: Origin<'a>,
    pub(super) wire: Wire,
    pub(super) scratch: &'a mut Scratch,
}

/// Where the message is that is being answered.
#[derive(Debug, Clone)]
pub(super) enum Origin<'a> {
    /// There is none.
    Nowhere,
    /// This piece of the input.
    Input(Range<usize>),
    /// It came in pieces, and was put together here.
    Frame(&'a [u8]),
}

/// How one reply is told from the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire {
    /// It is not.
    Plain,
    /// By its length in front.
    Prefixed,
    /// Each leaves alone.
    Datagrams,
}

impl From<Framing> for Wire {
    fn from(framing: Framing) -> Self {
        match framing {
            Framing::Raw | Framing::Lines => Wire::Plain,
            Framing::LengthPrefixed => Wire::Prefixed,
        }
    }
}

impl Replies<'_> {
    /// Sends the message back as it came, without a copy. Where there is no message (a conversation
    /// opens, a stream ends) nothing is sent.
    pub fn echo(&mut self) {
        self.scratch.check_complete();
        match self.origin.clone() {
            Origin::Nowhere => {}
            Origin::Input(_) if self.wire == Wire::Datagrams => self.scratch.messages.push(None),
            Origin::Input(range) => self.echo_input(range),
            Origin::Frame(bytes) => {
                if self.scratch.is_empty() {
                    self.scratch.echoed_frame = true;
                } else {
                    self.own();
                    self.scratch.append(bytes);
                }
            }
        }
    }

    /// Sends one message of these bytes. One without bytes is a message, too: an empty datagram, or a
    /// frame without payload.
    pub fn send(&mut self, bytes: &[u8]) {
        self.begin(bytes.len());
        self.push(bytes);
    }

    /// Sends one message: what `write` puts into the buffer, which comes empty.
    pub fn send_with(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut reply = std::mem::take(&mut self.scratch.reply);
        reply.clear();
        write(&mut reply);
        self.own();
        if self.wire == Wire::Plain && self.scratch.joined.is_empty() {
            self.scratch.check_complete();
            std::mem::swap(&mut reply, &mut self.scratch.joined);
        } else {
            self.send(&reply);
        }
        self.scratch.reply = reply;
    }

    /// As [`send`](Replies::send), but for a datagram longer than the one that it answers: that is not
    /// sent, and counted ([`udp_too_short`](crate::Snapshot::udp_too_short)). Who forges the source of
    /// a datagram does not get more bytes sent there than without us.
    pub fn send_no_longer(&mut self, bytes: &[u8]) {
        match &self.origin {
            Origin::Input(range) if self.wire == Wire::Datagrams && range.len() < bytes.len() => {
                self.scratch.withheld = true;
            }
            _ => self.send(bytes),
        }
    }

    /// Begins a message of `length` bytes that is written piece by piece: its bytes are given to
    /// [`push`](Replies::push), in this call or, after [`Flow::Again`](super::Flow::Again), in later
    /// ones. It is complete when it has all of them.
    ///
    /// # Panics
    ///
    /// Where the message before is not complete.
    pub fn begin(&mut self, length: usize) {
        self.scratch.check_complete();
        self.own();
        self.scratch.owed = length;
        match self.wire {
            Wire::Plain => {}
            Wire::Prefixed => {
                let prefix = u32::try_from(length).expect("a reply is shorter than 4 GiB");
                let prefix: [u8; PREFIX] = prefix.to_be_bytes();
                self.scratch.append(&prefix);
            }
            Wire::Datagrams => {
                let start = self.scratch.joined.len();
                self.scratch.messages.push(Some(start..start));
            }
        }
    }

    /// Writes the next bytes of the message that was begun.
    ///
    /// # Panics
    ///
    /// Where that has fewer bytes left.
    pub fn push(&mut self, bytes: &[u8]) {
        let scratch = &mut *self.scratch;
        scratch.owed = scratch
            .owed
            .checked_sub(bytes.len())
            .expect("a reply has no more bytes than it was begun with");
        scratch.append(bytes);
        if let Some(Some(message)) = scratch.messages.last_mut() {
            message.end = scratch.joined.len();
        }
    }

    fn echo_input(&mut self, range: Range<usize>) {
        let scratch = &mut *self.scratch;
        if scratch.is_empty() {
            scratch.echoed = range;
        } else if range.start == scratch.echoed.end && !scratch.echoed.is_empty() {
            scratch.echoed.end = range.end;
        } else {
            self.own();
            self.scratch.append(&self.input[range]);
        }
    }

    /// Copies what was a piece of the input, or the message's frame, to where replies are put
    /// together.
    pub(super) fn own(&mut self) {
        if std::mem::take(&mut self.scratch.echoed_frame)
            && let Origin::Frame(bytes) = self.origin
        {
            self.scratch.append(bytes);
        }
        let echoed = std::mem::take(&mut self.scratch.echoed);
        self.scratch.append(&self.input[echoed]);
    }
}

/// Room for replies, lent to one session after the other.
#[derive(Debug, Default)]
pub struct Scratch {
    /// What a service writes, one message at a time.
    reply: Vec<u8>,
    /// Replies put together.
    pub(super) joined: Vec<u8>,
    /// As long as the replies are one piece of the input, they are only its bounds.
    pub(super) echoed: Range<usize>,
    /// The replies are the frame that is being answered, and nothing else.
    pub(super) echoed_frame: bool,
    /// Of a datagram: each reply, at its place among those put together, or the datagram itself.
    pub(super) messages: Vec<Option<Range<usize>>>,
    /// A reply was longer than the datagram, and must not be.
    pub(super) withheld: bool,
    /// The bytes that the last reply still lacks.
    pub(super) owed: usize,
    /// There was no memory for a reply.
    pub(super) failed: bool,
}

impl Scratch {
    /// So much is kept from one answer to the next.
    const KEPT: usize = 1 << 20;

    /// Forgets the last answer.
    pub(super) fn clear(&mut self) {
        self.trim();
        self.joined.clear();
        self.messages.clear();
        (self.echoed, self.echoed_frame) = (0..0, false);
        (self.owed, self.failed, self.withheld) = (0, false, false);
    }

    /// Gives memory back that only a large reply needed. The answer that stands in it is gone. Each
    /// answer begins with this.
    pub fn trim(&mut self) {
        for buffer in [&mut self.reply, &mut self.joined] {
            if buffer.capacity() > Self::KEPT {
                *buffer = Vec::new();
            }
        }
    }

    /// The bytes of memory that it holds.
    pub fn held(&self) -> usize {
        self.reply.capacity() + self.joined.capacity()
    }

    pub(super) fn check_complete(&self) {
        assert!(self.owed == 0, "a reply lacks {} of the bytes it was begun with", self.owed);
    }

    pub(super) fn append(&mut self, bytes: &[u8]) {
        if self.joined.try_reserve(bytes.len()).is_ok() {
            self.joined.extend_from_slice(bytes);
        } else {
            self.failed = true;
        }
    }

    fn is_empty(&self) -> bool {
        self.joined.is_empty() && self.echoed.is_empty() && !self.echoed_frame
    }
}
