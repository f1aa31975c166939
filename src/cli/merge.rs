//! `evecho merge`: adds up the reports of loads of the same kind.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use evecho::client::Cancel;
use evecho::client::load::{Report, svg};
use evecho::client::target::Target;
use nix::libc::O_NONBLOCK;
use serde_json::Value;

use super::figure::Figure;
use super::{CommandResult, load};

/// Add up reports of 'evecho load --json', for example from many machines
///
/// Counts are sums, and percentiles are those of all messages: each report carries its histogram. Rates
/// are those of all messages over the time in which runs went on, by the clocks of their machines. A run
/// that is in two reports is an error.
///
/// Whatever else is in the files is ignored, such as the lines of --every, warnings, and what 'kubectl
/// logs' writes before each line. Files in UTF-16, as PowerShell writes them, are read too.
///
/// The exit code is 0 when messages came back and nothing was wrong in any of them, and 1 otherwise.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Files with reports; - is standard input
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Print the sum as a line of JSON, which can be added again
    #[arg(long)]
    json: bool,
    /// Draw the reports over each other into this file, as SVG, also such as cannot be added
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    figure: Option<PathBuf>,
}

/// Reads the reports and prints their sum.
pub(crate) fn run(args: &Args) -> CommandResult {
    let figure = Figure::open(args.figure.as_deref())?;
    let cancel = Cancel::at_signals()?;
    let (mut names, mut places, mut reports) = (Vec::new(), Vec::new(), Vec::new());
    for file in &args.files {
        let text = read(file, &cancel)?;
        let found = reports_in(&text)
            .map_err(|(line, why)| format!("{}, line {line}: {why}", name(file)))?;
        if found.is_empty() {
            return Err(format!("{} has no report of 'evecho load --json'", name(file)).into());
        }
        names.extend((1..=found.len()).map(|number| match found.len() {
            1 => name(file),
            _ => format!("{} ({number})", name(file)),
        }));
        for (line, report) in found {
            places.push(format!("{}, line {line}", name(file)));
            reports.push(report);
        }
    }
    if let Some(figure) = figure {
        let named: Vec<_> = names.iter().map(String::as_str).zip(&reports).collect();
        figure.write(&svg("Loads, each from its beginning", &named))?;
    }
    let mut sum = None;
    for (place, report) in places.iter().zip(reports) {
        let merged = Report::merge(sum.into_iter().chain([report]));
        sum = Some(merged.map_err(|error| format!("{place}: {error}"))?);
    }
    let report = sum.ok_or("there is no report to add")?;
    load::print(&report, &Target::from(report.config.address), args.json)
}

fn name(file: &Path) -> String {
    match file.to_str() {
        Some("-") => "standard input".to_owned(),
        _ => file.display().to_string(),
    }
}

/// The text of a file, or of standard input.
fn read(file: &Path, cancel: &Cancel) -> Result<String, String> {
    let input = match file.to_str() {
        Some("-") => io::stdin().as_fd().try_clone_to_owned().map(File::from),
        // A FIFO is opened before something writes there.
        _ => File::options().read(true).custom_flags(O_NONBLOCK).open(file),
    };
    let mut bytes = Vec::new();
    input
        .and_then(|input| cancel.reader(input).read_to_end(&mut bytes))
        .map_err(|error| format!("cannot read {}: {error}", name(file)))?;
    if cancel.is_cancelled() {
        return Err(format!("stopped before {} was read to its end", name(file)));
    }
    Ok(decode(&bytes))
}

/// A text in UTF-8, or in UTF-16 with a mark before it. What is neither is no part of a report.
fn decode(bytes: &[u8]) -> String {
    let utf16 = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let units = bytes.as_chunks().0.iter().map(|&pair| unit(pair));
        char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
    };
    match bytes {
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes),
        _ => String::from_utf8_lossy(bytes).into_owned(),
    }
}

/// How a report begins.
const START: &str = r#"{"event":"report""#;

/// The reports in a text, each with the number of its line: objects of JSON, wherever they begin.
///
/// # Errors
///
/// The line of a report that is damaged, and what is wrong with it.
fn reports_in(text: &str) -> Result<Vec<(usize, Report)>, (usize, String)> {
    let line = |at: usize| text[..at].matches('\n').count() + 1;
    let mut reports = Vec::new();
    // What is before `read` is read; `at` is where the next object may begin.
    let (mut read, mut at) = (0, 0);
    while let Some(brace) = text[at..].find('{').map(|found| at + found) {
        let mut values = serde_json::Deserializer::from_str(&text[brace..]).into_iter::<Value>();
        let Some(Ok(value)) = values.next() else {
            at = brace + 1;
            continue;
        };
        check_ignored(&text[read..brace]).map_err(|(at, why)| (line(read + at), why))?;
        at = brace + values.byte_offset();
        read = at;
        if value["event"] == "report" {
            reports.push((line(brace), parse(value).map_err(|why| (line(brace), why))?));
        }
    }
    check_ignored(&text[read..]).map_err(|(at, why)| (line(read + at), why))?;
    Ok(reports)
}

/// What is no object must not have been a report: where one begins, and what is wrong with it.
fn check_ignored(text: &str) -> Result<(), (usize, String)> {
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let end = line.trim_end();
        let is_cut = || (2..START.len()).any(|length| end.ends_with(&START[..length]));
        if line.contains(&START[1..]) || line.contains(r#""event": "report""#) || is_cut() {
            return Err((start, "a report that is cut off or damaged".to_owned()));
        }
        start += line.len();
    }
    Ok(())
}

fn parse(value: Value) -> Result<Report, String> {
    if value["runs"].is_number() {
        let why = "a report of an earlier version of evecho, which does not say when it was made";
        return Err(why.to_owned());
    }
    serde_json::from_value(value).map_err(|error| format!("a report that is damaged: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_powershell_are_read() {
        let text = "a {\"é\":1}\r\n😀";
        let mut little = vec![0xff, 0xfe];
        let mut big = vec![0xfe, 0xff];
        for unit in text.encode_utf16() {
            little.extend(unit.to_le_bytes());
            big.extend(unit.to_be_bytes());
        }
        assert_eq!(decode(&little), text);
        assert_eq!(decode(&big), text);
        assert_eq!(decode(text.as_bytes()), text);
        little.push(b'x');
        assert_eq!(decode(&little), text);
        assert_eq!(decode(b"\xff\xff{}"), "\u{fffd}\u{fffd}{}");
        assert_eq!(decode(b""), "");
    }

    #[test]
    fn what_is_no_report_is_ignored_unless_it_was_one() {
        for text in [
            "",
            "{",
            "{{{ a warning {with braces} and } more",
            "{\"event\":\"interval\",\"messages\":1}\n{\"event\":\"int",
            "[1, 2] \"event\" {\"other\": {\"event\": \"report\"}}",
        ] {
            assert!(reports_in(text).is_ok_and(|found| found.is_empty()), "{text}");
        }
        for (text, line) in [
            ("x\n{\"event\":\"report\",\"vers", 2),
            ("{\"event\":\"report\",\"vers\n{\"event\":\"interval\"}", 1),
            ("\n\n{\"event\":\"rep", 3),
            ("pod {\"event\":\"report\"}", 1),
            ("{\n  \"event\": \"report\",\n  \"version\"", 2),
            ("{\"bytes\":1,\"config\":{\"depth\":1},\"event\":\"report\",", 1),
            ("{}\n{\"event\":\"report\",\"runs\":2}", 2),
        ] {
            let found = reports_in(text).unwrap_err();
            assert_eq!(found.0, line, "{text}: {}", found.1);
        }
    }
}
