//! The cases of the upper-case service.

use super::Need::{Lasting, Tcp, Udp};
use super::context::upper;
use super::seen::Expecting;
use super::{Case, Group, case};

/// Text whose capitals differ in length, script and number from it.
const TEXT: &str = "hello, world! straße, ŉ, ὀδυσσεύς, привет, հայ և, ﬃ, 漢字, 🙂\n";

pub(super) static CASES: &[Case] = &[
    case(Group::Upper, "upper-text", &[Tcp])
        .rule("text comes back in Unicode upper case")
        .source("The Unicode Standard, section 3.13, toUppercase")
        .run(|cx| cx.connect()?.converse(TEXT.as_bytes(), TEXT.to_uppercase().as_bytes())),
    case(Group::Upper, "upper-split", &[Tcp, Lasting])
        .rule("a character that is cut by a segment comes back whole")
        .source("RFC 9293 section 2.2; RFC 3629 section 3")
        .run(|cx| {
            let mut client = cx.connect()?;
            for (first, second, answer) in [
                (&b"a\xc3"[..], &b"\xa9b"[..], "ÉB"),
                (b"a\xe1", b"\xbd\x80b", "ὈB"),
                (b"a\xe1\xbd", b"\x80b", "ὈB"),
                (b"a\xf0\x90\x90", b"\xa8b", "𐐀B"),
            ] {
                // The answer to the letter before shows that the piece behind it has arrived.
                client.converse(first, b"A")?;
                client.converse(second, answer.as_bytes())?;
            }
            // Enough that the server's reads cut it somewhere too.
            let long = "Ἀχαιοί, привет, 🙂 ".repeat(10_000);
            client.converse(long.as_bytes(), long.to_uppercase().as_bytes())
        }),
    case(Group::Upper, "upper-invalid", &[Tcp])
        .rule("bytes that are not UTF-8 come back unchanged")
        .source("RFC 3629 section 3; RFC 862")
        .run(|cx| {
            let odd = b"a\xffb\x80c\xe2\x82d\xc0\xafe\xed\xa0\x80f\xf5\x90g";
            cx.connect()?.converse(odd, &upper(odd))
        }),
    case(Group::Upper, "upper-end", &[Tcp, Lasting])
        .rule("a character that the end of the stream cuts comes back unchanged")
        .source("RFC 3629 section 3; RFC 862")
        .run(|cx| {
            let mut client = cx.connect()?;
            client.send(b"end \xe2\x82")?;
            client.finish()?;
            client.converse(&[], b"END \xe2\x82")?;
            client.expect_end()
        }),
    case(Group::Upper, "upper-udp", &[Udp])
        .rule("each datagram is a text of its own: what its end cuts comes back unchanged")
        .source("RFC 862, UDP Based Echo Service; RFC 3629 section 3")
        .run(|cx| {
            let client = cx.udp_client()?;
            let ask = |sent: &[u8]| client.converse(sent, &upper(sent)).map(|_| ());
            ask(TEXT.as_bytes()).expecting("text comes back in Unicode upper case")?;
            ask(b"cut \xc3")?;
            ask(b"\xa9 next").expecting("a datagram does not go on where the last one ended")
        }),
];
