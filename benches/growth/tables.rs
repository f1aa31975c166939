//! What was measured, as tables in Markdown.

use std::fmt::Write;
use std::time::Duration;

use evecho::client::compare::{Cell, Measurement, Trial};
use evecho::units::{grouped, time};

use crate::{Cost, Growth, Idle, Unread};

/// All tables. A String takes everything, so that writing to it cannot fail.
pub(crate) fn all(growth: &Growth) -> String {
    let machine = &growth.report.machine;
    format!(
        "{}\n{}\n{}\n{}{}, {} CPUs, {} MiB, {}; rounds: {}. Other programs kept {:.1} CPUs busy when this began.\n",
        talking(growth),
        idle(growth),
        unread(growth),
        caches(growth),
        machine.cpu,
        machine.cpus,
        machine.memory >> 20,
        machine.kernel,
        growth.report.rounds,
        machine.busy_cpus
    )
}

/// Connections that talk: a row for each number of them and each server.
fn talking(growth: &Growth) -> String {
    let mut text = "| connections | server | processes | messages/s | p50 | p99 | CPU per message | memory |\n\
        |---|---|---|---|---|---|---|---|\n"
        .to_owned();
    for trial in growth.report.trials() {
        let Trial { connections, .. } = trial;
        for (cell, candidate) in growth.report.cells_of(trial).zip(&growth.candidates) {
            let processes = candidate.processes.for_connections(connections, growth.room);
            let _ = write!(text, "| {} | {} | ", grouped(connections.into()), cell.server);
            let _ = match (row(cell), &cell.fault, processes) {
                (Some(row), None, Ok(processes)) => writeln!(text, "{processes} | {row}"),
                (_, fault, _) => {
                    writeln!(text, "| {} | | | | |", fault.as_deref().unwrap_or("not measured"))
                }
            };
        }
    }
    text
}

fn row(cell: &Cell) -> Option<String> {
    let rate = cell.spread(|m| m.messages_per_second)?;
    let median =
        |of: fn(&Measurement) -> f64| cell.spread(of).map_or(f64::NAN, |spread| spread.median);
    Some(format!(
        "{} ± {:.0} % | {} | {} | {} | {} |",
        grouped((rate.median / 100.0).round() as u64 * 100),
        rate.percent(),
        micros(median(|m| m.p50_us)),
        micros(median(|m| m.p99_us)),
        spread(cell, |m| m.cpu_us_per_message),
        mebibytes(median(|m| m.memory_bytes)),
    ))
}

/// `11 µs ± 5 %`.
fn spread(cell: &Cell, of: fn(&Measurement) -> f64) -> String {
    let Some(spread) = cell.spread(of) else { return "-".to_owned() };
    format!("{} ± {:.0} %", micros(spread.median), spread.percent())
}

fn micros(us: f64) -> String {
    match us.is_finite() {
        true => time(Duration::from_secs_f64(us / 1e6)).to_string(),
        false => "-".to_owned(),
    }
}

fn mebibytes(bytes: f64) -> String {
    format!("{:.1} MiB", bytes / f64::from(1 << 20))
}

/// Idle connections: what each costs.
fn idle(growth: &Growth) -> String {
    let mut text = "| idle connections | server | processes | memory, each | kernel, each | CPU in a second | an answer: median, longest of 100 |\n\
        |---|---|---|---|---|---|---|\n"
        .to_owned();
    for Idle { server, processes, connections, fault, cost } in &growth.idle {
        let _ = write!(text, "| {} | {server} | ", grouped((*connections).into()));
        let _ = match cost {
            Some(cost) => writeln!(text, "{processes} | {} |", costs(cost)),
            None => writeln!(text, "| {} | | | |", fault.as_deref().unwrap_or("not measured")),
        };
    }
    text
}

fn costs(cost: &Cost) -> String {
    let bytes = |bytes: f64| format!("{} B", grouped(bytes.max(0.0).round() as u64));
    let [_, median, longest] = cost.answer_us;
    format!(
        "{} | {} | {} | {}, {}",
        bytes(cost.memory_bytes),
        cost.kernel_bytes.map_or("-".to_owned(), bytes),
        micros(cost.silent_cpu_us),
        micros(median),
        micros(longest)
    )
}

/// Of what the kernel's memory for the most idle connections of the first server consists.
fn caches(growth: &Growth) -> String {
    let of_first = growth.idle.iter().filter(|idle| idle.server == growth.idle[0].server);
    // Of few connections the kernel's part is not known.
    let known = |cost: &&Cost| !cost.caches.is_empty();
    let Some(cost) = of_first.filter_map(|idle| idle.cost.as_ref()).rfind(known) else {
        return String::new();
    };
    let mut text =
        "| kernel cache | objects for each connection, both ends | bytes of one |\n|---|---|---|\n"
            .to_owned();
    for cache in &cost.caches {
        let _ = writeln!(text, "| {} | {:.2} | {:.0} |", cache.name, cache.objects, cache.bytes);
    }
    let _ = writeln!(
        text,
        "\nTCP buffers of all idle connections: {:.0} KiB.\n",
        cost.buffer_bytes / 1024.0
    );
    text
}

/// Connections over which nothing is read: what all of them cost together.
fn unread(growth: &Growth) -> String {
    let mut text = "| connections over which nothing is read | kernel, all | server, all | both, each |\n|---|---|---|---|\n".to_owned();
    for Unread { connections, fault, kernel_bytes, resident_bytes } in &growth.unread {
        let each = (kernel_bytes + resident_bytes) / f64::from(*connections);
        let _ = write!(text, "| {} | ", grouped((*connections).into()));
        let _ = match fault {
            Some(fault) => writeln!(text, "{fault} | | |"),
            None => writeln!(
                text,
                "{} | {} | {} |",
                mebibytes(*kernel_bytes),
                mebibytes(*resident_bytes),
                mebibytes(each)
            ),
        };
    }
    text
}
