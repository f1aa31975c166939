//! The scenarios: what is called, what is to be seen then, and why it is so.

mod closing;
mod datagrams;
mod lost;
mod talking;
mod waiting;

use super::Scenario;

/// All scenarios, in the order of a lesson.
pub static SCENARIOS: [Scenario; 16] = [
    Scenario {
        name: "handshake",
        about: "the three segments that open a connection, one at a time: SYN_SENT, SYN_RECV",
        play: lost::handshake,
    },
    Scenario {
        name: "close",
        about: "the four segments that close one, one at a time: FIN_WAIT1 to TIME_WAIT, and what it is for",
        play: lost::close,
    },
    Scenario {
        name: "open",
        about: "LISTEN, connect, and ESTABLISHED before the server has accepted",
        play: talking::open,
    },
    Scenario {
        name: "echo",
        about: "bytes wait in queues, and a stream has no messages; with a framing it has",
        play: talking::echo,
    },
    Scenario {
        name: "half-close",
        about: "the client ends its side first: FIN_WAIT2, CLOSE_WAIT, LAST_ACK, TIME_WAIT",
        play: closing::half_close,
    },
    Scenario {
        name: "server-closes",
        about: "the server ends first: TIME_WAIT on its side, and why its port can be bound again",
        play: closing::server_closes,
    },
    Scenario {
        name: "time-wait",
        about: "a server that cannot start again for a minute, SO_REUSEADDR, and how TIME_WAIT ends",
        play: closing::time_wait,
    },
    Scenario {
        name: "backlog",
        about: "clients that are connected and not accepted, and one that stays in SYN_SENT",
        play: waiting::backlog,
    },
    Scenario {
        name: "blocked",
        about: "one slow client before an iterative server; the same before threads and an event loop",
        play: waiting::blocked,
    },
    Scenario {
        name: "window",
        about: "a reader that stops: queues fill, the window is zero, and all flows again when it reads",
        play: waiting::window,
    },
    Scenario {
        name: "retransmit",
        about: "what is lost is sent again, and the programs do not notice",
        play: lost::retransmit,
    },
    Scenario {
        name: "probe",
        about: "a window of zero, and how the sender asks whether it is still closed",
        play: lost::probe,
    },
    Scenario {
        name: "nagle",
        about: "40 ms for an answer in two parts: Nagle's algorithm and a delayed acknowledgement",
        play: lost::nagle,
    },
    Scenario {
        name: "closing",
        about: "both ends close at the same time: CLOSING, and TIME_WAIT on both sides",
        play: lost::closing,
    },
    Scenario {
        name: "udp",
        about: "datagrams and their replies, and a port that no socket has: ICMP, and ECONNREFUSED or silence",
        play: datagrams::udp,
    },
    // Many a server ends with its client's RST: last.
    Scenario {
        name: "reset",
        about: "no FIN but an RST: by SO_LINGER, and because unread bytes were left",
        play: closing::reset,
    },
];
