//! The steps of a scenario, for people.

use std::collections::HashSet;
use std::io::{self, Write};
use std::mem;

use evecho::client::states::{End, Header, Listener, Remark, Segment, Side, State, Step};
use evecho::units::{grouped, milliseconds};

use crate::cli::output::{BOLD, DIM};

/// How wide lines are.
const WIDTH: usize = 100;
/// Where the text of a step begins.
const INDENT: usize = 3;
/// How wide the columns are: a state and what is odd about it, a queue, the arrows.
const CLIENT: usize = 22;
const SERVER: usize = 25;
const QUEUE: usize = 8;
const ARROW: usize = 13;
/// An arrow that has a line of its own.
const SEEN_ARROW: usize = 17;

/// The steps as text: what was printed before is not printed again.
#[derive(Default)]
pub(super) struct Text {
    /// Whether sequence numbers are as on the wire.
    absolute: bool,
    /// Steps of this scenario so far.
    steps: usize,
    /// Whether the last of them had a listener of our own.
    own_listener: bool,
    /// The explanations of the whole run.
    explained: HashSet<String>,
}

impl Text {
    pub(super) fn new(absolute: bool) -> Self {
        Self { absolute, ..Self::default() }
    }

    pub(super) fn begin(&mut self) {
        (self.steps, self.own_listener) = (0, false);
    }

    pub(super) fn write_step(&mut self, out: &mut impl Write, step: &Step) -> io::Result<()> {
        self.steps += 1;
        let was_own = mem::replace(&mut self.own_listener, step.own_listener);
        let slowly = (step.own_listener && !was_own)
            .then_some("in slow motion, with a listener of our own:");
        let calls = slowly.into_iter().chain(step.calls.iter().map(String::as_str));
        for (index, call) in calls.enumerate() {
            let number = if index == 0 { format!("{}.", self.steps) } else { String::new() };
            writeln!(out, "{BOLD}{number:INDENT$}{call}{BOLD:#}")?;
        }
        if !step.connections.is_empty() {
            write_connections(out, step)?;
        }
        write_segments(out, step, self.absolute)?;
        if let Some(Listener { backlog, waiting, .. }) = &step.listener {
            writeln!(
                out,
                "{:INDENT$}LISTEN, backlog {backlog}: {waiting} waiting to be accepted",
                ""
            )?;
        }
        if self.explained.insert(step.why.clone()) {
            let why = format!("{} [{}]", step.why, step.source.replace(' ', UNBROKEN));
            for line in wrap(&why, WIDTH - INDENT) {
                writeln!(out, "{:INDENT$}{DIM}{line}{DIM:#}", "")?;
            }
        }
        writeln!(out)
    }
}

fn write_connections(out: &mut impl Write, step: &Step) -> io::Result<()> {
    let client = match &step.connections[..] {
        [only] => format!("client {}", only.address),
        _ => "client".to_owned(),
    };
    let (server, queues) = match step.connections.iter().any(|one| one.server.is_some()) {
        true => (format!("server {}", step.address), ["recv-q", "send-q"]),
        false => ("server, on another machine".to_owned(), [""; 2]),
    };
    let heading = format!(
        "{:INDENT$}   {client:CLIENT$}{:>QUEUE$}{:>QUEUE$} {:ARROW$} {server:SERVER$}{:>QUEUE$}{:>QUEUE$}",
        "", "recv-q", "send-q", "", queues[0], queues[1]
    );
    writeln!(out, "{DIM}{}{DIM:#}", heading.trim_end())?;
    for (index, connection) in step.connections.iter().enumerate() {
        let client = index + 1;
        // Those that were seen have lines of their own.
        let inferred = |one: &&Segment| one.client == client && one.at.is_none();
        let mut arrows = step.segments.iter().filter(inferred).map(|one| arrow(one, ARROW));
        let first = arrows.next().unwrap_or_default();
        let near = cells(&connection.client, CLIENT);
        let far = connection.server.as_ref().map(|end| cells(end, SERVER)).unwrap_or_default();
        let row = format!("{:INDENT$}{client:2} {near} {first:ARROW$} {far}", "");
        writeln!(out, "{}", row.trim_end())?;
        for arrow in arrows {
            writeln!(out, "{:BEFORE_ARROW$}{arrow}", "")?;
        }
    }
    Ok(())
}

/// The segments that were seen: when, in which direction, and what their fields are. Without a connection, which has
/// arrows, also those that were not.
fn write_segments(out: &mut impl Write, step: &Step, absolute: bool) -> io::Result<()> {
    let alone = step.connections.is_empty();
    let seen: Vec<_> = step.segments.iter().filter(|one| alone || one.at.is_some()).collect();
    for (index, segment) in seen.iter().enumerate() {
        if step.segments_left_out > 0 && index == seen.len() / 2 {
            let left_out = grouped(step.segments_left_out as u64);
            writeln!(out, "{:INDENT$}{left_out:>12} more segments", "")?;
        }
        let client = match &step.connections[..] {
            [_] => String::new(),
            _ => format!("{:2} ", segment.client),
        };
        let at = segment.at.map(|at| format!("{} ms", milliseconds(at)));
        let at = at.unwrap_or_default();
        let fields = match (&segment.header, &segment.icmp) {
            (Some(header), _) => fields(header, absolute),
            (None, Some(icmp)) => icmp.to_string(),
            (None, None) => String::new(),
        };
        let line =
            format!("{:INDENT$}{client}{at:>12} {} {fields}", "", arrow(segment, SEEN_ARROW));
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// The fields of a segment, as tcpdump writes them.
fn fields(header: &Header, absolute: bool) -> String {
    let (sequence, acknowledgement) = match absolute {
        true => (header.sequence, header.acknowledgement),
        false => (header.relative_sequence, header.relative_acknowledgement),
    };
    // The arrow says SYN or ACK, and of a FIN, an RST or bytes not what else is set.
    let flags = match &header.flags[..] {
        ["SYN" | "ACK"] | ["SYN", "ACK"] => String::new(),
        flags => flags.join("+") + " ",
    };
    let mut fields = format!("{flags}seq {sequence}");
    if header.length > 0 {
        fields += &format!(":{}", sequence.wrapping_add(header.length));
    }
    if let Some(acknowledgement) = acknowledgement {
        fields += &format!(", ack {acknowledgement}");
    }
    fields += &format!(", win {}", header.window);
    if !header.options.is_empty() {
        fields += &format!(" [{}]", header.options.join(", "));
    }
    match header.remark {
        Some(Remark::Again) => fields + ", again",
        Some(Remark::Probe) => fields + ", a probe",
        _ => fields,
    }
}

const BEFORE_ARROW: usize = INDENT + 3 + CLIENT + 2 * QUEUE + 1;

/// State and queues of an end.
fn cells(end: &End, width: usize) -> String {
    let mut state = end.state.to_string();
    if end.waits_to_be_accepted() {
        state += ", not accepted";
    } else if end.zero_window {
        state += ", window 0";
    }
    if end.state == State::Closed {
        return format!("{state:width$}{:1$}", "", 2 * QUEUE);
    }
    format!("{state:width$}{:QUEUE$}{:QUEUE$}", end.receive_queue, end.send_queue)
}

/// A segment as an arrow of this width.
fn arrow(segment: &Segment, width: usize) -> String {
    let (what, line) = (format!(" {} ", segment.what), width - 1);
    match segment.from {
        Side::Client => format!("{what:-^line$}>"),
        Side::Server => format!("<{what:-^line$}"),
    }
}

/// A space where no line ends.
const UNBROKEN: &str = "\u{a0}";

/// The lines of a text that are at most so wide.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let line = lines.last_mut().expect("there is always one");
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines.iter().map(|line| line.replace(UNBROKEN, " ")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_as_wide_as_they_may_be() {
        assert_eq!(wrap("one two  three", 7), ["one two", "three"]);
        assert_eq!(wrap("overlong one", 4), ["overlong", "one"]);
        assert_eq!(wrap("one two\u{a0}three", 7), ["one", "two three"]);
        assert_eq!(wrap("", 4), [""]);
    }
}
