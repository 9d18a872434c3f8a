//! Two owners of one task at once: nothing lost, nothing twice, whatever they do in which order (S1, S2, P1).

use futures::future::{BoxFuture, join_all};
use proptest::prelude::*;
use sluice_log::{Bounds, LogError, Record, TopicInfo};
use sluice_proto::hash64;
use sluice_state::Digest;

use super::super::task::Task;
use super::world::{Answer, asks, lent};
use super::*;

/// A log that lets others go first before each append: what was read before it may be out of date by then.
struct Hesitant(Arc<MemoryLog>);

impl Log for Hesitant {
    fn uuid(&self) -> [u8; 16] {
        self.0.uuid()
    }
    fn create_topic<'a>(&'a self, spec: &'a TopicSpec) -> BoxFuture<'a, Result<TopicInfo, LogError>> {
        self.0.create_topic(spec)
    }
    fn topics(&self) -> BoxFuture<'_, Result<Vec<TopicInfo>, LogError>> {
        self.0.topics()
    }
    fn append(&self, to: &Partition, batch: Vec<Bytes>) -> BoxFuture<'static, Result<Offset, LogError>> {
        let (log, to) = (Arc::clone(&self.0), to.clone());
        Box::pin(async move {
            tokio::task::yield_now().await;
            log.append(&to, batch).await
        })
    }
    fn read(
        &self,
        from: &Partition,
        at: Offset,
        max: usize,
        wait: Duration,
    ) -> BoxFuture<'static, Result<Vec<Record>, LogError>> {
        self.0.read(from, at, max, wait)
    }
    fn bounds(&self, of: &Partition) -> BoxFuture<'static, Result<Bounds, LogError>> {
        self.0.bounds(of)
    }
    fn trim(&self, of: &Partition, before: Offset) -> BoxFuture<'static, Result<(), LogError>> {
        self.0.trim(of, before)
    }
}

/// Processes that claim at the same time read the same and name the same epoch: each gets one of its own.
#[tokio::test]
async fn s1_an_epoch_has_one_owner_however_many_claim_it_at_once() {
    let log: SharedLog = Arc::new(Hesitant(MemoryLog::new()));
    let processes: Vec<_> = (0..8).map(|id| Owners::new(log.clone(), [id; 16])).collect();
    let claims = processes.iter().map(|owners| owners.claim("verify.0", Epoch::new(4)));
    let mut epochs: Vec<u32> = join_all(claims).await.into_iter().map(|epoch| epoch.unwrap().get()).collect();
    epochs.sort_unstable();
    epochs.dedup();
    assert_eq!((epochs.len(), epochs[0] > 4), (8, true), "{epochs:?}");
    let last = Epoch::new(epochs[7]);
    assert_eq!(processes[0].later(hash64("verify.0"), Epoch::new(epochs[0])).await.unwrap(), Some(last));
    assert_eq!(processes[0].later(hash64("verify.0"), last).await.unwrap(), None);
    assert_eq!(processes[0].claim("verify.1", Epoch::default()).await.unwrap(), Epoch::new(1), "of another task");
}

/// The topic is kept for ever: what a start reads of it stays small work.
#[tokio::test]
async fn a_hundred_thousand_claims_are_read_at_once() {
    let log = MemoryLog::new();
    log.create_topic(&Owners::topic()).await.unwrap();
    let (tasks, starts) = (40u64, 2_500u32);
    let claims = (1..=starts).flat_map(|epoch| (0..tasks).map(move |task| (task, epoch)));
    let claim = |(task, epoch)| {
        let owner = Bytes::from_static(&[7; 16]);
        let fence = Body::Fence(sluice_proto::v1::Fence { task: hash64(&format!("verify.{task}")), epoch, owner });
        sluice_proto::encode(&Envelope::new(at(1), Default::default(), fence))
    };
    log.append(&Partition::new(OWNERS_TOPIC, 0), claims.map(claim).collect()).await.unwrap();
    let (begun, owners) = (std::time::Instant::now(), Owners::new(log, [1; 16]));
    assert_eq!(owners.claim("verify.39", Epoch::default()).await.unwrap(), Epoch::new(starts + 1));
    println!("100,000 claims read in {:?}", begun.elapsed());
    assert_eq!(owners.newest(hash64("verify.3")), Some(Epoch::new(starts)));
}

#[tokio::test]
async fn p1_something_else_among_the_claims_is_an_error() {
    let log = MemoryLog::new();
    log.create_topic(&Owners::topic()).await.unwrap();
    producer(&log, OWNERS_TOPIC, 1).append(0, vec![(at(1), tick())]).await.unwrap();
    let error = Owners::new(log, [1; 16]).claim("verify.0", Epoch::default()).await.unwrap_err().to_string();
    assert!(error.contains("sluice.owners/0 offset 1 is a tick"), "{error}");
}

/// How far a process is with its batch.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    Idle,
    Processed,
    Appended,
    Checked,
}

/// A process that takes itself for the owner.
struct Process {
    env: StateEnv,
    task: Option<Task>,
    stage: Stage,
}

impl Process {
    fn new() -> Self {
        Self { env: StateEnv::in_memory(), task: None, stage: Stage::Idle }
    }

    fn die(&mut self) {
        (self.task, self.stage) = (None, Stage::Idle);
    }

    /// Does the next thing, as [`Task::run`] does it; a process that finds itself replaced ends.
    async fn advance(&mut self, spec: &TaskSpec, log: &Arc<MemoryLog>, answer: &Answer) {
        let Some(task) = &mut self.task else {
            self.task = Some(Task::open(spec, &lent(around(log, &self.env), answer)).await.unwrap());
            return;
        };
        let done = match self.stage {
            Stage::Idle => begin(task, log).await,
            Stage::Processed => task.append().await.map(|_| Stage::Appended),
            Stage::Appended => task.still_owned().await.map(|()| Stage::Checked),
            Stage::Checked => task.flush().and_then(|()| task.commit()).map(|()| Stage::Idle),
        };
        match done {
            Ok(stage) => self.stage = stage,
            Err(TaskError::Fenced { own, by, .. }) => {
                assert!(own < by);
                self.die();
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Takes over and works until everything is committed.
    async fn finish(&mut self, spec: &TaskSpec, log: &Arc<MemoryLog>, answer: &Answer) {
        self.die();
        self.advance(spec, log, answer).await;
        while self.stage != Stage::Idle || has_input(self.task.as_ref().unwrap(), log).await {
            self.advance(spec, log, answer).await;
            assert!(self.task.is_some(), "nobody has replaced it");
        }
    }

    fn digests(&self) -> Vec<Digest> {
        self.task.as_ref().unwrap().tables.table_digests().collect()
    }
}

async fn has_input(task: &Task, log: &Arc<MemoryLog>) -> bool {
    for input in &task.inputs {
        if input.feed.next < log.bounds(input.feed.partition()).await.unwrap().next {
            return true;
        }
    }
    false
}

async fn begin(task: &mut Task, log: &Arc<MemoryLog>) -> Result<Stage, TaskError> {
    if !has_input(task, log).await {
        return task.still_owned().await.map(|()| Stage::Idle);
    }
    task.wait().await?;
    task.apply_tables()?;
    let Some((input, records)) = task.next_batch().await? else { return Ok(Stage::Idle) };
    task.process(input, records).await?;
    Ok(Stage::Processed)
}

/// What happens next.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// This process does its next thing; one that has ended starts again.
    Advance(usize),
    /// This process dies.
    Die(usize),
    /// This process dies, and its state is lost.
    Lose(usize),
    /// So many shares come to this one of the inputs (2: to each), and a job.
    Shares(u32, usize),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        8 => (0usize..2).prop_map(Event::Advance),
        1 => (0usize..2).prop_map(Event::Die),
        1 => (0usize..2).prop_map(Event::Lose),
        3 => (1u32..5, 0usize..3).prop_map(|(count, input)| Event::Shares(count, input)),
    ];
    proptest::collection::vec(event, 1..80)
}

/// Lets the events happen to two processes on one log; then the second one takes over and finishes.
async fn happen(spec: &TaskSpec, events: &[Event], topics: &[&str], answer: &Answer) -> (Arc<MemoryLog>, Process) {
    let log = new_log().await;
    let mut processes = [Process::new(), Process::new()];
    let (mut made, mut clock) = (0, 0);
    for event in events {
        match *event {
            Event::Advance(of) => processes[of].advance(spec, &log, answer).await,
            Event::Die(of) => processes[of].die(),
            Event::Lose(of) => processes[of] = Process::new(),
            Event::Shares(count, input) => {
                made += 1;
                // No more jobs than the table remembers: which one a share cites must not be a matter of timing.
                if made <= 10 {
                    let written = producer(&log, "mining.jobs", made).append(0, vec![(at(1), job(made.into()))]);
                    clock = written.await.unwrap().get();
                }
                let chosen =
                    topics.iter().enumerate().filter(|(index, _)| input == 2 || input % topics.len() == *index);
                for (_, topic) in chosen {
                    let records = (0..count).map(|n| {
                        let body = if spec.is_world() { tick() } else { share(n.into(), 1, made * 8 + n, clock) };
                        (at(u64::from(made * 8 + n)), body)
                    });
                    producer(&log, topic, made).append(0, records.collect()).await.unwrap();
                }
            }
        }
    }
    let [_, mut last] = processes;
    last.finish(spec, &log, answer).await;
    (log, last)
}

/// What one process makes of the inputs and the order in `log`, in a log where nobody has made anything.
async fn alone_again(log: &Arc<MemoryLog>, answer: &Answer) -> Vec<(String, Vec<Envelope>)> {
    let bare = new_log().await;
    bare.create_topic(&super::super::order::Order::topic()).await.unwrap();
    for topic in ["mining.jobs", "share.submissions", "share.urgent", ORDER_TOPIC] {
        let from = Partition::new(topic, 0);
        let Ok(bounds) = log.bounds(&from).await else { continue };
        let mut next = Offset::new(1);
        while next < bounds.next {
            let records = log.read(&from, next, 1 << 20, Duration::ZERO).await.unwrap();
            next = records.last().unwrap().offset.next();
            bare.append(&from, records.into_iter().map(|record| record.value).collect()).await.unwrap();
        }
    }
    Process::new().finish(&with_priority(), &bare, answer).await;
    outputs(&bare, &OUTPUTS).await
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// S1, S2: two owners of a task with one input, in whatever order they do what: downstream sees what one alone makes,
    /// and the state of the one that is left is that of one alone.
    #[test]
    fn s1_s2_two_owners_at_once_change_nothing(events in events()) {
        block_on(async {
            let answer = Answer::default();
            let alone: Vec<Event> = events.iter().copied().filter(|event| matches!(event, Event::Shares(..))).collect();
            let (log, process) = happen(&fused(), &alone, &["share.submissions"], &answer).await;
            let expected = (outputs(&log, &OUTPUTS).await, process.digests());
            let (log, process) = happen(&fused(), &events, &["share.submissions"], &answer).await;
            assert_eq!((outputs(&log, &OUTPUTS).await, process.digests()), expected);
        });
    }

    /// S1, S2: two owners of a task whose outputs depend on the order of its inputs: the one that is left, and whoever makes
    /// it all again, has the state that belongs to what downstream has seen.
    #[test]
    fn s1_s2_two_owners_read_several_inputs_in_one_order(events in events()) {
        block_on(async {
            let answer = Answer::default();
            let (log, last) = happen(&with_priority(), &events, &["share.submissions", "share.urgent"], &answer).await;
            let (seen, digests) = (outputs(&log, &OUTPUTS).await, last.digests());
            let shares: usize = read_all(&log, "share.submissions", 0).await.len() + read_all(&log, "share.urgent", 0).await.len();
            let judged = seen.iter().filter(|(topic, _)| !topic.starts_with("share.low"));
            assert_eq!(judged.map(|(_, records)| records.len()).sum::<usize>(), shares, "every share has one verdict");
            let mut again = Process::new();
            again.finish(&with_priority(), &log, &answer).await;
            assert_eq!((outputs(&log, &OUTPUTS).await, again.digests()), (seen.clone(), digests));
            // Nobody's records but the first owner's order decide: what the last owner would write is what was read.
            assert_eq!(alone_again(&log, &answer).await, seen);
        });
    }

    /// P1: two owners of a task that asks the world: no reader misses a record, and each input has all its answers in what
    /// readers see.
    #[test]
    fn p1_two_owners_that_ask_the_world_lose_no_answer(events in events()) {
        block_on(async {
            let answer = Answer::default();
            answer.is(2);
            let (log, _) = happen(&asks(), &events, &["share.submissions", "share.urgent"], &answer).await;
            for topic in ["share.submissions", "share.urgent"] {
                let asked: std::collections::BTreeSet<u64> =
                    read_all(&log, topic, 0).await.iter().map(|record| record.event_time_ns).collect();
                for partition in 0..2 {
                    let answered: std::collections::BTreeSet<u64> =
                        read_all(&log, "share.valid", partition).await.iter().map(|record| record.event_time_ns).collect();
                    assert!(asked.is_subset(&answered), "{topic} to partition {partition}: {asked:?}, {answered:?}");
                }
            }
        });
    }
}

/// An owner that was paused behind its append and in front of its commit, and wakes up when another one has gone on.
#[tokio::test]
async fn s1_a_paused_owner_that_wakes_up_stops_and_changes_nothing() {
    for paused_at in [Stage::Idle, Stage::Processed, Stage::Appended] {
        let (log, answer) = (new_log().await, Answer::default());
        let (mut old, mut new) = (Process::new(), Process::new());
        let clock = producer(&log, "mining.jobs", 1).append(0, vec![(at(1), job(9))]).await.unwrap().get();
        let shares = producer(&log, "share.submissions", 1);
        old.advance(&fused(), &log, &answer).await;
        shares.append(0, (0..5).map(|n| (at(2), share(1, 1, n, clock))).collect()).await.unwrap();
        while old.stage != paused_at || old.task.as_ref().unwrap().inputs[0].feed.next <= Offset::new(1) {
            old.advance(&fused(), &log, &answer).await;
        }
        shares.append(0, (5..9).map(|n| (at(3), share(1, 1, n, clock))).collect()).await.unwrap();
        new.finish(&fused(), &log, &answer).await;
        let (before, digests) = (outputs(&log, &OUTPUTS).await, new.digests());
        for _ in 0..6 {
            if old.task.is_some() {
                old.advance(&fused(), &log, &answer).await;
            }
        }
        assert!(old.task.is_none(), "it has stopped, paused at {paused_at:?}");
        assert_eq!(outputs(&log, &OUTPUTS).await, before);
        new.finish(&fused(), &log, &answer).await;
        assert_eq!((outputs(&log, &OUTPUTS).await, new.digests()), (before, digests));
    }
}

/// The same with threads: the first runtime's tasks end by themselves, idle as they are.
#[tokio::test]
async fn s1_tasks_of_a_process_that_was_replaced_stop() {
    let log = new_log().await;
    let start = || async {
        let plan = Plan { network: "regtest".into(), topics: topic_specs(), tasks: split().to_vec() };
        let (env, externals) = (StateEnv::in_memory(), Arc::new(Externals::default()));
        TopologyRuntime::start(plan, log.clone(), env, externals, RuntimeOptions::default()).await.unwrap()
    };
    let first = start().await;
    let second = start().await;
    let failure = tokio::time::timeout(Duration::from_secs(120), first.failed()).await.unwrap();
    assert!(matches!(*failure.error, TaskError::Fenced { .. }), "{failure}");
    let text = failure.to_string();
    assert!(text.contains("now runs in epoch 2, and this process held epoch 1"), "{text}");
    assert!(second.failure().is_none());
    second.stop(Duration::from_secs(60)).await.unwrap();
}
