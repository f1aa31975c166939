//! A scenario as a ladder: both ends, the segments between them, and what they make of both.

use super::report::{Connection, End, Remark, Report, ScenarioReport, Segment, Side, Step};
use crate::client::plot::{self, Rung};
use crate::units::milliseconds;

/// Spaces that are drawn at the beginning of a text, too.
const INDENT: &str = "\u{a0}\u{a0}\u{a0}\u{a0}";

impl Report {
    /// Draws the scenarios as ladders, one below the other: SVG for light and for dark backgrounds.
    pub fn figure(&self) -> String {
        let shown = || self.scenarios.iter().filter(|scenario| !scenario.steps.is_empty());
        let names: Vec<&str> = shown().map(|scenario| scenario.name).collect();
        let mut rungs = Vec::new();
        for scenario in shown() {
            if names.len() > 1 {
                rungs.push(Rung::Heading(format!("{}: {}", scenario.name, scenario.about)));
            }
            scenario.add_to(&mut rungs);
        }
        let seen = shown().flat_map(|one| &one.steps).flat_map(|step| &step.segments);
        let (numbers, times) = (
            seen.clone().any(|one| one.header.is_some()),
            seen.clone().any(|one| one.at.is_some()),
        );
        let note = match (numbers, times) {
            (true, _) => {
                "Sequence and acknowledgement numbers are relative to the SYN. Times are those of sending."
            }
            (false, true) => "Times are those of sending.",
            (false, false) => {
                "The segments are those that make such a change of states; they were not seen."
            }
        };
        plot::ladder(&names.join(", "), ["client", "server"], &rungs, &[note.to_owned()])
    }
}

impl ScenarioReport {
    fn add_to(&self, rungs: &mut Vec<Rung>) {
        for (number, step) in (1..).zip(&self.steps) {
            for (index, call) in step.calls.iter().enumerate() {
                let number = if index == 0 { format!("{number}. ") } else { INDENT.to_owned() };
                rungs.push(Rung::Heading(number + call));
            }
            step.add_to(rungs);
        }
    }
}

impl Step {
    fn add_to(&self, rungs: &mut Vec<Rung>) {
        let several = self.connections.len() != 1;
        for (index, segment) in self.segments.iter().enumerate() {
            if self.segments_left_out > 0 && index == self.segments.len() / 2 {
                rungs.push(Rung::Heading(format!(
                    "{INDENT}{} more segments",
                    self.segments_left_out
                )));
            }
            rungs.push(arrow(segment, several));
        }
        if self.connections.is_empty() && !self.segments.is_empty() {
            rungs.push(Rung::States(Default::default()));
        }
        for (number, Connection { client, server, .. }) in (1..).zip(&self.connections) {
            let near = if several { format!("{number}: {}", state(client)) } else { state(client) };
            let far = server.as_ref().map(state).unwrap_or_default();
            rungs.push(Rung::States([near, far]));
        }
    }
}

fn arrow(segment: &Segment, several: bool) -> Rung {
    let mut text = segment.what.to_string();
    if several {
        text = format!("{}: {text}", segment.client);
    }
    if let Some(icmp) = segment.icmp {
        text += &format!(" {icmp}");
    }
    let time = segment.at.map(|at| format!("{} ms", milliseconds(at))).unwrap_or_default();
    let mut again = false;
    if let Some(header) = &segment.header {
        text += &format!("  seq {}", header.relative_sequence);
        if let Some(acknowledgement) = header.relative_acknowledgement {
            text += &format!(", ack {acknowledgement}");
        }
        text += &format!(", win {}", header.window);
        again = header.remark == Some(Remark::Again);
        match header.remark {
            Some(Remark::Again) => text += ", again",
            Some(Remark::Probe) => text += ", a probe",
            _ => {}
        }
    }
    Rung::Arrow { to_right: segment.from == Side::Client, text, time, again }
}

fn state(end: &End) -> String {
    match end.waits_to_be_accepted() {
        true => format!("{}, not accepted", end.state),
        false => end.state.to_string(),
    }
}
