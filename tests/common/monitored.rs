//! The `evecho` process as a server that monitors ask.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::Command;

use crate::daemon::{Daemon, connect, evecho, read_to_end};

/// A server, and where monitors are answered.
pub(crate) struct Monitored {
    pub(crate) server: Daemon,
    pub(crate) address: SocketAddr,
}

impl Monitored {
    pub(crate) fn start(flags: &[&str]) -> Self {
        let here = ["--port", "0", "--bind", "127.0.0.1", "--metrics", "127.0.0.1:0"];
        Monitored::spawn(evecho().args(here).args(flags))
    }

    pub(crate) fn spawn(command: &mut Command) -> Self {
        let server = Daemon::spawn(command);
        let line = server.wait_for("metrics on http://");
        let (_, rest) = line.split_once("http://").unwrap();
        let address = rest.split('/').next().unwrap().parse().unwrap();
        Monitored { server, address }
    }

    pub(crate) fn connect(&self) -> TcpStream {
        connect(self.address)
    }

    /// All that is answered to this, up to the server's FIN.
    pub(crate) fn send(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(bytes).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        String::from_utf8(read_to_end(&stream)).unwrap()
    }

    /// The status, the head and the body.
    pub(crate) fn get(&self, path: &str) -> (u16, String, String) {
        self.get_as(path, "*/*")
    }

    /// The same, in the format that `accept` asks for.
    pub(crate) fn get_as(&self, path: &str, accept: &str) -> (u16, String, String) {
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nAccept: {accept}\r\n\r\n");
        let answer = self.send(request.as_bytes());
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.strip_prefix("HTTP/1.1 ").unwrap()[..3].parse().unwrap();
        (status, head.to_owned(), body.to_owned())
    }

    pub(crate) fn metrics(&self) -> String {
        let (status, head, body) = self.get("/metrics");
        assert_eq!(status, 200, "{head}");
        body
    }

    /// The value of a sample, by its name and labels.
    pub(crate) fn value(&self, sample: &str) -> f64 {
        let text = self.metrics();
        let value = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {sample} in {text}")).parse().unwrap()
    }
}
