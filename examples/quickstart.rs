//! An echo server in a program of yours: `cargo run --example quickstart`, then `nc 127.0.0.1 PORT`.

use evecho::{Config, Server};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = Server::bind(Config { port: 0, signals: true, ..Config::default() })?;
    for address in server.local_addrs() {
        println!("listening on {address}, until Ctrl-C");
    }
    server.run()?;
    Ok(())
}
