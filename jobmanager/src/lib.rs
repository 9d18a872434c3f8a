//! The Bitcoin side's sources (DESIGN 8): clients of nodes, and the service that turns their templates into jobs.
//!
//! ```text
//! node --ZMQ hashblock, sequence--> JobManager --template chunks--> mining.templates
//!      <--getblocktemplate, longpoll--        \--jobs-------------> mining.jobs
//! node <--submitblock-- Nodes (lent to the operator `submit`, on connections of its own)
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

mod board;
mod chunks;
mod manager;
mod node;
mod nodes;
mod status;
mod transport;
mod watch;
mod worker;
mod writer;
mod zmq;

pub use manager::{JobManager, JobManagerConfig, JobManagerError, JobManagerIo};
pub use node::{BlockCall, NodeClient, NodeConfig, NodeError};
pub use nodes::Nodes;
pub use status::{Latency, NodeState, NodeStatus, Status, TIP_BOUNDS_US};

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
            name: "refresh_fees",
            ty: SettingType::Integer(0, 1_000),
            default: Some("5"),
            doc: "a new job before `refresh` where the fees have grown by this many per cent since the last one; 0 for never",
        },
        SettingSpec {
            name: "fee_poll",
            ty: SettingType::Duration,
            default: Some("10s"),
            doc: "how often the fees are looked at for `refresh_fees`; each time costs the node a template",
        },
        SettingSpec {
            name: "poll",
            ty: SettingType::Duration,
            default: Some("2s"),
            doc: "how often each node's tip is asked for, in case its notice was missed; where ZMQ is missing or silent, a \
                  longpoll waits for it besides",
        },
        SettingSpec {
            name: "stuck_after",
            ty: SettingType::Duration,
            default: Some("2m"),
            doc: "a node whose tip stays behind the others' for this long, or the time of whose templates stands still and \
                  is this old, is told and no longer chosen",
        },
        SettingSpec {
            name: "coinbase_limit",
            ty: SettingType::Integer(100, 100_000),
            default: Some("1000"),
            doc: "largest coinbase transaction without witness, bytes; the pool makes no larger one but stops. Known \
                  firmware takes about 2,250 (S21), 6,500 (Whatsminer), and less where work is resold",
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
