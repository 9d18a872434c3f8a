//! Judgements of a disk on which a topology has run.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;

use bytes::Bytes;
use sluice_log::{Log, MemoryLog, Partition, SharedLog};
use sluice_proto::Offset;
use sluice_state::checkpoint::Checkpointer;
use sluice_state::{
    Lineage, MemoryLimits, StateEnv, StateError, Stepped, TableSpec, TableStep, Tables, state_directory,
};
use tempfile::TempDir;

use super::*;
use crate::kind::{Kind, StateTable};
use crate::runtime::{Plan, TaskSpec, persist, state_tables};
use crate::testing::{GOOD, changed, graph, shared_out};

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// A disk on which the good topology has run.
struct Disk {
    dir: TempDir,
    log: Arc<MemoryLog>,
}

fn plan_of(text: &str) -> Plan {
    graph(text).plan(&[]).unwrap_or_else(|error| unreachable!("{error}"))
}

impl Disk {
    fn new() -> Self {
        let disk = Self { dir: tempfile::tempdir().unwrap(), log: MemoryLog::new() };
        let plan = plan_of(GOOD);
        for topic in &plan.topics {
            block_on(disk.log.create_topic(topic)).unwrap();
        }
        for task in &plan.tasks {
            drop(disk.state(task, state_tables(task)));
        }
        disk
    }

    fn state(&self, task: &TaskSpec, tables: Vec<TableSpec>) -> Tables {
        let limits = MemoryLimits { cache: 4 << 20, write_buffers: 1 << 20 };
        let lineage = Lineage { task: task.name.clone(), log_uuid: self.log.uuid(), wiring: task.wiring() };
        StateEnv::on_disk(self.dir.path(), limits).unwrap().open(tables, &lineage).unwrap()
    }

    fn append(&self, topic: &str, partition: u32, records: usize) {
        let batch = vec![Bytes::from_static(b"record"); records];
        block_on(self.log.append(&Partition::new(topic, partition), batch)).unwrap();
    }

    fn judge(&self, text: &str) -> Judgement {
        self.judge_on(text, self.log.clone())
    }

    fn judge_on(&self, text: &str, log: SharedLog) -> Judgement {
        let graph = graph(text);
        let states = States::read(&graph, &[], self.dir.path()).unwrap();
        let facts = block_on(LogFacts::of(&log, &graph)).unwrap();
        judge(&graph, &states, Some(&facts))
    }
}

fn task<'a>(judgement: &'a Judgement, name: &str) -> &'a TaskStanding {
    &judgement.tasks.iter().find(|task| task.name == name).unwrap().standing
}

fn topic<'a>(judgement: &'a Judgement, name: &str) -> &'a TopicStanding {
    &judgement.topics.iter().find(|topic| topic.name == name).unwrap().standing
}

fn refused<'a>(judgement: &'a Judgement, name: &str) -> &'a str {
    match task(judgement, name) {
        TaskStanding::Refused { why } => why,
        other => panic!("{name} is {other:?}"),
    }
}

#[test]
fn on_an_empty_disk_everything_is_new() {
    let dir = tempfile::tempdir().unwrap();
    let states = States::read(&graph(GOOD), &[], &dir.path().join("not there")).unwrap();
    let judgement = judge(&graph(GOOD), &states, None);
    assert!(judgement.tasks.iter().all(|task| matches!(task.standing, TaskStanding::New { .. })));
    assert!(judgement.topics.iter().all(|topic| topic.standing == TopicStanding::New));
    assert!(judgement.is_safe(false) && judgement.orphans.is_empty());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing was made");
    assert!(States::read(&graph(GOOD), &["nobody".to_owned()], dir.path()).is_err());
}

#[test]
fn what_has_run_is_kept_also_under_another_name() {
    let disk = Disk::new();
    disk.append("share.submissions", 3, 7);
    let renamed = changed(&[("  verify:     { kind: verify,", "  check:      { kind: verify, was: verify,")]);
    for (text, name) in [(GOOD, "verify.3"), (renamed.as_str(), "check.3")] {
        let judgement = disk.judge(text);
        assert!(judgement.tasks.iter().all(|task| matches!(task.standing, TaskStanding::Kept { .. })), "{judgement}");
        assert!(judgement.topics.iter().all(|topic| topic.standing == TopicStanding::Kept), "{judgement}");
        // The genesis record is one of them.
        assert_eq!(task(&judgement, name), &TaskStanding::Kept { behind: 8 });
        assert!(judgement.is_safe(false) && judgement.orphans.is_empty());
    }
    let only = States::read(&graph(GOOD), &["stats".to_owned()], disk.dir.path()).unwrap();
    let only = judge(&graph(GOOD), &only, None);
    assert_eq!(only.tasks.len(), 1);
    let TaskStanding::Rebuilt { why, .. } = task(&only, "stats") else { panic!("{only}") };
    assert!(why.contains("there is no log"), "{why}");
}

#[test]
fn what_the_file_does_not_have_is_orphaned() {
    let disk = Disk::new();
    let stats = "  stats:      { kind: stats, in: share.tallies }\n";
    let ledger = state_directory(disk.dir.path(), "ledger");
    std::fs::rename(&ledger, ledger.with_file_name("ledger%aside-1")).unwrap();
    std::fs::create_dir_all(disk.dir.path().join("checkpoints/stats/00000001")).unwrap();
    std::fs::create_dir(disk.dir.path().join("epochs")).unwrap();
    let without = changed(&[
        (stats, ""),
        ("  share.valid:        { partitions: 8, archive: true }\n", ""),
        (", valid: share.valid", ""),
    ]);
    let judgement = disk.judge(&without);
    let paths: Vec<&str> = judgement.orphans.iter().map(|orphan| orphan.path.as_str()).collect();
    assert_eq!(paths, ["stats", "ledger%aside-1", "checkpoints/stats"]);
    assert_eq!(topic(&judgement, "share.valid"), &TopicStanding::Orphaned);
    assert!(matches!(task(&judgement, "ledger"), TaskStanding::New { .. }));
    assert!(judgement.is_safe(false), "it only lies there: {judgement}");
}

#[test]
fn another_wiring_is_made_again_if_it_is_told_so() {
    let disk = Disk::new();
    disk.append("share.submissions", 0, 1_000);
    let plan = plan_of(GOOD);
    let mut tables = disk.state(&plan.tasks[0], state_tables(&plan.tasks[0]));
    persist::save_rate(&mut tables, 100);
    tables.commit().unwrap();
    drop(tables);
    // dedupe becomes a task of its own.
    let split =
        changed(&[("share.checked:      { direct: true }", "share.checked:      { partitions: 8, retention: 30d }")]);
    let judgement = disk.judge(&split);
    let TaskStanding::Rebuilt { why, replay, checkpoint: None } = task(&judgement, "verify.0") else {
        panic!("{judgement}")
    };
    assert!(why.contains("it was made with \"wiring") && why.contains("the topology"), "{why}");
    assert_eq!((replay.records, replay.rate, replay.seconds()), (1_001, Some(100), Some(11)));
    assert!(matches!(task(&judgement, "dedupe.0"), TaskStanding::New { .. }));
    assert!(!judgement.is_safe(false) && judgement.is_safe(true));
    let rebuilt = judgement.tasks.iter().filter(|task| matches!(task.standing, TaskStanding::Rebuilt { .. }));
    assert_eq!(rebuilt.count(), 8, "every partition of it, and nothing else: {judgement}");
    let text = judgement.to_string();
    assert!(
        text.contains("1001 records to read, about 11 s at 100 a second") && text.contains("run --rebuild"),
        "{text}"
    );
    let json = serde_json::to_value(&judgement).unwrap();
    assert_eq!(
        (&json["tasks"][0]["standing"], &json["tasks"][0]["replay"]["records"]),
        (&"rebuilt".into(), &1_001.into())
    );

    // As a task of its own dedupe would write again what it has written as a part of verify.
    disk.append("share.valid", 2, 1);
    let judgement = disk.judge(&split);
    assert!(refused(&judgement, "dedupe.5").contains("dedupe has written to share.valid as a part of the task verify"));
    assert!(matches!(task(&judgement, "verify.5"), TaskStanding::Rebuilt { .. }), "{judgement}");
    assert!(matches!(task(&judgement, "stats"), TaskStanding::Kept { .. }) && !judgement.is_safe(true));

    // Where the first records are gone it cannot be made again.
    block_on(disk.log.trim(&Partition::new("share.submissions", 0), Offset::new(500))).unwrap();
    let judgement = disk.judge(&split);
    assert!(refused(&judgement, "verify.0").contains("share.submissions/0 begins with offset 500"), "{judgement}");
    assert!(!judgement.is_safe(true));
}

#[test]
fn a_generation_that_is_not_made_is_refused() {
    let (disk, verify) = (Disk::new(), plan_of(GOOD).tasks.into_iter().find(|task| task.name == "verify.7").unwrap());
    let next = changed(&[("partitions: 8, retention: 30d", "partitions: 4, generation: 2, retention: 30d")]);
    let judgement = disk.judge(&next);
    assert!(judgement.unfinished.as_ref().is_some_and(|why| why.contains("sluice rescale")), "{judgement}");
    assert!(!judgement.is_safe(true) && judgement.to_string().contains("refused: "), "{judgement}");
    assert_eq!(topic(&judgement, "share.submissions"), &TopicStanding::Earlier);
    assert_eq!(topic(&judgement, "share.submissions.g2"), &TopicStanding::New);
    let of_generation = |generation: u32| TaskSpec { name: format!("verify@{generation}.7"), ..verify.clone() };
    drop(disk.state(&of_generation(3), state_tables(&verify)));
    let judgement = disk.judge(&next);
    for path in ["verify.7", "verify%403.7"] {
        let orphan = judgement.orphans.iter().find(|orphan| orphan.path == path).unwrap();
        assert!(orphan.what.contains("of a task of another generation"), "{}", orphan.what);
    }
}

#[test]
fn what_is_damaged_is_made_again_if_it_is_told_so() {
    let disk = Disk::new();
    let path = state_directory(disk.dir.path(), "stats");
    std::fs::write(path.join("CURRENT"), "MANIFEST-999999\n").unwrap();
    let judgement = disk.judge(GOOD);
    assert!(matches!(task(&judgement, "stats"), TaskStanding::Rebuilt { .. }), "{judgement}");
    assert!(!judgement.is_safe(false) && judgement.is_safe(true));
    std::fs::remove_file(path.join("CURRENT")).unwrap();
    let judgement = disk.judge(GOOD);
    let TaskStanding::Rebuilt { why, .. } = task(&judgement, "stats") else { panic!("{judgement}") };
    assert!(why.contains("CURRENT"), "{why}");
}

/// It may be a good one: it is never made again, not even with `--rebuild`.
#[test]
fn what_says_nothing_of_the_state_is_refused() {
    let disk = Disk::new();
    let plan = plan_of(GOOD);
    let facts = block_on(LogFacts::of(&(disk.log.clone() as SharedLog), &graph(GOOD))).unwrap();
    let newer = StateError::Newer { path: "here".into(), what: "its format is 9".into() };
    for error in [StateError::Storage("no space left".into()), newer] {
        let says = error.to_string();
        let found = [tasks::Found::Unreadable(error)];
        let judged = tasks::judge(&plan.tasks[..1], &found, disk.dir.path(), Some(&facts));
        assert_eq!(judged[0].standing, TaskStanding::Refused { why: says });
    }
}

/// A pool that runs goes on between the two looks.
#[test]
fn what_a_pool_does_between_the_looks_refuses_nothing() {
    let disk = Disk::new();
    let states = States::read(&graph(GOOD), &[], disk.dir.path()).unwrap();
    let plan = plan_of(GOOD);
    let stats = plan.tasks.iter().find(|task| task.name == "stats").unwrap();
    disk.append("share.tallies", 2, 20);
    let mut tables = disk.state(stats, state_tables(stats));
    persist::save_position(&mut tables, &persist::input_slot(&Partition::new("share.tallies", 2)), Offset::new(21));
    tables.commit().unwrap();
    let facts = block_on(LogFacts::of(&(disk.log.clone() as SharedLog), &graph(GOOD))).unwrap();
    let judgement = judge(&graph(GOOD), &states, Some(&facts));
    assert!(matches!(task(&judgement, "stats"), TaskStanding::Kept { behind } if *behind > 20), "{judgement}");
    assert!(judgement.is_safe(false), "{judgement}");
}

#[test]
fn a_state_that_does_not_fit_the_log_is_refused() {
    let disk = Disk::new();
    let other = MemoryLog::new();
    let judgement = disk.judge_on(GOOD, other);
    let TaskStanding::Rebuilt { why, .. } = task(&judgement, "verify.0") else { panic!("{judgement}") };
    assert!(why.contains("it was made with \"log "), "{why}");
    assert!(!judgement.is_safe(false) && judgement.is_safe(true));

    let plan = plan_of(GOOD);
    let stats = plan.tasks.iter().find(|task| task.name == "stats").unwrap();
    let mut tables = disk.state(stats, state_tables(stats));
    let place = persist::input_slot(&Partition::new("share.tallies", 2));
    disk.append("share.tallies", 2, 20);
    let mut moved = |to: u64| {
        persist::save_position(&mut tables, &place, Offset::new(to));
        tables.commit().unwrap();
        disk.judge(GOOD)
    };
    assert!(matches!(task(&moved(21), "stats"), TaskStanding::Kept { .. }));
    assert!(refused(&moved(22), "stats").contains("the log ends at 21"));
    block_on(disk.log.trim(&Partition::new("share.tallies", 2), Offset::new(15))).unwrap();
    assert!(refused(&moved(14), "stats").contains("gone up to 15"));
    assert!(matches!(task(&moved(15), "stats"), TaskStanding::Kept { .. }));
}

#[test]
fn topics_keep_their_partitions_and_change_their_retention() {
    let disk = Disk::new();
    let judgement =
        disk.judge(&changed(&[("share.tallies:      { partitions: 4 }", "share.tallies:      { partitions: 5 }")]));
    assert_eq!(topic(&judgement, "share.tallies"), &TopicStanding::PartitionsChanged { was: 4, now: 5 });
    assert!(!judgement.is_safe(true) && judgement.to_string().contains("sluice rescale"), "{judgement}");
    let judgement = disk.judge(&changed(&[("partitions: 8, retention: 2d", "partitions: 8, retention: 3d")]));
    let (was, now) = ("2d".to_owned(), "3d".to_owned());
    assert_eq!(topic(&judgement, "difficulty.targets"), &TopicStanding::RetentionChanged { was, now });
    assert!(judgement.is_safe(false));
}

#[test]
fn a_state_that_is_gone_is_restored_from_its_checkpoint() {
    let disk = Disk::new();
    let plan = plan_of(GOOD);
    let stats = plan.tasks.iter().find(|task| task.name == "stats").unwrap();
    disk.append("share.tallies", 2, 20);
    let mut tables = disk.state(stats, state_tables(stats));
    persist::save_position(&mut tables, &persist::input_slot(&Partition::new("share.tallies", 2)), Offset::new(16));
    tables.commit().unwrap();
    drop(tables);
    let path = state_directory(disk.dir.path(), "stats");
    Checkpointer::of_stopped(&path, persist::describe).unwrap().create().unwrap();
    assert!(disk.judge(GOOD).orphans.is_empty());
    std::fs::write(path.join("CURRENT"), "MANIFEST-999999\n").unwrap();
    let judgement = disk.judge(GOOD);
    // The genesis records of the other partitions were not read.
    let TaskStanding::Rebuilt { checkpoint: Some(1), replay: Replay { records: 8, .. }, .. } =
        task(&judgement, "stats")
    else {
        panic!("{judgement}");
    };
    std::fs::remove_dir_all(&path).unwrap();
    let replay = Replay { records: 8, rate: None };
    assert_eq!(task(&disk.judge(GOOD), "stats"), &TaskStanding::Restored { checkpoint: 1, replay });
    assert!(disk.judge(GOOD).is_safe(false));
}

fn same(key: &[u8], value: &[u8]) -> Stepped {
    Ok(Some((key.to_vec(), value.to_vec())))
}

#[test]
fn tables_of_other_versions_are_upgraded_or_refused() {
    static STEPS: &[TableStep] = &[same];
    let disk = Disk::new();
    let mut task = plan_of(GOOD).tasks.swap_remove(0);
    let kind = task.operators.iter().position(|operator| !operator.kind.state.is_empty()).unwrap();
    let old = task.operators[kind].kind;
    let state = vec![StateTable { steps: STEPS, ..old.state[0] }];
    assert_eq!(old.state.len(), 1, "the test kind is as it was");
    task.operators[kind].kind =
        Box::leak(Box::new(Kind { state: Vec::leak(state), role: crate::Role::Service, ..*old }));
    let log: SharedLog = disk.log.clone();
    let facts = block_on(LogFacts::of(&log, &graph(GOOD))).unwrap();
    let name = format!("{}.{}", task.operators[kind].name, old.state[0].name);
    let one = std::slice::from_ref(&task);
    let judged = tasks::judge(one, &tasks::read(one, disk.dir.path()), disk.dir.path(), Some(&facts));
    assert_eq!(judged[0].standing, TaskStanding::Upgraded { behind: 1, tables: vec![(name, 1, 2)] });

    drop(disk.state(&task, state_tables(&task)));
    let judgement = disk.judge(GOOD);
    assert!(refused(&judgement, "verify.0").contains("newer program"), "{judgement}");
}

/// What one instance has counted, another one would count again.
#[test]
fn a_partition_that_another_instance_has_worked_on_is_refused() {
    let disk = Disk::new();
    let owners = crate::runtime::Owners::new(disk.log.clone(), [1; 16]);
    for task in plan_of(&shared_out("0-3", "4-7")).tasks {
        block_on(owners.claim(&task.name, Default::default())).unwrap();
    }
    let refused = |first: &str, second: &str| {
        let judged = disk.judge(&shared_out(first, second)).tasks.into_iter();
        let of_shares = judged.filter(|task| task.identity.starts_with("verify-"));
        let refused =
            of_shares.filter(|task| matches!(&task.standing, TaskStanding::Refused { why } if why.contains("--only")));
        refused.map(|task| task.identity).collect::<Vec<_>>()
    };
    assert_eq!(refused("0-3", "4-7"), Vec::<String>::new());
    assert_eq!(refused("0-2", "3-7"), ["verify-b.3"]);
    assert_eq!(refused("0-4", "5-7"), ["verify-a.4"]);
}
