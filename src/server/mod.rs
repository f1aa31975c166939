//! The server: bind or adopt sockets, take a handle, run.

mod admission;
mod announce;
mod blocking;
mod budget;
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
mod reach;
mod ready;
mod running;
mod shutdown;
#[cfg(any(test, fuzzing))]
pub(crate) mod simulation;
pub(crate) mod sockets;
mod threaded;
mod udp;

pub use running::RunningServer;
pub use shutdown::Handle;

use std::net::SocketAddr;
#[cfg(feature = "daemon")]
use std::net::TcpListener;
use std::sync::Arc;

use mio::Poll;
use socket2::SockRef;

use self::admission::Rules;
use self::guard::Guard;
use self::reach::Local;
use self::shutdown::Shutdown;
use self::sockets::Sockets;
use crate::config::{Config, Design};
#[cfg(feature = "daemon")]
use crate::error::BindError;
use crate::error::{AdoptError, Error, Transport};
use crate::protocol::{Echo, Service};
use crate::random;
use crate::stats::Stats;
use crate::sys::OwnedFd;
use crate::sys::cause::{self, Call};

/// A server with bound sockets. Clients that connect wait in the backlog until it runs.
///
/// ```
/// use std::io::{Read, Write};
/// use evecho::{Config, Server};
///
/// let server = Server::bind(Config::loopback())?.spawn()?;
///
/// let mut client = std::net::TcpStream::connect(server.local_addrs()[0])?;
/// client.write_all(b"hello")?;
/// client.shutdown(std::net::Shutdown::Write)?;
/// let mut echo = String::new();
/// client.read_to_string(&mut echo)?;
/// assert_eq!(echo, "hello");
///
/// assert_eq!(server.stop()?.closed_by_peer, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Server {
    config: Config,
    sockets: Sockets,
    /// The addresses of the sockets, and which clients can reach them.
    addresses: Vec<SocketAddr>,
    reach: &'static str,
    #[cfg(feature = "daemon")]
    monitor: Option<Result<TcpListener, BindError>>,
    poll: Poll,
    shutdown: Shutdown,
    stats: Arc<Stats>,
}

/// The only transport of adopted sockets; none if they have both.
fn only_transport(tcp: bool, udp: bool) -> Result<Option<Transport>, AdoptError> {
    match (tcp, udp) {
        (true, true) => Ok(None),
        (true, false) => Ok(Some(Transport::Tcp)),
        (false, true) => Ok(Some(Transport::Udp)),
        (false, false) => Err(AdoptError::new(0, "there is none", None)),
    }
}

/// What a server would serve: see [`Server::preview`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Preview {
    /// The addresses; port 0 stands for a free one.
    pub addresses: Vec<SocketAddr>,
    /// Which clients can reach these addresses, in words.
    pub reach: &'static str,
    /// Which clients can reach the port for monitors, if there is one.
    #[cfg(feature = "daemon")]
    pub metrics_reach: Option<&'static str>,
    /// The only transport that is served; none if both are.
    pub transport: Option<Transport>,
    /// The most TCP connections at a time, as the limits on this process are now.
    pub max_connections: usize,
    /// [`Limits::max_buffered`](crate::Limits::max_buffered), as the limits on this process are now.
    pub max_buffered: usize,
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
            let Sockets { listeners, datagrams, .. } = &sockets;
            config.transport = only_transport(!listeners.is_empty(), !datagrams.is_empty())?;
            // The transports were not known before.
            config.check()?;
            Ok(sockets)
        })
    }

    /// Checks `config` as [`bind`](Server::bind) does or, if there are `inherited` sockets, as
    /// [`adopt`](Server::adopt). Binds nothing, and changes no socket: whether addresses are there and
    /// ports are free, only binding tells.
    ///
    /// ```
    /// use evecho::{Config, Server};
    ///
    /// let preview = Server::preview(Config::default(), &[])?;
    /// assert_eq!(preview.addresses[0].port(), 12000);
    /// # Ok::<(), evecho::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As the other two, apart from what only binding tells.
    pub fn preview(mut config: Config, inherited: &[OwnedFd]) -> Result<Preview, Error> {
        config.check()?;
        let mut locals = sockets::planned(&config);
        if !inherited.is_empty() {
            let inspect = |(index, fd)| sockets::inspect(index, &SockRef::from(fd));
            let sockets: Result<Vec<_>, _> = inherited.iter().enumerate().map(inspect).collect();
            let sockets = sockets?;
            let has = |transport| sockets.iter().any(|socket| socket.0 == transport);
            config.transport = only_transport(has(Transport::Tcp), has(Transport::Udp))?;
            config.check()?;
            locals = inherited.iter().filter_map(Local::of).collect();
        }
        announce::reduced_limits(&config);
        let Rules { max_connections, max_buffered, .. } = Rules::of(&config);
        Ok(Preview {
            addresses: reach::addresses(&locals),
            reach: reach::reach(&locals),
            #[cfg(feature = "daemon")]
            metrics_reach: config.metrics.map(|at| reach::reach(&[Local::everything(at)])),
            transport: config.transport,
            max_connections,
            max_buffered,
        })
    }

    fn set_up(
        mut config: Config,
        sockets: impl FnOnce(&mut Config) -> Result<Sockets, Error>,
    ) -> Result<Server, Error> {
        config.check()?;
        config.impairments.seed.get_or_insert_with(random::draw);
        let stats = Arc::new(Stats::default());
        let failed = |error| Error::Setup(cause::explained(Call::Watch, error));
        let poll = Poll::new().map_err(failed)?;
        let shutdown = Shutdown::new(&poll, &config, Arc::clone(&stats)).map_err(failed)?;
        let sockets = sockets(&mut config)?;
        let locals: Vec<_> = sockets.each().filter_map(Local::of).collect();
        #[cfg(feature = "daemon")]
        let monitor = config.metrics.map(|address| sockets::bind_monitor(address, &sockets));
        Ok(Server {
            config,
            sockets,
            addresses: reach::addresses(&locals),
            reach: reach::reach(&locals),
            #[cfg(feature = "daemon")]
            monitor,
            poll,
            shutdown,
            stats,
        })
    }

    /// The addresses that are bound, TCP before UDP. One that both have is listed once.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.addresses.clone()
    }

    /// The address of the port for monitors: [`Config::metrics`], with the port that was picked. None where
    /// it cannot be bound.
    #[cfg(feature = "daemon")]
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.monitor.as_ref()?.as_ref().ok()?.local_addr().ok()
    }

    /// A handle that stops the server from another thread, or from its service.
    pub fn handle(&self) -> Handle {
        self.shutdown.handle()
    }

    /// Sends all bytes back ([`Echo`]), on this thread, until a [`Handle`] stops the server, or a signal
    /// with [`Config::signals`]. When it returns, the sockets are closed, its threads have ended, and the
    /// process has its signals back.
    ///
    /// # Errors
    ///
    /// If the server itself cannot go on, such as when the system refuses to poll, or when all of its sockets
    /// are gone. Nothing that a peer does is an error of the server.
    pub fn run(self) -> Result<(), Error> {
        self.run_with(Echo)
    }

    /// Serves with another service: one clone for each TCP connection, and for each datagram.
    ///
    /// # Errors
    ///
    /// As [`run`](Server::run).
    ///
    /// # Panics
    ///
    /// If `clone` panics before the server serves. After that, a panic of a service or of `clone` ends its
    /// conversation alone, and is logged and counted.
    pub fn run_with<V: Service + Clone + Send + 'static>(self, service: V) -> Result<(), Error> {
        self.run_each(move || service.clone())
    }

    /// Serves with other services: `make_service` is called for each TCP connection and for each datagram. A
    /// service need be neither `Clone` nor `Send`, and can be a `Box<dyn Service>`.
    ///
    /// # Errors
    ///
    /// As [`run`](Server::run).
    ///
    /// # Panics
    ///
    /// If the clone of `make_service` panics before the server serves. After that, a panic of a service or of
    /// `make_service` ends its conversation alone, and is logged and counted.
    pub fn run_each<V, F>(mut self, make_service: F) -> Result<(), Error>
    where
        V: Service + 'static,
        F: FnMut() -> V + Clone + Send + 'static,
    {
        self.shutdown.watch(&self.sockets, &self.poll);
        let stats = Arc::clone(&self.stats);
        match self.config.design {
            Design::EventLoop => event_loop::run(self, make_service),
            Design::Threaded => threaded::run(self, make_service),
            Design::Iterative => iterative::run(self, make_service),
        }
        .map_err(|error| Error::Run(cause::explained(Call::Watch, error)))?;
        let stats = stats.snapshot();
        stats.log(module_path!(), "stopped", format_args!("stopped: {stats}"));
        Ok(())
    }

    /// Runs the server on a thread of its own, until what this returns is dropped, a [`Handle`] stops it, or
    /// a signal with [`Config::signals`].
    ///
    /// ```
    /// # use evecho::{Config, Server};
    /// let server = Server::bind(Config::loopback())?.spawn()?;
    /// let client = std::net::TcpStream::connect(server.local_addrs()[0])?;
    /// drop(server); // does not wait for the client
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If the system refuses a thread. Other errors of [`run`](Server::run) come from
    /// [`RunningServer::join`].
    pub fn spawn(self) -> Result<RunningServer, Error> {
        RunningServer::spawn(self, Server::run)
    }

    /// As [`spawn`](Server::spawn), with the service of [`run_with`](Server::run_with).
    ///
    /// # Errors
    ///
    /// As [`spawn`](Server::spawn).
    pub fn spawn_with<V>(self, service: V) -> Result<RunningServer, Error>
    where
        V: Service + Clone + Send + 'static,
    {
        RunningServer::spawn(self, |server| server.run_with(service))
    }

    /// As [`spawn`](Server::spawn), with the services of [`run_each`](Server::run_each).
    ///
    /// # Errors
    ///
    /// As [`spawn`](Server::spawn).
    pub fn spawn_each<V, F>(self, make_service: F) -> Result<RunningServer, Error>
    where
        V: Service + 'static,
        F: FnMut() -> V + Clone + Send + 'static,
    {
        RunningServer::spawn(self, |server| server.run_each(make_service))
    }

    /// The guard of the ports of the config, and of our own.
    fn guard(&self) -> Guard {
        let own = self.sockets.datagrams.iter().filter_map(|socket| socket.local_addr().ok());
        let mut ports = self.config.limits.guard_ports.ports().to_vec();
        ports.extend(own.map(|address| address.port()));
        Guard::new(ports, self.config.limits.udp_rate)
    }
}
