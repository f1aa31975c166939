//! The servers: which there are, and how each is started for so many connections.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use evecho::ParseError;
use evecho::client::compare::Contender;
use evecho::client::process::{ServerCommand, ServerProcess, Start, Usage};

use crate::kernel;

/// evecho of this build.
const EVECHO: &str = env!("CARGO_BIN_EXE_evecho");

/// How long a server may take to start; the table of all sockets is long where many connections ended.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server that takes part.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    /// Its name, and the command of one process.
    pub(crate) contender: Contender,
    pub(crate) processes: Processes,
}

/// How many processes share the port (`SO_REUSEPORT`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Processes {
    /// One: it cannot share.
    One,
    /// Exactly so many.
    Exactly(u32),
    /// As many as the limit of open files demands.
    AsNeeded,
}

impl Processes {
    /// How many there are for so many connections, where each has room for `room` of them.
    pub(crate) fn for_connections(self, connections: u32, room: u32) -> Result<u32, String> {
        let needed = match connections <= room {
            true => 1,
            // The kernel spreads by a hash, not evenly: the fullest has a few percent more.
            false => connections.div_ceil(room / 10 * 9),
        };
        match self {
            Processes::AsNeeded => Ok(needed),
            Processes::One if needed == 1 => Ok(1),
            Processes::Exactly(number) if number >= needed => Ok(number),
            Processes::One | Processes::Exactly(_) => {
                Err(format!("a process may have {room} connections here"))
            }
        }
    }
}

/// The program as a word of a command.
fn program() -> String {
    shlex::try_quote(EVECHO).expect("a path has no NUL").into_owned()
}

/// evecho of this build, with these flags.
pub(crate) fn evecho(name: &str, flags: &str, processes: Processes) -> Candidate {
    let command =
        format!("{} --port {{port}} --bind 127.0.0.1 --tcp-only --quiet {flags}", program());
    let command = command.parse().expect("it has a port and its quotes close");
    let mut contender = Contender::new(name, command);
    contender.version = Some(env!("CARGO_PKG_VERSION").to_owned());
    Candidate { contender, processes }
}

/// Reads `NAME=COMMAND`: another server, of one process.
pub(crate) fn peer(text: &str) -> Result<Candidate, ParseError> {
    Ok(Candidate { contender: text.parse()?, processes: Processes::One })
}

impl Candidate {
    /// Starts so many processes, and waits until all of them listen and one has answered.
    pub(crate) fn start(&self, processes: u32) -> Result<ServerProcess, String> {
        let mut start = Start::default();
        start.patience = PATIENCE;
        start.supervisor = [EVECHO, "__supervise"].map(Into::into).into();
        let mut command = self.contender.command.to_string();
        if processes > 1 {
            // All but the one that the shell becomes are its children, and end with it.
            let others = r#""$@" & "#.repeat(processes as usize - 1);
            command = format!("sh -c '{others}exec \"$@\"' sh {command} --reuse-port");
        }
        let command: ServerCommand =
            command.parse().map_err(|error: ParseError| error.to_string())?;
        let server = command.start(&start).map_err(|error| error.to_string())?;
        let begin = Instant::now();
        while processes > 1 && kernel::listeners(server.address().port()) < processes as usize {
            if begin.elapsed() > PATIENCE {
                return Err(format!(
                    "not all of {processes} processes listen: {}",
                    server.last_words()
                ));
            }
            thread::sleep(Duration::from_millis(50));
        }
        greet(&server).map_err(|error| format!("it does not answer: {error}"))?;
        Ok(server)
    }
}

/// One message: what a process does only for its first client is done.
fn greet(server: &ServerProcess) -> std::io::Result<()> {
    let mut client = TcpStream::connect(server.address())?;
    client.set_read_timeout(Some(PATIENCE))?;
    client.write_all(b"hello")?;
    client.read_exact(&mut [0; 5])
}

/// What the server uses, or how it ended.
pub(crate) fn usage(server: &ServerProcess) -> Result<Usage, String> {
    Usage::of(server.pid()).map_err(|_| "its process is gone".to_owned())
}

/// Puts the end of the server before what followed from it.
pub(crate) fn blame(server: &ServerProcess, fault: String) -> String {
    match server.wait(Duration::from_millis(100)) {
        None => fault,
        Some(status) => format!("died ({status}; '{}'): {fault}", server.last_words()),
    }
}
