//! A whole pool of operators: jobs, shares, candidates in; verdicts, tallies, difficulties, balances out.

use std::sync::Arc;

use sluice_ledger::{BasisPoints, LedgerStore, Rules, Scheme, open_sqlite};
use sluice_mining::JobTable;
use sluice_mining::node::{BlockNodes, ChainStatus};
use sluice_operators::KINDS;
use sluice_operators::ledger::LedgerRules;
use sluice_operators::submit::Maturity;
use sluice_proto::v1::{Job, Submission};
use sluice_proto::{Body, EventTime, Offset, RecordKind, partition_of};
use sluice_topology::{Externals, Graph, InputSpec, Keyed, Kind, OutputSpec, Parallel, Role};
use tempfile::TempDir;

use crate::harness::{Ground, Instance, Sources, TOP, graph, read_all};
use crate::nodes::{Says, ScriptedNodes};
use crate::records::{Hash, Random, at, candidate, job, mined, prepared, submission, tick};

/// Partitions of the shares and of what is made of them.
pub const PARTITIONS: u32 = 2;

const TOPICS: &str = "topics:
  mining.jobs: {}
  mining.templates: {}
  share.submissions: { partitions: 2 }
  share.valid: { partitions: 2, archive: true }
  share.rejected: { partitions: 2, archive: true }
  share.stale: { partitions: 2, archive: true }
  share.tallies: { partitions: 2 }
  difficulty.targets: { partitions: 2 }
  block.candidates: {}
  block.solved: {}
  block.outcomes: {}
";
const OPERATORS: &str = "tables:
  jobs: { from: mining.jobs, kind: job_table }
  templates: { from: mining.templates, kind: template_table }
operators:
  gateway: { kind: gateway, jobs: mining.jobs, targets: difficulty.targets, shares: share.submissions, candidates: block.candidates }
  jobmanager: { kind: jobmanager, jobs: mining.jobs, templates: mining.templates }
  verify: { kind: verify, in: share.submissions, tables: [jobs], out: share.checked }
  dedupe: { kind: dedupe, in: share.checked, out: share.judged, valid: share.valid, rejected: share.rejected, stale: share.stale }
  vardiff: { kind: vardiff, in: share.judged, out: difficulty.targets }
  tally: { kind: tally, in: share.judged, out: share.tallies }
  assemble: { kind: assemble, in: block.candidates, tables: [templates], out: block.solved }
  submit: { kind: submit, in: block.solved, tips: mining.jobs, out: block.outcomes }
  ledger: { kind: ledger, tallies: share.tallies, outcomes: block.outcomes }
  stats: { kind: stats, in: share.tallies }
";
/// Verdicts handed over inside one task: the share processor as it is meant to be.
const FUSED: &str = "  share.checked: { direct: true }\n  share.judged: { direct: true }\n";
/// The same in three tasks or more, with stored topics between them.
const SPLIT: &str = "  share.checked: { partitions: 2 }\n  share.judged: { partitions: 2 }\n";
/// What the share processor writes, whatever its shape.
pub const OUTPUTS: [&str; 5] = ["share.valid", "share.rejected", "share.stale", "share.tallies", "difficulty.targets"];

static GATEWAY: Kind = Kind {
    name: "gateway",
    inputs: &[
        InputSpec { name: "jobs", accepts: &[RecordKind::Job], optional: false, priority: false },
        InputSpec { name: "targets", accepts: &[RecordKind::DifficultyTarget], optional: false, priority: false },
    ],
    outputs: &[
        OutputSpec {
            name: "shares",
            writes: &[RecordKind::Submission, RecordKind::Tick, RecordKind::Cut],
            optional: false,
            keyed: Keyed::Session,
        },
        OutputSpec { name: "candidates", writes: &[RecordKind::Candidate], optional: false, keyed: Keyed::Single },
    ],
    ..SERVICE
};
static JOBMANAGER: Kind = Kind {
    name: "jobmanager",
    outputs: &[
        OutputSpec { name: "jobs", writes: &[RecordKind::Job], optional: false, keyed: Keyed::Single },
        OutputSpec { name: "templates", writes: &[RecordKind::TemplateChunk], optional: false, keyed: Keyed::Single },
    ],
    ..SERVICE
};
const SERVICE: Kind = Kind {
    name: "",
    summary: "A service of the tests.",
    inputs: &[],
    outputs: &[],
    lookups: &[],
    settings: &[],
    state: &[],
    parallel: Parallel::Single,
    role: Role::Service,
};

/// The pool's topology, fused or split by nothing but its text.
pub fn topology(split: bool) -> Graph {
    let text = [TOP, TOPICS, if split { SPLIT } else { FUSED }, OPERATORS].concat();
    graph(&text, KINDS.iter().copied().chain([&GATEWAY, &JOBMANAGER]).collect())
}

/// The fused pool with its shares in this many partitions, in a generation of them.
pub fn topology_at(partitions: u32, generation: u32) -> Graph {
    let shares = format!("share.submissions: {{ partitions: {partitions}, generation: {generation} }}");
    let topics = TOPICS.replace("share.submissions: { partitions: 2 }", &shares);
    let text = [TOP, &topics, FUSED, OPERATORS].concat();
    graph(&text, KINDS.iter().copied().chain([&GATEWAY, &JOBMANAGER]).collect())
}

/// Partition, partition of the shares they come from, event time and body of records.
pub type Bodies = Vec<(u32, u32, EventTime, Body)>;

/// What happens at the pool's gateway and at its nodes.
pub struct Day {
    jobs: Vec<Job>,
    /// Submissions and ticks by partition, in order.
    shares: Vec<Vec<(EventTime, Body)>>,
    candidates: Vec<(EventTime, Body)>,
    /// How many submissions there are.
    pub submitted: usize,
}

impl Day {
    /// Three jobs on two tips, shares of 12 sessions over 10 minutes, some of them repeated, late or wrong.
    pub fn new(seed: u64, count: u64) -> Self {
        let mut random = Random::new(seed);
        let jobs = vec![job(1, 1), job(2, 1), job(3, 2)];
        let mut table = JobTable::new();
        for (offset, job) in (1..).zip(&jobs) {
            table.apply(Offset::new(offset), at(0), job.clone()).unwrap();
        }
        let mut shares = vec![Vec::new(); PARTITIONS as usize];
        let mut candidates = Vec::new();
        let mut before: Vec<Submission> = Vec::new();
        for number in 0..count {
            let time = at(number * 600_000 / count);
            if number % 20 == 0 {
                for (partition, gateway) in (0..PARTITIONS).flat_map(|partition| (0..3).map(move |it| (partition, it)))
                {
                    shares[partition as usize].push((time, Body::Tick(tick(gateway, 3))));
                }
            }
            let submitted = match before.get(random.below(400) as usize) {
                Some(repeated) if random.one_in(3) => repeated.clone(),
                _ => fresh(&mut random, &jobs, number),
            };
            before.push(submitted.clone());
            let partition = partition_of(&submitted.session.to_be_bytes(), PARTITIONS);
            if table.judge(&submitted, time).is_block && candidates.len() < 6 {
                candidates.push((time, Body::Candidate(candidate(&table, &submitted, time))));
            }
            shares[partition as usize].push((time, Body::Submission(submitted)));
        }
        for (partition, gateway) in (0..PARTITIONS).flat_map(|partition| (0..3).map(move |it| (partition, it))) {
            shares[partition as usize].push((at(700_000), Body::Tick(tick(gateway, 3))));
        }
        assert!(candidates.len() > 3);
        Self { jobs, shares, candidates, submitted: before.len() }
    }
}

/// A share that was not sent before: most are good ones on the newest of three jobs.
pub fn fresh(random: &mut Random, jobs: &[Job], number: u64) -> Submission {
    let job = &jobs[2 - random.below(3) as usize];
    let mut submitted = submission(job, 3, random.below(12));
    submitted.extranonce2 = number;
    if random.one_in(9) {
        submitted.ntime = job.max_ntime + 1;
    }
    let wanted =
        if random.one_in(9) { Hash::Above } else { [Hash::Share, Hash::Block][usize::from(random.one_in(20))] };
    mined(&prepared(job, 1, at(0)), &submitted, wanted)
}

/// What operators are lent: a real ledger and nodes that take every block.
pub struct World {
    pub store: Arc<dyn LedgerStore>,
    pub externals: Arc<Externals>,
    nodes: Arc<ScriptedNodes>,
    _dir: TempDir,
}

impl World {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = open_sqlite(&dir.path().join("ledger.db")).unwrap();
        let nodes = Arc::new(ScriptedNodes::default());
        let mut externals = Externals::default();
        externals.insert::<Arc<dyn LedgerStore>>(store.clone());
        let fee = BasisPoints::new(200).unwrap();
        externals.insert(LedgerRules(Rules { scheme: Scheme::Pplns { window: 2 }, fee }));
        externals.insert::<Arc<dyn BlockNodes>>(nodes.clone());
        externals.insert(Maturity(10));
        Self { store, externals: Arc::new(externals), nodes, _dir: dir }
    }

    /// The node takes the blocks of these candidates, and buries them.
    pub fn takes(&self, candidates: &[(EventTime, Body)]) {
        for (_, body) in candidates {
            let Body::Candidate(candidate) = body else { panic!("{body:?}") };
            let hash = sluice_mining::header_hash(candidate.header[..].try_into().unwrap());
            self.nodes.say(hash, &[Says::Takes]);
            self.nodes.stands(hash, Some(ChainStatus::Active { confirmations: 50 }));
        }
    }

    /// Balances of all accounts and the digest of the ledger.
    pub fn money(&self) -> String {
        let proof = self.store.verify().unwrap();
        assert!(proof.findings.is_empty(), "{:?}", proof.findings);
        assert!(self.store.trial_balance().unwrap().is_sound());
        format!("{:?} {:?}", self.store.balances("", 100).unwrap(), self.store.digest().unwrap())
    }
}

/// The pool's operators at work in a world.
pub struct Pool<'a> {
    pub instance: Instance<'a>,
    world: World,
    sources: Sources,
    ground: &'a Ground,
}

impl<'a> Pool<'a> {
    pub async fn start(graph: &'a Graph, ground: &'a Ground) -> Self {
        let world = World::new();
        let mut instance = Instance::new(graph, &[], ground, ground.env.clone(), world.externals.clone());
        instance.start().await;
        Self { instance, world, sources: Sources::new(ground.log.sound()), ground }
    }

    /// Lets the day happen, one kind of record after the other, so that the order among the inputs of `submit` and
    /// `ledger` is the same in every run. `crash` is asked before the shares are appended.
    pub async fn live(&mut self, day: &Day, crash: impl Fn(&Ground)) {
        let may_die = true;
        let jobs: Vec<_> = day.jobs.iter().map(|job| (at(0), Body::Job(job.clone()))).collect();
        self.sources.append("mining.jobs", (0, 1), jobs).await;
        self.instance.settle(false).await;
        crash(self.ground);
        for (partition, shares) in (0..).zip(&day.shares) {
            self.sources.append("share.submissions", (partition, PARTITIONS), shares.clone()).await;
        }
        self.instance.settle(may_die).await;
        self.ground.log.heal();
        self.world.takes(&day.candidates);
        self.sources.append("block.candidates", (0, 1), day.candidates.clone()).await;
        self.instance.settle(false).await;
        let tip = Job { clean: true, ..job(4, 3) };
        self.sources.append("mining.jobs", (0, 1), vec![(at(800_000), Body::Job(tip))]).await;
        self.instance.settle(false).await;
    }

    /// Event times and bodies of an output by its partition and the partition of the shares they come from. Between
    /// tasks of two partitions there is no order, and their names differ between shapes; nothing else does.
    pub async fn bodies(&self, topic: &str) -> Bodies {
        let mut all = Vec::new();
        for partition in 0..PARTITIONS {
            let records = read_all(&self.ground.log.sound(), topic, partition).await.into_iter();
            all.extend(records.map(|record| {
                let from = record.from.unwrap().source_partition;
                (partition, from, record.event_time(), record.body.unwrap())
            }));
        }
        all.sort_by_key(|(partition, from, ..)| (*partition, *from));
        all
    }

    /// Balances of all accounts and the digest of the ledger.
    pub fn money(&self) -> String {
        self.world.money()
    }
}
