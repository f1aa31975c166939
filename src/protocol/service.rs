//! What a server does with a message.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};

use super::framing::FrameError;
use super::replies::Replies;

/// A piece of the conversation, as a service sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Message<'a> {
    /// The next bytes of an unframed stream, cut wherever the network cut them.
    Chunk(&'a [u8]),
    /// A whole frame (without its length, with its line feed) or a whole datagram.
    Whole(&'a [u8]),
    /// The end of an unframed stream: the last chance to answer what was kept back.
    End,
}

impl<'a> Message<'a> {
    /// The bytes of the message; none at the end of a stream.
    pub fn bytes(&self) -> &'a [u8] {
        match self {
            Message::Chunk(bytes) | Message::Whole(bytes) => bytes,
            Message::End => &[],
        }
    }
}

/// What a service wants after a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[must_use]
pub enum Flow {
    /// The next message.
    Continue,
    /// The end of the conversation, once the replies are sent. The peer's further messages are not
    /// served.
    Close,
    /// The same message again, in a later turn: there is more to compute. In between, the replies so
    /// far are sent and others are served. A service that computes for longer than some ten
    /// microseconds uses this, since an event loop serves nobody else meanwhile. For a datagram the
    /// next call follows at once.
    Again,
}

/// Who asks, and how.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    peer: SocketAddr,
    local: &'a dyn Fn() -> io::Result<SocketAddr>,
    /// None for a datagram.
    connection: Option<u32>,
}

impl<'a> Context<'a> {
    /// The context of a conversation over a stream with `peer`, which has the number `connection`.
    /// `local` finds our address when it is asked for.
    pub fn stream(
        connection: u32,
        peer: SocketAddr,
        local: &'a dyn Fn() -> io::Result<SocketAddr>,
    ) -> Self {
        Context { peer, local, connection: Some(connection) }
    }

    /// The context of a datagram from `peer`. `local` finds the address that it was sent to when that
    /// is asked for.
    pub fn datagram(peer: SocketAddr, local: &'a dyn Fn() -> io::Result<SocketAddr>) -> Self {
        Context { peer, local, connection: None }
    }

    /// The peer's address. An IPv4 peer of an IPv6 socket has its IPv4 address.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Our address, which the peer talks to; an IPv4 address as such, as with [`peer`](Context::peer).
    /// For a stream this is a system call.
    ///
    /// # Errors
    ///
    /// What the system says where it cannot tell.
    pub fn local(&self) -> io::Result<SocketAddr> {
        let local = (self.local)()?;
        Ok(match local.ip().to_canonical() {
            IpAddr::V4(ip) => SocketAddr::new(ip.into(), local.port()),
            // As it is: it may have a zone.
            IpAddr::V6(_) => local,
        })
    }

    /// Whether the message is a datagram: otherwise it came over a stream.
    pub fn is_datagram(&self) -> bool {
        self.connection.is_none()
    }

    /// The number of the TCP connection, of those that this server has accepted: the first has 1, and
    /// after 2³² - 1 comes 1 again. A datagram has none.
    pub fn connection(&self) -> Option<u32> {
        self.connection
    }
}

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("peer", &self.peer)
            .field("connection", &self.connection)
            .finish_non_exhaustive()
    }
}

/// Answers the messages of one conversation.
///
/// A server makes a service for each conversation: for each TCP connection one, and for each datagram
/// one. What a service remembers therefore belongs to one connection, and nothing passes from one UDP
/// peer to another by accident. What conversations are to share lives behind an [`Arc`](std::sync::Arc).
///
/// The calls come in this order: [`open`](Service::open) once; [`serve`](Service::serve) for each
/// message; [`broken`](Service::broken) at most once, and nothing is served after it;
/// [`close`](Service::close) once. A service that panics ends its own conversation only;
/// [`close`](Service::close) is still called.
///
/// ```
/// use evecho::protocol::{Context, Flow, Message, Replies, Service};
///
/// /// Numbers the messages of a conversation.
/// #[derive(Clone, Default)]
/// struct Number(u64);
///
/// impl Service for Number {
///     fn serve(&mut self, message: Message<'_>, replies: &mut Replies<'_>, _: &Context<'_>) -> Flow {
///         self.0 += 1;
///         let number = self.0;
///         replies.send_with(|reply| {
///             reply.extend_from_slice(format!("{number} ").as_bytes());
///             reply.extend_from_slice(message.bytes());
///         });
///         Flow::Continue
///     }
/// }
/// ```
pub trait Service {
    /// A conversation begins. What is replied here greets the peer. [`Flow::Close`] ends it before
    /// anything is served; [`Flow::Again`] is taken as [`Flow::Continue`].
    fn open(&mut self, replies: &mut Replies<'_>, context: &Context<'_>) -> Flow {
        let _ = (replies, context);
        Flow::Continue
    }

    /// Answers `message` with what it puts into `replies`: nothing, one message or several.
    fn serve(
        &mut self,
        message: Message<'_>,
        replies: &mut Replies<'_>,
        context: &Context<'_>,
    ) -> Flow;

    /// The stream broke its framing: what is replied here is the last that the peer gets.
    fn broken(&mut self, error: FrameError, replies: &mut Replies<'_>, context: &Context<'_>) {
        let _ = (error, replies, context);
    }

    /// The conversation is over, for whatever reason: nothing can be replied any more.
    fn close(&mut self, context: &Context<'_>) {
        let _ = context;
    }

    /// How many bytes of a stream are to be read at once, at the most: at least 1. A service whose
    /// work grows with the bytes keeps its turns short by this.
    fn read_limit(&self) -> usize {
        usize::MAX
    }
}

impl<V: Service + ?Sized> Service for Box<V> {
    fn open(&mut self, replies: &mut Replies<'_>, context: &Context<'_>) -> Flow {
        (**self).open(replies, context)
    }

    fn serve(
        &mut self,
        message: Message<'_>,
        replies: &mut Replies<'_>,
        context: &Context<'_>,
    ) -> Flow {
        (**self).serve(message, replies, context)
    }

    fn broken(&mut self, error: FrameError, replies: &mut Replies<'_>, context: &Context<'_>) {
        (**self).broken(error, replies, context);
    }

    fn close(&mut self, context: &Context<'_>) {
        (**self).close(context);
    }

    fn read_limit(&self) -> usize {
        (**self).read_limit()
    }
}

/// A service that is a closure: see [`service_fn`].
#[derive(Clone, Copy)]
pub struct ServiceFn<F>(F);

/// Makes a service of a closure, which is given the bytes of each message. It is not called for
/// [`Message::End`].
///
/// ```
/// use evecho::protocol::{Flow, service_fn};
///
/// let reverse = service_fn(|message, replies, _context| {
///     replies.send_with(|reply| reply.extend(message.iter().rev()));
///     Flow::Continue
/// });
/// # fn is_service(_: impl evecho::Service + Clone) {}
/// # is_service(reverse);
/// ```
pub fn service_fn<F>(serve: F) -> ServiceFn<F>
where
    F: FnMut(&[u8], &mut Replies<'_>, &Context<'_>) -> Flow,
{
    ServiceFn(serve)
}

impl<F> Service for ServiceFn<F>
where
    F: FnMut(&[u8], &mut Replies<'_>, &Context<'_>) -> Flow,
{
    fn serve(
        &mut self,
        message: Message<'_>,
        replies: &mut Replies<'_>,
        context: &Context<'_>,
    ) -> Flow {
        match message {
            Message::Chunk(bytes) | Message::Whole(bytes) => (self.0)(bytes, replies, context),
            Message::End => Flow::Continue,
        }
    }
}

impl<F> fmt::Debug for ServiceFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceFn").finish_non_exhaustive()
    }
}

/// Every byte comes back as it was sent (RFC 862). Nothing is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Echo;

impl Service for Echo {
    fn serve(&mut self, _: Message<'_>, replies: &mut Replies<'_>, _: &Context<'_>) -> Flow {
        replies.echo();
        Flow::Continue
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::protocol::oracle::context;
    use crate::protocol::{Framing, Protocol, Scratch, Session, Upper, Verdict, answer_datagram};

    /// Notes what it is called for.
    #[derive(Clone, Default)]
    struct Noting(Arc<Mutex<Vec<String>>>);

    impl Noting {
        fn note(&self, call: String) {
            self.0.lock().unwrap().push(call);
        }
    }

    impl Service for Noting {
        fn open(&mut self, _: &mut Replies<'_>, context: &Context<'_>) -> Flow {
            self.note(format!("open {}", context.peer()));
            Flow::Close
        }

        fn serve(
            &mut self,
            message: Message<'_>,
            replies: &mut Replies<'_>,
            context: &Context<'_>,
        ) -> Flow {
            self.note(format!("{message:?} at {}", context.local().unwrap()));
            replies.echo();
            Flow::Continue
        }

        fn broken(&mut self, error: FrameError, replies: &mut Replies<'_>, _: &Context<'_>) {
            self.note(error.to_string());
            replies.send(b"!");
        }

        fn close(&mut self, context: &Context<'_>) {
            self.note(format!("close, datagram: {}", context.is_datagram()));
        }

        fn read_limit(&self) -> usize {
            7
        }
    }

    #[test]
    fn a_boxed_service_is_the_service() {
        let noting = Noting::default();
        let boxed: Box<dyn Service> = Box::new(noting.clone());
        let mut protocol = Protocol::default();
        (protocol.framing, protocol.max_frame) = (Framing::LengthPrefixed, 1);
        let (mut session, mut scratch) = (Session::new(protocol, boxed), Scratch::default());
        assert_eq!(session.read_limit(), 7);
        assert_eq!(session.open(&mut scratch, &context()).verdict, Verdict::Close);
        let input = b"\0\0\0\x01a\0\0\0\x02";
        let answer = session.receive(input, usize::MAX, &mut scratch, &context());
        assert_eq!(&answer.bytes[..], b"\0\0\0\x01a\0\0\0\x01!");
        session.close(&context());
        let calls = noting.0.lock().unwrap();
        assert_eq!(
            calls[..],
            [
                "open 192.0.2.1:9",
                "Whole([97]) at 192.0.2.2:7",
                "a frame of 2 bytes, longer than `max_frame`",
                "close, datagram: false",
            ]
        );
    }

    #[test]
    fn a_datagram_is_a_whole_conversation() {
        let (noting, mut scratch) = (Noting::default(), Scratch::default());
        let nowhere = || Err(io::ErrorKind::Unsupported.into());
        let context = Context::datagram(([192, 0, 2, 1], 9).into(), &nowhere);
        let service = noting.clone();
        assert_eq!(answer_datagram(service, b"x", &mut scratch, &context).unwrap().count(), 0);
        assert_eq!(*noting.0.lock().unwrap(), ["open 192.0.2.1:9", "close, datagram: true"]);
        let panicking = service_fn(|_, replies, _| {
            replies.send(b"never sent");
            panic!("as it should")
        });
        let error = answer_datagram(panicking, b"x", &mut scratch, &context).unwrap_err();
        assert_eq!(error.to_string(), "the service panicked");
    }

    #[test]
    fn a_service_that_says_nothing_else_is_asked_for_nothing_else() {
        let closure = service_fn(|message, replies, _| {
            replies.send(&message.to_ascii_uppercase());
            Flow::Continue
        });
        let mut session = Session::new(Protocol::default(), closure);
        assert_eq!(session.read_limit(), usize::MAX);
        let mut scratch = Scratch::default();
        let answer = session.open(&mut scratch, &context());
        assert_eq!((answer.verdict, answer.bytes.len()), (Verdict::Continue, 0));
        let answer = session.receive(b"abc", 0, &mut scratch, &context());
        assert_eq!((&answer.bytes[..], answer.verdict), (&b"ABC"[..], Verdict::Continue));
        let answer = session.finish(&mut scratch, &context());
        assert_eq!((&answer.bytes[..], answer.verdict), (&b""[..], Verdict::Finished));
        assert_eq!(Session::new(Protocol::default(), Upper::default()).read_limit(), 32 << 10);
    }
}
