//! What is sent next, when its reply is whole, and what is printed. Pure: bytes in, bytes out.

use std::collections::VecDeque;

use crate::protocol::framing::{PREFIX, announced};
use crate::protocol::{Framing, Protocol};

/// The longest message, in bytes: 16 MiB. More can be sent as a stream.
pub(super) const MAX_MESSAGE: usize = 16 << 20;

/// What is still missing of the reply that is awaited.
enum Missing {
    Bytes(usize),
    Lines(usize),
    /// The length of a frame, of which these bytes have come.
    Length(Vec<u8>),
}

/// Lines of any length.
const LINES: Protocol = Protocol { framing: Framing::Lines, max_frame: u32::MAX, once: false };

/// One conversation over a byte stream.
#[derive(Default)]
pub(super) struct Dialogue {
    /// How the messages are marked, each of which waits for the reply to the one before; `None` for a
    /// stream, whose bytes go out as they come in.
    framing: Option<Framing>,
    /// Input that is not a whole line yet.
    line: Vec<u8>,
    queue: VecDeque<Vec<u8>>,
    input_ended: bool,
    /// To the server.
    pub(super) outbound: VecDeque<u8>,
    /// To standard output.
    pub(super) printed: VecDeque<u8>,
    missing: Option<Missing>,
    /// Whether the server takes no more, although there is more.
    cut_off: bool,
    /// Bytes that the kernel took.
    pub(super) sent: u64,
    /// Bytes that came back.
    pub(super) received: u64,
}

impl Dialogue {
    /// A conversation that passes its input on as it comes.
    pub(super) fn stream() -> Self {
        Self::default()
    }

    /// A conversation whose messages are the lines of its input.
    pub(super) fn lines(framing: Framing) -> Self {
        Self { framing: Some(framing), ..Self::default() }
    }

    /// A conversation of these messages and no input.
    pub(super) fn messages(framing: Framing, messages: Vec<Vec<u8>>) -> Self {
        let mut dialogue = Self { queue: messages.into(), ..Self::lines(framing) };
        dialogue.end_input();
        dialogue
    }

    /// Whether more input has a use now. One message is read ahead, so that the end of the input is
    /// known when the last one goes out.
    pub(super) fn wants_input(&self) -> bool {
        !self.input_ended && !self.cut_off && self.queue.is_empty() && self.outbound.is_empty()
    }

    /// Takes input. `false` when a line is longer than [`MAX_MESSAGE`].
    #[must_use]
    pub(super) fn input(&mut self, bytes: &[u8]) -> bool {
        if self.framing.is_none() {
            self.outbound.extend(bytes);
            return true;
        }
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.line.extend_from_slice(piece);
            if self.line.ends_with(b"\n") {
                self.line.pop();
                self.queue.push_back(std::mem::take(&mut self.line));
            }
        }
        self.next_message();
        self.line.len() <= MAX_MESSAGE
    }

    /// Says that there is no more input; what stands after the last newline is a message, too.
    pub(super) fn end_input(&mut self) {
        self.input_ended = true;
        if !self.line.is_empty() {
            self.queue.push_back(std::mem::take(&mut self.line));
        }
        self.next_message();
    }

    /// Puts the next message on its way, unless the reply to the one before is still awaited.
    fn next_message(&mut self) {
        let Some(framing) = self.framing else { return };
        while self.missing.is_none() {
            let Some(message) = self.queue.pop_front() else { return };
            let frame = framing.frame(&message);
            self.missing = Some(match framing {
                Framing::Raw => Missing::Bytes(frame.len()),
                Framing::Lines => Missing::Lines(frame.iter().filter(|&&b| b == b'\n').count()),
                Framing::LengthPrefixed => Missing::Length(Vec::new()),
            });
            self.outbound.extend(frame);
            self.end_whole_reply();
        }
    }

    /// Counts bytes of `outbound` as sent.
    pub(super) fn sent(&mut self, count: usize) {
        self.outbound.drain(..count);
        self.sent += count as u64;
    }

    /// Says that the server takes no more: neither what is on its way nor any further input.
    pub(super) fn cut_off(&mut self) {
        self.cut_off = true;
        self.outbound.clear();
        self.queue.clear();
    }

    /// Whether all of the input has been sent.
    fn all_sent(&self) -> bool {
        self.input_ended && !self.cut_off && self.queue.is_empty() && self.outbound.is_empty()
    }

    /// Whether nothing in the bytes marks where the last reply ends, only the end of the stream.
    fn ends_with_the_stream(&self) -> bool {
        matches!(self.framing, None | Some(Framing::Raw))
    }

    /// Whether everything is sent and the server has to be told so. A message that a newline or a
    /// length marks needs no half-close, and gets none.
    pub(super) fn may_half_close(&self) -> bool {
        self.all_sent() && self.ends_with_the_stream()
    }

    /// Whether everything is sent and every reply has come, as their marks tell.
    pub(super) fn all_answered(&self) -> bool {
        self.all_sent() && !self.ends_with_the_stream() && self.missing.is_none()
    }

    /// Whether all came back that had to: as many bytes as were sent, where nothing else tells.
    pub(super) fn complete(&self) -> bool {
        self.all_answered() || (self.may_half_close() && self.sent == self.received)
    }

    /// Whether it is the server's turn: it has to take bytes, to answer, or to close.
    pub(super) fn server_owes(&self) -> bool {
        self.cut_off || !self.outbound.is_empty() || self.missing.is_some() || self.may_half_close()
    }

    /// Takes bytes from the server.
    pub(super) fn receive(&mut self, bytes: &[u8]) {
        self.received += bytes.len() as u64;
        let mut rest = bytes;
        while !rest.is_empty()
            && let Some(missing) = self.missing.as_mut().filter(|missing| !missing.nothing())
        {
            rest = missing.take(rest, &mut self.printed);
            self.end_whole_reply();
        }
        // A stream, or more than was asked for: shown as it is, and told by the count.
        self.printed.extend(rest);
        self.next_message();
    }

    /// Says that the server closed the stream. That ends the line on which a raw reply is printed;
    /// what is missing stays missing.
    pub(super) fn end_receive(&mut self) {
        if self.missing.is_some() && self.framing == Some(Framing::Raw) {
            self.printed.push_back(b'\n');
        }
    }

    /// Ends the reply if nothing of it is missing, and with it the line that it is printed on.
    fn end_whole_reply(&mut self) {
        // A service may make a raw reply longer: the last one lasts as long as the stream does.
        if self.missing.as_ref().is_some_and(Missing::nothing) && !self.may_half_close() {
            self.missing = None;
            if self.framing != Some(Framing::Lines) {
                self.printed.push_back(b'\n');
            }
        }
    }
}

impl Missing {
    fn nothing(&self) -> bool {
        matches!(self, Self::Bytes(0) | Self::Lines(0))
    }

    /// Prints what belongs to the reply at the front of these bytes, and returns the rest of them.
    fn take<'a>(&mut self, bytes: &'a [u8], printed: &mut VecDeque<u8>) -> &'a [u8] {
        let count = match self {
            Self::Bytes(missing) => {
                let count = bytes.len().min(*missing);
                *missing -= count;
                count
            }
            Self::Lines(missing) => {
                let end = LINES.frame_end(&[], bytes).unwrap_or(None);
                *missing -= usize::from(end.is_some());
                end.unwrap_or(bytes.len())
            }
            Self::Length(begun) => {
                let (more, rest) = bytes.split_at(bytes.len().min(PREFIX - begun.len()));
                begun.extend_from_slice(more);
                if let Some(length) = announced(begun, &[]) {
                    *self = Self::Bytes(length as usize);
                }
                return rest;
            }
        };
        let (reply, rest) = bytes.split_at(count);
        printed.extend(reply);
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FRAMINGS: [Framing; 3] = [Framing::Raw, Framing::Lines, Framing::LengthPrefixed];

    /// Sends all that the dialogue has to send.
    fn sent(dialogue: &mut Dialogue) -> Vec<u8> {
        let bytes: Vec<u8> = dialogue.outbound.iter().copied().collect();
        dialogue.sent(bytes.len());
        bytes
    }

    fn printed(dialogue: &mut Dialogue) -> Vec<u8> {
        dialogue.printed.drain(..).collect()
    }

    fn messages(framing: Framing, messages: &[&[u8]]) -> Dialogue {
        Dialogue::messages(framing, messages.iter().map(|message| message.to_vec()).collect())
    }

    #[test]
    fn a_message_waits_for_the_reply_to_the_one_before() {
        let mut dialogue = messages(Framing::Lines, &[b"one", b"two"]);
        assert_eq!(sent(&mut dialogue), b"one\n");
        dialogue.receive(b"on");
        assert_eq!(sent(&mut dialogue), b"");
        dialogue.receive(b"e\n");
        assert_eq!(sent(&mut dialogue), b"two\n");
        assert!(!dialogue.all_answered() && dialogue.server_owes());
        dialogue.receive(b"TWO, AND LONGER\n");
        assert!(dialogue.all_answered() && dialogue.complete() && !dialogue.server_owes());
        assert_eq!(printed(&mut dialogue), b"one\nTWO, AND LONGER\n");
        assert_eq!((dialogue.sent, dialogue.received), (8, 20));
    }

    #[test]
    fn a_message_of_several_lines_awaits_as_many() {
        let mut dialogue = messages(Framing::Lines, &[b"a\nb"]);
        assert_eq!(sent(&mut dialogue), b"a\nb\n");
        dialogue.receive(b"a\n");
        assert!(!dialogue.all_answered());
        dialogue.receive(b"b\n");
        assert!(dialogue.all_answered());
    }

    #[test]
    fn a_length_goes_before_each_message_and_is_not_printed() {
        let mut dialogue = messages(Framing::LengthPrefixed, &[b"abc", b""]);
        assert_eq!(sent(&mut dialogue), b"\0\0\0\x03abc");
        dialogue.receive(b"\0\0\0\x01x");
        assert_eq!(sent(&mut dialogue), b"\0\0\0\0");
        dialogue.receive(b"\0\0\0\0");
        assert!(dialogue.all_answered());
        assert_eq!(printed(&mut dialogue), b"x\n\n");
    }

    #[test]
    fn the_last_raw_reply_ends_with_the_stream() {
        let mut dialogue = messages(Framing::Raw, &[b"ab", b"cd"]);
        assert_eq!(sent(&mut dialogue), b"ab");
        assert!(!dialogue.may_half_close());
        dialogue.receive(b"ab");
        assert_eq!(sent(&mut dialogue), b"cd");
        assert!(dialogue.may_half_close());
        dialogue.receive(b"CD-");
        dialogue.receive(b"-");
        assert!(!dialogue.all_answered() && !dialogue.complete());
        dialogue.end_receive();
        assert_eq!(printed(&mut dialogue), b"ab\nCD--\n");
        assert_eq!((dialogue.sent, dialogue.received), (4, 6));
    }

    #[test]
    fn a_shorter_raw_reply_is_not_complete_and_a_whole_one_is() {
        for (reply, complete) in [(&b"abc"[..], true), (b"ab", false), (b"", false)] {
            let mut dialogue = messages(Framing::Raw, &[b"abc"]);
            sent(&mut dialogue);
            dialogue.receive(reply);
            dialogue.end_receive();
            assert_eq!(dialogue.complete(), complete);
            assert_eq!(printed(&mut dialogue), [reply, b"\n"].concat());
        }
    }

    #[test]
    fn a_close_pays_no_debt() {
        for framing in FRAMINGS {
            for part in 0..2 {
                let mut dialogue = messages(framing, &[b"ab", b"cd"]);
                let first = sent(&mut dialogue);
                dialogue.receive(&first);
                let second = sent(&mut dialogue);
                dialogue.receive(&second[..part]);
                dialogue.end_receive();
                assert!(!dialogue.complete() && !dialogue.all_answered(), "{framing:?}, {part}");
            }
        }
    }

    #[test]
    fn what_was_cut_off_is_never_complete() {
        let mut dialogue = Dialogue::stream();
        assert!(dialogue.input(b"abcdef"));
        dialogue.end_input();
        dialogue.sent(3);
        dialogue.receive(b"abc");
        dialogue.cut_off();
        assert!(!dialogue.complete() && !dialogue.may_half_close() && dialogue.server_owes());
    }

    #[test]
    fn nobody_owes_anything_while_input_is_awaited() {
        let mut stream = Dialogue::stream();
        assert!(stream.input(b"more than"));
        sent(&mut stream);
        stream.receive(b"more");
        assert!(stream.wants_input() && !stream.server_owes());
        stream.end_input();
        assert!(stream.server_owes() && stream.may_half_close());
    }

    #[test]
    fn no_line_is_endless() {
        let mut dialogue = Dialogue::lines(Framing::Lines);
        assert!(dialogue.input(&vec![b'x'; MAX_MESSAGE]));
        assert!(!dialogue.input(b"x"));
    }

    /// Talks to a perfect echo, with input and replies in pieces of these lengths.
    fn converse(dialogue: &mut Dialogue, input: &[u8], pieces: &[usize]) -> Vec<u8> {
        let mut input = input;
        let mut lengths = pieces.iter().copied().cycle();
        let mut length = || lengths.next().expect("cycles").max(1);
        let mut wire = VecDeque::new();
        let mut output = Vec::new();
        loop {
            if dialogue.wants_input() {
                let (piece, rest) = input.split_at(length().min(input.len()));
                input = rest;
                if piece.is_empty() { dialogue.end_input() } else { assert!(dialogue.input(piece)) }
            }
            let taken = length().min(dialogue.outbound.len());
            wire.extend(dialogue.outbound.range(..taken));
            dialogue.sent(taken);
            let back: Vec<u8> = wire.drain(..length().min(wire.len())).collect();
            dialogue.receive(&back);
            output.extend(printed(dialogue));
            if dialogue.all_answered() {
                return output;
            }
            if dialogue.may_half_close() && wire.is_empty() {
                dialogue.end_receive();
                output.extend(printed(dialogue));
                return output;
            }
        }
    }

    proptest! {
        #[test]
        fn lines_come_back_as_lines_however_they_are_split(
            lines in prop::collection::vec("[a-z\r\0]{0,9}", 0..9),
            pieces in prop::collection::vec(1..12_usize, 1..5),
            unfinished: bool,
        ) {
            let mut text = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
            if unfinished && lines.last().is_some_and(|line| !line.is_empty()) {
                text.pop();
            }
            let expected = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
            for framing in FRAMINGS {
                let mut dialogue = Dialogue::lines(framing);
                let output = converse(&mut dialogue, text.as_bytes(), &pieces);
                prop_assert!(dialogue.complete());
                prop_assert_eq!(dialogue.sent, dialogue.received);
                prop_assert_eq!(String::from_utf8(output).unwrap(), expected.clone());
            }
        }

        #[test]
        fn messages_of_any_bytes_come_back_on_lines_of_their_own(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9), 0..9),
            pieces in prop::collection::vec(1..12_usize, 1..5),
        ) {
            let expected: Vec<u8> =
                messages.iter().flat_map(|message| [message, &b"\n"[..]].concat()).collect();
            for framing in FRAMINGS {
                let mut dialogue = Dialogue::messages(framing, messages.clone());
                prop_assert_eq!(&converse(&mut dialogue, b"", &pieces), &expected);
                prop_assert!(dialogue.complete());
            }
        }

        #[test]
        fn a_stream_comes_back_as_it_was(
            bytes in prop::collection::vec(any::<u8>(), 0..99),
            pieces in prop::collection::vec(1..12_usize, 1..5),
        ) {
            let mut dialogue = Dialogue::stream();
            prop_assert_eq!(&converse(&mut dialogue, &bytes, &pieces), &bytes);
            prop_assert!(dialogue.complete());
        }
    }
}
