//! The threaded server: a thread for each client, which serves it as if there were no other.
//!
//! The code of a client is as simple as in the iterative server, and the kernel's scheduler does the
//! rest: one client that blocks, or whose answer takes time to compute, holds up nobody, and clients
//! are spread over all CPUs, where an event loop has one.
//!
//! Where it ends: a thread is a thing that the system has to start, to remember and to switch to. Each
//! message wakes a thread, where an event loop that wakes answers a whole batch, so that with many
//! clients much of the time goes to switching. Each client has a stack and a buffer, even while it says
//! nothing. How many threads there may be is limited by the system (RLIMIT_NOFILE, RLIMIT_NPROC,
//! kernel.threads-max, pids.max of the control group, vm.max_map_count), and nobody can tell a thread that waits for bytes to do anything else.

use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, Builder, Scope};

use super::Server;
use super::admission::{MaxSetBy, Rules};
use super::blocking::{self, Backlog, Client};
use super::story::{self, Awaited};
use crate::protocol::Service;
use crate::sys::limits;

/// The stack of a client's thread, instead of the usual 2 MiB. The built-in services, with every log
/// line and without optimisation, do with 16 KiB; the rest is for services of other makes. Only what
/// is touched takes memory.
const STACK: usize = 128 << 10;

/// Mappings that a thread needs: its stack, the stack that tells of an overflow, and a guard page for
/// each.
const MAPPINGS_PER_THREAD: usize = 4;
/// Mappings that the process has besides, generously.
const OTHER_MAPPINGS: usize = 1_000;

/// How many clients can have a thread. Most limits show as an error when a thread is to be started,
/// and then the client waits; without mappings a thread would die as it starts, and all with it.
fn limit() -> usize {
    (limits::mappings().saturating_sub(OTHER_MAPPINGS) / MAPPINGS_PER_THREAD).max(1)
}

/// Runs the server.
pub(super) fn run<V, F>(server: Server, make: F) -> io::Result<()>
where
    V: Service,
    F: FnMut() -> V + Clone + Send + 'static,
{
    let rules = Rules::of(&server.config).at_most(limit(), MaxSetBy::Threads);
    blocking::run(server, rules, make, serve)
}

/// Serves each client on a thread of its own, and waits for all of them in the end.
fn serve<V, F>(mut backlog: Backlog<'_>, make: F) -> io::Result<()>
where
    V: Service,
    F: FnMut() -> V + Clone + Send + 'static,
{
    thread::scope(move |scope| {
        let mut number = 0;
        while let Some(client) = backlog.accept()? {
            number += 1;
            match start_thread(scope, number, &backlog, &make) {
                // It waits for this.
                Some(thread) => _ = thread.send(client),
                None => break,
            }
        }
        // Who comes now is refused, and does not wait for those who are here.
        drop(backlog);
        story::waits_for(Awaited::Threads);
        Ok(())
    })
}

/// Starts the thread of a client, which is then sent to it: a thread that does not start takes along
/// what it was given. `None` when no more clients are to be served.
fn start_thread<'scope, 'a: 'scope, V, F>(
    scope: &'scope Scope<'scope, '_>,
    number: u64,
    backlog: &Backlog<'_>,
    make: &F,
) -> Option<SyncSender<Client<'a>>>
where
    V: Service,
    F: FnMut() -> V + Clone + Send + 'scope,
{
    loop {
        let (sender, receiver) = sync_channel::<Client<'a>>(1);
        let mut make = make.clone();
        let work = move || {
            if let Ok(client) = receiver.recv() {
                client.serve(make());
            }
        };
        let thread = Builder::new().name(format!("client {number}")).stack_size(STACK);
        let Err(error) = thread.spawn_scoped(scope, work) else { return Some(sender) };
        let error = io::Error::new(error.kind(), format!("no thread can be started: {error}"));
        if !backlog.wait_for_thread(&error) {
            return None;
        }
    }
}
