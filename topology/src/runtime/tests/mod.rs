//! The runtime on a log and a state in memory, with small operators that depend on everything they may depend on:
//! the record, the state, and a broadcast table.

#![allow(clippy::unwrap_used, clippy::panic)]

mod crash;
mod follow;
mod io;
mod letters;
mod lifecycle;
mod owners;
mod world;

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sluice_log::{Log, MemoryLog, Partition, Retention, SharedLog, TopicSpec};
use sluice_proto::v1::{Envelope, Job, Reason, Submission, Tick, Verdict};
use sluice_proto::{Body, Epoch, EventTime, Offset, RecordKind};
use sluice_state::StateEnv;

use super::*;
use crate::kind::{InputSpec, Keyed, Kind, OutputSpec, Parallel, Role, StateTable, TableKind};
use crate::operator::{BroadcastTable, Context, Externals, Input, Key, Operator, OperatorError};
use crate::settings::Settings;

pub(super) const SECOND: Duration = Duration::from_secs(1);

/// Judges a submission by the number of jobs there were at its job clock.
struct Check;

impl Operator for Check {
    fn process(&mut self, input: &Input<'_>, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        let at = input.event_time;
        match &**input.record {
            Body::Submission(share) => {
                let jobs = cx.lookup::<Jobs>("jobs")?.as_of(share.job_clock);
                let mut verdict = Verdict {
                    session: share.session,
                    account: share.account.clone(),
                    job_id: share.job_id,
                    nbits: jobs,
                    header_hash: Bytes::copy_from_slice(&share.nonce.to_be_bytes()),
                    live_from_job: share.job_id.saturating_sub(1),
                    reason: Reason::Accepted.into(),
                    ..Verdict::default()
                };
                if share.nonce.is_multiple_of(7) {
                    verdict.reason = Reason::LowDifficulty.into();
                    // Two records from one, to one partition: their ordinals tell them apart.
                    cx.emit("rejected", Key::session(share.session), at, Body::Verdict(verdict.clone()));
                    cx.emit("rejected", Key::session(share.session), at, Body::Verdict(verdict.clone()));
                }
                cx.emit("out", Key::session(share.session), at, Body::Verdict(verdict));
            }
            Body::Tick(tick) => cx.emit("out", Key::Every, at, Body::Tick(*tick)),
            other => return Err(OperatorError::Record(format!("unexpected {other:?}"))),
        }
        Ok(())
    }

    fn requires(&self, record: &Body) -> Option<(&'static str, Offset)> {
        match record {
            Body::Submission(share) => Some(("jobs", Offset::new(share.job_clock))),
            _ => None,
        }
    }
}

/// Drops repeated headers per job and numbers the rest per account: its outputs depend on all that came before.
struct Count;

impl Operator for Count {
    fn process(&mut self, input: &Input<'_>, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        let at = input.event_time;
        let Body::Verdict(verdict) = &**input.record else { return Ok(()) };
        let mut verdict = verdict.clone();
        let key = Key::Bytes(verdict.account.clone().into());
        cx.state.expire_below(1, &verdict.live_from_job.to_be_bytes())?;
        let seen = [verdict.job_id.to_be_bytes().as_slice(), &verdict.header_hash].concat();
        if !cx.state.insert(1, &seen, b"")? {
            verdict.reason = Reason::Duplicate.into();
            cx.emit("rejected", key, at, Body::Verdict(verdict));
            return Ok(());
        }
        let stored = cx.state.get(0, verdict.account.as_bytes())?;
        let count = stored.map_or(0, |bytes| u64::from_be_bytes(bytes.as_ref().try_into().unwrap())) + 1;
        cx.state.put(0, verdict.account.as_bytes(), &count.to_be_bytes())?;
        verdict.work_lo = count;
        cx.emit("out", key, at, Body::Verdict(verdict));
        Ok(())
    }
}

/// Offsets of jobs; forgets all but the last ten.
#[derive(Default)]
struct Jobs(BTreeMap<u64, u64>);

impl Jobs {
    fn as_of(&self, clock: u64) -> u32 {
        self.0.range(..=clock).next_back().map_or(0, |(_, job)| *job as u32)
    }
}

impl BroadcastTable for Jobs {
    fn apply(&mut self, offset: Offset, record: &Envelope) -> Result<(), OperatorError> {
        let Some(Body::Job(job)) = &record.body else { return Err(OperatorError::Record("no job".into())) };
        self.0.insert(offset.get(), job.job_id);
        while self.0.len() > 10 {
            self.0.pop_first();
        }
        Ok(())
    }

    fn keep_from(&self) -> Offset {
        Offset::new(self.0.keys().next().copied().unwrap_or(0))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

const VERDICTS: &[RecordKind] = &[RecordKind::Verdict, RecordKind::Tick];

pub(super) static CHECK: Kind = Kind {
    name: "check",
    summary: "test",
    inputs: &[
        InputSpec {
            name: "in",
            accepts: &[RecordKind::Submission, RecordKind::Tick],
            optional: false,
            priority: false,
        },
        InputSpec { name: "urgent", accepts: &[RecordKind::Submission], optional: true, priority: true },
    ],
    outputs: &[
        OutputSpec { name: "out", writes: VERDICTS, optional: false, keyed: Keyed::Session },
        OutputSpec { name: "rejected", writes: VERDICTS, optional: true, keyed: Keyed::Session },
    ],
    lookups: &["jobs"],
    settings: &[],
    state: &[],
    parallel: Parallel::PerPartition,
    role: Role::Operator(|_| Ok(Box::new(Check))),
};

pub(super) static COUNT: Kind = Kind {
    name: "count",
    summary: "test",
    inputs: &[InputSpec { name: "in", accepts: VERDICTS, optional: false, priority: false }],
    outputs: &[
        OutputSpec { name: "out", writes: VERDICTS, optional: false, keyed: Keyed::Account },
        OutputSpec { name: "rejected", writes: VERDICTS, optional: true, keyed: Keyed::Account },
    ],
    lookups: &[],
    settings: &[],
    state: &[StateTable::plain("accounts"), StateTable::grouped("seen", 8)],
    parallel: Parallel::PerPartition,
    role: Role::Operator(|_| Ok(Box::new(Count))),
};

pub(super) static JOBS: TableKind = TableKind {
    name: "jobs",
    summary: "test",
    accepts: &[RecordKind::Job],
    settings: &[],
    build: |_| Ok(Box::new(Jobs::default())),
};

pub(super) const TOPICS: [(&str, u32); 7] = [
    ("mining.jobs", 1),
    ("share.submissions", 1),
    ("share.urgent", 1),
    ("share.checked", 1),
    ("share.valid", 2),
    ("share.rejected", 2),
    ("share.low", 1),
];

pub(super) fn topic_specs() -> Vec<TopicSpec> {
    let spec = |(name, partitions): (&str, u32)| TopicSpec {
        name: name.to_owned(),
        partitions,
        retention: Retention::default(),
    };
    TOPICS.into_iter().map(spec).collect()
}

pub(super) async fn new_log() -> Arc<MemoryLog> {
    let log = MemoryLog::new();
    for spec in topic_specs() {
        log.create_topic(&spec).await.unwrap();
    }
    log
}

fn topic(name: &str) -> Destination {
    let partitions = TOPICS.iter().find(|(topic, _)| *topic == name).unwrap().1;
    Destination::Topic { topic: name.into(), partitions }
}

fn wire(port: &'static str, to: Vec<Destination>) -> OutputWire {
    OutputWire { port, to }
}

pub(super) fn stored(topic: &str, operator: usize, port: &'static str, priority: bool) -> StoredInput {
    let to = vec![PortRef { operator, port }];
    StoredInput { topic: topic.into(), partition: 0, partitions: 1, generation: 1, priority, to }
}

fn operator(name: &str, kind: &'static Kind, outputs: Vec<OutputWire>) -> OperatorSpec {
    OperatorSpec { name: name.into(), shown: name.into(), kind, settings: Settings::default(), outputs }
}

fn jobs_feed() -> TableFeed {
    TableFeed {
        name: "jobs".into(),
        shown: "jobs".into(),
        kind: &JOBS,
        settings: Settings::default(),
        topic: "mining.jobs".into(),
    }
}

fn count_outputs() -> Vec<OutputWire> {
    vec![wire("out", vec![topic("share.valid")]), wire("rejected", vec![topic("share.rejected")])]
}

fn task(name: &str, inputs: Vec<StoredInput>, operators: Vec<OperatorSpec>, tables: Vec<TableFeed>) -> TaskSpec {
    TaskSpec { name: name.into(), shown: name.into(), partition: 0, partitions: 1, inputs, operators, tables }
}

/// check > count in one task.
pub(super) fn fused() -> TaskSpec {
    let direct = vec![Destination::Direct(PortRef { operator: 1, port: "in" })];
    let check = vec![wire("out", direct), wire("rejected", vec![topic("share.low")])];
    task(
        "check.0",
        vec![stored("share.submissions", 0, "in", false)],
        vec![operator("check", &CHECK, check), operator("count", &COUNT, count_outputs())],
        vec![jobs_feed()],
    )
}

/// check and count as two tasks with a stored topic between them.
pub(super) fn split() -> [TaskSpec; 2] {
    let check = vec![wire("out", vec![topic("share.checked")]), wire("rejected", vec![topic("share.low")])];
    [
        task(
            "check.0",
            vec![stored("share.submissions", 0, "in", false)],
            vec![operator("check", &CHECK, check)],
            vec![jobs_feed()],
        ),
        task(
            "count.0",
            vec![stored("share.checked", 0, "in", false)],
            vec![operator("count", &COUNT, count_outputs())],
            vec![],
        ),
    ]
}

/// check > count in one task that also has an input with priority.
pub(super) fn with_priority() -> TaskSpec {
    let mut spec = fused();
    spec.inputs.push(stored("share.urgent", 0, "urgent", true));
    spec
}

pub(super) fn around(log: &Arc<impl Log>, env: &StateEnv) -> task::Surroundings {
    let options = RuntimeOptions { table_timeout: Duration::from_millis(50), ..RuntimeOptions::default() };
    let (log, externals): (SharedLog, _) = (log.clone(), Arc::new(Externals::default()));
    task::Surroundings {
        owners: Owners::new(log.clone(), [7; 16]),
        log,
        env: env.clone(),
        externals,
        network: "regtest".into(),
        options,
        outputs: super::follow::Outputs::Own,
    }
}

pub(super) fn producer(log: &Arc<impl Log>, topic: &str, epoch: u32) -> Producer {
    Producer::new(log.clone(), topic, 1, "stratumd", Epoch::new(epoch))
}

pub(super) fn at(nanos: u64) -> EventTime {
    EventTime::from_nanos(nanos)
}

pub(super) fn job(id: u64) -> Body {
    Body::Job(Job { job_id: id, ..Job::default() })
}

pub(super) fn share(session: u64, job_id: u64, nonce: u32, job_clock: u64) -> Body {
    let account = format!("miner{}", session % 3);
    Body::Submission(Submission { session, job_id, nonce, job_clock, account, ..Submission::default() })
}

pub(super) fn tick() -> Body {
    Body::Tick(Tick::default())
}

/// All of a partition, as a new reader gets it: each record once.
pub(super) async fn read_all(log: &Arc<impl Log>, topic: &str, partition: u32) -> Vec<Envelope> {
    let shared: SharedLog = log.clone();
    let mut reader = TopicReader::new(shared, Partition::new(topic, partition), Offset::ZERO);
    let end = log.bounds(&Partition::new(topic, partition)).await.unwrap().next;
    let mut all = Vec::new();
    while reader.position() < end {
        all.extend(reader.next_batch(Duration::ZERO).await.unwrap().into_iter().map(|(_, envelope)| envelope));
    }
    all
}

/// What comes out of the topology: every record of every output partition, without its epoch: whoever made it made the
/// same.
pub(super) async fn outputs(log: &Arc<impl Log>, topics: &[&str]) -> Vec<(String, Vec<Envelope>)> {
    let mut all = Vec::new();
    let without_epoch = |mut record: Envelope| {
        record.from.iter_mut().for_each(|from| from.epoch = 0);
        record
    };
    for (name, partitions) in TOPICS.into_iter().filter(|(name, _)| topics.contains(name)) {
        for partition in 0..partitions {
            let records = read_all(log, name, partition).await.into_iter().map(without_epoch);
            all.push((format!("{name}/{partition}"), records.collect()));
        }
    }
    all
}

pub(super) const OUTPUTS: [&str; 3] = ["share.valid", "share.rejected", "share.low"];
