//! A pool in this process: opens log, state and stores, starts tasks and services, and stops them in order.
//!
//! ```text
//! start:  log -> ledger, time series -> tasks -> jobmanager -> gateways -> HTTP
//! stop:   HTTP answers on -> gateways (answer what is in flight) -> jobmanager -> tasks (commit) -> log
//! ```

mod checkpoints;
pub(crate) mod control;
pub(crate) mod log;
mod metrics;
mod outside;
mod services;
mod sharing;
mod standby;
mod standing;
mod view;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sluice_api::{ApiServer, PoolView};
use sluice_state::{MemoryLimits, StateEnv};
use sluice_topology::runtime::{RuntimeHandle, RuntimeOptions, TopologyRuntime};
use sluice_topology::{Config, Graph};

use checkpoints::Checkpointing;
use control::{Control, Powers};
use log::OpenLog;
use outside::Outside;
use services::Services;
pub(crate) use sharing::Sharing;
pub(crate) use standby::Standby;
use standing::before_start;
pub(crate) use view::View;

/// What the process has to stop everything: a supervisor may kill it after 5 seconds.
const STOP: Duration = Duration::from_millis(4_500);
/// What its tasks have of that: who hangs is told, and the log is still closed.
const TASKS_STOP: Duration = Duration::from_millis(3_500);

/// Why a pool ended.
pub(crate) enum End {
    /// A signal.
    Signal(&'static str),
    /// A part failed, with this cause.
    Failed(String),
}

/// A running pool.
pub(crate) struct Pool {
    log: OpenLog,
    runtime: Arc<RuntimeHandle>,
    services: Arc<Services>,
    outside: Outside,
    view: Arc<View>,
    http: ApiServer,
    /// Makes checkpoints until it is dropped.
    checkpoints: tokio::task::JoinHandle<()>,
    control: Control,
}

impl Pool {
    /// Starts the parts of `graph` that `only` names; all where it is empty. With `rebuild`, states that are damaged or
    /// foreign are made again instead of refused.
    ///
    /// # Errors
    /// If they do not fit what is on disk, or any part cannot start.
    pub(crate) async fn start(graph: &Graph, only: &[String], rebuild: bool) -> anyhow::Result<Self> {
        let plan = graph.plan(only)?;
        let log = match OpenLog::find(&graph.config.log).await? {
            Some(log) => log,
            None => {
                before_start(graph, only, None, rebuild).await?;
                OpenLog::open(&graph.config.log).await?
            }
        };
        let shared = log.shared();
        before_start(graph, only, Some(&shared), rebuild).await?;
        let nodes = services::node_configs(&graph.config)?;
        let outside = Outside::open(&graph.config, &plan, shared.uuid()).await?;
        let externals = outside.lent(&graph.config, &plan, &nodes)?;
        let state_dir = &graph.config.state.dir;
        let open = if rebuild { StateEnv::rebuilding } else { StateEnv::on_disk };
        let env = open(state_dir.clone(), memory(&graph.config))?;
        let runtime = TopologyRuntime::start(plan, shared, env, Arc::new(externals), RuntimeOptions::default()).await?;
        Self::with_tasks(graph, only, (log, runtime), outside, nodes).await
    }

    /// Starts what comes behind the tasks.
    async fn with_tasks(
        graph: &Graph,
        only: &[String],
        (log, runtime): (OpenLog, RuntimeHandle),
        outside: Outside,
        nodes: Vec<sluice_jobmanager::NodeConfig>,
    ) -> anyhow::Result<Self> {
        let shared = log.shared();
        let network = graph.config.bitcoin.network.as_str().to_owned();
        let runtime = Arc::new(runtime);
        let services = Arc::new(Services::start(graph, only, &shared, &runtime.owners(), nodes).await?);
        let checkpoints = Arc::new(Checkpointing::new(&runtime, graph.config.state.checkpoints));
        let powers = Powers { runtime: runtime.clone(), checkpoints: checkpoints.clone() };
        let control = Control::start(&graph.config.state.dir, powers)?;
        let view = View::new(graph, network, &log, &runtime, &services, outside.clone(), checkpoints.clone());
        let view = Arc::new(view);
        let rest = graph.services_of(only).any(|node| node.kind.name == sluice_api::KIND.name);
        let http = ApiServer::start(&graph.config.http.listen, rest, view.clone() as Arc<dyn PoolView>).await?;
        tracing::info!(service = "http", address = %http.address(), "listening");
        let checkpoints = tokio::spawn(checkpoints.run());
        Ok(Self { log, runtime, services, outside, view, http, checkpoints, control })
    }

    /// What the pool shows of itself.
    pub(crate) fn view(&self) -> Arc<View> {
        self.view.clone()
    }

    /// Addresses that miners connect to.
    pub(crate) fn stratum(&self) -> Vec<SocketAddr> {
        self.services.gateways().flat_map(|(_, gateway)| gateway.addresses()).collect()
    }

    /// `http://HOST:PORT` of health, metrics and API.
    pub(crate) fn http(&self) -> String {
        format!("http://{}", self.http.address())
    }

    /// Resolves when a part has failed; never if none does.
    pub(crate) async fn failed(&self) -> End {
        End::Failed(tokio::select! {
            failure = self.runtime.failed() => failure.to_string(),
            cause = self.services.failed() => cause,
        })
    }

    /// Reads again what may change while it runs: certificates. What cannot be used is logged and stays as it was.
    pub(crate) fn reload(&self) {
        for (name, gateway) in self.services.gateways() {
            match gateway.reload() {
                Ok(()) => tracing::info!(service = name, "certificates were read again"),
                Err(error) => tracing::error!(service = name, %error, "not all certificates were read again"),
            }
        }
    }

    /// Gives miners the time to go elsewhere that their gateways have for it (setting `drain`), while all else goes on.
    pub(crate) async fn drain(&self) {
        futures::future::join_all(self.services.gateways().map(|(_, gateway)| gateway.drain())).await;
    }

    /// Stops it: gateways answer what is in flight, tasks commit what they have begun. What has not ended after
    /// [`STOP`] is left: it is repeated at the next start, like what a crash interrupts.
    pub(crate) async fn stop(self) {
        if tokio::time::timeout(STOP, self.stop_in_order()).await.is_err() {
            tracing::warn!("not everything stopped in time; what was not committed is repeated at the next start");
        }
    }

    async fn stop_in_order(self) {
        drop(self.control);
        self.checkpoints.abort();
        self.services.stop().await;
        tokio::select! {
            stopped = self.runtime.stop(TASKS_STOP) => {
                if let Err(error) = stopped {
                    tracing::warn!(%error, "not everything stopped");
                }
            }
            () = self.outside.interrupt() => {}
        }
        if let Err(error) = self.http.stop().await {
            tracing::warn!(%error, "the HTTP server had failed");
        }
        if let Err(error) = self.log.close() {
            tracing::error!(%error, "the log was not closed cleanly; what was acknowledged is safe");
        }
    }
}

/// The memory of all states together: a quarter may be write buffers.
pub(crate) fn memory(config: &Config) -> MemoryLimits {
    let cache = usize::try_from(config.state.memory).unwrap_or(usize::MAX);
    MemoryLimits { cache, write_buffers: cache / 4 }
}
