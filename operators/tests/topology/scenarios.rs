//! What each operator is fed in the determinism test: a stream made from a seed, for each kind by its name.

use std::sync::Arc;

use sluice_ledger::{BasisPoints, LedgerStore, Rules, Scheme, open_sqlite};
use sluice_mining::JobTable;
use sluice_mining::node::{BlockNodes, ChainStatus};
use sluice_operators::influxdb::Stores;
use sluice_operators::ledger::LedgerRules;
use sluice_operators::submit::Maturity;
use sluice_proto::v1::{BlockStatus, Job, Reason, Submission, Verdict};
use sluice_proto::{Body, EventTime, Offset, partition_of};
use sluice_series::{MemorySeries, SeriesStore};
use sluice_topology::Externals;

use crate::nodes::{Says, ScriptedNodes};
use crate::records::{
    Hash, Random, START, at, candidate, chunks, job, job_of, mined, outcome, prepared, slice_end, solved, submission,
    tally, template, tick, transaction, verdict,
};
use crate::store::FatefulStore;

/// Records with their event times.
pub type Records = Vec<(EventTime, Body)>;

/// Records that are appended together.
pub struct Step {
    pub topic: String,
    pub partition: u32,
    /// Offset that the first must get, where other records cite it.
    pub at: Option<u64>,
    pub records: Records,
    /// What happens in the world before.
    pub before: Option<Box<dyn Fn()>>,
}

/// A stream of input and the world around the operator.
pub struct Scenario {
    /// Of each input.
    pub partitions: u32,
    pub steps: Vec<Step>,
    pub externals: Arc<Externals>,
    /// What the operator did to the world.
    pub world: Box<dyn Fn() -> String>,
    /// The ledger, if it has one.
    pub store: Option<Arc<FatefulStore>>,
    /// Its steps may be read in another order among its inputs, and the world stays as it is.
    pub backlog: bool,
    /// Made again from its topics alone it ends the same (docs/adr/0006: what nodes say is no function of a topic).
    pub replayable: bool,
}

impl Scenario {
    fn new(steps: Vec<Step>) -> Self {
        Self {
            partitions: 1,
            steps,
            externals: Arc::new(Externals::default()),
            world: Box::new(String::new),
            store: None,
            backlog: true,
            replayable: true,
        }
    }
}

fn step(topic: &str, records: Records) -> Step {
    Step { topic: topic.into(), partition: 0, at: None, records, before: None }
}

/// The scenario of the operator of this kind.
pub fn of(kind: &str, seed: u64) -> Option<Scenario> {
    let mut random = Random::new(seed);
    let random = &mut random;
    Some(match kind {
        "assemble" => assemble(random),
        "dedupe" | "tally" | "vardiff" => Scenario::new(vec![step("in.in", verdicts(random, 600))]),
        "influxdb" => influxdb(random),
        "ledger" => ledger(random),
        "stats" => stats(random),
        "submit" => submit(random),
        "verify" => verify(random),
        _ => return None,
    })
}

/// Verdicts of nine sessions, some of them twice, on jobs that come and go, and ticks.
fn verdicts(random: &mut Random, count: u64) -> Records {
    let mut now = 0;
    let reasons = [Reason::Accepted, Reason::Accepted, Reason::Accepted, Reason::Stale, Reason::LowDifficulty];
    let one = |number: u64| {
        now += random.below(800);
        if random.one_in(8) {
            return (at(now), Body::Tick(tick(random.below(3) as u32, 1)));
        }
        let newest = 1 + number / 60;
        let job_id = newest - random.below(newest.min(3));
        let verdict = Verdict {
            job_id,
            live_from_job: newest.saturating_sub(2),
            ..verdict(random.below(9), random.below(150), reasons[random.below(5) as usize])
        };
        (at(now), Body::Verdict(verdict))
    };
    (0..count).map(one).collect()
}

/// Jobs on changing tips, and what miners send for them: shares good and bad, on new and old jobs.
fn verify(random: &mut Random) -> Scenario {
    let mut steps = Vec::new();
    let mut jobs: Vec<Job> = Vec::new();
    let mut tip = 1;
    for id in 1..=12 {
        tip += u8::from(random.one_in(3));
        jobs.push(job(id, tip));
        let issued = id * 50_000;
        let table = vec![(at(issued), Body::Job(jobs[id as usize - 1].clone()))];
        steps.push(Step { at: Some(id), ..step("table.job_table", table) });
        let shares = (0..14).map(|number| {
            let time = at(issued + number * 2_500 + random.below(2_500));
            (time, share_or_tick(random, &jobs))
        });
        steps.push(step("in.in", shares.collect()));
    }
    Scenario::new(steps)
}

fn share_or_tick(random: &mut Random, jobs: &[Job]) -> Body {
    let newest = jobs.len() as u64;
    // A gateway may be a job behind the others.
    let clock = newest - random.below(2).min(newest - 1);
    if random.one_in(6) {
        return Body::Tick(tick(random.below(3) as u32, clock));
    }
    let job = &jobs[(clock - 1 - random.below(clock.min(8))) as usize];
    let mut submitted = submission(job, clock, random.below(6));
    submitted.extranonce2 = random.below(20);
    match random.below(8) {
        0 => submitted.ntime = job.max_ntime + 1,
        1 => submitted.ntime = job.min_ntime - 1,
        2 => (submitted.has_version_bits, submitted.version_bits) = (true, 1),
        3 => (submitted.has_version_bits, submitted.version_bits) = (true, 0x2000),
        _ => {}
    }
    let wanted = [Hash::Share, Hash::Share, Hash::Above, Hash::Block][random.below(4) as usize];
    let submitted = mined(&prepared(job, 1, at(0)), &submitted, wanted);
    Body::Submission(match random.below(9) {
        0 => Submission { job_id: 99, ..submitted },
        _ => submitted,
    })
}

/// Templates of seven tips, full ones and what was added to them, and candidates of each: some come at once, some when
/// the table has forgotten their template.
fn assemble(random: &mut Random) -> Scenario {
    let mut steps = Vec::new();
    let mut late = Vec::new();
    let mut next = 1;
    let mut id = 0;
    for tip in 1..=7_u8 {
        let mut transactions = Vec::new();
        for version in 0..2 {
            id += 1;
            let known: Vec<[u8; 32]> = transactions.iter().map(|tx: &sluice_mining::block::BlockTx| tx.wtxid).collect();
            let more = 1 + random.below(5);
            transactions.extend((0..more).map(|number| transaction(id * 100 + number, number % 2 == 0)));
            let template = template(tip, transactions.clone(), true);
            let pieces = chunks(&template, id, version == 0, 150, |wtxid| version > 0 && known.contains(wtxid));
            let count = pieces.len() as u64;
            let records = pieces.into_iter().map(|piece| (at(id), Body::TemplateChunk(piece)));
            steps.push(Step { at: Some(next), ..step("table.template_table", records.collect()) });
            next += count;
            let job = job_of(&template, id, next - 1, version == 0);
            let now: Records = (0..3).map(|session| (at(id * 1_000), found(random, &job, session))).collect();
            steps.push(step("in.in", now));
            late.push((at(id * 1_000 + 500), found(random, &job, 5)));
        }
    }
    steps.push(step("in.in", late));
    Scenario::new(steps)
}

/// A candidate of a block of `job`; now and then one that makes none.
fn found(random: &mut Random, job: &Job, session: u64) -> Body {
    let mut jobs = JobTable::new();
    jobs.apply(Offset::new(1), at(0), job.clone()).unwrap();
    let submitted = mined(&prepared(job, 1, at(0)), &submission(job, 1, session), Hash::Block);
    let mut candidate = candidate(&jobs, &submitted, at(1));
    if random.one_in(5) {
        candidate.template_id = 99;
    }
    Body::Candidate(candidate)
}

/// Blocks that nodes take, refuse or cannot be asked about, and tips that settle them.
fn submit(random: &mut Random) -> Scenario {
    let nodes = Arc::new(ScriptedNodes::default());
    let mut steps = Vec::new();
    for round in 0..6_u64 {
        let blocks: Vec<u8> = (0..3).map(|number| (round * 3 + number) as u8 + 1).collect();
        let script: Vec<_> = (1..=(round * 3 + 3) as u8).map(|number| (number, says(random), stands(random))).collect();
        let world = nodes.clone();
        let before = move || {
            for (number, says, stands) in &script {
                world.say([*number; 32], says);
                world.stands([*number; 32], *stands);
            }
        };
        let time = at(round * 1_000);
        let records = blocks.iter().map(|number| (time, Body::SolvedBlock(solved(*number, time))));
        steps.push(Step { before: Some(Box::new(before)), ..step("in.in", records.collect()) });
        let tips = (0..2).map(|number| {
            let id = round * 2 + number + 1;
            (at(round * 1_000 + number), Body::Job(Job { clean: number == 1, ..job(id, id as u8) }))
        });
        steps.push(step("in.tips", tips.collect()));
    }
    let mut externals = Externals::default();
    externals.insert::<Arc<dyn BlockNodes>>(nodes);
    externals.insert(Maturity(10));
    let externals = Arc::new(externals);
    Scenario { externals, backlog: false, replayable: false, ..Scenario::new(steps) }
}

fn says(random: &mut Random) -> Vec<Says> {
    (0..2).map(|_| [Says::Takes, Says::Refuses, Says::Nothing][random.below(3) as usize]).collect()
}

fn stands(random: &mut Random) -> Option<ChainStatus> {
    match random.below(6) {
        0 => Some(ChainStatus::Active { confirmations: 3 }),
        1 => Some(ChainStatus::Active { confirmations: 30 }),
        2 => Some(ChainStatus::Inactive { rival_confirmations: 2 }),
        3 => Some(ChainStatus::Inactive { rival_confirmations: 20 }),
        4 => Some(ChainStatus::Unknown),
        _ => None,
    }
}

/// Tallies of two partitions of shares, by account in two partitions of tallies, slice by slice.
fn tallies(random: &mut Random, topic: &str) -> Vec<Step> {
    let first = START / 10;
    let mut steps = Vec::new();
    for slice in first..first + 40 {
        for origin in 0..2 {
            let mut records: [Records; 2] = Default::default();
            for _ in 0..random.below(4) {
                let account = format!("account{}", random.below(5));
                let mut tally =
                    tally(origin, slice, &account, &format!("rig{}", random.below(2)), 1 + random.below(300));
                if random.one_in(3) {
                    tally.rejected = vec![sluice_proto::v1::ReasonCount {
                        reason: Reason::Stale.into(),
                        shares: 1 + random.below(9),
                        work_hi: 0,
                        work_lo: random.below(1 << 40),
                    }];
                }
                records[partition_of(account.as_bytes(), 2) as usize].push((end_of(slice), Body::Tally(tally)));
            }
            for (partition, mut records) in (0..).zip(records) {
                records.push((end_of(slice), Body::SliceEnd(slice_end(origin, 2, slice))));
                steps.push(Step { partition, ..step(topic, records) });
            }
        }
    }
    steps
}

fn end_of(slice: u64) -> EventTime {
    EventTime::from_millis((slice + 1) * 10_000)
}

fn stats(random: &mut Random) -> Scenario {
    Scenario { partitions: 2, ..Scenario::new(tallies(random, "in.in")) }
}

/// Tallies; what reaches the time series is looked at.
fn influxdb(random: &mut Random) -> Scenario {
    let series = Arc::new(MemorySeries::default());
    let mut externals = Externals::default();
    externals.insert(Stores([("it".to_owned(), series.clone() as Arc<dyn SeriesStore>)].into()));
    let world = move || {
        assert!(!series.points().is_empty());
        format!("{:?}", series.points())
    };
    let steps = tallies(random, "in.in");
    Scenario { partitions: 2, externals: Arc::new(externals), world: Box::new(world), ..Scenario::new(steps) }
}

/// Tallies and the lives of blocks; the ledger is a real one.
fn ledger(random: &mut Random) -> Scenario {
    let dir = tempfile::tempdir().unwrap();
    let store = FatefulStore::new(open_sqlite(&dir.path().join("ledger.db")).unwrap());
    let mut steps = tallies(random, "in.tallies");
    let lives: [&[BlockStatus]; 4] = [
        &[BlockStatus::Accepted, BlockStatus::Confirmed],
        &[BlockStatus::Accepted, BlockStatus::Inactive, BlockStatus::Orphaned],
        &[BlockStatus::Refused],
        &[BlockStatus::Accepted, BlockStatus::Inactive, BlockStatus::Active],
    ];
    for number in 1..=8_u8 {
        let block = solved(number, at(u64::from(number) * 45_000));
        let life = lives[random.below(4) as usize].iter().zip(0..);
        let records = life.map(|(status, later)| {
            (at(u64::from(number) * 45_000 + later), Body::BlockOutcome(outcome(&block, *status)))
        });
        let place = random.below(steps.len() as u64) as usize;
        let partition = partition_of(&block.hash, 2);
        steps.insert(place, Step { partition, ..step("in.outcomes", records.collect()) });
    }
    let mut externals = Externals::default();
    externals.insert::<Arc<dyn LedgerStore>>(store.clone());
    externals.insert(LedgerRules(Rules { scheme: Scheme::Pplns { window: 2 }, fee: BasisPoints::new(150).unwrap() }));
    let seen = store.clone();
    let world = move || {
        // Holds the directory as long as the ledger is asked.
        assert!(dir.path().exists());
        let proof = seen.verify().unwrap();
        assert!(proof.findings.is_empty(), "{:?}", proof.findings);
        assert!(seen.trial_balance().unwrap().is_sound());
        assert!(seen.totals().unwrap().pending.get() + seen.totals().unwrap().available.get() > 0);
        format!("{:?} {:?}", seen.digest().unwrap(), seen.positions().unwrap())
    };
    let externals = Arc::new(externals);
    Scenario { partitions: 2, externals, world: Box::new(world), store: Some(store), ..Scenario::new(steps) }
}
