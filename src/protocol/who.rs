//! The service that tells who asks, and who answers.

use std::fmt;
use std::io::Write;
use std::str::FromStr;
use std::sync::Arc;

use super::framing::{Framing, Protocol};
use super::replies::Replies;
use super::service::{Context, Flow, Message, Service};
use crate::error::ParseError;
use crate::sys::host_name;

/// Tells who asks and who answers, as one line of JSON: for tests of what stands between a client and
/// its servers.
///
/// ```json
/// {"peer":"192.0.2.1:40000","local":"192.0.2.2:12000","host":"h","pid":123,"name":"a","protocol":"tcp","connection":7}
/// ```
///
/// What is not known is left out: `name` where the server has none, `connection` over UDP.
///
/// - Over a stream without framing, the line greets the peer, as with the Daytime Protocol (RFC 867):
///   who only connects learns it. What the peer sends is dropped, up to its FIN. With
///   [`Protocol::once`] the server does not wait for that.
/// - With a framing, the line is the answer to each message.
/// - The line is the answer to a datagram, unless it is longer: a server that sends more than it is
///   sent helps those who forge sources. [`Who::LONGEST`] bytes are always enough.
#[derive(Debug, Clone)]
pub struct Who(Arc<Answerer>);

/// What is the same for every peer.
#[derive(Debug)]
struct Answerer {
    /// The members of the JSON object about this server.
    members: String,
    framing: Framing,
    once: bool,
}

impl Who {
    /// The longest that a line becomes, in bytes.
    pub const LONGEST: usize = 400;

    /// The service of this process, for a server with this protocol. `name` is the name of the server.
    ///
    /// ```no_run
    /// use evecho::protocol::Who;
    /// use evecho::{Config, Server};
    ///
    /// let config = Config::default();
    /// let who = Who::new(config.protocol, Some(&"server-1".parse()?));
    /// Server::bind(config)?.run_with(who)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn new(protocol: Protocol, name: Option<&Name>) -> Self {
        Who::of(protocol, &host_name(), std::process::id(), name)
    }

    /// The service of the process `pid` on `host`: the first 64 bytes of this name, with `?` for what does
    /// not belong into one (RFC 1123).
    fn of(protocol: Protocol, host: &str, pid: u32, name: Option<&Name>) -> Self {
        let host: String = host
            .chars()
            .map(|character| if is_plain(character) { character } else { '?' })
            .take(Name::LONGEST)
            .collect();
        let mut members = format!(r#""host":"{host}","pid":{pid}"#);
        if let Some(name) = name {
            members += &format!(r#","name":"{name}""#);
        }
        let Protocol { framing, once, .. } = protocol;
        Who(Arc::new(Answerer { members, framing, once }))
    }

    fn send(&self, replies: &mut Replies<'_>, context: &Context<'_>) {
        let mut room = [0; Self::LONGEST];
        let mut left = &mut room[..];
        self.write(&mut left, context)
            .expect("no line is longer, by the bounds of all it is made of");
        let length = Self::LONGEST - left.len();
        replies.send_no_longer(&room[..length]);
    }

    /// Nothing in the line needs an escape: addresses, numbers and names of plain characters.
    fn write(&self, line: &mut impl Write, context: &Context<'_>) -> std::io::Result<()> {
        write!(line, r#"{{"peer":"{}""#, context.peer())?;
        if let Ok(local) = context.local() {
            write!(line, r#","local":"{local}""#)?;
        }
        write!(line, ",{}", self.0.members)?;
        match context.connection() {
            Some(number) => write!(line, r#","protocol":"tcp","connection":{number}"#)?,
            None => write!(line, r#","protocol":"udp""#)?,
        }
        writeln!(line, "}}")
    }
}

impl Service for Who {
    fn open(&mut self, replies: &mut Replies<'_>, context: &Context<'_>) -> Flow {
        if context.is_datagram() || self.0.framing != Framing::Raw {
            return Flow::Continue;
        }
        self.send(replies, context);
        if self.0.once { Flow::Close } else { Flow::Continue }
    }

    fn serve(
        &mut self,
        message: Message<'_>,
        replies: &mut Replies<'_>,
        context: &Context<'_>,
    ) -> Flow {
        match message {
            Message::Whole(_) => self.send(replies, context),
            // The greeting was the answer.
            Message::Chunk(_) | Message::End => {}
        }
        Flow::Continue
    }
}

/// What people call a server: 1 to 64 ASCII letters, digits, dots, underscores and hyphens.
///
/// ```
/// use evecho::protocol::Name;
///
/// let name: Name = "server-1.example".parse()?;
/// assert_eq!(name.to_string(), "server-1.example");
/// assert!("a name".parse::<Name>().is_err());
/// # Ok::<(), evecho::ParseError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Name(Box<str>);

impl Name {
    /// The longest name, in bytes.
    pub const LONGEST: usize = 64;
}

impl FromStr for Name {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        if (1..=Self::LONGEST).contains(&text.len()) && text.chars().all(is_plain) {
            return Ok(Name(text.into()));
        }
        Err(ParseError::new(format!(
            "'{text}' is not a name; names are 1 to {} letters (a to z, A to Z), digits, '.', '_' and '-'",
            Self::LONGEST
        )))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a character may stand in a name.
fn is_plain(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '.' | '_' | '-')
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::protocol::oracle::{Conversation, context};
    use crate::protocol::{Scratch, Session, Verdict, reply_to_datagram};

    fn protocol(framing: Framing, once: bool) -> Protocol {
        Protocol { framing, max_frame: 64, once }
    }

    fn who(protocol: Protocol) -> Who {
        Who::of(protocol, "h", 123, Some(&"a".parse().unwrap()))
    }

    const LINE: &str = r#"{"peer":"192.0.2.1:9","local":"192.0.2.2:7","host":"h","pid":123,"name":"a","protocol":"tcp","connection":1}
"#;

    /// The greeting and its verdict; then all answers to these reads and a FIN, and the last verdict.
    fn converse(protocol: Protocol, reads: &[&[u8]]) -> [(String, Verdict); 2] {
        let mut conversation = Conversation::new(protocol, who(protocol));
        let mut scratch = Scratch::default();
        let greeting = conversation.session.open(&mut scratch, &context());
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let opened = (text(&greeting.bytes), greeting.verdict);
        let rest = conversation.all(reads);
        [opened, (text(&rest.bytes), rest.verdict)]
    }

    #[test]
    fn without_framing_the_line_is_a_greeting_and_nothing_else_is_said() {
        let silence = (String::new(), Verdict::Finished);
        for reads in [&[][..], &[&b"x"[..]], &[b"one\n", b"two"]] {
            let [greeting, rest] = converse(protocol(Framing::Raw, false), reads);
            assert_eq!(greeting, (LINE.to_owned(), Verdict::Continue));
            assert_eq!(rest, silence);
        }
        let [greeting, _] = converse(protocol(Framing::Raw, true), &[]);
        assert_eq!(greeting, (LINE.to_owned(), Verdict::Close));
    }

    #[test]
    fn with_a_framing_each_message_has_its_line() {
        let silence = (String::new(), Verdict::Continue);
        for reads in [&[&b"x\n\nrest"[..]][..], &[b"x", b"\n\nre", b"st"]] {
            let [greeting, rest] = converse(protocol(Framing::Lines, false), reads);
            assert_eq!((greeting, rest), (silence.clone(), (LINE.repeat(3), Verdict::Finished)));
            let [_, rest] = converse(protocol(Framing::Lines, true), reads);
            assert_eq!(rest, (LINE.to_owned(), Verdict::Close));
        }
        let [greeting, rest] =
            converse(protocol(Framing::LengthPrefixed, false), &[b"\0\0\0\x01x\0\0", b"\0\0"]);
        let frame = format!("\0\0\0{}{LINE}", LINE.len() as u8 as char);
        assert_eq!((greeting, rest), (silence, (frame.repeat(2), Verdict::Finished)));
    }

    /// The answers to a datagram of this length, and whether one was withheld.
    fn answers(who: Who, context: &Context<'_>, length: usize) -> (Vec<String>, bool) {
        let (datagram, mut scratch) = (vec![b'?'; length], Scratch::default());
        let replies = reply_to_datagram(who, &datagram, &mut scratch, context).unwrap();
        let withheld = replies.withheld();
        (replies.map(|reply| String::from_utf8(reply.to_vec()).unwrap()).collect(), withheld)
    }

    #[test]
    fn a_datagram_has_no_answer_that_is_longer() {
        let context = Context::datagram(([192, 0, 2, 1], 9).into(), ([192, 0, 2, 2], 7).into());
        let line = LINE.replace(r#""tcp","connection":1"#, r#""udp""#);
        for once in [false, true] {
            let who = who(protocol(Framing::Raw, once));
            assert_eq!(answers(who.clone(), &context, line.len()), (vec![line.clone()], false));
            assert_eq!(answers(who.clone(), &context, 65_507), (vec![line.clone()], false));
            assert_eq!(answers(who.clone(), &context, line.len() - 1), (vec![], true));
            assert_eq!(answers(who, &context, 0), (vec![], true));
        }
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let nowhere = || Err(io::ErrorKind::Unsupported.into());
        let context = Context::asking(None, ([192, 0, 2, 1], 9).into(), &nowhere);
        let who = Who::of(Protocol::default(), "h", 123, None);
        let (lines, _) = answers(who, &context, Who::LONGEST);
        let line = r#"{"peer":"192.0.2.1:9","host":"h","pid":123,"protocol":"udp"}"#;
        assert_eq!(lines, [format!("{line}\n")]);
    }

    fn greeting(who: Who, context: &Context<'_>) -> Vec<u8> {
        let mut scratch = Scratch::default();
        let mut session = Session::new(Protocol::default(), who);
        session.open(&mut scratch, context).bytes.to_vec()
    }

    #[test]
    fn the_longest_line_has_room() {
        let longest = SocketAddrV6::new(Ipv6Addr::from([0xff; 16]), 65_535, 0, u32::MAX);
        let name: Name = "n".repeat(Name::LONGEST).parse().unwrap();
        let who = Who::of(Protocol::default(), &"h".repeat(99), u32::MAX, Some(&name));
        let line = greeting(who, &Context::stream(u32::MAX, longest.into(), longest.into()));
        assert!((330..=Who::LONGEST).contains(&line.len()), "{}", line.len());
    }

    #[test]
    fn a_name_is_short_and_plain() {
        for text in ["a", "Server_1.example-org", &"x".repeat(64)] {
            assert_eq!(text.parse::<Name>().unwrap().to_string(), text);
        }
        for text in ["", "a b", "\"", "ä", "a\n", &"x".repeat(65)] {
            let error = text.parse::<Name>().unwrap_err().to_string();
            assert!(error.contains("1 to 64 letters"), "{error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_line_is_json(
            host in prop_oneof!["[a-z0-9.-]{0,64}", "\\PC{0,70}", any::<String>()],
            name in prop::option::of("[A-Za-z0-9._-]{1,64}"),
            (pid, number) in any::<(u32, u32)>(),
            (peer, local) in any::<(SocketAddr, SocketAddr)>(),
        ) {
            let parsed: Option<Name> = name.as_ref().map(|name| name.parse().unwrap());
            let who = Who::of(Protocol::default(), &host, pid, parsed.as_ref());
            let context = Context::stream(number, peer, local);
            let line = greeting(who, &context);
            prop_assert_eq!(line.iter().position(|&byte| byte == b'\n'), Some(line.len() - 1));
            let mut told: Value = serde_json::from_slice(&line).unwrap();
            let shown = told["host"].as_str().unwrap().to_owned();
            let differ = shown.chars().zip(host.chars()).any(|(a, b)| a != b && a != '?');
            prop_assert!(!differ && shown.len() == host.chars().count().min(64), "{shown}");
            prop_assert_eq!(told.get("name").is_some(), name.is_some());
            told["host"] = json!("");
            prop_assert_eq!(told, {
                let mut expected = json!({
                    "peer": peer.to_string(), "local": context.local().unwrap().to_string(), "host": "", "pid": pid,
                    "protocol": "tcp", "connection": number,
                });
                if let Some(name) = name {
                    expected["name"] = json!(name);
                }
                expected
            });
        }
    }
}
