//! What holds for every framing and service, for any input in any pieces.

use proptest::prelude::*;
use proptest::sample::Index;

use super::oracle::{Conversation, Expected, context};
use super::*;

/// Any framing, frames of a few bytes.
fn protocols() -> impl Strategy<Value = Protocol> {
    let framings =
        prop_oneof![Just(Framing::Raw), Just(Framing::Lines), Just(Framing::LengthPrefixed)];
    (framings, 1_u32..24, any::<bool>())
        .prop_map(|(framing, max_frame, once)| Protocol { framing, max_frame, once })
        // There the reply depends on how the network cuts.
        .prop_filter("serves one chunk", |p| !(p.once && p.framing == Framing::Raw))
}

/// Lines, frames, text and what is none of them, one after the other.
fn inputs() -> impl Strategy<Value = Vec<u8>> {
    let framed = |bytes: Vec<u8>| [&(bytes.len() as u32).to_be_bytes()[..], &bytes].concat();
    let piece = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..26).prop_map(framed),
        4 => "[a-zß€😀]{0,8}\n".prop_map(String::into_bytes),
        2 => ".{0,8}".prop_map(String::into_bytes),
        1 => prop::collection::vec(any::<u8>(), 0..8),
    ];
    prop::collection::vec(piece, 0..10).prop_map(|pieces| pieces.concat())
}

/// `input` in pieces that are cut at `cuts`; some of them may be empty.
fn cut_at<'a>(input: &'a [u8], cuts: &[Index]) -> Vec<&'a [u8]> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(input.len() + 1)).collect();
    cuts.sort_unstable();
    cuts.push(input.len());
    let mut start = 0;
    cuts.into_iter().map(|end| &input[std::mem::replace(&mut start, end)..end]).collect()
}

/// All replies to these reads and a FIN, and how it ends. Memory is bounded all the way.
fn converse<V: Service>(protocol: Protocol, service: V, reads: &[&[u8]]) -> Expected {
    let most = match protocol.framing {
        Framing::Raw => 0,
        // The beginning of a frame, and what a session notes about it.
        Framing::Lines | Framing::LengthPrefixed => 100 + 4 + protocol.max_frame as usize,
    };
    let mut conversation = Conversation::new(protocol, service);
    for read in reads {
        let verdict = conversation.read(read);
        let held = conversation.session.held();
        assert!(held <= most, "{held} bytes held");
        if verdict != Verdict::Continue {
            return Expected { bytes: conversation.bytes, verdict };
        }
    }
    let verdict = conversation.end();
    Expected { bytes: conversation.bytes, verdict }
}

/// The same conversation whole, byte by byte, and cut at `cuts`.
fn however_cut<V: Service + Clone>(
    protocol: Protocol,
    service: V,
    input: &[u8],
    cuts: &[Index],
) -> Result<Expected, TestCaseError> {
    let whole = converse(protocol, service.clone(), &[input]);
    let bytes: Vec<&[u8]> = input.chunks(1).collect();
    prop_assert_eq!(&converse(protocol, service.clone(), &bytes), &whole, "byte by byte");
    let pieces = cut_at(input, cuts);
    prop_assert_eq!(&converse(protocol, service, &pieces), &whole, "cut into {:?}", pieces);
    Ok(whole)
}

/// Replies to every message in another way, and closes at last.
fn moody() -> impl Service + Clone {
    let mut count = 0;
    service_fn(move |message: &[u8], replies: &mut Replies<'_>, _: &Context<'_>| {
        count += 1;
        match count % 5 {
            0 => replies.send_with(|reply| reply.extend(message.iter().rev())),
            1 => replies.echo(),
            2 => {}
            3 => replies.send(b""),
            _ => {
                replies.echo();
                replies.send(message);
            }
        }
        if count == 11 { Flow::Close } else { Flow::Continue }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// The reply is exactly the messages, and a broken frame ends it with its error.
    #[test]
    fn echo_replies_with_exactly_the_messages(
        protocol in protocols(),
        input in inputs(),
        cuts in prop::collection::vec(any::<Index>(), 0..8),
    ) {
        let reply = however_cut(protocol, Echo, &input, &cuts)?;
        prop_assert_eq!(reply, Expected::new(protocol, false, &input));
    }

    /// The same in upper case; what is not text comes back as it was.
    #[test]
    fn upper_replies_with_exactly_the_messages(
        protocol in protocols(),
        input in inputs(),
        cuts in prop::collection::vec(any::<Index>(), 0..8),
    ) {
        let reply = however_cut(protocol, Upper::default(), &input, &cuts)?;
        prop_assert_eq!(reply, Expected::new(protocol, true, &input));
    }

    #[test]
    fn upper_is_what_the_standard_library_has(
        text in any::<String>(),
        cuts in prop::collection::vec(any::<Index>(), 0..8),
    ) {
        let reply = however_cut(Protocol::default(), Upper::default(), text.as_bytes(), &cuts)?;
        prop_assert_eq!(reply.bytes, text.to_uppercase().into_bytes());
    }

    #[test]
    fn what_no_character_begins_with_passes_unchanged(
        input in prop::collection::vec(0x80_u8..0xc0, 0..40),
        cuts in prop::collection::vec(any::<Index>(), 0..8),
    ) {
        let reply = however_cut(Protocol::default(), Upper::default(), &input, &cuts)?;
        prop_assert_eq!(reply.bytes, input);
    }

    /// Replies of every kind, mixed, in their order.
    #[test]
    fn any_service_of_frames_is_independent_of_the_cuts(
        protocol in protocols(),
        input in inputs(),
        cuts in prop::collection::vec(any::<Index>(), 0..8),
    ) {
        prop_assume!(protocol.framing != Framing::Raw);
        however_cut(protocol, moody(), &input, &cuts)?;
    }

    /// Unframed, one message is what the first read brought.
    #[test]
    fn once_unframed_serves_the_first_read(input in inputs(), rest in inputs()) {
        prop_assume!(!input.is_empty());
        let protocol = Protocol { once: true, ..Protocol::default() };
        for upper in [false, true] {
            let reads = [&input[..], &rest];
            let reply = if upper {
                converse(protocol, Upper::default(), &reads)
            } else {
                converse(protocol, Echo, &reads)
            };
            prop_assert_eq!(reply, Expected::new(protocol, upper, &input));
        }
    }

    /// A datagram is one message.
    #[test]
    fn datagrams_are_served_one_by_one(
        datagrams in prop::collection::vec(inputs(), 1..5),
    ) {
        let unframed = Protocol::default();
        let mut scratch = Scratch::default();
        for datagram in datagrams {
            let mut echo = reply_to_datagram(Echo, &datagram, &mut scratch, &context()).unwrap();
            prop_assert_eq!(echo.next(), Some(&datagram[..]));
            prop_assert_eq!(echo.next(), None);
            let expected = Expected::new(unframed, true, &datagram).bytes;
            let mut upper =
                reply_to_datagram(Upper::default(), &datagram, &mut scratch, &context()).unwrap();
            prop_assert_eq!(upper.next(), Some(&expected[..]));
            prop_assert_eq!(upper.next(), None);
        }
    }
}
