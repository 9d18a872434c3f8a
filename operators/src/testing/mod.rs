//! One operator at a time, on tables in memory: what tests of its rules need.

pub(crate) mod nodes;
pub(crate) mod records;
pub(crate) mod store;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sluice_proto::v1::Envelope;
use sluice_proto::{Body, EventTime, Offset, Share};
use sluice_state::{Digest, Lineage, Reader, StateEnv, Tables};
use sluice_topology::operator::StateView;
use sluice_topology::{
    BroadcastTable, BuildContext, Context, Emission, Externals, Input, InputPosition, Key, Kind, Lookups, Operator,
    OperatorError, SettingType, SettingValue, Settings, Source,
};

/// An operator with its state, fed by hand.
pub(crate) struct Rig {
    kind: &'static Kind,
    settings: Settings,
    externals: Externals,
    env: StateEnv,
    tables: Tables,
    lookups: Lookups,
    operator: Box<dyn Operator>,
    /// Offset of the next record by port and partition.
    next: BTreeMap<(&'static str, u32), u64>,
    /// Of what it reads.
    pub(crate) generation: u32,
    /// What broadcast tables were given, by kind and offset.
    applied: BTreeMap<String, BTreeMap<u64, Envelope>>,
}

impl Rig {
    /// An operator of `kind` with the default settings.
    pub(crate) fn new(kind: &'static Kind) -> Self {
        Self::with(kind, &[], Externals::default())
    }

    /// An operator of `kind` with these settings instead of the defaults, and what it is lent.
    pub(crate) fn with(kind: &'static Kind, settings: &[(&str, SettingValue)], externals: Externals) -> Self {
        let settings = settings_of(kind, settings);
        let env = StateEnv::in_memory();
        let tables = open(kind, &env);
        let operator = build(kind, &settings, &externals).unwrap();
        let (lookups, next) = (Lookups::default(), BTreeMap::new());
        Self {
            kind,
            settings,
            externals,
            env,
            tables,
            lookups,
            operator,
            next,
            generation: 1,
            applied: BTreeMap::new(),
        }
    }

    /// Adds a broadcast table.
    pub(crate) fn lookup(&mut self, kind: &'static str, table: Box<dyn BroadcastTable>) {
        self.lookups.insert(kind, table);
    }

    /// Applies a record to a broadcast table.
    pub(crate) fn apply(&mut self, kind: &str, offset: u64, time: EventTime, body: Body) -> Result<(), OperatorError> {
        let record = Envelope::new(time, Default::default(), body);
        self.applied.entry(kind.to_owned()).or_default().insert(offset, record.clone());
        self.lookups.get_mut(kind).unwrap().apply(Offset::new(offset), &record)
    }

    /// Whether a broadcast table has forgotten what the record at `offset` brought.
    pub(crate) fn has_forgotten(&self, kind: &str, offset: u64) -> bool {
        self.lookups.get(kind).unwrap().has_forgotten(Offset::new(offset))
    }

    /// Lets a broadcast table recall what the record at `to` brought, from the records from `from` on.
    pub(crate) fn recall(&mut self, kind: &str, from: u64, to: u64) -> bool {
        let again = self.applied[kind].range(from..=to);
        let records: Vec<_> = again.map(|(offset, record)| (Offset::new(*offset), record.clone())).collect();
        self.lookups.get_mut(kind).unwrap().recall(Offset::new(to), &records).unwrap()
    }

    /// Makes the table of jobs again from the records that it says it needs, as the runtime does at a restart.
    pub(crate) fn rebuild_jobs(&mut self) {
        let from = self.lookups.get("job_table").unwrap().keep_from();
        let kept = self.applied.get("job_table").unwrap().range(from.get()..);
        let mut table = crate::tables::job_table::JobTableState::default();
        for (offset, record) in kept {
            table.apply(Offset::new(*offset), record).unwrap();
        }
        self.lookups.insert("job_table", Box::new(table));
    }

    /// Gives the operator the next record of partition 0, which is the only one.
    pub(crate) fn give(&mut self, port: &'static str, time: EventTime, body: Body) -> Vec<Sent> {
        self.give_of(port, (0, 1), time, body).unwrap()
    }

    /// Gives it the next record of partition `.0` of `.1`.
    pub(crate) fn give_of(
        &mut self,
        port: &'static str,
        (partition, partitions): (u32, u32),
        time: EventTime,
        body: Body,
    ) -> Result<Vec<Sent>, OperatorError> {
        let next = self.next.entry((port, partition)).or_insert(1);
        let source = Source {
            topic: topic(port),
            partition,
            partitions,
            generation: self.generation,
            history: false,
            offset: Offset::new(*next),
        };
        *next += 1;
        let (record, mut out) = (Arc::new(body), Vec::new());
        let mut context = Context::new(StateView::new(&mut self.tables, 0), &self.lookups, &mut out);
        self.operator.process(&Input { port, event_time: time, record: &record, source: &source }, &mut context)?;
        Ok(out.into_iter().map(Sent::from).collect())
    }

    /// Tells the operator what will come.
    pub(crate) fn foresee(&mut self, share: &Share<'_>) {
        self.operator.foresee(share);
    }

    /// What `record` makes the operator wait for.
    pub(crate) fn requires(&self, body: Body) -> Option<(&'static str, Offset)> {
        self.operator.requires(&body)
    }

    /// Ends the batch: settles and flushes, with the positions behind all records given.
    pub(crate) fn flush(&mut self) -> Result<(), OperatorError> {
        self.settle();
        let position = |((port, partition), next): (&(&'static str, u32), &u64)| InputPosition {
            topic: topic(port),
            partition: *partition,
            next: Offset::new(*next),
        };
        let positions: Vec<_> = self.next.iter().map(position).collect();
        self.operator.flush(&positions)
    }

    fn settle(&mut self) {
        self.operator.settle(&mut StateView::new(&mut self.tables, 0)).unwrap();
    }

    /// Flushes and commits.
    pub(crate) fn commit(&mut self) {
        self.flush().unwrap();
        self.tables.commit().unwrap();
    }

    /// Lends other things from the next start on.
    pub(crate) fn lend(&mut self, externals: Externals) {
        self.externals = externals;
    }

    /// Starts again from what is committed, as after a crash. The next record of each partition is the one at the
    /// offset given.
    pub(crate) fn restart(&mut self, next: &[(&'static str, u32, u64)]) {
        self.tables = open(self.kind, &self.env);
        self.operator = build(self.kind, &self.settings, &self.externals).unwrap();
        self.next = next.iter().map(|(port, partition, next)| ((*port, *partition), *next)).collect();
    }

    /// Number of rows of the operator's table `name`, uncommitted changes included.
    pub(crate) fn rows(&mut self, name: &str) -> u64 {
        self.settle();
        let table = self.kind.state.iter().position(|table| table.name == name).unwrap();
        self.tables.rows(table).unwrap()
    }

    /// Digest of each of the operator's tables, uncommitted changes included.
    pub(crate) fn digests(&mut self) -> Vec<(String, Digest)> {
        self.settle();
        self.tables.digests()
    }

    /// Committed state; tables are named `operator.table` with the kind's name.
    pub(crate) fn reader(&self) -> Arc<dyn Reader> {
        self.tables.reader()
    }
}

/// What an operator has sent.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sent {
    /// Output port.
    pub(crate) port: &'static str,
    /// What picks the partition.
    pub(crate) key: Key,
    /// Event time of the record.
    pub(crate) event_time: EventTime,
    /// The record.
    pub(crate) body: Body,
}

impl From<Emission> for Sent {
    fn from(Emission { port, key, event_time, body }: Emission) -> Self {
        Self { port, key, event_time, body: Arc::unwrap_or_clone(body) }
    }
}

fn topic(port: &str) -> Arc<str> {
    format!("topic.{port}").into()
}

fn open(kind: &Kind, env: &StateEnv) -> Tables {
    let lineage = Lineage { task: kind.name.into(), log_uuid: [0; 16], wiring: String::new() };
    env.open(kind.state.iter().map(|table| table.spec(kind.name)).collect(), &lineage).unwrap()
}

/// Builds an operator of `kind` by itself.
pub(crate) fn build(
    kind: &Kind,
    settings: &Settings,
    externals: &Externals,
) -> Result<Box<dyn Operator>, OperatorError> {
    let Some(make) = kind.role.build() else { panic!("{} is no operator", kind.name) };
    make(&BuildContext { name: kind.name, settings, network: "regtest", partition: 0, partitions: 1, externals })
}

/// The defaults of `kind`, with these settings in their place.
pub(crate) fn settings_of(kind: &Kind, changed: &[(&str, SettingValue)]) -> Settings {
    let defaults = kind.settings.iter().filter(|setting| setting.default != Some("")).map(|setting| {
        let text = setting.default.unwrap();
        let value = match setting.ty {
            SettingType::Integer(..) => SettingValue::Integer(text.parse().unwrap()),
            SettingType::Decimal | SettingType::Text => SettingValue::Text(text.into()),
            SettingType::Duration => SettingValue::Duration(duration(text)),
            other => panic!("a setting of type {other:?}: teach it to the tests"),
        };
        (setting.name.to_owned(), value)
    });
    let changed = changed.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
    Settings::new(defaults.chain(changed))
}

fn duration(text: &str) -> Duration {
    let (number, unit) = text.split_at(text.len() - 1);
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        other => panic!("no unit of time: {other}"),
    };
    Duration::from_secs(number.parse::<u64>().unwrap() * seconds)
}

/// The bodies sent to `port`.
pub(crate) fn to(port: &str, emissions: &[Sent]) -> Vec<Body> {
    emissions.iter().filter(|emission| emission.port == port).map(|emission| emission.body.clone()).collect()
}
