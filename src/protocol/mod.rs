//! The conversation, without the wire: bytes in, bytes out. Nothing here knows a socket, a clock or
//! an event loop.
//!
//! A [`Session`] is one peer's conversation. It cuts the incoming bytes into messages ([`Framing`]),
//! shows each to a [`Service`], and puts the replies together.

mod framing;
#[cfg(any(test, fuzzing))]
pub(crate) mod oracle;
#[cfg(test)]
mod properties;
mod service;

pub use framing::{FrameError, Framing, Protocol};
pub use service::{Echo, Message, Reply, Service, Upper};

use std::ops::Range;

use service::Source;

/// The longest payload of a UDP datagram over IPv4, in bytes: 65,535 of an IP packet (RFC 791), less
/// 20 of its header and 8 of UDP's (RFC 768).
pub const MAX_DATAGRAM: usize = 65_507;

/// One peer's conversation: framing and service, and what they remember between two reads.
///
/// Nothing is on the heap until a frame is split over two reads.
#[derive(Debug, Clone)]
pub struct Session<V> {
    service: V,
    protocol: Protocol,
    /// The beginning of a frame whose end has not come yet.
    #[allow(clippy::box_collection, reason = "an idle connection pays for one pointer, not three")]
    partial: Option<Box<Vec<u8>>>,
}

/// What a session says to some input.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer<'a> {
    /// The bytes to send: a piece of the input wherever nothing had to be copied.
    pub bytes: &'a [u8],
    /// What comes after they are sent.
    pub verdict: Verdict,
}

/// Whether a conversation goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// More input is welcome.
    Continue,
    /// The service, or [`Protocol::once`], asked to close.
    Close,
    /// The input broke the framing: what follows cannot be understood.
    Broken(FrameError),
}

/// Room for replies, lent to one session after the other.
#[derive(Debug, Default)]
pub struct Scratch {
    /// What the service writes, one message at a time.
    reply: Vec<u8>,
    /// Replies put together.
    joined: Vec<u8>,
}

impl<V: Service> Session<V> {
    /// Starts a conversation.
    pub fn new(protocol: Protocol, service: V) -> Self {
        Session { service, protocol, partial: None }
    }

    /// Answers the next bytes of a stream, however it was cut into reads.
    ///
    /// After a verdict other than [`Verdict::Continue`] the conversation is over.
    pub fn receive<'a>(&mut self, input: &'a [u8], scratch: &'a mut Scratch) -> Answer<'a> {
        let mut replies = Replies::new(input, self.prefixed(), scratch);
        let verdict = match self.protocol.framing {
            Framing::Raw => self.receive_chunk(input, &mut replies),
            Framing::Lines | Framing::LengthPrefixed => self.receive_frames(input, &mut replies),
        };
        Answer { bytes: replies.finish(), verdict }
    }

    /// Ends the stream, since the peer sends no more: answers what was kept back for its end.
    pub fn finish<'a>(&mut self, scratch: &'a mut Scratch) -> Answer<'a> {
        let mut replies = Replies::new(&[], self.prefixed(), scratch);
        let verdict = match (self.protocol.framing, self.partial.take()) {
            (Framing::Raw, _) => self.serve(Message::End, Origin::Copy(&[]), &mut replies),
            (_, None) => Verdict::Continue,
            (Framing::Lines, Some(line)) => self.serve_frame(Origin::Copy(&line), &mut replies),
            (Framing::LengthPrefixed, Some(_)) => Verdict::Broken(FrameError::Truncated),
        };
        Answer { bytes: replies.finish(), verdict }
    }

    /// Answers one datagram: a whole message in any framing.
    pub fn datagram<'a>(&mut self, input: &'a [u8], scratch: &'a mut Scratch) -> &'a [u8] {
        let mut replies = Replies::new(input, false, scratch);
        self.serve(Message::Whole(input), Origin::Input(0..input.len()), &mut replies);
        replies.finish()
    }

    /// The bytes of an unfinished frame, held on the heap: fewer than a whole frame may have.
    pub fn held(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| partial.len())
    }

    fn prefixed(&self) -> bool {
        self.protocol.framing == Framing::LengthPrefixed
    }

    fn receive_chunk(&mut self, input: &[u8], replies: &mut Replies<'_>) -> Verdict {
        let whole = Origin::Input(0..input.len());
        match self.serve(Message::Chunk(input), whole, replies) {
            Verdict::Continue if self.protocol.once => {
                self.serve(Message::End, Origin::Copy(&[]), replies);
                Verdict::Close
            }
            verdict => verdict,
        }
    }

    fn receive_frames(&mut self, input: &[u8], replies: &mut Replies<'_>) -> Verdict {
        let mut at = 0;
        loop {
            let rest = &input[at..];
            let held = self.partial.as_deref().map_or(&[][..], Vec::as_slice);
            let length = match self.protocol.frame_end(held, rest) {
                Ok(Some(length)) => length,
                Ok(None) if rest.is_empty() => return Verdict::Continue,
                Ok(None) => {
                    self.partial.get_or_insert_default().extend_from_slice(rest);
                    return Verdict::Continue;
                }
                Err(error) => return Verdict::Broken(error),
            };
            let verdict = match self.partial.take() {
                Some(mut frame) => {
                    frame.extend_from_slice(&rest[..length]);
                    self.serve_frame(Origin::Copy(&frame), replies)
                }
                None => self.serve_frame(Origin::Input(at..at + length), replies),
            };
            at += length;
            if verdict != Verdict::Continue {
                return verdict;
            }
        }
    }

    fn serve_frame(&mut self, frame: Origin<'_>, replies: &mut Replies<'_>) -> Verdict {
        let bytes = match &frame {
            Origin::Input(range) => &replies.input[range.clone()],
            Origin::Copy(bytes) => bytes,
        };
        let message = Message::Whole(self.protocol.payload(bytes));
        match self.serve(message, frame, replies) {
            Verdict::Continue if self.protocol.once => Verdict::Close,
            verdict => verdict,
        }
    }

    fn serve(
        &mut self,
        message: Message<'_>,
        frame: Origin<'_>,
        replies: &mut Replies<'_>,
    ) -> Verdict {
        replies.scratch.reply.clear();
        let reply = self.service.serve(message, &mut replies.scratch.reply);
        match reply.source {
            Source::Message => replies.repeat(frame),
            Source::Written => replies.take_written(),
        }
        if reply.close { Verdict::Close } else { Verdict::Continue }
    }
}

/// Where a frame's bytes are.
enum Origin<'a> {
    /// This piece of the input.
    Input(Range<usize>),
    /// Elsewhere, and not for long.
    Copy(&'a [u8]),
}

/// The replies to one input, in order. As long as they are one piece of the input, they are only
/// its bounds; the first that is not makes them bytes of their own.
struct Replies<'a> {
    input: &'a [u8],
    echoed: Range<usize>,
    /// Whether a reply that the service wrote needs its length in front.
    prefixed: bool,
    scratch: &'a mut Scratch,
}

impl<'a> Replies<'a> {
    fn new(input: &'a [u8], prefixed: bool, scratch: &'a mut Scratch) -> Self {
        scratch.joined.clear();
        Replies { input, echoed: 0..0, prefixed, scratch }
    }

    /// Answers with the frame itself.
    fn repeat(&mut self, frame: Origin<'_>) {
        match frame {
            Origin::Input(range) if self.scratch.joined.is_empty() && self.echoed.is_empty() => {
                self.echoed = range;
            }
            Origin::Input(range) if range.start == self.echoed.end && !self.echoed.is_empty() => {
                self.echoed.end = range.end;
            }
            Origin::Input(range) => {
                self.own();
                self.scratch.joined.extend_from_slice(&self.input[range]);
            }
            Origin::Copy(bytes) => {
                self.own();
                self.scratch.joined.extend_from_slice(bytes);
            }
        }
    }

    /// Answers with what the service wrote.
    fn take_written(&mut self) {
        self.own();
        let Scratch { reply, joined } = &mut *self.scratch;
        if self.prefixed {
            let length = u32::try_from(reply.len()).expect("a reply is shorter than 4 GiB");
            joined.extend_from_slice(&length.to_be_bytes());
        }
        if joined.is_empty() {
            std::mem::swap(reply, joined);
        } else {
            joined.extend_from_slice(reply);
        }
    }

    /// Makes what was a piece of the input bytes of their own.
    fn own(&mut self) {
        let echoed = std::mem::take(&mut self.echoed);
        self.scratch.joined.extend_from_slice(&self.input[echoed]);
    }

    fn finish(self) -> &'a [u8] {
        if self.echoed.is_empty() { &self.scratch.joined } else { &self.input[self.echoed] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All answers to `input`, read in pieces of `step` bytes, and the last verdict.
    fn converse<V: Service>(
        protocol: Protocol,
        service: V,
        input: &[u8],
        step: usize,
    ) -> (Vec<u8>, Verdict) {
        let (mut session, mut scratch, mut all) =
            (Session::new(protocol, service), Scratch::default(), Vec::new());
        for piece in input.chunks(step) {
            let answer = session.receive(piece, &mut scratch);
            all.extend_from_slice(answer.bytes);
            if answer.verdict != Verdict::Continue {
                return (all, answer.verdict);
            }
        }
        let answer = session.finish(&mut scratch);
        all.extend_from_slice(answer.bytes);
        (all, answer.verdict)
    }

    fn framed(framing: Framing, max_frame: u32) -> Protocol {
        Protocol { framing, max_frame, once: false }
    }

    #[test]
    fn an_echo_is_a_piece_of_the_input() {
        let cases: [(Framing, &[u8], usize); 3] = [
            (Framing::Raw, b"anything", 8),
            (Framing::Lines, b"one\ntwo\r\nthr", 9),
            (Framing::LengthPrefixed, b"\0\0\0\x01a\0\0\0\0\0\0\0\x09b", 9),
        ];
        for (framing, input, whole) in cases {
            let mut scratch = Scratch::default();
            let answer = Session::new(framed(framing, 64), Echo).receive(input, &mut scratch).bytes;
            assert_eq!(answer.as_ptr_range(), input[..whole].as_ptr_range(), "{framing:?}");
        }
    }

    #[test]
    fn frames_are_answered_whole_however_they_come() {
        let lines = b"one\ntwo\r\n\nlast";
        let frames = b"\0\0\0\x03one\0\0\0\0\0\0\0\x02ab";
        for step in 1..=lines.len() {
            let (all, verdict) = converse(framed(Framing::Lines, 5), Upper::default(), lines, step);
            assert_eq!((&all[..], verdict), (&b"ONE\nTWO\r\n\nLAST"[..], Verdict::Continue));
            let (all, _) =
                converse(framed(Framing::LengthPrefixed, 3), Upper::default(), frames, step);
            assert_eq!(all, b"\0\0\0\x03ONE\0\0\0\0\0\0\0\x02AB");
        }
    }

    #[test]
    fn a_frame_too_long_or_cut_short_is_an_error_after_the_ones_before_it() {
        for step in 1..=9 {
            let (all, verdict) = converse(framed(Framing::Lines, 4), Echo, b"one\ntwoo\n", step);
            assert_eq!((&all[..], verdict), (&b"one\n"[..], Verdict::Broken(FrameError::TooLong)));
            let long = b"\0\0\0\x01a\0\0\0\x02bc";
            let (all, verdict) = converse(framed(Framing::LengthPrefixed, 1), Echo, long, step);
            assert_eq!((&all[..], verdict), (&long[..5], Verdict::Broken(FrameError::TooLong)));
            let cut = b"\0\0\0\x01a\0\0\0\x02b";
            let (all, verdict) = converse(framed(Framing::LengthPrefixed, 9), Echo, cut, step);
            assert_eq!((&all[..], verdict), (&cut[..5], Verdict::Broken(FrameError::Truncated)));
        }
    }

    #[test]
    fn once_answers_one_message() {
        let once = |framing| Protocol { framing, max_frame: 64, once: true };
        let (all, verdict) = converse(once(Framing::Lines), Echo, b"one\ntwo\n", 3);
        assert_eq!((&all[..], verdict), (&b"one\n"[..], Verdict::Close));
        let (all, verdict) = converse(once(Framing::Raw), Upper::default(), "aé".as_bytes(), 2);
        assert_eq!((&all[..], verdict), (&b"A\xc3"[..], Verdict::Close));
    }

    #[test]
    fn a_mixed_service_keeps_the_order() {
        let service = |message: &[u8], reply: &mut Vec<u8>| match message {
            b"shout\n" => {
                reply.extend_from_slice(b"SHOUT\n");
                Reply::written()
            }
            b"bye\n" => Reply::message().then_close(),
            b"hush\n" => Reply::written(),
            _ => Reply::message(),
        };
        let input = b"a\nb\nshout\nc\nhush\nd\nbye\ne\n";
        for step in 1..=input.len() {
            let (all, verdict) = converse(framed(Framing::Lines, 64), service, input, step);
            assert_eq!((&all[..], verdict), (&b"a\nb\nSHOUT\nc\nd\nbye\n"[..], Verdict::Close));
        }
    }

    #[test]
    fn a_datagram_is_a_message_in_any_framing() {
        for framing in [Framing::Raw, Framing::Lines, Framing::LengthPrefixed] {
            let mut scratch = Scratch::default();
            let mut session = Session::new(framed(framing, 1), Upper::default());
            assert_eq!(session.datagram(b"two\nlines", &mut scratch), b"TWO\nLINES");
            assert_eq!(session.datagram(b"", &mut scratch), b"");
        }
    }
}
