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
    /// The end of an unframed stream: the last chance to reply to what was kept back.
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

/// How a conversation goes on after a call of its service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[must_use]
pub enum Flow {
    /// With the next message.
    Continue,
    /// It ends once the replies are sent. Messages that follow are not served.
    Close,
}

/// The peer of a conversation, and how the message came.
///
/// A server makes it. To test a service without one, [`stream`](Context::stream) and
/// [`datagram`](Context::datagram) do, and [`Replies::capture`](super::Replies::capture) has an example.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    peer: SocketAddr,
    local: Local<'a>,
    /// None for a datagram.
    connection: Option<u32>,
}

/// Our address.
#[derive(Clone, Copy)]
enum Local<'a> {
    Known(SocketAddr),
    /// Asked for when a service wants it: that is a system call.
    Asked(&'a dyn Fn() -> io::Result<SocketAddr>),
}

impl<'a> Context<'a> {
    /// The context of a stream between `peer` and our address `local`, which has the number `connection`.
    pub fn stream(connection: u32, peer: SocketAddr, local: SocketAddr) -> Self {
        Context { peer, local: Local::Known(local), connection: Some(connection) }
    }

    /// The context of a datagram from `peer` to our address `local`.
    pub fn datagram(peer: SocketAddr, local: SocketAddr) -> Self {
        Context { peer, local: Local::Known(local), connection: None }
    }

    /// The context of a stream, or without `connection` of a datagram. `local` finds our address.
    pub(crate) fn asking(
        connection: Option<u32>,
        peer: SocketAddr,
        local: &'a dyn Fn() -> io::Result<SocketAddr>,
    ) -> Self {
        Context { peer, local: Local::Asked(local), connection }
    }

    /// The peer's address. An IPv4 peer of an IPv6 socket has its IPv4 address.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Our address, to which the peer talks. An IPv4 address of an IPv6 socket is an IPv4 address, as with
    /// [`peer`](Context::peer). For a stream this is a system call.
    ///
    /// # Errors
    ///
    /// If the system does not tell.
    pub fn local(&self) -> io::Result<SocketAddr> {
        let local = match self.local {
            Local::Known(local) => local,
            Local::Asked(ask) => ask()?,
        };
        Ok(match local.ip().to_canonical() {
            IpAddr::V4(ip) => SocketAddr::new(ip.into(), local.port()),
            // Unchanged: it may have a zone.
            IpAddr::V6(_) => local,
        })
    }

    /// Whether the message is a datagram; if not, it came over a stream.
    pub fn is_datagram(&self) -> bool {
        self.connection.is_none()
    }

    /// The number of the TCP connection among those that this server has accepted: 1 for the first, and
    /// 1 again after 2³² - 1. A datagram has none.
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

/// Replies to the messages of one conversation.
///
/// A server makes a service for each TCP connection and for each datagram. So the state of a service
/// belongs to one connection, and nothing passes from one UDP peer to another by accident. What
/// conversations share lives behind an [`Arc`](std::sync::Arc).
///
/// The calls come in this order: [`open`](Service::open) once; [`serve`](Service::serve) for each
/// message; [`broken`](Service::broken) at most once, with nothing served after it;
/// [`close`](Service::close) once. A panic of a service ends its own conversation alone;
/// [`close`](Service::close) is called after it, too.
///
/// The event loop serves no other connection while a service computes. Its work per call is bounded by
/// what one read brings, 256 KiB, or by one frame ([`Protocol::max_frame`](super::Protocol::max_frame)).
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
    /// Begins a conversation. Replies greet the peer. [`Flow::Close`] ends it before anything is served.
    fn open(&mut self, replies: &mut Replies<'_>, context: &Context<'_>) -> Flow {
        let _ = (replies, context);
        Flow::Continue
    }

    /// Replies to `message` with what it puts into `replies`: nothing, one message or several.
    fn serve(
        &mut self,
        message: Message<'_>,
        replies: &mut Replies<'_>,
        context: &Context<'_>,
    ) -> Flow;

    /// The number of bytes of an unframed stream that it keeps until more come. The log shows it.
    fn kept(&self) -> usize {
        0
    }

    /// Ends a stream that broke its framing. Replies are the last that the peer gets.
    fn broken(&mut self, error: FrameError, replies: &mut Replies<'_>, context: &Context<'_>) {
        let _ = (error, replies, context);
    }

    /// Ends the conversation, for any reason. There is no reply any more.
    fn close(&mut self, context: &Context<'_>) {
        let _ = context;
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

    fn kept(&self) -> usize {
        (**self).kept()
    }

    fn broken(&mut self, error: FrameError, replies: &mut Replies<'_>, context: &Context<'_>) {
        (**self).broken(error, replies, context);
    }

    fn close(&mut self, context: &Context<'_>) {
        (**self).close(context);
    }
}

/// A service that is a closure: see [`service_fn`].
#[derive(Clone, Copy)]
pub struct ServiceFn<F>(F);

/// Makes a service of a closure, which gets the bytes of each message. It is not called for
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

/// Sends every byte back as it came (RFC 862), without a copy.
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
    use crate::protocol::{Framing, Protocol, Scratch, Session, Verdict, reply_to_datagram};

    /// Notes each call.
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
    }

    #[test]
    fn a_boxed_service_is_the_service() {
        let noting = Noting::default();
        let boxed: Box<dyn Service> = Box::new(noting.clone());
        let mut protocol = Protocol::default();
        (protocol.framing, protocol.max_frame) = (Framing::LengthPrefixed, 1);
        let (mut session, mut scratch) = (Session::new(protocol, boxed), Scratch::default());
        assert_eq!(session.open(&mut scratch, &context()).verdict, Verdict::Close);
        let input = b"\0\0\0\x01a\0\0\0\x02";
        let reply = session.receive(input, usize::MAX, &mut scratch, &context());
        assert_eq!(&reply.bytes[..], b"\0\0\0\x01a\0\0\0\x01!");
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
        let context = Context::datagram(([192, 0, 2, 1], 9).into(), ([192, 0, 2, 2], 7).into());
        let service = noting.clone();
        let replies = reply_to_datagram(service, b"x", &mut scratch, &context).unwrap();
        assert!(!replies.panicked_at_end());
        assert_eq!(replies.count(), 0);
        assert_eq!(*noting.0.lock().unwrap(), ["open 192.0.2.1:9", "close, datagram: true"]);
        let panicking = service_fn(|_, replies, _| {
            replies.send(b"never sent");
            panic!("as it should")
        });
        assert!(reply_to_datagram(panicking, b"x", &mut scratch, &context).is_err());
    }

    #[test]
    fn a_service_needs_nothing_but_serve() {
        let closure = service_fn(|message, replies, _| {
            replies.send(&message.to_ascii_uppercase());
            Flow::Continue
        });
        let mut session = Session::new(Protocol::default(), closure);
        let mut scratch = Scratch::default();
        let reply = session.open(&mut scratch, &context());
        assert_eq!((reply.verdict, reply.bytes.len()), (Verdict::Continue, 0));
        let reply = session.receive(b"abc", 0, &mut scratch, &context());
        assert_eq!((&reply.bytes[..], reply.verdict), (&b"ABC"[..], Verdict::Continue));
        let reply = session.finish(&mut scratch, &context());
        assert_eq!((&reply.bytes[..], reply.verdict), (&b""[..], Verdict::Finished));
    }
}
