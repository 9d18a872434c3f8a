//! The states of tasks against those of the topology.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use sluice_log::Partition;
use sluice_proto::Offset;
use sluice_state::checkpoint::{Checkpoints, Facts};
use sluice_state::{
    Fit, Lineage, StateError, StoredLineage, StoredState, is_occupied, state_directory, state_now, states_in,
};

use super::log::LogFacts;
use super::moved::group;
use super::{Orphan, Replay, TaskJudged, TaskStanding};
use crate::runtime::persist;
use crate::runtime::{TaskSpec, state_tables};

/// How often a state is opened whose owner replaces its files meanwhile.
const TRIES: u32 = 3;

/// What lies in the place of a task's state.
pub(super) enum Found {
    /// Nothing.
    Nothing,
    /// A state.
    State(Box<Stored>),
    /// Something that cannot be read as one.
    Unreadable(StateError),
}

/// A state: what it was made from, and what a task would go on from.
pub(super) struct Stored {
    made_from: StoredLineage,
    positions: BTreeMap<String, u64>,
    rate: Option<u64>,
}

/// Reads the states of all tasks at the same time, since each may have a write-ahead log to go through.
pub(super) fn read(tasks: &[TaskSpec], state_dir: &Path) -> Vec<Found> {
    std::thread::scope(|scope| {
        let read = |task: &TaskSpec| {
            let path = state_now(state_dir, &task.name);
            scope.spawn(move || if is_occupied(&path) { open(&path) } else { Found::Nothing })
        };
        let threads: Vec<_> = tasks.iter().map(read).collect();
        let failed = |_| Found::Unreadable(StateError::Storage("it could not be read: a bug of this program".into()));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(failed)).collect()
    })
}

/// Judges all tasks, each by what was found of it.
pub(super) fn judge(tasks: &[TaskSpec], found: &[Found], state_dir: &Path, log: Option<&LogFacts>) -> Vec<TaskJudged> {
    let judged = |(task, found): (&TaskSpec, &Found)| TaskJudged {
        name: task.shown.clone(),
        identity: task.name.clone(),
        standing: standing(task, found, state_dir, log),
    };
    tasks.iter().zip(found).map(judged).collect()
}

fn standing(task: &TaskSpec, found: &Found, state_dir: &Path, log: Option<&LogFacts>) -> TaskStanding {
    let checkpoint = || log.and_then(|log| usable_checkpoint(task, state_dir, log));
    let rebuilt = |why: String, rate| match again(task, log, checkpoint(), rate) {
        Ok((checkpoint, replay)) => TaskStanding::Rebuilt { why, checkpoint, replay },
        Err(gone) => TaskStanding::Refused { why: format!("{why}; and {gone}") },
    };
    let state = match found {
        Found::State(state) => state,
        Found::Nothing => {
            return match again(task, log, checkpoint(), None) {
                Ok((None, replay)) => TaskStanding::New { replay },
                Ok((Some(checkpoint), replay)) => TaskStanding::Restored { checkpoint, replay },
                Err(why) => TaskStanding::Refused { why },
            };
        }
        // Nothing says that anything is wrong with the state itself.
        Found::Unreadable(error @ (StateError::Storage(_) | StateError::Newer { .. })) => {
            return TaskStanding::Refused { why: error.to_string() };
        }
        Found::Unreadable(error) => return rebuilt(error.to_string(), None),
    };
    let Some(log) = log else {
        let why = format!("it was made with \"log {}\", and there is no log", hex(&state.made_from.lineage.log_uuid));
        return rebuilt(why, None);
    };
    let tables = match state.made_from.fit(&lineage(task, log).with_tables(&state_tables(task))) {
        Fit::Same => Vec::new(),
        Fit::Older(tables) => tables,
        Fit::Foreign(why) => return rebuilt(why, state.rate),
        Fit::Newer(why) => return TaskStanding::Refused { why },
    };
    match behind(task, &state.positions, log) {
        Ok(behind) if tables.is_empty() => TaskStanding::Kept { behind },
        Ok(behind) => TaskStanding::Upgraded { behind, tables },
        Err(why) => TaskStanding::Refused { why },
    }
}

fn lineage(task: &TaskSpec, log: &LogFacts) -> Lineage {
    Lineage { task: task.name.clone(), log_uuid: log.uuid, wiring: task.wiring() }
}

/// A state, with what the runtime has put beside its rows. Its owner may replace files while they are opened: then it is
/// tried again.
fn open(path: &Path) -> Found {
    let mut opened = StoredState::open_beside(path);
    for _ in 1..TRIES {
        if opened.is_ok() {
            break;
        }
        opened = StoredState::open_beside(path);
    }
    match opened.and_then(|state| stored(&state)) {
        Ok(stored) => Found::State(Box::new(stored)),
        Err(error) => Found::Unreadable(error),
    }
}

fn stored(state: &StoredState) -> Result<Stored, StateError> {
    let (mut facts, mut rate, mut failed) = (Facts::default(), None, None);
    state.entries(&mut |key, value| {
        rate = rate.or_else(|| persist::rate_of(key, value));
        failed = failed.take().or_else(|| persist::describe(key, value, &mut facts).err());
    })?;
    match failed {
        Some(error) => Err(error),
        None => Ok(Stored { made_from: state.made_from().clone(), positions: facts.positions, rate }),
    }
}

/// The newest checkpoint that fits, as its manifest says, with what is to be read after it.
fn usable_checkpoint(task: &TaskSpec, state_dir: &Path, log: &LogFacts) -> Option<(u64, u64)> {
    let found = Checkpoints::of(state_dir, &task.name).list().ok()?;
    let manifests = found.into_iter().filter_map(|found| found.manifest.ok());
    let manifest = manifests
        .into_iter()
        .find(|manifest| lineage(task, log).differs(&state_tables(task), &manifest.lineage).is_none())?;
    Some((manifest.sequence, behind(task, &manifest.facts.positions, log).ok()?))
}

/// What a task has to read that has no state: behind a checkpoint, or everything.
///
/// # Errors
/// If the beginning of an input is gone: the state would not be what it says (invariant P1).
fn again(
    task: &TaskSpec,
    log: Option<&LogFacts>,
    checkpoint: Option<(u64, u64)>,
    rate: Option<u64>,
) -> Result<(Option<u64>, Replay), String> {
    if let Some((sequence, records)) = checkpoint {
        return Ok((Some(sequence), Replay { records, rate }));
    }
    let mut records = 0;
    for (partition, bounds) in inputs(task).filter_map(|input| Some((input.clone(), log?.bounds(&input)?))) {
        // The genesis record alone may be gone: it is always readable.
        if bounds.start > Offset::new(1) {
            return Err(format!(
                "it cannot begin: {partition} begins with offset {}, the records before are gone. Let it read a topic that \
                 is kept longer, or one that is new",
                bounds.start
            ));
        }
        records += bounds.next.get().saturating_sub(bounds.start.get());
    }
    Ok((None, Replay { records, rate }))
}

fn inputs(task: &TaskSpec) -> impl Iterator<Item = Partition> {
    task.inputs.iter().map(|input| Partition::new(input.topic.clone(), input.partition))
}

/// Records behind the positions of a state.
///
/// # Errors
/// Where it does not fit the log.
fn behind(task: &TaskSpec, positions: &BTreeMap<String, u64>, log: &LogFacts) -> Result<u64, String> {
    let mut behind = 0;
    for partition in inputs(task) {
        let position = Offset::new(positions.get(&persist::input_slot(&partition)).copied().unwrap_or(0));
        // A topic that is created at the start is empty.
        let (start, next) = log.bounds(&partition).map_or((Offset::ZERO, Offset::ZERO), |it| (it.start, it.next));
        if position > next {
            return Err(format!(
                "its state has read {partition} up to offset {position}, and the log ends at {next}: it is older than the state"
            ));
        }
        if position < start && start > Offset::new(1) {
            return Err(format!(
                "its state has read {partition} up to offset {position}, and what follows is gone up to {start}: the records \
                 were not kept for as long as it stood still"
            ));
        }
        behind += next.get() - position.get();
    }
    Ok(behind)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// States, and checkpoints, of no task.
pub(super) fn orphans(tasks: &[TaskSpec], state_dir: &Path) -> Vec<Orphan> {
    let own: BTreeSet<_> = tasks.iter().map(|task| state_directory(Path::new(""), &task.name)).collect();
    let is_own = |name: &str| own.contains(Path::new(name));
    let states = states_in(state_dir).unwrap_or_default().into_iter();
    let names = states.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).filter(|name| !is_own(name));
    let mut found: Vec<Orphan> = names
        .map(|path| {
            // A directory is called as its task, with `@` written out.
            let name = path.replace("%40", "@");
            let earlier = tasks.iter().any(|task| group(&task.name) == group(&name));
            let what = if earlier {
                "the state of a task of another generation; remove it when you no longer need it".to_owned()
            } else {
                format!(
                    "the state of a task that the file does not have. If an operator was renamed, give the new one `was:`; \
                     if it is gone for good, remove {path} and its checkpoints"
                )
            };
            Orphan { path, what }
        })
        .collect();
    for path in directories(state_dir).into_iter().filter(|name| name.contains("%aside-")) {
        let what = "a state that was made again since; remove it when you no longer need it".to_owned();
        found.push(Orphan { path, what });
    }
    let checkpoints = directories(&state_dir.join("checkpoints")).into_iter().filter(|name| !is_own(name));
    found.extend(checkpoints.map(|name| Orphan {
        path: format!("checkpoints/{name}"),
        what: "checkpoints of a task that the file does not have".to_owned(),
    }));
    found
}

/// Names of the directories in a directory, sorted; none if it cannot be read: it may not be there yet.
fn directories(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    let directories = entries.filter(|entry| entry.path().is_dir());
    let mut names: Vec<String> = directories.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}
