//! Epochs of tasks whose outputs depend on answers from outside (docs/adr/0010).
//!
//! Such a task cannot repeat what it wrote before a crash. It writes as a source does: in a new epoch at each opening,
//! so that readers take what it writes then for new records and miss none of the old ones.

use std::sync::Arc;
use std::time::Duration;

use sluice_log::{Partition, SharedLog};
use sluice_proto::{Epoch, Offset, decode};
use sluice_state::Tables;

use super::error::TaskError;
use super::persist;
use super::plan::{Destination, TaskSpec};
use super::reader::{READ_BYTES, ReadError};

/// How many offsets of a partition are looked at first, from its end; twice as many each time nothing was found.
const FIRST_LOOK: u64 = 256;

/// The next epoch of the task with this hash, durable in its state before it is returned: no epoch is ever used twice.
///
/// It is above the last one in the state, and above those of the task's records in the log: a state that was lost, or
/// restored from an older copy, does not make readers drop new records as repeated.
pub(crate) async fn take_epoch(
    spec: &TaskSpec,
    task: u64,
    log: &SharedLog,
    tables: &mut Tables,
) -> Result<Epoch, TaskError> {
    let mut last = persist::epoch(tables)?.unwrap_or_default();
    for partition in outputs(spec) {
        last = last.max(newest_epoch(task, &partition, log).await?);
    }
    let epoch = last.next().ok_or_else(|| TaskError::Epochs { task: spec.shown.clone(), last })?;
    persist::save_epoch(tables, epoch);
    tables.commit()?;
    tables.sync()?;
    Ok(epoch)
}

/// The partitions that the task writes to.
fn outputs(spec: &TaskSpec) -> Vec<Partition> {
    let wires = spec.operators.iter().flat_map(|operator| &operator.outputs).flat_map(|wire| &wire.to);
    let partitions = wires.filter_map(|destination| match destination {
        Destination::Topic { topic, partitions } => Some((topic, *partitions)),
        Destination::Direct(_) => None,
    });
    partitions.flat_map(|(topic, count)| (0..count).map(|number| Partition::new(Arc::clone(topic), number))).collect()
}

/// The highest epoch among the task's newest records in the partition; 0 if it has none there. Epochs grow along a
/// partition, so older records need not be looked at.
async fn newest_epoch(task: u64, partition: &Partition, log: &SharedLog) -> Result<Epoch, ReadError> {
    let bounds = log.bounds(partition).await.map_err(|error| ReadError::Log {
        partition: partition.clone(),
        offset: Offset::ZERO,
        error,
    })?;
    let (start, mut end, mut look) = (bounds.start.get(), bounds.next.get(), FIRST_LOOK);
    while end > start {
        let from = end.saturating_sub(look).max(start);
        if let Some(epoch) = highest_epoch(task, partition, from..end, log).await? {
            return Ok(epoch);
        }
        (end, look) = (from, look.saturating_mul(2));
    }
    Ok(Epoch::default())
}

/// The highest epoch among the task's records at these offsets.
async fn highest_epoch(
    task: u64,
    partition: &Partition,
    offsets: std::ops::Range<u64>,
    log: &SharedLog,
) -> Result<Option<Epoch>, ReadError> {
    let mut highest = None;
    let mut next = Offset::new(offsets.start);
    while next.get() < offsets.end {
        let records = log.read(partition, next, READ_BYTES, Duration::ZERO).await.map_err(|error| ReadError::Log {
            partition: partition.clone(),
            offset: next,
            error,
        })?;
        let Some(last) = records.last() else { break };
        next = last.offset.next();
        for record in records {
            let envelope = decode(record.value).map_err(|error| ReadError::Decode {
                partition: partition.clone(),
                offset: record.offset,
                error,
            })?;
            let from = envelope.from.filter(|from| from.task == task);
            highest = highest.max(from.map(|from| Epoch::new(from.epoch)));
        }
    }
    Ok(highest)
}
