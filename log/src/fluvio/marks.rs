//! What Fluvio cannot keep, kept in a topic of the log's own: where partitions that were trimmed begin, and for how long the
//! records of a topic were last asked to be kept.
//!
//! Fluvio removes records by age and size only, so a trimmed partition begins later for every reader, but takes no less
//! room. A record is a line of text: `trim TOPIC PARTITION OFFSET` or `retention TOPIC MILLISECONDS BYTES`, with `-` for ever
//! and for any number.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sluice_proto::Offset;

use crate::{Bounds, LogError, Partition, Record, Retention};

/// Name of the topic. Names that begin with `sluice.` are the program's own.
pub(super) const TOPIC: &str = "sluice.marks";

/// What the topic says.
#[derive(Default)]
pub(super) struct Marks {
    starts: HashMap<Partition, u64>,
    retentions: HashMap<Arc<str>, Retention>,
}

impl Marks {
    /// Takes in what was read.
    pub(super) fn take(&mut self, records: &[Record]) -> Result<(), LogError> {
        for record in records {
            let taken = std::str::from_utf8(&record.value).ok().and_then(|line| self.take_line(line));
            taken.ok_or_else(|| {
                LogError::Corrupt(format!(
                    "{TOPIC}/0 offset {}: no mark; is the topic another program's?",
                    record.offset
                ))
            })?;
        }
        Ok(())
    }

    fn take_line(&mut self, line: &str) -> Option<()> {
        let mut words = line.split(' ');
        let (kind, topic): (_, Arc<str>) = (words.next()?, words.next()?.into());
        let (one, other) = (words.next()?, words.next()?);
        match kind {
            "trim" => {
                let start = self.starts.entry(Partition::new(topic, one.parse().ok()?)).or_default();
                // Two processes may trim at once: it never moves back.
                *start = (*start).max(other.parse().ok()?);
            }
            "retention" => {
                let age = bound(one)?.map(Duration::from_millis);
                self.retentions.insert(topic, Retention { age, bytes: bound(other)? });
            }
            _ => return None,
        }
        words.next().is_none().then_some(())
    }

    /// Bounds of a partition, as they are without what was trimmed.
    pub(super) fn within(&self, of: &Partition, bounds: Bounds) -> Bounds {
        let trimmed = self.starts.get(of).copied().unwrap_or(0);
        // A partition that lost its end must not begin behind it: who reads there is told by what is next.
        Bounds { start: bounds.start.max(Offset::new(trimmed)).min(bounds.next), ..bounds }
    }

    /// For how long the records of a topic were last asked to be kept, if that ever differed from how it was made.
    pub(super) fn retention(&self, topic: &str) -> Option<Retention> {
        self.retentions.get(topic).copied()
    }
}

/// A number, or none.
fn bound(word: &str) -> Option<Option<u64>> {
    if word == "-" { Some(None) } else { word.parse().ok().map(Some) }
}

/// That a partition begins at `start` from now on.
pub(super) fn trimmed(of: &Partition, start: u64) -> Bytes {
    format!("trim {} {} {start}", of.topic, of.number).into()
}

/// For how long the records of a topic are asked to be kept.
pub(super) fn retained(topic: &str, retention: Retention) -> Bytes {
    let word = |bound: Option<u64>| bound.map_or("-".to_owned(), |bound| bound.to_string());
    let age = retention.age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
    format!("retention {topic} {} {}", word(age), word(retention.bytes)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(values: Vec<Bytes>) -> Vec<Record> {
        values.into_iter().zip(1..).map(|(value, offset)| Record { offset: Offset::new(offset), value }).collect()
    }

    #[test]
    fn marks_are_read_as_written() {
        let (of, other) = (Partition::new("share.valid", 3), Partition::new("share.valid", 4));
        let retention = Retention { age: Some(Duration::from_millis(1500)), bytes: None };
        let mut marks = Marks::default();
        let written =
            vec![trimmed(&of, 8), retained("jobs", Retention::default()), trimmed(&of, 5), retained("jobs", retention)];
        marks.take(&records(written)).unwrap();
        let bounds = |start, next| Bounds { start: Offset::new(start), next: Offset::new(next) };
        assert_eq!(marks.within(&of, bounds(0, 20)), bounds(8, 20));
        assert_eq!(marks.within(&of, bounds(9, 20)), bounds(9, 20), "Fluvio has removed more");
        assert_eq!(marks.within(&of, bounds(0, 3)), bounds(3, 3), "records are lost");
        assert_eq!(marks.within(&other, bounds(0, 20)), bounds(0, 20));
        assert_eq!((marks.retention("jobs"), marks.retention("share.valid")), (Some(retention), None));
    }

    #[test]
    fn what_is_no_mark_is_told() {
        for line in ["", "trim", "trim a 1", "trim a 1 x", "trim a 1 2 3", "keep a 1 2", "retention a - "] {
            let taken = Marks::default().take(&records(vec![line.into()]));
            assert!(matches!(taken, Err(LogError::Corrupt(_))), "{line:?}");
        }
    }
}
