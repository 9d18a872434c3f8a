//! A task whose outputs depend on answers from outside: what it repeats after a crash is not what it wrote before.

use std::sync::atomic::{AtomicU32, Ordering};

use super::super::task::Task;
use super::*;
use crate::operator::BuildContext;

/// What the world answers: so many records come of each tick, and each bears the number.
#[derive(Clone, Default)]
pub(super) struct Answer(Arc<AtomicU32>);

impl Answer {
    /// From now on the world answers this.
    pub(super) fn is(&self, number: u32) {
        self.0.store(number, Ordering::Relaxed);
    }
}

/// Surroundings with the answer lent to the tasks.
pub(super) fn lent(around: task::Surroundings, answer: &Answer) -> task::Surroundings {
    let mut externals = Externals::default();
    externals.insert(answer.clone());
    task::Surroundings { externals: Arc::new(externals), ..around }
}

struct Asks(Answer);

impl Operator for Asks {
    fn process(&mut self, input: &Input<'_>, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        let answer = self.0.0.load(Ordering::Relaxed);
        for number in 0..answer {
            let verdict = Verdict { nbits: answer, job_id: number.into(), ..Verdict::default() };
            // Each partition has a record in its turn.
            cx.emit("out", Key::Partition(number % 2), input.event_time, Body::Verdict(verdict));
        }
        Ok(())
    }
}

static ASKS: Kind = Kind {
    name: "asks",
    summary: "test",
    inputs: &[
        InputSpec { name: "in", accepts: &[RecordKind::Tick], optional: false, priority: false },
        InputSpec { name: "urgent", accepts: &[RecordKind::Tick], optional: true, priority: true },
    ],
    outputs: &[OutputSpec { name: "out", writes: VERDICTS, optional: false, keyed: Keyed::Session }],
    lookups: &[],
    settings: &[],
    state: &[],
    parallel: Parallel::PerPartition,
    role: Role::World(build),
};

fn build(cx: &BuildContext<'_>) -> Result<Box<dyn Operator>, OperatorError> {
    let answer = cx.externals.get::<Answer>().cloned();
    Ok(Box::new(Asks(answer.ok_or_else(|| OperatorError::Setting("no answer is lent".into()))?)))
}

pub(super) fn asks() -> TaskSpec {
    let inputs = vec![stored("share.submissions", 0, "in", false), stored("share.urgent", 0, "urgent", true)];
    let to = vec![wire("out", vec![topic("share.valid")])];
    task("asks.0", inputs, vec![operator("asks", &ASKS, to)], vec![])
}

/// Counts what it reads, as a task of its own behind the first.
fn counts() -> TaskSpec {
    let to = vec![wire("out", vec![topic("share.checked")])];
    task("count.0", vec![stored("share.valid", 0, "in", false)], vec![operator("count", &COUNT, to)], vec![])
}

struct World {
    log: Arc<MemoryLog>,
    env: StateEnv,
    answer: Answer,
}

impl World {
    async fn new() -> Self {
        Self { log: new_log().await, env: StateEnv::in_memory(), answer: Answer::default() }
    }

    async fn open(&self) -> Task {
        Task::open(&asks(), &lent(around(&self.log, &self.env), &self.answer)).await.unwrap()
    }

    fn answers(&self, number: u32) {
        self.answer.is(number);
    }

    async fn tick(&self, topic: &str, offset: u64) {
        // A producer of its own for each record: epochs grow with the offset.
        producer(&self.log, topic, offset as u32).append(0, vec![(at(offset), tick())]).await.unwrap();
    }

    /// One batch up to its append, and to its commit only if it `lives`. Genesis records that come alone are no batch.
    async fn batch(&self, task: &mut Task, lives: bool) {
        let (input, records) = loop {
            task.wait().await.unwrap();
            let Some((input, records)) = task.next_batch().await.unwrap() else { continue };
            if records.iter().any(|record| record.offset > Offset::ZERO) {
                break (input, records);
            }
            task.process(input, records).await.unwrap();
            task.commit().unwrap();
        };
        task.process(input, records).await.unwrap();
        assert!(task.append().await.unwrap());
        if lives {
            task.flush().unwrap();
            task.commit().unwrap();
        }
    }

    /// Answer and number of each record of the output, as a reader from the start gets them.
    async fn seen(&self, partition: u32) -> Vec<(u32, u64)> {
        let records = read_all(&self.log, "share.valid", partition).await.into_iter();
        let verdict = |record: Envelope| match record.body {
            Some(Body::Verdict(verdict)) => (verdict.nbits, verdict.job_id),
            other => panic!("{other:?}"),
        };
        records.map(verdict).collect()
    }

    /// The epochs of the records of a partition in the log, each once.
    async fn epochs(&self, partition: u32) -> Vec<u32> {
        let mut epochs = Vec::new();
        for record in read_all(&self.log, "share.valid", partition).await {
            let from = record.from.unwrap();
            assert_eq!((from.source_topic, from.source_partition), (0, 0), "a lane of a source");
            epochs.push(from.epoch);
        }
        epochs.dedup();
        epochs
    }
}

/// P1: other answers, more or fewer, after a crash between append and commit: a reader that has seen the first ones
/// goes on and sees the new ones; nothing stops it, nothing is taken for repeated.
#[tokio::test]
async fn p1_other_answers_after_a_crash_are_new_records() {
    let world = World::new().await;
    let mut downstream = Task::open(&counts(), &around(&world.log, &StateEnv::in_memory())).await.unwrap();
    let mut expected = [Vec::new(), Vec::new()];
    for (round, (first, again)) in (1..).zip([(4, 4), (6, 2), (2, 7), (3, 0), (0, 5), (5, 1)]) {
        for topic in ["share.submissions", "share.urgent"] {
            world.tick(topic, round).await;
            for (answer, lives) in [(first, false), (again, true)] {
                world.answers(answer);
                world.batch(&mut world.open().await, lives).await;
                (0..answer).for_each(|number| expected[number as usize % 2].push((answer, u64::from(number))));
                read_on(&mut downstream, &world.log).await;
            }
        }
    }
    for partition in 0..2 {
        assert_eq!(world.seen(partition).await, expected[partition as usize], "partition {partition}");
    }
    assert_eq!(downstream.inputs[0].feed.gate.dropped, 0);
}

/// Lets a task work off its input, up to the end of the log.
async fn read_on(task: &mut Task, log: &Arc<MemoryLog>) {
    let end = log.bounds(task.inputs[0].feed.partition()).await.unwrap().next;
    while task.inputs[0].feed.next < end {
        task.wait().await.unwrap();
        if let Some((input, records)) = task.next_batch().await.unwrap() {
            task.process(input, records).await.unwrap();
            assert!(task.append().await.unwrap());
            task.commit().unwrap();
        }
    }
}

/// One lane for all inputs, in one epoch for as long as the task is open.
#[tokio::test]
async fn s1_each_opening_takes_the_next_epoch_for_all_inputs() {
    let world = World::new().await;
    world.answers(2);
    for opening in 1..5 {
        let mut task = world.open().await;
        for topic in ["share.submissions", "share.urgent"] {
            world.tick(topic, opening).await;
            world.batch(&mut task, true).await;
        }
    }
    assert_eq!(world.epochs(0).await, [1, 2, 3, 4]);
    assert_eq!(world.seen(0).await, [(2, 0); 8]);
    assert_eq!(world.seen(1).await, [(2, 1); 8]);
}

/// An epoch is used up by the opening, whether anything was written in it or not.
#[tokio::test]
async fn s1_an_epoch_is_taken_before_anything_is_written() {
    let world = World::new().await;
    world.answers(1);
    for _ in 0..3 {
        drop(world.open().await);
    }
    world.tick("share.submissions", 1).await;
    world.batch(&mut world.open().await, false).await;
    assert_eq!(world.epochs(0).await, [4]);
}

/// The state is lost or is an older copy, the log is kept: what comes is above what readers have seen, whichever
/// partition the newest of it is in, and however much others have written behind it.
#[tokio::test]
async fn p1_a_state_that_knows_less_than_the_log_begins_above_it() {
    for others in [0, 1_000] {
        let mut world = World::new().await;
        world.answers(4);
        world.tick("share.submissions", 1).await;
        world.batch(&mut world.open().await, true).await;
        for round in 2..6 {
            // Partition 0 alone has the newest epochs.
            world.answers(1);
            world.tick("share.submissions", round).await;
            world.batch(&mut world.open().await, true).await;
        }
        let (epochs, before) = (world.epochs(0).await, world.seen(0).await);
        assert_eq!((epochs, world.epochs(1).await), (vec![1, 2, 3, 4, 5], vec![1]));
        let foreign = |number| (at(number), Body::Verdict(Verdict { nbits: 99, job_id: number, ..Verdict::default() }));
        let written = producer(&world.log, "share.valid", 7_000).append(0, (0..others).map(foreign).collect());
        written.await.unwrap();
        world.env = StateEnv::in_memory();
        let mut task = world.open().await;
        world.batch(&mut task, true).await;
        let after = world.seen(0).await;
        assert_eq!(after[..before.len()], before);
        let new: Vec<_> = after[before.len()..].iter().filter(|(answer, _)| *answer != 99).collect();
        assert_eq!(new, [&(1, 0); 5], "all ticks again, as new records");
        assert_eq!(world.epochs(0).await.last(), Some(&6));
    }
}

/// Epochs that are used up are no reason to begin again.
#[tokio::test]
async fn p1_without_an_epoch_left_the_task_does_not_open() {
    let world = World::new().await;
    Producer::new(world.log.clone(), "share.valid", 2, "asks.0", Epoch::new(u32::MAX))
        .append(1, vec![(at(1), tick())])
        .await
        .unwrap();
    let around = lent(around(&world.log, &world.env), &world.answer);
    let error = Task::open(&asks(), &around).await.err().unwrap().to_string();
    assert!(error.contains("no epoch left above 4294967295"), "{error}");
}

/// What another task repeats stays as it was: only tasks with such an operator are sources.
#[test]
fn only_a_task_that_asks_the_world_is_a_source() {
    assert!(asks().is_world());
    let mut behind = asks();
    behind.operators.insert(0, counts().operators.remove(0));
    assert!(behind.is_world());
    assert!(!fused().is_world() && !counts().is_world());
}
