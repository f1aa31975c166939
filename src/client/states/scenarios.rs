//! The scenarios: what is called, what is to be seen then, and why it is so.

mod closing;
mod datagrams;
mod lost;
mod talking;
mod waiting;

use super::{Scenario, scenario};

/// All scenarios, in the order of a lesson.
pub static SCENARIOS: [Scenario; 16] = [
    scenario("handshake", lost::handshake)
        .about("the three segments that open a connection, one at a time: SYN_SENT, SYN_RECV"),
    scenario("close", lost::close)
        .about("the four segments that close one, one at a time: FIN_WAIT1 to TIME_WAIT, and what it is for"),
    scenario("open", talking::open)
        .about("LISTEN, connect, and ESTABLISHED before the server has accepted"),
    scenario("echo", talking::echo)
        .about("bytes wait in queues, and a stream has no messages; with a framing it has"),
    scenario("half-close", closing::half_close)
        .about("the client ends its side first: FIN_WAIT2, CLOSE_WAIT, LAST_ACK, TIME_WAIT"),
    scenario("server-closes", closing::server_closes)
        .about("the server ends first: TIME_WAIT on its side, and why its port can be bound again"),
    scenario("time-wait", closing::time_wait)
        .about("a server that cannot start again for a minute, SO_REUSEADDR, and how TIME_WAIT ends"),
    scenario("backlog", waiting::backlog)
        .about("clients that are connected and not accepted, and one that stays in SYN_SENT"),
    scenario("blocked", waiting::blocked)
        .about("one slow client before an iterative server; the same before threads and an event loop"),
    scenario("window", waiting::window)
        .about("a reader that stops: queues fill, the window is zero, and all flows again when it reads"),
    scenario("retransmit", lost::retransmit)
        .about("what is lost is sent again, and the programs do not notice"),
    scenario("probe", lost::probe)
        .about("a window of zero, and how the sender asks whether it is still closed"),
    scenario("nagle", lost::nagle)
        .about("40 ms for an answer in two parts: Nagle's algorithm and a delayed acknowledgement"),
    scenario("closing", lost::closing)
        .about("both ends close at the same time: CLOSING, and TIME_WAIT on both sides"),
    scenario("udp", datagrams::udp)
        .about("datagrams and their replies, and a port that no socket has: ICMP, and ECONNREFUSED or silence"),
    // Many a server ends with its client's RST: last.
    scenario("reset", closing::reset)
        .about("no FIN but an RST: by SO_LINGER, and because unread bytes were left"),
];
