//! A topology against what lies on disk (`sluice plan`): what goes on, what begins, what must be built again, what nobody
//! needs any more, and what cannot be. Nothing is written here.

mod log;
mod moved;
mod show;
mod tasks;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use serde::Serialize;

pub use log::LogFacts;

use crate::graph::{Graph, UnknownName};
use crate::runtime::{Plan, TaskSpec};

/// How a topology stands to the log and the states that are there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Judgement {
    /// Topics of the file, then those of the log that the file does not have.
    pub topics: Vec<TopicJudged>,
    /// Tasks in the order of the topology.
    pub tasks: Vec<TaskJudged>,
    /// What is in the directory of states and belongs to no task of the file.
    pub orphans: Vec<Orphan>,
    /// Why a generation of a topic cannot be used, if one cannot.
    pub unfinished: Option<String>,
}

/// A topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TopicJudged {
    /// Its name in the log.
    pub name: String,
    /// How it stands.
    #[serde(flatten)]
    pub standing: TopicStanding,
}

/// How a topic stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "standing", rename_all = "snake_case")]
pub enum TopicStanding {
    /// It will be created.
    New,
    /// It is as the file says.
    Kept,
    /// It will be kept for another time, or up to another size.
    RetentionChanged {
        /// As it is, in words.
        was: String,
        /// As the file says.
        now: String,
    },
    /// The file asks for another number of partitions, which a topic never changes.
    PartitionsChanged {
        /// As it is.
        was: u32,
        /// As the file says.
        now: u32,
    },
    /// The file has a later generation of it; its records are of what came before.
    Earlier,
    /// The file does not have it.
    Orphaned,
}

/// A task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TaskJudged {
    /// Its name as people see it.
    pub name: String,
    /// What its state is called.
    pub identity: String,
    /// How it stands.
    #[serde(flatten)]
    pub standing: TaskStanding,
}

/// How a task stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "standing", rename_all = "snake_case")]
pub enum TaskStanding {
    /// It has no state: it begins with the first record of its inputs.
    New {
        /// What it has to read.
        replay: Replay,
    },
    /// Its state goes on.
    Kept {
        /// Records of its inputs that it has not read.
        behind: u64,
    },
    /// Its state goes on once its tables are in the version of this program, which happens at the start.
    Upgraded {
        /// Records of its inputs that it has not read.
        behind: u64,
        /// The tables, each with the version that it has and the one it gets.
        tables: Vec<(String, u32, u32)>,
    },
    /// It has no state, and a checkpoint: that is restored.
    Restored {
        /// Number of the checkpoint. Its files have not been looked at: where they are damaged, an older one is taken.
        checkpoint: u64,
        /// What it has to read after it.
        replay: Replay,
    },
    /// Its state is of no use: it can be made again.
    Rebuilt {
        /// What is wrong with it.
        why: String,
        /// The checkpoint that it is made from; `None` for the topics alone.
        checkpoint: Option<u64>,
        /// What it has to read.
        replay: Replay,
    },
    /// It cannot run, and nothing can be made again.
    Refused {
        /// Why.
        why: String,
    },
}

/// What a task has to read that begins with nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Replay {
    /// Records of its inputs.
    pub records: u64,
    /// Records a second that it was last seen to work through when it had many; `None` if it never had.
    pub rate: Option<u64>,
}

impl Replay {
    /// Seconds that it takes; `None` where no rate is known.
    pub fn seconds(&self) -> Option<u64> {
        self.rate.filter(|rate| *rate > 0).map(|rate| self.records.div_ceil(rate))
    }
}

/// Something in the directory of states that belongs to no task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Orphan {
    /// Its path below that directory.
    pub path: String,
    /// What it is, and what may be done with it.
    pub what: String,
}

impl Judgement {
    /// Whether the topology can run: with `rebuild`, states that are of no use are made again.
    pub fn is_safe(&self, rebuild: bool) -> bool {
        let task = |task: &TaskJudged| match task.standing {
            TaskStanding::Refused { .. } => false,
            TaskStanding::Rebuilt { .. } => rebuild,
            TaskStanding::New { .. }
            | TaskStanding::Kept { .. }
            | TaskStanding::Upgraded { .. }
            | TaskStanding::Restored { .. } => true,
        };
        let topic = |topic: &TopicJudged| !matches!(topic.standing, TopicStanding::PartitionsChanged { .. });
        self.unfinished.is_none() && self.tasks.iter().all(task) && self.topics.iter().all(topic)
    }
}

/// The states of a topology, as of a moment. Where a pool may run, they are read before its log: so they have read no more
/// than that holds.
pub struct States {
    plan: Plan,
    whole: Plan,
    dir: PathBuf,
    found: Vec<tasks::Found>,
}

impl States {
    /// Reads the states below `dir` of the parts of `graph` that `only` names (all where it is empty); blocks.
    ///
    /// # Errors
    /// If `only` has a name that the topology has not.
    pub fn read(graph: &Graph, only: &[String], dir: &Path) -> Result<Self, UnknownName> {
        let (plan, whole) = (graph.plan(only)?, graph.plan(&[])?);
        let found = tasks::read(&plan.tasks, dir);
        Ok(Self { plan, whole, dir: dir.to_owned(), found })
    }
}

/// Judges `states`, which are of `graph`, by the log; `None` stands for no log at all. Reads the disk, and blocks.
pub fn judge(graph: &Graph, states: &States, log: Option<&LogFacts>) -> Judgement {
    let States { plan, whole, dir, found } = states;
    let mut tasks = tasks::judge(&plan.tasks, found, dir, log);
    if let Some(log) = log {
        moved::refuse(&mut tasks, &whole.tasks, dir, log);
        moved::refuse_shared_out(&mut tasks, graph, log);
    }
    Judgement {
        topics: log::topics(&plan.topics, graph, log),
        tasks,
        orphans: tasks::orphans(&whole.tasks, dir),
        unfinished: log.and_then(|log| log.unfinished.clone()),
    }
}

/// Why tasks cannot go on from the states below `dir` as they are, if one cannot: what was wrong first. Blocks.
pub(crate) fn hindrance(tasks: &[TaskSpec], dir: &Path, log: &LogFacts) -> Option<String> {
    let judged = tasks::judge(tasks, &tasks::read(tasks, dir), dir, Some(log));
    judged.into_iter().find_map(|task| match task.standing {
        TaskStanding::Refused { why } | TaskStanding::Rebuilt { why, .. } => Some(format!("{}: {why}", task.name)),
        _ => None,
    })
}
