//! A line protocol with state: `cargo run --example line_protocol`, then `nc 127.0.0.1 PORT`.
//!
//! `set NAME VALUE` and `get NAME` keep variables for each connection; `visitors` says how many
//! connections there are now, which all share; `quit` ends the conversation.
#![allow(clippy::print_stderr, reason = "errors go to standard error")]

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use evecho::protocol::{Context, Flow, FrameError, Message, Replies};
use evecho::{Config, Error, Framing, Server, Service, Transport};

/// One conversation. Each connection has a clone of its own: what they share is behind an `Arc`.
#[derive(Clone, Default)]
struct Conversation {
    variables: HashMap<String, String>,
    visitors: Arc<AtomicUsize>,
}

/// The most variables of a connection: a client must not fill the memory.
const MAX_VARIABLES: usize = 100;

impl Service for Conversation {
    fn open(&mut self, replies: &mut Replies<'_>, context: &Context<'_>) -> Flow {
        self.visitors.fetch_add(1, Ordering::Relaxed);
        replies.send(format!("hello {}\n", context.peer()).as_bytes());
        Flow::Continue
    }

    fn serve(&mut self, message: Message<'_>, replies: &mut Replies<'_>, _: &Context<'_>) -> Flow {
        let line = String::from_utf8_lossy(message.bytes());
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match words[..] {
            ["set", _, _] if self.variables.len() >= MAX_VARIABLES => {
                "too many variables".to_owned()
            }
            ["set", name, value] => {
                self.variables.insert(name.to_owned(), value.to_owned());
                "ok".to_owned()
            }
            ["get", name] => match self.variables.get(name) {
                Some(value) => value.clone(),
                None => format!("{name} is not set"),
            },
            ["visitors"] => self.visitors.load(Ordering::Relaxed).to_string(),
            ["quit"] => {
                replies.send(b"bye\n");
                return Flow::Close;
            }
            _ => "set NAME VALUE, get NAME, visitors or quit".to_owned(),
        };
        replies.send(format!("{answer}\n").as_bytes());
        Flow::Continue
    }

    fn broken(&mut self, error: FrameError, replies: &mut Replies<'_>, _: &Context<'_>) {
        replies.send(format!("{error}: good bye\n").as_bytes());
    }

    fn close(&mut self, _: &Context<'_>) {
        self.visitors.fetch_sub(1, Ordering::Relaxed);
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("line_protocol: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Error> {
    let mut config = Config::default();
    config.bind = vec![Ipv4Addr::LOCALHOST.into()];
    config.port = 0;
    config.transport = Some(Transport::Tcp);
    config.protocol.framing = Framing::Lines;
    config.protocol.max_frame = 1_000;
    config.signals = true;
    let server = Server::bind(config)?;
    println!("listening on {}, until Ctrl-C", server.local_addrs()[0]);
    server.run_with(Conversation::default())
}
