//! What a log on Fluvio is told, and what its topics are called there.

use std::sync::Arc;

/// Largest record on SPUs, in bytes, as on Kafka: a block of 4 MB with its envelope fits four times. An SPU takes batches of
/// up to 32 MiB.
pub(super) const MAX_RECORD: usize = 16 << 20;
/// Most characters that Fluvio allows in the name of a topic.
const NAME: usize = 63;
/// Hexadecimal digits that tell names apart.
const DIGITS: usize = 16;

/// A log on SPUs of Fluvio.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FluvioOptions {
    /// `host:port` of the cluster's controller (SC), for clients: 9003 by default there. It names the SPUs.
    pub endpoint: String,
    /// What names of topics begin with on the cluster, so that several logs can live there: lower-case letters, digits and
    /// `-`, at most 20 of them.
    pub prefix: String,
    /// Copies of each partition that new topics get. All of them must have written a record before it is acknowledged;
    /// none has synced it.
    pub replication: u16,
    /// The identity of another log that this one is to go on with; a log that begins makes one of its own otherwise.
    pub uuid: Option<[u8; 16]>,
}

impl FluvioOptions {
    /// A log on this cluster, with three copies of each partition.
    pub fn new(endpoint: impl Into<String>) -> Self {
        Self { endpoint: endpoint.into(), prefix: String::new(), replication: 3, uuid: None }
    }

    /// Name of a topic on the cluster: what can be read of its name, and a hash of all of it, since Fluvio takes only
    /// lower-case letters, digits and `-`.
    pub(super) fn on_cluster(&self, topic: &str) -> Arc<str> {
        let legal = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
        let head: String = self.prefix.chars().chain(topic.chars()).map(legal).take(NAME - DIGITS - 1).collect();
        let (head, hash) = (head.trim_start_matches('-'), hash(topic));
        if head.is_empty() { format!("{hash:016x}").into() } else { format!("{head}-{hash:016x}").into() }
    }
}

/// FNV-1a: the same in every version of the program. Two names that met would be told by their genesis records.
fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_legal_on_a_cluster_and_differ() {
        let options = FluvioOptions { prefix: "pool1-".into(), ..FluvioOptions::new("localhost:9003") };
        let long = "x".repeat(200);
        let topics = ["share.valid", "share-valid", "Share.valid", "_", "-a", ".", &long, &long[1..]];
        for options in [options, FluvioOptions::new("localhost:9003")] {
            let names: std::collections::BTreeSet<_> = topics.iter().map(|topic| options.on_cluster(topic)).collect();
            assert_eq!(names.len(), topics.len(), "{names:?}");
            for name in names {
                let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
                assert!(name.len() <= NAME && name.chars().all(legal), "{name}");
                assert!(!name.starts_with('-') && !name.ends_with('-'), "{name}");
            }
        }
    }

    /// A cluster keeps its topics: what they are called must never change.
    #[test]
    fn names_stay_what_they_are() {
        let options = FluvioOptions { prefix: "pool1-".into(), ..FluvioOptions::new("localhost:9003") };
        assert_eq!(&*options.on_cluster("share.valid"), "pool1-share-valid-56e6e9d6ecbe3904");
    }
}
