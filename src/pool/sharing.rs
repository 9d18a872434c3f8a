//! Parts of a pool that any number of processes share out among themselves, by Kafka's consumer groups (docs/adr/0026).
//!
//! Each task group and each jobmanager is a unit with a group of its own: its members share out the partitions that it works on.
//! A process runs what it is given, and begins anew with what it is given next. A state that it has from before goes on
//! where it was; one that it lacks is made from a checkpoint or the topics, whose recorded outputs are not written again.

use std::time::Duration;

use anyhow::{Context, bail};
use futures::future::{FutureExt, select_all};
use sluice_log::{Log, Membership};
use sluice_topology::{Graph, Parallel};
use tokio::time::{sleep, timeout};

use super::log::OpenLog;

/// A group that changes is left alone for this long: mostly it changes twice.
const QUIET: Duration = Duration::from_millis(300);
/// How long a process that was replaced waits to hear of it: as long as a group takes to notice that one is gone.
const HEAR: Duration = Duration::from_secs(15);

/// This process's places in the groups of its units.
pub(crate) struct Sharing {
    units: Vec<Unit>,
    /// What runs here in any case.
    fixed: Vec<String>,
}

struct Unit {
    /// Of its first operator, or of the service.
    name: String,
    /// It is one thing, whatever the partitions of the topic.
    single: bool,
    members: Membership,
}

impl Sharing {
    /// Joins the groups of all that `only` names, and creates the topics.
    ///
    /// # Errors
    /// If the log is not on Kafka, or `only` names nothing, a part of something, or a gateway.
    pub(crate) async fn join(graph: &Graph, only: &[String]) -> anyhow::Result<Self> {
        if only.is_empty() || only.iter().any(|name| name.contains(':')) {
            bail!("--shared is for what --only names, without partitions: the group gives them");
        }
        let plan = graph.plan(only)?;
        let OpenLog::Kafka(log) = OpenLog::open(&graph.config.log).await? else {
            bail!(
                "--shared is for a log on Kafka, whose consumer groups share out the work; an embedded log has one process"
            );
        };
        log.create_topics(&plan.all_topics()).await?;
        let (mut units, mut fixed) = (Vec::new(), Vec::new());
        for group in graph.groups.iter().filter(|group| graph.chosen(group, only).is_some()) {
            let first = graph.members(group).next().context("a task without operators")?;
            let task =
                plan.tasks.iter().find(|task| group.partitions.iter().any(|&it| group.task_name(it) == task.name));
            let input = task.and_then(|task| task.inputs.first());
            let topic = input.map(|input| &input.topic).with_context(|| format!("{} reads nothing", group.name))?;
            let (name, single) = (first.name.clone(), group.parallel == Parallel::Single);
            units.push(Unit { members: log.join(topic, &group.identity)?, name, single });
        }
        for node in graph.services_of(only) {
            match node.kind.name {
                kind if kind == sluice_gateway::KIND.name => bail!(
                    "{} is a gateway, whose miners would go with each change: run it without --shared, in a process of its own",
                    node.name
                ),
                kind if kind == sluice_jobmanager::KIND.name => {
                    let topic = node.output("jobs").context("jobs are not wired")?;
                    units.push(Unit {
                        name: node.name.clone(),
                        single: true,
                        members: log.join(topic, &node.identity)?,
                    });
                }
                _ => fixed.push(node.name.clone()),
            }
        }
        Ok(Self { units, fixed })
    }

    /// What this process is to run now, for `Pool::start`.
    pub(crate) fn selection(&self) -> Vec<String> {
        let mut selection = self.fixed.clone();
        for Unit { name, single, members } in &self.units {
            // Also where nothing is given: nothing named at all stands for everything.
            selection.push(format!("{name}:"));
            let given = members.assigned().into_iter().filter(|partition| !single || *partition == 0);
            selection.extend(given.map(|partition| format!("{name}:{partition}")));
        }
        selection
    }

    /// Returns once something else is to run here than what runs, and has been for a moment.
    pub(crate) async fn changed(&mut self, running: &[String]) {
        loop {
            if self.selection() != running {
                while timeout(QUIET, self.any_changed()).await.is_ok() {}
                if self.selection() != running {
                    return;
                }
            }
            self.any_changed().await;
        }
    }

    /// Whether what has failed here was to go to another process anyway.
    pub(crate) async fn has_gone(&mut self, running: &[String]) -> bool {
        timeout(HEAR, self.changed(running)).await.is_ok()
    }

    async fn any_changed(&mut self) {
        if self.units.is_empty() {
            return sleep(Duration::MAX).await;
        }
        select_all(self.units.iter_mut().map(|unit| unit.members.changed().boxed())).await;
    }
}
