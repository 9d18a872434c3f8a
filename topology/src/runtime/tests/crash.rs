//! Crashes at every point of the loop: nothing lost, nothing twice, the same bytes and the same state (S1, S2).

use proptest::prelude::*;
use sluice_state::Digest;

use super::super::task::Task;
use super::*;

/// How far a task gets with a batch before its process is killed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Crash {
    Processed,
    Appended,
    Flushed,
    Committed,
    Never,
}

/// Input of one round: shares as (session, job, nonce), then a crash.
type Round = (Vec<(u64, u64, u32)>, Crash);

fn rounds() -> impl Strategy<Value = Vec<Round>> {
    let share = (0u64..5, 1u64..4, 0u32..20);
    let crash = prop_oneof![
        Just(Crash::Processed),
        Just(Crash::Appended),
        Just(Crash::Flushed),
        Just(Crash::Committed),
        Just(Crash::Never)
    ];
    proptest::collection::vec((proptest::collection::vec(share, 0..12), crash), 1..10)
}

/// One batch, as [`Task::run`] does it, but only up to the crash. Tells whether the task lives on.
pub(super) async fn batch(task: &mut Task, crash: Crash) -> bool {
    task.wait().await.unwrap();
    task.apply_tables().unwrap();
    let Some((input, records)) = task.next_batch().await.unwrap() else { return true };
    task.process(input, records).await.unwrap();
    if crash == Crash::Processed {
        return false;
    }
    assert!(task.append().await.unwrap());
    if crash == Crash::Appended {
        return false;
    }
    task.flush().unwrap();
    if crash == Crash::Flushed {
        return false;
    }
    task.commit().unwrap();
    crash != Crash::Committed
}

/// Works until everything in the log has been processed and committed.
pub(super) async fn work_off(task: &mut Task, log: &Arc<MemoryLog>) {
    for input in 0..task.inputs.len() {
        let end = log.bounds(task.inputs[input].feed.partition()).await.unwrap().next;
        while task.inputs[input].feed.next < end {
            assert!(batch(task, Crash::Never).await);
        }
    }
}

/// Feeds the rounds to the task, with the crashes or without; returns what came out and the digests at the end.
async fn run(spec: &TaskSpec, rounds: &[Round], crashes: bool) -> (Vec<(String, Vec<Envelope>)>, Vec<Digest>) {
    let (log, env) = (new_log().await, StateEnv::in_memory());
    let (jobs, shares) = (producer(&log, "mining.jobs", 1), producer(&log, "share.submissions", 1));
    let mut task = Task::open(spec, &around(&log, &env)).await.unwrap();
    for (number, (submitted, crash)) in rounds.iter().enumerate() {
        let clock = jobs.append(0, vec![(at(number as u64), job(number as u64 + 100))]).await.unwrap().get();
        let mut records: Vec<_> = submitted
            .iter()
            .map(|(s, j, n)| (at(number as u64), share(*s, *j + number as u64 / 3, *n, clock)))
            .collect();
        records.push((at(number as u64), tick()));
        shares.append(0, records).await.unwrap();
        if crashes && !batch(&mut task, *crash).await {
            drop(task);
            task = Task::open(spec, &around(&log, &env)).await.unwrap();
        }
    }
    work_off(&mut task, &log).await;
    (outputs(&log, &OUTPUTS).await, task.tables.table_digests().collect())
}

pub(super) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    /// S1, S2: whatever a crash interrupts, a reader downstream sees every output once, with the same bytes as if
    /// nothing had happened, and the state ends the same.
    #[test]
    fn s1_s2_a_crash_anywhere_changes_nothing(rounds in rounds()) {
        block_on(async {
            let undisturbed = run(&fused(), &rounds, false).await;
            let crashed = run(&fused(), &rounds, true).await;
            assert_eq!(crashed, undisturbed);
            let submitted: usize = rounds.iter().map(|(shares, _)| shares.len()).sum();
            let judged: usize = crashed.0.iter().filter(|(topic, _)| !topic.starts_with("share.low")).map(|(_, r)| r.len()).sum();
            assert_eq!(judged, submitted, "every share has one verdict");
        });
    }

    /// S2: state that is lost altogether is made again from the topics; outputs that are repeated are dropped.
    #[test]
    fn s2_a_replay_from_nothing_gives_the_same_state_and_no_new_output(rounds in rounds()) {
        block_on(async {
            let (log, env) = (new_log().await, StateEnv::in_memory());
            let (jobs, shares) = (producer(&log, "mining.jobs", 1), producer(&log, "share.submissions", 1));
            for (number, (submitted, _)) in rounds.iter().enumerate() {
                let clock = jobs.append(0, vec![(at(1), job(number as u64))]).await.unwrap().get();
                let records = submitted.iter().map(|(s, j, n)| (at(1), share(*s, *j, *n, clock)));
                shares.append(0, records.collect()).await.unwrap();
            }
            let mut task = Task::open(&fused(), &around(&log, &env)).await.unwrap();
            work_off(&mut task, &log).await;
            let (before, digests) = (outputs(&log, &OUTPUTS).await, task.tables.digests());
            let mut again = Task::open(&fused(), &around(&log, &StateEnv::in_memory())).await.unwrap();
            work_off(&mut again, &log).await;
            assert_eq!(again.tables.digests(), digests);
            assert_eq!(outputs(&log, &OUTPUTS).await, before);
        });
    }

    /// S2: a stored topic in place of a direct one changes neither verdicts nor state.
    #[test]
    fn s2_split_and_fused_tasks_agree(rounds in rounds()) {
        block_on(async {
            let (fused_out, fused_digests) = run(&fused(), &rounds, false).await;
            let (log, env) = (new_log().await, StateEnv::in_memory());
            let (jobs, shares) = (producer(&log, "mining.jobs", 1), producer(&log, "share.submissions", 1));
            for (number, (submitted, _)) in rounds.iter().enumerate() {
                let time = at(number as u64);
                let clock = jobs.append(0, vec![(time, job(number as u64 + 100))]).await.unwrap().get();
                let records = submitted.iter().map(|(s, j, n)| (time, share(*s, *j + number as u64 / 3, *n, clock)));
                shares.append(0, records.chain([(time, tick())]).collect()).await.unwrap();
            }
            let [first, second] = split();
            let mut check = Task::open(&first, &around(&log, &env)).await.unwrap();
            work_off(&mut check, &log).await;
            let mut count = Task::open(&second, &around(&log, &env)).await.unwrap();
            work_off(&mut count, &log).await;
            let bodies = |all: Vec<(String, Vec<Envelope>)>| -> Vec<_> {
                all.into_iter().flat_map(|(_, records)| records).map(|r| (r.event_time_ns, r.body)).collect()
            };
            assert_eq!(bodies(outputs(&log, &OUTPUTS).await), bodies(fused_out));
            assert_eq!(count.tables.table_digests().collect::<Vec<_>>(), fused_digests);
        });
    }
}

/// S2: with several inputs, which one comes first is a matter of timing; after a crash the batch that had already been
/// written comes first again, even if one with priority has arrived in between.
#[tokio::test]
async fn s2_a_task_with_several_inputs_repeats_the_batch_it_had_begun() {
    let (log, env) = (new_log().await, StateEnv::in_memory());
    let mut task = Task::open(&with_priority(), &around(&log, &env)).await.unwrap();
    work_off(&mut task, &log).await;
    let clock = producer(&log, "mining.jobs", 1).append(0, vec![(at(1), job(9))]).await.unwrap().get();
    producer(&log, "share.submissions", 1).append(0, vec![(at(2), share(0, 1, 1, clock))]).await.unwrap();
    while batch(&mut task, Crash::Appended).await {}
    assert_eq!(outputs(&log, &["share.valid"]).await.iter().map(|(_, records)| records.len()).sum::<usize>(), 1);
    drop(task);
    producer(&log, "share.urgent", 1).append(0, vec![(at(3), share(3, 1, 2, clock))]).await.unwrap();
    let mut task = Task::open(&with_priority(), &around(&log, &env)).await.unwrap();
    work_off(&mut task, &log).await;
    let numbered: Vec<(u64, u64)> = outputs(&log, &["share.valid"])
        .await
        .into_iter()
        .flat_map(|(_, records)| records)
        .filter_map(|record| match record.body {
            Some(Body::Verdict(verdict)) => Some((verdict.session, verdict.work_lo)),
            _ => None,
        })
        .collect();
    assert_eq!(numbered, [(0, 1), (3, 2)], "the account's first share keeps its number");
}

/// A table comes back from the task's own state: the topic's old records may be gone by then.
#[tokio::test]
async fn a_restart_does_not_read_the_broadcast_topic_again() {
    let (log, env) = (new_log().await, StateEnv::in_memory());
    let jobs = producer(&log, "mining.jobs", 1);
    let mut clock = 0;
    for id in 0..30 {
        clock = jobs.append(0, vec![(at(1), job(id))]).await.unwrap().get();
    }
    let shares = producer(&log, "share.submissions", 1);
    shares.append(0, vec![(at(1), share(1, 1, 1, clock))]).await.unwrap();
    let mut task = Task::open(&fused(), &around(&log, &env)).await.unwrap();
    work_off(&mut task, &log).await;
    drop(task);
    log.trim(&Partition::new("mining.jobs", 0), Offset::new(clock + 1)).await.unwrap();
    shares.append(0, vec![(at(1), share(1, 1, 2, clock)), (at(1), share(1, 1, 3, clock - 5))]).await.unwrap();
    let mut task = Task::open(&fused(), &around(&log, &env)).await.unwrap();
    assert_eq!(persist::raw_records(&task.tables, "table/jobs").unwrap().len(), 10, "only what is needed is kept");
    work_off(&mut task, &log).await;
    let seen: Vec<u32> = outputs(&log, &["share.valid"])
        .await
        .into_iter()
        .flat_map(|(_, records)| records)
        .filter_map(|record| match record.body {
            Some(Body::Verdict(verdict)) => Some(verdict.nbits),
            _ => None,
        })
        .collect();
    assert_eq!(seen, [29, 29, 24]);
}
