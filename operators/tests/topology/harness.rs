//! One operator in the real runtime: wired by a topology file that is made from its kind, fed step by step, disturbed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sluice_ledger::{ChainState, Step};
use sluice_log::{EmbeddedLog, EmbeddedOptions, Log, MemoryLog, Partition, SharedLog};
use sluice_operators::TABLES;
use sluice_proto::v1::{Coordinates, Envelope};
use sluice_proto::{Body, Epoch, EventTime, Offset, encode};
use sluice_state::{MemoryLimits, StateEnv};
use sluice_topology::runtime::replay::{Check, Progress, Replay, Until};
use sluice_topology::runtime::{Producer, RuntimeHandle, RuntimeOptions, StartError, TopicReader, TopologyRuntime};
use sluice_topology::{
    Environment, FileText, Graph, InputSpec, Keyed, Kind, OutputSpec, Parallel, Registry, Role, load,
};
use tempfile::TempDir;

use crate::faults::{Append, FaultyLog};
use crate::records::Random;
use crate::scenarios::Scenario;
use crate::store::Fate;

/// Only ends a test that hangs.
const GUARD: Duration = Duration::from_secs(120);
/// The parts of a topology file that are not wiring.
pub const TOP: &str = "version: 1
bitcoin:
  network: regtest
  payout: bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080
  nodes: [ { rpc: http://127.0.0.1:18443, auth: '${RPC_AUTH}' } ]
";

/// What is done to the task on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disturbance {
    /// Nothing: each step is read as the log hands it out.
    None,
    /// All records are there before it starts.
    Backlog,
    /// It is stopped and started again, its batches end elsewhere.
    Restarts,
    /// It dies before an append, behind one before it hears of it, or behind what it makes durable elsewhere.
    Crashes,
}

/// Where log and state are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Memory,
    Disk,
}

/// All that can be seen of a run at its end.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    /// The records of each output partition, as a reader gets them; of a world operator what is new by [`news`].
    pub outputs: Vec<(String, Vec<Bytes>)>,
    /// Name and digest of each table.
    pub digests: Vec<(String, String)>,
    /// What it did to the world.
    pub world: String,
}

fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

fn service(name: &'static str, inputs: Vec<InputSpec>, outputs: Vec<OutputSpec>) -> &'static Kind {
    leak(Kind {
        name,
        summary: "A service of the tests.",
        inputs: leak(inputs),
        outputs: leak(outputs),
        lookups: &[],
        settings: &[],
        state: &[],
        parallel: Parallel::Single,
        role: Role::Service,
    })
}

/// A topology of one operator `it` of this kind, with a source for all it reads and a sink for all it writes.
pub fn wire(kind: &'static Kind, partitions: u32) -> Graph {
    let looked_up = || TABLES.iter().filter(|table| kind.lookups.contains(&table.name));
    let written = kind.inputs.iter().map(|input| (input.name, input.accepts, Keyed::Session));
    let written = written.chain(looked_up().map(|table| (table.name, table.accepts, Keyed::Single)));
    let written: Vec<_> =
        written.map(|(name, writes, keyed)| OutputSpec { name, writes, optional: false, keyed }).collect();
    let read = kind.outputs.iter();
    let read: Vec<_> = read
        .map(|output| InputSpec { name: output.name, accepts: output.writes, optional: false, priority: false })
        .collect();

    let mut text = format!("{TOP}topics:\n");
    for input in kind.inputs {
        text += &format!("  in.{}: {{ partitions: {partitions} }}\n", input.name);
    }
    looked_up().for_each(|table| text += &format!("  table.{}: {{}}\n", table.name));
    kind.outputs.iter().for_each(|output| text += &format!("  out.{}: {{ partitions: 2 }}\n", output.name));
    if looked_up().next().is_some() {
        text.push_str("tables:\n");
    }
    looked_up().for_each(|table| text += &format!("  {0}: {{ from: table.{0}, kind: {0} }}\n", table.name));
    text.push_str("operators:\n");
    let ports = |prefix: &str, names: &mut dyn Iterator<Item = &str>| -> String {
        names.map(|name| format!(", {name}: {prefix}.{name}")).collect()
    };
    let from = ports("in", &mut kind.inputs.iter().map(|input| input.name));
    let tables = ports("table", &mut looked_up().map(|table| table.name));
    let to = ports("out", &mut kind.outputs.iter().map(|output| output.name));
    text += &format!("  source: {{ kind: source{from}{tables} }}\n");
    let names: Vec<&str> = looked_up().map(|table| table.name).collect();
    let lookups = if names.is_empty() { String::new() } else { format!(", tables: [{}]", names.join(", ")) };
    text += &format!("  it: {{ kind: {}{from}{to}{lookups} }}\n", kind.name);
    let mut kinds = vec![kind, service("source", vec![], written)];
    if !read.is_empty() {
        text += &format!("  sink: {{ kind: sink{to} }}\n");
        kinds.push(service("sink", read, vec![]));
    }
    graph(&text, kinds)
}

/// Loads a topology file with these kinds and the tables there are.
pub fn graph(text: &str, mut kinds: Vec<&'static Kind>) -> Graph {
    kinds.sort_by_key(|kind| kind.name);
    let registry = Registry { kinds, tables: TABLES.to_vec() };
    let environment = Environment::new([("RPC_AUTH", "user:password")]);
    match load(&FileText::new("topology.yaml", text), &registry, &environment) {
        Ok(graph) => graph,
        Err(report) => panic!("{report}"),
    }
}

/// A log with its directory, and an environment of states.
pub struct Ground {
    pub log: Arc<FaultyLog>,
    pub env: StateEnv,
    dir: Option<TempDir>,
}

impl Ground {
    pub fn new(place: Place) -> Self {
        match place {
            Place::Memory => {
                let log: SharedLog = MemoryLog::new();
                Self { log: FaultyLog::new(log), env: StateEnv::in_memory(), dir: None }
            }
            Place::Disk => {
                let dir = tempfile::tempdir().unwrap();
                let log: SharedLog = EmbeddedLog::open(EmbeddedOptions::new(dir.path().join("log"))).unwrap();
                let env = StateEnv::on_disk(dir.path().join("state"), MemoryLimits::default()).unwrap();
                Self { log: FaultyLog::new(log), env, dir: Some(dir) }
            }
        }
    }

    /// The same log, and no state.
    pub fn without_state(&self) -> StateEnv {
        match &self.dir {
            None => StateEnv::in_memory(),
            Some(dir) => StateEnv::on_disk(dir.path().join("state2"), MemoryLimits::default()).unwrap(),
        }
    }
}

/// Tasks of a graph, started as often as they die.
pub struct Instance<'a> {
    graph: &'a Graph,
    only: Vec<String>,
    log: Arc<FaultyLog>,
    env: StateEnv,
    externals: Arc<sluice_topology::Externals>,
    handle: Option<RuntimeHandle>,
}

impl<'a> Instance<'a> {
    pub fn new(
        graph: &'a Graph,
        only: &[&str],
        ground: &Ground,
        env: StateEnv,
        externals: Arc<sluice_topology::Externals>,
    ) -> Self {
        let only = only.iter().map(|name| (*name).to_owned()).collect();
        Self { graph, only, log: ground.log.clone(), env, externals, handle: None }
    }

    /// Creates the topics, without starting anything.
    pub async fn create_topics(&self) {
        for topic in self.graph.plan(&self.only).unwrap().topics {
            self.log.create_topic(&topic).await.unwrap();
        }
    }

    pub async fn start(&mut self) {
        self.try_start().await.unwrap_or_else(|error| panic!("{error}"));
    }

    async fn try_start(&mut self) -> Result<(), StartError> {
        let (plan, log) = (self.graph.plan(&self.only).unwrap(), self.log.clone());
        let (env, externals) = (self.env.clone(), self.externals.clone());
        // What waits for more work is waited for hundreds of times here.
        let options = RuntimeOptions { linger: Duration::from_millis(1), ..RuntimeOptions::default() };
        let started = TopologyRuntime::start(plan, log, env, externals, options).await;
        self.handle = Some(started?);
        Ok(())
    }

    pub async fn stop(&mut self) {
        if let Some(handle) = self.handle.take() {
            handle.stop(GUARD).await.unwrap();
        }
    }

    /// Returns when nothing is left to read. A task that dies is started again, if it may die.
    pub async fn settle(&mut self, may_die: bool) {
        let begun = Instant::now();
        loop {
            let handle = self.handle.as_ref().unwrap();
            if let Some(failure) = handle.failure() {
                assert!(may_die, "{failure}");
                self.stop().await;
                // It may also die while it takes its epoch.
                while self.try_start().await.is_err() {}
                continue;
            }
            // In the order of the graph: what a task has written is there before its position is.
            let status = handle.status().await;
            if status.iter().flat_map(|task| &task.inputs).all(|input| input.lag == 0) {
                return;
            }
            assert!(begun.elapsed() < GUARD, "{status:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Name and digest of each table of each task.
    pub async fn digests(&self) -> Vec<(String, String)> {
        let status = self.handle.as_ref().unwrap().status().await;
        let mut digests: Vec<_> = status
            .into_iter()
            .flat_map(|task| {
                let partition = task.partition;
                task.digests
                    .into_iter()
                    .map(move |(table, digest)| (format!("{table}/{partition}"), digest.to_string()))
            })
            .collect();
        digests.sort();
        digests
    }
}

/// All records of a partition, each once, as bytes.
pub async fn read_all(log: &SharedLog, topic: &str, partition: u32) -> Vec<Envelope> {
    let partition = Partition::new(topic, partition);
    let end = log.bounds(&partition).await.unwrap().next;
    let mut reader = TopicReader::new(log.clone(), partition, Offset::ZERO);
    let mut all = Vec::new();
    while reader.position() < end {
        let batch = reader.next_batch(Duration::ZERO).await.unwrap_or_else(|error| panic!("{error}"));
        all.extend(batch.into_iter().map(|(_, envelope)| envelope));
    }
    all
}

/// Writes to topics as sources do.
pub struct Sources {
    log: SharedLog,
    producers: BTreeMap<String, Producer>,
}

impl Sources {
    pub fn new(log: SharedLog) -> Self {
        Self { log, producers: BTreeMap::new() }
    }

    /// Appends to a partition of a topic of this many; returns the offset of the first record.
    pub async fn append(
        &mut self,
        topic: &str,
        (partition, partitions): (u32, u32),
        records: Vec<(EventTime, Body)>,
    ) -> Offset {
        let producer = self
            .producers
            .entry(topic.to_owned())
            .or_insert_with(|| Producer::new(self.log.clone(), topic, partitions, "source", Epoch::new(1)));
        producer.append(partition, records).await.unwrap()
    }
}

/// Runs the operator through the scenario.
pub async fn run(
    kind: &'static Kind,
    scenario: Scenario,
    disturbance: Disturbance,
    seed: u64,
    place: Place,
) -> Outcome {
    let graph = wire(kind, scenario.partitions);
    let ground = Ground::new(place);
    let mut sources = Sources::new(ground.log.sound());
    let mut random = Random::new(seed ^ 0x5eed);
    let externals = scenario.externals.clone();
    let mut it = Instance::new(&graph, &["it"], &ground, ground.env.clone(), externals.clone());
    it.create_topics().await;
    if disturbance != Disturbance::Backlog {
        it.start().await;
    }
    for step in &scenario.steps {
        if let Some(before) = &step.before {
            before();
        }
        let partitions = if step.topic.starts_with("table.") { 1 } else { scenario.partitions };
        let mut records = step.records.clone();
        while !records.is_empty() {
            let whole = matches!(disturbance, Disturbance::None | Disturbance::Backlog);
            let portion = if whole { records.len() } else { 1 + random.below(records.len() as u64) as usize };
            let rest = records.split_off(portion);
            if disturbance == Disturbance::Restarts {
                ground.log.cut_reads(1 + random.below(4_000) as usize);
            }
            if disturbance == Disturbance::Crashes {
                die(&ground, &scenario, &mut random);
            }
            let first = sources.append(&step.topic, (step.partition, partitions), records).await;
            assert!(step.at.is_none_or(|at| at == first.get() || !whole), "{} is not at {first}", step.topic);
            records = rest;
            if disturbance != Disturbance::Backlog {
                it.settle(disturbance == Disturbance::Crashes).await;
                ground.log.heal();
            }
            if disturbance == Disturbance::Restarts && random.one_in(2) {
                it.stop().await;
                it.start().await;
            }
        }
    }
    if disturbance == Disturbance::Backlog {
        it.start().await;
        it.settle(false).await;
    }
    if disturbance == Disturbance::Crashes && !kind.outputs.is_empty() {
        assert!(ground.log.died() > 0, "{} never died", kind.name);
    }
    let outcome = outcome(kind, &it, &ground, &scenario).await;
    it.stop().await;
    if scenario.replayable {
        let mut again = Instance::new(&graph, &["it"], &ground, ground.without_state(), externals);
        again.start().await;
        again.settle(false).await;
        let replayed = self::outcome(kind, &again, &ground, &scenario).await;
        assert_eq!(replayed, outcome, "{} replayed from nothing", kind.name);
        again.stop().await;
        verify(&graph, &ground, &outcome);
    }
    outcome
}

/// S2: `sluice replay --verify` finds every output as it is made again, and the same state.
fn verify(graph: &Graph, ground: &Ground, outcome: &Outcome) {
    let plan = graph.plan(&["it".to_owned()]).unwrap();
    let (tasks, partitions): (Vec<_>, Vec<_>) = plan
        .tasks
        .into_iter()
        .filter(|task| task.acts_outside().is_none())
        .map(|task| ((task.clone(), Until::End), task.partition))
        .unzip();
    if tasks.is_empty() {
        return;
    }
    let replay = Replay {
        log: ground.log.sound(),
        env: StateEnv::in_memory(),
        externals: Arc::default(),
        network: plan.network,
        check: Check::Verify,
    };
    let (mut digests, mut same) = (Vec::new(), 0);
    for (replayed, partition) in replay.run(&tasks, &Progress::default()).into_iter().zip(partitions) {
        let replayed = replayed.unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!(replayed.unrecorded, None, "{replayed:?}");
        same += replayed.compared.same;
        let tables = replayed.tables.iter();
        digests.extend(tables.map(|(table, digest, _)| (format!("{table}/{partition}"), digest.to_string())));
    }
    digests.sort();
    assert_eq!(digests, outcome.digests);
    assert_eq!(same, outcome.outputs.iter().map(|(_, records)| records.len() as u64).sum::<u64>());
}

/// Chooses how the next batches end.
fn die(ground: &Ground, scenario: &Scenario, random: &mut Random) {
    let mut fates = vec![[Append::Unheard, Append::Lost][random.below(2) as usize]];
    for _ in 0..random.below(3) {
        fates.push([Append::Durable, Append::Unheard, Append::Lost][random.below(3) as usize]);
    }
    ground.log.then(&fates);
    if let Some(store) = &scenario.store {
        // An interrupted write without a stop is waited for; here only deaths are of interest.
        store.then(&[[Fate::Applied, Fate::Unheard][random.below(2) as usize]]);
    }
}

async fn outcome(kind: &Kind, it: &Instance<'_>, ground: &Ground, scenario: &Scenario) -> Outcome {
    let mut outputs = Vec::new();
    for output in kind.outputs {
        for partition in 0..2 {
            let topic = format!("out.{}", output.name);
            let records = read_all(&ground.log.sound(), &topic, partition).await;
            let seen = if kind.role.is_world() { news(&records) } else { records.iter().map(made).collect() };
            outputs.push((format!("{topic}/{partition}"), seen));
        }
    }
    Outcome { outputs, digests: it.digests().await, world: (scenario.world)() }
}

/// A record without its epoch, as every owner of the task makes it.
fn made(record: &Envelope) -> Bytes {
    let from = record.from.map(|from| Coordinates { epoch: 0, ..from });
    encode(&Envelope { from, ..record.clone() })
}

/// The event times and bodies of what a world operator wrote, without the outcomes that are no news by block hash: its
/// coordinates are those of a source, and it repeats itself after each start.
fn news(records: &[Envelope]) -> Vec<Bytes> {
    let mut chain: BTreeMap<Bytes, ChainState> = BTreeMap::new();
    let mut news = Vec::new();
    for record in records {
        let Some(Body::BlockOutcome(outcome)) = &record.body else { panic!("a rule for {record:?} is missing") };
        match ChainState::step(chain.get(&outcome.hash).copied(), outcome.status()) {
            Some(Step::To(state)) => {
                chain.insert(outcome.hash.clone(), state);
                news.push(encode(&Envelope { from: None, ..record.clone() }));
            }
            Some(Step::Stay) => {}
            other => panic!("{other:?} by {outcome:?}"),
        }
    }
    news
}
