//! Taking connections, and handing each to the worker with the fewest.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::mpsc::Sender;

use crate::connection::Link;
use crate::limits::Refusal;
use crate::listener::{Entrance, Listener};
use crate::shared::Shared;
use crate::status::add;
use crate::tls::Tls;

/// Rest after an error of the system, such as too many open files.
const REST: Duration = Duration::from_millis(100);
/// Warnings about refused connections are logged this often at most.
const WARN_EVERY: Duration = Duration::from_secs(1);

/// A connection on its way to the worker that serves it.
pub(crate) struct Arrival {
    pub(crate) stream: TcpStream,
    pub(crate) peer: SocketAddr,
    pub(crate) link: Link,
}

/// Takes the connections of one listener.
pub(crate) struct Acceptor {
    shared: Arc<Shared>,
    listener: usize,
    workers: Vec<Sender<Arrival>>,
    warned: Option<Instant>,
}

impl Acceptor {
    /// Hands connections of the listener at `listener` in the gateway's list to `workers`.
    pub(crate) fn new(shared: Arc<Shared>, listener: usize, workers: Vec<Sender<Arrival>>) -> Self {
        Self { shared, listener, workers, warned: None }
    }

    /// Takes connections from `socket` until the gateway lets go of its miners.
    pub(crate) async fn run(mut self, socket: TcpListener) {
        let shared = Arc::clone(&self.shared);
        tokio::select! {
            () = shared.draining() => {}
            () = self.take_all(socket) => {}
        }
    }

    async fn take_all(&mut self, socket: TcpListener) {
        loop {
            let taken = socket.accept().await.and_then(|(stream, peer)| {
                stream.set_nodelay(true)?;
                Ok((stream.into_std()?, peer))
            });
            match taken {
                Ok((stream, peer)) => match self.let_in(peer) {
                    Ok(link) => self.hand_over(Arrival { stream, peer, link }).await,
                    Err(why) => {
                        add(&self.shared.connections_refused, 1);
                        if self.may_warn() {
                            tracing::warn!(%peer, listener = self.listener().name, why, "a connection was refused");
                        }
                    }
                },
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

    fn listener(&self) -> &Listener {
        &self.shared.listeners[self.listener]
    }

    /// What goes with a connection from `peer`, or why it is refused.
    fn let_in(&self, peer: SocketAddr) -> Result<Link, &'static str> {
        let (shared, listener) = (&self.shared, self.listener());
        if shared.connections() >= shared.config.max_connections {
            return Err("max_connections of the gateway are there already");
        }
        if listener.is_full() {
            return Err("max_connections of the listener are there already");
        }
        let entrance = listener.entrance(peer.ip());
        let visitor = match entrance {
            Entrance::Direct => shared.limits.admit(peer.ip(), Instant::now()).map_err(Refusal::text)?,
            // The address that counts is in the header.
            Entrance::Proxied => None,
            Entrance::Refused => return Err("it is not from a network of proxy_from"),
        };
        let tls = listener.tls.as_ref().map(Tls::filter).transpose();
        Ok(Link {
            listener: self.listener,
            awaits_header: entrance == Entrance::Proxied,
            tls: tls.map_err(|_| "no TLS could be made for it")?,
            visitor,
            since: shared.seconds(),
            heard: shared.seconds(),
        })
    }

    /// Hands a connection to the worker with the fewest.
    async fn hand_over(&mut self, arrival: Arrival) {
        let counts = self.shared.workers.iter().map(|worker| worker.connections.load(Ordering::Relaxed));
        let Some((worker, _)) = counts.enumerate().min_by_key(|(_, count)| *count) else { return };
        let (Some(counters), Some(sender)) = (self.shared.workers.get(worker), self.workers.get(worker)) else {
            return;
        };
        add(&self.shared.connections_total, 1);
        counters.connections.fetch_add(1, Ordering::Relaxed);
        self.listener().connections.fetch_add(1, Ordering::Relaxed);
        if let Err(lost) = sender.send(arrival).await {
            counters.connections.fetch_sub(1, Ordering::Relaxed);
            self.listener().connections.fetch_sub(1, Ordering::Relaxed);
            tracing::debug!(peer = %lost.0.peer, "a connection after the stop");
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
