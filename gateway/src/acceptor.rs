//! Taking connections, and handing each to the worker with the fewest.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpSocket, lookup_host};
use tokio::sync::mpsc::Sender;

use crate::shared::Shared;
use crate::status::add;
use crate::{GatewayConfig, GatewayError};

/// Connections that the system holds for the gateway to take.
const BACKLOG: u32 = 4096;
/// Rest after an error of the system, such as too many open files.
const REST: Duration = Duration::from_millis(100);
/// Warnings about refused connections are logged this often at most.
const WARN_EVERY: Duration = Duration::from_secs(1);

/// Listens on all addresses of the settings.
///
/// # Errors
/// [`GatewayError::Listen`] for the first that cannot be listened on.
pub(crate) async fn listen(config: &GatewayConfig) -> Result<Vec<std::net::TcpListener>, GatewayError> {
    let mut listeners = Vec::new();
    for address in &config.listen {
        let failed = |error| GatewayError::Listen { name: config.name.clone(), address: address.clone(), error };
        let found = lookup_host(address).await.map_err(failed)?.next();
        let found = found.ok_or_else(|| failed(std::io::ErrorKind::AddrNotAvailable.into()))?;
        listeners.push(listen_on(found).map_err(failed)?);
    }
    Ok(listeners)
}

fn listen_on(address: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A gateway that starts again must not wait for connections of the one before to be forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}

/// Takes connections.
pub(crate) struct Acceptor {
    shared: Arc<Shared>,
    workers: Vec<Sender<(TcpStream, SocketAddr)>>,
    warned: Option<Instant>,
}

impl Acceptor {
    /// Hands connections to `workers`.
    pub(crate) fn new(shared: Arc<Shared>, workers: Vec<Sender<(TcpStream, SocketAddr)>>) -> Self {
        Self { shared, workers, warned: None }
    }

    /// Takes connections from `listener` for ever.
    pub(crate) async fn run(mut self, listener: TcpListener) {
        loop {
            let taken = listener.accept().await.and_then(|(stream, peer)| {
                stream.set_nodelay(true)?;
                Ok((stream.into_std()?, peer))
            });
            match taken {
                Ok((stream, peer)) => self.hand_over(stream, peer).await,
                Err(error) => {
                    add(&self.shared.accept_errors, 1);
                    if self.may_warn() {
                        tracing::warn!(%error, "cannot take a connection; are there enough file descriptors?");
                    }
                    tokio::time::sleep(REST).await;
                }
            }
        }
    }

    async fn hand_over(&mut self, stream: TcpStream, peer: SocketAddr) {
        let counts = self.shared.workers.iter().map(|worker| worker.connections.load(Ordering::Relaxed));
        let total: usize = counts.clone().sum();
        if total >= self.shared.config.max_connections {
            add(&self.shared.connections_refused, 1);
            if self.may_warn() {
                tracing::warn!(%peer, total, "a connection was refused: max_connections are there already");
            }
            return;
        }
        let Some((worker, _)) = counts.enumerate().min_by_key(|(_, count)| *count) else { return };
        let (Some(counters), Some(sender)) = (self.shared.workers.get(worker), self.workers.get(worker)) else {
            return;
        };
        add(&self.shared.connections_total, 1);
        counters.connections.fetch_add(1, Ordering::Relaxed);
        if sender.send((stream, peer)).await.is_err() {
            counters.connections.fetch_sub(1, Ordering::Relaxed);
            tracing::debug!(%peer, "a connection after the stop");
        }
    }

    fn may_warn(&mut self) -> bool {
        let due = self.warned.is_none_or(|warned| warned.elapsed() >= WARN_EVERY);
        if due {
            self.warned = Some(Instant::now());
        }
        due
    }
}
