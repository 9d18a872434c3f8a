//! A log brought elsewhere: every record of every topic, at the same offset, under the same identity (docs/adr/0027).
//!
//! Records cite offsets (the job clock, coordinates), and states know positions: so a log that is to go on elsewhere has to have
//! them all where they were.

use std::time::Duration;

use bytes::Bytes;
use sluice_proto::Offset;

use crate::{Bounds, LogError, Partition, Retention, SharedLog, TopicSpec};

/// Topic of a log that was brought from elsewhere: it has a record once all is there.
pub const BROUGHT: &str = "sluice.brought";
/// Bytes that are read and appended at once.
const BYTES: usize = 1 << 20;
/// Records that stand for removed ones, appended at once.
const FILLERS: u64 = 20_000;

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Brought {
    /// The partition that has just been completed.
    pub partition: Partition,
    /// Records that were copied to it, this time.
    pub records: u64,
    /// Where it begins and ends.
    pub bounds: Bounds,
}

/// Whether a log is not complete whose topic [`BROUGHT`] has these bounds; one without the topic was not brought from anywhere.
pub fn is_incomplete(brought: Option<Bounds>) -> bool {
    brought.is_some_and(|bounds| bounds.next <= Offset::new(1))
}

/// Brings all topics of `old` to `new`, which has the same identity and no topic yet, or those of a time that this was
/// interrupted. Nobody may write to either meanwhile. Tells `done` of each partition; returns the number of records.
///
/// # Errors
/// If `new` has topics of its own, a partition of `old` has holes, or a log does not answer.
pub async fn bring(old: &SharedLog, new: &SharedLog, done: &mut dyn FnMut(Brought)) -> Result<u64, LogError> {
    if old.uuid() != new.uuid() {
        return Err(LogError::Unfit(
            "the logs have different identities: one is not the other, brought elsewhere".into(),
        ));
    }
    let begun = new.topics().await?;
    if begun.iter().all(|topic| &*topic.name != BROUGHT) && !begun.is_empty() {
        return Err(LogError::Unfit("the log that is to be filled has topics of its own".into()));
    }
    let marker = TopicSpec { name: BROUGHT.into(), partitions: 1, retention: Retention::default() };
    new.create_topic(&marker).await?;
    let place = Partition::new(BROUGHT, 0);
    if !is_incomplete(Some(new.bounds(&place).await?)) {
        return Ok(0);
    }
    let mut records = 0;
    for topic in old.topics().await?.into_iter().filter(|topic| &*topic.name != BROUGHT) {
        let spec = TopicSpec {
            name: topic.name.to_string(),
            partitions: topic.partitions,
            // Nothing grows too old on the way.
            retention: Retention::default(),
        };
        new.create_topic(&spec).await?;
        for partition in topic.all() {
            let copied = partition_to(old, new, &partition).await?;
            records += copied;
            done(Brought { records: copied, bounds: new.bounds(&partition).await?, partition });
        }
        new.create_topic(&TopicSpec { retention: topic.retention, ..spec }).await?;
    }
    new.append(&place, vec![Bytes::from_static(b"complete")]).await?;
    Ok(records)
}

/// Copies what is missing of a partition.
async fn partition_to(old: &SharedLog, new: &SharedLog, at: &Partition) -> Result<u64, LogError> {
    let Bounds { start, next } = old.bounds(at).await?;
    let mut here = new.bounds(at).await?.next.max(Offset::new(1));
    while here < start.min(next) {
        let count = FILLERS.min(start.get() - here.get());
        let fillers = vec![Bytes::from_static(b"-"); usize::try_from(count).unwrap_or(usize::MAX)];
        here = appended(new, at, here, fillers).await?;
    }
    let mut copied = 0;
    while here < next {
        let records = old.read(at, here, BYTES, Duration::ZERO).await?;
        let mut values = Vec::with_capacity(records.len());
        for (expected, record) in (here.get()..).zip(records) {
            if record.offset.get() != expected {
                return Err(hole(at, expected, record.offset));
            }
            values.push(record.value);
        }
        if values.is_empty() {
            return Err(hole(at, here.get(), next));
        }
        copied += values.len() as u64;
        here = appended(new, at, here, values).await?;
    }
    if start > Offset::new(1) {
        new.trim(at, start).await?;
    }
    Ok(copied)
}

async fn appended(new: &SharedLog, at: &Partition, here: Offset, values: Vec<Bytes>) -> Result<Offset, LogError> {
    let behind = Offset::new(here.get().saturating_add(values.len() as u64));
    let first = new.append(at, values).await?;
    if first != here || new.bounds(at).await?.next != behind {
        return Err(LogError::Unfit(format!(
            "{at}: a record meant for offset {here} stands at {first}: begin anew elsewhere"
        )));
    }
    Ok(behind)
}

fn hole(at: &Partition, expected: u64, found: Offset) -> LogError {
    LogError::Unfit(format!(
        "{at} has no record at offset {expected}, and goes on at {found}: it cannot be brought elsewhere"
    ))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{EmbeddedLog, EmbeddedOptions, Log};

    /// What was brought is there, record by record.
    async fn is_same(one: &SharedLog, other: &SharedLog) -> Result<bool, LogError> {
        for topic in one.topics().await?.into_iter().filter(|topic| &*topic.name != BROUGHT) {
            for at in topic.all() {
                let (bounds, there) = (one.bounds(&at).await?, other.bounds(&at).await?);
                let mut here = bounds.start.max(Offset::new(1));
                if bounds.next != there.next || here < there.start {
                    return Ok(false);
                }
                while here < bounds.next {
                    let (read, again) = (
                        one.read(&at, here, BYTES, Duration::ZERO).await?,
                        other.read(&at, here, BYTES, Duration::ZERO).await?,
                    );
                    let same = read.iter().zip(&again).take_while(|(one, other)| one == other).count();
                    if same == 0 {
                        return Ok(false);
                    }
                    here = read[same - 1].offset.next();
                }
            }
        }
        Ok(one.uuid() == other.uuid())
    }

    async fn filled(dir: &std::path::Path) -> Arc<EmbeddedLog> {
        let log = EmbeddedLog::open(EmbeddedOptions::new(dir)).unwrap();
        for (name, partitions) in [("shares", 2), ("jobs", 1), ("empty", 1)] {
            let retention = Retention { age: Some(Duration::from_secs(3_600)), bytes: None };
            log.create_topic(&TopicSpec { name: name.into(), partitions, retention }).await.unwrap();
        }
        for number in 0..300_u32 {
            let value = Bytes::from(format!("{number}").repeat(20));
            log.append(&Partition::new("shares", number % 2), vec![value.clone(), value]).await.unwrap();
        }
        log.trim(&Partition::new("shares", 1), Offset::new(100)).await.unwrap();
        log
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn all_is_there_at_its_offset_and_not_before_it_is_complete() {
        let dir = tempfile::tempdir().unwrap();
        let old: SharedLog = filled(&dir.path().join("old")).await;
        let options = || EmbeddedOptions { uuid: Some(old.uuid()), ..EmbeddedOptions::new(dir.path().join("new")) };
        let new = EmbeddedLog::open(options()).unwrap();
        let shared: SharedLog = new.clone();
        // As an interruption leaves it.
        let marker = TopicSpec { name: BROUGHT.into(), partitions: 1, retention: Retention::default() };
        shared.create_topic(&marker).await.unwrap();
        let spec = TopicSpec { name: "shares".into(), partitions: 2, retention: Retention::default() };
        shared.create_topic(&spec).await.unwrap();
        partition_to(&old, &shared, &Partition::new("shares", 0)).await.unwrap();
        let place = Partition::new(BROUGHT, 0);
        assert!(
            is_incomplete(Some(shared.bounds(&place).await.unwrap())) && !is_incomplete(old.bounds(&place).await.ok())
        );
        let mut partitions = Vec::new();
        let records = bring(&old, &shared, &mut |brought| partitions.push(brought.partition)).await.unwrap();
        assert_eq!((records, partitions.len()), (201, 4), "300 of partition 0 were there; of 1, 100 to 300");
        assert!(!is_incomplete(Some(shared.bounds(&place).await.unwrap())));
        assert!(is_same(&old, &shared).await.unwrap());
        let shares = shared.topics().await.unwrap().into_iter().find(|topic| &*topic.name == "shares").unwrap();
        assert_eq!(shares.retention.age, Some(Duration::from_secs(3_600)));
        assert_eq!(bring(&old, &shared, &mut |_| ()).await.unwrap(), 0, "it is complete");
        let strange: SharedLog = EmbeddedLog::open(EmbeddedOptions::new(dir.path().join("strange"))).unwrap();
        assert!(matches!(bring(&old, &strange, &mut |_| ()).await, Err(LogError::Unfit(_))), "another identity");
        drop((new, shared));
        let other = EmbeddedOptions { uuid: Some([9; 16]), ..options() };
        assert!(EmbeddedLog::open(other).is_err(), "a log has one identity");
    }
}
