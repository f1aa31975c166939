//! A service of one's own: `cargo run --example custom_service`, then `nc 127.0.0.1 PORT`.
//!
//! It answers each line with its number; the line `bye` goes back as it came, and ends it.

use evecho::protocol::{Context, Flow, Message, Replies};
use evecho::{Config, Framing, Server, Service};

/// Numbers lines. Each connection has a clone, and so a count, of its own.
#[derive(Clone, Default)]
struct Number {
    lines: u64,
}

impl Service for Number {
    fn serve(&mut self, message: Message<'_>, replies: &mut Replies<'_>, _: &Context<'_>) -> Flow {
        if message.bytes().trim_ascii() == b"bye" {
            replies.echo();
            return Flow::Close;
        }
        self.lines += 1;
        replies.send_with(|reply| {
            reply.extend_from_slice(format!("{:>4}  ", self.lines).as_bytes());
            reply.extend_from_slice(message.bytes());
        });
        Flow::Continue
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
