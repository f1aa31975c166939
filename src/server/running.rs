//! A server on a thread of its own.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::ops::Deref;
use std::panic::resume_unwind;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use log::error;

use super::{Handle, Server};
use crate::error::Error;
use crate::stats::Snapshot;

/// A server that runs on a thread of its own: see [`Server::spawn`].
///
/// It is a [`Handle`] of the server that also owns the thread. Dropping it is the same as
/// [`stop`](RunningServer::stop), except that an error is logged: a test that ends, even by a panic,
/// leaves no server behind.
#[derive(Debug)]
#[must_use = "dropping it stops the server"]
pub struct RunningServer {
    handle: Handle,
    local_addrs: Vec<SocketAddr>,
    #[cfg(feature = "daemon")]
    metrics_addr: Option<SocketAddr>,
    drain_timeout: Duration,
    /// None once it is joined.
    thread: Option<JoinHandle<Result<(), Error>>>,
    /// Disconnected by the end of the thread. In a mutex, so that threads can share this.
    ended: Mutex<Receiver<Infallible>>,
}

impl RunningServer {
    /// The default of [`with_drain_timeout`](RunningServer::with_drain_timeout).
    const DRAIN_TIMEOUT: Duration = Duration::from_millis(100);

    pub(super) fn spawn(
        server: Server,
        run: impl FnOnce(Server) -> Result<(), Error> + Send + 'static,
    ) -> Result<Self, Error> {
        let (handle, local_addrs) = (server.handle(), server.local_addrs());
        #[cfg(feature = "daemon")]
        let metrics_addr = server.metrics_addr();
        let (running, ended) = channel();
        let serve = move || {
            let _running = running;
            run(server)
        };
        let builder = Builder::new().name("evecho".to_owned());
        Ok(RunningServer {
            handle,
            local_addrs,
            #[cfg(feature = "daemon")]
            metrics_addr,
            drain_timeout: Self::DRAIN_TIMEOUT,
            thread: Some(builder.spawn(serve).map_err(Error::Setup)?),
            ended: Mutex::new(ended),
        })
    }

    /// Sets how long [`stop`](RunningServer::stop) and a drop let the server drain before they
    /// [abort](Handle::abort) it, whatever [`Limits::drain_timeout`](crate::Limits::drain_timeout) and
    /// [`Limits::drain_delay`](crate::Limits::drain_delay) say. Default: 100 ms, since a client that was
    /// forgotten lets every drain take all of its time.
    pub fn with_drain_timeout(mut self, drain_timeout: Duration) -> Self {
        self.drain_timeout = drain_timeout;
        self
    }

    /// The addresses that are bound: [`Server::local_addrs`].
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.local_addrs
    }

    /// The address of the port for monitors: [`Server::metrics_addr`].
    #[cfg(feature = "daemon")]
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics_addr
    }

    /// A handle for another thread, or for a service.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Whether the server has ended, so that [`join`](RunningServer::join) does not wait.
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Drains the server, for as long as
    /// [`with_drain_timeout`](RunningServer::with_drain_timeout) says, aborts it if it has not ended by
    /// then, and waits for its end. A service that still computes delays it. Returns the counters, which
    /// are final.
    ///
    /// # Errors
    ///
    /// As [`Server::run`].
    ///
    /// # Panics
    ///
    /// As [`join`](RunningServer::join).
    pub fn stop(mut self) -> Result<Snapshot, Error> {
        self.end();
        self.join()
    }

    /// Waits until the server has ended: after a [`drain`](Handle::drain), an [`abort`](Handle::abort) or
    /// a signal. Returns the counters, which are final.
    ///
    /// # Errors
    ///
    /// As [`Server::run`].
    ///
    /// # Panics
    ///
    /// If the thread of the server has panicked, with what it panicked with.
    pub fn join(mut self) -> Result<Snapshot, Error> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Err(panic)) => resume_unwind(panic),
            Some(Ok(Err(error))) => Err(error),
            Some(Ok(Ok(()))) | None => Ok(self.stats()),
        }
    }

    /// Has the server end: by a drain where that takes no longer than it may.
    fn end(&mut self) {
        self.drain();
        let ended = self.ended.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
        if ended.recv_timeout(self.drain_timeout) == Err(RecvTimeoutError::Timeout) {
            self.abort();
        }
    }
}

impl Deref for RunningServer {
    type Target = Handle;

    fn deref(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for RunningServer {
    fn drop(&mut self) {
        if self.thread.is_none() {
            return;
        }
        self.end();
        // A panic has been printed where it happened.
        if let Some(Ok(Err(error))) = self.thread.take().map(JoinHandle::join) {
            error!(event = "failed"; "{error}");
        }
    }
}
