//! What the conversation costs without a wire: framing and services, alone.
#![allow(clippy::unwrap_used, missing_docs, reason = "a bench that cannot go on fails")]

use std::hint::black_box;
use std::io::ErrorKind;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use evecho::protocol::{Context, Echo, Scratch, Session, Upper, Verdict};
use evecho::{Framing, Protocol, Service};

/// What one read brings.
const READ: usize = 64 << 10;

/// A service by its name, and what it is given and gives back.
struct Case<V> {
    name: &'static str,
    service: V,
    input: Vec<u8>,
    expected: Vec<u8>,
}

impl<V: Service + Clone> Case<V> {
    /// Answers one read after the other, as a server does.
    fn bench(self, c: &mut Criterion, group: &str, framing: Framing) {
        let mut protocol = Protocol::default();
        protocol.framing = framing;
        let (mut session, mut scratch) = (Session::new(protocol, self.service), Scratch::default());
        let mut all = Vec::new();
        let verdict =
            answer(&mut session, &mut scratch, &self.input, |bytes| all.extend_from_slice(bytes));
        assert!(all == self.expected && verdict == Verdict::Continue);
        let mut group = c.benchmark_group(group);
        group.throughput(Throughput::Bytes(self.input.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(self.name), |b| {
            b.iter(|| {
                let mut length = 0;
                answer(&mut session, &mut scratch, black_box(&self.input), |bytes| {
                    length += bytes.len()
                });
                length
            });
        });
    }
}

/// Answers one read, in as many turns as the service needs.
fn answer<V: Service>(
    session: &mut Session<V>,
    scratch: &mut Scratch,
    input: &[u8],
    mut send: impl FnMut(&[u8]),
) -> Verdict {
    let nowhere = || Err(ErrorKind::Unsupported.into());
    let context = Context::stream(1, ([127, 0, 0, 1], 9).into(), &nowhere);
    let answer = session.receive(input, usize::MAX, scratch, &context);
    send(&answer.bytes);
    let mut verdict = answer.verdict;
    while verdict == Verdict::Again {
        let answer = session.resume(usize::MAX, scratch, &context);
        send(&answer.bytes);
        verdict = answer.verdict;
    }
    verdict
}

fn framing(c: &mut Criterion) {
    for length in [64, 1024] {
        let text = vec![b'x'; length];
        let line = [&text[1..], b"\n"].concat();
        let frame = [&(length as u32).to_be_bytes()[..], &text].concat();
        for (name, framing, message) in [
            ("raw", Framing::Raw, text),
            ("lines", Framing::Lines, line),
            ("length", Framing::LengthPrefixed, frame),
        ] {
            let input = message.repeat(READ / message.len());
            let case = Case { name, service: Echo, expected: input.clone(), input };
            case.bench(c, &format!("framing/{length}B"), framing);
        }
    }
}

fn services(c: &mut Criterion) {
    let input = vec![b'x'; READ];
    Case { name: "echo", service: Echo, expected: input.clone(), input }.bench(
        c,
        "service",
        Framing::Raw,
    );
    // A chunk ends between two characters: what comes back is as long as what went.
    let texts = [("upper, ASCII", "the quick brown fox "), ("upper, Greek", "ταχίστη αλώπηξ ")];
    for (name, text) in texts {
        let text = text.repeat(READ / text.len());
        let expected = text.to_uppercase().into_bytes();
        Case { name, service: Upper::default(), input: text.into_bytes(), expected }.bench(
            c,
            "service",
            Framing::Raw,
        );
    }
}

fn config() -> Criterion {
    Criterion::default()
        .sample_size(30)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(1))
}

criterion_group! { name = benches; config = config(); targets = framing, services }
criterion_main!(benches);
