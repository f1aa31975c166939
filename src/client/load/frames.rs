//! Messages in frames, as a TCP connection of the load sends and gets them.

use std::io;

use super::config::Config;
use crate::client::pattern::{self, Alphabet};
use crate::protocol::{FrameError, Framing, Protocol};
use crate::units::count;

/// Frames that are made at once, in bytes, unless one is longer.
const BATCH: usize = 64 << 10;

/// The frames of a connection. All messages have the same size; what comes back in a frame of another
/// length cannot be told apart any further.
#[derive(Debug)]
pub(super) struct Frames {
    protocol: Protocol,
    size: usize,
    /// Which message comes next to be framed, as its position in the connection's pattern.
    pub(super) framed: u64,
    /// Up to which position all is sent.
    sent: u64,
    /// What is framed and not sent yet.
    outbound: Vec<u8>,
    /// The beginning of a frame whose end has not come.
    inbound: Vec<u8>,
}

impl Frames {
    /// `None` where nothing marks the end of a message.
    pub(super) fn new(config: &Config) -> Option<Self> {
        let (framing, size) = (config.framing, config.size);
        let line_feed = usize::from(framing == Framing::Lines);
        let max_frame = (size + line_feed) as u32;
        let protocol = Protocol { framing, max_frame, once: false };
        let (outbound, inbound) = (Vec::new(), Vec::new());
        let frames = Self { protocol, size, framed: 0, sent: 0, outbound, inbound };
        (framing != Framing::Raw).then_some(frames)
    }

    /// What is to be sent next of the messages of the connection `number` up to the position `end`. They are
    /// framed when all before them is sent.
    pub(super) fn next(&mut self, alphabet: Alphabet, number: u32, end: u64) -> &[u8] {
        if self.outbound.is_empty() {
            self.fill(alphabet, number, end);
        }
        &self.outbound
    }

    /// Takes in that `count` bytes of it were sent. Up to which position all messages are.
    pub(super) fn sent(&mut self, count: usize) -> u64 {
        self.outbound.drain(..count);
        if self.outbound.is_empty() {
            self.sent = self.framed;
        }
        self.sent
    }

    fn fill(&mut self, alphabet: Alphabet, number: u32, end: u64) {
        let mut message = Vec::with_capacity(self.size);
        while self.framed < end && self.outbound.len() < BATCH {
            message.clear();
            while message.len() < self.size {
                let length = pattern::WINDOW.min(self.size - message.len());
                let at = self.framed + message.len() as u64;
                message.extend_from_slice(alphabet.slice(number, at, length));
            }
            self.outbound.extend_from_slice(&self.protocol.framing.frame(&message));
            self.framed += self.size as u64;
        }
    }

    /// Takes in what came, and passes the messages on.
    ///
    /// # Errors
    ///
    /// `InvalidData` when a frame has another length than all that were sent.
    pub(super) fn accept(
        &mut self,
        mut bytes: &[u8],
        mut take: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        while let Some(end) = self.protocol.frame_end(&self.inbound, bytes).map_err(too_long)? {
            let (frame, rest) = bytes.split_at(end);
            bytes = rest;
            if self.inbound.is_empty() {
                take(self.message(frame)?);
            } else {
                self.inbound.extend_from_slice(frame);
                take(self.message(&self.inbound)?);
                self.inbound.clear();
            }
        }
        self.inbound.extend_from_slice(bytes);
        Ok(())
    }

    fn message<'a>(&self, frame: &'a [u8]) -> io::Result<&'a [u8]> {
        let message = self.protocol.payload(frame);
        let line_feed = usize::from(self.protocol.framing == Framing::Lines);
        let message = &message[..message.len() - line_feed];
        match message.len() == self.size {
            true => Ok(message),
            false => Err(wrong(format!("a message of {}", count(message.len(), "byte")))),
        }
    }
}

fn too_long(error: FrameError) -> io::Error {
    wrong(match error {
        FrameError::TooLong { announced: Some(length) } => {
            format!("a message of {}", count(length, "byte"))
        }
        _ => "a longer line".to_owned(),
    })
}

fn wrong(what: String) -> io::Error {
    let sentence = format!("{what} came, which is not what was sent");
    io::Error::new(io::ErrorKind::InvalidData, sentence)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::Transport;

    fn frames(framing: Framing, size: usize) -> Frames {
        let mut config = Config::new(Transport::Tcp, "127.0.0.1:7".parse().unwrap());
        (config.framing, config.size) = (framing, size);
        Frames::new(&config).unwrap()
    }

    proptest! {
        #[test]
        fn messages_come_out_whole_however_they_come_in(
            count in 0..9_usize,
            size in 1..300_usize,
            pieces in prop::collection::vec(1..400_usize, 1..6),
            lines: bool,
        ) {
            let framing = if lines { Framing::Lines } else { Framing::LengthPrefixed };
            let mut frames = frames(framing, size);
            let wire = frames.next(Alphabet::Letters, 3, (count * size) as u64).to_vec();
            prop_assert_eq!(frames.sent(wire.len()), (count * size) as u64);
            let (mut came, mut at) = (Vec::new(), 0);
            for length in pieces.iter().copied().cycle() {
                if at == wire.len() {
                    break;
                }
                let piece = &wire[at..wire.len().min(at + length)];
                at += piece.len();
                frames.accept(piece, |message| came.extend_from_slice(message)).unwrap();
            }
            prop_assert_eq!(came, Alphabet::Letters.slice(3, 0, count * size));
            prop_assert!(frames.inbound.is_empty());
        }
    }

    #[test]
    fn another_length_is_no_message() {
        for (framing, wire) in [
            (Framing::Lines, &b"abc\n"[..]),
            (Framing::Lines, b"abcdefgh"),
            (Framing::LengthPrefixed, b"\0\0\0\x03abc"),
            (Framing::LengthPrefixed, b"\0\0\0\x05"),
        ] {
            let error = frames(framing, 4).accept(wire, |_| {}).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }
}
