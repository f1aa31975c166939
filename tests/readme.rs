//! What the README says of the command line is so.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::process::Command;

const README: &str = include_str!("../README.md");

/// The flags that `evecho --help` lists, each with its default, if it has one.
fn flags() -> Vec<(String, Option<String>)> {
    let output = Command::new(env!("CARGO_BIN_EXE_evecho")).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let mut flags: Vec<(String, Option<String>)> = Vec::new();
    for line in help.lines() {
        let words = line.trim();
        if words.starts_with('-')
            && let Some(at) = words.find("--")
        {
            let name = words[at..].split([' ', '.']).next().unwrap();
            flags.push((name.to_string(), None));
        } else if let Some(default) = words.strip_prefix("[default: ") {
            flags.last_mut().unwrap().1 = default.strip_suffix(']').map(str::to_string);
        }
    }
    flags.retain(|(name, _)| name != "--help" && name != "--version");
    flags
}

#[test]
fn the_table_has_every_flag_with_its_default() {
    let flags = flags();
    assert!(flags.len() > 15, "{flags:?}");
    for (name, default) in flags {
        let in_row = |row: &&str| {
            row.starts_with("| `") && row.contains(&format!("`{name}"))
                || row.contains(&format!("`{name} ")) && row.starts_with("| `")
        };
        let row =
            README.lines().find(in_row).unwrap_or_else(|| panic!("{name} is not in the table"));
        if let Some(default) = default {
            assert!(
                row.contains(&format!("| `{default}` |")),
                "{name}: the default is {default}: {row}"
            );
        }
    }
}

#[test]
fn the_table_has_no_other_flag() {
    let flags = flags();
    let rows = README.lines().filter(|line| line.starts_with("| `-"));
    for row in rows {
        let column = row.split('|').nth(1).unwrap();
        for name in column.split('`').filter(|part| part.starts_with("--")) {
            let name = name.split(' ').next().unwrap();
            assert!(flags.iter().any(|(flag, _)| flag == name), "{name}: {row}");
        }
    }
}
