//! What the pool shows of itself: to the API, to Prometheus and to the demo's screen.

mod health;
mod numbers;

pub(super) use numbers::reason_name;

use std::sync::Arc;

use sluice_api::views::{Block, Health, Miner, Pool};
use sluice_api::{PoolView, ViewError};
use sluice_ledger::{Balance, LedgerStore};
use sluice_topology::Graph;
use sluice_topology::runtime::{RuntimeHandle, TableReader, TaskStatus};

use super::checkpoints::Checkpointing;
use super::log::OpenLog;
use super::metrics;
use super::outside::Outside;
use super::services::Services;

/// Name of a kind whose state has the statistics, and of the table that tells.
const STATS: (&str, &str) = ("stats", "totals");

/// The view of a running pool.
pub(crate) struct View {
    pub(super) network: String,
    pub(super) log: OpenLog,
    pub(super) runtime: Arc<RuntimeHandle>,
    pub(super) services: Arc<Services>,
    pub(super) outside: Outside,
    pub(super) checkpoints: Arc<Checkpointing>,
    /// Identity of the operator that keeps the statistics, and its state.
    pub(super) stats: Option<(String, TableReader)>,
    /// To ask asynchronous parts from threads that may block.
    tokio: tokio::runtime::Handle,
}

impl View {
    pub(super) fn new(
        graph: &Graph,
        network: String,
        log: &OpenLog,
        runtime: &Arc<RuntimeHandle>,
        services: &Arc<Services>,
        outside: Outside,
        checkpoints: Arc<Checkpointing>,
    ) -> Self {
        let stats = graph.nodes.iter().filter(|node| node.kind.name == STATS.0).find_map(|node| {
            let reader = runtime.readers(&format!("{}.{}", node.identity, STATS.1)).into_iter().next()?;
            Some((node.identity.clone(), reader))
        });
        Self {
            network,
            log: log.clone(),
            runtime: runtime.clone(),
            services: services.clone(),
            outside,
            checkpoints,
            stats,
            tokio: tokio::runtime::Handle::current(),
        }
    }

    /// All tasks. Blocks until the log has told its ends.
    pub(super) fn tasks(&self) -> Vec<TaskStatus> {
        self.tokio.block_on(self.runtime.status())
    }

    pub(super) fn ledger(&self) -> Result<&dyn LedgerStore, ViewError> {
        let missing = || ViewError("this process does not run the ledger: ask the one that does".into());
        self.outside.ledger.as_deref().ok_or_else(missing)
    }

    /// Up to `limit` accounts with what they are owed, by name.
    ///
    /// # Errors
    /// If the ledger does not answer or is not in this process.
    pub(crate) fn balances(&self, limit: u32) -> Result<Vec<(String, Balance)>, ViewError> {
        self.ledger()?.balances("", limit).map_err(|error| ViewError(error.to_string()))
    }
}

impl PoolView for View {
    fn health(&self) -> Health {
        health::health(self)
    }

    fn metrics(&self) -> String {
        metrics::render(self)
    }

    fn pool(&self) -> Result<Pool, ViewError> {
        numbers::pool(self)
    }

    fn miner(&self, address: &str) -> Result<Option<Miner>, ViewError> {
        numbers::miner(self, address)
    }

    fn blocks(&self, before: Option<&str>, limit: u32) -> Result<Option<Vec<Block>>, ViewError> {
        numbers::blocks(self, before, limit)
    }
}
