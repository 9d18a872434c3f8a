//! Tasks in their threads: start, status, stop, failure.

use std::time::Instant;

use futures::future::BoxFuture;
use sluice_log::{Bounds, EmbeddedLog, EmbeddedOptions, LogError, Record, TopicInfo};
use sluice_state::{MemoryLimits, StateError};

use super::*;

async fn start(log: SharedLog, env: &StateEnv, tasks: Vec<TaskSpec>) -> Result<RuntimeHandle, StartError> {
    let plan = Plan { network: "regtest".into(), topics: topic_specs(), tasks };
    let options = RuntimeOptions { table_timeout: Duration::from_millis(50), ..RuntimeOptions::default() };
    TopologyRuntime::start(plan, log, env.clone(), Arc::new(Externals::default()), options).await
}

async fn processed(handle: &RuntimeHandle, task: usize, count: u64) -> TaskStatus {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let status = handle.status().await.swap_remove(task);
        if status.operators.last().unwrap().processed >= count && status.inputs[0].lag == 0 {
            return status;
        }
        assert!(Instant::now() < deadline, "{status:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn submit(log: &Arc<impl Log>, epoch: u32, count: u32) {
    let clock = producer(log, "mining.jobs", epoch).append(0, vec![(at(1), job(7))]).await.unwrap().get();
    let records = (0..count).map(|n| (at(5), share(u64::from(n), 1, epoch * 100_000 + n, clock))).collect();
    producer(log, "share.submissions", epoch).append(0, records).await.unwrap();
}

#[tokio::test]
async fn tasks_run_stop_and_go_on_with_their_state_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let log = new_log().await;
    let env = StateEnv::on_disk(dir.path(), MemoryLimits::default()).unwrap();
    let mut digests = Vec::new();
    for round in 1..=2u32 {
        let handle = start(log.clone(), &env, split().to_vec()).await.unwrap();
        submit(&log, round, 100).await;
        let status = processed(&handle, 1, 100).await;
        assert_eq!(status.state, TaskState::Running);
        assert_eq!(status.inputs[0].processed, 100);
        assert_eq!(status.inputs[0].event_time, Some(at(5)));
        assert_eq!(status.appended, status.operators[0].emitted);
        let check = handle.status().await.swap_remove(0);
        assert_eq!(check.inputs[1].table, Some("jobs"));
        assert_eq!(check.inputs[1].lag, 0);
        let begun = Instant::now();
        handle.stop(Duration::from_secs(5)).await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(5));
        let stopped = handle.status().await.swap_remove(1);
        assert_eq!((stopped.state, &stopped.digests), (TaskState::Stopped, &status.digests));
        let readers = handle.readers("count.accounts");
        assert_eq!((readers.len(), readers[0].task.as_str()), (1, "count.0"));
        let mut sum = 0;
        let mut add = |_: &[u8], value: &[u8]| {
            sum += u64::from_be_bytes(value.try_into().unwrap());
            true
        };
        readers[0].reader.scan("count.accounts", b"", None, &mut add).unwrap();
        assert_eq!(sum, u64::from(round) * 100);
        assert!(handle.readers("no.such").is_empty());
        digests.push(stopped.digests);
    }
    assert_ne!(digests[0], digests[1]);
    let verdicts: usize = outputs(&log, &["share.valid"]).await.iter().map(|(_, records)| records.len()).sum();
    assert_eq!(verdicts, 200);
}

/// The same on the durable log: both are closed and opened again in between, and every share has one verdict (S1).
#[tokio::test]
async fn s1_log_and_state_on_disk_are_opened_again_and_agree() {
    const SHARES: u32 = 5_000;
    let dir = tempfile::tempdir().unwrap();
    let log_dir = dir.path().join("log");
    let mut positions = Vec::new();
    for round in 1..=3 {
        let log = EmbeddedLog::open(EmbeddedOptions::new(&log_dir)).unwrap();
        let env = StateEnv::on_disk(dir.path().join("state"), MemoryLimits::default()).unwrap();
        let handle = start(log.clone(), &env, vec![fused()]).await.unwrap();
        submit(&log, round, SHARES).await;
        let status = processed(&handle, 0, u64::from(SHARES)).await;
        assert_eq!((status.inputs[0].processed, status.inputs[0].dropped), (u64::from(SHARES), 0));
        handle.stop(Duration::from_secs(5)).await.unwrap();
        let verdicts = outputs(&log, &["share.valid"]).await.iter().map(|(_, records)| records.len()).sum::<usize>();
        assert_eq!(verdicts, (SHARES * round) as usize);
        positions.push(handle.status().await[0].inputs[0].position);
    }
    assert!(positions.is_sorted() && positions[0] < positions[2]);
}

#[tokio::test]
async fn p1_a_record_that_cites_what_the_log_does_not_have_stops_the_task() {
    let (log, env) = (new_log().await, StateEnv::in_memory());
    let handle = start(log.clone(), &env, vec![fused()]).await.unwrap();
    assert!(handle.failure().is_none());
    producer(&log, "share.submissions", 1).append(0, vec![(at(1), share(1, 1, 1, 40))]).await.unwrap();
    let failure = tokio::time::timeout(Duration::from_secs(10), handle.failed()).await.unwrap();
    assert!(matches!(&*failure.error, TaskError::TableBehind { needed, .. } if *needed == Offset::new(40)));
    let text = failure.to_string();
    assert!(text.contains("check.0") && text.contains("mining.jobs/0 offset 40"), "{text}");
    let status = handle.status().await.swap_remove(0);
    assert_eq!(status.state, TaskState::Failed);
    assert!(status.error.is_some());
    assert!(status.inputs[0].position <= Offset::new(1), "nothing behind the genesis record is committed");
    handle.stop(SECOND).await.unwrap();
    assert_eq!(outputs(&log, &OUTPUTS).await.iter().map(|(_, records)| records.len()).sum::<usize>(), 0);
}

/// A batch that writes to a topic is committed at once, one that writes nothing waits for `linger` or the stop.
#[tokio::test]
async fn a_batch_that_writes_nothing_is_committed_later() {
    let mut silent = fused();
    silent.operators.truncate(1);
    silent.operators[0].outputs.clear();
    let mut of_two = silent.clone();
    of_two.inputs.push(stored("share.urgent", 0, "urgent", true));
    for (spec, waits) in [(silent, true), (of_two, true), (fused(), false)] {
        let (log, env) = (new_log().await, StateEnv::in_memory());
        let plan = Plan { network: "regtest".into(), topics: topic_specs(), tasks: vec![spec] };
        let options = RuntimeOptions { linger: Duration::from_secs(3_600), ..RuntimeOptions::default() };
        let externals = Arc::new(Externals::default());
        let handle = TopologyRuntime::start(plan, log.clone(), env.clone(), externals, options).await.unwrap();
        submit(&log, 1, 100).await;
        if waits {
            let deadline = Instant::now() + Duration::from_secs(60);
            while handle.status().await[0].inputs[0].event_time.is_none() {
                assert!(Instant::now() < deadline, "{:?}", handle.status().await);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert!(handle.status().await[0].inputs[0].lag >= 100, "nothing of it is committed");
        } else {
            processed(&handle, 0, 1).await;
        }
        handle.stop(Duration::from_secs(60)).await.unwrap();
        let status = handle.status().await.swap_remove(0);
        assert_eq!((status.inputs[0].lag, status.inputs[0].processed), (0, 100));
    }
}

/// A batch that cannot end (a table that does not come) does not keep the process from stopping in time.
#[tokio::test]
async fn a_stop_gives_up_a_batch_that_waits() {
    let (log, env) = (new_log().await, StateEnv::in_memory());
    let plan = Plan { network: "regtest".into(), topics: topic_specs(), tasks: vec![fused()] };
    let externals = Arc::new(Externals::default());
    let handle = TopologyRuntime::start(plan, log.clone(), env.clone(), externals, RuntimeOptions::default());
    let handle = handle.await.unwrap();
    producer(&log, "share.submissions", 1).append(0, vec![(at(1), share(1, 1, 1, 1))]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    handle.stop(Duration::from_secs(5)).await.unwrap();
    assert!(handle.status().await[0].inputs[0].position <= Offset::new(1));
    // The table's record comes late: the share is judged at the next start, once.
    producer(&log, "mining.jobs", 1).append(0, vec![(at(1), job(7))]).await.unwrap();
    let handle = start(log.clone(), &env, vec![fused()]).await.unwrap();
    processed(&handle, 0, 1).await;
    handle.stop(Duration::from_secs(5)).await.unwrap();
    assert_eq!(outputs(&log, &["share.valid"]).await.iter().map(|(_, records)| records.len()).sum::<usize>(), 1);
}

/// An operator whose wait for something outside is ended.
struct Waits;

impl Operator for Waits {
    fn process(&mut self, _: &Input<'_>, _: &mut Context<'_>) -> Result<(), OperatorError> {
        Ok(())
    }

    fn flush(&mut self, _: &[crate::InputPosition]) -> Result<(), OperatorError> {
        Err(OperatorError::Interrupted("no database".into()))
    }
}

static WAITS: Kind = Kind { name: "waits", role: Role::Operator(|_| Ok(Box::new(Waits))), ..faulty() };

/// Whichever comes first, the stop or the end of the wait: with a stop it is no failure, and nothing is committed.
#[tokio::test]
async fn an_interrupted_wait_is_a_stop_only_if_the_task_is_told_to_stop() {
    for stops in [true, false] {
        let (log, env) = (new_log().await, StateEnv::in_memory());
        let inputs = vec![stored("share.submissions", 0, "in", false)];
        let spec = task("waits.0", inputs, vec![operator("waits", &WAITS, vec![])], vec![]);
        let handle = start(log.clone(), &env, vec![spec]).await.unwrap();
        producer(&log, "share.submissions", 1).append(0, vec![(at(1), tick())]).await.unwrap();
        if stops {
            handle.stop(Duration::from_secs(60)).await.unwrap();
            assert!(handle.failure().is_none());
            assert_eq!(handle.status().await[0].state, TaskState::Stopped);
        } else {
            let failure = tokio::time::timeout(Duration::from_secs(60), handle.failed()).await.unwrap();
            assert!(failure.to_string().contains("no database"), "{failure}");
        }
        assert!(handle.status().await[0].inputs[0].position <= Offset::new(1));
    }
}

/// An operator that panics, or one whose effects cannot be stored.
struct Faulty(bool);

impl Operator for Faulty {
    fn process(&mut self, _: &Input<'_>, _: &mut Context<'_>) -> Result<(), OperatorError> {
        assert!(!self.0, "broken on purpose");
        Ok(())
    }

    fn flush(&mut self, positions: &[crate::InputPosition]) -> Result<(), OperatorError> {
        if self.0 {
            return Ok(());
        }
        Err(OperatorError::External(format!("no database at {}", positions[0].next)))
    }
}

static PANICS: Kind = Kind { name: "panics", role: Role::Operator(|_| Ok(Box::new(Faulty(true)))), ..faulty() };
static FLUSHES: Kind = Kind { name: "flushes", role: Role::Operator(|_| Ok(Box::new(Faulty(false)))), ..faulty() };

const fn faulty() -> Kind {
    Kind {
        name: "",
        summary: "test",
        inputs: &[InputSpec { name: "in", accepts: &[RecordKind::Tick], optional: false, priority: false }],
        outputs: &[],
        lookups: &[],
        settings: &[],
        state: &[],
        parallel: Parallel::PerPartition,
        role: Role::Service,
    }
}

#[tokio::test]
async fn p1_an_operator_that_fails_stops_its_task_with_the_cause() {
    for (kind, expected) in [(&PANICS, "broken on purpose"), (&FLUSHES, "no database at")] {
        let (log, env) = (new_log().await, StateEnv::in_memory());
        let spec = task(
            "faulty.0",
            vec![stored("share.submissions", 0, "in", false)],
            vec![operator("faulty", kind, vec![])],
            vec![],
        );
        let handle = start(log.clone(), &env, vec![spec]).await.unwrap();
        producer(&log, "share.submissions", 1).append(0, vec![(at(1), tick())]).await.unwrap();
        let failure = tokio::time::timeout(Duration::from_secs(10), handle.failed()).await.unwrap();
        assert!(failure.to_string().contains(expected), "{failure}");
        assert!(handle.status().await[0].inputs[0].position <= Offset::new(1));
    }
}

#[tokio::test]
async fn a_plan_that_cannot_run_is_refused() {
    let (log, env) = (new_log().await, StateEnv::in_memory());
    let mut backwards = fused();
    backwards.operators[1].outputs[0].to = vec![Destination::Direct(PortRef { operator: 0, port: "in" })];
    let mut no_port = fused();
    no_port.inputs[0].to[0].port = "nowhere";
    let mut twice = fused();
    twice.inputs.push(twice.inputs[0].clone());
    let service = task("s.0", vec![], vec![operator("s", &SERVICE, vec![])], vec![]);
    for (tasks, expected) in [
        (vec![backwards], "backwards"),
        (vec![no_port], "no input nowhere"),
        (vec![twice], "twice"),
        (vec![fused(), fused()], "two tasks"),
        (vec![service], "is a service"),
    ] {
        let error = start(log.clone(), &env, tasks).await.err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

static SERVICE: Kind = faulty();

/// A log that claims to be another one: a restored or recreated one under the same identity.
struct Impostor(Arc<MemoryLog>, [u8; 16]);

impl Log for Impostor {
    fn uuid(&self) -> [u8; 16] {
        self.1
    }
    fn create_topic<'a>(&'a self, spec: &'a TopicSpec) -> BoxFuture<'a, Result<TopicInfo, LogError>> {
        self.0.create_topic(spec)
    }
    fn topics(&self) -> BoxFuture<'_, Result<Vec<TopicInfo>, LogError>> {
        self.0.topics()
    }
    fn append(&self, to: &Partition, batch: Vec<Bytes>) -> BoxFuture<'static, Result<Offset, LogError>> {
        self.0.append(to, batch)
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

#[tokio::test]
async fn p1_a_log_that_lost_records_or_is_another_one_is_refused() {
    let (log, env) = (new_log().await, StateEnv::in_memory());
    submit(&log, 1, 10).await;
    let handle = start(log.clone(), &env, vec![fused()]).await.unwrap();
    processed(&handle, 0, 10).await;
    handle.stop(Duration::from_secs(5)).await.unwrap();

    let other = start(new_log().await, &env, vec![fused()]).await.err().unwrap();
    assert!(matches!(&other, StartError::Task { error: TaskError::State(StateError::Foreign { .. }), .. }), "{other}");

    let shorter = Arc::new(Impostor(new_log().await, log.uuid()));
    let error = start(shorter, &env, vec![fused()]).await.err().unwrap();
    let text = error.to_string();
    assert!(matches!(error, StartError::Task { error: TaskError::Regressed { .. }, .. }), "{text}");
    assert!(text.contains("share.submissions/0 up to offset 11"), "{text}");
}
