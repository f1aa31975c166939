//! A service manager that hears how a server is doing.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::ffi::OsString;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::DEADLINE;

pub(crate) struct Manager {
    pub(crate) socket: UnixDatagram,
    pub(crate) name: OsString,
}

impl Manager {
    pub(crate) fn new() -> Manager {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("evecho-test-{}-{count}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        Manager::on(UnixDatagram::bind_addr(&address).unwrap(), format!("@{name}").into())
    }

    pub(crate) fn on(socket: UnixDatagram, name: OsString) -> Manager {
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Manager { socket, name }
    }

    /// A server that is started by this command reports here.
    pub(crate) fn manage<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("NOTIFY_SOCKET", &self.name)
    }

    /// The next report.
    pub(crate) fn hear(&self) -> String {
        let mut room = [0; 1_000];
        let length = self.socket.recv(&mut room).expect("nothing is said");
        String::from_utf8_lossy(&room[..length]).into_owned()
    }
}
