//! What an operator is (DESIGN 5 and 6): a pure function of its ordered input and its state.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use sluice_proto::v1::Envelope;
use sluice_proto::{Body, Epoch, EventTime, Offset, Share};
use sluice_state::{StateError, Tables};

use crate::settings::Settings;

/// An operator: called with one record at a time, in the order of its input.
///
/// No clock, randomness, network or iteration order of a hash map inside (invariant S2): time comes in records, memory
/// is in `cx.state`, and what leaves goes through [`Context::emit`]. Fields of the operator itself may cache what is in
/// the state; what they hold beyond it, [`Operator::settle`] puts there before anything is committed. The operators `submit` (of the role [`crate::Role::World`]) and `ledger` are the
/// exceptions for which [`Externals`] and [`Operator::flush`] exist.
pub trait Operator: Send {
    /// Handles one record.
    ///
    /// # Errors
    /// An error stops the process (invariant P1); bad input from a miner is a verdict, not an error.
    fn process(&mut self, input: &Input<'_>, cx: &mut Context<'_>) -> Result<(), OperatorError>;

    /// The broadcast table (by its name as in [`crate::Kind::lookups`]) and the offset it must have applied before
    /// `record` can be processed. The task reads on in that table first.
    fn requires(&self, record: &Body) -> Option<(&'static str, Offset)> {
        let _ = record;
        None
    }

    /// Tells that the submission `share` (as far as its hash depends on it) has been read and is likely to come, behind those
    /// that were told before, so that many can be hashed at once. What is made of it may not show anywhere (invariant S2):
    /// which submissions are told is a matter of timing.
    fn foresee(&mut self, share: &Share<'_>) {
        let _ = share;
    }

    /// Called before each commit, behind the last record it covers: writes to the state what the operator has kept in
    /// its fields, so that a row which many records change is written once. Where commits lie must not show in the rows:
    /// a replay cuts others (invariant S2).
    ///
    /// # Errors
    /// An error stops the process; nothing is committed.
    fn settle(&mut self, state: &mut StateView<'_>) -> Result<(), OperatorError> {
        let _ = state;
        Ok(())
    }

    /// Called when the task has taken an epoch, before anything is processed in it: for what must know in which epoch it
    /// is written, so that an owner which was replaced does no harm outside the state.
    fn owned(&mut self, by: &Ownership<'_>) {
        let _ = by;
    }

    /// Called after the outputs of a batch have become durable and before the state and `positions` are committed:
    /// makes effects outside the state durable, together with `positions`. A crash after it repeats the batch, so what
    /// it stores must tell repeated records by their source offsets.
    ///
    /// # Errors
    /// An error stops the process; nothing is committed.
    fn flush(&mut self, positions: &[InputPosition]) -> Result<(), OperatorError> {
        let _ = positions;
        Ok(())
    }
}

/// The epoch that a task has taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ownership<'a> {
    /// Name of the task, the same for all its owners.
    pub task: &'a str,
    /// The epoch.
    pub epoch: Epoch,
}

/// A record on its way into an operator.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// Name of the input port, as in the operator's [`crate::InputSpec`]s.
    pub port: &'static str,
    /// Event time of the record.
    pub event_time: EventTime,
    /// The record. Whoever gets the same record shares it, see [`Context::pass`].
    pub record: &'a Arc<Body>,
    /// Where the task read it, or the record it was made from inside the task, from the log.
    pub source: &'a Source,
}

/// Where a record was read from the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Topic.
    pub topic: Arc<str>,
    /// Partition.
    pub partition: u32,
    /// How many partitions the topic has.
    pub partitions: u32,
    /// Generation of the topic (docs/adr/0018), from 1.
    pub generation: u32,
    /// The record was processed in the generation before, and is here so that the state knows of it: nothing that is sent
    /// because of it is stored. An operator with other effects leaves them out.
    pub history: bool,
    /// Offset.
    pub offset: Offset,
}

/// How far a task has read an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputPosition {
    /// Topic.
    pub topic: Arc<str>,
    /// Partition.
    pub partition: u32,
    /// The next offset to read.
    pub next: Offset,
}

/// What an operator has while it handles a record.
pub struct Context<'a> {
    /// The operator's state tables, by the index in its kind's list.
    pub state: StateView<'a>,
    lookups: &'a Lookups,
    out: &'a mut Vec<Emission>,
    /// Ports that lead nowhere.
    unwired: &'a [&'static str],
}

impl<'a> Context<'a> {
    /// A context; for the runtime and for tests.
    #[inline]
    pub fn new(state: StateView<'a>, lookups: &'a Lookups, out: &'a mut Vec<Emission>) -> Self {
        Self { state, lookups, out, unwired: &[] }
    }

    /// The same, with output ports that swallow what is sent to them.
    #[must_use]
    #[inline]
    pub fn unwired(self, ports: &'a [&'static str]) -> Self {
        Self { unwired: ports, ..self }
    }

    /// Sends a record to the output port `port`. Ports that the YAML leaves unwired swallow it.
    #[inline]
    pub fn emit(&mut self, port: &'static str, key: Key, event_time: EventTime, body: Body) {
        if !self.is_unwired(port) {
            self.out.push(Emission { port, key, event_time, body: Arc::new(body) });
        }
    }

    /// Sends the record at hand on as it is, without copying it.
    #[inline]
    pub fn pass(&mut self, port: &'static str, key: Key, input: &Input<'_>) {
        if !self.is_unwired(port) {
            let (event_time, body) = (input.event_time, Arc::clone(input.record));
            self.out.push(Emission { port, key, event_time, body });
        }
    }

    #[inline]
    fn is_unwired(&self, port: &'static str) -> bool {
        self.unwired.iter().any(|unwired| is_same(unwired, port))
    }

    /// The broadcast table of this kind, as far as it has been applied.
    ///
    /// # Errors
    /// If the operator's kind does not list it, or it is of another type: a mistake in the program.
    #[inline]
    pub fn lookup<T: Any>(&self, kind: &'static str) -> Result<&'a T, OperatorError> {
        self.lookups
            .get(kind)
            .and_then(|table| table.as_any().downcast_ref())
            .ok_or_else(|| OperatorError::Bug(format!("no broadcast table of kind {kind}")))
    }
}

/// An operator's own tables within its task's state.
pub struct StateView<'a> {
    tables: &'a mut Tables,
    first: usize,
}

impl<'a> StateView<'a> {
    /// The tables from index `first` on; for the runtime and for tests.
    pub fn new(tables: &'a mut Tables, first: usize) -> Self {
        Self { tables, first }
    }

    /// Value of `key` in the operator's table number `table`.
    pub fn get(&self, table: usize, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        self.tables.get(self.first + table, key)
    }

    /// Sets `key`.
    pub fn put(&mut self, table: usize, key: &[u8], value: &[u8]) -> Result<(), StateError> {
        self.tables.put(self.first + table, key, value)
    }

    /// Sets `key`, whose row has the hash `old` ([`sluice_state::row_hash`]; `None`: there is no row): spares looking it
    /// up. Returns the hash of the new row.
    pub fn put_over(&mut self, table: usize, key: &[u8], old: Option<u128>, value: &[u8]) -> Result<u128, StateError> {
        self.tables.put_over(self.first + table, key, old, value)
    }

    /// Sets `key` unless it is there; tells whether it was set.
    pub fn insert(&mut self, table: usize, key: &[u8], value: &[u8]) -> Result<bool, StateError> {
        self.tables.insert(self.first + table, key, value)
    }

    /// Removes `key`.
    pub fn delete(&mut self, table: usize, key: &[u8]) -> Result<(), StateError> {
        self.tables.delete(self.first + table, key)
    }

    /// Removes every row of a grouped table whose prefix is below `prefix`.
    pub fn expire_below(&mut self, table: usize, prefix: &[u8]) -> Result<(), StateError> {
        self.tables.expire_below(self.first + table, prefix)
    }

    /// Calls `visit` with each key and value in `from..to` in key order, uncommitted changes included, until it
    /// returns `false`.
    pub fn scan(
        &self,
        table: usize,
        from: &[u8],
        to: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StateError> {
        self.tables.scan(self.first + table, from, to, visit)
    }
}

/// Whether two names of kinds or ports are the same. Nearly always both are the same text in memory, which spares reading it.
#[inline]
pub(crate) fn is_same(one: &str, other: &str) -> bool {
    std::ptr::eq(one, other) || one == other
}

/// A record on its way out of an operator.
#[derive(Clone, Debug, PartialEq)]
pub struct Emission {
    /// Output port.
    pub port: &'static str,
    /// What picks the partition.
    pub key: Key,
    /// Event time of the record.
    pub event_time: EventTime,
    /// The record.
    pub body: Arc<Body>,
}

/// What picks the partition of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// These bytes, by murmur2.
    Bytes(Bytes),
    /// The session with this id: its 8 bytes, big-endian, by murmur2.
    Session(u64),
    /// The partition with this number.
    Partition(u32),
    /// A copy to each partition.
    Every,
}

impl Key {
    /// The key of a session.
    pub const fn session(id: u64) -> Self {
        Self::Session(id)
    }
}

/// A table that every task which needs it keeps for itself, fed by a topic of one partition.
pub trait BroadcastTable: Send {
    /// Applies the record at `offset`; called in order.
    ///
    /// # Errors
    /// An error stops the process.
    fn apply(&mut self, offset: Offset, record: &Envelope) -> Result<(), OperatorError>;

    /// Raw records (offset and bytes) the table needs to be rebuilt after a restart, as of now: they are kept in the
    /// task's state. Returns the smallest offset still needed; the task forgets what is before it.
    fn keep_from(&self) -> Offset;

    /// Whether the record at `offset` has been applied and what it brought has been forgotten since. Before a record is
    /// processed that requires `offset`, the task then reads the topic again and hands it to [`Self::recall`]. Only
    /// asked about offsets before [`Self::keep_from`].
    fn has_forgotten(&self, offset: Offset) -> bool {
        let _ = offset;
        false
    }

    /// Makes known again, until the next call, what was known when the record at `offset` was applied. `records` are
    /// those of the topic in order, from some place on to `offset`. `false` if they do not go back far enough.
    ///
    /// # Errors
    /// As [`Self::apply`].
    fn recall(&mut self, offset: Offset, records: &[(Offset, Envelope)]) -> Result<bool, OperatorError> {
        let _ = (offset, records);
        Ok(true)
    }

    /// For [`Context::lookup`].
    fn as_any(&self) -> &dyn Any;
}

/// Broadcast tables of a task by kind: one or two, which each record is looked up in.
#[derive(Default)]
pub struct Lookups(Vec<(&'static str, Box<dyn BroadcastTable>)>);

impl Lookups {
    /// Adds or replaces the table of `kind`.
    pub fn insert(&mut self, kind: &'static str, table: Box<dyn BroadcastTable>) {
        self.0.retain(|(known, _)| *known != kind);
        self.0.push((kind, table));
    }

    /// The table of `kind`.
    #[inline]
    pub fn get(&self, kind: &str) -> Option<&dyn BroadcastTable> {
        self.0.iter().find(|(known, _)| is_same(known, kind)).map(|(_, table)| table.as_ref())
    }

    /// The table of `kind`, to apply records to.
    pub fn get_mut(&mut self, kind: &str) -> Option<&mut Box<dyn BroadcastTable>> {
        self.0.iter_mut().find(|(known, _)| *known == kind).map(|(_, table)| table)
    }
}

/// What the outside lends to operators, by type: for instance `Arc<dyn BlockNodes>` for `submit`.
#[derive(Default)]
pub struct Externals(HashMap<TypeId, Box<dyn Any + Send + Sync>>);

impl Externals {
    /// Lends `value`.
    pub fn insert<T: Any + Send + Sync>(&mut self, value: T) {
        self.0.insert(TypeId::of::<T>(), Box::new(value));
    }

    /// What was lent of type `T`.
    pub fn get<T: Any + Send + Sync>(&self) -> Option<&T> {
        self.0.get(&TypeId::of::<T>()).and_then(|value| value.downcast_ref())
    }
}

/// What an operator or table is built from.
pub struct BuildContext<'a> {
    /// Name in the YAML.
    pub name: &'a str,
    /// Its settings.
    pub settings: &'a Settings,
    /// Chain of the topology: "main", "test", "testnet4", "signet" or "regtest".
    pub network: &'a str,
    /// The partition the task works on; 0 for [`crate::Parallel::Single`].
    pub partition: u32,
    /// How many partitions its first input has.
    pub partitions: u32,
    /// What the outside lends.
    pub externals: &'a Externals,
}

/// Why an operator could not go on.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// A record that cannot be right: the task stops (invariant P1).
    #[error("{0}")]
    Record(String),
    /// State could not be read or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// Something outside (a database, a node) failed for good.
    #[error("{0}")]
    External(String),
    /// The wait for something outside was ended because the program stops: the batch is repeated at the next start.
    #[error("{0}")]
    Interrupted(String),
    /// A setting that the operator cannot work with.
    #[error("{0}")]
    Setting(String),
    /// A mistake in the program.
    #[error("internal error: {0}")]
    Bug(String),
}
