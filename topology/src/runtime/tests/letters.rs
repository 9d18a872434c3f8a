//! What a task of statistics does with records that it cannot process (P1), and what every other task does.

use std::sync::atomic::{AtomicBool, Ordering};

use sluice_log::genesis_record;
use sluice_proto::v1::{Coordinates, Fence};
use sluice_proto::{SCHEMA, decode, encode, hash64};

use super::super::letters::{DEAD_LETTERS, FoundLetter, REDRIVEN, dead_letters, redrive};
use super::super::task::Task;
use super::crash::{Crash, batch, block_on, work_off};
use super::*;

/// Jobs below this id are refused until the flag is set, as by a program that learns of them in a later version.
const STRANGE: u64 = 10;

/// Counts submissions by session.
struct Show {
    knows_strange: &'static AtomicBool,
}

impl Operator for Show {
    fn process(&mut self, input: &Input<'_>, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        let Body::Submission(share) = &**input.record else { return Ok(()) };
        if share.job_id < STRANGE && !self.knows_strange.load(Ordering::Relaxed) {
            return Err(OperatorError::Record(format!("job {} is strange", share.job_id)));
        }
        let key = [&share.session.to_be_bytes()[..], &input.source.offset.get().to_be_bytes()].concat();
        assert!(cx.state.insert(0, &key, b"")?, "a record is counted once");
        Ok(())
    }
}

const fn show(role: Role) -> Kind {
    Kind {
        name: "show",
        summary: "test",
        inputs: &[InputSpec { name: "in", accepts: &[RecordKind::Submission], optional: false, priority: false }],
        outputs: &[],
        lookups: &[],
        settings: &[],
        state: const { &[StateTable::plain("seen")] },
        parallel: Parallel::Single,
        role,
    }
}

static KNOWS: [AtomicBool; 2] = [AtomicBool::new(false), AtomicBool::new(false)];
static SHOWN: Kind = show(Role::Statistics(|_| Ok(Box::new(Show { knows_strange: &KNOWS[0] }))));
static PAID: Kind = show(Role::Operator(|_| Ok(Box::new(Show { knows_strange: &KNOWS[0] }))));
static LEARNS: Kind = show(Role::Statistics(|_| Ok(Box::new(Show { knows_strange: &KNOWS[1] }))));

fn spec(kind: &'static Kind) -> TaskSpec {
    let operator = operator("show", kind, vec![]);
    task("show", vec![stored("share.submissions", 0, "in", false)], vec![operator], vec![])
}

async fn log_with_letters() -> Arc<MemoryLog> {
    let log = new_log().await;
    for name in [DEAD_LETTERS, REDRIVEN] {
        let spec = TopicSpec { name: name.to_owned(), partitions: 1, retention: Retention::default() };
        log.create_topic(&spec).await.unwrap();
    }
    log
}

async fn put(log: &Arc<MemoryLog>, record: Bytes) -> Offset {
    log.append(&Partition::new("share.submissions", 0), vec![record]).await.unwrap()
}

/// The record of the source "stratumd" with this number, which is also its nonce.
fn numbered(number: u64, job: u64) -> Envelope {
    let from = Coordinates { task: hash64("stratumd"), epoch: 1, source_offset: number, ..Coordinates::default() };
    let from = Coordinates { prev_offset: number - 1, ..from };
    Envelope::new(at(number), from, share(1, job, number as u32, 0))
}

async fn letters(log: &Arc<MemoryLog>) -> Vec<FoundLetter> {
    let shared: SharedLog = log.clone();
    dead_letters(&shared).await.unwrap()
}

async fn open(kind: &'static Kind, log: &Arc<MemoryLog>, env: &StateEnv) -> Task {
    Task::open(&spec(kind), &around(log, env)).await.unwrap()
}

fn rows(task: &Task) -> u64 {
    task.tables.rows(0).unwrap()
}

#[test]
fn p1_an_unknown_version_stops_a_task_and_is_a_letter_of_statistics() {
    block_on(async {
        let (log, env) = (log_with_letters().await, StateEnv::in_memory());
        put(&log, encode(&numbered(1, 20))).await;
        let newer = encode(&Envelope { schema: SCHEMA + 1, ..numbered(2, 20) });
        let place = put(&log, newer.clone()).await;
        put(&log, encode(&numbered(3, 20))).await;
        let mut shown = open(&SHOWN, &log, &env).await;
        work_off(&mut shown, &log).await;
        assert_eq!(rows(&shown), 2, "it goes on behind the letter");
        let found = letters(&log).await;
        let [FoundLetter { letter, event_time, redriven: false, .. }] = &found[..] else { panic!("{found:?}") };
        assert_eq!((letter.task.as_str(), letter.operator.as_str(), letter.port.as_str()), ("show", "", ""));
        assert_eq!((letter.topic.as_str(), letter.partition, letter.offset), ("share.submissions", 0, place.get()));
        assert_eq!((letter.record.clone(), *event_time), (newer, at(2)));
        assert!(letter.cause.contains("run the newer program"), "{}", letter.cause);

        let mut paid = open(&PAID, &log, &StateEnv::in_memory()).await;
        paid.wait().await.unwrap();
        let (input, records) = paid.next_batch().await.unwrap().unwrap();
        let error = paid.process(input, records).await.unwrap_err().to_string();
        assert!(error.contains(&format!("share.submissions/0 offset {place}")), "{error}");
    });
}

/// Bytes of which nothing can be read were one record of some lane: one gap is passed over, the next one is not.
#[test]
fn p1_bytes_that_are_no_record_excuse_one_gap() {
    block_on(async {
        let (log, env) = (log_with_letters().await, StateEnv::in_memory());
        put(&log, encode(&numbered(1, 20))).await;
        put(&log, Bytes::from_static(b"\xff\xff\xff")).await;
        put(&log, encode(&numbered(2, 20))).await;
        let mut shown = open(&SHOWN, &log, &env).await;
        work_off(&mut shown, &log).await;
        // The excuse outlives a restart.
        drop(shown);
        put(&log, encode(&numbered(4, 20))).await;
        let mut shown = open(&SHOWN, &log, &env).await;
        work_off(&mut shown, &log).await;
        assert_eq!((rows(&shown), letters(&log).await.len()), (3, 1));
        put(&log, encode(&numbered(6, 20))).await;
        shown.wait().await.unwrap();
        let (input, records) = shown.next_batch().await.unwrap().unwrap();
        let error = shown.process(input, records).await.unwrap_err().to_string();
        assert!(error.contains("records are missing in between"), "{error}");
    });
}

/// P1: a fence and a genesis record of a newer program are heeded: they are no letters, and excuse no gap.
#[test]
fn p1_a_newer_fence_voids_and_is_no_letter() {
    block_on(async {
        let (log, env) = (log_with_letters().await, StateEnv::in_memory());
        let (task, partition) = (hash64("stratumd"), Partition::new("share.submissions", 0));
        put(&log, encode(&numbered(1, 20))).await;
        let from = Coordinates { task, epoch: 2, ..Coordinates::default() };
        let fence = Body::Fence(Fence { task, epoch: 2, ..Fence::default() });
        put(&log, encode(&Envelope { schema: SCHEMA + 1, ..Envelope::new(at(1), from, fence) })).await;
        let genesis = decode(genesis_record(log.uuid(), &partition, 1)).unwrap();
        put(&log, encode(&Envelope { schema: SCHEMA + 1, ..genesis })).await;
        put(&log, encode(&numbered(2, 20))).await;
        let mut shown = open(&SHOWN, &log, &env).await;
        work_off(&mut shown, &log).await;
        let dropped = shown.inputs[0].feed.gate.dropped;
        assert_eq!((rows(&shown), letters(&log).await.len(), dropped), (1, 0, 1));
        let from = Coordinates { epoch: 2, ..numbered(3, 20).from.unwrap() };
        put(&log, encode(&Envelope { from: Some(from), ..numbered(3, 20) })).await;
        shown.wait().await.unwrap();
        let (input, records) = shown.next_batch().await.unwrap().unwrap();
        let error = shown.process(input, records).await.unwrap_err().to_string();
        assert!(error.contains("records are missing in between"), "{error}");
    });
}

/// S1: a letter is written once and processed again once, whatever crashes come in between.
#[test]
fn s1_a_letter_is_written_and_redriven_once() {
    block_on(async {
        let (log, env) = (log_with_letters().await, StateEnv::in_memory());
        for number in 1..=6 {
            put(&log, encode(&numbered(number, if number == 4 { STRANGE - 1 } else { STRANGE }))).await;
        }
        for crash in [Crash::Processed, Crash::Appended, Crash::Flushed] {
            let mut task = open(&LEARNS, &log, &env).await;
            assert!(!batch(&mut task, crash).await);
        }
        let mut task = open(&LEARNS, &log, &env).await;
        work_off(&mut task, &log).await;
        assert_eq!(rows(&task), 5);
        let found = letters(&log).await;
        let [FoundLetter { letter, .. }] = &found[..] else { panic!("{found:?}") };
        assert_eq!((letter.operator.as_str(), letter.port.as_str(), letter.offset), ("show", "in", 4));
        assert_eq!(letter.cause, "job 9 is strange");
        drop(task);

        let shared: SharedLog = log.clone();
        // Redriven too early: it is a letter again.
        redrive(&shared, Epoch::new(1), found).await.unwrap();
        let mut task = open(&LEARNS, &log, &env).await;
        work_off(&mut task, &log).await;
        let found = letters(&log).await;
        assert_eq!((rows(&task), found.len()), (5, 2));
        assert!(found[0].redriven && !found[1].redriven);
        assert_eq!((found[1].letter.operator.as_str(), found[1].letter.offset), ("show", 4));
        drop(task);

        KNOWS[1].store(true, Ordering::Relaxed);
        let last = found.last().cloned().unwrap();
        redrive(&shared, Epoch::new(2), vec![last.clone()]).await.unwrap();
        for crash in [Crash::Processed, Crash::Appended, Crash::Flushed] {
            let mut task = open(&LEARNS, &log, &env).await;
            assert!(!batch(&mut task, crash).await);
        }
        redrive(&shared, Epoch::new(3), vec![last]).await.unwrap();
        let mut task = open(&LEARNS, &log, &env).await;
        work_off(&mut task, &log).await;
        assert_eq!((rows(&task), letters(&log).await.len()), (6, 2), "counted once, at its own place");
    });
}
