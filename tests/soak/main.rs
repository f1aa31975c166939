//! Everything at once for a long time: what the servers use must not grow.
//!
//!     cargo test --release --test soak -- --time 1h --output benches
//!
//! Three servers last from the beginning to the end: a plain one, one that answers lines in upper case, and one
//! that loses, delays and corrupts. A fourth has sockets that somebody else keeps, and is replaced again and
//! again. A storm of clients of every kind is followed by silence, again and again: then nobody may have lost anything,
//! no connection may be left, and what each server uses is noted. It is run by name only, since it takes an hour.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stderr, reason = "it tells how far it is")]

mod clients;
mod curve;
#[path = "../common/daemon.rs"]
mod daemon;
#[path = "../common/monitored.rs"]
mod monitored;
mod record;

use std::fs;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use clap::Parser;
use nix::sys::signal::Signal;

use self::clients::{Done, Storm, Who};
use self::daemon::{Daemon, LOCALHOST, kept, pass};
use self::monitored::Monitored;
use self::record::Record;

#[derive(Parser)]
struct Args {
    /// How long
    #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
    time: Duration,
    /// Write soak.svg and soak.csv into this directory
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

/// The servers that last, by name, and their flags.
const LASTING: [(&str, &str); 3] = [
    ("plain", ""),
    ("lines", "--service upper --framing lines"),
    ("impaired", "--loss 5% --duplicate 1% --reorder 5% --corrupt 1% --delay 2ms --jitter 1ms"),
];

const STORM: Duration = Duration::from_secs(20);
/// There are so many at least, half of them to compare with the others.
const STORMS: u32 = 6;
/// So many samples make a curve.
const SAMPLES: u32 = 720;
/// How often the fourth server is replaced in each storm.
const RESTARTS: u32 = 3;

fn main() {
    let args = Args::parse();
    evecho::raise_open_file_limit().unwrap();
    if let Some(directory) = &args.output {
        fs::create_dir_all(directory).unwrap();
    }
    let lasting =
        LASTING.map(|(_, flags)| Monitored::start(&flags.split_whitespace().collect::<Vec<_>>()));
    let mut record = Record::new(LASTING.map(|(name, _)| name).into_iter().zip(&lasting));
    let mut replaced = Replaced::start();
    let [plain, lines, impaired] =
        lasting.each_ref().map(|server| (LOCALHOST, server.server.port).into());
    let who = Who { plain, lines, impaired, kept: replaced.addresses() };
    let storm = Storm { who, time: STORM.min(args.time / STORMS) };
    for count in 1.. {
        thread::scope(|scope| {
            let storming = scope.spawn(|| storm.rage());
            scope.spawn(|| replaced.be_replaced(storm.time));
            while !storming.is_finished() {
                record.note(&lasting);
                thread::sleep(args.time / SAMPLES);
            }
            record.count(&storming.join().expect("the clients have got what was due"));
        });
        record.count(&Done { replaced: RESTARTS.into(), ..Done::default() });
        record.note_rest(&lasting);
        eprintln!("{}", record.progress());
        if count >= STORMS && record.elapsed() >= args.time {
            break;
        }
    }
    print!("{}", record.table());
    if let Some(directory) = &args.output {
        fs::write(directory.join("soak.csv"), record.csv()).unwrap();
        fs::write(directory.join("soak.svg"), curve::svg(&record)).unwrap();
    }
    record.assert_flat();
    lasting.into_iter().for_each(|server| _ = server.server.stop());
}

/// A server whose sockets are kept, as a service manager does, while it is replaced.
struct Replaced {
    sockets: (TcpListener, UdpSocket),
    server: Daemon,
}

impl Replaced {
    fn start() -> Self {
        let sockets = kept();
        let server = Daemon::spawn(&mut pass(&sockets));
        Replaced { sockets, server }
    }

    /// Those of its TCP and of its UDP socket.
    fn addresses(&self) -> [SocketAddr; 2] {
        [self.sockets.0.local_addr().unwrap(), self.sockets.1.local_addr().unwrap()]
    }

    fn be_replaced(&mut self, within: Duration) {
        for _ in 0..RESTARTS {
            thread::sleep(within / (RESTARTS + 1));
            self.server.signal(Signal::SIGTERM);
            let ended = self.server.wait();
            assert!(ended.success(), "{ended}");
            self.server = Daemon::spawn(&mut pass(&self.sockets));
        }
    }
}
