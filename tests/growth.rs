//! The bench of growth reads the files of `/proc` right, and starts as many servers as it needs.
#![cfg(target_os = "linux")]
#![allow(dead_code, reason = "the tests are those of the bench's modules")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../benches/growth/kernel.rs"]
mod kernel;
#[path = "../benches/growth/servers.rs"]
mod servers;

use kernel::{Cache, Kernel, buffers, caches, kibibytes, listening, socket_memory};
use servers::Processes;

const BEFORE: &str = "\
slabinfo - version: 2.1
# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables <limit>
TCP                   79    130   2368   13    8 : tunables    0    0    0 : slabdata     10     10      0
eventpoll_epi        320    320    128   32    1 : tunables    0    0    0 : slabdata     10     10      0
proc_inode_cache       0      0    696   23    4 : tunables    0    0    0 : slabdata      0      0      0
dentry            659250 712929    192   21    1 : tunables    0    0    0 : slabdata  33949  33949      0
";

fn kernel(slabinfo: &str, stacks: f64) -> Kernel {
    Kernel { caches: caches(slabinfo), stacks, page_tables: 0.0 }
}

#[test]
fn caches_are_read_with_what_a_slab_wastes() {
    let caches = caches(BEFORE);
    assert_eq!(caches.len(), 4);
    assert_eq!(caches["TCP"], Cache { objects: 79.0, bytes: 32_768.0 / 13.0 });
}

#[test]
fn a_server_has_one_object_of_each_cache_that_grew() {
    let after = BEFORE
        .replace("TCP                   79", "TCP                 2079")
        .replace("eventpoll_epi        320", "eventpoll_epi       3320")
        .replace("proc_inode_cache       0", "proc_inode_cache    2000")
        .replace("dentry            659250", "dentry            659750");
    let (before, after) = (kernel(BEFORE, 0.0), kernel(&after, 16e6));
    let grown = after.grown_since(&before, 1_000);
    let grown: Vec<_> = grown.iter().map(|cache| (cache.name.as_str(), cache.objects)).collect();
    assert_eq!(grown, [("TCP", 2.0), ("eventpoll_epi", 3.0)]);
    let each = after.server_end_since(&before, 1_000).unwrap();
    assert_eq!(each.round(), (32_768.0 / 13.0_f64 + 128.0 + 16e3).round());
    // Where slabinfo(5) may not be read, nobody guesses.
    assert_eq!(kernel("", 1.0).server_end_since(&kernel("", 0.0), 10), None);
}

#[test]
fn labels_have_their_numbers() {
    let sockstat =
        "sockets: used 24\nTCP: inuse 1 orphan 0 tw 0 alloc 1 mem 50\nUDP: inuse 0 mem 107\n";
    assert_eq!(buffers(sockstat), 50.0 * 4096.0);
    assert_eq!(buffers(""), 0.0);
    let meminfo = "MemTotal: 24683708 kB\nKernelStack:        2248 kB\n";
    assert_eq!(kibibytes(meminfo, "KernelStack:"), 2248.0 * 1024.0);
}

#[test]
fn the_memory_of_sockets_is_added_up() {
    let ss = "\
ESTAB 985088 65536 127.0.0.1:12000 127.0.0.2:40000
\t skmem:(r1000,rb1048576,t7,tb1048576,f20,w300,o0,bl0,d0)
ESTAB 0 0 127.0.0.1:12000 127.0.0.2:40001
\t skmem:(r4,rb1048576,t0,tb1048576,f0,w0,o0,bl0,d0) more
";
    assert_eq!((socket_memory(ss), socket_memory("")), (1_324.0, 0.0));
}

#[test]
fn listeners_are_told_from_connections() {
    let table = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:2EE0 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0100007F:2EE0 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1 0 100 0 0 10 0
   2: 0100007F:2EE0 0200007F:8000 01 00000000:00000000 00:00000000 00000000     0        0 3 1 0 100 0 0 10 0
   3: 0100007F:2EE1 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4 1 0 100 0 0 10 0
";
    assert_eq!(listening(table, 12_000), 2);
}

#[test]
fn there_are_as_many_processes_as_the_connections_need() {
    let needed = |processes: Processes, connections| processes.for_connections(connections, 20_000);
    assert_eq!(needed(Processes::AsNeeded, 20_000), Ok(1));
    assert_eq!(needed(Processes::AsNeeded, 100_000), Ok(6));
    assert_eq!(needed(Processes::Exactly(2), 1), Ok(2));
    assert!(needed(Processes::Exactly(2), 100_000).is_err());
    assert!(needed(Processes::One, 20_001).is_err());
}
