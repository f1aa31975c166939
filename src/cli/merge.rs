//! `evecho merge`: adds up the reports of loads that went on at the same time.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use evecho::client::load::Report;
use evecho::client::target::Target;
use serde_json::Value;

use super::CommandResult;
use super::load::{describe, json};
use super::output::Output;

/// Add up reports of 'evecho load --json', for example from many machines
///
/// Counts and rates are sums, and percentiles are those of all messages: each report carries its
/// histogram. Other lines, such as those of --every, are ignored.
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
}

/// Reads the reports and prints their sum.
pub(crate) fn run(args: &Args) -> CommandResult {
    let mut reports = Vec::new();
    for file in &args.files {
        let found = reports_in(file)?;
        if found.is_empty() {
            return Err(format!("{} has no report of 'evecho load --json'", file.display()).into());
        }
        reports.extend(found);
    }
    let report = Report::merge(reports)?;
    let text = match args.json {
        true => json("report", &report) + "\n",
        false => describe(&report, &Target::from(report.config.address)),
    };
    Output::plain().write_all(text.as_bytes())?;
    Ok(ExitCode::from(u8::from(!report.is_clean())))
}

/// The reports in a file: objects of JSON, one after the other.
fn reports_in(file: &Path) -> Result<Vec<Report>, Box<dyn std::error::Error>> {
    let cannot = |error: &dyn std::error::Error| format!("cannot read {}: {error}", file.display());
    let text = match file.to_str() {
        Some("-") => {
            let mut text = String::new();
            io::stdin().read_to_string(&mut text).map(|_| text)
        }
        _ => fs::read_to_string(file),
    };
    let text = text.map_err(|error| cannot(&error))?;
    let mut reports = Vec::new();
    for value in serde_json::Deserializer::from_str(&text).into_iter::<Value>() {
        let value = value.map_err(|error| cannot(&error))?;
        if value["event"] == "report" {
            reports.push(serde_json::from_value(value).map_err(|error| cannot(&error))?);
        }
    }
    Ok(reports)
}
