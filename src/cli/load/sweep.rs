//! A sweep of loads: a row for each step, and what it has come to.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use evecho::client::Cancel;
use evecho::client::load::sweep::{self, Conclusion, Step, Sweep, Verdict};
use evecho::client::load::{self, Config, Latency};
use evecho::client::target::Target;
use evecho::units::{grouped, time};

use super::status::json;
use super::text::{seen, subject};
use crate::cli::CommandResult;
use crate::cli::figure::Figure;
use crate::cli::output::{Output, complain};

/// Loads at rate after rate, and prints what comes of it.
pub(super) fn run(
    config: &Config,
    target: &Target,
    cancel: &Cancel,
    figure: Option<Figure>,
    as_json: bool,
) -> CommandResult {
    let subject = subject(config, target);
    let (most, longest) = (sweep::MOST_STEPS, time(sweep::longest(config)));
    let heading = format!("{subject}; up to {most} steps, for {longest} at the longest");
    let mut output = Output::plain();
    if as_json {
        complain(&heading);
    } else {
        let columns = columns(["offered", "answered", "p50", "p99", "p99.9"].map(str::to_owned));
        output.follow(cancel, |output| writeln!(output, "{heading}\n{columns}"));
    }
    let sweep = sweep::run(config, cancel, |step| {
        if !as_json {
            output.follow(cancel, |output| {
                writeln!(output, "{}", row(step))?;
                output.flush()
            });
        }
    })?;
    if let Some(figure) = figure {
        let (title, name) = subject.split_once(": ").unwrap_or((&subject, ""));
        figure.write(&load::sweep_svg(title, name, &sweep))?;
    }
    let text = if as_json { json("sweep", &sweep) } else { describe(&sweep) };
    output.conclude(|output| writeln!(output, "{text}"))?;
    Ok(ExitCode::from(u8::from(!sweep.is_clean())))
}

fn columns([offered, answered, p50, p99, p999]: [String; 5]) -> String {
    format!("  {offered:>12} {answered:>12} {p50:>10} {p99:>10} {p999:>10}")
}

/// A step in a line. What was not clean is marked.
fn row(step: &Step) -> String {
    let latency = step.report.latency;
    let of = |pick: fn(&Latency) -> Option<Duration>| match latency.as_ref().and_then(pick) {
        Some(latency) => time(latency).to_string(),
        None => "-".to_owned(),
    };
    let times = [of(|all| all.p50), of(|all| all.p99), of(|all| all.p999)];
    let [offered, answered] = [step.rate, step.report.rate].map(rate);
    let [p50, p99, p999] = times;
    let mut marks = seen(&step.report);
    if step.report.unsent > 0 {
        marks.push(format!("{} never sent", grouped(step.report.unsent)));
    }
    marks.extend(match step.verdict {
        Verdict::Behind => Some("did not keep up".to_owned()),
        Verdict::Slow => Some("p99 exploded".to_owned()),
        _ => None,
    });
    if step.client_was_limit {
        marks.push("the client was the limit".to_owned());
    }
    let text = columns([offered, answered, p50, p99, p999]) + "  " + &marks.join(", ");
    text.trim_end().to_owned()
}

fn rate(rate: f64) -> String {
    match rate {
        rate if rate < 100.0 => format!("{rate:.1}/s"),
        rate => format!("{}/s", grouped(rate.round() as u64)),
    }
}

/// What the sweep has come to, and how the knee is defined.
fn describe(sweep: &Sweep) -> String {
    let missed = sweep.steps.iter().filter(|step| step.verdict != Verdict::Kept);
    let missed = rate(missed.map(|step| step.rate).fold(f64::INFINITY, f64::min));
    let kept = match sweep.knee {
        Some(knee) => format!("The server kept up to {}", rate(knee)),
        None => "The server kept up at no rate".to_owned(),
    };
    let mut text = match sweep.conclusion {
        Conclusion::Knee => {
            format!("Knee: {}. {kept}, and not at {missed}.", rate(sweep.knee.unwrap_or(0.0)))
        }
        Conclusion::ClientLimit => format!(
            "No knee of the server: the client was the limit at {missed}; give it more --threads, or use \
             several machines. {kept}."
        ),
        Conclusion::Stopped => format!("Stopped before the knee was known. {kept}."),
        _ => format!("No knee. {kept}."),
    };
    text += &format!(
        "\nA server keeps up when {:.0} % of what is offered come back in the same time, and the p99 is at \
         most {} times its median at the lower rates.",
        sweep::LEAST_ANSWERED * 100.0,
        sweep::MOST_P99
    );
    if let Some(error) = &sweep.error {
        text += &format!("\nThe last step failed: {error}.");
    }
    text
}
