//! A place where miners connect, and what holds for those who do.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ipnet::IpNet;
use sluice_mining::Difficulty;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, lookup_host};

use crate::status::ListenerStatus;
use crate::tls::Tls;
use crate::{GatewayConfig, GatewayError};

/// Connections that the system holds for the gateway to take.
const BACKLOG: u32 = 4096;
/// Between probes of a peer that is silent.
const PROBE_EVERY: Duration = Duration::from_secs(15);
/// Probes without an answer that end a connection.
const PROBES: u32 = 4;

/// A listener with settings of its own.
#[derive(Clone, Debug, Default)]
pub struct ListenerConfig {
    /// Name for logs; the address where it is empty.
    pub name: String,
    /// Where to listen, `HOST:PORT`.
    pub listen: String,
    /// Certificate chain and key for TLS, as PEM files.
    pub tls: Option<TlsFiles>,
    /// Load balancers, whose connections begin with a PROXY header.
    pub proxy_from: Vec<IpNet>,
    /// With `proxy_from`: whether others are served, as who they are; otherwise they are refused.
    pub proxy_others: bool,
    /// First difficulty of a session that suggests none; the gateway's where there is none.
    pub difficulty: Option<Difficulty>,
    /// Lowest difficulty to give out; the gateway's where there is none.
    pub min_difficulty: Option<Difficulty>,
    /// Highest difficulty to give out; the gateway's where there is none.
    pub max_difficulty: Option<Difficulty>,
    /// Connections at once; only the gateway's limit where there is none.
    pub max_connections: Option<usize>,
}

/// Where a certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate and those between it and the authority's, PEM.
    pub cert: PathBuf,
    /// The certificate's private key, PEM.
    pub key: PathBuf,
}

impl ListenerConfig {
    /// A listener at `address` with the gateway's settings.
    pub fn plain(address: &str) -> Self {
        Self { listen: address.to_owned(), ..Self::default() }
    }

    /// What holds for sessions that came in here.
    pub(crate) fn session_config(&self, gateway: &GatewayConfig) -> GatewayConfig {
        let mut config = gateway.clone();
        config.min_difficulty = self.min_difficulty.unwrap_or(config.min_difficulty);
        config.max_difficulty = self.max_difficulty.unwrap_or(config.max_difficulty);
        config.difficulty = self.difficulty.unwrap_or_else(|| config.clamp(config.difficulty));
        config
    }
}

/// A listener of a running gateway.
pub(crate) struct Listener {
    pub(crate) name: String,
    /// What holds for its sessions.
    pub(crate) config: GatewayConfig,
    pub(crate) tls: Option<Tls>,
    pub(crate) max_connections: usize,
    pub(crate) connections: AtomicUsize,
    proxy_from: Vec<IpNet>,
    proxy_others: bool,
}

/// What becomes of a connection that comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entrance {
    /// It is a miner's.
    Direct,
    /// It is a load balancer's, and begins with a header.
    Proxied,
    /// It is not from a load balancer, as all must be.
    Refused,
}

impl Listener {
    /// A listener, with its certificate read.
    ///
    /// # Errors
    /// [`GatewayError::Certificate`] if that cannot be used.
    pub(crate) fn new(gateway: &GatewayConfig, listener: &ListenerConfig) -> Result<Self, GatewayError> {
        let failed = |problem| GatewayError::Certificate { name: gateway.name.clone(), problem };
        Ok(Self {
            name: if listener.name.is_empty() { listener.listen.clone() } else { listener.name.clone() },
            config: listener.session_config(gateway),
            tls: listener.tls.clone().map(Tls::open).transpose().map_err(failed)?,
            max_connections: listener.max_connections.unwrap_or(usize::MAX),
            connections: AtomicUsize::new(0),
            proxy_from: listener.proxy_from.clone(),
            proxy_others: listener.proxy_others,
        })
    }

    /// What becomes of a connection from `ip`.
    pub(crate) fn entrance(&self, ip: IpAddr) -> Entrance {
        let ip = ip.to_canonical();
        if self.proxy_from.iter().any(|net| net.contains(&ip)) {
            Entrance::Proxied
        } else if self.proxy_from.is_empty() || self.proxy_others {
            Entrance::Direct
        } else {
            Entrance::Refused
        }
    }

    /// It in numbers.
    pub(crate) fn status(&self) -> ListenerStatus {
        let connections = self.connections.load(Ordering::Relaxed) as u64;
        ListenerStatus { name: self.name.clone(), connections }
    }

    /// Whether it has as many connections as it may have.
    pub(crate) fn is_full(&self) -> bool {
        self.connections.load(Ordering::Relaxed) >= self.max_connections
    }
}

/// Listens at `address`, the first that the name has.
///
/// # Errors
/// [`GatewayError::Listen`] if that cannot be listened on.
pub(crate) async fn listen(config: &GatewayConfig, address: &str) -> Result<std::net::TcpListener, GatewayError> {
    let failed = |error| GatewayError::Listen { name: config.name.clone(), address: address.to_owned(), error };
    let found = lookup_host(address).await.map_err(failed)?.next();
    let found = found.ok_or_else(|| failed(std::io::ErrorKind::AddrNotAvailable.into()))?;
    let listen = || {
        let socket = if found.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // A gateway that starts again must not wait for connections of the one before to be forgotten.
        socket.set_reuseaddr(true)?;
        keep_alive(&SockRef::from(&socket), config.keepalive)?;
        socket.bind(found)?;
        socket.listen(BACKLOG)?.into_std()
    };
    listen().map_err(failed)
}

/// Has the system find dead peers: after `idle` without a byte it probes, and it waits as long for what was sent to be
/// received. Connections have it from their listener, so it costs nothing where they are taken.
fn keep_alive(socket: &SockRef<'_>, idle: Duration) -> std::io::Result<()> {
    if idle.is_zero() {
        return Ok(());
    }
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(idle).with_interval(PROBE_EVERY).with_retries(PROBES))?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(idle + PROBE_EVERY * PROBES))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_mining::Chain;

    #[tokio::test]
    async fn connections_have_the_keepalive_of_their_listener() {
        let config = GatewayConfig::new("g", Chain::Regtest);
        let listener = listen(&config, "127.0.0.1:0").await.unwrap();
        listener.set_nonblocking(false).unwrap();
        let _peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), config.keepalive);
        assert_eq!(
            (socket.tcp_keepalive_interval().unwrap(), socket.tcp_keepalive_retries().unwrap()),
            (PROBE_EVERY, PROBES)
        );
        #[cfg(target_os = "linux")]
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(120)));
    }

    #[test]
    fn load_balancers_are_known_by_their_networks() {
        let gateway = GatewayConfig::new("g", Chain::Regtest);
        let mut config = ListenerConfig::plain("127.0.0.1:0");
        let entrance =
            |config: &ListenerConfig, ip: &str| Listener::new(&gateway, config).unwrap().entrance(ip.parse().unwrap());
        assert_eq!(entrance(&config, "10.0.0.1"), Entrance::Direct);
        config.proxy_from = vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        for from in ["10.0.0.1", "::ffff:10.0.0.1", "fd00::1"] {
            assert_eq!(entrance(&config, from), Entrance::Proxied, "{from}");
        }
        assert_eq!(entrance(&config, "11.0.0.1"), Entrance::Refused);
        config.proxy_others = true;
        assert_eq!(entrance(&config, "11.0.0.1"), Entrance::Direct);
    }

    #[test]
    fn what_a_listener_does_not_say_is_the_gateways() {
        let gateway = GatewayConfig::new("g", Chain::Regtest);
        let mut config = ListenerConfig::plain("127.0.0.1:0");
        assert_eq!(config.session_config(&gateway).difficulty, gateway.difficulty);
        config.min_difficulty = Difficulty::from_integer(65_536);
        let of = config.session_config(&gateway);
        assert_eq!((of.difficulty, of.min_difficulty), (of.min_difficulty, config.min_difficulty.unwrap()));
        assert_eq!(of.max_difficulty, gateway.max_difficulty);
    }
}
