//! Running tasks (DESIGN 5): reading, lanes, direct hand-over, durable outputs, one atomic commit a batch.

pub mod plan;

pub use plan::{Destination, OperatorSpec, OutputWire, Plan, PortRef, StoredInput, TableFeed, TaskSpec};
