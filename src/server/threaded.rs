//! The threaded server: a thread for each client, which serves it as if there were no other.
//!
//! The code of a client is as simple as in the iterative server, and the kernel's scheduler does the
//! rest: a client that blocks, or whose reply takes time to compute, holds up no other, and clients are
//! spread over all CPUs, where an event loop has one.
//!
//! Its limit is the number of threads. The system has to start a thread, remember it and switch to it.
//! Each message wakes a thread, where an event loop that wakes replies to a whole batch, so that with
//! many clients much of the time goes to switching. Each client has a stack and a buffer, even while it
//! says nothing. The system limits how many threads there may be (RLIMIT_NOFILE, RLIMIT_NPROC,
//! kernel.threads-max, pids.max of the control group, vm.max_map_count), and a thread blocked in `read`
//! cannot do other work.

use std::io;
use std::thread::{self, Builder};

use log::trace;

use super::Server;
use super::blocking;
use super::ending::CloseReason;
use crate::protocol::{Service, guarded};

/// The stack of a client's thread, instead of the usual 2 MiB. The built-in services, with every log
/// line and without optimisation, need 16 KiB; the rest is for services of other makes. Only what is
/// touched takes memory.
const STACK: usize = 128 << 10;

/// Runs the server: serves each client on a thread of its own, and waits for all of them in the end.
pub(super) fn run<V: Service>(
    server: Server,
    make_service: impl FnMut() -> V + Clone + Send + 'static,
) -> io::Result<()> {
    blocking::run(server, make_service, |mut backlog, make_service| {
        thread::scope(|scope| {
            while let Some(client) = backlog.accept()? {
                let Ok(make_service) = guarded(|| make_service.clone()) else {
                    client.end(CloseReason::Panicked);
                    continue;
                };
                let thread = Builder::new().name(format!("client {}", client.number));
                let work = move || client.serve(make_service);
                let started = thread.stack_size(STACK).spawn_scoped(scope, work);
                // Without a thread, this client is closed; the next ones wait in the backlog.
                backlog.failure = started.err().map(blocking::no_thread);
            }
            // Clients that come now are refused, and do not wait until the others have ended.
            drop(backlog);
            trace!(event = "waiting", what = "threads"; "waits for the threads of its clients");
            Ok(())
        })
    })
}
