//! Resident memory over time as a drawing: all the time, and at the moments of silence.

use std::time::Duration;

use evecho::client::plot::{self, Axis, Curve, Panel};

use crate::record::{Kept, Record, Sample};

pub(crate) fn svg(record: &Record) -> String {
    let panel = |title, samples: fn(&Kept) -> &[(Duration, Sample)]| {
        let curve = |(series, kept)| Curve { series, dashed: false, points: points(samples(kept)) };
        let curves = record.servers.iter().enumerate().map(curve).collect();
        let axis = Axis { logarithmic: false, label: |value| value.to_string() };
        Panel { title, below: "minutes", across: axis, up: axis, curves }
    };
    let panels = [
        panel("MiB, all the time", |kept| &kept.all),
        panel("MiB, while no connection is open", |kept| &kept.rests),
    ];
    let names: Vec<&str> = record.servers.iter().map(|kept| kept.name).collect();
    plot::svg("Resident memory of three servers over time", &names, &panels, &[])
}

fn points(samples: &[(Duration, Sample)]) -> Vec<(f64, [f64; 3])> {
    let point = |(at, sample): &(Duration, Sample)| {
        (at.as_secs_f64() / 60.0, [sample.usage.resident as f64 / f64::from(1 << 20); 3])
    };
    samples.iter().map(point).collect()
}
