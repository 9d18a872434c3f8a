//! The Bitcoin side's sources (DESIGN 8): clients of nodes, and the service that turns their templates into jobs.
//!
//! ```text
//! node --ZMQ hashblock--> JobManager --template chunks--> mining.templates
//!      <--getblocktemplate--        \--jobs-------------> mining.jobs
//! node <--submitblock-- Nodes (lent to the operator `submit`, on connections of its own)
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

mod chunks;
mod manager;
mod node;
mod nodes;
mod source;
mod status;
mod transport;
mod zmq;

pub use manager::{JobManager, JobManagerConfig, JobManagerError, JobManagerIo};
pub use node::{NodeClient, NodeConfig, NodeError};
pub use nodes::Nodes;
pub use status::{NodeState, NodeStatus, Status};

use sluice_proto::RecordKind;
use sluice_topology::{Keyed, Kind, OutputSpec, Parallel, Role, SettingSpec, SettingType};

/// The service as the topology knows it.
pub static KIND: Kind = Kind {
    name: "jobmanager",
    summary: "makes jobs of the nodes' block templates",
    inputs: &[],
    outputs: &[
        OutputSpec { name: "jobs", writes: &[RecordKind::Job], optional: false, keyed: Keyed::Single },
        OutputSpec { name: "templates", writes: &[RecordKind::TemplateChunk], optional: false, keyed: Keyed::Single },
    ],
    lookups: &[],
    settings: &[
        SettingSpec {
            name: "refresh",
            ty: SettingType::Duration,
            default: Some("30s"),
            doc: "a new job at least this often, with the transactions of the moment",
        },
        SettingSpec {
            name: "poll",
            ty: SettingType::Duration,
            default: Some("2s"),
            doc: "how often the tip is asked for, in case its notice was missed or there is no ZMQ",
        },
        SettingSpec {
            name: "stale_grace",
            ty: SettingType::Duration,
            default: Some("2s"),
            doc: "for how long after a new tip shares of the old one are accepted",
        },
        SettingSpec {
            name: "keep",
            ty: SettingType::Duration,
            default: Some("5m"),
            doc: "for how long a job is accepted after the next one",
        },
        SettingSpec {
            name: "version_mask",
            ty: SettingType::Text,
            default: Some("1fffe000"),
            doc: "version bits that miners may roll, 8 hex digits (BIP320)",
        },
    ],
    state: &[],
    parallel: Parallel::Single,
    role: Role::Service,
};
