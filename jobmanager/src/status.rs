//! How the nodes and the jobs are, for health and metrics.

use std::time::{Duration, SystemTime};

/// How a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeState {
    /// Not asked yet.
    Connecting,
    /// Its last answer was good.
    Ok,
    /// It answers, but stands still: its tip stays behind the others', or the clock of its templates does not move. No
    /// templates are taken from it while another node gives them.
    Stuck {
        /// Since when it is known to stand still.
        since: SystemTime,
        /// What stands still.
        why: String,
    },
    /// Its last call failed.
    Failed {
        /// Since when calls fail.
        since: SystemTime,
        /// What went wrong last.
        error: String,
    },
}

/// A node and how it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// How it is.
    pub state: NodeState,
    /// Templates come from it.
    pub chosen: bool,
    /// Height of its tip; 0 if it is not known.
    pub height: u32,
    /// Tip notices from its ZMQ endpoint so far.
    pub notices: u64,
    /// Its ZMQ messages that did not arrive, by their numbers.
    pub lost: u64,
    /// Blocks that left its best chain, as heard by ZMQ.
    pub disconnected: u64,
    /// How often it was found to stand still.
    pub stuck: u64,
    /// New tips are waited for by longpoll, since it has no ZMQ or its ZMQ is silent.
    pub longpoll: bool,
}

/// Upper bounds of [`Latency::buckets`], microseconds.
pub const TIP_BOUNDS_US: [u64; 10] = [250, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 65_000, 250_000, 1_000_000];

/// How long something took, each time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// How often it took at most as long as [`TIP_BOUNDS_US`] says; the last one longer.
    pub buckets: [u64; TIP_BOUNDS_US.len() + 1],
    /// Sum.
    pub sum: Duration,
    /// The last one.
    pub last: Duration,
}

impl Latency {
    pub(crate) fn record(&mut self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.buckets[TIP_BOUNDS_US.partition_point(|bound| *bound < micros)] += 1;
        self.sum += took;
        self.last = took;
    }

    /// How often it was measured.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// What the jobmanager does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The nodes.
    pub nodes: Vec<NodeStatus>,
    /// Height being mined; 0 before the first job.
    pub height: u32,
    /// Compact network target; 0 before the first job.
    pub nbits: u32,
    /// Jobs written since the start.
    pub jobs: u64,
    /// When the last job was written.
    pub last_job: Option<SystemTime>,
    /// New tips since the start.
    pub tips: u64,
    /// Jobs written before their time since the fees had grown.
    pub fee_jobs: u64,
    /// From a new tip's notice (ZMQ, longpoll or poll) until its first job was durable.
    pub tip_latency: Latency,
}

impl Status {
    /// Before anything was asked.
    pub(crate) fn new(nodes: impl Iterator<Item = String>) -> Self {
        let node = |name| NodeStatus {
            name,
            state: NodeState::Connecting,
            chosen: false,
            height: 0,
            notices: 0,
            lost: 0,
            disconnected: 0,
            stuck: 0,
            longpoll: false,
        };
        Self {
            nodes: nodes.map(node).collect(),
            height: 0,
            nbits: 0,
            jobs: 0,
            last_job: None,
            tips: 0,
            fee_jobs: 0,
            tip_latency: Latency::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_fall_into_their_buckets() {
        let mut latency = Latency::default();
        for micros in [0, 250, 251, 65_000, 1_000_001] {
            latency.record(Duration::from_micros(micros));
        }
        assert_eq!(latency.buckets, [2, 1, 0, 0, 0, 0, 0, 1, 0, 0, 1]);
        assert_eq!((latency.count(), latency.last), (5, Duration::from_micros(1_000_001)));
        assert_eq!(latency.sum, Duration::from_micros(1_065_502));
    }
}
