//! Reports as a drawing: latency by percentile, and over time latency, rate and errors.

use std::time::Duration;

use super::report::{Interval, Latency, Report, percentile};
use super::sweep::{Conclusion, LEAST_ANSWERED, MOST_P99, Step, Sweep, Verdict};
use crate::client::plot::{self, Axis, Curve, Panel};
use crate::units::{self, grouped};

/// How many points a decade of one in so many messages has.
const STEPS: f64 = 8.0;

/// Draws reports over each other, each with its name, as SVG.
pub fn svg(title: &str, reports: &[(&str, &Report)]) -> String {
    let curves = |dashed, of: fn(&Report) -> Vec<(f64, f64)>| {
        let curve = move |(series, (_, report)): (usize, &(&str, &Report))| {
            let points = of(report).into_iter().map(|(x, y)| (x, [y; 3])).collect();
            Curve { series, dashed, points }
        };
        reports.iter().enumerate().map(curve).collect::<Vec<_>>()
    };
    let over_time = [
        curves(true, |report| times_over_time(report, |all| all.p99)),
        curves(false, |report| times_over_time(report, |all| all.p50)),
    ];
    let below = "seconds";
    let panels = [
        Panel {
            title: "Latency by percentile",
            below: "percentile, in nines",
            across: Axis { logarithmic: true, label: nines },
            up: TIMES,
            curves: curves(false, by_percentile),
        },
        Panel {
            title: "Latency: p50, and p99 (dashed)",
            below,
            across: NUMBERS,
            up: TIMES,
            curves: over_time.concat(),
        },
        Panel {
            title: "Messages per second",
            below,
            across: NUMBERS,
            up: NUMBERS,
            curves: curves(false, |report| over_time_of(report, |one| one.rate)),
        },
        Panel {
            title: "Errors per second",
            below,
            across: NUMBERS,
            up: NUMBERS,
            curves: curves(false, |report| {
                over_time_of(report, |one| one.errors as f64 / (one.to - one.from).as_secs_f64())
            }),
        },
    ];
    let names: Vec<&str> = reports.iter().map(|(name, _)| *name).collect();
    plot::svg(title, &names, &panels, &notes(reports))
}

/// A linear axis from zero.
pub(in crate::client) const NUMBERS: Axis = Axis { logarithmic: false, label: number };
/// An axis of rates.
const RATES: Axis = Axis { logarithmic: true, ..NUMBERS };
/// An axis of times, in nanoseconds.
pub(in crate::client) const TIMES: Axis = Axis { logarithmic: true, label: time };

fn number(value: f64) -> String {
    match value {
        value if value >= 1e3 => grouped(value.round() as u64).to_string(),
        // A mark may be next to what it stands for.
        value => ((value * 1e6).round() / 1e6).to_string(),
    }
}

fn time(nanoseconds: f64) -> String {
    units::time(Duration::from_nanos(nanoseconds.round() as u64)).to_string()
}

/// The percentile that one in so many messages exceeds.
fn nines(one_in: f64) -> String {
    format!("{} %", number(100.0 - 100.0 / one_in.round()))
}

/// How long one in so many messages took at least: up to the longest, or the first that has no time.
fn by_percentile(report: &Report) -> Vec<(f64, f64)> {
    let without_time = report.without_time();
    let all = report.times.count().saturating_add(without_time) as f64;
    let decades = (0..).map(|step| 10_f64.powf(f64::from(step) / STEPS));
    let inner =
        decades.take_while(|one_in| *one_in < all).map(|one_in| (one_in, 1.0 - 1.0 / one_in));
    let place = |(one_in, share)| {
        let time = percentile(&report.times, without_time, share)?;
        Some((one_in, time.as_nanos() as f64))
    };
    inner.chain([(all, 1.0)]).map_while(place).collect()
}

fn times_over_time(report: &Report, of: fn(&Latency) -> Option<Duration>) -> Vec<(f64, f64)> {
    over_time_of(report, |one| time_of(one.latency.as_ref().and_then(of)))
}

/// A value of each interval, in its middle.
fn over_time_of(report: &Report, of: impl Fn(&Interval) -> f64) -> Vec<(f64, f64)> {
    let point = |one: &Interval| ((one.from + one.to).as_secs_f64() / 2.0, of(one));
    report.intervals.iter().filter(|one| one.from < one.to).map(point).collect()
}

/// What the curves do not show, and what made them.
fn notes(reports: &[(&str, &Report)]) -> Vec<String> {
    let mut notes: Vec<String> = Vec::new();
    for (name, report) in reports.iter().filter(|(_, report)| !report.is_clean()) {
        let (errors, unsent) = (report.errors.total(), report.unsent);
        let missing = [
            (errors > 0).then(|| units::count(errors, "error").to_string()),
            (unsent > 0).then(|| format!("{} never sent", grouped(unsent))),
            report.ended.as_ref().map(|_| "ended early".to_owned()),
            (report.messages == 0).then(|| "nothing came back".to_owned()),
        ];
        let missing: Vec<String> = missing.into_iter().flatten().collect();
        notes.push(format!("{name}: {}.", missing.join(", ")));
    }
    if !notes.is_empty() {
        notes.push("What did not come back, or was never sent, is later than the rest.".to_owned());
    }
    notes.push(format!("evecho {}.", env!("CARGO_PKG_VERSION")));
    notes
}

/// Draws a sweep of what is called like this, as SVG: latency, and what came back, over the offered rate.
pub fn sweep_svg(title: &str, name: &str, sweep: &Sweep) -> String {
    let mut steps: Vec<&Step> = sweep.steps.iter().collect();
    steps.sort_by(|one, other| one.rate.total_cmp(&other.rate));
    let p99 = |step: &Step| time_of(step.report.latency.as_ref().and_then(|all| all.p99));
    let p50 = |step: &Step| time_of(step.report.latency.as_ref().and_then(|all| all.p50));
    let answered = |step: &Step| step.report.rate;
    let below = "messages per second offered";
    let panel = |title, up, lines: [&dyn Fn(&Step) -> f64; 2]| {
        let [dashed, line] = lines;
        let curve = |dashed, of: &dyn Fn(&Step) -> f64| {
            let points = steps.iter().map(|step| (step.rate, [of(step); 3])).collect();
            Curve { series: 0, dashed, points }
        };
        let missed = steps.iter().filter(|step| step.verdict != Verdict::Kept);
        let missed = missed.map(|step| Curve {
            series: 1,
            dashed: false,
            points: vec![(step.rate, [line(step); 3])],
        });
        let all = steps.iter().flat_map(|step| lines.map(|of| of(step)));
        let ends = [f64::min, f64::max].map(|end| all.clone().fold(f64::NAN, end));
        let knee = steps.iter().filter(|step| Some(step.rate) == sweep.knee);
        let knee = knee.map(|step| {
            let points = vec![(step.rate, [ends[0], line(step), ends[1]])];
            Curve { series: 2, dashed: false, points }
        });
        let curves = [curve(true, dashed), curve(false, line)].into_iter();
        let curves = curves.chain(missed).chain(knee).collect();
        Panel { title, below, across: RATES, up, curves }
    };
    let panels = [
        panel("Latency: p50, and p99 (dashed)", TIMES, [&p99, &p50]),
        panel("Answered per second, and offered (dashed)", RATES, [&|step| step.rate, &answered]),
    ];
    let knee = sweep.knee.map_or("none was kept".to_owned(), |knee| match sweep.conclusion {
        Conclusion::Knee => format!("knee: {}/s", number(knee)),
        Conclusion::ClientLimit => format!("the client's limit is near: {}/s", number(knee)),
        _ => format!("kept: {}/s, no knee found", number(knee)),
    });
    plot::svg(title, &[name, "did not keep up", &knee], &panels, &sweep_notes(sweep))
}

fn time_of(time: Option<Duration>) -> f64 {
    time.map_or(f64::NAN, |time| time.as_nanos() as f64)
}

/// How the knee is defined, and which steps were not clean.
fn sweep_notes(sweep: &Sweep) -> Vec<String> {
    let mut notes = vec![
        format!(
            "Knee: up to there {:.0} % of what is offered come back in the same time,",
            LEAST_ANSWERED * 100.0
        ),
        format!("and the p99 is at most {MOST_P99} times its median at the lower rates."),
    ];
    let unclean = sweep.steps.iter().filter(|step| !step.report.is_clean()).map(|step| {
        let Report { errors, unsent, .. } = &step.report;
        let count = errors.total().saturating_add(*unsent);
        format!("{} at {}/s", grouped(count), number(step.rate))
    });
    let unclean: Vec<String> = unclean.collect();
    if !unclean.is_empty() {
        notes.push(format!("Lost, wrong or never sent: {}.", unclean.join(", ")));
    }
    notes.push(format!("evecho {}.", env!("CARGO_PKG_VERSION")));
    notes
}
