//! A load at one rate after the other, to find the rate up to which a server keeps up: its knee.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::Error;
use super::config::{Config, Length};
use super::report::{Phase, Report};
use crate::client::Cancel;

/// The rate that a sweep begins with, unless the configuration has one.
pub const FIRST_RATE: f64 = 1_000.0;
/// The most steps that a sweep takes.
pub const MOST_STEPS: u32 = 24;
/// From one step to the next, until the server does not keep up: up, or down where it never did.
const UP: f64 = 2.0;
const DOWN: f64 = 4.0;
/// The knee is known when the next step is no further than this.
const NEAR: f64 = 1.1;
/// A step with fewer messages tells nothing.
const FEWEST: f64 = 10.0;
/// The share of what is offered that has to come back in the same time.
pub const LEAST_ANSWERED: f64 = 0.99;
/// How many times the median of the p99 of lower rates the p99 may be.
pub const MOST_P99: u32 = 10;

/// When a server keeps up.
#[derive(Clone, Copy, Debug)]
struct Rule {
    answered: f64,
    p99: u32,
}

const RULE: Rule = Rule { answered: LEAST_ANSWERED, p99: MOST_P99 };

/// How a step went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Verdict {
    /// The server kept up.
    Kept,
    /// Less than [`LEAST_ANSWERED`] of what was offered came back in the same time, or less than
    /// 99 % ever.
    Behind,
    /// The p99 was more than [`MOST_P99`] times its median at the lower rates.
    Slow,
}

/// A load at one rate.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Step {
    /// Messages a second that were offered.
    pub rate: f64,
    /// How it went.
    pub verdict: Verdict,
    /// Whether the client could not do more: what is slow then may be the client.
    pub client_was_limit: bool,
    /// All about it. One that was stopped took long to answer what was still out at its end.
    pub report: Report,
}

/// What a sweep has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Conclusion {
    /// The knee of the server is found.
    Knee,
    /// The client did not manage more: the knee, if there is one, is the client's.
    ClientLimit,
    /// The server kept up with no rate.
    NeverKept,
    /// The server kept up to the last step.
    AlwaysKept,
    /// It was stopped, a step failed, or its time was over, before the knee was known.
    Stopped,
}

/// What came of a sweep.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Sweep {
    /// What it has come to.
    pub conclusion: Conclusion,
    /// The highest rate that was kept, below all that were not: messages a second.
    pub knee: Option<f64>,
    /// All steps, in their order.
    pub steps: Vec<Step>,
    /// Why a step failed.
    pub error: Option<String>,
}

impl Sweep {
    /// Whether the knee is found, and at no rate up to it anything was wrong.
    pub fn is_clean(&self) -> bool {
        let mut kept = self.steps.iter().filter(|step| step.verdict == Verdict::Kept);
        self.conclusion == Conclusion::Knee && kept.all(|step| step.report.is_clean())
    }
}

/// The longest that a sweep with this configuration takes: in each step, what is out at its end has as
/// long to come back as the step lasted.
pub fn longest(config: &Config) -> Duration {
    let Length::Time(time) = config.length else { return Duration::MAX };
    time.saturating_mul(2).saturating_add(config.warmup).saturating_mul(MOST_STEPS)
}

/// Loads a server at rate after rate: from a low one upwards, each twice the one before, until it
/// does not keep up, and then between the last two, until the knee is known to a tenth. It takes no
/// longer than [`longest`].
///
/// `config` is that of each step; its rate, or else [`FIRST_RATE`], is the first. `progress` hears of
/// each step.
///
/// # Errors
///
/// Those of [`load::run`](super::run()) in the first step, and when the configuration has a number of messages
/// instead of a time.
pub fn run(config: &Config, cancel: &Cancel, progress: impl FnMut(&Step)) -> Result<Sweep, Error> {
    run_by(RULE, config, cancel, progress)
}

fn run_by(
    rule: Rule,
    config: &Config,
    cancel: &Cancel,
    mut progress: impl FnMut(&Step),
) -> Result<Sweep, Error> {
    let Length::Time(time) = config.length else {
        return Err(Error::Invalid("the steps of a sweep need a time, not a number of messages"));
    };
    let end = Instant::now().checked_add(longest(config));
    let is_over = || cancel.is_cancelled() || end.is_some_and(|end| Instant::now() >= end);
    let first = config.rate.unwrap_or(FIRST_RATE);
    let mut search = Search::new(first, FEWEST / time.as_secs_f64());
    let mut steps: Vec<Step> = Vec::new();
    let mut error = None;
    while let Some(rate) = search.next().filter(|_| steps.len() < MOST_STEPS as usize) {
        let config = Config { rate: Some(rate), every: time, ..config.clone() };
        let report = match run_step(&config, time, is_over) {
            Err(error) if steps.is_empty() => return Err(error),
            Err(failed) => {
                error = Some(failed.to_string());
                break;
            }
            Ok(_) if is_over() => break,
            Ok(report) => report,
        };
        let step = Step::new(rule, rate, report, &steps);
        search.learn(rate, step.verdict == Verdict::Kept);
        progress(&step);
        steps.push(step);
    }
    let is_stopped = error.is_some() || is_over();
    Ok(Sweep { conclusion: search.conclude(&steps, is_stopped), knee: search.kept, steps, error })
}

/// Loads at one rate. What is out at its end has as long to come back as it lasted.
fn run_step(config: &Config, time: Duration, is_over: impl Fn() -> bool) -> Result<Report, Error> {
    let cancel = Cancel::default();
    let mut drained: Option<Instant> = None;
    super::run(config, &cancel, |progress| {
        if progress.phase == Phase::Draining {
            let since = drained.get_or_insert_with(Instant::now);
            if since.elapsed() >= time {
                cancel.cancel();
            }
        }
        if is_over() {
            cancel.cancel();
        }
    })
}

impl Step {
    /// A step after these others.
    fn new(rule: Rule, rate: f64, report: Report, before: &[Self]) -> Self {
        let p99 = |report: &Report| report.latency.as_ref().and_then(|latency| latency.p99);
        let offered = rate * report.duration.as_secs_f64();
        // What comes back at the edge of the time may count or not.
        let is_answered = report.messages as f64 + 1.0 >= offered * rule.answered;
        let lower = before.iter().filter(|step| step.verdict == Verdict::Kept && step.rate < rate);
        let lower = lower.filter_map(|step| p99(&step.report)).collect();
        let verdict = match p99(&report) {
            Some(p99) if is_answered && !report.stopped => rule.judge(p99, lower),
            _ => Verdict::Behind,
        };
        let client_was_limit = verdict != Verdict::Kept && was_client(&report);
        Self { rate, verdict, client_was_limit, report }
    }
}

impl Rule {
    /// How a step with this p99 went, after those of lower rates.
    fn judge(self, p99: Duration, mut lower: Vec<Duration>) -> Verdict {
        lower.sort_unstable();
        match lower.get(lower.len() / 2) {
            Some(&median) if p99 > median.saturating_mul(self.p99) => Verdict::Slow,
            _ => Verdict::Kept,
        }
    }
}

/// Whether a thread of the client always had work, or messages were sent late, or never, though connections
/// would have taken them: most of the time of the slowest passed in the client.
fn was_client(report: &Report) -> bool {
    let sent = report.send_delay.as_ref().and_then(|late| late.latency.p99);
    let answered = report.latency.as_ref().and_then(|latency| latency.p99);
    let is_late = sent.zip(answered).is_some_and(|(sent, answered)| sent * 2 > answered);
    let was_busy = report.client.is_some_and(|client| client.was_limit);
    was_busy || (report.blocked == 0 && (report.unsent > 0 || is_late))
}

/// Which rate comes next.
#[derive(Debug)]
struct Search {
    first: f64,
    lowest: f64,
    /// The highest rate that was kept.
    kept: Option<f64>,
    /// The lowest that was not.
    missed: Option<f64>,
}

impl Search {
    fn new(first: f64, lowest: f64) -> Self {
        Self { first: first.max(lowest), lowest, kept: None, missed: None }
    }

    fn next(&self) -> Option<f64> {
        match (self.kept, self.missed) {
            (None, None) => Some(self.first),
            (Some(kept), None) => Some(round(kept * UP)),
            (None, Some(missed)) => {
                (missed > self.lowest).then(|| round(missed / DOWN).max(self.lowest))
            }
            (Some(kept), Some(missed)) => {
                (missed > kept * NEAR).then(|| round((kept * missed).sqrt()))
            }
        }
    }

    fn learn(&mut self, rate: f64, kept: bool) {
        *if kept { &mut self.kept } else { &mut self.missed } = Some(rate);
    }

    fn conclude(&self, steps: &[Step], is_stopped: bool) -> Conclusion {
        let missed = steps.iter().find(|step| Some(step.rate) == self.missed);
        match (self.kept, missed) {
            _ if is_stopped => Conclusion::Stopped,
            (_, Some(missed)) if missed.client_was_limit => Conclusion::ClientLimit,
            (Some(_), Some(_)) => Conclusion::Knee,
            (None, _) => Conclusion::NeverKept,
            (Some(_), None) => Conclusion::AlwaysKept,
        }
    }
}

/// To three digits, which are easily read.
fn round(rate: f64) -> f64 {
    format!("{rate:.2e}").parse().unwrap_or(rate)
}

#[cfg(test)]
mod tests {
    use std::io::{self, Read, Write};
    use std::net::{Shutdown, SocketAddr, TcpListener, UdpSocket};
    use std::thread;

    use socket2::SockRef;

    use super::*;
    use crate::error::Transport;

    /// A server that answers no more than this number of messages a second, one after the other.
    fn limited(rate: u32) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, mut message) = (stream.unwrap(), [0; 64]);
                while stream.read_exact(&mut message).is_ok() {
                    thread::sleep(Duration::from_secs(1) / rate);
                    // The client may have had enough.
                    let _ = stream.write_all(&message);
                }
            }
        });
        address
    }

    #[test]
    fn a_sweep_finds_the_rate_that_a_server_manages() {
        // A busy machine manages less.
        let knees: Vec<f64> =
            (0..5).map_while(|_| Some(knee()).filter(|&knee| knee < 100.0)).collect();
        assert!(knees.len() < 5, "{knees:?}");
    }

    /// Where a sweep ends, of a server that manages 200 messages a second.
    fn knee() -> f64 {
        let mut config = Config::new(Transport::Tcp, limited(200));
        (config.connections, config.rate) = (1, Some(40.0));
        config.length = Length::Time(Duration::from_millis(500));
        config.warmup = Duration::from_millis(50);
        // Half has to come back, however late: a machine that is busy does not change much.
        let rule = Rule { answered: 0.5, p99: u32::MAX };
        let mut rates = Vec::new();
        let sweep = run_by(rule, &config, &Cancel::default(), |step| rates.push(step.rate));
        let sweep = sweep.unwrap();
        assert_eq!(rates, sweep.steps.iter().map(|step| step.rate).collect::<Vec<_>>());
        let knee = sweep.knee.unwrap_or(0.0);
        assert!(knee <= 420.0, "{knee}: {rates:?}");
        assert!(
            sweep.steps.iter().all(|step| (step.rate > knee) == (step.verdict != Verdict::Kept))
        );
        knee
    }

    #[test]
    fn a_sweep_that_is_stopped_has_the_steps_that_were_done() {
        let mut config = Config::new(Transport::Tcp, limited(10_000));
        (config.connections, config.rate) = (1, Some(100.0));
        config.length = Length::Time(Duration::from_millis(200));
        let cancel = Cancel::default();
        let sweep = run(&config, &cancel, |_| cancel.cancel()).unwrap();
        assert_eq!((sweep.steps.len(), sweep.conclusion), (1, Conclusion::Stopped));
        assert!(!sweep.is_clean());
    }

    /// The first step of a sweep that begins with this rate.
    fn first_step(transport: Transport, address: SocketAddr, connections: u32, rate: f64) -> Step {
        let mut config = Config::new(transport, address);
        (config.connections, config.rate) = (connections, Some(rate));
        config.length = Length::Time(Duration::from_millis(500));
        let (cancel, mut first) = (Cancel::default(), None);
        let stopped = run(&config, &cancel, |step| {
            first.get_or_insert(step.clone());
            cancel.cancel();
        });
        assert_eq!(stopped.unwrap().conclusion, Conclusion::Stopped);
        first.unwrap()
    }

    #[test]
    fn the_limit_of_the_client_is_told_from_that_of_the_server() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (udp, tcp) = (Transport::Udp, Transport::Tcp);
        let was_client = |step: Step| {
            assert_eq!(step.verdict, Verdict::Behind);
            step.client_was_limit
        };
        // On a machine whose CPUs others take, it is tried again.
        let client = || was_client(first_step(udp, socket.local_addr().unwrap(), 50, 1e9));
        let server = || was_client(first_step(tcp, limited(200), 1, 2_000.0));
        assert!((0..20).any(|_| client()), "in none of 20 runs");
        assert!((0..20).any(|_| !server()), "in each of 20 runs");
    }

    #[test]
    fn a_server_that_goes_away_ends_the_sweep_with_what_was_done() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut config = Config::new(Transport::Tcp, listener.local_addr().unwrap());
        (config.connections, config.rate) = (1, Some(100.0));
        config.length = Length::Time(Duration::from_millis(200));
        let server = thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            // Closes it, though a process that another test is starting may have it, too.
            SockRef::from(&listener).shutdown(Shutdown::Both).unwrap();
            io::copy(&mut stream.try_clone().unwrap(), &mut stream)
        });
        let sweep = run(&config, &Cancel::default(), |_| {}).unwrap();
        assert_eq!((sweep.steps.len(), sweep.conclusion), (1, Conclusion::Stopped));
        assert!(sweep.error.unwrap().contains("refused the connection"));
        server.join().unwrap().unwrap();
        assert!(run(&config, &Cancel::default(), |_| {}).is_err());
    }

    /// The steps of a sweep against a server that keeps up to this rate.
    fn steps(first: f64, limit: f64) -> (Vec<f64>, Search) {
        let mut search = Search::new(first, 5.0);
        let mut rates = Vec::new();
        while let Some(rate) = search.next() {
            search.learn(rate, rate <= limit);
            rates.push(rate);
        }
        (rates, search)
    }

    #[test]
    fn a_search_rises_and_then_closes_in() {
        let (rates, search) = steps(1_000.0, 6_400.0);
        assert_eq!(rates, [1_000.0, 2_000.0, 4_000.0, 8_000.0, 5_660.0, 6_730.0, 6_170.0]);
        assert_eq!((search.kept, search.missed), (Some(6_170.0), Some(6_730.0)));
        let (rates, search) = steps(1_000.0, 40.0);
        assert_eq!(rates[..3], [1_000.0, 250.0, 62.5]);
        assert_eq!((search.kept, search.missed), (Some(37.1), Some(40.5)));
        assert_eq!(steps(1_000.0, 1.0).0, [1_000.0, 250.0, 62.5, 15.6, 5.0]);
        assert_eq!(steps(1.0, 1.0).0, [5.0]);
    }

    #[test]
    fn any_limit_is_found_within_the_steps() {
        for exponent in 1..32 {
            let limit = 10_f64.powf(f64::from(exponent) / 4.0) + 6.0;
            let (rates, search) = steps(FIRST_RATE, limit);
            let (kept, missed) = (search.kept.unwrap(), search.missed.unwrap());
            assert!(rates.len() <= MOST_STEPS as usize, "{rates:?}");
            assert!(kept <= limit && limit < missed && missed <= kept * NEAR, "{limit}: {rates:?}");
        }
    }

    #[test]
    fn a_p99_explodes_when_it_is_far_over_that_of_lower_rates() {
        let times = |millis: &[u64]| millis.iter().copied().map(Duration::from_millis).collect();
        for (p99, lower, verdict) in [
            (9_000, &[][..], Verdict::Kept),
            (10, &[1], Verdict::Kept),
            (11, &[1], Verdict::Slow),
            // One that was disturbed changes little.
            (30, &[2, 900, 3], Verdict::Kept),
            (31, &[900, 2, 3], Verdict::Slow),
        ] {
            assert_eq!(
                RULE.judge(Duration::from_millis(p99), times(lower)),
                verdict,
                "{p99}: {lower:?}"
            );
        }
    }
}
