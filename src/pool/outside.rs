//! What tasks act on outside of the log: the ledger, the nodes, time series.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use sluice_jobmanager::{NodeConfig, Nodes};
use sluice_ledger::LedgerStore;
use sluice_mining::node::BlockNodes;
use sluice_operators::influxdb::{self, Stores};
use sluice_operators::ledger::{LedgerRules, rules};
use sluice_operators::submit::Maturity;
use sluice_series::{InfluxDb, InfluxOptions};
use sluice_topology::runtime::Plan;
use sluice_topology::{Config, Externals, Settings};

/// Connections for blocks are used at least this often, so that no node closes them.
const WARM: Duration = Duration::from_secs(10);
/// After this long without the tasks having stopped, a write that waits for a database is given up.
const PATIENCE: Duration = Duration::from_millis(1_500);

/// What the tasks of this process act on.
#[derive(Clone)]
pub(super) struct Outside {
    /// The ledger, where this process writes it or shows it.
    pub(super) ledger: Option<Arc<dyn LedgerStore>>,
    /// Time series, by the name of their operator.
    pub(super) series: Stores,
}

impl Outside {
    /// Opens what the tasks of `plan` need, for the log `uuid`.
    ///
    /// # Errors
    /// If a secret cannot be read, a setting cannot be used, or the ledger is another log's or cannot be opened.
    pub(super) async fn open(config: &Config, plan: &Plan, uuid: [u8; 16]) -> anyhow::Result<Self> {
        let mut series = Stores::default();
        for operator in plan.tasks.iter().flat_map(|task| &task.operators) {
            if operator.kind.name == influxdb::KIND.name {
                let store = influx(&operator.settings).with_context(|| operator.shown.clone())?;
                series.0.insert(operator.shown.clone(), Arc::new(store));
            }
        }
        let ledger = if runs(plan, "ledger") { Some(open_ledger(config, uuid).await?) } else { None };
        Ok(Self { ledger, series })
    }

    /// What operators are lent.
    ///
    /// # Errors
    /// If the nodes' settings cannot be used, or the rules of rewards.
    pub(super) fn lent(&self, config: &Config, plan: &Plan, nodes: &[NodeConfig]) -> anyhow::Result<Externals> {
        let mut externals = Externals::default();
        if runs(plan, "submit") {
            let nodes = Arc::new(Nodes::new(nodes)?);
            // Not waited for: a node that is down must not hold the pool.
            nodes.keep_warm(WARM)?;
            externals.insert::<Arc<dyn BlockNodes>>(nodes);
            externals.insert(Maturity(config.ledger.maturity));
        }
        if let Some(ledger) = &self.ledger {
            externals.insert::<Arc<dyn LedgerStore>>(Arc::clone(ledger));
            externals.insert(LedgerRules(rules(&config.ledger)?));
        }
        externals.insert(self.series.clone());
        Ok(externals)
    }

    /// Ends writes that wait for a database, once they have had their time. Never returns.
    pub(super) async fn interrupt(&self) {
        tokio::time::sleep(PATIENCE).await;
        self.ledger.iter().for_each(|ledger| ledger.interrupt());
        self.series.0.values().for_each(|series| series.interrupt());
        std::future::pending().await
    }
}

fn runs(plan: &Plan, kind: &str) -> bool {
    plan.tasks.iter().flat_map(|task| &task.operators).any(|operator| operator.kind.name == kind)
}

async fn open_ledger(config: &Config, uuid: [u8; 16]) -> anyhow::Result<Arc<dyn LedgerStore>> {
    let url = config.ledger.url.reveal().context("the ledger's url")?;
    let opened = tokio::task::spawn_blocking(move || {
        let store = sluice_ledger::open(&url)?;
        store.bind_log(uuid)?;
        Ok::<_, sluice_ledger::LedgerError>(store)
    });
    opened.await?.context("the ledger")
}

fn influx(settings: &Settings) -> anyhow::Result<InfluxDb> {
    let text = |name: &str| settings.text(name).to_owned();
    let token = settings.secret("token").map(|token| token.reveal()).transpose().context("its token")?;
    let (url, bucket, org) = (text("url"), text("bucket"), text("org"));
    Ok(InfluxDb::new(InfluxOptions { url, bucket, org, token: token.unwrap_or_default() })?)
}
