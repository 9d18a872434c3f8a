//! Operators that another task runs now than before: what they have written, it would write again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use sluice_log::Partition;
use sluice_proto::Offset;
use sluice_state::{StoredState, state_directory, states_in};

use super::log::LogFacts;
use super::{TaskJudged, TaskStanding};
use crate::graph::{Graph, Group};
use crate::runtime::TaskSpec;
use crate::runtime::plan::{Destination, OperatorSpec, operators_of};

/// Refuses tasks one of whose operators has written records as a part of another task. Readers tell repeated records by
/// the task that wrote them: these would be new ones to them, and be counted twice.
pub(super) fn refuse(judged: &mut [TaskJudged], tasks: &[TaskSpec], state_dir: &Path, log: &LogFacts) {
    let goes_on =
        |task: &&TaskJudged| matches!(task.standing, TaskStanding::Kept { .. } | TaskStanding::Upgraded { .. });
    // The state of a task that goes on has the operators that the task has.
    let as_before: BTreeSet<PathBuf> =
        judged.iter().filter(goes_on).map(|task| state_directory(state_dir, &task.identity)).collect();
    let states = states_in(state_dir).unwrap_or_default().into_iter().filter(|path| !as_before.contains(path));
    let mut reasons = reasons(states, tasks, log);
    for task in judged {
        if let Some(why) = reasons.remove(&task.identity) {
            task.standing = TaskStanding::Refused { why };
        }
    }
}

/// The reasons, by identity of the task.
fn reasons(states: impl Iterator<Item = PathBuf>, tasks: &[TaskSpec], log: &LogFacts) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for path in states {
        // What cannot be read is judged with its task.
        let Ok(state) = StoredState::open_beside(&path) else { continue };
        let lineage = &state.made_from().lineage;
        let before = group(&lineage.task);
        for name in operators_of(&lineage.wiring) {
            let has = |task: &&TaskSpec| task.operators.iter().any(|operator| operator.name == name);
            if tasks.iter().filter(has).any(|task| group(&task.name) == before) {
                continue;
            }
            for task in tasks.iter().filter(has) {
                let written = task.operators.iter().filter(|operator| operator.name == name);
                if let Some((topic, _)) = written.flat_map(stored).find(|topic| has_records(topic, log)) {
                    found.entry(task.name.clone()).or_insert_with(|| {
                        format!(
                            "operator {name} has written to {topic} as a part of the task {before}. From another task its \
                             records would be new ones to who reads them, and counted twice. Leave it where it is fused, or \
                             begin with a new log"
                        )
                    });
                }
            }
        }
    }
    found
}

/// Refuses tasks on partitions that another instance of the same kind has worked on, as the file has shared them out before:
/// to readers their records would be those of another task.
pub(super) fn refuse_shared_out(judged: &mut [TaskJudged], graph: &Graph, log: &LogFacts) {
    let kind = |group: &Group| graph.members(group).next().map(|node| node.kind.name);
    let shared = graph.groups.iter().filter(|group| group.is_partial());
    for group in shared {
        let others = graph.groups.iter().filter(|other| other.identity != group.identity && kind(other) == kind(group));
        let others: Vec<&Group> = others.collect();
        for &partition in &group.partitions {
            let name = group.task_name(partition);
            let before =
                |other: &&&Group| !other.partitions.contains(&partition) && log.has_run(&other.task_name(partition));
            let (false, Some(other)) = (log.has_run(&name), others.iter().find(before)) else { continue };
            for task in judged.iter_mut().filter(|task| task.identity == name) {
                let before = other.task_shown(partition);
                let why = format!(
                    "partition {partition} has been worked on by {before}. From another task its records would be new ones to \
                     who reads them, and counted twice. Leave `partitions` as they were; processes share out the partitions of \
                     one operator by `--only NAME:0-3`, which may change at any time"
                );
                task.standing = TaskStanding::Refused { why };
            }
        }
    }
}

/// The group of a task, without its partition and the generation of its input.
pub(super) fn group(task: &str) -> &str {
    let group = match task.rsplit_once('.') {
        Some((group, number)) if number.bytes().all(|byte| byte.is_ascii_digit()) => group,
        _ => task,
    };
    group.split_once('@').map_or(group, |(group, _)| group)
}

/// The stored topics that an operator writes to, with their numbers of partitions.
fn stored(operator: &OperatorSpec) -> impl Iterator<Item = (&str, u32)> {
    operator.outputs.iter().flat_map(|wire| &wire.to).filter_map(|to| match to {
        Destination::Topic { topic, partitions } => Some((&**topic, *partitions)),
        Destination::Direct(_) => None,
    })
}

/// Whether a topic has more than its genesis records.
fn has_records(&(topic, partitions): &(&str, u32), log: &LogFacts) -> bool {
    let next = |number| log.bounds(&Partition::new(topic, number)).map(|bounds| bounds.next);
    (0..partitions).filter_map(next).any(|next| next > Offset::new(1))
}
