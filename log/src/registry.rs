//! The topic that says which log this is and which topics it has.
//!
//! Its first record is the log's genesis: of several processes that begin a log at once, one comes first, and all take
//! its identity. Then comes, for each partition of each topic, the genesis record that the partition gets, of several the
//! first; and, once it has got it, the same without a time. So it is known of a partition without records whether it is new or
//! has lost them, and all processes write the same bytes.

use std::collections::HashMap;

use bytes::Bytes;
use sluice_proto::v1::Genesis;
use sluice_proto::{Body, EventTime, Offset, decode};

use crate::{LogError, Partition, Record};

/// Name of the topic. Names that begin with `sluice.` are the program's own.
pub(super) const TOPIC: &str = "sluice.log";

/// What the topic says.
#[derive(Default)]
pub(super) struct Registry {
    uuid: Option<[u8; 16]>,
    named: HashMap<Partition, Named>,
    /// What is to be read next.
    pub(super) next: Offset,
}

/// A partition.
#[derive(Clone, Debug)]
pub(super) struct Named {
    pub(super) genesis: Bytes,
    /// Number of partitions of its topic.
    pub(super) partitions: u32,
    /// It had its genesis record once.
    pub(super) created: bool,
}

impl Registry {
    /// Takes in what was read.
    pub(super) fn take(&mut self, records: Vec<Record>) -> Result<(), LogError> {
        for record in records {
            self.next = record.offset.next();
            let (time, Genesis { log_uuid, topic, partition, partitions }) = genesis(&record)?;
            let uuid: [u8; 16] = log_uuid[..].try_into().map_err(|_| wrong(&record, "a log without identity"))?;
            if topic == TOPIC {
                // Who began the log at the same time has lost.
                self.uuid.get_or_insert(uuid);
                continue;
            }
            if self.uuid != Some(uuid) {
                continue;
            }
            let new = || Named { genesis: record.value.clone(), partitions, created: false };
            let named = self.named.entry(Partition::new(topic, partition)).or_insert_with(new);
            named.created |= time == EventTime::from_nanos(0);
        }
        Ok(())
    }

    /// Identity of the log, if it has one.
    pub(super) fn uuid(&self) -> Option<[u8; 16]> {
        self.uuid
    }

    /// What is known of a partition.
    pub(super) fn named(&self, partition: &Partition) -> Option<&Named> {
        self.named.get(partition)
    }

    /// What is known of the partitions of a topic, in order; nothing where not all of them have been named yet.
    pub(super) fn of_topic(&self, topic: &std::sync::Arc<str>) -> Vec<Named> {
        let named = (0..).map_while(|number| self.named(&Partition::new(topic.clone(), number)).cloned());
        let named: Vec<Named> = named.collect();
        let complete = named.first().is_some_and(|first| first.partitions as usize == named.len());
        if complete { named } else { Vec::new() }
    }

    /// Names of all topics.
    pub(super) fn topics(&self) -> std::collections::BTreeSet<std::sync::Arc<str>> {
        self.named.keys().map(|partition| partition.topic.clone()).collect()
    }
}

/// What says that a partition has got its genesis record.
pub(super) fn created(uuid: [u8; 16], of: &Partition, partitions: u32) -> Bytes {
    crate::genesis::genesis_at(EventTime::from_nanos(0), uuid, of, partitions)
}

fn genesis(record: &Record) -> Result<(EventTime, Genesis), LogError> {
    match decode(record.value.clone()).map(|envelope| (envelope.event_time(), envelope.body)) {
        Ok((time, Some(Body::Genesis(genesis)))) => Ok((time, genesis)),
        Ok(_) => Err(wrong(record, "no genesis record")),
        Err(error) => Err(wrong(record, &error.to_string())),
    }
}

fn wrong(record: &Record, what: &str) -> LogError {
    LogError::Corrupt(format!("{TOPIC}/0 offset {}: {what}; is the topic another program's?", record.offset))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{genesis_record, new_uuid};

    #[test]
    fn the_first_identity_and_the_first_genesis_stand() {
        let (one, other) = (new_uuid(), new_uuid());
        let of = Partition::new("shares", 1);
        let itself = Partition::new(TOPIC, 0);
        let values = [
            genesis_record(one, &itself, 1),
            genesis_record(other, &itself, 1),
            genesis_record(one, &of, 2),
            genesis_record(other, &Partition::new("others", 0), 1),
        ];
        let records =
            values.iter().zip(0..).map(|(value, at)| Record { offset: Offset::new(at), value: value.clone() });
        let mut registry = Registry::default();
        registry.take(records.collect()).unwrap();
        assert_eq!((registry.uuid(), registry.next), (Some(one), Offset::new(4)));
        let named = registry.named(&of).unwrap();
        assert_eq!((named.partitions, named.created, &named.genesis), (2, false, &values[2]));
        assert_eq!(registry.topics().len(), 1, "what another log names is none of this one's");
        for (offset, value, is_created) in [(4, genesis_record(one, &of, 2), false), (5, created(one, &of, 2), true)] {
            registry.take(vec![Record { offset: Offset::new(offset), value }]).unwrap();
            let named = registry.named(&of).unwrap();
            assert_eq!((named.created, &named.genesis), (is_created, &values[2]), "the one that came first stands");
        }
        let foreign = Record { offset: Offset::new(6), value: Bytes::from_static(b"x") };
        assert!(matches!(registry.take(vec![foreign]), Err(LogError::Corrupt(_))));
    }
}
