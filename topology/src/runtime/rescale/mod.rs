//! Changing a topic's number of partitions (docs/adr/0018): a new generation of the topic is made of the one before it.
//!
//! ```text
//! journal: begun -> cut at the end of each old partition -> the old tasks read up to it
//!                -> history and cut in each new partition -> the new tasks read them -> journal: done
//! ```
//!
//! Each step looks at what is there and does the rest, so that one which was interrupted is simply done again. What is
//! written depends on the topic and the journal alone: the same records, byte for byte.
//!
//! The history in front of a cut warms the state of the new tasks (headers seen, difficulties, clocks). What it makes them
//! send was sent before, by the tasks of the old generation: the runtime stores nothing of it (`is_history`).

mod copy;
mod journal;

use std::sync::Arc;
use std::time::Duration;

use sluice_log::{LogError, Partition, SharedLog, TopicSpec};
use sluice_proto::v1::{Coordinates, Cut, Envelope, Rescale};
use sluice_proto::{Body, Epoch, EventTime, Offset, encode, hash64};
use sluice_state::{Digest, StateEnv};

pub use copy::Copied;
pub use journal::{GENERATIONS, check};

use super::handle::{RuntimeOptions, StartError, StopError, TaskFailure, TopologyRuntime};
use super::lanes::{Lane, LaneTail};
use super::plan::{Plan, TaskSpec};
use super::reader::{READ_BYTES, ReadError, TopicReader};
use crate::disk::{self, LogFacts};
use crate::graph::{Graph, Topic};
use crate::operator::Externals;

/// The source that cuts and history come from, by name, as in coordinates.
const SOURCE: u64 = hash64("sluice.rescale");
/// How often is looked whether tasks have read everything.
const LOOK: Duration = Duration::from_millis(20);
/// How long tasks may take to stop once they have read everything.
const STOP: Duration = Duration::from_secs(60);

/// Whether a record with these coordinates was written by a change, and not by a gateway.
pub(crate) fn is_copied(from: &Coordinates) -> bool {
    from.task == SOURCE
}

/// Whether a record was copied from the generation before: it is processed, but what operators send because of it is not
/// stored, and moves no lane.
pub(crate) fn is_history(record: &Envelope) -> bool {
    record.from.as_ref().is_some_and(is_copied) && !matches!(record.body, Some(Body::Cut(_)))
}

/// Why a topic's number of partitions was not changed.
#[derive(Debug, thiserror::Error)]
pub enum RescaleError {
    /// The file, the log and what was done before do not go together.
    #[error("{0}")]
    Refused(String),
    /// The log failed.
    #[error("{partition}: {error}")]
    Log {
        /// The partition.
        partition: Partition,
        /// What the log said.
        error: LogError,
    },
    /// A topic could not be created.
    #[error("cannot create topic {topic}: {error}")]
    Topic {
        /// The topic.
        topic: String,
        /// What the log said.
        error: LogError,
    },
    /// A record could not be read, or cannot be right.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Tasks could not be started.
    #[error(transparent)]
    Start(Box<StartError>),
    /// A task stopped.
    #[error(transparent)]
    Task(#[from] TaskFailure),
    /// Tasks did not stop.
    #[error(transparent)]
    Stop(#[from] StopError),
    /// A partition holds another record than the same step would write again.
    #[error(
        "{partition} offset {offset} is not the record that this change would write there ({expected} expected): \
         something else has written to the topic"
    )]
    Differs {
        /// The partition.
        partition: Partition,
        /// The record's offset.
        offset: Offset,
        /// What should stand there.
        expected: String,
    },
}

impl From<StartError> for RescaleError {
    fn from(error: StartError) -> Self {
        Self::Start(Box::new(error))
    }
}

impl RescaleError {
    fn log(partition: &Partition) -> impl FnOnce(LogError) -> Self {
        let partition = partition.clone();
        move |error| Self::Log { partition, error }
    }
}

/// What tasks need to run, as [`TopologyRuntime::start`] is given it.
pub struct Place {
    /// The log, which nothing else writes to.
    pub log: SharedLog,
    /// States of the tasks.
    pub env: StateEnv,
    /// What operators are lent.
    pub externals: Arc<Externals>,
    /// How tasks run.
    pub options: RuntimeOptions,
}

/// Which history is copied where not all of it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Since {
    /// What is not older than this before the cut.
    pub length: Duration,
    /// And what is not older than this: as far back goes what the new tasks must know, such as the headers of jobs that
    /// can still be cited.
    pub needed: EventTime,
}

/// A step that is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The change is on record: from here on it has to be completed.
    Begun(Rescale),
    /// Every partition of the old generation ends with the cut.
    Cut,
    /// The tasks of the old generation have read up to the cut.
    Closed(Vec<TaskDone>),
    /// The partitions of the new generation hold history and cut.
    Copied(Copied),
    /// The tasks of the new generation have read them.
    Warmed(Vec<TaskDone>),
    /// The new generation is the one in use.
    Done,
}

/// How a task ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskDone {
    /// Its name.
    pub task: String,
    /// Records that it has read.
    pub processed: u64,
    /// Records that it has written.
    pub appended: u64,
    /// Name and digest of each of its tables.
    pub digests: Vec<(String, Digest)>,
}

/// Topics of the graph whose generation the log does not have yet, or not completely.
///
/// # Errors
/// If the log does not fit the file: see [`check`].
pub async fn pending<'a>(graph: &'a Graph, log: &SharedLog) -> Result<Vec<&'a Topic>, RescaleError> {
    let known = journal::read(log).await?;
    let mut pending = Vec::new();
    for topic in graph.stored_topics() {
        if journal::needs_rescale(topic, &known)? {
            pending.push(topic);
        }
    }
    Ok(pending)
}

/// Makes the generation of `topic` that the graph asks for, or completes it. Of the history that is copied
/// which `since` asks for; all of it where there is none. A change that was begun keeps what it began with.
///
/// # Errors
/// See [`RescaleError`]. What was done stays done; the next call goes on.
pub async fn rescale(
    graph: &Graph,
    topic: &Topic,
    since: Option<Since>,
    place: &Place,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), RescaleError> {
    let change = match journal::begun(topic, &place.log).await? {
        Some(begun) if begun.partitions == topic.partitions => begun,
        Some(begun) => {
            return Err(RescaleError::Refused(format!(
                "a change of {} to {} partitions was begun: complete it with `partitions: {}` first",
                begun.topic, begun.partitions, begun.partitions
            )));
        }
        None => {
            can_run(graph, topic, place).await?;
            journal::begin(topic, since, &place.log).await?
        }
    };
    progress(Progress::Begun(change.clone()));
    let change = Change { graph, topic, place, change };
    change.cut().await?;
    progress(Progress::Cut);
    progress(Progress::Closed(change.run_old().await?));
    progress(Progress::Copied(change.copy().await?));
    progress(Progress::Warmed(change.run_new().await?));
    journal::append(&place.log, Rescale { done: true, ..change.change.clone() }).await?;
    progress(Progress::Done);
    Ok(())
}

/// Refuses a change whose tasks could not run: once it is on record it has to be completed before the pool can start.
async fn can_run(graph: &Graph, topic: &Topic, place: &Place) -> Result<(), RescaleError> {
    let partitions = journal::old(topic, &place.log).await?.partitions;
    let old = graph.tasks_at(topic, topic.generation - 1, partitions).map_err(RescaleError::Refused)?;
    graph.tasks_at(topic, topic.generation, topic.partitions).map_err(RescaleError::Refused)?;
    let Some(dir) = place.env.dir() else { return Ok(()) };
    let facts = LogFacts::of(&place.log, graph).await.map_err(RescaleError::log(&journal::place()))?;
    match disk::hindrance(&old, dir, &facts) {
        None => Ok(()),
        Some(why) => Err(RescaleError::Refused(format!(
            "the tasks of the old partitions cannot read them to the end, and nothing was changed: {why}"
        ))),
    }
}

/// A change that is on record.
struct Change<'a> {
    graph: &'a Graph,
    topic: &'a Topic,
    place: &'a Place,
    change: Rescale,
}

impl Change<'_> {
    fn epoch(&self) -> Epoch {
        Epoch::new(self.change.generation)
    }

    fn cut_time(&self) -> EventTime {
        EventTime::from_nanos(self.change.cut_ns)
    }

    fn cut_body(&self) -> Body {
        Body::Cut(Cut { generation: self.change.generation, partitions: self.change.partitions })
    }

    /// Partitions of the old generation, each with the place of its cut.
    fn old(&self) -> impl Iterator<Item = (Partition, Offset)> + '_ {
        let name = self.topic.at(self.change.generation - 1);
        let partition = move |number| Partition::new(Arc::clone(&name), number);
        (0..).map(partition).zip(self.change.cuts.iter().map(|cut| Offset::new(*cut)))
    }

    /// Puts the cut at the end of each partition of the old generation.
    async fn cut(&self) -> Result<(), RescaleError> {
        let from = LaneTail::default().next_of_source(Lane::source(SOURCE, self.epoch()), self.epoch());
        let record = encode(&Envelope::new(self.cut_time(), from, self.cut_body()));
        for (partition, at) in self.old() {
            let bounds = self.place.log.bounds(&partition).await.map_err(RescaleError::log(&partition))?;
            if bounds.next <= at {
                let append = self.place.log.append(&partition, vec![record.clone()]).await;
                append.map_err(RescaleError::log(&partition))?;
                continue;
            }
            let there = self.place.log.read(&partition, at, READ_BYTES, Duration::ZERO).await;
            let there = there.map_err(RescaleError::log(&partition))?;
            if there.len() != 1 || there[0].value != record {
                let offset = there.iter().map(|it| it.offset).find(|offset| *offset > at).unwrap_or(at);
                return Err(RescaleError::Differs { partition, offset, expected: "the cut alone".into() });
            }
        }
        Ok(())
    }

    /// Lets the tasks of the old generation read up to the cut.
    async fn run_old(&self) -> Result<Vec<TaskDone>, RescaleError> {
        let (generation, partitions) = (self.change.generation - 1, self.change.old_partitions);
        self.run(generation, partitions).await
    }

    async fn run_new(&self) -> Result<Vec<TaskDone>, RescaleError> {
        self.run(self.change.generation, self.change.partitions).await
    }

    /// Runs the tasks of a generation until they have read all of its partitions.
    async fn run(&self, generation: u32, partitions: u32) -> Result<Vec<TaskDone>, RescaleError> {
        let tasks = self.graph.tasks_at(self.topic, generation, partitions).map_err(RescaleError::Refused)?;
        if tasks.is_empty() {
            return Ok(Vec::new());
        }
        let plan = Plan {
            network: self.graph.config.bitcoin.network.as_str().to_owned(),
            topics: self.others(),
            tasks: tasks.clone(),
        };
        let Place { log, env, externals, options } = self.place;
        let handle = TopologyRuntime::start(plan, log.clone(), env.clone(), Arc::clone(externals), *options).await?;
        let done = tokio::select! {
            failure = handle.failed() => Err(failure.into()),
            done = self.read_through(&handle, &tasks) => Ok(done),
        };
        // After a failure, too: the next attempt opens the same states.
        handle.stop(STOP).await?;
        done
    }

    /// The stored topics but the one that changes, which is there.
    fn others(&self) -> Vec<TopicSpec> {
        self.graph.stored_topics().filter(|topic| topic.name != self.topic.name).map(Topic::spec).collect()
    }

    /// Waits until the tasks have committed all that their inputs of this topic hold.
    async fn read_through(&self, handle: &super::RuntimeHandle, tasks: &[TaskSpec]) -> Vec<TaskDone> {
        let changed = |partition: &Partition| {
            let of_topic = |input: &super::StoredInput| input.topic == partition.topic;
            [self.topic.at(self.change.generation), self.topic.at(self.change.generation - 1)]
                .contains(&partition.topic)
                && tasks.iter().flat_map(|task| &task.inputs).any(of_topic)
        };
        loop {
            let all = handle.status().await;
            let inputs = all.iter().flat_map(|task| &task.inputs);
            let mut inputs = inputs.filter(|input| input.table.is_none() && changed(&input.partition));
            if inputs.all(|input| input.end.is_some_and(|end| input.position >= end)) {
                let done = |task: super::TaskStatus| TaskDone {
                    processed: task.inputs.iter().filter(|input| input.table.is_none()).map(|it| it.processed).sum(),
                    task: task.name,
                    appended: task.appended,
                    digests: task.digests,
                };
                return all.into_iter().map(done).collect();
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Copies the history to the new partitions, and puts the cut behind it.
    async fn copy(&self) -> Result<Copied, RescaleError> {
        let spec = self.topic.spec();
        let created = self.place.log.create_topic(&spec).await;
        created.map_err(|error| RescaleError::Topic { topic: spec.name.clone(), error })?;
        let mut sources = Vec::new();
        for (partition, cut) in self.old() {
            let reader = TopicReader::from_oldest(self.place.log.clone(), partition).await?;
            sources.push((reader, cut));
        }
        let since = EventTime::from_nanos(self.change.since_ns);
        copy::copy(&self.place.log, sources, since, self).await
    }
}
