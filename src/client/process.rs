//! A server that a tool starts as a child of its own, and what `/proc` tells of a process.
//!
//! The child must not outlive the tool. Dropping a [`ServerProcess`] ends the child's whole process
//! group: SIGTERM first, then SIGKILL. A tool that is killed drops nothing, and a grandchild may leave
//! the group; for that [`Start::supervisor`] names a program that calls [`supervise()`].

mod port;
mod supervise;
mod usage;

use std::collections::VecDeque;
use std::env;
use std::ffi::OsString;
use std::fmt;
use std::io::{self, PipeReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use serde::{Serialize, Serializer};

use super::Cancel;
use super::cancel::Deadline;
use super::socket::listens;
use crate::error::{ParseError, Transport};
use crate::sys::{tool, wait};
use crate::units;

pub use supervise::supervise;
pub use usage::{Memory, MemoryKind, Usage};

/// What stands for the port in a command.
const PORT: &str = "{port}";

/// How long a child may take to leave after SIGTERM, before it is killed.
const POLITE: Duration = Duration::from_millis(500);

/// Variables that begin so configure evecho, or are what a service manager tells this process alone.
const OUR_VARIABLES: [&str; 4] = ["EVECHO_", "LISTEN_", "NOTIFY_SOCKET", "WATCHDOG_"];

/// Sets the limit of open files, soft and hard, and becomes the command.
const LIMITED: &str = "ulimit -n \"$0\" && exec \"$@\"";

/// A command that starts a server, with `{port}` where its port goes.
///
/// Words are split as a shell does, with its quotes; nothing is expanded.
///
/// ```
/// use evecho::client::process::ServerCommand;
///
/// let command: ServerCommand = "socat TCP-LISTEN:{port},fork PIPE".parse().unwrap();
/// assert_eq!(command.words(7), ["socat", "TCP-LISTEN:7,fork", "PIPE"]);
/// assert!("socat TCP-LISTEN:7 PIPE".parse::<ServerCommand>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerCommand {
    text: String,
    words: Vec<String>,
}

impl ServerCommand {
    /// The words of the command, with `port` filled in.
    pub fn words(&self, port: u16) -> Vec<String> {
        self.words.iter().map(|word| word.replace(PORT, &port.to_string())).collect()
    }

    /// The same command with more arguments.
    #[allow(dead_code, reason = "of the tools, only states calls it")]
    pub(super) fn with(&self, arguments: Vec<String>) -> Self {
        let text = format!("{} {}", self.text, arguments.join(" "));
        Self { text, words: [&self.words[..], &arguments].concat() }
    }

    /// Starts the command on a free port and waits until it listens on loopback.
    ///
    /// The command gets this process's environment without the variables of evecho (`EVECHO_*`) and
    /// of a service manager, so that what it does depends on its words alone.
    ///
    /// # Errors
    ///
    /// When it cannot be run, ends, or does not listen within [`Start::patience`].
    pub fn start(&self, start: &Start) -> Result<ServerProcess, StartError> {
        // A child has copies of all descriptors until it calls execve(2). Where another thread looks for a free
        // port meanwhile, that port stays in use for as long.
        static STARTING: Mutex<()> = Mutex::new(());
        let starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        let wrong = |why| StartError { command: self.text.clone(), why };
        let port = port::free().map_err(|error| wrong(Why::Spawn(error)))?;
        // A supervisor finds descendants, and we find the server behind it, by what the system tells of processes.
        let supervised = tool::tells_of_processes().is_ok() && !start.supervisor.is_empty();
        let mut words = if supervised { start.supervisor.clone() } else { Vec::new() };
        if let Some(limit) = start.descriptors {
            words.extend(["sh", "-c", LIMITED].map(OsString::from));
            words.push(limit.to_string().into());
        }
        words.extend(self.words(port).into_iter().map(OsString::from));
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).process_group(0);
        for (name, _) in env::vars_os() {
            let ours = |start: &&str| name.as_encoded_bytes().starts_with(start.as_bytes());
            if OUR_VARIABLES.iter().any(ours) {
                command.env_remove(name);
            }
        }
        command.stdin(if supervised { Stdio::piped() } else { Stdio::null() });
        let spawn = move || {
            let (reader, stderr) = io::pipe()?;
            // First: without it, a command that runs already would have to be ended.
            let tail = Tail::follow(reader)?;
            command.stdout(Stdio::null()).stderr(stderr);
            let child = command.spawn()?;
            // It holds the other end of the pipe, too.
            drop(command);
            Ok((child, tail))
        };
        let (child, stderr) = spawn().map_err(|error| wrong(Why::Spawn(error)))?;
        drop(starting);
        let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
        let (pid, cancel) = (child.id(), start.cancel.clone());
        let mut server = ServerProcess { child, pid, address, stderr, cancel };
        server.address = server.await_listening(start).map_err(wrong)?;
        if supervised {
            server.pid = usage::children(pid).first().copied().unwrap_or(pid);
        }
        Ok(server)
    }

    /// Why a server that had just been started is not there, if it has ended since.
    pub(super) fn left(&self, server: &ServerProcess) -> Option<StartError> {
        const A_MOMENT: Duration = Duration::from_millis(100);
        const WHEN: &str = "after its first client, which was there to see whether it listens";
        let why = Why::Ended(WHEN, server.wait(A_MOMENT)?, server.last_words());
        Some(StartError { command: self.text.clone(), why })
    }
}

impl FromStr for ServerCommand {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let words = shlex::split(text).ok_or_else(|| {
            ParseError::new(format!("the command '{text}' has a quote that does not close"))
        })?;
        if words.is_empty() {
            return Err(ParseError::new("the command is empty: give a program and its arguments"));
        }
        if !words.iter().any(|word| word.contains(PORT)) {
            return Err(ParseError::new(format!(
                "the command '{text}' does not say where the port goes: write {PORT} there"
            )));
        }
        Ok(Self { text: text.to_owned(), words })
    }
}

impl fmt::Display for ServerCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for ServerCommand {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.text)
    }
}

/// How to start a server.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Start {
    /// What has to be listened on before the server counts as started, either with `None`. Default: TCP.
    pub transport: Option<Transport>,
    /// How long that may take. Default: 10 s.
    pub patience: Duration,
    /// The limit of open files of the server (`RLIMIT_NOFILE`), soft and hard; set by way of
    /// `sh`. Default: that of this process.
    pub descriptors: Option<u64>,
    /// A program and its arguments that calls [`supervise()`] with the command whose words follow
    /// them. Default: empty, for none: then only dropping the [`ServerProcess`] ends the server, and
    /// of its descendants those that are in its process group. So it is without `/proc`, and where the system is not
    /// Linux.
    pub supervisor: Vec<OsString>,
    /// Ends every wait for the server early. Default: one that nothing cancels.
    pub cancel: Cancel,
    /// How to see whether it listens. Default: a client that comes and leaves.
    pub(super) look: fn(SocketAddr, Transport, Deadline<'_>) -> bool,
}

impl Default for Start {
    fn default() -> Self {
        Self {
            transport: Some(Transport::Tcp),
            patience: Duration::from_secs(10),
            descriptors: None,
            supervisor: Vec::new(),
            cancel: Cancel::default(),
            look: listens,
        }
    }
}

/// A server that runs as a child, or as that of a supervisor; dropping it ends it and all of its
/// process group and, with a supervisor, all of its descendants.
#[derive(Debug)]
pub struct ServerProcess {
    /// The server, or its supervisor.
    child: Child,
    pid: u32,
    address: SocketAddr,
    stderr: Tail,
    cancel: Cancel,
}

impl ServerProcess {
    /// Where it listens: a loopback address and its port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process id. Without a supervisor it stays the process's until this is dropped, also when
    /// that has ended.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// How it ended, when it has.
    pub fn ended(&self) -> Option<ExitStatus> {
        // Until the status is taken, no other process gets the number, and the process group is ours to signal.
        wait::ended(self.child.id())
    }

    /// Sends SIGTERM to the process (not to its children) and waits until it has ended. `None`
    /// when it is still there after `patience`, or the run is cancelled before.
    pub fn terminate(&self, patience: Duration) -> Option<ExitStatus> {
        // Its own death before the signal is seen by the wait.
        let _ = signal::kill(Pid::from_raw(self.pid.cast_signed()), Signal::SIGTERM);
        self.wait(patience)
    }

    /// Waits until it has ended; `None` when it is still there after `patience`, or the run is
    /// cancelled before.
    pub fn wait(&self, patience: Duration) -> Option<ExitStatus> {
        self.cancel.within(patience).find(|| self.ended())
    }

    /// The last that it wrote to standard error, on one line.
    pub fn last_words(&self) -> String {
        self.stderr.text()
    }

    fn group(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    fn await_listening(&self, start: &Start) -> Result<SocketAddr, Why> {
        let &Start { transport, patience, look, .. } = start;
        let [v4, v6] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]
            .map(|ip| SocketAddr::new(ip, self.address.port()));
        let deadline = self.cancel.within(patience);
        let look = |address| {
            let of = |asked: &Transport| transport.is_none_or(|only| only == *asked);
            let mut asked = [Transport::Tcp, Transport::Udp].into_iter().filter(of);
            asked.any(|transport| look(address, transport, deadline)).then_some(address)
        };
        let found = deadline.find(|| {
            if let Some(status) = self.ended() {
                return Some(Err(Why::Ended("before it listened", status, self.last_words())));
            }
            // One of both families that begins between two looks is found on IPv4 all the same.
            look(v4).or_else(|| look(v6).map(|v6| look(v4).unwrap_or(v6))).map(Ok)
        });
        match found {
            None if self.cancel.is_cancelled() => Err(Why::Stopped),
            None => Err(Why::Silent(transport, patience, self.last_words())),
            Some(found) => found,
        }
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let group = self.group();
        // A supervisor ends all that it has started; until then, no signal ends it.
        let supervised = self.child.stdin.take().is_some();
        if self.ended().is_none() {
            let _ = signal::killpg(group, Signal::SIGTERM);
            let patience = if supervised { 4 * POLITE } else { POLITE };
            Cancel::default().within(patience).find(|| self.ended());
        }
        let _ = match signal::killpg(group, Signal::SIGKILL) {
            // What this process may not end, such as a server that sudo(8) runs, is not waited for.
            Err(Errno::EPERM) => self.child.try_wait(),
            _ => self.child.wait().map(Some),
        };
    }
}

/// Why a server could not be started: one sentence.
#[derive(Debug)]
pub struct StartError {
    command: String,
    why: Why,
}

#[derive(Debug)]
enum Why {
    Spawn(io::Error),
    Ended(&'static str, ExitStatus, String),
    Silent(Option<Transport>, Duration, String),
    Stopped,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, why } = self;
        match why {
            Why::Spawn(error) => return write!(f, "cannot start '{command}': {error}"),
            Why::Stopped => return write!(f, "stopped before '{command}' listened"),
            Why::Ended(when, status, _) => write!(f, "'{command}' ended {when} ({status})")?,
            Why::Silent(transport, patience, _) => {
                let name = transport.map_or("TCP or UDP", Transport::name);
                let patience = units::time(*patience);
                write!(
                    f,
                    "'{command}' does not listen over {name} on 127.0.0.1 or ::1 after {patience}"
                )?;
            }
        }
        match why {
            Why::Ended(_, _, words) | Why::Silent(_, _, words) if !words.is_empty() => {
                write!(f, "; it said: {words}")
            }
            _ => write!(f, "; it said nothing: run it by hand to see why"),
        }
    }
}

/// It says all that it knows: what the system said is a part of the sentence, and no source.
impl std::error::Error for StartError {}

/// The last bytes that a child wrote to standard error. They are read all the time, so that the
/// child never blocks on a full pipe.
#[derive(Debug)]
struct Tail {
    bytes: Arc<Mutex<VecDeque<u8>>>,
    reader: JoinHandle<()>,
}

impl Tail {
    const BYTES: usize = 1 << 10;

    fn follow(mut stderr: PipeReader) -> io::Result<Self> {
        let bytes = Arc::<Mutex<VecDeque<u8>>>::default();
        let tail = Arc::clone(&bytes);
        let reader = thread::Builder::new().spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = stderr.read(&mut buffer) {
                let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
                tail.extend(&buffer[..length]);
                let surplus = tail.len().saturating_sub(Self::BYTES);
                tail.drain(..surplus);
            }
        })?;
        Ok(Self { bytes, reader })
    }

    /// The text so far; of a child that has just ended, all of it.
    fn text(&self) -> String {
        const LAST_WORDS: Duration = Duration::from_millis(50);
        let ended = || self.reader.is_finished().then_some(());
        Cancel::default().within(LAST_WORDS).find(ended);
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(bytes.make_contiguous());
        // Of a traceback of Python, what follows its last frame says all.
        let frame = text.rfind("\n  File \"");
        let of_frame = |line: &&str| frame.is_some() && (line.is_empty() || line.starts_with(' '));
        // Not the marks that programs put under a line.
        let says = |line: &&str| line.contains(char::is_alphanumeric);
        let lines = text[frame.unwrap_or(0)..].lines().skip_while(of_frame).map(str::trim);
        lines.filter(says).collect::<Vec<_>>().join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_says_what_is_wrong_with_it() {
        for (text, why) in [("", "empty"), ("server -p 7", "{port}"), ("server '{port}", "quote")] {
            let error = text.parse::<ServerCommand>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn quotes_hold_a_word_together() {
        let command: ServerCommand = "sh -c 'server \"$0\" {port}' name".parse().unwrap();
        assert_eq!(command.words(7), ["sh", "-c", "server \"$0\" 7", "name"]);
    }
}
