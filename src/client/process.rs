//! A server that a tool starts as a child of its own, and what `/proc` tells of a process.
//!
//! The child must not outlive the tool. Dropping a [`ServerProcess`] ends the child's whole process
//! group: SIGTERM first, then SIGKILL. A tool that is killed drops nothing; for that case
//! [`Start::supervisor`] names a program that ties a command to its parent.

mod port;
mod usage;

use std::collections::VecDeque;
use std::env;
use std::ffi::OsString;
use std::fmt;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::str::FromStr;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{self, Signal};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use super::target::Transport;
use crate::units;

pub(super) use port::listens;
pub use usage::Usage;

/// What stands for the port in a command.
const PORT: &str = "{port}";

/// How often something that cannot be waited for is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

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

    /// Starts the command on a free port and waits until it listens on loopback.
    ///
    /// The command gets this process's environment without the variables of evecho (`EVECHO_*`) and
    /// of a service manager, so that what it does depends on its words alone.
    ///
    /// # Errors
    ///
    /// When it cannot be run, ends, or does not listen within [`Start::patience`].
    pub fn start(&self, start: &Start) -> Result<ServerProcess, StartError> {
        let wrong = |why| StartError { command: self.text.clone(), why };
        let port = port::free().map_err(|error| wrong(Why::Spawn(error)))?;
        let mut words = start.supervisor.clone();
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
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| wrong(Why::Spawn(error)))?;
        let stderr = child.stderr.take().expect("stderr is piped");
        let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
        let mut server = ServerProcess { child, address, stderr: Tail::follow(stderr) };
        server.address = server.await_listening(start.transport, start.patience).map_err(wrong)?;
        Ok(server)
    }
}

impl FromStr for ServerCommand {
    type Err = CommandError;

    fn from_str(text: &str) -> Result<Self, CommandError> {
        let wrong = |why| CommandError { text: text.to_owned(), why };
        let words = shlex::split(text).ok_or_else(|| wrong(WhyNot::Quote))?;
        if words.is_empty() {
            return Err(wrong(WhyNot::Empty));
        }
        if !words.iter().any(|word| word.contains(PORT)) {
            return Err(wrong(WhyNot::NoPort));
        }
        Ok(Self { text: text.to_owned(), words })
    }
}

impl fmt::Display for ServerCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A text that is not a [`ServerCommand`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandError {
    text: String,
    why: WhyNot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WhyNot {
    Quote,
    Empty,
    NoPort,
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = &self.text;
        match self.why {
            WhyNot::Quote => write!(f, "the command '{text}' has a quote that does not close"),
            WhyNot::Empty => write!(f, "the command is empty: give a program and its arguments"),
            WhyNot::NoPort => write!(
                f,
                "the command '{text}' does not say where the port goes: write {PORT} there"
            ),
        }
    }
}

impl std::error::Error for CommandError {}

/// How to start a server.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Start {
    /// What has to be listened on before the server counts as started. Default: TCP.
    pub transport: Transport,
    /// How long that may take. Default: 10 s.
    pub patience: Duration,
    /// The limit of open files of the server (`RLIMIT_NOFILE`), soft and hard; set by way of
    /// `sh`. Default: that of this process.
    pub descriptors: Option<u64>,
    /// A program and its arguments that becomes the command whose words follow them, and ends it
    /// when this process is killed. Default: empty, for none: then only dropping the
    /// [`ServerProcess`] ends the server.
    pub supervisor: Vec<OsString>,
}

impl Default for Start {
    fn default() -> Self {
        Self {
            transport: Transport::Tcp,
            patience: Duration::from_secs(10),
            descriptors: None,
            supervisor: Vec::new(),
        }
    }
}

/// A server that runs as a child; dropping it ends it and all of its process group.
#[derive(Debug)]
pub struct ServerProcess {
    child: Child,
    address: SocketAddr,
    stderr: Tail,
}

impl ServerProcess {
    /// Where it listens: a loopback address and its port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process id. It stays the process's until this is dropped, also when that has ended.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, when it has.
    pub fn ended(&self) -> Option<ExitStatus> {
        // The status is left for later (WNOWAIT): until it is taken, no other process gets the
        // number, and the process group is ours to signal.
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        match waitid(Id::Pid(self.group()), flags) {
            Ok(WaitStatus::Exited(_, code)) => Some(ExitStatus::from_raw((code & 0xff) << 8)),
            Ok(WaitStatus::Signaled(_, signal, _)) => Some(ExitStatus::from_raw(signal as i32)),
            _ => None,
        }
    }

    /// Sends SIGTERM to the process (not to its children) and waits until it has ended. `None`
    /// when it is still there after `patience`.
    pub fn terminate(&self, patience: Duration) -> Option<ExitStatus> {
        // Its own death before the signal is seen by the wait.
        let _ = signal::kill(self.group(), Signal::SIGTERM);
        self.wait(patience)
    }

    /// Waits until it has ended; `None` when it is still there after `patience`.
    pub fn wait(&self, patience: Duration) -> Option<ExitStatus> {
        poll_until(patience, || self.ended())
    }

    /// The last that it wrote to standard error, on one line.
    pub fn last_words(&self) -> String {
        self.stderr.text()
    }

    fn group(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    fn await_listening(&self, transport: Transport, patience: Duration) -> Result<SocketAddr, Why> {
        let [v4, v6] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]
            .map(|ip| SocketAddr::new(ip, self.address.port()));
        let look = |address| listens(address, transport).then_some(address);
        let found = poll_until(patience, || {
            if let Some(status) = self.ended() {
                return Some(Err(Why::Ended(status, self.last_words())));
            }
            // One of both families that begins between two looks is found on IPv4 all the same.
            look(v4).or_else(|| look(v6).map(|v6| look(v4).unwrap_or(v6))).map(Ok)
        });
        found.unwrap_or_else(|| Err(Why::Silent(transport, patience, self.last_words())))
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let group = self.group();
        if self.ended().is_none() {
            let _ = signal::killpg(group, Signal::SIGTERM);
            self.wait(POLITE);
        }
        let _ = signal::killpg(group, Signal::SIGKILL);
        let _ = self.child.wait();
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
    Ended(ExitStatus, String),
    Silent(Transport, Duration, String),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, why } = self;
        match why {
            Why::Spawn(_) => return write!(f, "cannot start '{command}'"),
            Why::Ended(status, _) => {
                write!(f, "'{command}' ended before it listened ({status})")?;
            }
            Why::Silent(transport, patience, _) => {
                let name = match transport {
                    Transport::Tcp => "TCP",
                    Transport::Udp => "UDP",
                };
                let patience = units::time(*patience);
                write!(
                    f,
                    "'{command}' does not listen over {name} on 127.0.0.1 or ::1 after {patience}"
                )?;
            }
        }
        match why {
            Why::Ended(_, words) | Why::Silent(_, _, words) if !words.is_empty() => {
                write!(f, "; it said: {words}")
            }
            _ => write!(f, "; it said nothing: run it by hand to see why"),
        }
    }
}

impl StartError {
    /// The sentence with its cause.
    pub(super) fn sentence(&self) -> String {
        match &self.why {
            Why::Spawn(error) => format!("{self}: {error}"),
            Why::Ended(..) | Why::Silent(..) => self.to_string(),
        }
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.why {
            Why::Spawn(error) => Some(error),
            Why::Ended(..) | Why::Silent(..) => None,
        }
    }
}

/// Calls `look` until it finds something, at most for `patience`.
fn poll_until<T>(patience: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let begin = Instant::now();
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if begin.elapsed() >= patience {
            return None;
        }
        thread::sleep(LOOK_AGAIN);
    }
}

/// The last bytes that a child wrote to standard error. They are read all the time, so that the
/// child never blocks on a full pipe.
#[derive(Clone, Debug)]
struct Tail(Arc<(Mutex<TailState>, Condvar)>);

#[derive(Debug, Default)]
struct TailState {
    bytes: VecDeque<u8>,
    ended: bool,
}

impl Tail {
    const BYTES: usize = 1 << 10;

    fn follow(mut stderr: ChildStderr) -> Self {
        let tail = Self(Arc::default());
        let writer = tail.clone();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = stderr.read(&mut buffer) {
                let mut state = writer.0.0.lock().unwrap_or_else(PoisonError::into_inner);
                state.bytes.extend(&buffer[..length]);
                let surplus = state.bytes.len().saturating_sub(Self::BYTES);
                state.bytes.drain(..surplus);
            }
            writer.0.0.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
            writer.0.1.notify_all();
        });
        tail
    }

    /// The text so far; of a child that has just ended, all of it.
    fn text(&self) -> String {
        const LAST_WORDS: Duration = Duration::from_millis(50);
        let (state, ended) = &*self.0;
        let state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let (state, _) = ended
            .wait_timeout_while(state, LAST_WORDS, |state| !state.ended)
            .unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = state.bytes.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
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
