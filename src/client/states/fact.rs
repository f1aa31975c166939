//! What a scenario waits for: facts about the ends of its connections, each of which is a sentence too.

use std::borrow::Cow;

use super::report::State::{Closed, Established, TimeWait};
use super::report::{Connection, End, Listener, Side, State};
use What::{Accepted, Is, NotAccepted, Received, Sent};

/// What the kernel has at one moment.
pub(super) struct View {
    pub(super) connections: Vec<Connection>,
    pub(super) listener: Option<Listener>,
}

/// Something that has to be so, as far as it can be seen.
#[derive(Clone)]
pub(super) enum Fact {
    /// An end of the connection of the client with this number, the first of which is 1, is or has all of this.
    End(Side, usize, Vec<What>),
    /// This number of connections waits to be accepted.
    Waiting(u32),
}

/// What an end is or has.
#[derive(Clone, Copy)]
pub(super) enum What {
    Is(State),
    /// Bytes that wait to be read.
    Received(u32),
    ReceivedSome,
    /// Bytes that are not acknowledged.
    Sent(u32),
    SentSome,
    SentAgain,
    Accepted,
    NotAccepted,
    ZeroWindow,
}

/// The end of a client.
pub(super) fn client(number: usize, all: impl Into<Vec<What>>) -> Fact {
    Fact::End(Side::Client, number, all.into())
}

/// The server's end for a client.
pub(super) fn server(client: usize, all: impl Into<Vec<What>>) -> Fact {
    Fact::End(Side::Server, client, all.into())
}

pub(super) fn waiting(connections: u32) -> Fact {
    Fact::Waiting(connections)
}

/// A client is connected and accepted.
pub(super) fn established(number: usize) -> [Fact; 2] {
    [client(number, [Is(Established)]), server(number, [Is(Established), Accepted])]
}

/// A client is connected and not accepted.
pub(super) fn not_accepted(number: usize) -> [Fact; 2] {
    [client(number, [Is(Established)]), server(number, [Is(Established), NotAccepted])]
}

/// The server has answered a client, and everything is acknowledged. `unread` bytes of the answer wait to
/// be read.
pub(super) fn answered(number: usize, unread: u32) -> [Fact; 2] {
    [
        client(number, [Is(Established), Received(unread), Sent(0)]),
        server(number, [Is(Established), Accepted, Received(0), Sent(0)]),
    ]
}

impl Fact {
    /// What should be so, and what is so instead; nothing when the fact holds.
    pub(super) fn differs(&self, view: &View) -> Option<[String; 2]> {
        match self {
            Self::End(side, client, all) => {
                let connection = &view.connections[client - 1];
                let (end, name) = match side {
                    Side::Client => (&connection.client, "the end of client"),
                    Side::Server => (connection.server.as_ref()?, "the server's end for client"),
                };
                all.iter().find_map(|what| {
                    let (holds, words) = what.of(end);
                    (!holds).then(|| [format!("{name} {client} {words}"), what.instead(end)])
                })
            }
            Self::Waiting(count) => {
                let waiting = view.listener.as_ref()?.waiting;
                let should =
                    || format!("the listener has {count} connections that wait to be accepted");
                (waiting != *count).then(|| [should(), format!("{waiting} wait")])
            }
        }
    }
}

impl What {
    /// Whether it holds for an end, and in words.
    fn of(self, end: &End) -> (bool, Cow<'static, str>) {
        let (received, sent) = (end.receive_queue, end.send_queue);
        let waits = end.waits_to_be_accepted();
        let has = |bytes, queue| format!("has {bytes} bytes in its {queue} queue").into();
        let again = end.retransmissions > 0;
        match self {
            Self::Is(state) => (end.state == state, format!("is {state}").into()),
            Self::Received(bytes) => (received == bytes, has(bytes, "receive")),
            Self::ReceivedSome => (received > 0, "has bytes in its receive queue".into()),
            Self::Sent(bytes) => (sent == bytes, has(bytes, "send")),
            Self::SentSome => (sent > 0, "has bytes in its send queue".into()),
            Self::SentAgain => (again, "has sent again what was not acknowledged".into()),
            Self::Accepted => (!waits, "is accepted".into()),
            Self::NotAccepted => (waits, "is connected and not accepted".into()),
            Self::ZeroWindow => (end.zero_window, "waits for a window that is zero".into()),
        }
    }

    /// What this end is, and what may have kept it from being what it should be.
    fn instead(self, end: &End) -> String {
        match self {
            // Many short connections fill it within a minute (tcp(7)).
            Self::Is(TimeWait) if end.state == Closed => format!(
                "{end}; the kernel may have no room for one more in TIME_WAIT: see \
                 net.ipv4.tcp_max_tw_buckets"
            ),
            _ => end.to_string(),
        }
    }
}
