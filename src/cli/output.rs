//! Standard output and standard error, for commands whose reader may go away.

use std::env;
use std::error::Error;
use std::fs::{File, Metadata};
use std::io::{self, Stdout, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use anstream::ColorChoice;
use anstyle::{AnsiColor, Style};
use evecho::client::Cancel;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;

pub(super) const BOLD: Style = Style::new().bold();
pub(super) const DIM: Style = Style::new().dimmed();
pub(super) const GOOD: Style = AnsiColor::Green.on_default();
pub(super) const BAD: Style = AnsiColor::Red.on_default().bold();
pub(super) const ODD: Style = AnsiColor::Yellow.on_default();

/// Turns colours off where `TERM` is empty, as where it is not set.
pub(super) fn choose_colours() {
    let is_empty = env::var_os("TERM").is_some_and(|term| term.is_empty());
    if is_empty && env::var_os("CLICOLOR_FORCE").is_none() {
        ColorChoice::Never.write_global();
    }
}

/// Standard output. Once its reader has gone (`evecho check ... | head -1`), what is written is dropped
/// silently: the command goes on to its verdict, which is its exit code.
pub(super) struct Output<W = Stdout> {
    inner: W,
    closed: bool,
    /// How it went to write while a run went on.
    reported: io::Result<()>,
}

impl Output {
    /// Standard output as it is.
    pub(super) fn plain() -> Self {
        Self::new(io::stdout())
    }
}

impl<W: Write> Output<W> {
    /// A writer that ends in standard output, such as a stream that knows about colours.
    pub(super) fn new(inner: W) -> Self {
        Self { inner, closed: false, reported: Ok(()) }
    }

    /// Whether the reader has gone.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Writes while a run goes on, until something cannot be written: [`Self::conclude`] tells.
    pub(super) fn report(&mut self, write: impl FnOnce(&mut Self) -> io::Result<()>) {
        if self.reported.is_ok() {
            self.reported = write(self);
        }
    }

    /// Whether something could not be written while a run went on.
    pub(super) fn has_failed(&self) -> bool {
        self.reported.is_err()
    }

    /// Writes what a run has come to. When that cannot be written, or is not read any more, the run is
    /// cancelled.
    pub(super) fn follow(
        &mut self,
        cancel: &Cancel,
        write: impl FnOnce(&mut Self) -> io::Result<()>,
    ) {
        self.report(write);
        if self.closed || self.has_failed() {
            cancel.cancel();
        }
    }

    /// Writes what stands at the end of a run, when all before it could be written.
    pub(super) fn conclude(
        &mut self,
        write: impl FnOnce(&mut Self) -> io::Result<()>,
    ) -> io::Result<()> {
        std::mem::replace(&mut self.reported, Ok(()))?;
        write(self)
    }

    /// Writes a report as one JSON document, which says what made it.
    pub(super) fn json(&mut self, report: &impl Serialize) -> io::Result<()> {
        #[derive(Serialize)]
        struct Document<'a, R> {
            evecho: &'static str,
            #[serde(flatten)]
            report: &'a R,
        }
        let document = Document { evecho: env!("CARGO_PKG_VERSION"), report };
        serde_json::to_writer_pretty(&mut *self, &document)?;
        writeln!(self)
    }

    /// Drops what cannot be written because the reader has gone.
    fn forgive<T>(&mut self, written: io::Result<T>, dropped: T) -> io::Result<T> {
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(dropped)
            }
            other => other.map_err(|error| {
                io::Error::new(error.kind(), format!("cannot write to standard output: {error}"))
            }),
        }
    }
}

impl<W: Write> Write for Output<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.closed {
            return Ok(bytes.len());
        }
        let written = in_time(|| self.inner.write(bytes));
        self.forgive(written, bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.closed {
            return Ok(());
        }
        let flushed = in_time(|| self.inner.flush());
        self.forgive(flushed, ())
    }
}

/// Writes once standard output takes more, where another process has made it non-blocking: this flag is of
/// all that share it.
fn in_time<T>(mut write: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match write() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let stdout = io::stdout();
                // Interrupted or not, the next write tells.
                let _ =
                    poll(&mut [PollFd::new(stdout.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE);
            }
            written => return written,
        }
    }
}

/// A value as a line of JSON.
pub(super) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("reports have string keys and no failing parts")
}

/// Writes a sentence for people to standard error. A failure has nowhere to be reported.
pub(super) fn complain(sentence: &str) {
    let _ = writeln!(io::stderr().lock(), "evecho: {sentence}");
}

/// What standard error is.
pub(super) fn stderr_metadata() -> io::Result<Metadata> {
    io::stderr().as_fd().try_clone_to_owned().map(File::from)?.metadata()
}

/// Whether standard error is a stream to journald (systemd.exec(5), `JOURNAL_STREAM`).
pub(super) fn is_read_by_journald() -> bool {
    match (env::var("JOURNAL_STREAM"), stderr_metadata()) {
        (Ok(stream), Ok(file)) => stream == format!("{}:{}", file.dev(), file.ino()),
        _ => false,
    }
}

/// Ends with an error of clap's: wrong usage, or a text that was asked for. Under journald the error is one line
/// of its priority 3, so that `journalctl -p err` has the reason, and without advice for a terminal.
pub(super) fn exit(error: &clap::Error) -> ! {
    if error.use_stderr() && is_read_by_journald() {
        let text = error.to_string();
        let lines = text.lines().map(str::trim).take_while(|line| {
            !line.starts_with("Usage:") && !line.starts_with("For more information")
        });
        let line = lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
        let _ = writeln!(io::stderr().lock(), "<3>{}", line.trim_start_matches("error: "));
        std::process::exit(error.exit_code());
    }
    error.exit()
}

/// An error and its causes as one sentence. A cause that the sentence already contains is not repeated.
pub(super) fn sentence(error: &dyn Error) -> String {
    let mut sentence = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !sentence.contains(&text) {
            sentence = format!("{sentence}: {text}");
        }
        cause = error.source();
    }
    sentence
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes this number of bytes, and then has lost its reader.
    struct Pipe(usize);

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match self.0.min(bytes.len()) {
                0 => Err(io::ErrorKind::BrokenPipe.into()),
                count => {
                    self.0 -= count;
                    Ok(count)
                }
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_output_without_a_reader_takes_everything() {
        let mut output = Output::new(Pipe(3));
        output.write_all(b"abc").unwrap();
        assert!(!output.is_closed());
        output.write_all(b"def").unwrap();
        output.write_all(b"ghi").unwrap();
        output.flush().unwrap();
        assert!(output.is_closed());
    }

    #[test]
    fn a_run_that_is_not_read_or_cannot_be_written_is_cancelled() {
        let (mut output, cancel) = (Output::new(Pipe(3)), Cancel::default());
        output.follow(&cancel, |output| output.write_all(b"abc"));
        assert!(!cancel.is_cancelled());
        output.follow(&cancel, |output| output.write_all(b"def"));
        assert!(cancel.is_cancelled());
        output.conclude(|output| output.write_all(b"ghi")).unwrap();
        let (mut output, cancel) = (Output::new(Pipe(3)), Cancel::default());
        output.follow(&cancel, |_| Err(io::ErrorKind::StorageFull.into()));
        assert!(cancel.is_cancelled());
        output.follow(&cancel, |_| panic!("there is no room for more"));
        assert!(output.conclude(|_| panic!("nor for the end")).is_err());
    }

    #[test]
    fn a_cause_is_not_repeated() {
        let error = io::Error::other("the disk is full");
        assert_eq!(sentence(&error), "the disk is full");
        let wrapped = evecho::client::send::Error::Output(error);
        assert_eq!(sentence(&wrapped), "cannot write to standard output: the disk is full");
    }
}
