//! One task without a thread, for who drives it himself.

use std::sync::Arc;

use sluice_log::TopicSpec;
use sluice_state::StateEnv;
use tokio::sync::watch;

use super::RuntimeOptions;
use super::error::TaskError;
use super::follow::Outputs;
use super::owners::Owners;
use super::plan::{Plan, TaskSpec};
use super::task::{Surroundings, Task};
use crate::operator::Externals;

/// All topics that the tasks of a plan need: its own and the runtime's.
pub fn topics_of(plan: &Plan) -> Vec<TopicSpec> {
    plan.topics.iter().cloned().chain(super::letters::topics(plan)).chain([Owners::topic()]).collect()
}

/// Takes a task over from whoever has it and runs it until `stop` says so, as [`super::TopologyRuntime`] does in a
/// thread. It works only while the future is polled and starts nothing of its own, so that a simulation decides what
/// happens when; dropping the future is a crash. To be polled inside a tokio runtime with time. The topics
/// ([`topics_of`]) must be there.
///
/// # Errors
/// Why the task could not be opened or could not go on.
pub async fn run_task(
    spec: TaskSpec,
    network: String,
    owners: Arc<Owners>,
    env: StateEnv,
    externals: Arc<Externals>,
    options: RuntimeOptions,
    mut stop: watch::Receiver<bool>,
) -> Result<(), TaskError> {
    let (log, outputs) = (owners.log().clone(), Outputs::Own);
    let around = Surroundings { log, env, externals, owners, network, options, outputs };
    let mut promoted = around.outputs.promoted();
    Task::open(&spec, &around).await?.run(&mut stop, &mut promoted).await
}
