//! Epochs of tasks that wrote in a new one at each opening before epochs were claimed (docs/adr/0010 and 0014): they are
//! found in what the task wrote. Readers would take records of a lower epoch for void or forgotten.

use std::time::Duration;

use sluice_log::{Partition, SharedLog};
use sluice_proto::{Epoch, Offset, decode};

use super::reader::{READ_BYTES, ReadError};

/// How many offsets of a partition are looked at first, from its end; twice as many each time nothing was found.
const FIRST_LOOK: u64 = 256;

/// The highest epoch of the task with this hash among its newest records in these partitions; 0 if there are none.
pub(crate) async fn newest_epoch(task: u64, partitions: Vec<Partition>, log: &SharedLog) -> Result<Epoch, ReadError> {
    let mut newest = Epoch::default();
    for partition in partitions {
        newest = newest.max(newest_of(task, &partition, log).await?);
    }
    Ok(newest)
}

/// The highest epoch among the task's newest records in the partition; 0 if it has none there. Epochs grow along a
/// partition, so older records need not be looked at.
async fn newest_of(task: u64, partition: &Partition, log: &SharedLog) -> Result<Epoch, ReadError> {
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
