//! What the conversation costs without a wire: framing and services, alone.
#![allow(clippy::unwrap_used, missing_docs, reason = "a bench that cannot go on fails")]

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use evecho::protocol::{Context, Echo, Reply, Scratch, Session, Upper, Verdict};
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
    /// Serves one read after the other, as a server does.
    fn bench(self, c: &mut Criterion, group: &str, framing: Framing) {
        let mut protocol = Protocol::default();
        protocol.framing = framing;
        let (mut session, mut scratch) = (Session::new(protocol, self.service), Scratch::default());
        let reply = receive(&mut session, &mut scratch, &self.input);
        assert!(*reply.bytes == self.expected && reply.verdict == Verdict::Continue);
        let mut group = c.benchmark_group(group);
        group.throughput(Throughput::Bytes(self.input.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(self.name), |b| {
            b.iter(|| receive(&mut session, &mut scratch, black_box(&self.input)).bytes.len());
        });
    }
}

/// Serves one read.
fn receive<'a, V: Service>(
    session: &mut Session<V>,
    scratch: &'a mut Scratch,
    input: &'a [u8],
) -> Reply<'a> {
    let context = Context::stream(1, ([127, 0, 0, 1], 9).into(), ([127, 0, 0, 1], 7).into());
    session.receive(input, usize::MAX, scratch, &context)
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
    // A chunk ends between two characters, so that none is carried to the next.
    let texts = [
        ("upper, ASCII", "the quick brown fox "),
        ("upper, Greek", "ταχίστη αλώπηξ "),
        ("upper, two bytes", "я"),
    ];
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
