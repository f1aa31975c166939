//! The conversation without the wire: bytes in, bytes out. Nothing here knows a socket, a clock or an
//! event loop.
//!
//! A session is one peer's conversation over a stream. It cuts the incoming bytes into messages
//! ([`Framing`]), passes each to a [`Service`], and puts the [`Replies`] together. A datagram is a
//! conversation of one message.

pub(crate) mod framing;
#[cfg(any(test, fuzzing))]
pub(crate) mod oracle;
#[cfg(test)]
mod properties;
mod replies;
mod service;
mod session;
mod upper;
mod who;

use std::collections::TryReserveError;

pub use framing::{FrameError, Framing, Protocol};
pub use replies::Replies;
pub use service::{Context, Echo, Flow, Message, Service, ServiceFn, service_fn};
pub use upper::Upper;
pub use who::{Name, Who};

// For the server; beyond it, for a bench and a fuzz target.
#[doc(hidden)]
pub use replies::Scratch;
#[doc(hidden)]
pub use session::{Reply, Session, Verdict};
pub(crate) use session::{guarded, reply_to_datagram};

/// Moves a value to the heap, if there is memory for it: `Box::try_new`, which is not stable.
pub(crate) fn try_box<T>(value: T) -> Result<Box<[T; 1]>, TryReserveError> {
    let mut one = Vec::new();
    one.try_reserve_exact(1)?;
    one.push(value);
    Ok(one.try_into().unwrap_or_else(|_| unreachable!("it has one value")))
}

/// Copies bytes, if there is memory for them.
pub(crate) fn try_copy(bytes: &[u8]) -> Result<Vec<u8>, TryReserveError> {
    let mut copy = Vec::new();
    copy.try_reserve_exact(bytes.len())?;
    copy.extend_from_slice(bytes);
    Ok(copy)
}

/// The longest payload of a UDP datagram over IPv4, in bytes: 65,535 of an IP packet (RFC 791), less
/// 20 of its header and 8 of UDP's (RFC 768).
pub const MAX_DATAGRAM: usize = 65_507;

#[cfg(test)]
mod tests {
    use super::oracle::{Conversation, Expected, context};
    use super::*;

    /// All replies to `input`, read in pieces of `step` bytes, and the last verdict.
    fn converse<V: Service>(
        protocol: Protocol,
        service: V,
        input: &[u8],
        step: usize,
    ) -> (Vec<u8>, Verdict) {
        let reads: Vec<&[u8]> = input.chunks(step).collect();
        let Expected { bytes, verdict } = Conversation::new(protocol, service).all(&reads);
        (bytes, verdict)
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
            let mut session = Session::new(framed(framing, 64), Echo);
            let reply = session.receive(input, usize::MAX, &mut scratch, &context());
            assert_eq!(reply.bytes.as_ptr_range(), input[..whole].as_ptr_range(), "{framing:?}");
        }
    }

    #[test]
    fn frames_are_served_whole_however_they_come() {
        let lines = b"one\ntwo\r\n\nlast";
        let frames = b"\0\0\0\x03one\0\0\0\0\0\0\0\x02ab";
        for step in 1..=lines.len() {
            let (all, verdict) = converse(framed(Framing::Lines, 5), Upper::default(), lines, step);
            assert_eq!((&all[..], verdict), (&b"ONE\nTWO\r\n\nLAST"[..], Verdict::Finished));
            let (all, _) =
                converse(framed(Framing::LengthPrefixed, 3), Upper::default(), frames, step);
            assert_eq!(all, b"\0\0\0\x03ONE\0\0\0\0\0\0\0\x02AB");
        }
    }

    fn too_long(announced: Option<u32>) -> FrameError {
        FrameError::TooLong { announced }
    }

    #[test]
    fn a_frame_too_long_or_cut_short_is_an_error_after_the_ones_before_it() {
        for step in 1..=9 {
            let (all, verdict) = converse(framed(Framing::Lines, 4), Echo, b"one\ntwoo\n", step);
            assert_eq!((&all[..], verdict), (&b"one\n"[..], Verdict::Broken(too_long(None))));
            let long = b"\0\0\0\x01a\0\0\0\x02bc";
            let (all, verdict) = converse(framed(Framing::LengthPrefixed, 1), Echo, long, step);
            assert_eq!((&all[..], verdict), (&long[..5], Verdict::Broken(too_long(Some(2)))));
            let cut = b"\0\0\0\x01a\0\0\0\x02b";
            let (all, verdict) = converse(framed(Framing::LengthPrefixed, 9), Echo, cut, step);
            assert_eq!((&all[..], verdict), (&cut[..5], Verdict::Broken(FrameError::Truncated)));
        }
    }

    #[test]
    fn once_serves_one_message() {
        let once = |framing| Protocol { framing, max_frame: 64, once: true };
        let (all, verdict) = converse(once(Framing::Lines), Echo, b"one\ntwo\n", 3);
        assert_eq!((&all[..], verdict), (&b"one\n"[..], Verdict::Close));
        let (all, verdict) = converse(once(Framing::Raw), Upper::default(), "aé".as_bytes(), 2);
        assert_eq!((&all[..], verdict), (&b"A\xc3"[..], Verdict::Close));
    }

    #[test]
    fn a_mixed_service_keeps_the_order() {
        let service = service_fn(|message, replies, _| match message {
            b"shout\n" => {
                replies.send(b"SHOUT\n");
                Flow::Continue
            }
            b"bye\n" => {
                replies.echo();
                Flow::Close
            }
            b"hush\n" => Flow::Continue,
            _ => {
                replies.echo();
                Flow::Continue
            }
        });
        let input = b"a\nb\nshout\nc\nhush\nd\nbye\ne\n";
        for step in 1..=input.len() {
            let (all, verdict) = converse(framed(Framing::Lines, 64), service, input, step);
            assert_eq!((&all[..], verdict), (&b"a\nb\nSHOUT\nc\nd\nbye\n"[..], Verdict::Close));
        }
    }

    /// The replies of a service to one datagram.
    fn replies_to(service: impl Service, datagram: &[u8]) -> Vec<Vec<u8>> {
        let mut scratch = Scratch::default();
        let replies = reply_to_datagram(service, datagram, &mut scratch, &context()).unwrap();
        replies.map(<[u8]>::to_vec).collect()
    }

    #[test]
    fn a_datagram_has_as_many_replies_as_the_service_sends() {
        assert_eq!(replies_to(Upper::default(), b"two\nlines"), [b"TWO\nLINES"]);
        assert_eq!(replies_to(Echo, b""), [b""]);
        assert_eq!(replies_to(Upper::default(), b""), [b""]);
        let silent = service_fn(|_, _, _| Flow::Continue);
        assert!(replies_to(silent, b"anyone?").is_empty());
        let several = service_fn(|message, replies, _| {
            replies.send(b"");
            replies.echo();
            replies.send_with(|reply| reply.extend(message.iter().rev()));
            Flow::Close
        });
        assert_eq!(replies_to(several, b"ab"), [&b""[..], b"ab", b"ba"]);
    }
}
