//! The list of cases: names, rules and sources.

use super::Access::{Look, Start};
use super::Group::{Loop, Process, Tcp, Udp, Upper};
use super::{Access, Case, Needs, loops, process, tcp, udp, upper};

const NOTHING: Needs =
    Needs { tcp: false, lasting: false, udp: false, loopback: false, process: Access::None };
/// One exchange on a connection is enough.
const ONE_EXCHANGE: Needs = Needs { tcp: true, ..NOTHING };
const TCP: Needs = Needs { lasting: true, ..ONE_EXCHANGE };
const UDP: Needs = Needs { udp: true, ..NOTHING };
const BOTH: Needs = Needs { udp: true, ..TCP };
const UDP_ON_LOOPBACK: Needs = Needs { loopback: true, ..UDP };

/// Every case, in the order in which they run.
pub static CASES: &[Case] = &[
    Case {
        name: "tcp-sizes",
        group: Tcp,
        rule: "1 byte to 8 MiB come back exactly as they were sent",
        source: "RFC 862, TCP Based Echo Service",
        needs: TCP,
        run: tcp::sizes,
    },
    Case {
        name: "tcp-bytes",
        group: Tcp,
        rule: "all 256 byte values come back: no line ends, NULs or escapes are interpreted",
        source: "RFC 862, TCP Based Echo Service (\"any data received\")",
        needs: ONE_EXCHANGE,
        run: tcp::values,
    },
    Case {
        name: "tcp-split",
        group: Tcp,
        rule: "the answer does not depend on how the bytes were cut into segments",
        source: "RFC 9293 section 2.2 (a stream of bytes, no record boundaries)",
        needs: TCP,
        run: tcp::split,
    },
    Case {
        name: "tcp-half-close",
        group: Tcp,
        rule: "after the client's FIN everything that it sent is still returned, then a FIN",
        source: "RFC 9293 section 3.6.1; RFC 1122 section 4.2.2.13",
        needs: TCP,
        run: tcp::half_close,
    },
    Case {
        name: "tcp-half-close-empty",
        group: Tcp,
        rule: "a client that ends its stream without a byte gets the server's FIN",
        source: "RFC 862 (\"until the calling user terminates the connection\"); RFC 9293 section 3.6",
        needs: ONE_EXCHANGE,
        run: tcp::half_close_empty,
    },
    Case {
        name: "tcp-late-reader",
        group: Tcp,
        rule: "a client that sends 16 MiB before it reads gets all of it, however long that waits",
        source: "RFC 9293 section 3.8.6.1 (zero windows); RFC 1122 section 4.2.2.17",
        needs: TCP,
        run: tcp::late_reader,
    },
    Case {
        name: "tcp-idle-peer",
        group: Tcp,
        rule: "a client that says nothing does not keep others from being served",
        source: "accept(2), listen(2): a connection that waits in the backlog is not served",
        needs: ONE_EXCHANGE,
        run: tcp::idle_peer,
    },
    Case {
        name: "tcp-never-reader",
        group: Tcp,
        rule: "a client that sends and never reads does not keep others from being served",
        source: "RFC 9293 section 3.8.6.1 (a zero window may last for ever); send(2)",
        needs: TCP,
        run: tcp::never_reader,
    },
    Case {
        name: "tcp-reset",
        group: Tcp,
        rule: "a client that resets its connection ends that connection and no other",
        source: "RFC 9293 section 3.5.3; accept(2), ECONNABORTED",
        needs: TCP,
        run: tcp::reset,
    },
    Case {
        name: "tcp-churn",
        group: Tcp,
        rule: "500 connections, opened and closed one by one, are all served",
        source: "RFC 862 (\"listens for TCP connections\")",
        needs: ONE_EXCHANGE,
        run: tcp::churn,
    },
    Case {
        name: "tcp-many",
        group: Tcp,
        rule: "300 connections that are held at once are all served, again and again",
        source: "RFC 862 (\"once a connection is established any data received is sent back\")",
        needs: TCP,
        run: tcp::many,
    },
    Case {
        name: "tcp-fair",
        group: Tcp,
        rule: "while two floods are served, round trips have a median within 50 ms and none is over 1 s",
        source: "epoll(7), starvation",
        needs: TCP,
        run: tcp::fair,
    },
    Case {
        name: "tcp-both-families",
        group: Tcp,
        rule: "a server that listens on IPv4 and on IPv6 echoes on both",
        source: "RFC 862; RFC 3493 section 3.7",
        needs: ONE_EXCHANGE,
        run: tcp::both_families,
    },
    Case {
        name: "udp-sizes",
        group: Udp,
        rule: "a datagram of 1 to 1,472 bytes is answered by one with the same data",
        source: "RFC 862, UDP Based Echo Service",
        needs: UDP,
        run: udp::sizes,
    },
    Case {
        name: "udp-large",
        group: Udp,
        rule: "a datagram of up to 65,507 bytes is answered whole, never cut",
        source: "RFC 862, UDP Based Echo Service; RFC 768, Length; RFC 1122 section 3.3.2",
        needs: UDP,
        run: udp::large,
    },
    Case {
        name: "udp-empty",
        group: Udp,
        rule: "a datagram without data is answered by one without data",
        source: "RFC 768, Length (\"the minimum value of the length is eight\")",
        needs: UDP,
        run: udp::empty,
    },
    Case {
        name: "udp-bytes",
        group: Udp,
        rule: "all 256 byte values come back",
        source: "RFC 862, UDP Based Echo Service",
        needs: UDP,
        run: udp::values,
    },
    Case {
        name: "udp-reply-port",
        group: Udp,
        rule: "the answer comes from the port that was asked",
        source: "RFC 768, Source Port; RFC 862",
        needs: UDP,
        run: udp::reply_port,
    },
    Case {
        name: "udp-reply-address",
        group: Udp,
        rule: "the answer comes from the address that was asked, also of several",
        source: "RFC 1122 sections 3.3.4.2 and 4.1.3.5; ip(7), IP_PKTINFO",
        needs: UDP_ON_LOOPBACK,
        run: udp::reply_address,
    },
    Case {
        name: "udp-burst",
        group: Udp,
        rule: "64 datagrams at once are each answered once, to their sender",
        source: "RFC 862, UDP Based Echo Service",
        needs: UDP,
        run: udp::burst,
    },
    Case {
        name: "udp-beside-tcp",
        group: Udp,
        rule: "datagrams are answered within 1 s while TCP clients flood and block",
        source: "RFC 862 (both services); epoll(7), starvation",
        needs: BOTH,
        run: udp::beside_tcp,
    },
    Case {
        name: "udp-both-families",
        group: Udp,
        rule: "a server that listens on IPv4 and on IPv6 answers datagrams on both",
        source: "RFC 862; RFC 3493 section 3.7",
        needs: UDP,
        run: udp::both_families,
    },
    Case {
        name: "udp-gone-peers",
        group: Udp,
        rule: "clients that are gone before their answer comes do not end the service",
        source: "RFC 1122 section 4.1.3.3 (ICMP errors); udp(7), error handling",
        needs: UDP,
        run: udp::gone_peers,
    },
    Case {
        name: "process-memory",
        group: Process,
        rule: "a client that sends up to 64 MiB and never reads costs at most 4 MiB of memory",
        source: "RFC 9293 section 3.8.6 (the window is there to hold the sender)",
        needs: Needs { process: Look, ..TCP },
        run: process::memory,
    },
    Case {
        name: "process-idle-cpu",
        group: Process,
        rule: "with 50 idle connections it uses at most 1 % of a CPU",
        source: "poll(2), epoll_wait(2): waiting costs nothing",
        needs: Needs { lasting: true, process: Look, ..NOTHING },
        run: process::idle_cpu,
    },
    Case {
        name: "process-blocked-cpu",
        group: Process,
        rule: "with clients that do not read, half-closed or not, it uses at most 1 % of a CPU",
        source: "epoll(7), level-triggered and edge-triggered; poll(2), POLLRDHUP",
        needs: Needs { process: Look, ..TCP },
        run: process::blocked_cpu,
    },
    Case {
        name: "process-threads",
        group: Process,
        rule: "when 100 clients have left, at most 8 more threads than before remain",
        source: "pthread_detach(3), wait(2)",
        needs: Needs { process: Look, ..ONE_EXCHANGE },
        run: process::threads,
    },
    Case {
        name: "process-descriptors",
        group: Process,
        rule: "when 100 clients have left, at most 8 more open descriptors than before remain",
        source: "close(2)",
        needs: Needs { process: Look, ..ONE_EXCHANGE },
        run: process::descriptors,
    },
    Case {
        name: "process-reset",
        group: Process,
        rule: "when 20 clients that do not read have half-closed and then reset, at most 8 more open \
               descriptors than before remain, at no CPU",
        source: "RFC 9293 section 3.10.7.4 (a reset ends the connection in every state); epoll(7), \
                 EPOLLRDHUP and EPOLLHUP",
        needs: Needs { process: Look, ..TCP },
        run: process::reset,
    },
    Case {
        name: "process-exhaustion",
        group: Process,
        rule: "with 32 descriptors and 80 clients: those without room wait in the backlog at no \
               CPU, and are served when others leave, with no new client to wake the server",
        source: "accept(2), EMFILE; listen(2), backlog; epoll(7), edge-triggered",
        needs: Needs { process: Start, ..ONE_EXCHANGE },
        run: process::exhaustion,
    },
    Case {
        name: "process-sigterm",
        group: Process,
        rule: "SIGTERM ends it, with exit status 0",
        source: "daemon(7), new-style daemons",
        needs: Needs { process: Start, ..NOTHING },
        run: process::sigterm,
    },
    Case {
        name: "loop-self",
        group: Loop,
        rule: "a datagram that seems to come from the server's own address and port is not answered",
        source: "CERT CA-1996-01; CERT VU#417980",
        needs: Needs { process: Start, ..UDP_ON_LOOPBACK },
        run: loops::own_address,
    },
    Case {
        name: "loop-port-zero",
        group: Loop,
        rule: "a datagram from port 0, which cannot be answered, does not end the service",
        source: "RFC 768, Source Port",
        needs: UDP_ON_LOOPBACK,
        run: loops::port_zero,
    },
    Case {
        name: "loop-echo-port",
        group: Loop,
        rule: "a datagram from another echo or chargen service (ports 7 and 19) is not answered",
        source: "CERT CA-1996-01; CERT VU#417980",
        needs: UDP_ON_LOOPBACK,
        run: loops::echo_port,
    },
    Case {
        name: "loop-broadcast",
        group: Loop,
        rule: "a datagram to a broadcast address is not answered: one would bring an answer of every \
               host",
        source: "CERT CA-1998-01; RFC 1122 section 3.2.1.3",
        needs: UDP_ON_LOOPBACK,
        run: loops::broadcast,
    },
    Case {
        name: "upper-text",
        group: Upper,
        rule: "text comes back in Unicode upper case",
        source: "The Unicode Standard, section 3.13, toUppercase",
        needs: ONE_EXCHANGE,
        run: upper::text,
    },
    Case {
        name: "upper-split",
        group: Upper,
        rule: "a character that is cut by a segment comes back whole",
        source: "RFC 9293 section 2.2; RFC 3629 section 3",
        needs: TCP,
        run: upper::split,
    },
    Case {
        name: "upper-invalid",
        group: Upper,
        rule: "bytes that are not UTF-8 come back unchanged",
        source: "RFC 3629 section 3; RFC 862",
        needs: ONE_EXCHANGE,
        run: upper::invalid,
    },
    Case {
        name: "upper-end",
        group: Upper,
        rule: "a character that the end of the stream cuts comes back unchanged",
        source: "RFC 3629 section 3; RFC 862",
        needs: TCP,
        run: upper::end,
    },
    Case {
        name: "upper-udp",
        group: Upper,
        rule: "each datagram is a text of its own: what its end cuts comes back unchanged",
        source: "RFC 862, UDP Based Echo Service; RFC 3629 section 3",
        needs: UDP,
        run: upper::udp,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_say_their_group() {
        for (index, case) in CASES.iter().enumerate() {
            let group = format!("{:?}-", case.group).to_lowercase();
            assert!(case.name.starts_with(&group), "{}", case.name);
            assert!(CASES[..index].iter().all(|other| other.name != case.name), "{}", case.name);
        }
    }

    #[test]
    fn groups_stand_together() {
        assert!(CASES.is_sorted_by_key(|case| case.group));
    }
}
