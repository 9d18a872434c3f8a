//! What the topology knows of each kind of operator, service and table.

use sluice_proto::RecordKind;
use sluice_state::{TableSpec, TableStep};

use crate::operator::{BroadcastTable, BuildContext, Operator, OperatorError};

/// A kind of operator or service, as `kind: NAME` in the YAML names it.
pub struct Kind {
    /// Name in the YAML.
    pub name: &'static str,
    /// One line for `--help`, errors and graphs.
    pub summary: &'static str,
    /// Topics it reads.
    pub inputs: &'static [InputSpec],
    /// Topics it writes.
    pub outputs: &'static [OutputSpec],
    /// Kinds of broadcast table it looks things up in; the YAML names one table of each in `tables: [..]`.
    pub lookups: &'static [&'static str],
    /// Its other settings.
    pub settings: &'static [SettingSpec],
    /// Its state tables.
    pub state: &'static [StateTable],
    /// How instances and partitions go together.
    pub parallel: Parallel,
    /// What runs it.
    pub role: Role,
}

/// Makes an operator.
pub type Build = fn(&BuildContext<'_>) -> Result<Box<dyn Operator>, OperatorError>;

/// What runs a kind.
pub enum Role {
    /// A pure operator inside a task.
    Operator(Build),
    /// An operator inside a task whose outputs depend on answers from outside; only `submit`. Repeating its input does
    /// not repeat its outputs, so a task that holds one writes on lanes of a source (docs/adr/0010).
    World(Build),
    /// A pure operator whose results people look at and nobody is paid by; only `stats`. A task of such operators puts a
    /// record that it cannot process with the dead letters and goes on; any other task stops (invariant P1). The operator
    /// must refuse a record before it has changed anything.
    Statistics(Build),
    /// An operator inside a task that makes effects outside the state durable ([`crate::Operator::flush`]) and writes
    /// nothing to the log; only `ledger`. It is opened where its effects are wanted: not by a standby, not by a replay.
    Effects(Build),
    /// As [`Role::Effects`], and people look at the results and nobody is paid by them: only `influxdb`. What it cannot process
    /// goes to the dead letters, as with [`Role::Statistics`].
    Export(Build),
    /// A service with I/O of its own (gateway, jobmanager, apiserver), started by the binary.
    Service,
}

impl Role {
    /// What makes the operator; `None` for a service.
    pub fn build(&self) -> Option<Build> {
        match self {
            Self::Operator(build)
            | Self::World(build)
            | Self::Statistics(build)
            | Self::Effects(build)
            | Self::Export(build) => Some(*build),
            Self::Service => None,
        }
    }

    /// Whether outputs depend on answers from outside.
    pub fn is_world(&self) -> bool {
        matches!(self, Self::World(_))
    }

    /// Whether nobody is paid by its results.
    pub fn is_statistics(&self) -> bool {
        matches!(self, Self::Statistics(_) | Self::Export(_))
    }
}

/// How instances of an operator and partitions of its inputs go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parallel {
    /// One task per partition of the inputs, which must be co-partitioned.
    PerPartition,
    /// One task that reads all partitions of all inputs.
    Single,
}

/// An input port.
pub struct InputSpec {
    /// Key in the YAML, such as `in`.
    pub name: &'static str,
    /// Kinds of record it takes. A topic that carries others does not fit.
    pub accepts: &'static [RecordKind],
    /// May be left out.
    pub optional: bool,
    /// Is read before inputs without priority (with a starvation bound).
    pub priority: bool,
}

/// An output port.
pub struct OutputSpec {
    /// Key in the YAML, such as `out`.
    pub name: &'static str,
    /// Kinds of record it writes.
    pub writes: &'static [RecordKind],
    /// May be left out: then those records go nowhere.
    pub optional: bool,
    /// What picks the partition.
    pub keyed: Keyed,
}

/// What picks the partition of an output. Co-partitioned readers must agree on it (DESIGN 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keyed {
    /// The session's id, 8 bytes big-endian.
    Session,
    /// The account's name.
    Account,
    /// The block's hash.
    BlockHash,
    /// The topic has one partition.
    Single,
}

/// A setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SettingSpec {
    /// Key in the YAML.
    pub name: &'static str,
    /// What it must be.
    pub ty: SettingType,
    /// Value where the YAML has none, written as in the YAML; `None` makes the setting required, `Some("")` optional.
    pub default: Option<&'static str>,
    /// What it means, with its unit.
    pub doc: &'static str,
}

/// Type of a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettingType {
    /// Any text.
    Text,
    /// The name of one of the file's caches.
    Cache,
    /// Text that must come from the environment or a file, and is never printed.
    Secret,
    /// One of these words.
    Word(&'static [&'static str]),
    /// `true` or `false`.
    Flag,
    /// A whole number in this range, both ends included.
    Integer(u64, u64),
    /// A decimal number such as a difficulty, kept as text and parsed exactly by its reader.
    Decimal,
    /// A length of time: `250ms`, `10s`, `5m`, `2h`, `30d`.
    Duration,
    /// A number of bytes: `900`, `64KiB`, `10GiB`.
    Size,
    /// `host:port`.
    Address,
    /// A list of `host:port`.
    Addresses,
    /// A list of networks, `ADDRESS/BITS` or one address.
    Networks,
    /// A list of mappings, each with these settings.
    Entries(&'static [SettingSpec]),
}

/// A table of an operator's state.
pub struct StateTable {
    /// Name; the task's table is called `operator.name`.
    pub name: &'static str,
    /// See [`sluice_state::TableSpec::group_prefix`].
    pub group_prefix: Option<usize>,
    /// What brings rows that an earlier program wrote to the next version, and from there on: see
    /// [`sluice_state::TableSpec::steps`]. A step is never changed or removed once it is released.
    pub steps: &'static [TableStep],
}

impl StateTable {
    /// A table in version 1 whose rows are removed one by one.
    pub const fn plain(name: &'static str) -> Self {
        Self { name, group_prefix: None, steps: &[] }
    }

    /// A table in version 1 whose rows expire by ranges of their first `prefix` bytes.
    pub const fn grouped(name: &'static str, prefix: usize) -> Self {
        Self { name, group_prefix: Some(prefix), steps: &[] }
    }

    /// The table in the state of the operator with this identity.
    pub fn spec(&self, operator: &str) -> TableSpec {
        TableSpec { name: format!("{operator}.{}", self.name), group_prefix: self.group_prefix, steps: self.steps }
    }
}

/// A kind of broadcast table, as under `tables:` in the YAML.
pub struct TableKind {
    /// Name in the YAML.
    pub name: &'static str,
    /// One line for errors and graphs.
    pub summary: &'static str,
    /// Kinds of record its topic carries.
    pub accepts: &'static [RecordKind],
    /// Its settings besides `from` and `kind`.
    pub settings: &'static [SettingSpec],
    /// Makes an empty one.
    pub build: fn(&BuildContext<'_>) -> Result<Box<dyn BroadcastTable>, OperatorError>,
}

/// All kinds there are, each list sorted by name.
pub struct Registry {
    /// Operators and services.
    pub kinds: Vec<&'static Kind>,
    /// Broadcast tables.
    pub tables: Vec<&'static TableKind>,
}

impl Registry {
    /// The kind with this name.
    pub fn kind(&self, name: &str) -> Option<&'static Kind> {
        self.kinds.iter().find(|kind| kind.name == name).copied()
    }

    /// The table kind with this name.
    pub fn table(&self, name: &str) -> Option<&'static TableKind> {
        self.tables.iter().find(|kind| kind.name == name).copied()
    }
}
