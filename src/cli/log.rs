//! The log on standard error. Writing it never blocks: a server whose log is not read goes on serving.
//!
//! What cannot be written at once is kept, up to [`MAX_KEPT`]; further lines are dropped and counted, and
//! a line says how many as soon as lines can be written again. Where anything else helps, there is no thread
//! for it ([`StandardError`]): what was kept is written before the next line, and at the end by [`flush`].
//!
//! A record with a field `setting` names its flag, or variable, at the end of the line. Lines are formatted by
//! `env_logger`, which writes them into a [`KeptLines`]; a different [`Format`] is a different
//! `env_logger::Logger`.

use std::env;
use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use env_logger::fmt::Formatter;
use log::kv::{self, Key, Value, VisitSource, VisitValue};
use log::{Level, LevelFilter, Log, Metadata, Record, error, warn};
use nix::errno::Errno;
use nix::libc::{O_NOCTTY, O_NONBLOCK, PIPE_BUF, STDERR_FILENO};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use serde::Serializer;
use serde::ser::SerializeMap;

use super::environment::Environment;
use super::flag;
use super::output::stderr_metadata;

/// Bytes of lines that are kept while they cannot be written.
const MAX_KEPT: usize = 64 << 10;

// ---- of the thread that writes, where there is one

const STACK: usize = 64 << 10;
/// When it tries again what could not be written.
const RETRY: Duration = Duration::from_millis(100);
/// How long it is waited for in the end.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// The format of lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// For people: the time, the level, the message.
    Text,
    /// For journald, which knows the time: the level as sd-daemon(3) has it, the message.
    Journal,
    /// For programs: an object in each line, with the fields of the event.
    Json,
}

/// Logs to standard error from here on, from `level` up unless `RUST_LOG` says otherwise. Settings are named as
/// in this environment.
pub(super) fn start(level: LevelFilter, format: Format, environment: &Environment) {
    let kept = SharedLines::new(StandardError::open());
    let mut builder = env_logger::Builder::new();
    builder
        // The report that a signal asked for is shown at every level.
        .filter_module("evecho::report", LevelFilter::Info)
        .write_style(anstream::AutoStream::choice(&io::stderr()).into())
        .format_target(false)
        .target(env_logger::Target::Pipe(Box::new(kept.clone())));
    // env_logger complains about RUST_LOG on standard error, as text: in other formats it is a line of ours.
    let unread = match format {
        Format::Text => None,
        _ => unreadable_filter(),
    };
    if unread.is_none() && env::var_os("RUST_LOG").is_some_and(|filter| !filter.is_empty()) {
        builder.filter_level(level).parse_default_env();
    } else {
        // Traces of libraries are for their authors.
        builder.filter_level(level.min(LevelFilter::Info)).filter_module("evecho", level);
    }
    match format {
        // Steps are microseconds apart.
        Format::Text if level == LevelFilter::Trace => _ = builder.format_timestamp_micros(),
        Format::Text => {}
        Format::Journal => _ = builder.format(write_for_journald),
        Format::Json => _ = builder.format(write_json),
    }
    let names_threads = format != Format::Json;
    let format = builder.build();
    log::set_max_level(format.filter());
    log::set_boxed_logger(Box::new(Logger {
        format,
        names_threads,
        environment: environment.clone(),
        kept,
    }))
    .expect("the log is started once, by the command that serves");
    if let Some(error) = unread {
        warn!(event = "variable_ignored"; "RUST_LOG is ignored: {error}");
    }
}

/// What is wrong with `RUST_LOG`.
fn unreadable_filter() -> Option<env_filter::ParseError> {
    let filter = env::var("RUST_LOG").ok()?;
    env_filter::Builder::new().try_parse(&filter).err()
}

/// The level in front of each line, as the priorities of syslog(3).
fn write_for_journald(line: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let priority = match record.level() {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    let message = record.args().to_string();
    message.lines().try_for_each(|text| writeln!(line, "<{priority}>{text}"))
}

/// Calls `act` with the name of this thread, unless it is the main thread.
fn with_thread_name<T>(act: impl FnOnce(Option<&str>) -> T) -> T {
    let thread = thread::current();
    act(thread.name().filter(|&name| name != "main"))
}

/// Fields of every line. Those of an event have other names.
const OF_EACH_LINE: [&str; 4] = ["time", "level", "message", "thread"];

fn write_json(line: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let time = line.timestamp_micros().to_string();
    let level = record.level().as_str().to_ascii_lowercase();
    let message = record.args().to_string();
    let mut json = serde_json::Serializer::new(&mut *line);
    let mut object = json.serialize_map(None)?;
    for (name, text) in OF_EACH_LINE.into_iter().zip([time, level, message]) {
        object.serialize_entry(name, &text)?;
    }
    with_thread_name(|name| name.map_or(Ok(()), |name| object.serialize_entry("thread", name)))?;
    record.key_values().visit(&mut Fields(&mut object)).map_err(io::Error::other)?;
    object.end()?;
    writeln!(line)
}

/// Adds the fields of an event to an object.
struct Fields<'a, M>(&'a mut M);

impl<'kvs, M: SerializeMap> VisitSource<'kvs> for Fields<'_, M> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        let json = json(value);
        if json.is_null() || OF_EACH_LINE.contains(&key.as_str()) {
            return Ok(());
        }
        self.0.serialize_entry(key.as_str(), &json).map_err(|_| kv::Error::from(fmt::Error))
    }
}

/// The value of a field. What is neither a number nor a truth value is text.
fn json(value: Value<'_>) -> serde_json::Value {
    let mut json = serde_json::Value::Null;
    match value.visit(Json(&mut json)) {
        Ok(()) => json,
        Err(_) => serde_json::Value::Null,
    }
}

struct Json<'a>(&'a mut serde_json::Value);

impl<'v> VisitValue<'v> for Json<'_> {
    fn visit_any(&mut self, value: Value<'_>) -> Result<(), kv::Error> {
        *self.0 = value.to_string().into();
        Ok(())
    }

    fn visit_null(&mut self) -> Result<(), kv::Error> {
        *self.0 = serde_json::Value::Null;
        Ok(())
    }

    fn visit_u64(&mut self, value: u64) -> Result<(), kv::Error> {
        *self.0 = value.into();
        Ok(())
    }

    fn visit_i64(&mut self, value: i64) -> Result<(), kv::Error> {
        *self.0 = value.into();
        Ok(())
    }

    fn visit_f64(&mut self, value: f64) -> Result<(), kv::Error> {
        *self.0 = value.into();
        Ok(())
    }

    fn visit_bool(&mut self, value: bool) -> Result<(), kv::Error> {
        *self.0 = value.into();
        Ok(())
    }
}

/// Writes what was kept, as far as this is possible at once. To be called once, before the process ends.
pub(super) fn flush() {
    log::logger().flush();
}

/// Says why the server ends, behind what was kept, as other commands do; but without waiting for a reader.
pub(super) fn complain(sentence: &str) {
    flush();
    let mut output = StandardError::open();
    let line = format!("evecho: {sentence}\n");
    // A failure has nowhere to be reported.
    let _ = output.write_all(line.as_bytes()).and_then(|()| output.flush());
}

/// Formats records into lines, and says how many were dropped.
struct Logger {
    format: env_logger::Logger,
    /// Whether a message begins with its thread's name.
    names_threads: bool,
    environment: Environment,
    kept: SharedLines,
}

impl Logger {
    /// The message of a record, with the name of the thread before it and the flag, or variable, of its
    /// setting behind it.
    fn message(&self, record: &Record<'_>) -> String {
        let mut message = with_thread_name(|name| match name.filter(|_| self.names_threads) {
            Some(name) => format!("{name}: {}", record.args()),
            None => record.args().to_string(),
        });
        let setting = record.key_values().get(Key::from("setting")).map(json);
        if let Some(serde_json::Value::String(field)) = setting {
            message += &format!(" ({})", self.environment.name(&flag(&field)));
        }
        message
    }

    /// Writes what was kept. If that was everything, a line says how many others were dropped.
    fn catch_up(&self) {
        let dropped = self.kept.lock().catch_up();
        if dropped > 0 {
            // An error, so that it is logged at every level at which a line can be dropped.
            error!(
                logger: self.format,
                event = "lines_dropped",
                lines = dropped;
                "{dropped} lines of this log were dropped: they could not be written"
            );
        }
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.format.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if self.format.matches(record) {
            self.catch_up();
            let message = self.message(record);
            self.format.log(
                &Record::builder()
                    .metadata(record.metadata().clone())
                    .args(format_args!("{message}"))
                    .key_values(&record.key_values())
                    .build(),
            );
        }
    }

    fn flush(&self) {
        self.catch_up();
        // It cannot fail.
        let _ = self.kept.lock().output.flush();
    }
}

/// The lines that threads log into.
#[derive(Clone)]
struct SharedLines(Arc<Mutex<KeptLines<StandardError>>>);

impl SharedLines {
    fn new(output: StandardError) -> Self {
        SharedLines(Arc::new(Mutex::new(KeptLines::new(output))))
    }

    fn lock(&self) -> MutexGuard<'_, KeptLines<StandardError>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes one whole line in each write, which is how `env_logger` writes.
impl Write for SharedLines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.lock().push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Lines on their way to an output that never blocks.
struct KeptLines<W> {
    output: W,
    kept: Vec<u8>,
    dropped: u64,
}

impl<W: Write> KeptLines<W> {
    fn new(output: W) -> Self {
        KeptLines { output, kept: Vec::new(), dropped: 0 }
    }

    /// Writes or keeps a line, or drops it when no more can be kept. Once a line has been dropped, all
    /// that follow are, until [`KeptLines::catch_up`] has said so: the gap is in one place.
    fn push(&mut self, line: &[u8]) {
        let full = !self.kept.is_empty() && self.kept.len() + line.len() > MAX_KEPT;
        if full || self.dropped > 0 {
            self.dropped += 1;
            return;
        }
        self.kept.extend_from_slice(line);
        self.write_kept();
    }

    /// Writes what was kept; once nothing is left, how many lines have been dropped since the last time.
    fn catch_up(&mut self) -> u64 {
        self.write_kept();
        if self.kept.is_empty() { std::mem::take(&mut self.dropped) } else { 0 }
    }

    /// Writes what can be written at once. Any error means "not now": a full disk may have space later.
    fn write_kept(&mut self) {
        let mut written = 0;
        while written < self.kept.len() {
            match self.output.write(next_chunk(&self.kept[written..])) {
                Ok(0) => break,
                Ok(length) => written += length,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        self.kept.drain(..written);
    }
}

/// As many whole lines as a pipe takes in one piece, so that those of several processes do not mix.
fn next_chunk(bytes: &[u8]) -> &[u8] {
    let chunk = &bytes[..bytes.len().min(PIPE_BUF)];
    match memchr::memrchr(b'\n', chunk) {
        Some(end) => &chunk[..=end],
        None => chunk,
    }
}

/// Standard error, written without waiting.
///
/// `O_NONBLOCK` belongs to the open file description, which others share (the shell, the processes of a
/// pipeline), so it is not set there. A pipe or a terminal is opened once more instead, and the flag is set
/// on that. Where this is not possible (the terminal of another user, no `/proc`), a thread writes what it
/// reads from a pipe of ours. Sockets have a flag for each call. For all else (files, devices), poll(2) is
/// asked before each write.
enum StandardError {
    /// What never blocks, or may be written once it is ready.
    Direct(Box<dyn AsFd + Send>),
    Socket,
    Thread {
        /// Not blocking, on our side; gone after the last line.
        pipe: Option<UnixStream>,
        /// Has its other end closed when the thread has written everything.
        written: Receiver<()>,
    },
}

impl StandardError {
    fn open() -> Self {
        let kind = stderr_metadata().map(|found| found.file_type());
        let is_pipe = kind.as_ref().is_ok_and(FileTypeExt::is_fifo);
        if kind.is_ok_and(|kind| kind.is_socket()) {
            return StandardError::Socket;
        }
        if !io::stderr().is_terminal() && !is_pipe {
            return StandardError::Direct(Box::new(io::stderr()));
        }
        let mut reopen = OpenOptions::new();
        reopen.write(true).custom_flags(O_NONBLOCK | O_NOCTTY);
        match reopen.open("/proc/self/fd/2") {
            Ok(file) => StandardError::Direct(Box::new(file)),
            Err(_) => {
                StandardError::thread().unwrap_or(StandardError::Direct(Box::new(io::stderr())))
            }
        }
    }

    fn thread() -> io::Result<Self> {
        let (pipe, lines) = UnixStream::pair()?;
        pipe.set_nonblocking(true)?;
        let (until_written, written) = channel();
        let work = move || {
            let _until_written: Sender<()> = until_written;
            copy_to_stderr(lines);
        };
        thread::Builder::new().name("log".to_owned()).stack_size(STACK).spawn(work)?;
        Ok(StandardError::Thread { pipe: Some(pipe), written })
    }
}

/// Writes all lines, however long each takes.
fn copy_to_stderr(mut lines: UnixStream) {
    let mut buffer = [0; PIPE_BUF];
    while let Ok(length @ 1..) = lines.read(&mut buffer) {
        let mut left = &buffer[..length];
        while !left.is_empty() {
            // Without the lock of io::stderr(), for which others would have to wait.
            match nix::unistd::write(io::stderr(), left) {
                Ok(written) => left = &left[written..],
                Err(Errno::EINTR) => {}
                Err(_) => thread::sleep(RETRY),
            }
        }
    }
}

impl Write for StandardError {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bytes = &bytes[..bytes.len().min(PIPE_BUF)];
        match self {
            StandardError::Direct(output) => {
                let mut ready = [PollFd::new(output.as_fd(), PollFlags::POLLOUT)];
                if poll(&mut ready, PollTimeout::ZERO)? == 0 {
                    return Err(ErrorKind::WouldBlock.into());
                }
                Ok(nix::unistd::write(output, bytes)?)
            }
            StandardError::Socket => Ok(send(STDERR_FILENO, bytes, MsgFlags::MSG_DONTWAIT)?),
            StandardError::Thread { pipe: Some(pipe), .. } => pipe.write(bytes),
            StandardError::Thread { pipe: None, .. } => Err(ErrorKind::BrokenPipe.into()),
        }
    }

    /// Waits for the thread, where there is one, for as long as [`LAST_WAIT`]. Nothing more can be written
    /// then.
    fn flush(&mut self) -> io::Result<()> {
        if let StandardError::Thread { pipe, written } = self {
            *pipe = None;
            let _ = written.recv_timeout(LAST_WAIT);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An output that takes `room` bytes, and then fails with this error.
    struct Output {
        taken: Vec<u8>,
        room: usize,
        error: ErrorKind,
    }

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let length = bytes.len().min(self.room);
            if length == 0 {
                return Err(self.error.into());
            }
            self.room -= length;
            self.taken.extend_from_slice(&bytes[..length]);
            Ok(length)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines(room: usize, error: ErrorKind) -> KeptLines<Output> {
        KeptLines::new(Output { taken: Vec::new(), room, error })
    }

    #[test]
    fn what_can_be_written_is_written_at_once() {
        let mut lines = lines(usize::MAX, ErrorKind::WouldBlock);
        lines.push(b"one\n");
        assert_eq!(lines.output.taken, b"one\n");
        assert_eq!(lines.catch_up(), 0);
    }

    #[test]
    fn a_line_that_was_cut_goes_on_where_it_stopped() {
        for error in [ErrorKind::WouldBlock, ErrorKind::StorageFull, ErrorKind::BrokenPipe] {
            let mut lines = lines(6, error);
            lines.push(b"one\n");
            lines.push(b"two\n");
            assert_eq!(lines.output.taken, b"one\ntw");
            lines.output.room = 100;
            lines.push(b"three\n");
            assert_eq!(lines.output.taken, b"one\ntwo\nthree\n");
            assert_eq!(lines.catch_up(), 0);
        }
    }

    #[test]
    fn beyond_what_is_kept_lines_are_dropped_and_counted_in_one_place() {
        let mut lines = lines(0, ErrorKind::WouldBlock);
        let line = [&[b'x'; 99][..], b"\n"].concat();
        let fit = MAX_KEPT / line.len();
        (0..fit + 5).for_each(|_| lines.push(&line));
        assert_eq!((lines.kept.len(), lines.dropped), (fit * line.len(), 5));
        // Room for some is not room for all: nothing gets in front of the gap.
        lines.output.room = line.len();
        assert_eq!(lines.catch_up(), 0);
        lines.push(&line);
        assert_eq!(lines.dropped, 6);
        lines.output.room = usize::MAX;
        assert_eq!(lines.catch_up(), 6);
        lines.push(b"last\n");
        assert_eq!(lines.output.taken.len(), fit * line.len() + b"last\n".len());
        assert_eq!(lines.catch_up(), 0);
    }

    #[test]
    fn a_line_longer_than_all_that_is_kept_is_not_cut() {
        let mut lines = lines(1, ErrorKind::WouldBlock);
        let line = [&vec![b'x'; 2 * MAX_KEPT][..], b"\n"].concat();
        lines.push(&line);
        lines.push(b"dropped\n");
        lines.output.room = usize::MAX;
        assert_eq!(lines.catch_up(), 1);
        assert_eq!(lines.output.taken, line);
    }

    #[test]
    fn pieces_end_where_lines_end() {
        let long = [b'x'; 2 * PIPE_BUF];
        assert_eq!(next_chunk(b"one\ntwo\nthr"), b"one\ntwo\n");
        assert_eq!(next_chunk(&long), &long[..PIPE_BUF]);
        assert_eq!(next_chunk(&[b"one\n", &long[..]].concat()), b"one\n");
    }
}
