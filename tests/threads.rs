//! The threads of the threaded design: one for each client, gone when it leaves. Alone in its process,
//! so that all threads are this server's.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::fs;

use common::{Client, TestServer, config_with, exchange_datagram, wait_until};
use evecho::Design;

/// The threads of this process whose names begin with `name`.
fn threads(name: &str) -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    // A thread may end while it is looked at.
    let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|comm| comm.starts_with(name)).count()
}

#[test]
fn a_client_has_a_thread_as_long_as_it_stays() {
    let server = TestServer::start(config_with(|config| config.design = Design::Threaded));
    let mut clients: Vec<Client> = (0..100).map(|_| server.connect()).collect();
    clients.iter_mut().for_each(|client| client.exchange(b"hello"));
    exchange_datagram(&server.udp(), b"hello");
    assert_eq!(["accept", "udp", "client"].map(threads), [1, 1, 100]);

    clients.drain(..60).for_each(Client::reset);
    wait_until("their threads end", || threads("client") == 40);
    clients.iter_mut().for_each(|client| client.exchange(b"still here"));
    clients.clear();
    wait_until("all threads of clients end", || threads("client") == 0);

    server.stop();
    wait_until("all threads end", || ["accept", "udp", "client"].map(threads) == [0; 3]);
}
