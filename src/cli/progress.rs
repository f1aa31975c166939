//! The line that says how far a command is, for all commands that show one.

use std::env;
use std::io::{self, IsTerminal, Write};

use terminal_size::{Width, terminal_size_of};

/// A line on standard error that changes while a command runs. It is cut to the width of the terminal: one that
/// wraps could not be taken back. Where standard error is not a terminal that can rewrite a line (`TERM` is `dumb`
/// or not set), nothing is shown.
pub(super) struct ProgressLine {
    can_rewrite: bool,
    shown: bool,
}

impl ProgressLine {
    pub(super) fn new() -> Self {
        let term = env::var_os("TERM").unwrap_or_default();
        let can_rewrite = io::stderr().is_terminal() && !term.is_empty() && term != "dumb";
        Self { can_rewrite, shown: false }
    }

    /// Whether what is shown can be seen.
    pub(super) fn is_visible(&self) -> bool {
        self.can_rewrite
    }

    /// Shows `text` in place of what was shown before.
    pub(super) fn show(&mut self, text: &str) {
        if self.can_rewrite {
            let width = terminal_size_of(io::stderr()).map_or(80, |(Width(columns), _)| columns);
            self.rewrite(&fitting(text, width));
            self.shown = true;
        }
    }

    /// Takes the line back, before something else is printed.
    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            self.rewrite("");
        }
    }

    fn rewrite(&self, text: &str) {
        // A terminal that went away is no reason to end.
        let _ = io::stderr().write_all(format!("\r\x1b[K{text}").as_bytes());
    }
}

/// As much of a text as a terminal takes that is `width` columns wide. The last one stays free: some wrap once it
/// is written.
fn fitting(text: &str, width: u16) -> String {
    let printable = text.chars().filter(|character| !character.is_control());
    printable.take(usize::from(width).saturating_sub(1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_fits_on_its_terminal() {
        assert_eq!(fitting("24,040/s", 9), "24,040/s");
        assert_eq!(fitting("24,040/s, 3 errors", 9), "24,040/s");
        assert_eq!(fitting("one\ntwo\x1b[2J", 80), "onetwo[2J");
        assert_eq!(fitting("x", 0), "");
    }
}
