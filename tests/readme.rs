//! What the documents say is so: their commands work in the order in which they stand, the table of flags
//! is complete, and the files they name exist.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stderr, reason = "a test that lacks a program says so")]

#[path = "common/tool.rs"]
mod tool;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use tool::{DEADLINE, beside, cargo, example};

/// The repository.
const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const EVECHO: &str = env!("CARGO_BIN_EXE_evecho");
/// What a newcomer types before anything can start.
const INSTALL: &str = "cargo install --path . --locked && ";
/// Each of its sections stands for itself, and begins with `evecho`.
const QUESTIONS: &str = "docs/learn.md";
const TOUR: &str = "docs/tour.md";
/// The documents whose commands are followed.
const FOLLOWED: [&str; 5] = ["README.md", "docs/reference.md", QUESTIONS, "docs/measure.md", TOUR];
/// The port that the documents speak of; here servers take a free one.
const PORT: &str = "12000";

// ---- the commands of the documents

#[test]
fn the_commands_of_the_readme_work_from_the_top() {
    let mut newcomer = Newcomer::new("readme");
    newcomer.follow("README.md");
    assert!(newcomer.server.is_some(), "the README starts a server");
}

#[test]
fn the_commands_of_the_reference_work_from_the_top() {
    Newcomer::with_server("reference").follow("docs/reference.md");
}

/// Its commands need a machine with systemd: packaging/test-guide follows them.
#[test]
fn the_guide_for_operators_is_short_and_names_what_there_is() {
    let (guide, reference) = (read("docs/operate.md"), read(REFERENCE));
    let lines = guide.lines().count();
    assert!(lines <= 250, "{lines} lines: what is looked up belongs into the reference");
    let told: BTreeSet<_> = quoted(&reference).into_iter().collect();
    let flags: BTreeSet<String> = flags().into_iter().map(|(name, _)| name).collect();
    let settings = guide.split("EVECHO_").skip(1).map(|rest| {
        rest.split(|c: char| !c.is_ascii_uppercase() && c != '_')
            .next()
            .unwrap()
            .trim_end_matches('_')
    });
    // A pattern of sed has none.
    for setting in settings.filter(|name| !name.is_empty()) {
        let flag = format!("--{}", setting.to_lowercase().replace('_', "-"));
        assert!(flags.contains(&flag), "the guide names EVECHO_{setting}");
    }
    let (_, tree) = guide.split_once("\n## It does not answer\n").unwrap();
    let (tree, _) = tree.split_once("\n## ").unwrap();
    // Counters and gauges, with what they are in the log.
    let lower = |word: &str| {
        word.contains('_') && word.chars().all(|c| c.is_ascii_lowercase() || "_ ".contains(c))
    };
    for counter in quoted(tree).into_iter().filter(|word| lower(word)) {
        let name = counter.split(' ').next().unwrap();
        assert!(told.contains(name), "the tree names {counter}");
    }
}

#[test]
fn the_commands_for_learners_work_from_the_top() {
    follow_parts("learn", QUESTIONS);
}

#[test]
fn the_commands_for_those_who_measure_work_from_the_top() {
    Newcomer::with_server("measure").follow("docs/measure.md");
}

#[test]
fn the_commands_of_the_tour_work_and_print_what_it_says() {
    follow_parts("tour", TOUR);
}

/// What `evecho check` says of the reader's own servers is what the table of the tour says.
#[test]
fn the_table_of_the_tour_is_what_check_says() {
    if missing_program("python3").is_some() {
        eprintln!("not tested: python3 is not installed");
        return;
    }
    let tour = read(TOUR);
    let (_, table) = tour.split_once("\n| rule of `evecho check` |").unwrap();
    let rows: Vec<Vec<&str>> =
        table.lines().take_while(|line| line.contains('|')).map(cells).collect();
    beside(rows[0].iter().enumerate(), |(column, program)| {
        let newcomer = Newcomer::new(&format!("tour-table-{column}"));
        newcomer.save_programs(TOUR);
        for (told, timeout, verdict) in [("fails", "5s", "not ok"), ("", "30s", "ok")] {
            let rows = rows[2..].iter().filter(|row| row[column + 1] == told);
            let rules: Vec<&str> = rows.map(|row| row[0].split('`').nth(1).unwrap()).collect();
            if rules.is_empty() {
                continue;
            }
            let start = format!("python3 {} {{port}}", program.trim_matches('`'));
            let mut check = newcomer.command(EVECHO);
            check.args(["check", "--tcp-only", "--format", "tap", "--timeout", timeout]);
            check.args(["--start", &start, "--only", &rules.join(",")]);
            let outcome = tool::finish(tool::spawn(check));
            let is_verdict = |line: &&str| line.starts_with("ok ") || line.starts_with("not ok ");
            let verdicts: Vec<&str> = outcome.text().lines().filter(is_verdict).collect();
            let expected = rules.iter().enumerate();
            let expected =
                expected.map(|(index, rule)| format!("{verdict} {} - {rule}", index + 1));
            assert_eq!(verdicts, expected.collect::<Vec<_>>(), "{program}: {}", outcome.text());
        }
    });
}

/// Follows a document part by part: each is for a newcomer of its own, at the same time.
fn follow_parts(name: &str, document: &str) {
    let (mut commands, mut parts) = (commands(document), Vec::new());
    while let Some(begin) = (0..commands.len()).rfind(|&index| begins_part(&commands, index)) {
        parts.push((begin, commands.split_off(begin)));
    }
    assert!(!parts.is_empty(), "{document} starts a server");
    parts.push((0, commands));
    beside(parts, |(begin, part)| {
        let mut before = part.iter().take_while(|typed| !starts_server(&typed.command));
        if let Some(typed) = before.find(|typed| typed.command.contains(PORT)) {
            panic!("{document}:{}: no server for {}", typed.line, typed.command);
        }
        Newcomer::new(&format!("{name}-{begin}")).type_in(document, part);
    });
}

/// Whether a command needs nothing of what stands before it: it starts a server, or writes one's program, or has a
/// server of its own that is not just written.
fn begins_part(commands: &[Typed], index: usize) -> bool {
    let writes = |typed: &Typed| typed.command.contains(".py > ");
    let command = &commands[index];
    let is_written = index > 0 && writes(&commands[index - 1]);
    starts_server(&command.command)
        || writes(command)
        || command.command.contains("{port}") && !is_written
}

/// The cells of a row of a table.
fn cells(row: &str) -> Vec<&str> {
    row.trim_end_matches('|').trim_start_matches('|').split('|').map(str::trim).collect()
}

/// A newcomer that types what a document says, line by line: servers in one terminal, where each ends the
/// one before it, and everything else in another.
struct Newcomer {
    directory: PathBuf,
    server: Option<Server>,
}

struct Server {
    process: Child,
    port: String,
    log: Receiver<String>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Newcomer {
    /// Stands in a directory of its own that has the one file which the commands read.
    fn new(name: &str) -> Self {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).unwrap();
        fs::copy(Path::new(ROOT).join("Cargo.lock"), directory.join("Cargo.lock")).unwrap();
        Newcomer { directory, server: None }
    }

    /// Has done what the README's first screen says.
    fn with_server(name: &str) -> Self {
        let mut newcomer = Newcomer::new(name);
        newcomer.start("evecho", &[]);
        newcomer
    }

    /// Has typed the programs of the document.
    fn save_programs(&self, document: &str) {
        for (name, program) in programs(document) {
            fs::write(self.directory.join(name), program).unwrap();
        }
    }

    fn follow(&mut self, document: &str) {
        let commands = commands(document);
        assert!(!commands.is_empty(), "{document} has no commands");
        self.type_in(document, commands);
    }

    /// Types some of the commands of a document.
    fn type_in(&mut self, document: &str, commands: Vec<Typed>) {
        self.save_programs(document);
        for Typed { command, printed, line } in commands {
            eprintln!("{document}:{line}: {command}");
            if command.is_empty() {
                printed.iter().for_each(|line| self.wait_for_log(line));
                continue;
            }
            // It is built already.
            let command = command.strip_prefix(INSTALL).unwrap_or(&command);
            let starts = starts_server(command);
            if let Some(missing) = missing_program(command) {
                eprintln!("not tested: {missing} is not installed");
                self.server = self.server.take().filter(|_| !starts);
                continue;
            }
            if self.server.is_none() && !starts && command.contains(PORT) {
                eprintln!("not tested: its server could not be started");
                continue;
            }
            if printed.iter().any(|line| is_segment(&shape(line))) && !sees_segments() {
                eprintln!("not tested: segments cannot be seen here");
                continue;
            }
            match command.split_whitespace().collect::<Vec<_>>()[..] {
                ["cargo", "install" | "test", ..] | ["cargo", "build", "--examples"] => {}
                ["cargo", "run", "--example", name, "--", ..] => {
                    let (_, arguments) = command.split_once(" -- ").unwrap();
                    self.run(&format!("'{}' {arguments}", example(name).display()), &printed);
                }
                _ if starts => self.start(command, &printed),
                _ if is_failure(&printed) => self.run(command, &printed),
                _ => self.run(&hurried(command), &printed),
            }
        }
    }

    /// Starts a server instead of the one that runs, and waits until it listens.
    fn start(&mut self, command: &str, printed: &[String]) {
        self.server = None;
        let words = shlex::split(&command.replace(PORT, "0")).unwrap();
        let mut process = self.command(&words[0]);
        process.args(&words[1..]).env("EVECHO_PORT", "0").env("PYTHONUNBUFFERED", "1");
        let mut process = process.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, log) = channel();
        read_lines(process.stderr.take().unwrap(), sender.clone());
        read_lines(process.stdout.take().unwrap(), sender);
        let mut server = Server { process, port: String::new(), log };
        let next = |server: &Server| server.log.recv_timeout(DEADLINE).expect("it logs a line");
        let mut lines = vec![];
        let addresses = loop {
            lines.push(next(&server));
            if let Some((_, addresses)) = lines[lines.len() - 1].split_once("listening on ") {
                break addresses.to_owned();
            }
        };
        let address = addresses.split([',', ' ']).next().unwrap();
        server.port = address.rsplit(':').next().unwrap().to_string();
        for (index, expected) in printed.iter().enumerate() {
            let line = lines.get(index).cloned().unwrap_or_else(|| next(&server));
            assert_eq!(shape(&line), shape(expected), "{command}");
        }
        self.server = Some(server);
    }

    /// Waits until the server logs such a line.
    fn wait_for_log(&self, expected: &str) {
        let log = &self.server.as_ref().expect("a server runs").log;
        while shape(&log.recv_timeout(DEADLINE).expect(expected)) != shape(expected) {}
    }

    /// Runs a command in a shell. It has to succeed, and to print what the document says.
    fn run(&self, command: &str, printed: &[String]) {
        let port = self.server.as_ref().map_or(PORT, |server| &server.port);
        let mut shell = self.command("sh");
        shell.args(["-euc", &self.here(command).replace(PORT, port)]);
        let outcome = tool::finish(tool::spawn(shell));
        let said = format!("{command}:\n{}{}", outcome.text(), outcome.stderr);
        assert_eq!(outcome.code, Some(i32::from(is_failure(printed))), "{said}");
        if !printed.is_empty() {
            // Which segments go is the kernel's matter.
            let is_told = |line: &String| !is_segment(line);
            let lines: Vec<_> = outcome.text().lines().map(shape).filter(is_told).collect();
            let expected: Vec<_> = printed.iter().map(|line| shape(line)).filter(is_told).collect();
            assert!(is_printed(&lines, &expected), "{lines:#?}\nis not\n{expected:#?}\n{said}");
        }
    }

    /// The same command with files of the repository: examples that were built, and programs of the
    /// textbooks, which know the port.
    fn here(&self, command: &str) -> String {
        let mut command = command.to_string();
        if let Some((_, behind)) = command.split_once("'target/debug/examples/") {
            let name = behind.split([' ', '\'']).next().unwrap();
            let built = example(name).display().to_string();
            command =
                command.replace(&format!("'target/debug/examples/{name}"), &format!("'{built}"));
        }
        if let Some((_, behind)) = command.split_once("examples/textbook/") {
            let file = format!("examples/textbook/{}", behind.split(' ').next().unwrap());
            let port = self.server.as_ref().map_or(PORT, |server| &server.port);
            let name = Path::new(&file).file_name().unwrap().to_str().unwrap();
            fs::write(self.directory.join(name), read(&file).replace(PORT, port)).unwrap();
            command = command.replace(&file, name);
        }
        command
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("EVECHO_")) {
            command.env_remove(name);
        }
        let installed = Path::new(EVECHO).parent().unwrap().display();
        let path = format!("{installed}:{}", std::env::var("PATH").unwrap());
        command.env_remove("RUST_LOG").env("PATH", path).current_dir(&self.directory);
        command
    }
}

/// Sends each line, to the end: a program's output has a reader as long as it runs.
fn read_lines(from: impl Read + Send + 'static, lines: Sender<String>) {
    thread::spawn(move || {
        BufReader::new(from).lines().map_while(Result::ok).for_each(|line| drop(lines.send(line)));
    });
}

/// Whether a command is for the terminal of the servers: evecho with flags alone, or a program of the
/// reader's own.
fn starts_server(command: &str) -> bool {
    match command.split(' ').collect::<Vec<_>>()[..] {
        ["evecho"] | ["python3", _, PORT] => true,
        ["evecho", flag, ..] => flag.starts_with('-'),
        _ => false,
    }
}

/// Whether a document shows a command that finds a fault, and so ends with the exit code 1.
fn is_failure(printed: &[String]) -> bool {
    printed.iter().any(|line| line.starts_with("  FAIL ") || line.contains(" unanswered;"))
}

/// The programs of a document, with their names: `python` blocks that begin with `# NAME`, and `diff`
/// blocks that begin with the names of an earlier program and of what it becomes.
fn programs(document: &str) -> BTreeMap<String, String> {
    let mut programs = BTreeMap::new();
    let text = read(document);
    for block in text.split("\n```").skip(1).step_by(2) {
        if let Some((first, program)) =
            block.strip_prefix("python\n").and_then(|program| program.split_once('\n'))
            && let Some(name) = named(first)
        {
            programs.insert(name.to_string(), format!("{program}\n"));
        } else if let Some(diff) = block.strip_prefix("diff\n--- ") {
            let (old, rest) = diff.split_once("\n+++ ").unwrap();
            let (new, changes) = rest.split_once('\n').unwrap();
            let program = changed(&programs[old], &format!("{changes}\n"));
            programs.insert(new.to_string(), program);
        }
    }
    programs
}

/// The name of the program whose first line this is.
fn named(line: &str) -> Option<&str> {
    line.strip_prefix("# ").filter(|name| name.ends_with(".py"))
}

/// A program with the changes of a `diff` block, in which three dots stand for lines in between.
fn changed(program: &str, changes: &str) -> String {
    changes.split("...\n").fold(program.to_string(), |program, hunk| {
        let side = |sign| {
            let lines = hunk.lines().filter(|line| !line.starts_with(sign));
            lines.map(|line| format!("{}\n", line.get(1..).unwrap_or(""))).collect::<String>()
        };
        let (old, new) = (side('+'), side('-'));
        assert_eq!(program.matches(&old).count(), 1, "{old} in {program}");
        program.replace(&old, &new)
    })
}

/// A command of a document, and what it prints there. Without a command, it is what the server logs.
struct Typed {
    command: String,
    printed: Vec<String>,
    line: usize,
}

/// The commands of a document: all lines of its `sh` blocks, those behind `$` in `console` blocks, and
/// its `python` blocks without a name. A `text` block is what the server logs.
fn commands(document: &str) -> Vec<Typed> {
    let text = read(document);
    let (mut language, mut commands) = (None, Vec::<Typed>::new());
    for (index, line) in text.lines().enumerate() {
        let typed = |command: &str| {
            let command = command.split(" # ").next().unwrap().trim_end().to_string();
            Typed { command, printed: Vec::new(), line: index + 1 }
        };
        match (language, line.strip_prefix("```")) {
            (None, Some(opening)) => {
                language = Some(opening);
                match opening {
                    "text" => commands.push(typed("")),
                    "python" if text.lines().nth(index + 1).and_then(named).is_none() => {
                        let command = python(&text, index + 1);
                        commands.push(Typed { command, ..typed("") });
                    }
                    _ => {}
                }
            }
            (Some(_), Some(_)) => language = None,
            (None, None) if document == QUESTIONS && line.starts_with("## ") => {
                commands.push(typed("evecho"));
            }
            (Some("sh"), None) => commands.push(typed(line)),
            (Some("console"), None) => match line.strip_prefix("$ ") {
                Some(command) => commands.push(typed(command)),
                None => commands.last_mut().unwrap().printed.push(line.to_string()),
            },
            (Some("text"), None) => commands.last_mut().unwrap().printed.push(line.to_string()),
            _ => {}
        }
    }
    commands
}

/// The command that runs a block of Python, whose first line this is.
fn python(text: &str, first: usize) -> String {
    let block: Vec<_> = text.lines().skip(first).take_while(|line| *line != "```").collect();
    format!("python3 -c {}", shlex::try_quote(&block.join("\n")).unwrap())
}

/// The same command with less to do and more time: that it works is tested here, not how fast.
fn hurried(command: &str) -> String {
    let mut words: Vec<&str> = command.split(' ').collect();
    match words[..] {
        ["evecho", "load", ..] => {
            if let Some(at) = words.iter().position(|word| *word == "-t") {
                words.drain(at..at + 2);
            }
            if let Some(at) = words.iter().position(|word| *word == "10000") {
                words[at] = "100";
            }
            // A number of messages, so that a busy machine only takes longer.
            let idle = words.contains(&"idle");
            words.extend(if idle { ["-t", "100ms"] } else { ["-n", "500"] });
            words.extend(["--timeout", "30s"]);
        }
        ["evecho", "compare", ..] => {
            words.extend(["-t", "50ms", "--rounds", "1", "-c", "1", "--no-scenes"]);
        }
        ["evecho", "check", ..] if !command.contains("--list") => {
            if !command.contains("--only") {
                words.extend(["--only", "tcp-split,udp-empty"]);
            }
            words.extend(["--timeout", "30s"]);
        }
        _ => {}
    }
    words.join(" ")
}

/// A program that a command needs and this machine lacks.
fn missing_program(command: &str) -> Option<&'static str> {
    let needed = ["cmp", "java", "python3", "socat", "ss"]
        .into_iter()
        .filter(|program| command.split([' ', '(', '\'', '=']).any(|word| word == *program));
    let paths = std::env::var("PATH").unwrap();
    needed
        .into_iter()
        .find(|name| !paths.split(':').any(|path| Path::new(path).join(name).exists()))
}

/// Whether these lines are what a document says. Three dots there stand for any lines.
fn is_printed(lines: &[String], expected: &[String]) -> bool {
    match (lines, expected) {
        (_, []) => lines.is_empty(),
        (_, [dots, rest @ ..]) if dots == "..." => {
            (0..=lines.len()).any(|skipped| is_printed(&lines[skipped..], rest))
        }
        ([line, lines @ ..], [first, rest @ ..]) => line == first && is_printed(lines, rest),
        ([], _) => false,
    }
}

/// Whether a line of this shape is a segment that `evecho states` has seen, or says how many more there were.
fn is_segment(shape: &str) -> bool {
    let shape = shape.trim_start();
    shape.starts_with("# s ") && shape.contains("seq #") || shape == "# more segments"
}

fn sees_segments() -> bool {
    let mut command = Command::new(EVECHO);
    command.args(["states", "open", "--segments"]).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().unwrap().success()
}

/// A line without its numbers, which differ from run to run, the width of columns, and the units of times
/// and rates.
fn shape(line: &str) -> String {
    let mut shape = String::new();
    let mut chars = line.trim_end().chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '0'..='9' if shape.ends_with('#') => {}
            '0'..='9' => shape.push('#'),
            // Inside a number.
            '.' | ',' if shape.ends_with('#') && chars.peek().is_some_and(char::is_ascii_digit) => {
            }
            ' ' if shape.ends_with(' ') => {}
            _ => shape.push(char),
        }
    }
    let units = [(" µs", " s"), (" ms", " s"), (" ns", " s"), (" KiB/", " B/"), (" MiB/", " B/")];
    let units = units.into_iter().chain([(" kbit/", " bit/"), (" Mbit/", " bit/")]);
    units.fold(shape, |shape, (unit, plain)| shape.replace(unit, plain))
}

fn read(document: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(document)).unwrap()
}

// ---- the table of flags

/// The document with all that can be set and read.
const REFERENCE: &str = "docs/reference.md";

/// The flags that `evecho --help` lists, each with its default, if it has one.
fn flags() -> Vec<(String, Option<String>)> {
    let output = Command::new(EVECHO).arg("--help").output().unwrap();
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
    let (flags, table) = (flags(), read(REFERENCE));
    assert!(flags.len() > 15, "{flags:?}");
    for (name, default) in flags {
        let in_row = |row: &&str| {
            row.starts_with("| `")
                && (row.contains(&format!("`{name}`")) || row.contains(&format!("`{name} ")))
        };
        let row =
            table.lines().find(in_row).unwrap_or_else(|| panic!("{name} is not in the table"));
        if let Some(default) = default {
            assert!(
                // A value, or words.
                row.contains(&format!("| `{default}` |"))
                    || row.contains(&format!("| {default} |")),
                "{name}: the default is {default}: {row}"
            );
        }
    }
}

#[test]
fn each_flag_has_the_variable_that_its_name_says() {
    let output = Command::new(EVECHO).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    for (name, _) in flags().into_iter().filter(|(name, _)| name != "--check-config") {
        let variable = format!("EVECHO_{}", name[2..].replace('-', "_").to_uppercase());
        assert!(help.contains(&format!("[env: {variable}=")), "{name} has no {variable}");
    }
}

#[test]
fn the_table_has_no_other_flag() {
    let flags = flags();
    for row in read(REFERENCE).lines().filter(|line| line.starts_with("| `-")) {
        let column = row.split('|').nth(1).unwrap();
        for name in column.split('`').filter(|part| part.starts_with("--")) {
            let name = name.split(' ').next().unwrap();
            assert!(flags.iter().any(|(flag, _)| flag == name), "{name}: {row}");
        }
    }
}

// ---- the tables of counters and gauges

#[test]
fn the_tables_have_every_counter_and_gauge_in_the_order_of_the_log() {
    let logged = format!("{:#}", evecho::Snapshot::default());
    let logged: Vec<&str> = logged.split(", ").map(|one| one.split(' ').next().unwrap()).collect();
    let text = read(REFERENCE);
    let (_, section) = text.split_once("\n## Counters and metrics\n").unwrap();
    let (section, _) = section.split_once("These are metrics alone:").unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    let told: Vec<&str> = rows.map(|row| row.split('`').next().unwrap()).collect();
    assert_eq!(told, logged);
}

// ---- the table of the fields of the log

/// Levels and fields of events.
type Events = BTreeMap<String, (BTreeSet<String>, BTreeSet<String>)>;

/// The files of Rust below a folder, without those of tests.
fn each_source(folder: &Path, see: &mut impl FnMut(&Path, &str)) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            each_source(&path, see);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            see(&path, text.split("#[cfg(test)]\nmod tests {").next().unwrap());
        }
    }
}

/// Notes the event of a call, from behind its parenthesis or its level.
fn note_event(events: &mut Events, levels: impl IntoIterator<Item = impl ToString>, call: &str) {
    let (fields, _) = call.split_once(';').unwrap();
    let mut fields = fields
        .split(',')
        .map(str::trim)
        .filter_map(|field| field.split([' ', ':']).next().filter(|name| !name.starts_with('.')));
    assert!(fields.any(|field| field == "event"), "no event in {call:.80}");
    let (_, name) = call.split_once("event = ").unwrap();
    // That of the counters is logged by its own function.
    let Some(name) = name.strip_prefix('"') else { return };
    let (name, _) = name.split_once('"').unwrap();
    let event = events.entry(name.to_string()).or_default();
    event.0.extend(levels.into_iter().map(|level| level.to_string()));
    event.1.extend(fields.map(str::to_string));
}

/// The events that the code logs: `warn!(event = "name", field = ..., ...; "...")`.
fn logged_events() -> Events {
    let mut events = Events::new();
    each_source(&Path::new(ROOT).join("src"), &mut |_, text| {
        for level in ["error", "warn", "info", "debug", "trace"] {
            for (at, _) in text.match_indices(&format!("{level}!(")) {
                // compile_error! is another.
                if text[..at].ends_with('_') {
                    continue;
                }
                let (_, call) = text[at..].split_once('(').unwrap();
                note_event(&mut events, [level], call);
            }
        }
        // Where the level depends, its function names all of them.
        for (at, _) in text.match_indices(" log!(") {
            let function = &text[text[..at].rfind("fn ").unwrap()..at];
            let levels = function.split("Level::").skip(1);
            let levels = levels.map(|level| level.split([',', ')']).next().unwrap());
            let (_, call) = text[at..].split_once(',').unwrap();
            note_event(&mut events, levels.map(str::to_lowercase), call);
        }
        for call in text.split("stats.log(").skip(1) {
            let name = call.split('"').nth(1).unwrap().to_string();
            let fields = BTreeSet::from(["counters and gauges".to_string()]);
            events.insert(name, (BTreeSet::from(["info".to_string()]), fields));
        }
    });
    events
}

#[test]
fn the_table_of_events_has_what_the_code_logs() {
    let text = read(REFERENCE);
    let (_, section) = text.split_once("\n## The log\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let words = |cell: &str| {
        let words = cell.split(',').map(|word| word.trim().trim_matches('`').to_string());
        words.filter(|word| !word.is_empty()).collect::<BTreeSet<_>>()
    };
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let told: Events = rows
        .map(|row| {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            (cells[1].trim_matches('`').to_string(), (words(cells[2]), words(cells[4])))
        })
        .collect();
    assert_eq!(told, logged_events());
}

/// Words in backquotes.
fn quoted(text: &str) -> BTreeSet<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// The words in quotes that follow `before`.
fn words_after(before: &str, text: &str) -> BTreeSet<String> {
    let rests = text.split(before).skip(1).filter_map(|rest| rest.strip_prefix('"'));
    rests.map(|rest| rest.split('"').next().unwrap().to_string()).collect()
}

/// The text of a method.
fn method(file: &str, name: &str) -> String {
    let text = read(file);
    let (_, body) = text.split_once(&format!("fn {name}(")).expect(name);
    body.split("\n    }").next().unwrap().to_string()
}

/// The words that a function with this name is given first, anywhere in the code.
fn first_arguments(function: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    each_source(&Path::new(ROOT).join("src"), &mut |_, text| {
        found.extend(words_after(&format!("{function}("), text));
    });
    found
}

/// The words that the code gives a field as they are, in events with this name.
fn literals(event: &str, field: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    each_source(&Path::new(ROOT).join("src"), &mut |_, text| {
        for call in text.split(&format!("event = \"{event}\"")).skip(1) {
            let (fields, _) = call.split_once(';').unwrap();
            let value = fields.split_once(&format!("{field} = \"")).map(|(_, value)| value);
            found.extend(value.map(|value| value.split('"').next().unwrap().to_string()));
        }
    });
    found
}

#[test]
fn the_words_of_fields_are_those_of_the_code() {
    let text = read(REFERENCE);
    let told = |start: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(start)).expect(start);
        quoted(line).into_iter().map(str::to_string).collect::<BTreeSet<_>>()
    };
    let union = |[one, other]: [BTreeSet<String>; 2]| &one | &other;
    let connection = words_after("(", &method("src/server/ending.rs", "row"));
    assert_eq!(told("- `reason` of a connection is "), connection);
    let refused = words_after("(", &method("src/server/guard.rs", "row"));
    let datagram = union([refused, literals("not_answered", "reason")]);
    assert_eq!(told("- `reason` of a datagram is "), datagram);
    let woken = ["wait", "sleep"].map(|name| method("src/server/event_loop.rs", name));
    assert_eq!(told("- `by` is "), union(woken.map(|method| words_after("(", &method))));
    let ready = union([first_arguments("trace_ready"), literals("ready", "what")]);
    assert_eq!(told("- `what` is ready: "), ready);
    assert_eq!(told("- `what` is waited for: "), literals("waiting", "what"));
    assert_eq!(told("- `call` is "), literals("would_block", "call"));
}

// ---- numbers and names

/// The crates that a set of features takes, evecho itself left out.
fn crates(features: &[&str]) -> usize {
    let mut tree = cargo(&["tree", "--edges", "normal", "--prefix", "none"]);
    let output = tree.args(features).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let tree = String::from_utf8(output.stdout).unwrap();
    // A line is a name, a version, and perhaps a remark.
    let name = |line: &str| line.split(' ').take(2).collect::<Vec<_>>().join(" ");
    tree.lines().map(name).collect::<BTreeSet<_>>().len() - 1
}

/// The folders and files that may name a version of evecho, and each text behind which one stands.
const NAME_THE_VERSION: ([&str; 4], [&str; 4]) = (
    ["README.md", "docs", "man", "packaging"],
    ["evecho:", "newTag: ", "ARG VERSION=", "\"evecho "],
);

/// All files of a folder and of those in it, or the one file.
fn files(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|entry| files(&entry)).collect()
}

/// The version at the start of a text: three numbers.
fn version_at_start(text: &str) -> Option<&str> {
    let end = text.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(text.len());
    let version = text[..end].trim_end_matches('.');
    (version.split('.').count() == 3).then_some(version)
}

#[test]
fn every_file_names_the_version_of_cargo_toml() {
    let expected = env!("CARGO_PKG_VERSION");
    let (paths, marks) = NAME_THE_VERSION;
    let mut named = BTreeSet::new();
    for file in paths.iter().flat_map(|path| files(&Path::new(ROOT).join(path))) {
        let text = fs::read_to_string(&file).unwrap();
        for (at, mark) in marks.iter().flat_map(|mark| text.match_indices(mark)) {
            let Some(version) = version_at_start(&text[at + mark.len()..]) else { continue };
            assert_eq!(version, expected, "behind {mark:?} in {}", file.display());
            named.insert(file.strip_prefix(ROOT).unwrap().to_str().unwrap().to_owned());
        }
    }
    for file in ["README.md", "docs/operate.md", "man/evecho.1", "packaging/Containerfile"] {
        assert!(named.contains(file), "{file} names no version: {named:?}");
    }
    for folder in ["packaging/kubernetes", "packaging/kubernetes/load"] {
        assert!(named.contains(&format!("{folder}/kustomization.yaml")), "{folder}: {named:?}");
    }
    assert!(read("packaging/debian/changelog").starts_with(&format!("evecho ({expected}-1) ")));
    assert!(
        read("CHANGELOG.md").contains(&format!("\n## [{expected}] - ")),
        "no section for {expected}"
    );
}

#[test]
fn each_set_of_features_takes_as_many_crates_as_it_says() {
    let table = read("docs/library.md");
    let said = |row: &str| -> usize {
        let row = table.lines().find(|line| line.starts_with(row)).expect(row);
        row.split('|').nth(3).unwrap().trim().parse().unwrap()
    };
    let none = crates(&["--no-default-features"]);
    assert!(none < 25, "{none} crates for the server alone");
    assert_eq!(said("| none"), none);
    assert_eq!(said("| `daemon`"), crates(&["--no-default-features", "--features", "daemon"]));
    assert_eq!(said("| `client`"), crates(&["--no-default-features", "--features", "client"]));
    assert_eq!(said("| `cli`"), crates(&[]));
}

fn documents() -> Vec<String> {
    let names = fs::read_dir(Path::new(ROOT).join("docs")).unwrap();
    let names = names.map(|entry| format!("docs/{}", entry.unwrap().file_name().display()));
    let others = ["README.md", "CONTRIBUTING.md", "SECURITY.md"].map(str::to_string);
    names.filter(|name| name.ends_with(".md")).chain(others).collect()
}

#[test]
fn code_in_documents_is_run() {
    for document in documents() {
        let text = read(&document);
        let openings = text.split("\n```").skip(1).step_by(2);
        for language in openings.map(|block| block.split([',', '\n']).next().unwrap()) {
            let is_run = match language {
                "console" | "python" | "diff" | "text" => FOLLOWED.contains(&&*document),
                // Tested with the documentation of the library.
                "rust" => document == "docs/library.md",
                // Commands that some test follows, or that need another machine; and no code.
                "sh" | "bash" | "shell" | "ini" | "json" => true,
                _ => false,
            };
            assert!(is_run, "{document}: no test runs {language:?}");
        }
    }
}

#[test]
fn the_files_that_documents_name_exist() {
    for document in documents() {
        let text = read(&document);
        let folder = Path::new(ROOT).join(&document).parent().unwrap().to_path_buf();
        for target in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            if target.starts_with("http") {
                continue;
            }
            let path =
                if file.is_empty() { Path::new(ROOT).join(&document) } else { folder.join(file) };
            assert!(path.exists(), "{document} links to {target}");
            assert!(
                anchor.is_empty() || has_heading(&path, anchor),
                "{document} links to {target}"
            );
        }
        // The fuzz targets are a crate of their own, which is not in the package of this one.
        let packaged = !Path::new(ROOT).join("fuzz").exists();
        let named = text.split('`').filter(|word| !word.contains([' ', '*', '\n']));
        let named = named.filter(|word| !(packaged && word.starts_with("fuzz/")));
        let of_ours = [
            "src/",
            "tests/",
            "fuzz/",
            "benches/",
            "examples/",
            "docs/",
            "packaging/",
            "man/",
            "completions/",
            ".ci/",
            ".cargo/",
        ];
        for name in named.filter(|word| of_ours.iter().any(|start| word.starts_with(start))) {
            assert!(Path::new(ROOT).join(name).exists(), "{document} names {name}");
        }
    }
}

/// Where the tour says "`name` in `file`", the file defines it.
#[test]
fn the_tour_names_what_is_in_the_source() {
    let tour = read(TOUR);
    let pairs = tour.match_indices("` in `src/").map(|(at, _)| {
        let (_, name) = tour[..at].rsplit_once('`').unwrap();
        (name, tour[at + 6..].split('`').next().unwrap())
    });
    let pairs: Vec<(&str, &str)> = pairs.collect();
    assert!(pairs.len() > 10, "{pairs:?}");
    for (name, file) in pairs {
        let text = read(file);
        let is_defined = |kind: &&str| text.contains(&format!("{kind} {name}"));
        let defined = ["fn", "enum", "pub", "   "].iter().any(is_defined);
        assert!(defined, "{file} has no {name}");
    }
}

/// Whether a heading of the document has this anchor.
fn has_heading(document: &Path, anchor: &str) -> bool {
    let text = fs::read_to_string(document).unwrap();
    text.lines().filter_map(|line| line.strip_prefix('#')).any(|heading| {
        let heading = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
        kept.collect::<String>().replace(' ', "-") == anchor
    })
}
