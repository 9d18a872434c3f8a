//! Following: replays find every difference (S2), standbys take over without a loss or a double (S1), what is recorded
//! is not appended again.

use std::sync::atomic::Ordering;

use sluice_log::{SwitchLog, read_only};
use sluice_proto::v1::Coordinates;
use sluice_proto::{decode, encode};
use sluice_state::Digest;
use tokio::sync::watch;

use super::super::follow::Outputs;
use super::super::replay::{Check, Progress, Replay, Replayed, Until};
use super::super::task::{Surroundings, Task};
use super::crash::work_off;
use super::*;

/// Offset of the first output of a task: genesis and fence stand before it.
const FIRST: u64 = 2;
const GUARD: Duration = Duration::from_secs(60);

/// Jobs, and shares that cite them, some repeated, in several appends.
async fn work(log: &Arc<MemoryLog>, epoch: u32, rounds: u64) {
    let (jobs, shares) = (producer(log, "mining.jobs", epoch), producer(log, "share.submissions", epoch));
    for round in 0..rounds {
        let clock = jobs.append(0, vec![(at(round), job(round))]).await.unwrap().get();
        let records = (0..20).map(|n| (at(round), share(n % 5, round / 3 + 1, (n * n) as u32 % 60, clock)));
        shares.append(0, records.chain([(at(round), tick())]).collect()).await.unwrap();
    }
}

fn plan(tasks: Vec<TaskSpec>) -> Plan {
    Plan { network: "regtest".into(), topics: topic_specs(), tasks }
}

async fn own(log: &Arc<MemoryLog>, env: &StateEnv) -> RuntimeHandle {
    let externals = Arc::new(Externals::default());
    TopologyRuntime::start(plan(vec![fused()]), log.clone(), env.clone(), externals, RuntimeOptions::default())
        .await
        .unwrap()
}

/// Waits until all is processed and committed, and returns the digests.
async fn settled(handle: &RuntimeHandle) -> Vec<(String, Digest)> {
    let begun = std::time::Instant::now();
    loop {
        let status = handle.status().await.swap_remove(0);
        if status.inputs[0].lag == 0 {
            return status.digests;
        }
        assert!(handle.failure().is_none() && begun.elapsed() < GUARD, "{status:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A task over `rounds` of work; its digests at the end.
async fn worked(log: &Arc<MemoryLog>, rounds: u64) -> Vec<(String, Digest)> {
    let handle = own(log, &StateEnv::in_memory()).await;
    work(log, 1, rounds).await;
    let digests = settled(&handle).await;
    handle.stop(GUARD).await.unwrap();
    digests
}

fn replay(log: &Arc<MemoryLog>, env: &StateEnv, check: Check, until: Until) -> Result<Replayed, TaskFailure> {
    let externals = Arc::new(Externals::default());
    let replay = Replay { log: log.clone(), env: env.clone(), externals, network: "regtest".into(), check };
    let progress = Progress::default();
    let mut results = replay.run(&[(fused(), until)], &progress);
    if results[0].is_ok() {
        assert_eq!(progress.total.load(Ordering::Relaxed), progress.done.load(Ordering::Relaxed));
    }
    results.swap_remove(0)
}

fn digests(replayed: &Replayed) -> Vec<(String, Digest)> {
    replayed.tables.iter().map(|(name, digest, _)| (name.clone(), *digest)).collect()
}

async fn count(log: &Arc<MemoryLog>) -> u64 {
    outputs(log, &OUTPUTS).await.iter().map(|(_, records)| records.len() as u64).sum()
}

/// A copy of the log in which `change` has replaced each record of the topics.
async fn changed(log: &Arc<MemoryLog>, mut change: impl FnMut(&Partition, u64, Bytes) -> Vec<Bytes>) -> Arc<MemoryLog> {
    let copy = new_log().await;
    for (topic, partitions) in TOPICS {
        for number in 0..partitions {
            let partition = Partition::new(topic, number);
            let records = log.read(&partition, Offset::new(1), usize::MAX, Duration::ZERO).await.unwrap();
            let records = records.into_iter().flat_map(|it| change(&partition, it.offset.get(), it.value)).collect();
            copy.append(&partition, records).await.unwrap();
        }
    }
    copy
}

fn difference(result: Result<Replayed, TaskFailure>) -> Difference {
    match result.map_err(|failure| failure.error) {
        Err(error) => match &*error {
            TaskError::Differs(difference) => (**difference).clone(),
            other => panic!("{other}"),
        },
        Ok(replayed) => panic!("no difference: {replayed:?}"),
    }
}

#[tokio::test]
async fn s2_a_replay_makes_the_recorded_outputs_and_the_same_state() {
    let log = new_log().await;
    let live = worked(&log, 12).await;
    for check in [Check::Verify, Check::Count, Check::Forget] {
        let replayed = replay(&log, &StateEnv::in_memory(), check, Until::End).unwrap();
        assert_eq!(digests(&replayed), live);
        assert_eq!(replayed.unrecorded, None);
        let same = if check == Check::Forget { 0 } else { count(&log).await };
        assert_eq!(replayed.compared, Compared { same, ..Compared::default() });
        assert_eq!(replayed.records, 12 * 21 + 1, "all shares, ticks and the genesis record");
    }
}

/// S2: a replay in two parts, the second one from the state of the first.
#[tokio::test]
async fn s2_a_replay_goes_on_from_a_state() {
    let log = new_log().await;
    let live = worked(&log, 12).await;
    let env = StateEnv::in_memory();
    let middle = Until::Positions(BTreeMap::from([(Partition::new("share.submissions", 0), Offset::new(100))]));
    let first = replay(&log, &env, Check::Verify, middle).unwrap();
    assert_eq!(first.positions, [(Partition::new("share.submissions", 0), Offset::new(100))]);
    assert_ne!(digests(&first), live);
    let second = replay(&log, &env, Check::Verify, Until::End).unwrap();
    assert_eq!(digests(&second), live);
    assert_eq!(first.compared.same + second.compared.same, count(&log).await);
}

#[tokio::test]
async fn a_replay_ends_before_a_time() {
    let log = new_log().await;
    worked(&log, 12).await;
    let replayed = replay(&log, &StateEnv::in_memory(), Check::Verify, Until::Time(at(4))).unwrap();
    assert_eq!(replayed.positions[0].1, Offset::new(1 + 5 * 21), "the records of times 0 to 4");
}

#[tokio::test]
async fn s2_one_changed_byte_in_an_output_is_found() {
    let log = new_log().await;
    worked(&log, 6).await;
    let partitions = outputs(&log, &OUTPUTS).await;
    let mut tried = 0;
    for (place, records) in partitions.iter().filter(|(_, records)| !records.is_empty()) {
        for (index, _) in records.iter().enumerate().step_by(7) {
            let wrong = changed(&log, |partition, offset, raw| {
                let mut envelope = decode(raw).unwrap();
                if partition.to_string() == *place && offset == index as u64 + FIRST {
                    envelope.event_time_ns ^= 1;
                }
                vec![encode(&envelope)]
            });
            let found = difference(replay(&wrong.await, &StateEnv::in_memory(), Check::Verify, Until::End));
            assert_eq!((found.output.to_string(), found.what), (place.clone(), Differs::Content));
            assert_eq!(found.offset, Some(Offset::new(index as u64 + FIRST)));
            assert!(found.recorded.is_some() && found.made.is_some());
            assert!(found.to_string().contains(&format!("{place} offset {}", index as u64 + FIRST)), "{found}");
            tried += 1;
        }
    }
    assert!(tried > 10);
}

/// Replaces the predecessor that the record names.
fn behind(envelope: &mut Envelope, last: Coordinates) {
    let from = envelope.from.as_mut().unwrap();
    (from.prev_offset, from.prev_ordinal) = (last.source_offset, last.ordinal);
}

#[tokio::test]
async fn s2_an_output_too_few_or_too_many_is_found() {
    let log = new_log().await;
    worked(&log, 6).await;
    let is = |partition: &Partition| partition.to_string() == "share.valid/0";
    let records = read_all(&log, "share.valid", 0).await;
    // The fifth one is gone, and the chain is whole without it.
    let fewer = changed(&log, |partition, offset, raw| {
        let mut envelope = decode(raw.clone()).unwrap();
        match offset {
            6 if is(partition) => vec![],
            7 if is(partition) => {
                behind(&mut envelope, records[3].from.unwrap());
                vec![encode(&envelope)]
            }
            _ => vec![raw],
        }
    });
    let found = difference(replay(&fewer.await, &StateEnv::in_memory(), Check::Verify, Until::End));
    let mut fifth = records[4].clone();
    fifth.from.as_mut().unwrap().epoch = 0;
    assert_eq!((found.what, found.offset, found.made), (Differs::Missing, None, Some(encode(&fifth))));

    // One more behind the fifth, and one more behind the last.
    for after in [6, records.len() as u64 + FIRST - 1] {
        let more = changed(&log, |partition, offset, raw| {
            let mut envelope = decode(raw.clone()).unwrap();
            if !is(partition) || offset < after || offset > after + 1 {
                return vec![raw];
            }
            let last = records[(after - FIRST) as usize].from.unwrap();
            let extra = Coordinates { ordinal: last.ordinal + 1, ..last };
            if offset == after + 1 {
                behind(&mut envelope, extra);
                return vec![encode(&envelope)];
            }
            let mut added = envelope.clone();
            added.from = Some(extra);
            behind(&mut added, last);
            vec![raw, encode(&added)]
        });
        let found = difference(replay(&more.await, &StateEnv::in_memory(), Check::Verify, Until::End));
        assert_eq!((found.what, found.offset, found.made), (Differs::Unexpected, Some(Offset::new(after + 1)), None));
    }
}

/// An output that is not there where the log ends is not yet written: the replay ends before what it is made from.
#[tokio::test]
async fn a_replay_ends_where_the_outputs_end() {
    let log = new_log().await;
    worked(&log, 6).await;
    let last = read_all(&log, "share.valid", 0).await.len() as u64 + FIRST - 1;
    let cut =
        changed(
            &log,
            |partition, offset, raw| {
                if partition.to_string() == "share.valid/0" && offset == last { vec![] } else { vec![raw] }
            },
        );
    let cut = cut.await;
    let source = read_all(&log, "share.valid", 0).await.last().unwrap().from.unwrap().source_offset;
    for check in [Check::Verify, Check::Count] {
        let replayed = replay(&cut, &StateEnv::in_memory(), check, Until::End).unwrap();
        assert_eq!(replayed.positions[0].1, Offset::new(source));
        assert!(replayed.unrecorded.unwrap().contains("share.valid/0"));
    }
}

#[tokio::test]
async fn outputs_that_were_trimmed_are_counted_and_inputs_are_refused() {
    let log = new_log().await;
    let live = worked(&log, 6).await;
    log.trim(&Partition::new("share.valid", 0), Offset::new(10)).await.unwrap();
    let replayed = replay(&log, &StateEnv::in_memory(), Check::Verify, Until::End).unwrap();
    assert_eq!(digests(&replayed), live);
    assert_eq!(replayed.compared.trimmed, 10 - FIRST);
    log.trim(&Partition::new("share.submissions", 0), Offset::new(20)).await.unwrap();
    let refused = replay(&log, &StateEnv::in_memory(), Check::Verify, Until::End).unwrap_err();
    assert!(matches!(&*refused.error, TaskError::Trimmed { start, .. } if *start == Offset::new(20)), "{refused}");
}

/// What a task makes again after its state was lost is not appended again, and its readers see no difference.
#[tokio::test]
async fn s1_a_task_that_lost_its_state_repeats_nothing() {
    let log = new_log().await;
    let live = worked(&log, 6).await;
    let mut ends = Vec::new();
    for (topic, partitions) in TOPICS {
        for number in 0..partitions {
            ends.push((topic, number, log.bounds(&Partition::new(topic, number)).await.unwrap().next));
        }
    }
    let env = StateEnv::in_memory();
    let handle = own(&log, &env).await;
    assert_eq!(settled(&handle).await, live);
    for (topic, number, end) in ends.into_iter().filter(|(topic, ..)| OUTPUTS.contains(topic)) {
        let now = log.bounds(&Partition::new(topic, number)).await.unwrap().next;
        assert_eq!(now, end.next(), "{topic}/{number}: its fence only");
    }
    // It goes on as if nothing had been.
    work(&log, 2, 6).await;
    let went_on = settled(&handle).await;
    handle.stop(GUARD).await.unwrap();
    let replayed = replay(&log, &StateEnv::in_memory(), Check::Verify, Until::End).unwrap();
    assert_eq!(digests(&replayed), went_on);
    assert_eq!(replayed.compared.same, count(&log).await);
}

/// S1, S2: the owner dies at each step of its loop; a standby that has followed it takes over.
#[tokio::test]
async fn s1_a_standby_takes_over_wherever_the_owner_dies() {
    for died in 0..3 {
        let log = new_log().await;
        let mut owner = Task::open(&fused(), &around(&log, &StateEnv::in_memory())).await.unwrap();
        let switch = SwitchLog::new(read_only(log.clone()));
        let standby = TopologyRuntime::standby(
            plan(vec![fused()]),
            switch.clone(),
            StateEnv::in_memory(),
            RuntimeOptions::default(),
        );
        let standby = standby.await.unwrap();
        for round in 1..=8 {
            work(&log, round, 1).await;
            let mut left = true;
            while left {
                owner.wait().await.unwrap();
                let (input, records) = owner.next_batch().await.unwrap().unwrap();
                owner.process(input, records).await.unwrap();
                if round == 8 && died == 0 {
                    break;
                }
                assert!(owner.append().await.unwrap());
                if round == 8 && died == 1 {
                    break;
                }
                owner.flush().unwrap();
                owner.commit().unwrap();
                left = owner.inputs[0].feed.next < log.bounds(owner.inputs[0].feed.partition()).await.unwrap().next;
            }
        }
        drop(owner);
        switch.switch(log.clone()).unwrap();
        let promoted = tokio::time::timeout(GUARD, standby.promote(Arc::default())).await.unwrap();
        let handle = promoted.unwrap_or_else(|error| panic!("{error}"));
        settled(&handle).await;
        work(&log, 9, 3).await;
        let took_over = settled(&handle).await;
        handle.stop(GUARD).await.unwrap();
        let replayed = replay(&log, &StateEnv::in_memory(), Check::Verify, Until::End).unwrap();
        assert_eq!(digests(&replayed), took_over, "died at {died}");
        assert_eq!(replayed.compared.same, count(&log).await);
        let verdicts = outputs(&log, &["share.valid", "share.rejected"]).await;
        let verdicts = verdicts.iter().flat_map(|(_, records)| records);
        let verdicts = verdicts.filter(|record| matches!(record.body, Some(Body::Verdict(_)))).count();
        assert_eq!(verdicts, 11 * 20, "each share has one verdict");
    }
}

/// S2, live: a standby that would have written something else than the owner stops and says what.
#[tokio::test]
async fn s2_a_standby_notices_what_it_would_not_have_written() {
    let log = new_log().await;
    worked(&log, 6).await;
    let wrong = changed(&log, |partition, offset, raw| {
        let mut envelope = decode(raw).unwrap();
        if partition.to_string() == "share.valid/0" && offset == 9 {
            envelope.event_time_ns += 1;
        }
        vec![encode(&envelope)]
    });
    let log = read_only(wrong.await);
    let standby = TopologyRuntime::standby(plan(vec![fused()]), log, StateEnv::in_memory(), RuntimeOptions::default());
    let standby = standby.await.unwrap();
    let failure = tokio::time::timeout(GUARD, standby.failed()).await.unwrap();
    assert!(failure.to_string().contains("share.valid/0 offset 9"), "{failure}");
    standby.stop(GUARD).await.unwrap();
}

async fn standby(log: &Arc<MemoryLog>, env: &StateEnv) -> Task {
    let outputs = Outputs::Standby(watch::channel(false).1);
    Task::open(&fused(), &Surroundings { outputs, ..around(log, env) }).await.unwrap()
}

/// S1: who dies right behind its promotion, in the middle of a batch, has committed nothing of that batch.
#[tokio::test]
async fn s1_a_promotion_commits_no_half_of_a_batch() {
    let (log, env) = (new_log().await, StateEnv::in_memory());
    work(&log, 1, 6).await;
    let mut task = standby(&log, &env).await;
    while task.inputs[0].feed.next <= Offset::new(1) {
        task.wait().await.unwrap();
        let Some((input, records)) = task.next_batch().await.unwrap() else { continue };
        task.process(input, records).await.unwrap();
    }
    task.promote().await.unwrap();
    drop(task);
    let mut task = Task::open(&fused(), &around(&log, &env)).await.unwrap();
    work_off(&mut task, &log).await;
    let replayed = replay(&log, &StateEnv::in_memory(), Check::Verify, Until::End).unwrap();
    assert_eq!(digests(&replayed), task.tables.digests());
}

/// What a standby would not have written stops it; once it owns its outputs, what is recorded stands.
#[tokio::test]
async fn a_promoted_standby_lets_stand_what_is_recorded() {
    let log = new_log().await;
    worked(&log, 6).await;
    let wrong = changed(&log, |partition, offset, raw| {
        let mut envelope = decode(raw).unwrap();
        if partition.to_string() == "share.valid/0" && offset == 9 {
            envelope.event_time_ns += 1;
        }
        vec![encode(&envelope)]
    });
    let (log, env) = (wrong.await, StateEnv::in_memory());
    let mut task = standby(&log, &env).await;
    task.promote().await.unwrap();
    work_off(&mut task, &log).await;
    assert_eq!(task.outbox.compared().different, 1);
}
