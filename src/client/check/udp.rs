//! The cases over UDP.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

use super::Need::{Lasting, Loopback, Tcp, Udp};
use super::context::{Context, payload};
use super::datagram::{UdpClient, same};
use super::seen::Expecting;
use super::stream::TcpClient;
use super::tcp::{
    ASCII_COMES_BACK, LONGEST, REST_COMES_BACK, beside_floods, best_of_three, blocked, sibling,
};
use super::{Case, Group, case};
use crate::client::harness::{Stop, ensure};
use crate::client::socket::listens_udp;
use crate::client::target::Attempt;
use crate::error::Transport;
use crate::protocol::MAX_DATAGRAM;
use crate::units::time;

pub(super) static CASES: &[Case] = &[
    case(Group::Udp, "udp-sizes", &[Udp])
        .rule("a datagram of 1 to 1,472 bytes is answered by one with the same data")
        .source("RFC 862, UDP Based Echo Service")
        .run(|cx| each_size(cx, &[1, 2, 3, 64, 512, 1_000, 1_472])),
    case(Group::Udp, "udp-large", &[Udp])
        .rule("a datagram of up to 65,507 bytes is answered whole, never cut")
        .source("RFC 862, UDP Based Echo Service; RFC 768, Length; RFC 1122 section 3.3.2")
        .run(|cx| each_size(cx, &[1_473, 4_096, 8_193, 9_000, 32_768, 65_000, MAX_DATAGRAM])),
    case(Group::Udp, "udp-empty", &[Udp])
        .rule("a datagram without data is answered by one without data")
        .source("RFC 768, Length (\"the minimum value of the length is eight\")")
        .run(|cx| cx.udp_client()?.exchange(&[])),
    case(Group::Udp, "udp-bytes", &[Udp])
        .rule("all 256 byte values come back")
        .source("RFC 862, UDP Based Echo Service")
        .run(|cx| {
            for (count, expected) in [(128, ASCII_COMES_BACK), (256, REST_COMES_BACK)] {
                let bytes: Vec<u8> = (0..=255).take(count).collect();
                cx.udp_client()?.converse(&bytes, &cx.answer(&bytes)).expecting(expected)?;
            }
            Ok(())
        }),
    case(Group::Udp, "udp-reply-port", &[Udp])
        .rule("the answer comes from the port that was asked")
        .source("RFC 768, Source Port; RFC 862")
        .run(|cx| {
            let bytes = payload(20, 100);
            let from = cx.udp_client()?.converse(&bytes, &bytes)?.port();
            ensure(from == cx.address().port(), || format!("it came from port {from}"))
        }),
    case(Group::Udp, "udp-reply-address", &[Udp, Loopback])
        .rule("the answer comes from the address that was asked, also of several")
        .source("RFC 1122 sections 3.3.4.2 and 4.1.3.5; ip(7), IP_PKTINFO")
        .run(|cx| {
            let asked = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), cx.address().port()));
            if !cx.address().is_ipv4() {
                return Err(Stop::skipped("needs a server on IPv4 loopback"));
            }
            listens_udp(asked, cx.deadline).map_err(|error| absent(cx, asked, &error))?;
            let bytes = payload(21, 100);
            let from = UdpClient::to(asked, cx.deadline)?.converse(&bytes, &bytes)?.ip();
            ensure(from == asked.ip(), || format!("{} was answered from {from}", asked.ip()))
        }),
    case(Group::Udp, "udp-burst", &[Udp])
        .rule("64 datagrams at once are each answered once, to their sender")
        .source("RFC 862, UDP Based Echo Service")
        .run(|cx| {
            const EACH: u32 = 16;
            let clients = [cx.udp_client()?, cx.udp_client()?, cx.udp_client()?, cx.udp_client()?];
            for number in 0..EACH {
                for (owner, client) in (0..).zip(&clients) {
                    client.send(&payload(owner * EACH + number, 100))?;
                }
            }
            for (owner, client) in (0..).zip(&clients) {
                let numbers = owner * EACH..(owner + 1) * EACH;
                let wanted = numbers.map(|number| (payload(number, 100), 0)).collect();
                answered_once(cx, client, wanted)?;
            }
            Ok(())
        }),
    case(Group::Udp, "udp-beside-tcp", &[Tcp, Udp, Lasting])
        .rule("datagrams are answered within 1 s while TCP clients flood and block")
        .source("RFC 862 (both services); epoll(7), starvation")
        .run(|cx| {
            beside_floods(cx, || {
                let _blocked = blocked(cx)?;
                let client = cx.udp_client()?;
                let trip = || {
                    let began = Instant::now();
                    client.exchange(&payload(22, 500))?;
                    let took = began.elapsed();
                    ensure(took <= LONGEST, || format!("one was answered after {}", time(took)))
                };
                (0..50).try_for_each(|_| best_of_three(trip))
            })
        }),
    case(Group::Udp, "udp-both-families", &[Udp])
        .rule("a server that listens on IPv4 and on IPv6 answers datagrams on both")
        .source("RFC 862; RFC 3493 section 3.7")
        .run(|cx| {
            let sibling = sibling(cx)?;
            let Err(error) = listens_udp(sibling, cx.deadline) else {
                let client = UdpClient::to(sibling, cx.deadline)?;
                return client
                    .exchange(&payload(23, 100))
                    .expecting(format!("{sibling} answers over UDP too"));
            };
            let has_tcp = |address| TcpClient::connect(address, cx.deadline).is_ok();
            let both = cx.config.transport.is_none() && has_tcp(cx.address()) && has_tcp(sibling);
            Err(match both {
                true => Stop::broken(format!("{sibling} listens over TCP and has no UDP socket")),
                false => absent(cx, sibling, &error),
            })
        }),
    case(Group::Udp, "udp-gone-peers", &[Udp])
        .rule("clients that are gone before their answer comes do not end the service")
        .source("RFC 1122 section 4.1.3.3 (ICMP errors); udp(7), error handling")
        .run(|cx| {
            for number in 0..50 {
                // Closed before it is answered: the answer meets "port unreachable".
                cx.udp_client()?.send(&payload(number, 100))?;
            }
            cx.udp_client()?.exchange_at_last(&payload(24, 100))
        }),
];

/// The end of a case that needs another address of the server, which is not there.
fn absent(cx: &Context<'_>, address: SocketAddr, error: &io::Error) -> Stop {
    Stop::skipped(Attempt::new(address, Transport::Udp, cx.config.timeout, error).to_string())
}

fn each_size(cx: &Context<'_>, sizes: &[usize]) -> Result<(), Stop> {
    for &size in sizes {
        cx.udp_client()?
            .exchange(&payload(size as u32, size))
            .expecting(format!("a datagram of {size} bytes comes back as it was sent"))?;
    }
    Ok(())
}

/// Takes answers until each of `wanted` has come, and then whatever is there already.
fn answered_once(
    cx: &Context<'_>,
    client: &UdpClient<'_>,
    mut wanted: HashMap<Vec<u8>, u32>,
) -> Result<(), Stop> {
    // Only loopback loses nothing.
    let may_be_lost = if cx.address().ip().is_loopback() { 0 } else { wanted.len() / 4 };
    let mut missing = wanted.len();
    while missing > may_be_lost {
        let Ok((found, from)) = client.receive() else {
            return Err(Stop::broken(format!("{missing} of {} never came", wanted.len())));
        };
        if from != cx.address() && !wanted.contains_key(&found) {
            // A late answer of another server to the socket that had this port before.
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
fn count(wanted: &mut HashMap<Vec<u8>, u32>, found: &[u8]) -> Result<bool, Stop> {
    match wanted.get_mut(found) {
        None => Err(Stop::broken("a datagram came that this socket did not send")),
        Some(0) => {
            wanted.insert(found.to_vec(), 1);
            Ok(true)
        }
        Some(_) => Err(Stop::broken("a datagram was answered twice")),
    }
}
