//! A report as a drawing: throughput and latency over the number of connections, a line a server.

use std::time::Duration;

use super::report::{Cell, Measurement, Report};
use super::{Contender, Scene};
use crate::client::plot::{self, Axis, Curve, Panel};
use crate::units;

/// Draws the trials of connections that stay, as SVG. `None` when nothing of them was measured.
pub fn svg(report: &Report) -> Option<String> {
    let names: Vec<&str> = report.servers.iter().map(|server| &*server.name).collect();
    let steady = |cell: &&Cell| cell.trial.scene == Scene::Connections;
    let cells: Vec<&Cell> = report.cells.iter().filter(steady).collect();
    let curves = |dashed, of: fn(&Measurement) -> f64| {
        let curve = |(series, name): (usize, &&str)| {
            let cells = cells.iter().filter(|cell| cell.server == **name);
            Curve { series, dashed, points: cells.filter_map(|cell| point(cell, of)).collect() }
        };
        names.iter().enumerate().map(curve).collect::<Vec<_>>()
    };
    let rates = curves(false, |m| m.messages_per_second);
    let times = [curves(true, |m| m.p99_us), curves(false, |m| m.p50_us)].concat();
    let number = |value| units::rounded(value).to_string();
    let time = |us: f64| units::time(Duration::from_nanos((us * 1e3) as u64)).to_string();
    let linear = Axis { logarithmic: false, label: number };
    let across = Axis { logarithmic: true, ..linear };
    let up = Axis { label: time, ..across };
    let below = "connections";
    let panels = [
        Panel { title: "Messages per second", below, across, up: linear, curves: rates },
        Panel { title: "Latency: p50, and p99 (dashed)", below, across, up, curves: times },
    ];
    let (size, depth) = (report.size, report.depth);
    let title = format!("Echo servers: {size}-byte messages, {depth} in flight on each connection");
    let is_measured = cells.iter().any(|cell| !cell.rounds.is_empty());
    is_measured.then(|| plot::svg(&title, &names, &panels, &notes(report, &cells)))
}

/// The number of connections, and the spread of a value.
fn point(cell: &Cell, of: fn(&Measurement) -> f64) -> Option<(f64, [f64; 3])> {
    let spread = cell.spread(of)?;
    Some((cell.trial.connections.into(), [spread.low, spread.median, spread.high]))
}

/// The first fault of each server, which keeps it from having all points, and how the others came about.
fn notes(report: &Report, cells: &[&Cell]) -> Vec<String> {
    let fault = |server: &Contender| {
        let mut cells = cells.iter().filter(|cell| cell.server == server.name);
        let cell = cells.find(|cell| cell.fault.is_some())?;
        Some(format!("{} at {}: {}.", cell.server, cell.trial, cell.fault.as_ref()?))
    };
    let machine = &report.machine;
    let most = cells.iter().map(|cell| cell.rounds.len()).max();
    let rounds = match most.unwrap_or(0) {
        1 => "One round.".to_owned(),
        most => {
            let up_to = if report.stopped { "up to " } else { "" };
            format!("Medians of {up_to}{most} rounds, bars from the lowest to the highest.")
        }
    };
    let made_by = [
        rounds,
        format!("{}, {}, {}.", machine.cpu, units::count(machine.cpus, "CPU"), machine.kernel),
        format!("evecho {}; the client shares the machine.", report.version),
    ];
    report.servers.iter().filter_map(fault).chain(made_by).collect()
}
