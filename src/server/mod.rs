//! The server: bind, ask where it listens, take a handle, run.

mod admission;
mod blocking;
mod busy_poll;
mod clock;
mod connection;
mod connections;
mod control;
mod delayed;
mod event_loop;
mod fate;
mod guard;
mod incidents;
mod iterative;
mod memory;
#[cfg(feature = "daemon")]
mod metrics;
#[cfg(feature = "daemon")]
mod monitor;
mod notify;
mod peer;
mod ready;
#[cfg(any(test, fuzzing))]
pub(crate) mod simulation;
pub(crate) mod sockets;
mod story;
mod threaded;
mod turns;
mod udp;

pub use control::Handle;

use std::net::SocketAddr;
#[cfg(feature = "daemon")]
use std::net::TcpListener;
use std::sync::Arc;

use log::{info, warn};
use mio::Poll;

use self::admission::Rules;
use self::control::Control;
use self::guard::Guard;
use self::sockets::Sockets;
use crate::config::{Config, Design, ServiceKind, Transport};
use crate::error::{AdoptError, Error};
use crate::impairments::Impairments;
use crate::protocol::{Echo, Service, Upper, Who};
use crate::random;
use crate::stats::Stats;
use crate::sys::{self, OwnedFd};
use crate::units;

/// A server whose sockets are bound: clients that connect wait in the backlog until it runs.
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
    control: Control,
    stats: Arc<Stats>,
}

impl Server {
    /// Checks `config` and binds its sockets.
    ///
    /// # Errors
    ///
    /// A sentence that says what is wrong with the config, or which address cannot be bound and what
    /// to do about it.
    pub fn bind(config: Config) -> Result<Server, Error> {
        // The sockets last, since who can connect can also send a signal.
        Server::set_up(config, |config| Ok(sockets::bind(config)?))
    }

    /// Takes over sockets that were bound elsewhere, as by a service manager: TCP listeners and UDP
    /// sockets, over IPv4 or IPv6, in any order and number. `port`, `bind`, `transport` and
    /// `reuse_port` of the config do not matter. Where others keep them open, see
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
    /// As [`bind`](Server::bind); and where one is no such socket, is not bound or is connected.
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
                (true, true) => return Err(AdoptError::no_socket().into()),
            };
            // Some of what is to be served was not known before.
            config.check()?;
            Ok(sockets)
        })
    }

    fn set_up(
        mut config: Config,
        sockets: impl FnOnce(&mut Config) -> Result<Sockets, Error>,
    ) -> Result<Server, Error> {
        config.check()?;
        let Impairments { seed, .. } = &mut config.impairments;
        seed.get_or_insert_with(random::draw);
        let stats = Arc::new(Stats::default());
        let poll = Poll::new().map_err(Error::Poll)?;
        let control = Control::new(&poll, &config, Arc::clone(&stats)).map_err(Error::Poll)?;
        let sockets = sockets(&mut config)?;
        #[cfg(feature = "daemon")]
        let monitor = config.metrics.map(sockets::bind_monitor).transpose()?;
        Ok(Server {
            config,
            sockets,
            #[cfg(feature = "daemon")]
            monitor,
            poll,
            control,
            stats,
        })
    }

    /// The addresses that are bound, TCP before UDP; each once, though both may have it.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        let tcp = self.sockets.listeners.iter().filter_map(|socket| socket.local_addr().ok());
        let udp = self.sockets.datagrams.iter().filter_map(|socket| socket.local_addr().ok());
        let mut addresses = Vec::new();
        for address in tcp.chain(udp) {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        addresses
    }

    /// Where monitors are answered: [`Config::metrics`], with the port that was picked.
    #[cfg(feature = "daemon")]
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.monitor.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// A handle that stops the server from another thread, or from its service.
    pub fn handle(&self) -> Handle {
        self.control.handle()
    }

    /// Serves with the service that the config names, on this thread, until a [`Handle`] stops it, or
    /// a signal where [`Config::signals`] says so. When it returns the sockets are closed, its threads
    /// have ended, and the signals are the process's again.
    ///
    /// # Errors
    ///
    /// Only what ends the server itself, as when the system refuses to poll: nothing that a peer
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

    /// Serves with a service of yours: a clone of it for each TCP connection, and for each datagram.
    ///
    /// # Errors
    ///
    /// As [`run`](Server::run).
    ///
    /// # Panics
    ///
    /// Where `clone` panics. A panic of a service is none of the server's: it ends that conversation,
    /// and is logged and counted.
    pub fn run_with<V: Service + Clone + Send + 'static>(self, service: V) -> Result<(), Error> {
        self.run_each(move || service.clone())
    }

    /// Serves with services of yours: what `make` returns, anew for each TCP connection and for each
    /// datagram. A service need be neither `Clone` nor `Send`, and can be a `Box<dyn Service>`.
    ///
    /// # Errors
    ///
    /// As [`run`](Server::run).
    ///
    /// # Panics
    ///
    /// Where `make` panics. A panic of a service is none of the server's: it ends that conversation,
    /// and is logged and counted.
    pub fn run_each<V, F>(mut self, make: F) -> Result<(), Error>
    where
        V: Service + 'static,
        F: FnMut() -> V + Clone + Send + 'static,
    {
        self.announce();
        let stats = Arc::clone(&self.stats);
        match self.config.design {
            Design::EventLoop => event_loop::run(self, make),
            Design::Threaded => threaded::run(self, make),
            Design::Iterative => iterative::run(self, make),
        }
        .map_err(Error::Run)?;
        let stats = stats.snapshot();
        stats.log(module_path!(), "stopped", format_args!("stopped: {stats}"));
        Ok(())
    }

    /// The first line of the log, and the status: what is bound, and who can reach it.
    fn announce(&mut self) {
        self.announce_impairments();
        let transports = match self.config.transport {
            Transport::Both => "TCP and UDP",
            Transport::Tcp => "TCP",
            Transport::Udp => "UDP",
        };
        let addresses = self.local_addrs();
        let listed: Vec<String> = addresses.iter().map(SocketAddr::to_string).collect();
        let reach = reach(&addresses);
        let status = format!(
            "listening on {} ({transports}, {}), for {reach}",
            listed.join(", "),
            self.config.design
        );
        let separated = listed.join(",");
        info!(
            event = "listening",
            addresses = separated.as_str(),
            transport = transports,
            design:% = self.config.design,
            reach = reach;
            "{status}"
        );
        self.control.set_status(status);
        #[cfg(feature = "daemon")]
        if let Some(address) = self.metrics_addr() {
            let reach = self::reach(&[address]);
            info!(
                event = "monitoring",
                address:%,
                reach = reach;
                "metrics on http://{address}/metrics, health on /livez and /readyz, for {reach}"
            );
        }
        let wanted = self.config.limits.max_buffered;
        let possible = memory::possible(wanted);
        if possible < wanted {
            warn!(
                event = "limit_reduced",
                limit = "max_buffered",
                wanted = wanted,
                possible = possible;
                "the limit on address space lets conversations hold {}, not {} (max_buffered): raise it with ulimit -v",
                units::size(possible as u64),
                units::size(wanted as u64)
            );
        }
        if let Some(wanted) = self.config.limits.max_connections {
            let possible = Rules::of(&self.config).max_connections;
            if possible < wanted.get() {
                warn!(
                    event = "limit_reduced",
                    limit = "max_connections",
                    wanted = wanted,
                    possible = possible;
                    "the limit on open files allows {possible} connections, not {wanted} (`max_connections`): raise it, as with ulimit -n"
                );
            }
        }
    }

    /// Before all else: nobody is to take this server for a good one.
    fn announce_impairments(&self) {
        let impairments = &self.config.impairments;
        let (false, Some(seed)) = (impairments.is_none(), impairments.seed) else { return };
        let hidden = self.config.transport.tcp() && impairments.hidden_by_tcp().next().is_some();
        let tcp = match (hidden, impairments.delay.is_zero()) {
            (false, _) => "",
            (true, true) => "; TCP is served as usual, since it would hide this",
            (true, false) => "; over TCP only the delay, since TCP would hide the rest",
        };
        warn!(
            event = "impaired",
            impairments:% = impairments,
            seed = seed;
            "this server impairs its answers on purpose: {impairments} (seed {seed}){tcp}"
        );
    }
}

/// Who can reach a server on these addresses.
fn reach(addresses: &[SocketAddr]) -> &'static str {
    if addresses.iter().all(|address| address.ip().is_loopback()) {
        "this machine only"
    } else if addresses.iter().any(|address| address.ip().is_unspecified()) {
        "anyone who reaches any address of this machine"
    } else {
        "anyone who reaches these addresses"
    }
}

/// Our own ports, and those of the config.
fn guard_of(config: &Config, sockets: &Sockets) -> Guard {
    let own = sockets.datagrams.iter().filter_map(|socket| socket.local_addr().ok());
    let mut ports = config.limits.guard_ports.ports().to_vec();
    ports.extend(own.map(|address| address.port()));
    Guard::new(ports, config.limits.udp_rate)
}
