//! The genesis record at offset 0 of each partition: which log, topic and partition this is (DESIGN 2).

use bytes::Bytes;
use sluice_proto::v1::{Coordinates, Envelope, Genesis};
use sluice_proto::{Body, EventTime, decode, encode};

use crate::{LogError, Partition};

/// The genesis record of a partition of a topic that has `partitions` of them, in the log `uuid`.
pub fn genesis_record(uuid: [u8; 16], of: &Partition, partitions: u32) -> Bytes {
    genesis_at(EventTime::now(), uuid, of, partitions)
}

/// As [`genesis_record`], written at `time`.
pub(crate) fn genesis_at(time: EventTime, uuid: [u8; 16], of: &Partition, partitions: u32) -> Bytes {
    let body = Genesis {
        log_uuid: Bytes::copy_from_slice(&uuid),
        topic: of.topic.to_string(),
        partition: of.number,
        partitions,
    };
    encode(&Envelope::new(time, Coordinates::default(), Body::Genesis(body)))
}

/// Checks that `record` is the genesis record of `of` in the log `uuid`.
///
/// # Errors
/// [`LogError::Corrupt`] if it is another record, or of another log, topic, partition or number of partitions.
pub fn check_genesis(record: Bytes, uuid: [u8; 16], of: &Partition, partitions: u32) -> Result<(), LogError> {
    let envelope = decode(record).map_err(|e| LogError::Corrupt(format!("the genesis record of {of}: {e}")))?;
    let Some(Body::Genesis(found)) = envelope.body else {
        return Err(LogError::Corrupt(format!("the record at offset 0 of {of} is no genesis record")));
    };
    let same = found.log_uuid == uuid.as_slice()
        && *found.topic == *of.topic
        && found.partition == of.number
        && found.partitions == partitions;
    if same {
        return Ok(());
    }
    Err(LogError::Corrupt(format!(
        "{of} holds records of {}/{} of {} partitions in another log ({}); give it a directory of its own",
        found.topic,
        found.partition,
        found.partitions,
        show_uuid(&found.log_uuid),
    )))
}

/// A new random identity of a log: a UUID of version 4.
pub fn new_uuid() -> [u8; 16] {
    // The standard library seeds its hash maps from the operating system's randomness; two such seeds make 128 bits,
    // without a crate for it.
    let mut uuid = [0; 16];
    uuid[..8].copy_from_slice(&random_u64().to_be_bytes());
    uuid[8..].copy_from_slice(&random_u64().to_be_bytes());
    uuid[6] = (uuid[6] & 0x0f) | 0x40;
    uuid[8] = (uuid[8] & 0x3f) | 0x80;
    uuid
}

fn random_u64() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // A new thread draws new seeds; within one, the standard library only counts them up.
    let hash = || {
        let mut hasher = std::hash::RandomState::new().build_hasher();
        hasher.write_u64(EventTime::now().nanos());
        hasher.finish()
    };
    std::thread::spawn(hash).join().unwrap_or_else(|_| hash())
}

/// A UUID as people write it: lower-case hex in groups of 8-4-4-4-12.
pub fn show_uuid(uuid: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(36);
    for (i, byte) in uuid.iter().enumerate() {
        if [4, 6, 8, 10].contains(&i) {
            text.push('-');
        }
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// The identity of a log, if it is the one that was asked for.
pub(crate) fn is_wanted(uuid: [u8; 16], wanted: Option<[u8; 16]>) -> Result<[u8; 16], LogError> {
    match wanted.filter(|wanted| *wanted != uuid) {
        None => Ok(uuid),
        Some(wanted) => {
            let (is, wanted) = (show_uuid(&uuid), show_uuid(&wanted));
            Err(LogError::Unfit(format!(
                "it is the log {is}, not {wanted}: it belongs to another pool, or to another time"
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_genesis_of_another_partition_is_refused() {
        let (uuid, of) = (new_uuid(), Partition::new("t", 1));
        let record = genesis_record(uuid, &of, 2);
        check_genesis(record.clone(), uuid, &of, 2).unwrap();
        for (uuid, of, count) in [
            (new_uuid(), of.clone(), 2),
            (uuid, Partition::new("t", 0), 2),
            (uuid, Partition::new("u", 1), 2),
            (uuid, of, 3),
        ] {
            assert!(matches!(check_genesis(record.clone(), uuid, &of, count), Err(LogError::Corrupt(_))));
        }
    }

    #[test]
    fn uuids_differ_and_look_like_version_4() {
        let (a, b) = (new_uuid(), new_uuid());
        assert_ne!(a, b);
        let text = show_uuid(&a);
        assert_eq!(text.len(), 36);
        assert_eq!(text.as_bytes()[14], b'4');
    }
}
