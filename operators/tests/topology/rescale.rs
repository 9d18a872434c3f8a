//! Another number of partitions of the shares in the middle of a pool's life (docs/adr/0018): every share is judged and
//! counted as if nothing had been changed, and money sums exactly (S1, S2, M1).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use sluice_ledger::CreditState;
use sluice_log::Partition;
use sluice_mining::JobTable;
use sluice_proto::v1::{Job, Submission};
use sluice_proto::{Body, EventTime, Offset, partition_of};
use sluice_state::{StateEnv, state_directory};
use sluice_topology::Graph;
use sluice_topology::runtime::RuntimeOptions;
use sluice_topology::runtime::replay::{Check, Progress as Replaying, Replay, Until};
use sluice_topology::runtime::rescale::{
    GENERATIONS, Place as Around, Progress, RescaleError, Since, check, pending, rescale,
};

use crate::faults::Append;
use crate::harness::{Ground, Instance, Place, Sources, read_all};
use crate::pool::{World, fresh, topology_at};
use crate::records::{Random, at, candidate, job, tick};

/// Partitions before the change.
const BEFORE: u32 = 4;
/// The first generation and the second one, in the log.
const NAMES: [&str; 2] = ["share.submissions", "share.submissions.g2"];

/// What the gateway sends: shares, some of them repeated or wrong, with ticks between them.
struct Life {
    jobs: Vec<Job>,
    sent: Vec<(EventTime, Body)>,
    candidates: Vec<(EventTime, Body)>,
}

impl Life {
    fn new(seed: u64, count: u64) -> Self {
        let mut random = Random::new(seed);
        let jobs = vec![job(1, 1), job(2, 1), job(3, 2)];
        let mut table = JobTable::new();
        for (offset, job) in (1..).zip(&jobs) {
            table.apply(Offset::new(offset), at(0), job.clone()).unwrap();
        }
        let (mut sent, mut candidates, mut before) = (Vec::new(), Vec::new(), Vec::<Submission>::new());
        for number in 0..count {
            let time = at(number * 400_000 / count);
            if number % 10 == 0 {
                sent.extend((0..3).map(|gateway| (time, Body::Tick(tick(gateway, 3)))));
            }
            let share = match before.get(random.below(count) as usize) {
                Some(repeated) if random.one_in(2) => repeated.clone(),
                _ => fresh(&mut random, &jobs, number),
            };
            before.push(share.clone());
            if table.judge(&share, time).is_block && candidates.len() < 6 {
                candidates.push((time, Body::Candidate(candidate(&table, &share, time))));
            }
            sent.push((time, Body::Submission(share)));
        }
        sent.extend((0..3).map(|gateway| (at(500_000), Body::Tick(tick(gateway, 3)))));
        Self { jobs, sent, candidates }
    }
}

/// A change: behind this many records of the gateway, to this many partitions, with deaths at these appends.
struct Change<'a> {
    at: usize,
    partitions: u32,
    since: Option<Since>,
    fates: &'a [Append],
}

/// What came of a life.
#[derive(Debug, PartialEq)]
struct Results {
    /// Verdicts by session, job, header and reason, and how many there are of each.
    verdicts: BTreeMap<(u64, u64, Vec<u8>, i32), u64>,
    /// Decisions on difficulties, by session: when and what.
    targets: BTreeMap<u64, Vec<(EventTime, u64)>>,
    /// Shares and work by account, worker and reason.
    tallied: BTreeMap<(String, String, i32), (u64, u128)>,
    /// Blocks, and their rewards.
    blocks: (usize, u64),
}

async fn send(sources: &mut Sources, topic: &str, partitions: u32, records: &[(EventTime, Body)]) {
    let mut parts = vec![Vec::new(); partitions as usize];
    for (time, body) in records {
        match body {
            Body::Submission(share) => {
                let partition = partition_of(&share.session.to_be_bytes(), partitions);
                parts[partition as usize].push((*time, body.clone()));
            }
            _ => parts.iter_mut().for_each(|part| part.push((*time, body.clone()))),
        }
    }
    for (partition, records) in (0..).zip(parts).filter(|(_, records)| !records.is_empty()) {
        sources.append(topic, (partition, partitions), records).await;
    }
}

/// Changes the number of partitions, as often as it takes; returns how often it died.
async fn change_to(graph: &Graph, ground: &Ground, world: &World, change: &Change<'_>) -> u64 {
    let place = around(ground, world);
    let log = place.log.clone();
    assert!(matches!(check(graph, &log).await, Err(RescaleError::Refused(_))), "it is not there yet");
    ground.log.then(change.fates);
    let mut died = 0;
    loop {
        let topics = pending(graph, &log).await.unwrap();
        let topic = match topics[..] {
            [topic] => topic,
            // It died when it had just been done.
            [] if died > 0 => break,
            _ => panic!("{} topics to change", topics.len()),
        };
        let mut steps = Vec::new();
        match rescale(graph, topic, change.since, &place, &mut |step| steps.push(step)).await {
            Ok(()) => {
                assert_eq!(steps.last(), Some(&Progress::Done));
                break;
            }
            Err(error) => {
                died += 1;
                assert_eq!(died, ground.log.died().min(1), "{error}");
                ground.log.heal();
            }
        }
    }
    ground.log.heal();
    check(graph, &log).await.unwrap();
    died
}

/// A pool's life, with or without a change in it.
async fn live(life: &Life, change: Option<&Change<'_>>) -> (Results, u64) {
    let (ground, world) = (Ground::new(Place::Memory), World::new());
    let mut sources = Sources::new(ground.log.sound());
    let before = topology_at(BEFORE, 1);
    let mut instance = Instance::new(&before, &[], &ground, ground.env.clone(), world.externals.clone());
    instance.start().await;
    let jobs: Vec<_> = life.jobs.iter().map(|job| (at(0), Body::Job(job.clone()))).collect();
    sources.append("mining.jobs", (0, 1), jobs).await;
    let split = change.map_or(life.sent.len(), |change| change.at.min(life.sent.len()));
    send(&mut sources, NAMES[0], BEFORE, &life.sent[..split]).await;
    instance.settle(false).await;
    let mut died = 0;
    let after;
    if let Some(change) = change {
        instance.stop().await;
        after = topology_at(change.partitions, 2);
        died = change_to(&after, &ground, &world, change).await;
        let log: sluice_log::SharedLog = ground.log.clone();
        assert!(check(&before, &log).await.unwrap_err().to_string().contains("generation 2"), "it has ended");
        instance = Instance::new(&after, &[], &ground, ground.env.clone(), world.externals.clone());
        instance.start().await;
        send(&mut sources, NAMES[1], change.partitions, &life.sent[split..]).await;
        instance.settle(false).await;
        s2_both_generations_are_what_the_log_says(&after, &ground, change.partitions).await;
        s2_the_new_tasks_can_be_made_again(&after, &ground, &world, &mut instance).await;
    }
    world.takes(&life.candidates);
    sources.append("block.candidates", (0, 1), life.candidates.clone()).await;
    instance.settle(false).await;
    let tip = Job { clean: true, ..job(4, 3) };
    sources.append("mining.jobs", (0, 1), vec![(at(800_000), Body::Job(tip))]).await;
    instance.settle(false).await;
    instance.stop().await;
    (results(&ground, &world, life).await, died)
}

/// Made again, the tasks of both generations send what is recorded; no more, and no less.
async fn s2_both_generations_are_what_the_log_says(graph: &Graph, ground: &Ground, partitions: u32) {
    let topic = graph.topic(NAMES[1]).unwrap();
    let tasks = |generation, partitions| graph.tasks_at(topic, generation, partitions).unwrap();
    let tasks: Vec<_> = tasks(1, BEFORE).into_iter().chain(tasks(2, partitions)).collect();
    let tasks: Vec<_> = tasks.into_iter().map(|task| (task, Until::End)).collect();
    let replay = Replay {
        log: ground.log.sound(),
        env: StateEnv::in_memory(),
        externals: Arc::default(),
        network: "regtest".to_owned(),
        check: Check::Verify,
    };
    for replayed in replay.run(&tasks, &Replaying::default()) {
        let replayed = replayed.unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!(replayed.unrecorded, None, "{replayed:?}");
    }
}

/// From the topics alone the tasks of the new generation become what they are, and write nothing that is new.
async fn s2_the_new_tasks_can_be_made_again(graph: &Graph, ground: &Ground, world: &World, live: &mut Instance<'_>) {
    const PROCESSOR: [&str; 4] = ["verify.", "dedupe.", "vardiff.", "tally."];
    let processor = |digests: Vec<(String, String)>| -> Vec<(String, String)> {
        digests.into_iter().filter(|(table, _)| PROCESSOR.iter().any(|operator| table.starts_with(operator))).collect()
    };
    let expected = processor(live.digests().await);
    // One owner at a time.
    live.stop().await;
    let mut again = Instance::new(graph, &["verify"], ground, ground.without_state(), world.externals.clone());
    again.start().await;
    again.settle(false).await;
    let made = processor(again.digests().await);
    assert!(made.len() > 5, "{made:?}");
    assert_eq!(made, expected);
    again.stop().await;
    live.start().await;
}

async fn results(ground: &Ground, world: &World, life: &Life) -> Results {
    let log = ground.log.sound();
    let mut results =
        Results { verdicts: BTreeMap::new(), targets: BTreeMap::new(), tallied: BTreeMap::new(), blocks: (0, 0) };
    for topic in ["share.valid", "share.rejected", "share.stale", "share.tallies", "difficulty.targets"] {
        for partition in 0..2 {
            for record in read_all(&log, topic, partition).await {
                let time = record.event_time();
                match record.body.unwrap() {
                    Body::Verdict(verdict) => {
                        let key = (verdict.session, verdict.job_id, verdict.header_hash.to_vec(), verdict.reason);
                        *results.verdicts.entry(key).or_default() += 1;
                    }
                    Body::DifficultyTarget(target) => {
                        results.targets.entry(target.session).or_default().push((time, target.difficulty));
                    }
                    Body::Tally(tally) => {
                        let accepted = tally.accepted.iter().map(|it| (1, it.shares, it.work_lo));
                        let rejected = tally.rejected.iter().map(|it| (it.reason, it.shares, it.work_lo));
                        for (reason, shares, work) in accepted.chain(rejected) {
                            let key = (tally.account.clone(), tally.worker.clone(), reason);
                            let sum = results.tallied.entry(key).or_default();
                            *sum = (sum.0 + shares, sum.1 + u128::from(work));
                        }
                    }
                    Body::SliceEnd(_) => {}
                    other => panic!("{other:?}"),
                }
            }
        }
    }
    let submitted = life.sent.iter().filter(|(_, body)| matches!(body, Body::Submission(_))).count() as u64;
    assert_eq!(results.verdicts.values().sum::<u64>(), submitted, "S1: each share has one verdict");
    assert_eq!(results.tallied.values().map(|sum| sum.0).sum::<u64>(), submitted, "S1: and is counted once");
    for ((session, _, _, reason), count) in &results.verdicts {
        assert!(*reason != 1 || *count == 1, "a share of session {session} was accepted twice");
    }
    world.money();
    let blocks = world.store.blocks(None, 1_000).unwrap();
    assert!(blocks.iter().all(|block| block.credit == CreditState::Available), "each is credited and matured");
    let totals = world.store.totals().unwrap();
    let rewards = blocks.iter().map(|block| block.value.get()).sum();
    assert_eq!(totals.available.get() + totals.fee_available.get(), rewards, "M1: to the satoshi");
    assert_eq!(totals.pending.get() + totals.fee_pending.get(), 0);
    results.blocks = (blocks.len(), rewards);
    results
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// S1, M1: verdicts, decisions, counts and work are those of a pool that was not changed, wherever the cut is.
    #[test]
    fn s1_another_number_of_partitions_changes_no_verdict_and_no_count(
        seed: u64, cut in 0..320_usize, partitions in prop_oneof![Just(1_u32), Just(3), Just(4), Just(8)],
        recent: bool,
    ) {
        let life = Life::new(seed, 240);
        let since = recent.then(|| Since { length: Duration::from_secs(30), needed: at(0) });
        let change = Change { at: cut, partitions, since, fates: &[] };
        let (expected, _) = runtime().block_on(live(&life, None));
        let (changed, _) = runtime().block_on(live(&life, Some(&change)));
        prop_assert_eq!(changed, expected);
    }
}

/// S1, P1: a change that dies anywhere is completed by the next attempt, to the same end.
#[tokio::test]
async fn s1_a_change_may_die_at_any_append() {
    let life = Life::new(7, 60);
    let change = Change { at: 50, partitions: 3, since: None, fates: &[] };
    let (expected, _) = live(&life, Some(&change)).await;
    for fate in [Append::Unheard, Append::Lost] {
        let mut deaths = 0;
        for at in 0.. {
            let mut fates = vec![Append::Durable; at];
            fates.push(fate);
            let (results, died) = live(&life, Some(&Change { fates: &fates, ..change })).await;
            assert_eq!(results, expected, "{fate:?} at append {at}");
            deaths += died;
            if died == 0 {
                break;
            }
        }
        assert!(deaths > 15, "{fate:?}: it died {deaths} times only");
    }
}

/// A log with a life in it that no task has read.
async fn unread(place: Place, life: &Life) -> (Ground, World, Sources, Graph) {
    let (ground, world) = (Ground::new(place), World::new());
    let mut sources = Sources::new(ground.log.sound());
    let graph = topology_at(BEFORE, 1);
    let instance = Instance::new(&graph, &[], &ground, ground.env.clone(), world.externals.clone());
    instance.create_topics().await;
    let jobs: Vec<_> = life.jobs.iter().map(|job| (at(0), Body::Job(job.clone()))).collect();
    sources.append("mining.jobs", (0, 1), jobs).await;
    send(&mut sources, NAMES[0], BEFORE, &life.sent).await;
    (ground, world, sources, graph)
}

fn around(ground: &Ground, world: &World) -> Around {
    let (log, env, externals) = (ground.log.clone(), ground.env.clone(), world.externals.clone());
    Around { log, env, externals, options: RuntimeOptions::default() }
}

/// The copy has each record once, a tick in every partition, sessions in their order; older history only if asked for.
#[tokio::test]
async fn history_is_shared_out_once_and_in_order() {
    let life = Life::new(5, 200);
    let (ground, world, ..) = unread(Place::Memory, &life).await;
    let graph = topology_at(3, 2);
    let place = around(&ground, &world);
    let topic = pending(&graph, &place.log).await.unwrap()[0];
    let (mut copied, mut closed) = (None, Vec::new());
    let mut seen = |step| match step {
        Progress::Copied(what) => copied = Some(what),
        Progress::Closed(tasks) => closed = tasks,
        _ => {}
    };
    let since = Since { length: Duration::from_secs(300), needed: at(150_000) };
    rescale(&graph, topic, Some(since), &place, &mut seen).await.unwrap();
    let mut expected: BTreeMap<u64, Vec<Body>> = BTreeMap::new();
    let mut found = expected.clone();
    let mut ticks = 0;
    let mut add = |to: &mut BTreeMap<u64, Vec<Body>>, body: Body| match &body {
        Body::Submission(share) => to.entry(share.session).or_default().push(body),
        Body::Tick(_) => ticks += 1,
        other => panic!("{other:?}"),
    };
    for (_, body) in life.sent.iter().filter(|(time, _)| *time >= at(150_000)) {
        add(&mut expected, body.clone());
    }
    let mut in_partition = Vec::new();
    for partition in 0..3 {
        let mut records = read_all(&place.log, NAMES[1], partition).await;
        assert!(
            matches!(records.pop().unwrap().body, Some(Body::Cut(cut)) if (cut.generation, cut.partitions) == (2, 3))
        );
        in_partition.push(records.len() as u64 + 1);
        assert!(records.is_sorted_by_key(|record| record.event_time()));
        for record in records {
            add(&mut found, record.body.unwrap());
        }
    }
    assert_eq!(found, expected);
    assert_eq!(ticks % 4, 0, "each tick once in what was sent, and in three partitions");
    let copied = copied.unwrap();
    assert_eq!((copied.partitions, copied.stood), (in_partition, 0));
    assert!(copied.older > 0 && copied.records > 0);
    assert_eq!(closed.len(), BEFORE as usize);
    assert!(closed.iter().all(|task| task.processed > 0 && task.appended > 0 && task.task.starts_with("verify.")));
}

/// P1: what something else has written to the new partitions is not built upon.
#[tokio::test]
async fn p1_a_new_generation_that_is_not_ours_is_refused() {
    let life = Life::new(3, 60);
    let (ground, world, mut sources, before) = unread(Place::Memory, &life).await;
    let after = topology_at(2, 2);
    Instance::new(&after, &[], &ground, ground.env.clone(), world.externals.clone()).create_topics().await;
    send(&mut sources, NAMES[1], 2, &life.sent[..4]).await;
    let place = around(&ground, &world);
    let log = place.log.clone();
    let topic = pending(&after, &log).await.unwrap()[0];
    let error = rescale(&after, topic, None, &place, &mut |_| {}).await.unwrap_err();
    assert!(matches!(&error, RescaleError::Differs { partition, .. } if *partition.topic == *NAMES[1]), "{error}");
    // It was begun and must be completed as it was begun.
    let other = topology_at(5, 2);
    let topic = pending(&other, &log).await.unwrap()[0];
    let error = rescale(&other, topic, None, &place, &mut |_| {}).await.unwrap_err();
    assert!(error.to_string().contains("`partitions: 2`"), "{error}");
    let error = check(&before, &log).await.unwrap_err();
    assert!(error.to_string().contains("generation: 2"), "{error}");
    assert!(log.bounds(&Partition::new(GENERATIONS, 0)).await.unwrap().next > Offset::new(1));
}

/// A change that is on record keeps the pool from starting: one whose tasks cannot run is not begun.
#[tokio::test]
async fn a_change_that_cannot_be_done_is_not_begun() {
    let (ground, world, ..) = unread(Place::Disk, &Life::new(11, 60)).await;
    let place = around(&ground, &world);
    let state = state_directory(ground.env.dir().unwrap(), "verify.1");
    std::fs::create_dir_all(&state).unwrap();
    std::fs::write(state.join("LOG"), "what is left of a state").unwrap();
    let after = topology_at(3, 2);
    let topic = pending(&after, &place.log).await.unwrap()[0];
    let error = rescale(&after, topic, None, &place, &mut |_| {}).await.unwrap_err();
    assert!(matches!(&error, RescaleError::Refused(why) if why.contains("verify.1: ")), "{error}");
    let topics = place.log.topics().await.unwrap();
    assert!(!topics.iter().any(|topic| [GENERATIONS, NAMES[1]].contains(&&*topic.name)), "{topics:?}");
    std::fs::remove_dir_all(&state).unwrap();
    rescale(&after, topic, None, &place, &mut |_| {}).await.unwrap();
    check(&after, &place.log).await.unwrap();
}

/// A log that never had the topic has nothing to make another generation of.
#[tokio::test]
async fn a_new_pool_begins_with_generation_one() {
    let (ground, world) = (Ground::new(Place::Memory), World::new());
    let graph = topology_at(2, 2);
    let place = around(&ground, &world);
    let log = place.log.clone();
    let topic = pending(&graph, &log).await.unwrap()[0];
    let error = rescale(&graph, topic, None, &place, &mut |_| {}).await.unwrap_err();
    assert!(error.to_string().contains("begins with generation 1"), "{error}");
    let error = pending(&topology_at(2, 3), &log).await.unwrap_err();
    assert!(error.to_string().contains("grows by one"), "{error}");
}
