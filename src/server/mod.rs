//! The server: bind or adopt sockets, take a handle, run.

mod admission;
mod announce;
mod blocking;
mod budget;
mod busy_poll;
mod clock;
mod connection;
mod connections;
mod ending;
mod event_loop;
mod guard;
mod incidents;
mod iterative;
#[cfg(feature = "daemon")]
mod monitor;
mod netem;
mod notify;
mod peer;
mod rate_limited;
mod ready;
mod shutdown;
#[cfg(any(test, fuzzing))]
pub(crate) mod simulation;
pub(crate) mod sockets;
mod threaded;
mod udp;

pub use shutdown::Handle;

use std::collections::HashSet;
use std::net::SocketAddr;
#[cfg(feature = "daemon")]
use std::net::TcpListener;
use std::sync::Arc;

use mio::Poll;

use self::guard::Guard;
use self::shutdown::Shutdown;
use self::sockets::Sockets;
use crate::config::{Config, Design, ServiceKind, Transport};
use crate::error::{AdoptError, Error};
use crate::protocol::{Echo, Service, Upper, Who};
use crate::random;
use crate::stats::Stats;
use crate::sys::{self, OwnedFd};

/// A server with bound sockets. Clients that connect wait in the backlog until it runs.
///
/// ```
/// use std::io::{Read, Write};
/// use evecho::{Config, Server};
///
/// let mut config = Config::default();
/// config.port = 0;
/// let server = Server::bind(config)?;
/// let port = server.local_addrs()[0].port();
/// let handle = server.handle();
/// let running = std::thread::spawn(|| server.run());
///
/// let mut client = std::net::TcpStream::connect(("127.0.0.1", port))?;
/// client.write_all(b"hello")?;
/// client.shutdown(std::net::Shutdown::Write)?;
/// let mut echo = String::new();
/// client.read_to_string(&mut echo)?;
/// assert_eq!(echo, "hello");
///
/// handle.drain();
/// running.join().expect("the server does not panic")?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Server {
    config: Config,
    sockets: Sockets,
    #[cfg(feature = "daemon")]
    monitor: Option<TcpListener>,
    poll: Poll,
    shutdown: Shutdown,
    stats: Arc<Stats>,
}

impl Server {
    /// Checks `config` and binds its sockets.
    ///
    /// # Errors
    ///
    /// If the config is invalid, or an address cannot be bound. The error says what to do.
    pub fn bind(config: Config) -> Result<Server, Error> {
        // The sockets come last: once clients can connect, signals are handled.
        Server::set_up(config, |config| Ok(sockets::bind(config)?))
    }

    /// Takes over sockets that were bound elsewhere, such as by a service manager: TCP listeners and UDP
    /// sockets, over IPv4 or IPv6, in any order and number. `port`, `bind`, `transport` and
    /// `reuse_port` of the config do not matter. If another process keeps them open, see
    /// [`Config::hand_over`].
    ///
    /// ```
    /// use std::net::{TcpListener, UdpSocket};
    /// use evecho::{Config, Server};
    ///
    /// let listener = TcpListener::bind("127.0.0.1:0")?;
    /// let socket = UdpSocket::bind("127.0.0.1:0")?;
    /// let server = Server::adopt(Config::default(), [listener.into(), socket.into()])?;
    /// assert_eq!(server.local_addrs().len(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`bind`](Server::bind); and if one is no such socket, is not bound or is connected.
    pub fn adopt(
        config: Config,
        sockets: impl IntoIterator<Item = OwnedFd>,
    ) -> Result<Server, Error> {
        Server::set_up(config, |config| {
            let sockets = sockets::adopt(config, sockets)?;
            config.transport = match (sockets.listeners.is_empty(), sockets.datagrams.is_empty()) {
                (false, false) => Transport::Both,
                (false, true) => Transport::Tcp,
                (true, false) => Transport::Udp,
                (true, true) => return Err(AdoptError::new(0, "there is none", None).into()),
            };
            // The transports were not known before.
            config.check()?;
            Ok(sockets)
        })
    }

    fn set_up(
        mut config: Config,
        sockets: impl FnOnce(&mut Config) -> Result<Sockets, Error>,
    ) -> Result<Server, Error> {
        config.check()?;
        config.impairments.seed.get_or_insert_with(random::draw);
        let stats = Arc::new(Stats::default());
        let poll = Poll::new().map_err(Error::Poll)?;
        let shutdown = Shutdown::new(&poll, &config, Arc::clone(&stats)).map_err(Error::Poll)?;
        let sockets = sockets(&mut config)?;
        #[cfg(feature = "daemon")]
        let monitor = config.metrics.map(sockets::bind_monitor).transpose()?;
        Ok(Server {
            config,
            sockets,
            #[cfg(feature = "daemon")]
            monitor,
            poll,
            shutdown,
            stats,
        })
    }

    /// The addresses that are bound, TCP before UDP. One that both have is listed once.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        let tcp = self.sockets.listeners.iter().filter_map(|socket| socket.local_addr().ok());
        let udp = self.sockets.datagrams.iter().filter_map(|socket| socket.local_addr().ok());
        let mut seen = HashSet::new();
        tcp.chain(udp).filter(|&address| seen.insert(address)).collect()
    }

    /// The address of the port for monitors: [`Config::metrics`], with the port that was picked.
    #[cfg(feature = "daemon")]
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.monitor.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// A handle that stops the server from another thread, or from its service.
    pub fn handle(&self) -> Handle {
        self.shutdown.handle()
    }

    /// Serves with the service that the config names, on this thread, until a [`Handle`] stops it, or a
    /// signal with [`Config::signals`]. When it returns, the sockets are closed, its threads have ended,
    /// and the process has its signals back.
    ///
    /// # Errors
    ///
    /// If the server itself cannot go on, such as when the system refuses to poll. Nothing that a peer
    /// does is an error of the server.
    pub fn run(self) -> Result<(), Error> {
        match self.config.service {
            ServiceKind::Echo => self.run_with(Echo),
            ServiceKind::Upper => self.run_with(Upper::default()),
            ServiceKind::Who => {
                let Config { protocol, ref name, .. } = self.config;
                let who = Who::new(protocol, &sys::host_name(), std::process::id(), name.as_ref());
                self.run_with(who)
            }
        }
    }

    /// Serves with a service of yours: one clone for each TCP connection, and for each datagram.
    ///
    /// # Errors
    ///
    /// As [`run`](Server::run).
    ///
    /// # Panics
    ///
    /// If `clone` panics. A panic of a service does not end the server: it ends that connection, and is
    /// logged and counted.
    pub fn run_with<V: Service + Clone + Send + 'static>(self, service: V) -> Result<(), Error> {
        self.run_each(move || service.clone())
    }

    /// Serves with services of yours: `make_service` is called for each TCP connection and for each datagram. A
    /// service need be neither `Clone` nor `Send`, and can be a `Box<dyn Service>`.
    ///
    /// # Errors
    ///
    /// As [`run`](Server::run).
    ///
    /// # Panics
    ///
    /// If `make_service` panics. A panic of a service does not end the server: it ends that connection, and is
    /// logged and counted.
    pub fn run_each<V, F>(mut self, make_service: F) -> Result<(), Error>
    where
        V: Service + 'static,
        F: FnMut() -> V + Clone + Send + 'static,
    {
        self.announce();
        let stats = Arc::clone(&self.stats);
        match self.config.design {
            Design::EventLoop => event_loop::run(self, make_service),
            Design::Threaded => threaded::run(self, make_service),
            Design::Iterative => iterative::run(self, make_service),
        }
        .map_err(Error::Run)?;
        let stats = stats.snapshot();
        stats.log(module_path!(), "stopped", format_args!("stopped: {stats}"));
        Ok(())
    }

    /// Logs the first lines, and keeps the status for the service manager.
    fn announce(&mut self) {
        announce::impairments(&self.config);
        self.shutdown.set_status(announce::listening(&self.config, &self.local_addrs()));
        #[cfg(feature = "daemon")]
        if let Some(address) = self.metrics_addr() {
            announce::monitoring(address);
        }
        announce::reduced_limits(&self.config);
    }

    /// The guard of the ports of the config, and of our own.
    fn guard(&self) -> Guard {
        let own = self.sockets.datagrams.iter().filter_map(|socket| socket.local_addr().ok());
        let mut ports = self.config.limits.guard_ports.ports().to_vec();
        ports.extend(own.map(|address| address.port()));
        Guard::new(ports, self.config.limits.udp_rate)
    }
}
