//! How the nodes and the jobs are, for health and metrics.

use std::time::SystemTime;

/// How a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeState {
    /// Not asked yet.
    Connecting,
    /// Its last answer was good.
    Ok,
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
    /// Tip notices from its ZMQ endpoint so far.
    pub notices: u64,
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
}
