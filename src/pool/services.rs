//! The services of a process: gateways and jobmanagers, each with its topics and its epoch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use futures::future::{FutureExt, select_all};
use sluice_cache::{Cache, MemoryCache, RedisCache, RedisOptions};
use sluice_gateway::{Gateway, GatewayConfig, GatewayIo};
use sluice_jobmanager::{JobManager, JobManagerConfig, JobManagerIo, NodeConfig};
use sluice_log::SharedLog;
use sluice_mining::payout_script;
use sluice_topology::runtime::Owners;
use sluice_topology::{CacheConfig, Config, Graph, Node};

/// How long a service may take to stop.
const STOP: Duration = Duration::from_secs(2);

/// The running services, each with its name.
pub(super) struct Services {
    gateways: Vec<(String, Gateway)>,
    jobmanagers: Vec<(String, JobManager)>,
    caches: Caches,
}

/// Caches by name.
type Caches = BTreeMap<String, Arc<dyn Cache>>;

impl Services {
    /// Starts the services of `graph` that `only` names (all where it is empty): jobmanagers first, so that gateways
    /// have work soon.
    ///
    /// # Errors
    /// If one cannot start.
    pub(super) async fn start(
        graph: &Graph,
        only: &[String],
        log: &SharedLog,
        owners: &Arc<Owners>,
        nodes: Vec<NodeConfig>,
    ) -> anyhow::Result<Self> {
        let caches = caches(graph, only)?;
        let mut services = Self { gateways: Vec::new(), jobmanagers: Vec::new(), caches };
        for node in graph.services_of(only).filter(|node| node.kind.name == sluice_jobmanager::KIND.name) {
            let jobmanager = jobmanager(graph, node, log, owners, nodes.clone()).await;
            services.jobmanagers.push((node.name.clone(), jobmanager.with_context(|| node.name.clone())?));
        }
        for node in graph.services_of(only).filter(|node| node.kind.name == sluice_gateway::KIND.name) {
            let gateway =
                gateway(graph, node, log, owners, &services.caches).await.with_context(|| node.name.clone())?;
            for address in gateway.addresses() {
                tracing::info!(service = node.name, %address, "listening");
            }
            services.gateways.push((node.name.clone(), gateway));
        }
        Ok(services)
    }

    /// The gateways.
    pub(super) fn gateways(&self) -> impl Iterator<Item = (&str, &Gateway)> {
        self.gateways.iter().map(|(name, gateway)| (name.as_str(), gateway))
    }

    /// The caches that its gateways share with others.
    pub(super) fn caches(&self) -> impl Iterator<Item = (&str, &dyn Cache)> {
        self.caches.iter().map(|(name, cache)| (name.as_str(), &**cache))
    }

    /// The jobmanagers.
    pub(super) fn jobmanagers(&self) -> impl Iterator<Item = (&str, &JobManager)> {
        self.jobmanagers.iter().map(|(name, jobmanager)| (name.as_str(), jobmanager))
    }

    /// Resolves with the name of the first service that fails and its cause; never if none does.
    pub(super) async fn failed(&self) -> String {
        let gateways = self
            .gateways
            .iter()
            .map(|(name, gateway)| async move { format!("{name} stopped: {}", gateway.failed().await) }.boxed());
        let jobmanagers = self
            .jobmanagers
            .iter()
            .map(|(name, jobmanager)| async move { format!("{name} stopped: {}", jobmanager.failed().await) }.boxed());
        let all: Vec<_> = gateways.chain(jobmanagers).collect();
        if all.is_empty() { std::future::pending().await } else { select_all(all).await.0 }
    }
}

impl Services {
    /// Stops them: gateways answer what is in flight, and no more jobs are made.
    pub(super) async fn stop(self: &Arc<Self>) {
        let gateways = futures::future::join_all(self.gateways.iter().map(|(_, gateway)| gateway.stop()));
        let services = Arc::clone(self);
        // Waits for an append that may be in progress.
        let jobmanagers = tokio::task::spawn_blocking(move || services.jobmanagers().for_each(|(_, it)| it.stop()));
        if tokio::time::timeout(STOP, futures::future::join(gateways, jobmanagers)).await.is_err() {
            tracing::warn!("a service did not stop in time");
        }
    }
}

/// How to reach the nodes.
///
/// # Errors
/// If a secret cannot be read.
pub(super) fn node_configs(config: &Config) -> anyhow::Result<Vec<NodeConfig>> {
    let nodes = config.bitcoin.nodes.iter().map(|node| {
        let auth = node.auth.reveal().with_context(|| format!("the credentials of node {}", node.name))?;
        Ok(NodeConfig { name: node.name.clone(), rpc: node.rpc.clone(), auth, zmq: node.zmq.clone() })
    });
    nodes.collect()
}

async fn jobmanager(
    graph: &Graph,
    node: &Node,
    log: &SharedLog,
    owners: &Arc<Owners>,
    nodes: Vec<NodeConfig>,
) -> anyhow::Result<JobManager> {
    let bitcoin = &graph.config.bitcoin;
    let mask = node.settings.text("version_mask");
    let Some(version_mask) = u32::from_str_radix(mask, 16).ok().filter(|_| mask.len() == 8) else {
        bail!("version_mask `{mask}` is not 8 hex digits, such as 1fffe000");
    };
    let config = JobManagerConfig {
        name: node.name.clone(),
        chain: bitcoin.network,
        nodes,
        payout: payout_script(bitcoin.network, &bitcoin.payout)?,
        tag: bitcoin.tag.clone(),
        refresh: node.settings.duration("refresh"),
        refresh_fees: node.settings.integer("refresh_fees"),
        fee_poll: node.settings.duration("fee_poll"),
        poll: node.settings.duration("poll"),
        stuck_after: node.settings.duration("stuck_after"),
        coinbase_limit: usize::try_from(node.settings.integer("coinbase_limit")).unwrap_or(usize::MAX),
        stale_grace: node.settings.duration("stale_grace"),
        keep: node.settings.duration("keep"),
        version_mask,
    };
    let io = JobManagerIo {
        log: log.clone(),
        producer: node.identity.clone(),
        jobs: output(node, "jobs")?,
        templates: output(node, "templates")?,
        epoch: owners.claim_source(&node.identity, &graph.config.state.dir).await?,
        owners: Arc::clone(owners),
    };
    Ok(JobManager::start(config, io).await?)
}

/// The caches that the services of this process use.
fn caches(graph: &Graph, only: &[String]) -> anyhow::Result<Caches> {
    let used = graph.services_of(only).map(|node| node.settings.text("cache")).collect::<BTreeSet<_>>();
    let mut caches = Caches::new();
    for (name, config) in graph.config.caches.iter().filter(|(name, _)| used.contains(name.as_str())) {
        let cache: Arc<dyn Cache> = match config {
            CacheConfig::Memory => Arc::new(MemoryCache::default()),
            CacheConfig::Redis { url, prefix } => {
                let url = url.reveal().with_context(|| format!("the url of cache {name}"))?;
                let options = RedisOptions { url, prefix: prefix.clone() };
                Arc::new(RedisCache::new(&options).with_context(|| format!("cache {name}"))?)
            }
        };
        caches.insert(name.clone(), cache);
    }
    Ok(caches)
}

async fn gateway(
    graph: &Graph,
    node: &Node,
    log: &SharedLog,
    owners: &Owners,
    caches: &Caches,
) -> anyhow::Result<Gateway> {
    let config = GatewayConfig::from_settings(&node.name, &node.settings, graph.config.bitcoin.network)?;
    let io = GatewayIo {
        log: log.clone(),
        producer: node.identity.clone(),
        jobs: input(node, "jobs")?,
        targets: node.input("targets").map(ToString::to_string),
        shares: output(node, "shares")?,
        candidates: output(node, "candidates")?,
        epoch: owners.claim_source(&node.identity, &graph.config.state.dir).await?,
        cache: caches.get(node.settings.text("cache")).cloned(),
    };
    Ok(Gateway::start(config, io).await?)
}

fn input(node: &Node, port: &str) -> anyhow::Result<String> {
    node.input(port).map(ToString::to_string).with_context(|| format!("{port} is not wired"))
}

fn output(node: &Node, port: &str) -> anyhow::Result<String> {
    node.output(port).map(ToString::to_string).with_context(|| format!("{port} is not wired"))
}
