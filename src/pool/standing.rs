//! What is on disk, looked at before anything is touched.

use anyhow::bail;
use sluice_log::SharedLog;
use sluice_topology::Graph;
use sluice_topology::disk::{LogFacts, States, judge};

/// What `sluice plan` says, before a start: of the parts that `only` names, on this log.
///
/// # Errors
/// If they cannot run, with everything that `sluice plan` says; `rebuild` allows states to be made again.
pub(super) async fn before_start(
    graph: &Graph,
    only: &[String],
    log: Option<&SharedLog>,
    rebuild: bool,
) -> anyhow::Result<()> {
    let states = tokio::task::block_in_place(|| States::read(graph, only, &graph.config.state.dir))?;
    let facts = match log {
        Some(log) => Some(LogFacts::of(log, graph).await?),
        None => None,
    };
    let judgement = tokio::task::block_in_place(|| judge(graph, &states, facts.as_ref()));
    if !judgement.is_safe(rebuild) {
        bail!("this topology does not fit what is on disk, and nothing was touched:\n\n{judgement}");
    }
    Ok(())
}
