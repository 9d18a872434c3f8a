//! Why a task cannot go on.

use sluice_log::{LogError, Partition};
use sluice_proto::{Epoch, Offset};
use sluice_state::StateError;

use super::order::ORDER_TOPIC;
use super::owners::OwnerError;
use super::reader::ReadError;
use crate::operator::OperatorError;

/// Why a task stopped. Nothing of the batch it was at has been committed (invariant P1).
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// An input could not be read, or what was read cannot be right.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The state could not be opened, read or committed.
    #[error(transparent)]
    State(#[from] StateError),
    /// A test wants it to fail (docs/adr/0020).
    #[error(transparent)]
    Injected(#[from] sluice_failpoints::Injected),
    /// An operator or a table could not be built.
    #[error("cannot set up {name}: {error}")]
    Build {
        /// Its name in the YAML.
        name: String,
        /// Why.
        error: OperatorError,
    },
    /// An operator refused a record.
    #[error("{operator} stopped at {partition} offset {offset}: {error}")]
    Operator {
        /// Its name in the YAML.
        operator: String,
        /// Partition of the record, or of the one it was made from.
        partition: Partition,
        /// Its offset.
        offset: Offset,
        /// Why.
        error: OperatorError,
    },
    /// An operator could not make its effects durable.
    #[error("{operator} could not store what it did: {error}")]
    Flush {
        /// Its name in the YAML.
        operator: String,
        /// Why.
        error: OperatorError,
    },
    /// An operator could not put into the state what it kept of the batch.
    #[error("{operator} could not write its state: {error}")]
    Settle {
        /// Its name in the YAML.
        operator: String,
        /// Why.
        error: OperatorError,
    },
    /// A broadcast table refused a record.
    #[error("table {table} stopped at {partition} offset {offset}: {error}")]
    Table {
        /// Its name in the YAML.
        table: String,
        /// Partition of the record.
        partition: Partition,
        /// Its offset.
        offset: Offset,
        /// Why.
        error: OperatorError,
    },
    /// A record cites an offset of a table's topic that the log does not have.
    #[error(
        "{operator} needs table {table} as of {partition} offset {needed}, but after {waited_ms} ms the log only had \
         records before {have}: the topic has lost records, or is not the one that the record was made with"
    )]
    TableBehind {
        /// The operator.
        operator: String,
        /// The table.
        table: String,
        /// Partition the table is made from.
        partition: Partition,
        /// Offset that must have been applied.
        needed: Offset,
        /// First offset that is not there.
        have: Offset,
        /// How long was waited, milliseconds.
        waited_ms: u64,
    },
    /// Outputs could not be appended.
    #[error("cannot append to {partition}: {error}")]
    Append {
        /// The partition.
        partition: Partition,
        /// What the log said.
        error: LogError,
    },
    /// What the task makes is not what is in the log (invariant S2).
    #[error(
        "{0}: outputs are no function of the inputs, or settings have changed since (see `sluice replay --verify`)"
    )]
    Differs(Box<super::follow::Difference>),
    /// What the task makes is not in the log, though its input is. Where it is the log's end, no error.
    #[error("{output} ends before what was made from {input} offset {offset}")]
    Unrecorded {
        /// Partition of the output.
        output: Partition,
        /// Partition that it was made from.
        input: Partition,
        /// Offset there.
        offset: Offset,
    },
    /// Records that a replay would have to begin with are gone.
    #[error(
        "the log has trimmed {partition} up to offset {start}, the task would begin at {position}: it can only be made \
         again from a state or checkpoint whose position is still there"
    )]
    Trimmed {
        /// The partition.
        partition: Partition,
        /// Where the task would begin.
        position: Offset,
        /// First offset that is still there.
        start: Offset,
    },
    /// Recorded outputs of one input fill the memory before those of another one come.
    #[error(
        "{bytes} bytes of {partition} were read ahead of what the task is at: its inputs are too far apart to be \
         followed together"
    )]
    TooFarAhead {
        /// Partition of the outputs.
        partition: Partition,
        /// How many bytes wait.
        bytes: usize,
    },
    /// The state is ahead of the log.
    #[error(
        "the state has read {partition} up to offset {position}, but the log ends at {next}: the log has lost records \
         or is another one; restore it, or replay the task into a new state"
    )]
    Regressed {
        /// The partition.
        partition: Partition,
        /// Position in the state.
        position: Offset,
        /// End of the log.
        next: Offset,
    },
    /// The order of inputs that was written down names one that the task does not have.
    #[error(
        "the order of inputs at {ORDER_TOPIC}/0 offset {at} names {input}, which the task does not read: it was written by \
         another topology; give the task's first operator another name"
    )]
    Turn {
        /// Offset of the record.
        at: Offset,
        /// The input.
        input: Partition,
    },
    /// The task could not take its epoch, or not look after it.
    #[error(transparent)]
    Owner(#[from] OwnerError),
    /// Another process has opened the task. What this one had not committed counts there.
    #[error(
        "task {task} was taken over by another process: it now runs in epoch {by}, and this process held epoch {own}; \
         nothing is lost, let one of the two run"
    )]
    Fenced {
        /// The task.
        task: String,
        /// The epoch that this process held.
        own: Epoch,
        /// The epoch of the process that has it now.
        by: Epoch,
    },
    /// The plan cannot be run: a mistake in the program.
    #[error("internal error in the plan of task {task}: {what}")]
    Plan {
        /// The task.
        task: String,
        /// What is wrong.
        what: String,
    },
    /// The task panicked: a mistake in the program.
    #[error("internal error: the task panicked: {0}")]
    Panic(String),
}
