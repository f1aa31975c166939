//! Resident memory over time as a drawing (SVG): a line a server, with points where nobody was connected.

use std::fmt::Write as _;
use std::time::Duration;

use crate::record::{Kept, Record, Sample};

/// Where the lines are, within a drawing of 860 by 400.
const LEFT: f64 = 64.0;
const RIGHT: f64 = 816.0;
const TOP: f64 = 72.0;
const BOTTOM: f64 = 350.0;

const STYLE: &str = "\
text{font:13px system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif;fill:#1f2328}
.title{font-size:16px;font-weight:600}.paper{fill:#ffffff}.grid{stroke:#d8dee4}
.line{fill:none;stroke-width:1;opacity:.6}
.s0{stroke:#0064b4}.s1{stroke:#c44d00}.s2{stroke:#00785a}.p0{fill:#0064b4}.p1{fill:#c44d00}.p2{fill:#00785a}
@media(prefers-color-scheme:dark){
text{fill:#e6edf3}.paper{fill:#0d1117}.grid{stroke:#30363d}
.s0{stroke:#5ab0ff}.s1{stroke:#ff9b50}.s2{stroke:#3fd0a0}.p0{fill:#5ab0ff}.p1{fill:#ff9b50}.p2{fill:#3fd0a0}
}";

pub(crate) fn svg(record: &Record) -> String {
    let samples = || record.servers.iter().flat_map(|kept| &kept.all);
    let axes = Axes {
        minutes: samples().map(|(at, _)| minutes(*at)).fold(0.0, f64::max),
        // In whole quarters.
        mebibytes: 4.0
            * (samples().map(|(_, sample)| mebibytes(sample) / 4.0).fold(1.0, f64::max)).ceil(),
    };
    let mut body = axes.grid();
    for (index, kept) in record.servers.iter().enumerate() {
        axes.draw(&mut body, index, kept);
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 860 400\" width=\"860\" height=\"400\" role=\"img\">\n\
         <title>Resident memory of three servers over time</title>\n<style>\n{STYLE}\n</style>\n\
         <rect class=\"paper\" width=\"100%\" height=\"100%\"/>\n\
         <text x=\"{LEFT}\" y=\"28\" class=\"title\">Resident memory in MiB; points: nobody connected</text>\n{body}</svg>\n"
    )
}

fn mebibytes(sample: &Sample) -> f64 {
    sample.usage.resident as f64 / f64::from(1 << 20)
}

/// Both begin at zero, and end here.
struct Axes {
    minutes: f64,
    mebibytes: f64,
}

impl Axes {
    fn place(&self, minutes: f64, mebibytes: f64) -> (f64, f64) {
        (
            LEFT + (RIGHT - LEFT) * minutes / self.minutes,
            BOTTOM - (BOTTOM - TOP) * mebibytes / self.mebibytes,
        )
    }

    /// Lines at quarters, with their values.
    fn grid(&self) -> String {
        let mut grid = String::new();
        for part in [0.0, 0.25, 0.5, 0.75, 1.0] {
            let (minutes, mebibytes) = (part * self.minutes, part * self.mebibytes);
            let (x, y) = self.place(minutes, mebibytes);
            let _ = writeln!(
                grid,
                "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{RIGHT}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{mebibytes:.0}</text>\
                 <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{minutes:.0} min</text>",
                LEFT - 7.0,
                y + 4.5,
                BOTTOM + 20.0
            );
        }
        grid
    }

    fn draw(&self, body: &mut String, index: usize, kept: &Kept) {
        let place = |&(at, sample): &_| self.place(minutes(at), mebibytes(&sample));
        let path: Vec<_> =
            kept.all.iter().map(place).map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
        let _ = writeln!(body, "<path class=\"line s{index}\" d=\"M{}\"/>", path.join("L"));
        for (x, y) in kept.rests.iter().map(place) {
            let _ = writeln!(
                body,
                "<circle class=\"p{index}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\"/>"
            );
        }
        let x = LEFT + 110.0 * index as f64;
        let _ = writeln!(
            body,
            "<circle class=\"p{index}\" cx=\"{:.1}\" cy=\"48\" r=\"4\"/><text x=\"{:.1}\" y=\"52.5\">{}</text>",
            x + 4.0,
            x + 14.0,
            kept.name
        );
    }
}

fn minutes(at: Duration) -> f64 {
    at.as_secs_f64() / 60.0
}
