//! A UDP service that answers some datagrams and not others: `cargo run --example lossy_pinger`, then
//! `evecho ping --udp 127.0.0.1:PORT`, or a pinger of your own, which has to cope with the loss.
#![allow(clippy::print_stderr, reason = "errors go to standard error")]

use std::hash::{BuildHasher, RandomState};
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use evecho::protocol::{Flow, service_fn};
use evecho::{Config, Error, Server, Transport};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lossy_pinger: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Error> {
    let mut config = Config::default();
    config.bind = vec![Ipv4Addr::LOCALHOST.into()];
    config.port = 0;
    config.transport = Some(Transport::Udp);
    config.signals = true;
    let server = Server::bind(config)?;
    println!("listening on {} (UDP), until Ctrl-C", server.local_addrs()[0]);

    // Each datagram has a clone of the service: what all of them share is behind the `Arc`.
    let seen = Arc::new(AtomicU64::new(0));
    let chance = RandomState::new();
    server.run_with(service_fn(move |_, replies, context| {
        let number = seen.fetch_add(1, Ordering::Relaxed);
        let lost = chance.hash_one(number) % 10 < 3;
        println!("{} {}", context.peer(), if lost { "lost" } else { "answered" });
        // Where it says nothing, nothing is sent: not even an empty datagram.
        if !lost {
            replies.echo();
        }
        Flow::Continue
    }))
}
