//! The help of each command, as people see it. After a change that is meant, run with
//! `SNAPSHOTS=overwrite` and look at the difference.

use std::process::Command;

use snapbox::{Data, assert_data_eq};

fn help(command: &[&str]) -> String {
    let mut evecho = Command::new(env!("CARGO_BIN_EXE_evecho"));
    // Values from the environment would show.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("EVECHO_")) {
        evecho.env_remove(name);
    }
    // As wide as without a terminal, whatever the terminal.
    let output = evecho.args(command).arg("--help").env("COLUMNS", "100").output();
    let output = output.expect("the binary runs");
    assert!(output.status.success());
    String::from_utf8(output.stdout).expect("help is text")
}

#[test]
fn help_is_what_it_was() {
    for name in
        ["serve", "check", "compare", "completions", "load", "merge", "ping", "send", "states"]
    {
        let command = if name == "serve" { vec![] } else { vec![name] };
        let path = format!("{}/tests/help/{name}.txt", env!("CARGO_MANIFEST_DIR"));
        assert_data_eq!(help(&command), Data::read_from(path.as_ref(), None).raw());
    }
}
