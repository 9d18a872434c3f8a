//! Starting, watching and stopping the tasks of a process.

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use sluice_log::{LogError, SharedLog, TopicSpec, new_uuid};
use sluice_state::checkpoint::Checkpointer;
use sluice_state::{Reader, StateEnv};
use tokio::sync::{oneshot, watch};

use super::error::TaskError;
use super::follow::Outputs;
use super::owners::Owners;
use super::persist;
use super::plan::{Destination, Plan, PortRef, TaskSpec};
use super::status::{Shared, TaskState, TaskStatus};
use super::task::{Surroundings, Task};
use crate::operator::Externals;

/// How tasks run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuntimeOptions {
    /// Batches of priority inputs in a row, at most, while another input has something to read.
    pub starvation_bound: u32,
    /// How long a task waits for a broadcast record that another record cites, before it stops.
    pub table_timeout: Duration,
    /// How long a task may leave batches uncommitted that write to no topic, unless the order of its inputs counts. Rows that change again in
    /// this time are written once; a crash repeats as much more.
    pub linger: Duration,
}

impl Default for RuntimeOptions {
    fn default() -> Self {
        Self { starvation_bound: 64, table_timeout: Duration::from_secs(10), linger: Duration::from_millis(200) }
    }
}

/// How long tasks have to end after another one could not start. They have just begun.
const GIVE_UP: Duration = Duration::from_secs(60);

/// Runs the tasks of a plan, each in a thread of its own.
pub struct TopologyRuntime;

/// A task that stopped by itself, and why.
#[derive(Clone, Debug, thiserror::Error)]
#[error("task {task} stopped: {error}")]
pub struct TaskFailure {
    /// Name of the task.
    pub task: String,
    /// Why.
    pub error: Arc<TaskError>,
}

/// Why the tasks could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The topics could not be created.
    #[error("cannot create the topics: {0}")]
    Topics(LogError),
    /// A task could not open its state or its inputs.
    #[error("task {task} cannot start: {error}")]
    Task {
        /// The task.
        task: String,
        /// Why.
        error: TaskError,
    },
    /// The system gave no thread.
    #[error("no thread for task {task}: {error}")]
    Thread {
        /// The task.
        task: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// A task that followed stopped by itself before it owned its outputs.
    #[error(transparent)]
    Failed(#[from] TaskFailure),
}

/// Tasks that had not stopped in time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("these tasks did not stop in time: {}; what they had not committed is repeated at the next start", .0.join(", "))]
pub struct StopError(pub Vec<String>);

/// Committed state of one task, for the API.
#[derive(Clone)]
pub struct TableReader {
    /// The task.
    pub task: String,
    /// The partition it works on.
    pub partition: u32,
    /// Reads its tables.
    pub reader: Arc<dyn Reader>,
}

/// The running tasks. Dropping it tells them to stop, without waiting.
pub struct RuntimeHandle {
    log: SharedLog,
    owners: Arc<Owners>,
    threads: Threads,
}

/// Tasks that follow those of another process (docs/adr/0015): they read and compare, and write nothing, until they are
/// promoted. Dropping it tells them to stop, without waiting.
pub struct StandbyRuntime {
    around: Arc<Surroundings>,
    topics: Vec<TopicSpec>,
    threads: Threads,
    /// What cannot be followed, to be opened when it is its turn.
    cold: Vec<TaskSpec>,
    promote: watch::Sender<bool>,
}

/// Tasks with their threads, and how these report.
struct Threads {
    tasks: Vec<Running>,
    stop: watch::Sender<bool>,
    failure: watch::Sender<Option<TaskFailure>>,
    finished: watch::Sender<usize>,
}

struct Running {
    shared: Arc<Shared>,
    reader: Arc<dyn Reader>,
    checkpointer: Option<Checkpointer>,
}

/// What a task's thread is given, and how it reports.
struct Thread {
    spec: TaskSpec,
    around: Arc<Surroundings>,
    stop: watch::Receiver<bool>,
    failure: watch::Sender<Option<TaskFailure>>,
    finished: watch::Sender<usize>,
    opened: oneshot::Sender<Result<Running, TaskError>>,
}

impl TopologyRuntime {
    /// Creates missing topics, opens the state of every task and starts them. Returns once all have opened.
    ///
    /// # Errors
    /// If any of them cannot start; then none is left running.
    pub async fn start(
        plan: Plan,
        log: SharedLog,
        env: StateEnv,
        externals: Arc<Externals>,
        options: RuntimeOptions,
    ) -> Result<RuntimeHandle, StartError> {
        check(&plan)
            .map_err(|(task, what)| StartError::Task { task: task.clone(), error: TaskError::Plan { task, what } })?;
        create(&plan.all_topics(), &log).await?;
        let (network, outputs) = (plan.network, Outputs::Own);
        let owners = Owners::new(log.clone(), new_uuid());
        let around =
            Surroundings { log: log.clone(), env, externals, owners: Arc::clone(&owners), network, options, outputs };
        let mut threads = Threads::default();
        threads.open(plan.tasks, &Arc::new(around)).await?;
        Ok(RuntimeHandle { log, owners, threads })
    }

    /// Opens the state of every task that can follow and starts them as standby: `log` is one that another process
    /// writes, and must take appends by the time of [`StandbyRuntime::promote`]. Tasks that act outside of the log are
    /// only opened then. The topics must exist.
    ///
    /// # Errors
    /// If any of them cannot start; then none is left running.
    pub async fn standby(
        plan: Plan,
        log: SharedLog,
        env: StateEnv,
        options: RuntimeOptions,
    ) -> Result<StandbyRuntime, StartError> {
        check(&plan)
            .map_err(|(task, what)| StartError::Task { task: task.clone(), error: TaskError::Plan { task, what } })?;
        let topics = plan.all_topics();
        let (promote, promoted) = watch::channel(false);
        let (network, outputs) = (plan.network, Outputs::Standby(promoted));
        let externals = Arc::default();
        let owners = Owners::new(log.clone(), new_uuid());
        let around = Arc::new(Surroundings { log, env, externals, owners, network, options, outputs });
        let is_cold = |task: &TaskSpec| task.acts_outside().is_some() || task.depends_on_order();
        let (cold, warm): (Vec<_>, Vec<_>) = plan.tasks.into_iter().partition(is_cold);
        let mut threads = Threads::default();
        threads.open(warm, &around).await?;
        Ok(StandbyRuntime { around, topics, threads, cold, promote })
    }
}

async fn create(topics: &[TopicSpec], log: &SharedLog) -> Result<(), StartError> {
    log.create_topics(topics).await.map(drop).map_err(StartError::Topics)
}

impl StandbyRuntime {
    /// Returns once a task has failed: what it made is not what the log has, or it cannot go on.
    pub async fn failed(&self) -> TaskFailure {
        self.threads.failed().await
    }

    /// Makes the tasks the owners of their outputs: each appends what is not yet in the log of the batch it is at, and
    /// goes on. Opens the others. Returns once all are owners.
    ///
    /// # Errors
    /// If one cannot; then none is left running.
    pub async fn promote(mut self, externals: Arc<Externals>) -> Result<RuntimeHandle, StartError> {
        let log = self.around.log.clone();
        create(&self.topics, &log).await?;
        self.promote.send_replace(true);
        let around = Surroundings {
            log: log.clone(),
            env: self.around.env.clone(),
            externals,
            owners: Arc::clone(&self.around.owners),
            network: self.around.network.clone(),
            options: self.around.options,
            outputs: Outputs::Own,
        };
        let (all, tasks) = (Arc::clone(&self.around.owners), &self.threads.tasks);
        let owners: Vec<_> = tasks.iter().map(|task| task.shared.owner.subscribe()).collect();
        self.threads.open(self.cold, &Arc::new(around)).await?;
        for mut owner in owners {
            tokio::select! {
                // A task that is gone has failed.
                _ = owner.wait_for(|owner| *owner) => {}
                failure = self.threads.failed() => {
                    self.threads.give_up().await;
                    return Err(failure.into());
                }
            }
        }
        Ok(RuntimeHandle { log, owners: all, threads: self.threads })
    }

    /// Stops all tasks where they are; what they have not committed they do again at the next start.
    ///
    /// # Errors
    /// Names the tasks that have not stopped after `within`.
    pub async fn stop(&self, within: Duration) -> Result<(), StopError> {
        self.threads.stop(within).await
    }
}

impl Default for Threads {
    fn default() -> Self {
        Self {
            tasks: Vec::new(),
            stop: watch::Sender::new(false),
            failure: watch::Sender::new(None),
            finished: watch::Sender::new(0),
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

impl Threads {
    /// Opens tasks, each in a thread of its own; returns once all have opened.
    async fn open(&mut self, specs: Vec<TaskSpec>, around: &Arc<Surroundings>) -> Result<(), StartError> {
        let mut opening = Vec::with_capacity(specs.len());
        for spec in specs {
            let (opened, report) = oneshot::channel();
            let task = spec.shown.clone();
            let thread = Thread {
                spec,
                around: Arc::clone(around),
                stop: self.stop.subscribe(),
                failure: self.failure.clone(),
                finished: self.finished.clone(),
                opened,
            };
            thread.spawn().map_err(|error| StartError::Thread { task: task.clone(), error })?;
            opening.push((task, report));
        }
        // All are waited for, also where one has failed: none may claim its epoch later than who tries again.
        let mut failed = None;
        for (task, report) in opening {
            let opened = report.await.unwrap_or_else(|_| Err(TaskError::Panic("while it opened; see the log".into())));
            match opened {
                Ok(running) => self.tasks.push(running),
                Err(error) => drop(failed.get_or_insert(StartError::Task { task, error })),
            }
        }
        let Some(error) = failed else { return Ok(()) };
        self.give_up().await;
        Err(error)
    }

    /// Stops what runs and waits for it: a process that ends meanwhile would take RocksDB away under its hands.
    async fn give_up(&self) {
        if let Err(error) = self.stop(GIVE_UP).await {
            tracing::error!(%error, "not all tasks have ended after one has failed");
        }
    }

    async fn failed(&self) -> TaskFailure {
        let mut failure = self.failure.subscribe();
        // The sender is in our hands: it does not go away while we wait.
        let failed = failure.wait_for(Option::is_some).await.ok().and_then(|failure| failure.clone());
        match failed {
            Some(failure) => failure,
            None => std::future::pending().await,
        }
    }

    async fn stop(&self, within: Duration) -> Result<(), StopError> {
        self.stop.send_replace(true);
        let mut finished = self.finished.subscribe();
        let all = finished.wait_for(|count| *count >= self.tasks.len());
        if tokio::time::timeout(within, all).await.is_ok() {
            return Ok(());
        }
        let running = self.tasks.iter().filter(|task| task.shared.state.lock().0 == TaskState::Running);
        Err(StopError(running.map(|task| task.shared.name.clone()).collect()))
    }
}

impl Thread {
    fn spawn(self) -> std::io::Result<()> {
        let name = self.spec.shown.clone();
        std::thread::Builder::new().name(name).spawn(move || self.run()).map(drop)
    }

    fn run(self) {
        let Self { spec, around, mut stop, failure, finished, opened } = self;
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                let _ = opened.send(Err(TaskError::Panic(format!("no event loop: {error}"))));
                return;
            }
        };
        let mut task = match runtime.block_on(Task::open(&spec, &around)) {
            Ok(task) => task,
            Err(error) => {
                let _ = opened.send(Err(error));
                return;
            }
        };
        let shared = task.shared();
        let checkpointer = around.env.checkpointer(&task.tables, &spec.name, persist::describe);
        let _ = opened.send(Ok(Running { shared: task.shared(), reader: task.reader(), checkpointer }));
        tracing::info!(task = %spec.shown, "task started");
        let mut promoted = around.outputs.promoted();
        let run = task.run(&mut stop, &mut promoted);
        let result = std::panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(run)));
        let result = result.unwrap_or_else(|panic| Err(TaskError::Panic(panic_message(panic.as_ref()))));
        // The state is closed before the task counts as finished: the next owner can open it then.
        drop(task);
        match result {
            Ok(()) => {
                *shared.state.lock() = (TaskState::Stopped, None);
                tracing::info!(task = %spec.shown, "task stopped");
            }
            Err(error) => {
                *shared.state.lock() = (TaskState::Failed, Some(error.to_string()));
                tracing::error!(task = %spec.shown, %error, "task failed");
                let first = TaskFailure { task: spec.shown, error: Arc::new(error) };
                failure.send_if_modified(|known| {
                    let is_first = known.is_none();
                    known.get_or_insert(first);
                    is_first
                });
            }
        }
        finished.send_modify(|count| *count += 1);
    }
}

pub(super) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".to_owned())
}

impl RuntimeHandle {
    /// Who owns what in the log, for the services of the same process.
    pub fn owners(&self) -> Arc<Owners> {
        Arc::clone(&self.owners)
    }

    /// All tasks as they are now. A log that does not say within a second how far it goes is not waited for.
    pub async fn status(&self) -> Vec<TaskStatus> {
        futures::future::join_all(self.threads.tasks.iter().map(|task| task.shared.status(&self.log))).await
    }

    /// Committed state of every task that has the table `name`, such as `stats.buckets`. They go on working when the
    /// tasks have stopped, and keep the state open until they are dropped.
    pub fn readers(&self, name: &str) -> Vec<TableReader> {
        let having = self.threads.tasks.iter().filter(|task| task.shared.tables.iter().any(|table| table == name));
        let readers = having.map(|task| TableReader {
            task: task.shared.name.clone(),
            partition: task.shared.partition,
            reader: Arc::clone(&task.reader),
        });
        readers.collect()
    }

    /// What makes checkpoints of the tasks whose state is on disk, each with the task's name as people see it. Like
    /// readers, they keep the state open.
    pub fn checkpointers(&self) -> Vec<(String, Checkpointer)> {
        let on_disk = |task: &Running| Some((task.shared.name.clone(), task.checkpointer.clone()?));
        self.threads.tasks.iter().filter_map(on_disk).collect()
    }

    /// Returns once a task has failed: the process should stop with this as its cause. Never returns if none does.
    pub async fn failed(&self) -> TaskFailure {
        self.threads.failed().await
    }

    /// The first failure, if there was one.
    pub fn failure(&self) -> Option<TaskFailure> {
        self.threads.failure.borrow().clone()
    }

    /// Stops all tasks: each finishes its batch, commits it and makes its state durable.
    ///
    /// # Errors
    /// Names the tasks that have not stopped after `within`.
    pub async fn stop(&self, within: Duration) -> Result<(), StopError> {
        self.threads.stop(within).await
    }
}

/// What the runtime relies on; the graph is built so.
fn check(plan: &Plan) -> Result<(), (String, String)> {
    let mut names = BTreeSet::new();
    for task in &plan.tasks {
        let wrong = |what: String| Err((task.shown.clone(), what));
        if !names.insert(&task.name) {
            return wrong("there are two tasks of this name".into());
        }
        let mut kinds = BTreeSet::new();
        if let Some(twice) = task.tables.iter().find(|table| !kinds.insert(table.kind.name)) {
            return wrong(format!("it has two tables of kind {}", twice.kind.name));
        }
        let mut inputs = BTreeSet::new();
        if let Some(twice) = task.inputs.iter().find(|input| !inputs.insert((&input.topic, input.partition))) {
            return wrong(format!("it reads {}/{} twice", twice.topic, twice.partition));
        }
        for port in task.inputs.iter().flat_map(|input| &input.to) {
            check_port(task, port).or_else(wrong)?;
        }
        for (index, operator) in task.operators.iter().enumerate() {
            for destination in operator.outputs.iter().flat_map(|wire| &wire.to) {
                match destination {
                    Destination::Topic { partitions: 0, topic } => return wrong(format!("{topic} has no partitions")),
                    Destination::Topic { .. } => {}
                    Destination::Direct(port) if port.operator <= index => {
                        return wrong(format!("a direct edge of {} leads backwards", operator.shown));
                    }
                    Destination::Direct(port) => check_port(task, port).or_else(wrong)?,
                }
            }
        }
    }
    Ok(())
}

fn check_port(task: &TaskSpec, port: &PortRef) -> Result<(), String> {
    let Some(operator) = task.operators.get(port.operator) else {
        return Err(format!("there is no operator number {}", port.operator));
    };
    if operator.kind.inputs.iter().any(|input| input.name == port.port) {
        return Ok(());
    }
    Err(format!("{} has no input {}", operator.shown, port.port))
}
