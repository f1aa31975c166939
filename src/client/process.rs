//! A server that a tool starts as a child of its own, and what `/proc` tells of a process.
//!
//! The child must not outlive the tool, however that ends. Dropping a [`ServerProcess`] ends the
//! child's whole process group, first politely. For the case that the tool itself is killed, the
//! child is started through `evecho __supervise`, which asks the kernel to end it with its
//! parent (`PR_SET_PDEATHSIG`, prctl(2)) and then becomes the command (execve(2)).

use std::collections::VecDeque;
use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::str::FromStr;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{self, Signal};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::time::ClockId;
use nix::unistd::{Pid, getppid};
use socket2::{Domain, Socket, Type};

use super::target::Transport;
use crate::units;

/// What stands for the port in a command.
const PORT: &str = "{port}";

/// How often something that cannot be waited for is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// How long a child may take to leave after a polite signal, before it is killed.
const POLITE: Duration = Duration::from_millis(500);

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
    /// The kernel ends the child when the *thread* that called this ends, so start it from one
    /// that lives as long as the child is needed.
    ///
    /// # Errors
    ///
    /// When it cannot be run, ends, or does not listen within `start.patience`.
    pub fn start(&self, start: &Start) -> Result<ServerProcess, StartError> {
        let wrong = |why| StartError { command: self.text.clone(), why };
        let port = free_port().map_err(|error| wrong(Why::Spawn(error)))?;
        let mut supervised = Command::new(&start.supervisor);
        supervised.args(["__supervise", "--parent", &std::process::id().to_string()]);
        if let Some(limit) = start.descriptors {
            supervised.args(["--descriptors", &limit.to_string()]);
        }
        supervised.arg("--").args(self.words(port));
        supervised.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child =
            supervised.process_group(0).spawn().map_err(|error| wrong(Why::Spawn(error)))?;
        let stderr = child.stderr.take().expect("stderr is piped");
        let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
        let mut server = ServerProcess { child, address, stderr: Tail::follow(stderr) };
        server.address = server.await_listening(start.transport, start.patience).map_err(wrong)?;
        Ok(server)
    }
}

impl FromStr for ServerCommand {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words = shlex::split(text)
            .ok_or_else(|| format!("the command '{text}' has a quote that does not close"))?;
        if words.is_empty() {
            return Err("the command is empty: give a program and its arguments".to_owned());
        }
        if !words.iter().any(|word| word.contains(PORT)) {
            return Err(format!(
                "the command '{text}' does not say where the port goes: write {PORT} there"
            ));
        }
        Ok(Self { text: text.to_owned(), words })
    }
}

impl fmt::Display for ServerCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// How to start a server.
#[derive(Clone, Debug)]
pub struct Start {
    /// The `evecho` binary, which runs the command and ends it with this process.
    pub supervisor: PathBuf,
    /// What has to be listened on before the server counts as started.
    pub transport: Transport,
    /// How long that may take.
    pub patience: Duration,
    /// `RLIMIT_NOFILE` of the server, soft and hard; its own when `None`.
    pub descriptors: Option<u64>,
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

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, when it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends SIGTERM to the process (not to its children) and waits until it has ended. `None`
    /// when it is still there after `patience`.
    pub fn terminate(&mut self, patience: Duration) -> Option<ExitStatus> {
        // Its own death before the signal is seen by the wait.
        let _ = signal::kill(self.group(), Signal::SIGTERM);
        self.wait(patience)
    }

    /// Waits until it has ended; `None` when it is still there after `patience`.
    pub fn wait(&mut self, patience: Duration) -> Option<ExitStatus> {
        poll_until(patience, || self.ended())
    }

    /// The last that it wrote to standard error, on one line.
    pub fn last_words(&self) -> String {
        self.stderr.text()
    }

    fn group(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    fn await_listening(
        &mut self,
        transport: Transport,
        patience: Duration,
    ) -> Result<SocketAddr, Why> {
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

    /// Whether it has ended, without taking its status: the process group stays ours until then.
    fn gone(&self) -> bool {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        !matches!(waitid(Id::Pid(self.group()), flags), Ok(WaitStatus::StillAlive))
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let group = self.group();
        if !self.gone() {
            let _ = signal::killpg(group, Signal::SIGTERM);
            poll_until(POLITE, || self.gone().then_some(()));
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
            Why::Spawn(error) => return write!(f, "cannot start '{command}': {error}"),
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

impl std::error::Error for StartError {}

/// Calls `look` until it finds something, at most for `patience`.
fn poll_until<T>(patience: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(LOOK_AGAIN);
    }
}

/// Whether a loopback address is listened on: a connection is accepted, or a datagram is not
/// refused. On loopback the refusal is there before send(2) returns.
pub fn listens(address: SocketAddr, transport: Transport) -> bool {
    match transport {
        Transport::Tcp => TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok(),
        Transport::Udp => {
            let asked = UdpSocket::bind(SocketAddr::new(address.ip(), 0)).and_then(|socket| {
                socket.connect(address)?;
                socket.send(b"?")?;
                let refused = socket.take_error()?;
                // An answer is taken, so that it does not meet a port that is closed already.
                socket.set_read_timeout(Some(Duration::from_millis(50)))?;
                let _ = socket.recv(&mut [0]);
                Ok(refused)
            });
            matches!(asked, Ok(None))
        }
    }
}

/// A port that is free over TCP and UDP, from below the range that outgoing connections use.
///
/// # Errors
///
/// When none of many is free, or no socket can be opened.
pub fn free_port() -> io::Result<u16> {
    const FIRST: u16 = 10_240;
    const TRIES: u32 = 1_000;
    let last = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|range| range.split_whitespace().next()?.parse::<u16>().ok())
        .filter(|&low| low > FIRST + 1_000)
        .unwrap_or(32_768);
    let mut error = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..TRIES {
        let port = FIRST + (random() % u64::from(last - FIRST)) as u16;
        let tcp = bind_everywhere(port, Type::STREAM);
        let udp = tcp.and_then(|_| bind_everywhere(port, Type::DGRAM));
        match udp {
            Ok(_) => return Ok(port),
            Err(other) => error = other,
        }
    }
    Err(error)
}

/// Binds both families at once, or IPv4 alone on a machine without IPv6.
fn bind_everywhere(port: u16, kind: Type) -> io::Result<Socket> {
    let Ok(socket) = Socket::new(Domain::IPV6, kind, None) else {
        let socket = Socket::new(Domain::IPV4, kind, None)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
        return Ok(socket);
    };
    socket.set_only_v6(false)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    Ok(socket)
}

/// A number that differs from process to process and from call to call.
fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish()
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

/// Becomes `command`, which then ends with the process `parent`: the body of
/// `evecho __supervise`.
///
/// `descriptors`, when given, is the command's `RLIMIT_NOFILE`, soft and hard.
///
/// # Errors
///
/// Returns only when the parent is gone already, the limit cannot be set or the command cannot
/// be run.
pub fn supervise(parent: u32, descriptors: Option<u64>, command: &[String]) -> io::Error {
    if let Err(error) = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL) {
        return error.into();
    }
    // The parent may have gone before the line above.
    if getppid() != Pid::from_raw(parent.cast_signed()) {
        return io::Error::other("the process that wanted the server is gone");
    }
    if let Some(limit) = descriptors
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, limit, limit)
    {
        return error.into();
    }
    let [program, arguments @ ..] = command else {
        return io::Error::other("no command to run");
    };
    let error = Command::new(program).args(arguments).exec();
    io::Error::new(error.kind(), format!("cannot run '{program}': {error}"))
}

/// What a process, with all its threads and descendants, uses at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time since its start, user and system; of descendants that have ended to 10 ms.
    pub cpu: Duration,
    /// Resident memory in bytes. Pages that several of its processes share count in each.
    pub resident: u64,
    /// Processes: itself and its descendants.
    pub processes: u64,
    /// Threads of all its processes.
    pub threads: u64,
    /// Open descriptors of all its processes.
    pub descriptors: u64,
    /// How often its living threads gave up the CPU to wait.
    pub voluntary_switches: u64,
    /// How often the CPU was taken from its living threads.
    pub involuntary_switches: u64,
}

impl Usage {
    /// What the process `pid` and its descendants use now.
    ///
    /// # Errors
    ///
    /// When there is no such process, or it belongs to another user. A descendant that ends
    /// while it is looked at is left out.
    pub fn of(pid: u32) -> io::Result<Self> {
        let mut total = Self::of_one(pid)?;
        total.cpu += reaped_cpu(pid)?;
        for child in children(pid) {
            if let Ok(usage) = Self::of(child) {
                total.add(&usage);
            }
        }
        Ok(total)
    }

    fn of_one(pid: u32) -> io::Result<Self> {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let mut usage = Self {
            cpu: cpu(pid)?,
            resident: resident(&process)?,
            processes: 1,
            descriptors: fs::read_dir(process.join("fd"))?.count() as u64,
            ..Self::default()
        };
        for task in tasks(pid)? {
            let Ok(status) = fs::read_to_string(task.join("status")) else { continue };
            usage.threads += 1;
            usage.voluntary_switches += number(&status, "voluntary_ctxt_switches:");
            usage.involuntary_switches += number(&status, "nonvoluntary_ctxt_switches:");
        }
        Ok(usage)
    }

    fn add(&mut self, other: &Self) {
        self.cpu += other.cpu;
        self.resident += other.resident;
        self.processes += other.processes;
        self.threads += other.threads;
        self.descriptors += other.descriptors;
        self.voluntary_switches += other.voluntary_switches;
        self.involuntary_switches += other.involuntary_switches;
    }
}

/// The CPU time of all threads of one process, those that have ended too, in nanoseconds.
fn cpu(pid: u32) -> io::Result<Duration> {
    let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid.cast_signed())).map_err(not_found)?;
    Ok(clock.now().map_err(not_found)?.into())
}

/// The kernel says EINVAL of a clock whose process is gone.
fn not_found(errno: Errno) -> io::Error {
    match errno {
        Errno::EINVAL => Errno::ESRCH.into(),
        other => other.into(),
    }
}

/// The CPU time of children that have ended and were waited for: fields 16 and 17 of
/// proc_pid_stat(5), in ticks of 10 ms.
fn reaped_cpu(pid: u32) -> io::Result<Duration> {
    const TICK: Duration = Duration::from_millis(10);
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, field 2, may contain blanks; it ends with the last parenthesis.
    let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let ticks =
        after_name.split(' ').skip(13).take(2).filter_map(|field| field.parse::<u32>().ok());
    Ok(TICK * ticks.sum())
}

/// Resident bytes, exact where the kernel can say so: its quick counters may be off by much.
fn resident(process: &Path) -> io::Result<u64> {
    fs::read_to_string(process.join("smaps_rollup"))
        .map(|text| number(&text, "Rss:"))
        .or_else(|_| fs::read_to_string(process.join("status")).map(|text| number(&text, "VmRSS:")))
        .map(|kib| kib << 10)
}

fn tasks(pid: u32) -> io::Result<Vec<PathBuf>> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))?;
    Ok(tasks.flatten().map(|task| task.path()).collect())
}

fn children(pid: u32) -> Vec<u32> {
    let lists = tasks(pid).unwrap_or_default().into_iter();
    let lists = lists.filter_map(|task| fs::read_to_string(task.join("children")).ok());
    lists
        .flat_map(|list| list.split(' ').filter_map(|id| id.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// The number behind `label` at the start of a line; 0 when there is none.
fn number(text: &str, label: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(label));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_command_says_what_is_wrong_with_it() {
        for (text, why) in
            [("", "empty"), ("server --port 7", "{port}"), ("server '{port}", "quote")]
        {
            let error = text.parse::<ServerCommand>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn quotes_hold_a_word_together() {
        let command: ServerCommand = "sh -c 'server \"$0\" {port}' name".parse().unwrap();
        assert_eq!(command.words(7), ["sh", "-c", "server \"$0\" 7", "name"]);
    }

    #[test]
    fn listening_is_told_from_refusing() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(listens(tcp.local_addr().unwrap(), Transport::Tcp));
        assert!(!listens(tcp.local_addr().unwrap(), Transport::Udp));
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(listens(udp.local_addr().unwrap(), Transport::Udp));
        assert!(!listens(udp.local_addr().unwrap(), Transport::Tcp));
    }

    #[test]
    fn a_free_port_can_be_bound() {
        let port = free_port().unwrap();
        assert!(port >= 10_240);
        bind_everywhere(port, Type::STREAM).unwrap();
    }

    #[test]
    fn usage_counts_threads_descriptors_and_work() {
        let pid = std::process::id();
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let waiting = thread::spawn(move || held.recv());
        let before = Usage::of(pid).unwrap();
        let file = fs::File::open("/proc/self/stat").unwrap();
        assert!(before.threads >= 2 && before.processes >= 1 && before.resident > 1 << 16);
        // Other tests of this process run at the same time: only CPU time cannot shrink.
        poll_until(Duration::from_secs(20), || {
            (Usage::of(pid).unwrap().cpu > before.cpu).then_some(())
        })
        .expect("looking costs CPU time");
        drop((hold, file));
        let _ = waiting.join().unwrap();
    }

    #[test]
    fn usage_of_nobody_is_an_error() {
        // Over the kernel's largest process id, 2^22.
        assert!(Usage::of(5_000_000).is_err());
    }

    #[test]
    fn numbers_are_read_by_label() {
        let text = "Rss:                1234 kB\nnonvoluntary_ctxt_switches:\t7\n";
        assert_eq!(number(text, "Rss:"), 1234);
        assert_eq!(number(text, "nonvoluntary_ctxt_switches:"), 7);
        assert_eq!(number(text, "voluntary_ctxt_switches:"), 0);
    }
}
