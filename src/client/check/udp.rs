//! The cases over UDP.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

use super::Stop;
use super::context::{Context, payload};
use super::datagram::{UdpClient, same};
use super::seen::{Expecting, Seen};
use super::stream::TcpClient;
use super::tcp;
use crate::client::process::listens;
use crate::client::target::Transport;
use crate::protocol::MAX_DATAGRAM;
use crate::units::time;

/// `udp-sizes`
pub(super) fn sizes(cx: &Context<'_>) -> Result<(), Stop> {
    each_size(cx, &[1, 2, 3, 64, 512, 1_000, 1_472])
}

/// `udp-large`
pub(super) fn large(cx: &Context<'_>) -> Result<(), Stop> {
    each_size(cx, &[1_473, 4_096, 8_193, 9_000, 32_768, 65_000, MAX_DATAGRAM])
}

fn each_size(cx: &Context<'_>, sizes: &[usize]) -> Result<(), Stop> {
    for &size in sizes {
        let client = cx.udp_client()?;
        client
            .exchange(&payload(size as u32, size))
            .expecting(format!("a datagram of {size} bytes comes back as it was sent"))?;
    }
    Ok(())
}

/// `udp-empty`
pub(super) fn empty(cx: &Context<'_>) -> Result<(), Stop> {
    cx.udp_client()?
        .exchange(&[])
        .expecting("a datagram without data is answered by one without data")
}

/// `udp-bytes`
pub(super) fn values(cx: &Context<'_>) -> Result<(), Stop> {
    let all: Vec<u8> = (0..=255).collect();
    cx.udp_client()?
        .converse(&all, &cx.answer(&all))
        .expecting("each of the 256 byte values is answered as it is")
        .map(|_| ())
}

/// `udp-reply-port`
pub(super) fn reply_port(cx: &Context<'_>) -> Result<(), Stop> {
    let bytes = payload(20, 100);
    let expected = format!("the answer comes from port {}", cx.address().port());
    let from = cx.udp_client()?.converse(&bytes, &bytes).expecting(&expected)?;
    if from.port() != cx.address().port() {
        return Err(Stop::failed(expected, format!("it came from port {}", from.port())));
    }
    Ok(())
}

/// `udp-reply-address`
pub(super) fn reply_address(cx: &Context<'_>) -> Result<(), Stop> {
    let asked = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), cx.address().port()));
    if !cx.address().is_ipv4() {
        return Err(Stop::skipped("needs a server on IPv4 loopback"));
    }
    if !listens(asked, Transport::Udp) {
        return Err(Stop::skipped(format!("nothing listens at {asked}")));
    }
    let bytes = payload(21, 100);
    let expected = "what was asked of 127.0.0.2 is answered from 127.0.0.2";
    let client = UdpClient::to(asked, cx.deadline).expecting(expected)?;
    let from = client.converse(&bytes, &bytes).expecting(expected)?;
    if from.ip() != asked.ip() {
        return Err(Stop::failed(expected, format!("it was answered from {}", from.ip())));
    }
    Ok(())
}

/// `udp-burst`
pub(super) fn burst(cx: &Context<'_>) -> Result<(), Stop> {
    const CLIENTS: u32 = 4;
    const DATAGRAMS: u32 = 16;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(cx.udp_client()?);
    }
    let expected = format!(
        "{} datagrams sent at once by {CLIENTS} sockets are each answered once, to its sender",
        CLIENTS * DATAGRAMS
    );
    for number in 0..DATAGRAMS {
        for (owner, client) in (0..).zip(&clients) {
            client.send(&payload(owner * DATAGRAMS + number, 100)).expecting(&expected)?;
        }
    }
    for (owner, client) in (0..).zip(&clients) {
        let numbers = owner * DATAGRAMS..(owner + 1) * DATAGRAMS;
        let wanted = numbers.map(|number| (payload(number, 100), 0_u32)).collect();
        answered_once(cx, client, wanted).expecting(&expected)?;
    }
    Ok(())
}

/// Takes answers until each of `wanted` has come, and then whatever is there already.
fn answered_once(
    cx: &Context<'_>,
    client: &UdpClient,
    mut wanted: HashMap<Vec<u8>, u32>,
) -> Result<(), Seen> {
    // Only loopback loses nothing.
    let may_be_lost = if cx.address().ip().is_loopback() { 0 } else { wanted.len() / 4 };
    let mut missing = wanted.len();
    while missing > may_be_lost {
        let Ok((found, from)) = client.receive() else {
            return Err(Seen::server(format!("{missing} of {} never came", wanted.len())));
        };
        if from != cx.address() && !wanted.contains_key(&found) {
            // A late answer of another server to whoever had this port before.
            continue;
        }
        missing -= usize::from(count(&mut wanted, &found)?);
    }
    // An exchange behind the burst: what was answered twice has come before its answer.
    let last = payload(u32::MAX, 99);
    client.send(&last)?;
    loop {
        let (found, from) = client.receive()?;
        if same(&found, &last).is_ok() {
            return Ok(());
        }
        if from == cx.address() {
            count(&mut wanted, &found)?;
        }
    }
}

/// Counts an answer; false when it came before.
fn count(wanted: &mut HashMap<Vec<u8>, u32>, found: &[u8]) -> Result<bool, Seen> {
    match wanted.get_mut(found) {
        None => Err(Seen::server("a datagram came that this socket did not send")),
        Some(0) => {
            wanted.insert(found.to_vec(), 1);
            Ok(true)
        }
        Some(_) => Err(Seen::server("a datagram was answered twice")),
    }
}

/// `udp-beside-tcp`
pub(super) fn beside_tcp(cx: &Context<'_>) -> Result<(), Stop> {
    let bytes = payload(22, 500);
    let expected = "datagrams are answered within 1 s while TCP clients flood and block";
    tcp::beside_floods(cx, || {
        let _blocked = tcp::blocked(cx)?;
        let client = cx.udp_client()?;
        for _ in 0..50 {
            tcp::best_of_three(|| {
                let began = Instant::now();
                client.exchange(&bytes).expecting(expected)?;
                let took = began.elapsed();
                if took > tcp::LONGEST {
                    let seen = format!("one was answered after {}", time(took));
                    return Err(Stop::failed(expected, seen));
                }
                Ok(())
            })?;
        }
        Ok(())
    })
}

/// `udp-both-families`
pub(super) fn both_families(cx: &Context<'_>) -> Result<(), Stop> {
    let sibling = tcp::sibling(cx)?;
    let expected = format!("{sibling} answers over UDP too");
    if !listens(sibling, Transport::Udp) {
        return Err(match cx.probe.tcp && TcpClient::connect(sibling, cx.deadline).is_ok() {
            true => Stop::failed(expected, "it listens over TCP and has no UDP socket"),
            false => Stop::skipped(format!("nothing listens at {sibling}")),
        });
    }
    let client = UdpClient::to(sibling, cx.deadline).expecting(&expected)?;
    client.exchange(&payload(23, 100)).expecting(expected)
}

/// `udp-gone-peers`
pub(super) fn gone_peers(cx: &Context<'_>) -> Result<(), Stop> {
    const PEERS: u32 = 50;
    for number in 0..PEERS {
        // Closed before it is answered: the answer meets "port unreachable".
        cx.udp_client()?.send(&payload(number, 100)).expecting("a datagram can be sent")?;
    }
    cx.udp_client()?
        .exchange_at_last(&payload(24, 100))
        .expecting(format!("a client is answered after {PEERS} that did not wait"))
}
