//! The log of one topology brought to where another one has it (docs/adr/0027).

use anyhow::{Context, bail};
use sluice_log::moving;
use sluice_topology::Graph;

use crate::pool::log::OpenLog;

/// Brings it, and tells on standard error what was.
///
/// # Errors
/// If both are the same, a pool runs on one of them (as far as that can be told), or not everything could be brought.
pub(super) fn bring(old: &Graph, new: &Graph) -> anyhow::Result<()> {
    let (from, to) = (&old.config.log, &new.config.log);
    if from == to {
        bail!("both files have the log {to}: there is nothing to bring");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let old =
            OpenLog::open_to_change(from).await.context("the log can only be brought while no pool runs on it")?;
        let new = OpenLog::open_as(to, old.shared().uuid()).await.with_context(|| format!("the log {to}"))?;
        let mut tell = |brought: moving::Brought| {
            let moving::Brought { partition, records, bounds } = brought;
            eprintln!("{partition}: {records} records, offsets {} to {}", bounds.start, bounds.next);
        };
        let records = moving::bring(&old.shared(), &new.shared(), &mut tell).await?;
        eprintln!("{records} records are brought from the log {from} to the log {to}");
        old.close()?;
        Ok(new.close()?)
    })
}
