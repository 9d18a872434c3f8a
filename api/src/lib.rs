//! The HTTP side (DESIGN 9): REST with OpenAPI, health, readiness, and metrics for Prometheus.
//!
//! The crate knows nothing of where the numbers come from: the binary implements [`PoolView`] over the ledger, the
//! statistics and the running topology.

mod routes;
pub mod views;

use std::net::SocketAddr;
use std::sync::Arc;

use poem::listener::{Acceptor, Listener, TcpListener};
use sluice_topology::{Kind, Parallel, Role};

use views::{Block, Health, Miner, Pool};

/// The service as the topology knows it. Every process serves health, readiness and metrics at the topology's
/// `http.listen`; a process that runs an `apiserver` serves the REST API there too, so it has no address of its own.
pub static KIND: Kind = Kind {
    name: "apiserver",
    summary: "REST API at the process's HTTP endpoint",
    inputs: &[],
    outputs: &[],
    lookups: &[],
    settings: &[],
    state: &[],
    parallel: Parallel::Single,
    role: Role::Service,
};

/// Where the API's numbers come from. Calls may block for as long as a database answers; they run on threads that may.
pub trait PoolView: Send + Sync + 'static {
    /// How the process is.
    fn health(&self) -> Health;
    /// Metrics in Prometheus' text format.
    fn metrics(&self) -> String;
    /// The pool as a whole.
    fn pool(&self) -> Result<Pool, ViewError>;
    /// Everything under one payout address; `None` if the pool has never seen it.
    fn miner(&self, address: &str) -> Result<Option<Miner>, ViewError>;
    /// Up to `limit` blocks, newest first: from the newest on, or behind the block `before` (its hash as usually shown).
    /// `None` if there is no block `before`.
    fn blocks(&self, before: Option<&str>, limit: u32) -> Result<Option<Vec<Block>>, ViewError>;
}

/// Why a view could not be given: what failed, for the log and for the answer (503).
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ViewError(pub String);

/// Why the API could not start or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The address cannot be listened on.
    #[error("cannot serve HTTP on {address}: {cause}; choose another `http.listen` in the topology")]
    Listen {
        /// The address.
        address: String,
        /// What the system says.
        cause: std::io::Error,
    },
    /// Serving failed.
    #[error("the HTTP server stopped: {0}")]
    Serve(std::io::Error),
}

/// A running API server.
pub struct ApiServer {
    address: SocketAddr,
    stop: tokio::sync::oneshot::Sender<()>,
    task: tokio::task::JoinHandle<Result<(), ApiError>>,
}

impl ApiServer {
    /// Starts to serve `view` on `listen` (`host:port`; port 0 takes a free one): health, readiness and metrics, and
    /// with `rest` the REST API.
    ///
    /// # Errors
    /// If the address cannot be listened on.
    pub async fn start(listen: &str, rest: bool, view: Arc<dyn PoolView>) -> Result<Self, ApiError> {
        let bind_error = |cause| ApiError::Listen { address: listen.to_owned(), cause };
        let acceptor = TcpListener::bind(listen.to_owned()).into_acceptor().await.map_err(bind_error)?;
        let address =
            acceptor.local_addr().iter().find_map(|addr| addr.as_socket_addr().copied()).ok_or_else(|| {
                bind_error(std::io::Error::new(std::io::ErrorKind::AddrNotAvailable, "no TCP address to listen on"))
            })?;
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let app = routes::app(view, rest, address);
        let task = tokio::spawn(async move {
            let until = async move {
                // A dropped sender stops the server as a message does.
                let _ = stopped.await;
            };
            let grace = Some(std::time::Duration::from_secs(1));
            poem::Server::new_with_acceptor(acceptor)
                .run_with_graceful_shutdown(app, until, grace)
                .await
                .map_err(ApiError::Serve)
        });
        Ok(Self { address, stop, task })
    }

    /// The address it serves on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops: requests in flight get a second to end.
    ///
    /// # Errors
    /// If serving had failed.
    pub async fn stop(self) -> Result<(), ApiError> {
        let _ = self.stop.send(());
        match self.task.await {
            Ok(result) => result,
            Err(cause) => Err(ApiError::Serve(std::io::Error::other(cause))),
        }
    }
}
