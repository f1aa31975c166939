//! The cases of the upper-case service.

use super::Stop;
use super::context::{Context, upper};
use super::seen::Expecting;

/// Text whose capitals differ in length, script and number from it.
const TEXT: &str = "hello, world! straße, ŉ, ὀδυσσεύς, привет, հայ և, ﬃ, 漢字, 🙂\n";

/// `upper-text`
pub(super) fn text(cx: &Context<'_>) -> Result<(), Stop> {
    cx.connect()?
        .converse(TEXT.as_bytes(), TEXT.to_uppercase().as_bytes())
        .expecting("text comes back in Unicode upper case")
}

/// `upper-split`
pub(super) fn split(cx: &Context<'_>) -> Result<(), Stop> {
    let expected = "a character that arrives in two pieces comes back whole, in upper case";
    let mut client = cx.connect()?;
    for (first, second, answer) in [
        (&b"a\xc3"[..], &b"\xa9b"[..], "ÉB"),
        (b"a\xe1", b"\xbd\x80b", "ὈB"),
        (b"a\xe1\xbd", b"\x80b", "ὈB"),
        (b"a\xf0\x90\x90", b"\xa8b", "𐐀B"),
    ] {
        // The answer to the letter before shows that the piece behind it has arrived.
        client.converse(first, b"A").expecting(expected)?;
        client.converse(second, answer.as_bytes()).expecting(expected)?;
    }
    // Enough that the server's reads cut it somewhere too.
    let long = "Ἀχαιοί, привет, 🙂 ".repeat(10_000);
    client.converse(long.as_bytes(), long.to_uppercase().as_bytes()).expecting(expected)
}

/// `upper-invalid`
pub(super) fn invalid(cx: &Context<'_>) -> Result<(), Stop> {
    let odd = b"a\xffb\x80c\xe2\x82d\xc0\xafe\xed\xa0\x80f\xf5\x90g";
    cx.connect()?
        .converse(odd, &upper(odd))
        .expecting("bytes that are not UTF-8 come back unchanged, letters beside them in capitals")
}

/// `upper-end`
pub(super) fn end(cx: &Context<'_>) -> Result<(), Stop> {
    let expected = "a character that the end of the stream cuts comes back unchanged";
    let mut client = cx.connect()?;
    client.send(b"end \xe2\x82").expecting(expected)?;
    client.finish().expecting(expected)?;
    client.converse(&[], b"END \xe2\x82").expecting(expected)?;
    client.expect_end().expecting(expected)
}

/// `upper-udp`
pub(super) fn udp(cx: &Context<'_>) -> Result<(), Stop> {
    let client = cx.udp_client()?;
    let ask = |sent: &[u8]| client.converse(sent, &upper(sent)).map(|_| ());
    ask(TEXT.as_bytes()).expecting("text comes back in Unicode upper case")?;
    ask(b"cut \xc3")
        .expecting("a character that the end of a datagram cuts comes back unchanged")?;
    ask(b"\xa9 next").expecting("a datagram does not go on where the last one ended")
}
