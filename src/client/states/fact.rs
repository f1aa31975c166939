//! What a scenario waits for: facts about the ends of its connections, each of which is a sentence too.

use std::fmt;

use super::report::{Connection, End, Listener, State};

/// What the kernel has at one moment.
pub(super) struct View {
    pub(super) connections: Vec<Connection>,
    pub(super) listener: Option<Listener>,
}

/// Something that has to be so.
#[derive(Clone, Copy)]
pub(super) enum Fact {
    /// Holds where the end cannot be seen, too.
    End(At, What),
    /// This number of connections waits to be accepted. It holds where no listener can be seen.
    Waiting(u32),
}

/// The end of a connection: that of the client, or the server's. The first client is 1.
#[derive(Clone, Copy)]
pub(super) enum At {
    Client(usize),
    Server(usize),
}

/// What an end is or has.
#[derive(Clone, Copy)]
pub(super) enum What {
    Is(State),
    Received(u32),
    Sent(u32),
    ReceivedSome,
    SentSome,
    SentAgain,
    Accepted,
    NotAccepted,
    ZeroWindow,
}

pub(super) const fn client(number: usize) -> At {
    At::Client(number)
}

pub(super) const fn server(client: usize) -> At {
    At::Server(client)
}

pub(super) const fn waiting(connections: u32) -> Fact {
    Fact::Waiting(connections)
}

/// The server has answered a client, and everything is acknowledged. `unread` bytes of the answer wait to
/// be read.
pub(super) const fn answered(number: usize, unread: u32) -> [Fact; 7] {
    let (client, server) = (client(number), server(number));
    [
        client.is(State::Established),
        client.received(unread),
        client.sent(0),
        server.is(State::Established),
        server.accepted(),
        server.received(0),
        server.sent(0),
    ]
}

impl At {
    /// `None` where it cannot be seen.
    fn end(self, view: &View) -> Option<&End> {
        match self {
            Self::Client(number) => Some(&view.connections[number - 1].client),
            Self::Server(number) => view.connections[number - 1].server.as_ref(),
        }
    }

    pub(super) const fn is(self, state: State) -> Fact {
        Fact::End(self, What::Is(state))
    }

    /// `bytes` bytes wait to be read.
    pub(super) const fn received(self, bytes: u32) -> Fact {
        Fact::End(self, What::Received(bytes))
    }

    /// `bytes` bytes are not acknowledged.
    pub(super) const fn sent(self, bytes: u32) -> Fact {
        Fact::End(self, What::Sent(bytes))
    }

    pub(super) const fn received_some(self) -> Fact {
        Fact::End(self, What::ReceivedSome)
    }

    pub(super) const fn sent_some(self) -> Fact {
        Fact::End(self, What::SentSome)
    }

    pub(super) const fn sent_again(self) -> Fact {
        Fact::End(self, What::SentAgain)
    }

    pub(super) const fn accepted(self) -> Fact {
        Fact::End(self, What::Accepted)
    }

    pub(super) const fn not_accepted(self) -> Fact {
        Fact::End(self, What::NotAccepted)
    }

    pub(super) const fn zero_window(self) -> Fact {
        Fact::End(self, What::ZeroWindow)
    }
}

impl Fact {
    pub(super) fn holds(&self, view: &View) -> bool {
        match self {
            Self::End(at, what) => at.end(view).is_none_or(|end| what.holds(end)),
            Self::Waiting(count) => {
                view.listener.as_ref().is_none_or(|listener| listener.waiting == *count)
            }
        }
    }

    /// What is there instead.
    pub(super) fn seen(&self, view: &View) -> String {
        match (self, &view.listener) {
            (Self::End(at, what), _) => {
                at.end(view).map_or("it cannot be seen".to_owned(), |end| what.instead(end))
            }
            (Self::Waiting(_), Some(listener)) => format!("{} wait", listener.waiting),
            (Self::Waiting(_), None) => "nothing listens".to_owned(),
        }
    }
}

impl What {
    fn holds(self, end: &End) -> bool {
        match self {
            Self::Is(state) => end.state == state,
            Self::Received(bytes) => end.receive_queue == bytes,
            Self::Sent(bytes) => end.send_queue == bytes,
            Self::ReceivedSome => end.receive_queue > 0,
            Self::SentSome => end.send_queue > 0,
            Self::SentAgain => end.retransmissions > 0,
            Self::Accepted => !end.waits_to_be_accepted(),
            Self::NotAccepted => end.waits_to_be_accepted(),
            Self::ZeroWindow => end.zero_window,
        }
    }

    /// What this end is, and what may have kept it from being what it should be.
    fn instead(self, end: &End) -> String {
        match self {
            // Many short connections fill it within a minute (tcp(7)).
            Self::Is(State::TimeWait) if end.state == State::Closed => format!(
                "{end}; the kernel may have no room for one more in TIME_WAIT: see \
                 net.ipv4.tcp_max_tw_buckets"
            ),
            _ => end.to_string(),
        }
    }
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::End(At::Client(number), what) => write!(f, "the end of client {number} {what}"),
            Self::End(At::Server(number), what) => {
                write!(f, "the server's end for client {number} {what}")
            }
            Self::Waiting(count) => {
                write!(f, "the listener has {count} connections that wait to be accepted")
            }
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Is(state) => write!(f, "is {state}"),
            Self::Received(bytes) => write!(f, "has {bytes} bytes in its receive queue"),
            Self::Sent(bytes) => write!(f, "has {bytes} bytes in its send queue"),
            Self::ReceivedSome => f.write_str("has bytes in its receive queue"),
            Self::SentSome => f.write_str("has bytes in its send queue"),
            Self::SentAgain => f.write_str("has sent again what was not acknowledged"),
            Self::Accepted => f.write_str("is accepted"),
            Self::NotAccepted => f.write_str("is connected and not accepted"),
            Self::ZeroWindow => f.write_str("waits for a window that is zero"),
        }
    }
}
