//! A pool that follows another one on the same log, and takes over when that is gone (docs/adr/0015).

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use sluice_log::{EmbeddedLog, EmbeddedOptions, Log, LogError, LogFollower, SharedLog, SwitchLog, is_written};
use sluice_state::StateEnv;
use sluice_topology::runtime::{Plan, RuntimeOptions, StandbyRuntime, TopologyRuntime, rescale};
use sluice_topology::{Graph, LogConfig};

use super::log::{OpenLog, is_there};
use super::outside::Outside;
use super::{Pool, memory, services};

/// How often the log's lock is looked at: it is one call to the system.
const LOOK: Duration = Duration::from_millis(20);
/// How often a pool is looked for that has not run on the log yet.
const APPEAR: Duration = Duration::from_millis(200);
/// What the tasks have to stop.
const STOP: Duration = Duration::from_secs(4);

/// A pool that follows.
pub(crate) struct Standby<'a> {
    graph: &'a Graph,
    only: &'a [String],
    /// Of the log.
    dir: &'a Path,
    log: Arc<SwitchLog>,
    runtime: StandbyRuntime,
}

impl<'a> Standby<'a> {
    /// Opens the tasks on the log of another pool, once that has created its topics. Services are not started, nor what
    /// acts outside of the log.
    ///
    /// # Errors
    /// If a task cannot start, or the generations of the log are not those of the file.
    pub(crate) async fn start(graph: &'a Graph, only: &'a [String]) -> anyhow::Result<Self> {
        let plan = graph.plan(only)?;
        let LogConfig::Embedded { dir } = &graph.config.log else {
            bail!("a standby follows a pool on an embedded log: on brokers, run a second process of what is to go on");
        };
        let follower = follow(graph, dir, &plan).await?;
        let log = SwitchLog::new(follower);
        let env = StateEnv::on_disk(&graph.config.state.dir, memory(&graph.config))?;
        let started = TopologyRuntime::standby(plan, log.clone(), env, RuntimeOptions::default()).await;
        let runtime = started.context("a standby needs a state directory of its own: --set state.dir=DIR")?;
        tracing::info!(log = %dir.display(), "standby: following the pool on this log");
        Ok(Self { graph, only, dir, log, runtime })
    }

    /// Returns the log, open for writing, as soon as no other process writes it.
    ///
    /// # Errors
    /// If a task has failed: what the pool wrote is not what it would have written, or it cannot go on; or if the log
    /// cannot be opened.
    pub(crate) async fn log_is_free(&self) -> anyhow::Result<Arc<EmbeddedLog>> {
        let dir = self.dir;
        loop {
            tokio::select! {
                failure = self.runtime.failed() => bail!(failure),
                () = tokio::time::sleep(LOOK) => {}
            }
            if is_written(dir)? {
                continue;
            }
            let options = EmbeddedOptions::new(dir);
            match tokio::task::spawn_blocking(move || EmbeddedLog::open(options)).await? {
                // Another standby was faster.
                Err(LogError::Locked(_)) => {}
                opened => return Ok(opened?),
            }
        }
    }

    /// Becomes the pool, on its log.
    ///
    /// # Errors
    /// If a part cannot start, or a topic was given another generation since: the tasks that follow read one that ended.
    pub(crate) async fn take_over(self, log: Arc<EmbeddedLog>) -> anyhow::Result<Pool> {
        let begun = Instant::now();
        tracing::warn!("standby: the pool is gone, taking over");
        let shared: SharedLog = log.clone();
        rescale::check(self.graph, &shared).await?;
        self.log.switch(log.clone())?;
        let plan = self.graph.plan(self.only)?;
        let nodes = services::node_configs(&self.graph.config)?;
        let outside = Outside::open(&self.graph.config, &plan, log.uuid()).await?;
        let externals = outside.lent(&self.graph.config, &plan, &nodes)?;
        let runtime = self.runtime.promote(Arc::new(externals)).await?;
        let pool = Pool::with_tasks(self.graph, self.only, (OpenLog::Embedded(log), runtime), outside, nodes).await?;
        let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::warn!(took_ms, "standby: took over");
        Ok(pool)
    }

    /// Stops following.
    pub(crate) async fn stop(self) {
        if let Err(error) = self.runtime.stop(STOP).await {
            tracing::warn!(%error, "not everything stopped");
        }
    }
}

/// Reads the log beside its writer, once all topics of the plan are there, in the generations of the file.
async fn follow(graph: &Graph, dir: &Path, plan: &Plan) -> anyhow::Result<Arc<LogFollower>> {
    let mut told = false;
    loop {
        match LogFollower::open(dir) {
            Ok(follower) => {
                let shared: SharedLog = follower.clone();
                rescale::check(graph, &shared).await?;
                let known = follower.topics().await?;
                if plan.all_topics().iter().all(|topic| known.iter().any(|known| *known.name == topic.name)) {
                    return Ok(follower);
                }
            }
            // There is no log, or its writer is making it.
            Err(LogError::Storage(_)) if !is_there(dir) || is_written(dir)? => {}
            Err(error) => return Err(error.into()),
        }
        if !std::mem::replace(&mut told, true) {
            tracing::info!(log = %dir.display(), "standby: no pool has created its topics here yet");
        }
        tokio::time::sleep(APPEAR).await;
    }
}
