//! Sessions of every framing: the input decides the protocol, the stream and its cuts.
#![no_main]

use evecho::protocol::{
    Context, Echo, Framing, Protocol, Scratch, Service, Session, Upper, Verdict,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, u16, Vec<u8>, Vec<u16>)| {
    let (choices, max_frame, stream, cuts) = input;
    let framing = [Framing::Raw, Framing::Lines, Framing::LengthPrefixed][choices as usize % 3];
    let once = choices & 0x10 != 0 && framing != Framing::Raw;
    let mut protocol = Protocol::default();
    (protocol.framing, protocol.max_frame, protocol.once) =
        (framing, max_frame.max(1).into(), once);
    let upper = choices & 0x20 != 0;
    let reply = if upper {
        however_cut(protocol, Upper::default(), &stream, &cuts)
    } else {
        however_cut(protocol, Echo, &stream, &cuts)
    };
    assert_eq!(reply, evecho::fuzzing::expected(protocol, upper, &stream));
});

/// The reply to `stream`, which is the same whole, byte by byte, and in pieces as long as `cuts`.
fn however_cut<V: Service + Clone>(
    protocol: Protocol,
    service: V,
    stream: &[u8],
    cuts: &[u16],
) -> (Vec<u8>, Verdict) {
    let whole = converse(protocol, service.clone(), stream, &[]);
    let bytes = vec![1; stream.len()];
    assert_eq!(converse(protocol, service.clone(), stream, &bytes), whole, "byte by byte");
    assert_eq!(converse(protocol, service, stream, cuts), whole, "cut");
    whole
}

/// The replies to pieces of these lengths, to the rest, and to a FIN.
fn converse<V: Service>(
    protocol: Protocol,
    service: V,
    mut stream: &[u8],
    pieces: &[u16],
) -> (Vec<u8>, Verdict) {
    let context = Context::stream(1, ([127, 0, 0, 1], 9).into(), ([127, 0, 0, 1], 7).into());
    let (mut session, mut scratch) = (Session::new(protocol, service), Scratch::default());
    let mut all = Vec::new();
    for length in pieces.iter().map(|&length| length.into()).chain([usize::MAX]) {
        let (piece, rest) = stream.split_at(stream.len().min(length));
        stream = rest;
        let reply = session.receive(piece, usize::MAX, &mut scratch, &context);
        all.extend_from_slice(&reply.bytes);
        if reply.verdict != Verdict::Continue {
            return (all, reply.verdict);
        }
    }
    let reply = session.finish(&mut scratch, &context);
    all.extend_from_slice(&reply.bytes);
    (all, reply.verdict)
}
