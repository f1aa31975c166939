//! The scenarios: what is called, what is to be seen then, and why it is so.

mod closing;
mod talking;
mod waiting;

use super::Scenario;

/// All scenarios, in the order of a lesson.
pub static SCENARIOS: [Scenario; 8] = [
    Scenario {
        name: "open",
        about: "LISTEN, connect, and ESTABLISHED before anybody has accepted",
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
        name: "reset",
        about: "no FIN but an RST: by SO_LINGER, and because unread bytes were left",
        play: closing::reset,
    },
    Scenario {
        name: "backlog",
        about: "who is connected and not accepted, and who stays in SYN_SENT",
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
];
