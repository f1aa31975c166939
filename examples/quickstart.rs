//! An echo server in a program of yours: `cargo run --example quickstart`, then `nc 127.0.0.1 PORT`.
#![allow(clippy::print_stderr, reason = "errors go to standard error")]

use std::process::ExitCode;

use evecho::{Config, Error, Server};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quickstart: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Error> {
    let mut config = Config::default();
    // Any free port.
    config.port = 0;
    // Ctrl-C ends it, after the clients that are connected have finished.
    config.signals = true;
    let server = Server::bind(config)?;
    for address in server.local_addrs() {
        println!("listening on {address}, until Ctrl-C");
    }
    server.run()
}
