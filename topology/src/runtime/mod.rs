//! Running tasks (DESIGN 5): reading, lanes, direct hand-over, durable outputs, one atomic commit a batch.
//!
//! ```text
//! log --> reader (decode, watermarks) --> task (operators, direct edges) --> log, then state: one commit
//! ```
//!
//! Services that are no tasks (gateway, jobmanager) write with a [`Producer`] and read with a [`TopicReader`].

mod broadcast;
mod error;
mod feed;
mod follow;
mod handle;
pub mod lanes;
pub mod letters;
mod nodes;
mod order;
mod outbox;
mod owners;
mod pace;
pub(crate) mod persist;
mod picker;
pub mod plan;
mod producer;
mod reader;
pub mod replay;
pub mod rescale;
mod single;
mod source_epoch;
mod status;
mod task;
#[cfg(test)]
mod tests;
mod world;

pub use error::TaskError;
pub use follow::{Compared, Difference, Differs};
pub use handle::{
    RuntimeHandle, RuntimeOptions, StandbyRuntime, StartError, StopError, TableReader, TaskFailure, TopologyRuntime,
};
pub use nodes::state_tables;
pub use order::ORDER_TOPIC;
pub use owners::{OWNERS_TOPIC, OwnerError, Owners};
pub use persist::describe;
pub use plan::{Destination, OperatorSpec, OutputWire, Plan, PortRef, StoredInput, TableFeed, TaskSpec};
pub use producer::{Producer, Writer};
pub use reader::{ReadError, TopicReader};
pub use single::{run_task, topics_of};
pub use status::{InputStatus, OperatorStatus, TaskState, TaskStatus};
