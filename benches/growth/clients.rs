//! The clients: this program again, in as many processes as the connections need.
//!
//! A client hears what to do and tells what it did in lines of JSON. It waits for a word from the bench
//! where all of them have to begin at the same moment.

use std::io::{self, BufRead, BufReader, Lines, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use evecho::client::Cancel;
use evecho::client::load::{self, MOST_PER_SOURCE, Mode, Phase, Report};
use evecho::client::pattern::Alphabet;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::socket::{setsockopt, sockopt};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};

/// The flag that makes this program a client.
pub(crate) const CLIENT: &str = "--client";

/// The first address of clients, 127.0.0.2.
const FIRST_SOURCE: u32 = 0x7f00_0002;

/// What a client tells.
#[derive(Serialize, Deserialize)]
enum Told {
    /// All connections are open. It waits for the word.
    Ready,
    /// All messages are answered: so many, warm-up included. It waits for the word.
    Done(u64),
    Reported(Box<Report>),
    /// How long the answers took that were asked for.
    Answered(Vec<Duration>),
    Failed(String),
}

// ---- the bench's side

/// All clients of one server.
pub(crate) struct Clients(Vec<Client>);

struct Client {
    process: Child,
    words: ChildStdin,
    told: Lines<BufReader<ChildStdout>>,
}

impl Clients {
    /// Starts as many as the connections of `config` need, where each has room for so many, and waits
    /// until all are open. In [`Mode::Idle`] they are held; else they wait, and then load the server.
    pub(crate) fn start(config: &load::Config, room: u32) -> Result<Clients, String> {
        let processes = config.connections.div_ceil(room);
        let client = |index: u32| {
            let mut config = config.clone();
            config.connections =
                config.connections / processes + u32::from(index < config.connections % processes);
            let sources = room.div_ceil(MOST_PER_SOURCE);
            let first = FIRST_SOURCE + index * sources;
            config.sources = (first..first + sources).map(|ip| Ipv4Addr::from(ip).into()).collect();
            Client::start(&config).map_err(|error| format!("cannot start a client: {error}"))
        };
        let mut clients = Clients((0..processes).map(client).collect::<Result<_, _>>()?);
        for client in &mut clients.0 {
            let Told::Ready = client.hear()? else { return Err(Client::unexpected()) };
        }
        Ok(clients)
    }

    /// Gives the word to go on.
    pub(crate) fn go_on(&mut self) -> Result<(), String> {
        self.0.iter_mut().try_for_each(|client| client.say(""))
    }

    /// Waits until all messages are answered: how many.
    pub(crate) fn await_done(&mut self) -> Result<u64, String> {
        let done = self.0.iter_mut().map(|client| match client.hear()? {
            Told::Done(messages) => Ok(messages),
            _ => Err(Client::unexpected()),
        });
        done.sum()
    }

    /// What came of the load.
    pub(crate) fn report(mut self) -> Result<Report, String> {
        let reports = self.0.iter_mut().map(|client| match client.hear()? {
            Told::Reported(report) => Ok(*report),
            _ => Err(Client::unexpected()),
        });
        let reports: Vec<Report> = reports.collect::<Result<_, String>>()?;
        Report::merge(reports).map_err(|error| error.to_string())
    }

    /// Lets so many of the held connections ask, one after the other: how long the answers took.
    pub(crate) fn ask(&mut self, count: usize) -> Result<Vec<Duration>, String> {
        let processes = self.0.len();
        let mut all = Vec::new();
        for client in &mut self.0 {
            client.say(&count.div_ceil(processes).to_string())?;
            let Told::Answered(times) = client.hear()? else { return Err(Client::unexpected()) };
            all.extend(times);
        }
        Ok(all)
    }
}

impl Client {
    fn start(config: &load::Config) -> io::Result<Client> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(CLIENT).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn()?;
        let words = process.stdin.take().expect("stdin is piped");
        let told = process.stdout.take().expect("stdout is piped");
        let mut client = Client { process, words, told: BufReader::new(told).lines() };
        writeln!(client.words, "{}", serde_json::to_string(config)?)?;
        Ok(client)
    }

    fn say(&mut self, word: &str) -> Result<(), String> {
        writeln!(self.words, "{word}").map_err(|_| "a client has ended".to_owned())
    }

    fn hear(&mut self) -> Result<Told, String> {
        let line = self.told.next().and_then(Result::ok).ok_or("a client has ended")?;
        match serde_json::from_str(&line).map_err(|error| error.to_string())? {
            Told::Failed(why) => Err(why),
            told => Ok(told),
        }
    }

    fn unexpected() -> String {
        "a client told something else than it was asked".to_owned()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

// ---- the client's side

/// Is a client, to the end of the process.
pub(crate) fn run() {
    // As the servers do: nobody outlives the bench.
    let _ = set_pdeathsig(Signal::SIGKILL);
    let config = hear().expect("a client is told what to do");
    let config: load::Config = serde_json::from_str(&config).expect("a load's config is JSON");
    let outcome = match config.mode {
        Mode::Idle => hold(&config).map_err(|error| error.to_string()),
        _ => load(&config).map_err(|error| error.to_string()),
    };
    if let Err(why) = outcome {
        tell(&Told::Failed(why));
    }
}

fn tell(told: &Told) {
    // When the bench is gone, nobody wants to know.
    let _ = writeln!(io::stdout(), "{}", serde_json::to_string(told).expect("it is plain data"));
}

/// The next word. None when the bench has gone.
fn hear() -> Option<String> {
    let mut line = String::new();
    io::stdin().read_line(&mut line).ok().filter(|&length| length > 0)?;
    Some(line.trim().to_owned())
}

fn await_word() {
    if hear().is_none() {
        std::process::exit(0);
    }
}

/// Loads the server as `config` says, and waits before the load and before the end.
fn load(config: &load::Config) -> Result<(), load::Error> {
    let mut phase = Phase::Opening;
    let report = load::run(config, &Cancel::default(), |progress| {
        if std::mem::replace(&mut phase, progress.phase) == progress.phase {
            return;
        }
        match progress.phase {
            Phase::WarmUp => tell(&Told::Ready),
            Phase::Over => tell(&Told::Done(progress.messages)),
            _ => return,
        }
        await_word();
    })?;
    tell(&Told::Reported(Box::new(report)));
    Ok(())
}

/// Holds connections that have had one message answered each, and asks over some of them at a word.
fn hold(config: &load::Config) -> io::Result<()> {
    let open = |index| -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(config.address), Type::STREAM, None)?;
        // The port is chosen at connect, as the load does it: see ip(7).
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        let source = config.sources[index as usize % config.sources.len()];
        socket.bind(&SocketAddr::new(source, 0).into())?;
        socket.connect(&config.address.into())?;
        socket.set_read_timeout(Some(config.timeout))?;
        let stream = socket.into();
        exchange(&stream, index, config.size)?;
        Ok(stream)
    };
    let held: Vec<TcpStream> = (0..config.connections).map(open).collect::<io::Result<_>>()?;
    tell(&Told::Ready);
    while let Some(word) = hear() {
        let count = word.parse().unwrap_or(1).clamp(1, held.len());
        let asked = (0..held.len()).step_by(held.len() / count).take(count);
        let times = asked.map(|index| exchange(&held[index], index as u32, config.size));
        tell(&Told::Answered(times.collect::<io::Result<_>>()?));
    }
    Ok(())
}

/// Sends a message and reads it back: how long that took.
fn exchange(mut stream: &TcpStream, index: u32, size: usize) -> io::Result<Duration> {
    let begin = Instant::now();
    stream.write_all(Alphabet::Letters.slice(index, 0, size))?;
    let mut answer = vec![0; size];
    stream.read_exact(&mut answer)?;
    let time = begin.elapsed();
    Alphabet::Letters
        .verify(index, 0, &answer)
        .map_err(|error| io::Error::other(error.to_string()))?;
    Ok(time)
}
