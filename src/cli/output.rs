//! Standard output and standard error, for commands whose reader may go away.

use std::error::Error;
use std::io::{self, Stdout, Write};

/// Standard output. Once its reader has gone (`evecho check ... | head -1`), what is written is dropped
/// silently: the command goes on to its verdict, which is its exit code.
pub(super) struct Output<W = Stdout> {
    inner: W,
    closed: bool,
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
        Self { inner, closed: false }
    }

    /// Whether the reader has gone.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
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
        let written = self.inner.write(bytes);
        self.forgive(written, bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.closed {
            return Ok(());
        }
        let flushed = self.inner.flush();
        self.forgive(flushed, ())
    }
}

/// Writes a sentence for people to standard error. A failure has nowhere to be reported.
pub(super) fn complain(sentence: &str) {
    let _ = writeln!(io::stderr().lock(), "evecho: {sentence}");
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
    fn a_cause_is_not_repeated() {
        let error = io::Error::other("the disk is full");
        assert_eq!(sentence(&error), "the disk is full");
        let wrapped = evecho::client::send::Error::Output(error);
        assert_eq!(sentence(&wrapped), "cannot write to standard output: the disk is full");
    }
}
