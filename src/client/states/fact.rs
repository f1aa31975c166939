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
pub(super) struct Fact {
    place: Place,
    what: What,
}

#[derive(Clone, Copy)]
enum Place {
    Client(usize),
    Server(usize),
    Listener,
}

#[derive(Clone, Copy)]
enum What {
    Is(State),
    Received(u32),
    Sent(u32),
    ReceivedSome,
    SentSome,
    Accepted,
    NotAccepted,
    ZeroWindow,
    Waiting(u32),
}

/// The end of a client; the first is 1.
#[derive(Clone, Copy)]
pub(super) struct At(Place);

pub(super) const fn client(number: usize) -> At {
    At(Place::Client(number))
}

/// The server's end of the connection of a client. Facts about it hold where nobody can look.
pub(super) const fn server(client: usize) -> At {
    At(Place::Server(client))
}

/// So many connections wait to be accepted. It holds where no listener can be seen.
pub(super) const fn waiting(connections: u32) -> Fact {
    Fact { place: Place::Listener, what: What::Waiting(connections) }
}

/// The server has answered a client, and everything is acknowledged. So many bytes of the answer wait to
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
    const fn fact(self, what: What) -> Fact {
        Fact { place: self.0, what }
    }

    pub(super) const fn is(self, state: State) -> Fact {
        self.fact(What::Is(state))
    }

    /// So many bytes wait to be read.
    pub(super) const fn received(self, bytes: u32) -> Fact {
        self.fact(What::Received(bytes))
    }

    /// So many bytes are not acknowledged.
    pub(super) const fn sent(self, bytes: u32) -> Fact {
        self.fact(What::Sent(bytes))
    }

    pub(super) const fn received_some(self) -> Fact {
        self.fact(What::ReceivedSome)
    }

    pub(super) const fn sent_some(self) -> Fact {
        self.fact(What::SentSome)
    }

    pub(super) const fn accepted(self) -> Fact {
        self.fact(What::Accepted)
    }

    pub(super) const fn not_accepted(self) -> Fact {
        self.fact(What::NotAccepted)
    }

    pub(super) const fn zero_window(self) -> Fact {
        self.fact(What::ZeroWindow)
    }
}

impl Fact {
    pub(super) fn holds(&self, view: &View) -> bool {
        let end = match self.place {
            Place::Client(number) => Some(&view.connections[number - 1].client),
            Place::Server(number) => view.connections[number - 1].server.as_ref(),
            Place::Listener => {
                let What::Waiting(count) = self.what else { return true };
                return view.listener.as_ref().is_none_or(|listener| listener.waiting == count);
            }
        };
        end.is_none_or(|end| self.what.holds(end))
    }

    /// What is there instead.
    pub(super) fn seen(&self, view: &View) -> String {
        match self.place {
            Place::Client(number) => self.what.instead(&view.connections[number - 1].client),
            Place::Server(number) => match &view.connections[number - 1].server {
                Some(end) => self.what.instead(end),
                None => "it cannot be seen".to_owned(),
            },
            Place::Listener => match &view.listener {
                Some(listener) => format!("{} wait", listener.waiting),
                None => "nothing listens".to_owned(),
            },
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
            Self::Accepted => !end.waits_to_be_accepted(),
            Self::NotAccepted => end.waits_to_be_accepted(),
            Self::ZeroWindow => end.zero_window,
            Self::Waiting(_) => true,
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
        match self.place {
            Place::Client(number) => write!(f, "the end of client {number} ")?,
            Place::Server(number) => write!(f, "the server's end for client {number} ")?,
            Place::Listener => f.write_str("the listener ")?,
        }
        match self.what {
            What::Is(state) => write!(f, "is {state}"),
            What::Received(bytes) => write!(f, "has {bytes} bytes in its receive queue"),
            What::Sent(bytes) => write!(f, "has {bytes} bytes in its send queue"),
            What::ReceivedSome => f.write_str("has bytes in its receive queue"),
            What::SentSome => f.write_str("has bytes in its send queue"),
            What::Accepted => f.write_str("is accepted"),
            What::NotAccepted => f.write_str("is connected and not accepted"),
            What::ZeroWindow => f.write_str("waits for a window that is zero"),
            What::Waiting(count) => write!(f, "has {count} connections that wait to be accepted"),
        }
    }
}
