//! A service of one's own: `cargo run --example custom_service`, then `nc 127.0.0.1 PORT`.
//!
//! It answers each line with its number; the line `bye` goes back as it came, and ends it.

use evecho::protocol::Message;
use evecho::{Config, Framing, Reply, Server, Service};

/// Numbers lines. Each connection has a clone, and so a count, of its own.
#[derive(Clone, Default)]
struct Number {
    lines: u64,
}

impl Service for Number {
    fn serve(&mut self, message: Message<'_>, reply: &mut Vec<u8>) -> Reply {
        if message.bytes().trim_ascii() == b"bye" {
            return Reply::message().then_close();
        }
        self.lines += 1;
        reply.extend_from_slice(format!("{:>4}  ", self.lines).as_bytes());
        reply.extend_from_slice(message.bytes());
        Reply::written()
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut config = Config::default();
    config.port = 0;
    config.protocol.framing = Framing::Lines;
    config.signals = true;
    let server = Server::bind(config)?;
    println!("listening on {:?}, until Ctrl-C", server.local_addrs());
    server.run_with(Number::default())?;
    Ok(())
}
