//! The configuration of a server: plain values with defaults, checked once.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::address::BindAddress;
use crate::error::{ConfigError, ParseError, Setting, Transport};
use crate::impairments::Impairments;
use crate::protocol::{Framing, Protocol};
use crate::sys::EVERYWHERE;

/// The default port.
pub(crate) const DEFAULT_PORT: u16 = 12000;

/// The configuration of a [`Server`](crate::Server).
///
/// ```
/// use evecho::{Config, Transport};
///
/// let mut config = Config::default();
/// config.port = 0;
/// config.transport = Some(Transport::Tcp);
/// assert!(config.bind.is_empty());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Config {
    /// The design of the server.
    pub design: Design,
    /// The port of each address that has no port of its own; 0 picks a free port, the same for TCP and
    /// UDP. Default: 12000.
    pub port: u16,
    /// The addresses to bind. Default: none, which is the same as `::`; on macOS and FreeBSD it is `::` and 0.0.0.0,
    /// since a dual-stack socket does not set the hop limit of IPv4 there.
    ///
    /// `::` is every address, IPv6 and IPv4, through one dual-stack socket, whatever net.ipv6.bindv6only
    /// says. It is for IPv6 alone beside an IPv4 address on the same port; and it is 0.0.0.0 where this
    /// machine or a sandbox has no IPv6. An IPv4-mapped address is its IPv4 address.
    pub bind: Vec<BindAddress>,
    /// The only transport that is served. Default: none, which is TCP and UDP on the same port.
    pub transport: Option<Transport>,
    /// Framing, the longest frame, and whether a connection ends after one message.
    pub protocol: Protocol,
    /// Limits on what clients may do.
    pub limits: Limits,
    /// How replies are made worse on purpose. Default: not at all.
    pub impairments: Impairments,
    /// How many connections may wait to be accepted, as far as the system allows
    /// (net.core.somaxconn). Default: 4096.
    pub backlog: u32,
    /// Whether several processes of one user may share the port (SO_REUSEPORT). When one ends,
    /// connections that it has not accepted are reset, unless net.ipv4.tcp_migrate_req lets them move
    /// to another (Linux 5.14). Default: no.
    pub reuse_port: bool,
    /// Whether another process, such as a service manager, keeps the sockets open and hands them to the
    /// next server. A drain then leaves clients in the backlog and datagrams in the queue to that
    /// server. Otherwise they would be lost, so the drain serves them first. Default: no.
    pub hand_over: bool,
    /// How long the event loop polls before it sleeps, while polling finds new messages: at most 10 ms; zero
    /// switches it off. Default: 50 µs.
    pub busy_poll: Duration,
    /// Whether UDP segmentation offload is used where the kernel has it. Default: yes.
    pub udp_offload: bool,
    /// Whether the server takes signals for itself, from being bound until it ends or is dropped:
    /// SIGTERM, SIGINT and SIGHUP drain it, a second one of them ends it at once, SIGUSR1 logs all
    /// counters. SIGHUP and SIGINT are left alone where they are ignored (nohup(1), a job in the background of
    /// a script), which only Linux tells, and without a terminal SIGHUP only logs that nothing is reloaded. Default:
    /// no, since signals belong to the process.
    ///
    /// Afterwards a signal does what it did before: a handler of yours that was there is still
    /// called, and where there was none the signal ends the process again. Do not install a handler
    /// for one of these later: it would be called, and the process would end all the same.
    ///
    /// ```no_run
    /// use evecho::{Config, Server};
    ///
    /// let mut config = Config::default();
    /// config.signals = true;
    /// Server::bind(config)?.run()?; // returns after Ctrl-C, once connections have finished
    /// # Ok::<(), evecho::Error>(())
    /// ```
    ///
    /// A program with handlers of its own leaves this off, and has one of them call
    /// [`Handle::drain`](crate::Handle::drain), from a thread: a signal handler must not.
    pub signals: bool,
    /// The service manager that hears when the server is ready, when it stops and, with a watchdog,
    /// that it is alive. Default: none, whatever the environment says.
    pub service_manager: Option<ServiceManager>,
    /// The address of the port for monitors (`::` as in [`bind`](Config::bind)), which speaks HTTP: `/metrics` is
    /// text for Prometheus, `/livez`
    /// and `/readyz` are about health. Port 0 picks a free one:
    /// [`Server::metrics_addr`](crate::Server::metrics_addr). Only [`Design::EventLoop`] has this port.
    /// Where it cannot be bound, this is logged, and clients are served all the same. Needs the feature
    /// `daemon`. Default: none.
    #[cfg(feature = "daemon")]
    pub metrics: Option<SocketAddr>,
}

impl Config {
    /// The default on a free port of 127.0.0.1, as a test wants it.
    pub fn loopback() -> Self {
        Config { port: 0, bind: vec![Ipv4Addr::LOCALHOST.into()], ..Config::default() }
    }
}

impl Default for Config {
    fn default() -> Self {
        Config {
            design: Design::default(),
            port: DEFAULT_PORT,
            bind: Vec::new(),
            transport: None,
            protocol: Protocol::default(),
            limits: Limits::default(),
            impairments: Impairments::default(),
            backlog: 4096,
            reuse_port: false,
            hand_over: false,
            busy_poll: Duration::from_micros(50),
            udp_offload: true,
            signals: false,
            service_manager: None,
            #[cfg(feature = "daemon")]
            metrics: None,
        }
    }
}

/// The design of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Design {
    /// One thread, one poll loop, all sockets non-blocking.
    #[default]
    EventLoop,
    /// A thread for each connection, and one for UDP.
    ///
    /// The service runs on the connection's thread, which has a stack of 128 KiB instead of the usual
    /// 2 MiB. A service that needs more overflows it, which ends the process.
    Threaded,
    /// One client at a time, while the others wait; and a thread for UDP.
    Iterative,
}

impl fmt::Display for Design {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Design::EventLoop => "event-loop",
            Design::Threaded => "threaded",
            Design::Iterative => "iterative",
        })
    }
}

/// A service manager that a server notifies (sd_notify(3)): see
/// [`Config::service_manager`](crate::Config::service_manager).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct ServiceManager {
    /// The path of its datagram socket; an `@` in front means a name in the abstract namespace
    /// (unix(7)).
    pub socket: PathBuf,
    /// The time without a notification after which it restarts the server. Default: none.
    pub watchdog: Option<Duration>,
}

impl ServiceManager {
    /// The service manager that listens on this socket.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        ServiceManager { socket: socket.into(), watchdog: None }
    }

    /// The service manager of this process, if there is one: NOTIFY_SOCKET, WATCHDOG_USEC and
    /// WATCHDOG_PID of the environment.
    #[cfg(feature = "daemon")]
    pub fn from_env() -> Option<Self> {
        let socket = std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty())?;
        let watchdog = sd_notify::watchdog_enabled().filter(|time| !time.is_zero());
        Some(ServiceManager { watchdog, ..ServiceManager::new(socket) })
    }
}

/// Limits on what clients may do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Limits {
    /// The most TCP connections at a time; further ones wait in the backlog. Kept below the limit on
    /// open files. Default: as many as that allows.
    pub max_connections: Option<NonZeroUsize>,
    /// Descriptors that connections leave free for the rest of the process, whatever `max_connections`
    /// says. Those that are open when the server starts, and those of monitors, do not count. Default:
    /// 32.
    pub spare_files: usize,
    /// The most TCP connections at a time from one source; further ones are closed. Default: no limit.
    ///
    /// A source is an IPv4 address, also one that 6to4, Teredo or NAT64 embeds in an IPv6 address; a
    /// link-local IPv6 address; or else an IPv6 /64.
    pub per_source_connections: Option<NonZeroUsize>,
    /// The time without any bytes moved after which a connection is closed. Default: none.
    pub idle_timeout: Option<Duration>,
    /// The time from the request to stop to the start of the drain. All clients are still served, new
    /// ones too, but the server is [not ready](crate::Handle::is_ready): this is for load balancers that
    /// take a while to notice. Default: zero.
    pub drain_delay: Duration,
    /// The longest time of the drain. Open connections may go on until its last quarter (at most 2 s);
    /// then the server closes its side of them, and at the end it cuts off those that are left. Zero
    /// cuts them off at once. A service that computes for longer delays the end. Default: 8 s, less than
    /// the 10 s after which container engines kill.
    pub drain_timeout: Duration,
    /// The most bytes that all TCP connections of the event loop hold together: replies that their peers
    /// have not read yet, and frames that are not complete. (In the other designs each client has a buffer
    /// of 16 KiB and at most one frame.) Near this limit reads get smaller, and a connection that
    /// needs more when nothing is left is closed. At least 1 MiB, and with a framing four times
    /// [`Protocol::max_frame`]. Default: 64 MiB.
    pub max_buffered: usize,
    /// The most replies per second to datagrams from one remote source; loopback is not limited.
    /// Default: 10,000.
    pub udp_rate: Option<NonZeroU32>,
    /// Source ports whose datagrams get no reply, besides our own ports.
    pub guard_ports: GuardPorts,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_connections: None,
            spare_files: 32,
            per_source_connections: None,
            idle_timeout: None,
            drain_delay: Duration::ZERO,
            drain_timeout: Duration::from_secs(8),
            max_buffered: 64 << 20,
            udp_rate: NonZeroU32::new(10_000),
            guard_ports: GuardPorts::default(),
        }
    }
}

/// Source ports whose datagrams get no reply. Some of these services reply to anything, so that two
/// servers would reply to each other without end (CERT CA-1996-01). Others would take our reply for the
/// reply to a request of theirs.
///
/// The default is no port (0), echo (7), daytime (13), qotd (17), chargen (19), time (37), domain
/// (53), tftp (69) and ntp (123).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GuardPorts(Vec<u16>);

impl GuardPorts {
    /// The ports, in the order in which they were given.
    pub fn ports(&self) -> &[u16] {
        &self.0
    }
}

impl FromIterator<u16> for GuardPorts {
    fn from_iter<T: IntoIterator<Item = u16>>(ports: T) -> Self {
        GuardPorts(ports.into_iter().collect())
    }
}

impl Default for GuardPorts {
    fn default() -> Self {
        GuardPorts(vec![0, 7, 13, 17, 19, 37, 53, 69, 123])
    }
}

/// Reads `7,19,53`, or `none`.
impl FromStr for GuardPorts {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        if text == "none" {
            return Ok(GuardPorts(Vec::new()));
        }
        let port = |port: &str| {
            port.trim().parse().map_err(|_| {
                ParseError::new(format!(
                    "'{port}' is not a port; ports are 0 to 65535, separated by commas, or 'none'"
                ))
            })
        };
        text.split(',').map(port).collect::<Result<_, _>>().map(GuardPorts)
    }
}

impl fmt::Display for GuardPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        let ports: Vec<String> = self.0.iter().map(u16::to_string).collect();
        f.write_str(&ports.join(","))
    }
}

/// The longest that [`Protocol::max_frame`] may be.
pub(crate) const MAX_MAX_FRAME: u32 = 16 << 20;
/// The least that [`Limits::max_buffered`] may be.
pub(crate) const MIN_MAX_BUFFERED: usize = 1 << 20;
/// The longest that [`Config::busy_poll`] may be.
pub(crate) const MAX_BUSY_POLL: Duration = Duration::from_millis(10);

/// The most monitors that are connected at a time: see [`Config::metrics`].
#[cfg(feature = "daemon")]
pub(crate) const MONITORS: usize = 16;

impl Config {
    /// Descriptors that connections leave free: [`Limits::spare_files`], and those of monitors.
    pub(crate) fn spare_files(&self) -> usize {
        let spare = self.limits.spare_files;
        #[cfg(feature = "daemon")]
        let spare = spare.saturating_add(self.metrics.map_or(0, |_| MONITORS));
        spare
    }

    /// Whether this transport is served.
    pub(crate) fn serves(&self, transport: Transport) -> bool {
        self.transport.is_none_or(|only| only == transport)
    }

    /// The addresses that a server binds; port 0 stands for a free one.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        let with_port = |one: &BindAddress| one.with_port(one.port.unwrap_or(self.port));
        self.bound().iter().map(with_port).collect()
    }

    /// What `bind` says, or all addresses of this machine.
    pub(crate) fn bound(&self) -> Cow<'_, [BindAddress]> {
        let everywhere = || EVERYWHERE.iter().map(|&ip| ip.into()).collect();
        if self.bind.is_empty() { Cow::Owned(everywhere()) } else { Cow::Borrowed(&self.bind) }
    }

    /// Checks what the types cannot say.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        self.check_limits()?;
        #[cfg(feature = "daemon")]
        if self.metrics.is_some() && self.design != Design::EventLoop {
            let reason = format!(
                "only the event loop serves metrics, not the {} design; choose one of them",
                self.design
            );
            return Err(ConfigError::new(Setting::Metrics, reason));
        }
        self.check_impairments()?;
        let addresses = self.addresses();
        #[cfg(feature = "daemon")]
        check_unicast(Setting::Metrics, self.metrics.as_slice())?;
        check_unicast(Setting::Bind, &addresses)?;
        for (index, address) in addresses.iter().enumerate() {
            if addresses[..index].contains(address) {
                let reason = format!("{address} is given twice; give it once");
                return Err(ConfigError::new(Setting::Bind, reason));
            }
        }
        Ok(())
    }

    fn check_limits(&self) -> Result<(), ConfigError> {
        let Config { protocol: Protocol { max_frame, framing, .. }, busy_poll, .. } = *self;
        let max_buffered = self.limits.max_buffered;
        let least = match framing {
            Framing::Raw => MIN_MAX_BUFFERED,
            _ => MIN_MAX_BUFFERED.max(4 * max_frame as usize),
        };
        let (setting, reason) = if !(1..=MAX_MAX_FRAME).contains(&max_frame) {
            (Setting::MaxFrame, format!("{max_frame} bytes; give 1 to {MAX_MAX_FRAME}"))
        } else if max_buffered < least {
            let reason = format!(
                "{max_buffered} bytes are too few for one connection; give at least {least}"
            );
            (Setting::MaxBuffered, reason)
        } else if busy_poll > MAX_BUSY_POLL {
            let reason =
                format!("{busy_poll:?} would only waste CPU; give at most {MAX_BUSY_POLL:?}");
            (Setting::BusyPoll, reason)
        } else {
            return Ok(());
        };
        Err(ConfigError::new(setting, reason))
    }

    fn check_impairments(&self) -> Result<(), ConfigError> {
        self.impairments.check()?;
        if !self.serves(Transport::Udp)
            && let Some(setting) = self.impairments.hidden_by_tcp().next()
        {
            return Err(ConfigError::new(
                setting,
                "only for datagrams, since TCP sends again what is lost or damaged and restores the order: its clients would only see a delay; serve UDP, or give a delay",
            ));
        }
        if self.serves(Transport::Tcp)
            && self.design != Design::EventLoop
            && !self.impairments.delay.is_zero()
        {
            let reason = format!(
                "only for the event loop, or for UDP alone: a thread of the {} design that holds back a reply cannot read on",
                self.design
            );
            return Err(ConfigError::new(Setting::Delay, reason));
        }
        Ok(())
    }
}

/// Refuses addresses that no client is served at: none connects to a group, and what is sent to one has no
/// reply.
fn check_unicast(setting: Setting, addresses: &[SocketAddr]) -> Result<(), ConfigError> {
    let group = addresses.iter().find(|address| match address.ip().to_canonical() {
        IpAddr::V4(ip) => ip.is_multicast() || ip.is_broadcast(),
        ip => ip.is_multicast(),
    });
    group.map_or(Ok(()), |address| {
        let reason = format!(
            "{address} is a multicast or broadcast address, at which no client is served; choose an address of this machine"
        );
        Err(ConfigError::new(setting, reason))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guard_ports_read_as_they_print() {
        let ports: GuardPorts = "7, 19,65535".parse().unwrap();
        assert_eq!(ports, GuardPorts(vec![7, 19, 65535]));
        assert_eq!(ports.to_string(), "7,19,65535");
        assert_eq!("none".parse(), Ok(GuardPorts(vec![])));
        assert_eq!(GuardPorts(vec![]).to_string(), "none");
        let default = GuardPorts::default();
        assert_eq!(default.to_string().parse(), Ok(default));
        for bad in ["", "7,", "65536", "-1", "echo"] {
            assert!(bad.parse::<GuardPorts>().is_err(), "{bad}");
        }
    }

    #[cfg(feature = "daemon")]
    #[test]
    fn monitors_have_descriptors_of_their_own_and_need_the_event_loop() {
        let metrics = Some(([127, 0, 0, 1], 0).into());
        let mut config = Config { metrics, ..Config::default() };
        assert_eq!((config.check(), config.spare_files()), (Ok(()), 32 + MONITORS));
        for design in [Design::Threaded, Design::Iterative] {
            config.design = design;
            let error = config.check().unwrap_err();
            assert_eq!(error.setting(), Setting::Metrics);
            assert!(error.reason().contains(&design.to_string()), "{error}");
        }
    }

    #[test]
    fn an_invalid_configuration_names_the_setting() {
        assert_eq!(Config::default().check(), Ok(()));
        let twice = Config { bind: vec![Ipv4Addr::LOCALHOST.into(); 2], ..Config::default() };
        let slow = Config { busy_poll: Duration::from_secs(1), ..Config::default() };
        let protocol = Protocol { max_frame: 0, ..Protocol::default() };
        let small = Config { protocol, ..Config::default() };
        for (config, setting) in
            [(&twice, Setting::Bind), (&slow, Setting::BusyPoll), (&small, Setting::MaxFrame)]
        {
            assert_eq!(config.check().unwrap_err().setting(), setting);
        }
        assert_eq!(
            small.check().unwrap_err().to_string(),
            "invalid configuration: `max_frame`: 0 bytes; give 1 to 16777216"
        );
    }
}
