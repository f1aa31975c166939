//! What commands print on a terminal: lines that stay, and lines that change where a terminal can do that.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "common/tool.rs"]
mod tool;

use std::fs::File;
use std::io::Read;

use nix::pty::{Winsize, openpty};
use tool::{Server, beside};

/// What a command writes on a terminal of this kind and width.
fn on_terminal(term: Option<&str>, columns: u16, arguments: &[&str]) -> String {
    let size = Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    let pair = openpty(&size, None).unwrap();
    let mut command = tool::evecho(arguments);
    command.env_clear().envs(term.map(|term| ("TERM", term)));
    command.stdout(pair.slave.try_clone().unwrap()).stderr(pair.slave);
    let mut child = command.spawn().unwrap();
    // It has the only other end now, which its end closes.
    drop(command);
    let (mut screen, mut bytes) = (File::from(pair.master), Vec::new());
    let error = screen.read_to_end(&mut bytes).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::errno::Errno::EIO as i32));
    // A busy machine may answer late: what is asked here is how that is printed.
    child.wait().unwrap();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn each_interval_keeps_its_line() {
    let server = Server::evecho(&[]);
    let load = ["load", &server.address, "-c", "2", "-t", "200ms", "--every", "50ms"];
    let screen = on_terminal(Some("xterm"), 80, &load);
    assert!(!screen.contains('\x1b'), "{screen:?}");
    let lines: Vec<&str> = screen.lines().take_while(|line| !line.starts_with("TCP")).collect();
    assert_eq!(lines.len(), 4, "{screen}");
    for line in lines {
        assert!(line.ends_with(" 0 errors") && line.len() < 80, "{line}");
    }
}

#[test]
fn a_line_of_progress_is_no_wider_than_the_terminal() {
    let server = Server::evecho(&[]);
    let load = ["load", &server.address, "-c", "2", "--warmup", "600ms", "-t", "600ms"];
    for columns in [10, 80] {
        let screen = on_terminal(Some("xterm"), columns, &load);
        let mut shown: Vec<&str> = screen.split("\r\x1b[K").collect();
        // The report is where the last one was.
        assert!(shown.pop().unwrap().starts_with("TCP ping-pong"), "{screen:?}");
        assert!(shown.iter().any(|line| line.contains("s: ")), "{screen:?}");
        for line in shown {
            assert!(line.len() < columns.into() && !line.contains('\x1b'), "{screen:?}");
        }
    }
    let compare = ["compare", "--rounds", "1", "-t", "10ms", "-c", "1", "--no-scenes"];
    let screen = on_terminal(Some("xterm"), 20, &compare);
    let shown: Vec<&str> = screen.split("\r\x1b[K").collect();
    assert!(shown.contains(&"0 % round 1: event-"), "{screen:?}");
}

#[test]
fn a_terminal_that_cannot_rewrite_a_line_gets_plain_ones() {
    let server = Server::evecho(&[]);
    let address = &server.address[..];
    beside([Some("dumb"), Some(""), None], |term| {
        for arguments in [
            &["load", address, "-c", "2", "-t", "700ms"][..],
            &["load", address, "-c", "2", "-t", "200ms", "--every", "50ms"],
            &["compare", "--rounds", "1", "-t", "10ms", "-c", "1", "--no-scenes"],
            &["check", address, "--only", "tcp-half-close"],
            &["states", address, "open"],
            &["ping", address, "-c", "2", "-i", "10ms"],
        ] {
            let screen = on_terminal(term, 80, arguments);
            let lines = screen.replace("\r\n", "\n");
            assert!(!lines.is_empty(), "{term:?}, {arguments:?}");
            assert!(!lines.contains(['\x1b', '\r']), "{term:?}, {arguments:?}: {screen:?}");
        }
    });
}
