//! TCP's urgent data, which few send and every server meets: RFC 6093.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{Client, TestServer};
use evecho::{Config, Server};
use socket2::SockRef;

/// A read stops in front of the urgent byte. What is behind it has to be found without another event.
#[test]
fn urgent_data_are_answered_in_their_place_and_hide_nothing() {
    let server = Server::bind(Config::loopback()).unwrap();
    let mut client = Client::connect(server.local_addrs()[0]);
    client.send(b"before");
    SockRef::from(&client.0).send_out_of_band(b"!").unwrap();
    client.send(b"behind");
    // All of it is there when the server begins.
    let server = TestServer::of(server);
    client.expect(b"before!behind");
    client.exchange(b"more");
    SockRef::from(&client.0).send_out_of_band(b"!").unwrap();
    client.half_close();
    assert_eq!(client.rest(), b"!");
    server.stop();
}
