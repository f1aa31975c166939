//! What every design has to do, seen from outside.

mod common;

use common::{TestServer, config, pattern};

#[test]
fn what_is_sent_comes_back() {
    let server = TestServer::start(config());
    server.connect().exchange(&pattern(1, 1000));
    assert_eq!(server.stop().bytes_out, 1000);
}
