//! What the kernel holds for connections, from `/proc`: pure, but for the reading of the files.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use serde::Serialize;

/// Bytes in a page; that of x86-64, and of most others.
const PAGE: f64 = 4096.0;

/// What the kernel holds at one moment.
pub(crate) struct Kernel {
    /// Its caches of objects (slabinfo(5)). Nothing where this process may not look: only root may.
    pub(crate) caches: BTreeMap<String, Cache>,
    /// The stacks of threads, and page tables, in bytes.
    pub(crate) stacks: f64,
    pub(crate) page_tables: f64,
}

/// A cache of objects of one kind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cache {
    pub(crate) objects: f64,
    /// What one takes, with its part of what is left over in a slab.
    pub(crate) bytes: f64,
}

/// A cache that has grown with the connections.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Grown {
    pub(crate) name: String,
    /// Objects for each connection.
    pub(crate) objects: f64,
    /// Bytes of an object.
    pub(crate) bytes: f64,
}

/// Fewer connections do not stand out from what else goes on.
const FEWEST: u32 = 1_000;

/// Objects that those who look at processes leave behind, until the kernel wants the memory.
const LEFT_BY_LOOKING: &str = "proc_inode_cache";

impl Kernel {
    pub(crate) fn now() -> Kernel {
        let read = |file| fs::read_to_string(file).unwrap_or_default();
        let memory = read("/proc/meminfo");
        Kernel {
            caches: caches(&read("/proc/slabinfo")),
            stacks: kibibytes(&memory, "KernelStack:"),
            page_tables: kibibytes(&memory, "PageTables:"),
        }
    }

    /// The caches that have grown by an object or more for each connection. None for few connections.
    pub(crate) fn grown_since(&self, before: &Kernel, connections: u32) -> Vec<Grown> {
        if connections < FEWEST {
            return Vec::new();
        }
        let grown = self.caches.iter().filter_map(|(name, now)| {
            let before = before.caches.get(name).map_or(0.0, |cache| cache.objects);
            let objects = (now.objects - before) / f64::from(connections);
            // Caches are counted by whole slabs, as far as a CPU has one in use.
            let counts = objects > 0.9 && name != LEFT_BY_LOOKING;
            counts.then(|| Grown { name: name.clone(), objects, bytes: now.bytes })
        });
        grown.collect()
    }

    /// What the server's end of a connection takes: of each cache that has grown one object, since what
    /// has two for each connection has one at each end, and what has more is the client's (its ports);
    /// and what the server's threads have.
    pub(crate) fn server_end_since(&self, before: &Kernel, connections: u32) -> Option<f64> {
        let grown = self.grown_since(before, connections);
        let objects: f64 = grown.iter().map(|cache| cache.bytes).sum();
        let threads = (self.stacks - before.stacks) + (self.page_tables - before.page_tables);
        (!grown.is_empty()).then(|| objects + (threads / f64::from(connections)).max(0.0))
    }
}

/// Reads slabinfo(5), version 2.
pub(crate) fn caches(slabinfo: &str) -> BTreeMap<String, Cache> {
    let cache = |line: &str| {
        // name, active objects, objects, bytes of one, objects in a slab, pages of a slab
        let (name, numbers) = line.split_once(' ')?;
        let numbers: Vec<f64> =
            numbers.split_whitespace().map_while(|word| word.parse().ok()).collect();
        let [objects, _, _, in_slab, pages] = numbers[..] else { return None };
        Some((name.to_owned(), Cache { objects, bytes: pages * PAGE / in_slab }))
    };
    slabinfo.lines().filter_map(cache).collect()
}

/// The number of KiB behind a label of meminfo, in bytes.
pub(crate) fn kibibytes(meminfo: &str, label: &str) -> f64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(label));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    number.unwrap_or(0.0) * 1024.0
}

/// The memory of all TCP buffers, in bytes: `mem` in `/proc/net/sockstat`, which counts pages.
pub(crate) fn tcp_buffers() -> f64 {
    buffers(&fs::read_to_string("/proc/net/sockstat").unwrap_or_default())
}

pub(crate) fn buffers(sockstat: &str) -> f64 {
    let line = sockstat.lines().find_map(|line| line.strip_prefix("TCP:")).unwrap_or_default();
    let words: Vec<&str> = line.split_whitespace().collect();
    let pages =
        words.chunks(2).find(|pair| pair[0] == "mem").and_then(|pair| pair.get(1)?.parse().ok());
    pages.unwrap_or(0.0) * PAGE
}

/// The memory of the buffers of all TCP sockets on a local port, in bytes, as ss(8) shows it.
pub(crate) fn buffers_of(port: u16) -> Result<f64, String> {
    let shown = Command::new("ss").args(["-Htmn", "sport", "=", &format!(":{port}")]).output();
    let shown = shown.map_err(|error| format!("cannot run ss: {error}"))?;
    Ok(socket_memory(&String::from_utf8_lossy(&shown.stdout)))
}

/// What is received (`r`), what is to be sent (`w`), and what is set apart for either (`f`), of all sockets.
pub(crate) fn socket_memory(ss: &str) -> f64 {
    let memory = ss.lines().filter_map(|line| line.split_once("skmem:(")?.1.split(')').next());
    let numbers = memory.flat_map(|memory| memory.split(','));
    numbers.filter_map(|one| one.strip_prefix(['r', 'w', 'f'])?.parse::<f64>().ok()).sum()
}

/// How many sockets listen on a TCP port, of both families (proc_net_tcp(5)).
pub(crate) fn listeners(port: u16) -> usize {
    let files = ["/proc/net/tcp", "/proc/net/tcp6"]
        .map(|file| fs::read_to_string(file).unwrap_or_default());
    files.iter().map(|table| listening(table, port)).sum()
}

pub(crate) fn listening(table: &str, port: u16) -> usize {
    let local = format!(":{port:04X}");
    let listens = |line: &&str| {
        let words: Vec<&str> = line.split_whitespace().take(4).collect();
        words.len() == 4 && words[1].ends_with(&local) && words[3] == "0A"
    };
    table.lines().filter(listens).count()
}
