//! From `topology.yaml` to running tasks (DESIGN 3 and 5).
//!
//! ```text
//! yaml -> spec (with source spans) -> check -> Graph -> plan of tasks -> runtime
//! ```
//!
//! Operators and services are known to this crate only by their [`Kind`]: what they read and write, their settings,
//! their state, and how to build one.

mod check;
pub mod disk;
pub mod draw;
pub mod graph;
pub mod kind;
pub mod operator;
pub mod reference;
pub mod runtime;
pub mod selection;
mod settings;
pub mod spec;
#[cfg(test)]
mod testing;

pub use check::load;
pub use graph::{Graph, Group, Node, Table, Topic, Wire};
pub use kind::{
    Build, InputSpec, Keyed, Kind, OutputSpec, Parallel, Registry, Role, SettingSpec, SettingType, StateTable,
    TableKind,
};
pub use operator::{
    BroadcastTable, BuildContext, Context, Emission, Externals, Input, InputPosition, Key, Lookups, Operator,
    OperatorError, Ownership, Source,
};
pub use settings::{SettingValue, Settings};
pub use spec::{CacheConfig, Checkpoints, Config, Environment, FileText, LogConfig, Override, Report, Secret, network};
