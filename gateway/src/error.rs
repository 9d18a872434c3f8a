//! Why a gateway cannot start.

use sluice_log::LogError;
use sluice_topology::runtime::ReadError;

/// Why a gateway cannot start, or the cause with which it has failed.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// A setting that cannot be used.
    #[error("{name}: {problem}")]
    Setting {
        /// The gateway's name in the topology.
        name: String,
        /// What is wrong and what to do.
        problem: String,
    },
    /// An address that cannot be listened on.
    #[error("{name}: cannot listen on {address}: {error}; free the address or choose another one in `listen`")]
    Listen {
        /// The gateway's name in the topology.
        name: String,
        /// The address as the topology has it.
        address: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// A certificate that cannot be used.
    #[error("{name}: {problem}")]
    Certificate {
        /// The gateway's name in the topology.
        name: String,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A topic that the log does not have.
    #[error("{name}: the log has no topic {topic}; create the topics of the topology before starting the gateway")]
    NoTopic {
        /// The gateway's name in the topology.
        name: String,
        /// The topic.
        topic: String,
    },
    /// The log failed.
    #[error("{name}: {error}")]
    Log {
        /// The gateway's name in the topology.
        name: String,
        /// What the log said.
        error: LogError,
    },
    /// A topic that cannot be read.
    #[error("{name}: {error}")]
    Read {
        /// The gateway's name in the topology.
        name: String,
        /// What is wrong.
        error: Box<ReadError>,
    },
    /// A job that cannot be used.
    #[error("{name}: {problem}")]
    Job {
        /// The gateway's name in the topology.
        name: String,
        /// Which job and what is wrong with it.
        problem: String,
    },
    /// A record in the topic of decisions that is none.
    #[error("{name}: {problem}")]
    Target {
        /// The gateway's name in the topology.
        name: String,
        /// Which record, and what to do.
        problem: String,
    },
    /// The system gave no thread or no event loop.
    #[error("{name}: cannot start a thread: {error}")]
    Thread {
        /// The gateway's name in the topology.
        name: String,
        /// What the system said.
        error: std::io::Error,
    },
}
