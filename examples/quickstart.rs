//! An echo server in a program of yours: `cargo run --example quickstart`, then `nc 127.0.0.1 PORT`.

use evecho::{Config, Server};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut config = Config::default();
    config.port = 0;
    config.signals = true;
    let server = Server::bind(config)?;
    for address in server.local_addrs() {
        println!("listening on {address}, until Ctrl-C");
    }
    server.run()?;
    Ok(())
}
