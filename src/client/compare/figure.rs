//! A report as a drawing: throughput and latency over the number of connections, a line a server.
//!
//! It is SVG with a style sheet for light and one for dark backgrounds, and it needs nothing else.

use std::fmt::Write;

use super::Trial;
use super::report::{Cell, Measurement, Report, Spread};

const WIDTH: f64 = 860.0;
/// Where the panels begin and end, from the top.
const TOP: f64 = 96.0;
const BOTTOM: f64 = 356.0;
/// Where each panel begins, from the left, and how wide it is.
const PANELS: [f64; 2] = [64.0, 496.0];
const PANEL: f64 = 340.0;
/// The lines under the panels are so far apart.
const LINE: f64 = 18.0;

const STYLE: &str = "\
text{font:13px system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif;fill:#1f2328}
.title{font-size:16px;font-weight:600}.name{font-weight:600}.note{font-size:12px;fill:#59636e}
.paper{fill:#ffffff}.grid{stroke:#d8dee4;fill:none}
.line{stroke-width:2;fill:none}.dashed{stroke-dasharray:5 4}.bar{stroke-width:1.5}
.s0{stroke:#0064b4}.s1{stroke:#c44d00}.s2{stroke:#00785a}
.s3{stroke:#9b3d85}.s4{stroke:#7d6200}.s5{stroke:#5a5f66}
.m0{fill:#0064b4}.m1{fill:#c44d00}.m2{fill:#00785a}
.m3{fill:#9b3d85}.m4{fill:#7d6200}.m5{fill:#5a5f66}
@media(prefers-color-scheme:dark){
text{fill:#e6edf3}.note{fill:#9aa4ae}.paper{fill:#0d1117}.grid{stroke:#30363d}
.s0{stroke:#5ab0ff}.s1{stroke:#ff9b50}.s2{stroke:#3fd0a0}
.s3{stroke:#e79ad0}.s4{stroke:#e3c04a}.s5{stroke:#b4bcc4}
.m0{fill:#5ab0ff}.m1{fill:#ff9b50}.m2{fill:#3fd0a0}
.m3{fill:#e79ad0}.m4{fill:#e3c04a}.m5{fill:#b4bcc4}
}";
const COLOURS: usize = 6;

/// Draws the trials of connections that stay. `None` when nothing of them was measured.
pub fn svg(report: &Report) -> Option<String> {
    let steady = |cell: &&Cell| matches!(cell.trial, Trial::Connections { .. });
    let cells: Vec<&Cell> = report.cells.iter().filter(steady).collect();
    let across = Axis::logarithmic(cells.iter().map(|cell| f64::from(cell.trial.connections())))?;
    let values = |of: &dyn Fn(&Measurement) -> f64| -> Vec<f64> {
        cells.iter().filter_map(|cell| cell.spread(of)).flat_map(|s| [s.low, s.high]).collect()
    };
    let rates = values(&|m| m.messages_per_second);
    let medians = |of: &dyn Fn(&Measurement) -> f64| -> Vec<f64> {
        cells.iter().filter_map(|cell| cell.spread(of)).map(|s| s.median).collect()
    };
    let latencies = [medians(&|m| m.p50_us), medians(&|m| m.p99_us)].concat();
    let panels = [
        Panel {
            title: "Messages per second",
            left: PANELS[0],
            across: across.clone(),
            up: Axis::from_zero(rates)?,
            label: short_number,
        },
        Panel {
            title: "Latency: p50, and p99 (dashed)",
            left: PANELS[1],
            across,
            up: Axis::logarithmic(latencies)?,
            label: short_time,
        },
    ];
    let mut drawing = Drawing::default();
    drawing.heading(report);
    panels.iter().for_each(|panel| drawing.panel(panel));
    for (index, server) in report.servers.iter().enumerate() {
        let cells: Vec<&&Cell> = cells.iter().filter(|cell| cell.server == server.name).collect();
        let line = |panel: &Panel, of: &dyn Fn(&Measurement) -> f64| -> Vec<(f64, Spread)> {
            let point = |cell: &&&Cell| {
                let x = panel.x(f64::from(cell.trial.connections()));
                cell.spread(of).map(|spread| (x, spread))
            };
            cells.iter().filter_map(point).collect()
        };
        let [rate, latency] = &panels;
        drawing.line(rate, index, "", &line(rate, &|m| m.messages_per_second), true);
        drawing.line(latency, index, " dashed", &line(latency, &|m| m.p99_us), false);
        drawing.line(latency, index, "", &line(latency, &|m| m.p50_us), false);
    }
    let mut notes = faults(report, &cells);
    notes.extend(made_by(report));
    Some(drawing.finish(&notes))
}

/// What kept servers from having all points: the first fault of each.
fn faults(report: &Report, cells: &[&Cell]) -> Vec<String> {
    let first = |name: &str| cells.iter().find(|cell| cell.server == name && cell.fault.is_some());
    let note = |cell: &&Cell| {
        let fault = cell.fault.as_deref().unwrap_or_default();
        format!("{} at {}: {fault}.", cell.server, cell.trial)
    };
    report.servers.iter().filter_map(|server| first(&server.name)).map(note).collect()
}

fn made_by(report: &Report) -> [String; 2] {
    let machine = &report.machine;
    [
        format!("Medians of {} rounds, bars from the lowest to the highest.", report.rounds),
        format!(
            "{}, {} CPUs, {}, evecho {}; the client shares the machine.",
            machine.cpu, machine.cpus, machine.kernel, report.version
        ),
    ]
}

/// From values to places, and where it has its marks.
#[derive(Clone)]
struct Axis {
    low: f64,
    high: f64,
    logarithmic: bool,
    marks: Vec<f64>,
}

impl Axis {
    /// Decades, from the one below all values to the one above.
    fn logarithmic(values: impl IntoIterator<Item = f64>) -> Option<Axis> {
        let all = Spread::of(values.into_iter().filter(|&value| value > 0.0))?;
        // Just below a mark, the mark itself would be one decade further.
        let (first, last) =
            (all.low.log10().floor() as i32, (all.high.log10() - 1e-9).ceil() as i32);
        let last = last.max(first + 1);
        let marks: Vec<f64> = (first..=last).map(|power| 10_f64.powi(power)).collect();
        Some(Axis { low: 10_f64.powi(first), high: 10_f64.powi(last), logarithmic: true, marks })
    }

    /// From zero to a round number over all values.
    fn from_zero(values: impl IntoIterator<Item = f64>) -> Option<Axis> {
        let high = Spread::of(values)?.high.max(1.0);
        let unit = 10_f64.powf((high / 5.0).log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * unit);
        let step = step.into_iter().find(|step| step * 5.0 >= high).unwrap_or(high);
        let count = (high / step).ceil();
        let marks = (0..=count as u32).map(|index| f64::from(index) * step).collect();
        Some(Axis { low: 0.0, high: count * step, logarithmic: false, marks })
    }

    /// Where a value stands: 0 at the low end, 1 at the high one.
    fn place(&self, value: f64) -> f64 {
        match self.logarithmic {
            true => (value / self.low).log10() / (self.high / self.low).log10(),
            false => (value - self.low) / (self.high - self.low),
        }
    }
}

struct Panel {
    title: &'static str,
    left: f64,
    across: Axis,
    up: Axis,
    label: fn(f64) -> String,
}

impl Panel {
    fn x(&self, value: f64) -> f64 {
        // The first and the last mark stand a little inside.
        self.left + PANEL * (0.04 + 0.92 * self.across.place(value))
    }

    fn y(&self, value: f64) -> f64 {
        BOTTOM - (BOTTOM - TOP) * self.up.place(value)
    }
}

/// SVG elements, one after the other. Writing to it cannot fail.
#[derive(Default)]
struct Drawing {
    body: String,
}

impl Drawing {
    fn text(&mut self, (x, y): (f64, f64), class: &str, anchor: &str, text: &str) {
        let text = escaped(text);
        let _ = writeln!(
            self.body,
            r#"<text x="{x:.1}" y="{y:.1}" class="{class}" text-anchor="{anchor}">{text}</text>"#
        );
    }

    /// What it is, and which line is whose.
    fn heading(&mut self, report: &Report) {
        let title = format!(
            "Echo servers: {}-byte messages, {} in flight on each connection",
            report.size, report.depth
        );
        self.text((PANELS[0], 28.0), "title", "start", &title);
        let mut x = PANELS[0];
        for (index, server) in report.servers.iter().enumerate() {
            let colour = index % COLOURS;
            let end = x + 26.0;
            let _ =
                writeln!(self.body, r#"<path class="line s{colour}" d="M{x:.1} 50H{end:.1}"/>"#);
            self.marker(index, x + 13.0, 50.0);
            self.text((x + 33.0, 54.5), "name", "start", &server.name);
            x += 58.0 + 7.6 * server.name.chars().count() as f64;
        }
    }

    /// A panel without its lines.
    fn panel(&mut self, panel: &Panel) {
        let (left, right) = (panel.left, panel.left + PANEL);
        self.text((left, TOP - 14.0), "name", "start", panel.title);
        for &mark in &panel.up.marks {
            let y = panel.y(mark);
            let _ = writeln!(self.body, r#"<path class="grid" d="M{left:.1} {y:.1}H{right:.1}"/>"#);
            self.text((left - 7.0, y + 4.5), "note", "end", &(panel.label)(mark));
        }
        for &mark in &panel.across.marks {
            self.text((panel.x(mark), BOTTOM + LINE), "note", "middle", &short_number(mark));
        }
        self.text((left + PANEL / 2.0, BOTTOM + 2.0 * LINE), "note", "middle", "connections");
    }

    /// A line with its points, and bars for their spread.
    fn line(
        &mut self,
        panel: &Panel,
        index: usize,
        class: &str,
        points: &[(f64, Spread)],
        bars: bool,
    ) {
        let colour = index % COLOURS;
        let place = |(x, spread): &(f64, Spread)| format!("{x:.1} {:.1}", panel.y(spread.median));
        let path = points.iter().map(place).collect::<Vec<_>>().join("L");
        if points.len() > 1 {
            let _ = writeln!(self.body, r#"<path class="line s{colour}{class}" d="M{path}"/>"#);
        }
        for (x, spread) in points {
            if bars {
                let (low, high) = (panel.y(spread.low), panel.y(spread.high));
                let _ = writeln!(
                    self.body,
                    r#"<path class="bar s{colour}" d="M{x:.1} {low:.1}V{high:.1}"/>"#
                );
            }
            self.marker(index, *x, panel.y(spread.median));
        }
    }

    /// A point; its shape tells lines apart where colours do not.
    fn marker(&mut self, index: usize, x: f64, y: f64) {
        let shape = match index % 4 {
            0 => "m-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0z",
            1 => "m-4-4h8v8h-8z",
            2 => "m0-5.5l5 9h-10z",
            _ => "m0-5.5l5.5 5.5l-5.5 5.5l-5.5-5.5z",
        };
        let colour = index % COLOURS;
        let _ = writeln!(self.body, r#"<path class="m{colour}" d="M{x:.1} {y:.1}{shape}"/>"#);
    }

    fn finish(mut self, notes: &[String]) -> String {
        let mut y = BOTTOM + 3.6 * LINE;
        for note in notes {
            self.text((PANELS[0], y), "note", "start", note);
            y += LINE;
        }
        let body = self.body;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {y:.0}\" \
             width=\"{WIDTH}\" height=\"{y:.0}\" role=\"img\">\n\
             <title>Throughput and latency of echo servers over the number of connections</title>\n\
             <style>\n{STYLE}\n</style>\n\
             <rect class=\"paper\" width=\"100%\" height=\"100%\"/>\n{body}</svg>\n"
        )
    }
}

/// `1,000`, `50k`, `1.5M`.
fn short_number(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{}M", v / 1e6),
        v if v >= 1e4 => format!("{}k", v / 1e3),
        v if v >= 1e3 => format!("{},{:03}", (v / 1e3).floor(), v % 1e3),
        v => format!("{v}"),
    }
}

/// Microseconds as people read them.
fn short_time(us: f64) -> String {
    match us {
        us if us >= 1e6 => format!("{} s", us / 1e6),
        us if us >= 1e3 => format!("{} ms", us / 1e3),
        us => format!("{us} µs"),
    }
}

/// Text between tags.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decades_hold_all_values() {
        let axis = Axis::logarithmic([12.0, 800.0]).unwrap();
        assert_eq!(axis.marks, [10.0, 100.0, 1000.0]);
        assert_eq!((axis.place(10.0), axis.place(1000.0)), (0.0, 1.0));
        assert_eq!(Axis::logarithmic([1.0, 1000.0]).unwrap().marks, [1.0, 10.0, 100.0, 1000.0]);
        assert_eq!(Axis::logarithmic([1.0]).unwrap().marks, [1.0, 10.0]);
        assert!(Axis::logarithmic([]).is_none());
    }

    #[test]
    fn marks_are_round_numbers() {
        assert_eq!(Axis::from_zero([190.0]).unwrap().marks, [0.0, 50.0, 100.0, 150.0, 200.0]);
        assert_eq!(Axis::from_zero([1.0e6]).unwrap().high, 1.0e6);
        assert_eq!(Axis::from_zero([0.0]).unwrap().low, 0.0);
    }

    #[test]
    fn labels_are_short() {
        let numbers = [1.0, 1000.0, 50_000.0, 1_500_000.0].map(short_number);
        assert_eq!(numbers, ["1", "1,000", "50k", "1.5M"]);
        assert_eq!([10.0, 1000.0, 1e7].map(short_time), ["10 µs", "1 ms", "10 s"]);
    }

    #[test]
    fn names_cannot_break_the_drawing() {
        assert_eq!(escaped("<a & b>"), "&lt;a &amp; b&gt;");
    }
}
