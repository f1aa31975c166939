//! What the servers used, and whether it grew.

use std::fmt::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use evecho::client::process::Usage;

use crate::clients::Done;
use crate::daemon::DEADLINE;
use crate::monitored::Monitored;

/// Resident memory may differ by so much between two moments of silence: what the allocator keeps.
const SLACK: u64 = 1 << 20;

/// What a server used at a moment.
#[derive(Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) usage: Usage,
    open: u64,
    buffered: u64,
}

impl Sample {
    fn of(server: &Monitored) -> Sample {
        Sample {
            open: server.value("evecho_connections_open") as u64,
            buffered: server.value("evecho_buffered_bytes") as u64,
            usage: Usage::of(server.server.child.id()).unwrap(),
        }
    }

    /// The first moment at which no connection is left, and no descriptor more than there were.
    fn at_rest(server: &Monitored, descriptors: u64) -> Sample {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let sample = Sample::of(server);
            let Sample { open, buffered, usage } = sample;
            if (open, buffered) == (0, 0) && usage.descriptors <= descriptors {
                return sample;
            }
            assert!(
                Instant::now() < deadline,
                "{open} connections, {buffered} bytes, {} descriptors instead of {descriptors}",
                usage.descriptors
            );
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Everything, from the beginning.
pub(crate) struct Record {
    began: Instant,
    pub(crate) servers: Vec<Kept>,
    done: Done,
}

/// What is known of a server.
pub(crate) struct Kept {
    pub(crate) name: &'static str,
    /// Those that it had open before clients came.
    descriptors: u64,
    pub(crate) all: Vec<(Duration, Sample)>,
    /// Those in silence.
    pub(crate) rests: Vec<(Duration, Sample)>,
}

impl Record {
    /// Of these servers, to whom no client has come yet.
    pub(crate) fn new<'a>(
        servers: impl IntoIterator<Item = (&'static str, &'a Monitored)>,
    ) -> Record {
        let kept = |(name, server): (_, &Monitored)| {
            // One that answers has opened all that it needs.
            let descriptors = Sample::of(server).usage.descriptors;
            Kept { name, descriptors, all: Vec::new(), rests: Vec::new() }
        };
        let servers = servers.into_iter().map(kept).collect();
        Record { began: Instant::now(), servers, done: Done::default() }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    pub(crate) fn note(&mut self, servers: &[Monitored]) {
        let at = self.elapsed();
        for (kept, server) in self.servers.iter_mut().zip(servers) {
            kept.all.push((at, Sample::of(server)));
        }
    }

    /// Waits until nothing is left, and notes what that takes.
    pub(crate) fn note_rest(&mut self, servers: &[Monitored]) {
        for (kept, server) in self.servers.iter_mut().zip(servers) {
            let sample = Sample::at_rest(server, kept.descriptors);
            let noted = (self.began.elapsed(), sample);
            kept.all.push(noted);
            kept.rests.push(noted);
        }
    }

    pub(crate) fn count(&mut self, done: &Done) {
        self.done.add(done);
    }

    /// `12m: plain 5.1 MiB, lines 5.3 MiB`.
    pub(crate) fn progress(&self) -> String {
        let last = |kept: &Kept| kept.rests.last().map_or(0, |(_, sample)| sample.usage.resident);
        let servers = self.servers.iter().map(|kept| format!("{} {}", kept.name, size(last(kept))));
        format!("{:.0?}: {}", self.elapsed(), servers.collect::<Vec<_>>().join(", "))
    }

    /// As Markdown.
    pub(crate) fn table(&self) -> String {
        let Done { connections, messages, bytes, impaired, replaced } = self.done;
        let mut table = format!(
            "{connections} connections, {messages} messages and {} came back from all servers; {impaired} answers of \
             the impaired one were missing or wrong; another server was replaced {replaced} times.\n\n\
             | server | resident at rest: first, median, most, last | most in a storm | buffered, at most | \
             descriptors at rest; at most | CPU |\n|---|---|---|---|---|---|\n",
            size(bytes)
        );
        for kept in &self.servers {
            let mut rests: Vec<u64> =
                kept.rests.iter().map(|(_, sample)| sample.usage.resident).collect();
            let (first, last) = (rests[0], rests[rests.len() - 1]);
            rests.sort_unstable();
            let (median, most) = (rests[rests.len() / 2], rests[rests.len() - 1]);
            let highest = |of: fn(&Sample) -> u64| {
                kept.all.iter().map(|(_, sample)| of(sample)).max().unwrap_or(0)
            };
            let _ = writeln!(
                table,
                "| {} | {}, {}, {}, {} | {} | {} | {}; {} | {:.0} s |",
                kept.name,
                size(first),
                size(median),
                size(most),
                size(last),
                size(highest(|sample| sample.usage.resident)),
                size(highest(|sample| sample.buffered)),
                kept.rests[0].1.usage.descriptors,
                highest(|sample| sample.usage.descriptors),
                kept.all.last().map_or(0.0, |(_, sample)| sample.usage.cpu.as_secs_f64()),
            );
        }
        table
    }

    pub(crate) fn csv(&self) -> String {
        let mut csv =
            "seconds,server,resident_bytes,buffered_bytes,open_connections,descriptors,threads,cpu_seconds\n".to_owned();
        for kept in &self.servers {
            for (at, Sample { usage, open, buffered }) in &kept.all {
                let _ = writeln!(
                    csv,
                    "{:.1},{},{},{buffered},{open},{},{},{:.2}",
                    at.as_secs_f64(),
                    kept.name,
                    usage.resident,
                    usage.descriptors,
                    usage.threads,
                    usage.cpu.as_secs_f64()
                );
            }
        }
        csv
    }

    /// Panics where something grew: the later moments of silence take no more than the earlier ones.
    pub(crate) fn assert_flat(&self) {
        for Kept { name, rests, .. } in &self.servers {
            let (earlier, later) = rests.split_at(rests.len() / 2);
            let most = |rests: &[(Duration, Sample)], of: fn(&Usage) -> u64| {
                rests.iter().map(|(_, sample)| of(&sample.usage)).max().unwrap_or(0)
            };
            let resident = |usage: &Usage| usage.resident;
            let (before, after) = (most(earlier, resident), most(later, resident));
            assert!(
                after <= before + SLACK,
                "{name}: resident memory grew from {} to {}",
                size(before),
                size(after)
            );
            let threads = |usage: &Usage| usage.threads;
            assert_eq!(most(earlier, threads), most(later, threads), "{name}: threads");
        }
    }
}

fn size(bytes: u64) -> String {
    evecho::units::size(bytes).to_string()
}
