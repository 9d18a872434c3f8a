//! Checkpoints of the running tasks, by interval and by command.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use sluice_state::StateError;
use sluice_state::checkpoint::{Checkpointer, Manifest};
use sluice_topology::Checkpoints;
use sluice_topology::runtime::RuntimeHandle;
use tokio::time::MissedTickBehavior;

/// The newest checkpoint of a task may be older than the interval by this factor before the task is degraded.
const LATE: u32 = 3;

/// A task and what became of its checkpoint.
pub(super) type Made = (String, Result<Manifest, StateError>);

/// Makes checkpoints of the tasks of this process.
pub(crate) struct Checkpointing {
    tasks: Vec<Kept>,
    settings: Checkpoints,
    started: SystemTime,
}

struct Kept {
    task: String,
    checkpointer: Checkpointer,
    told: Mutex<Told>,
}

/// How the checkpoints of a task are.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    /// When the newest one was made.
    pub(super) newest: Option<SystemTime>,
    /// Bytes of it.
    pub(super) bytes: u64,
    /// How long the last one took to make.
    pub(super) took: Duration,
    /// How many were made since the start.
    pub(super) made: u64,
    /// How often making one has failed since the start.
    pub(super) failed: u64,
    /// Why the last attempt failed, if it did.
    pub(super) error: Option<String>,
}

impl Checkpointing {
    /// For the tasks of `runtime`; nothing is made before [`Checkpointing::run`].
    pub(super) fn new(runtime: &RuntimeHandle, settings: Checkpoints) -> Self {
        let kept = |(task, checkpointer): (String, Checkpointer)| {
            let newest = checkpointer.checkpoints().list().ok();
            let newest = newest.and_then(|list| list.into_iter().find_map(|found| found.manifest.ok()));
            let told = newest.map(|manifest| told(&manifest)).unwrap_or_default();
            Kept { task, checkpointer, told: Mutex::new(told) }
        };
        let tasks = runtime.checkpointers().into_iter().map(kept).collect();
        Self { tasks, settings, started: SystemTime::now() }
    }

    /// Makes one after the other in turn, spread over the interval, the task with the oldest first. Never returns.
    pub(super) async fn run(self: Arc<Self>) {
        let count = u32::try_from(self.tasks.len()).unwrap_or(u32::MAX);
        if count == 0 || self.settings.every.is_zero() {
            return std::future::pending().await;
        }
        let turns = self.turns();
        let step = (self.settings.every / count).max(Duration::from_millis(1));
        let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + step, step);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for index in turns.into_iter().cycle() {
            ticks.tick().await;
            let this = Arc::clone(&self);
            // What fails is logged and counted where it fails.
            let _ = tokio::task::spawn_blocking(move || this.tasks[index].create(this.settings.keep)).await;
        }
    }

    /// Indices of the tasks, in the order of their turns. The order stays: a task that fails has its next turn after all
    /// others.
    fn turns(&self) -> Vec<usize> {
        let mut turns: Vec<usize> = (0..self.tasks.len()).collect();
        turns.sort_by_key(|index| self.tasks[*index].told.lock().newest);
        turns
    }

    /// Makes one of `task`, or of every task. Blocks.
    ///
    /// # Errors
    /// If there is no such task here.
    pub(super) fn create(&self, task: Option<&str>) -> Result<Vec<Made>, String> {
        let chosen: Vec<&Kept> = self.tasks.iter().filter(|kept| task.is_none_or(|only| only == kept.task)).collect();
        if chosen.is_empty() {
            let known: Vec<&str> = self.tasks.iter().map(|kept| kept.task.as_str()).collect();
            return Err(format!(
                "this process runs no task {}; it runs {}",
                task.unwrap_or("at all"),
                known.join(", ")
            ));
        }
        Ok(chosen.into_iter().map(|kept| (kept.task.clone(), kept.create(self.settings.keep))).collect())
    }

    /// Each task with how its checkpoints are.
    pub(super) fn told(&self) -> impl Iterator<Item = (&str, Told)> {
        self.tasks.iter().map(|kept| (kept.task.as_str(), kept.told.lock().clone()))
    }

    /// Whether the newest checkpoint of a task is too old: its failures have lasted, or the tasks are too many.
    pub(super) fn is_late(&self, told: &Told) -> bool {
        let since = told.newest.unwrap_or(self.started).max(self.started);
        !self.settings.every.is_zero() && age(since) > self.settings.every * LATE
    }
}

/// How old something is that was made at `time`.
pub(super) fn age(time: SystemTime) -> Duration {
    time.elapsed().unwrap_or_default()
}

fn told(manifest: &Manifest) -> Told {
    let newest = UNIX_EPOCH.checked_add(Duration::from_millis(manifest.time_ms));
    Told { newest, bytes: manifest.bytes(), ..Told::default() }
}

impl Kept {
    /// Makes one and removes those that are too many.
    fn create(&self, keep: usize) -> Result<Manifest, StateError> {
        let begun = Instant::now();
        let made = self.checkpointer.create();
        let mut known = self.told.lock();
        known.took = begun.elapsed();
        match &made {
            Ok(manifest) => {
                let before = std::mem::take(&mut *known);
                *known = Told { took: before.took, made: before.made + 1, failed: before.failed, ..told(manifest) };
                tracing::info!(
                    task = self.task,
                    sequence = manifest.sequence,
                    bytes = manifest.bytes(),
                    took_ms = known.took.as_millis() as u64,
                    "made a checkpoint"
                );
            }
            Err(error) => {
                known.failed += 1;
                known.error = Some(error.to_string());
                tracing::error!(task = self.task, %error, "no checkpoint could be made");
            }
        }
        drop(known);
        if made.is_ok()
            && let Err(error) = self.checkpointer.checkpoints().keep(keep)
        {
            tracing::warn!(task = self.task, %error, "old checkpoints could not be removed");
        }
        made
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use sluice_state::{Lineage, MemoryLimits, StateEnv, TableSpec};

    use super::*;

    #[tokio::test]
    async fn a_task_whose_checkpoints_fail_does_not_keep_others_from_theirs() {
        let dir = tempfile::tempdir().unwrap();
        let env = StateEnv::on_disk(dir.path(), MemoryLimits { cache: 4 << 20, write_buffers: 1 << 20 }).unwrap();
        let kept = |task: &str| {
            let lineage = Lineage { task: task.to_owned(), log_uuid: [3; 16], wiring: "input x/0 of 1\n".into() };
            let tables = env.open(vec![TableSpec::plain("a.rows")], &lineage).unwrap();
            let checkpointer = env.checkpointer(&tables, task, |_, _, _| Ok(())).unwrap();
            Kept { task: task.to_owned(), checkpointer, told: Mutex::default() }
        };
        let tasks = ["bad", "one", "two"].map(kept).into();
        // Where the directory with its checkpoints would be.
        std::fs::create_dir_all(dir.path().join("checkpoints")).unwrap();
        std::fs::write(dir.path().join("checkpoints/bad"), "a file").unwrap();
        let settings = Checkpoints { every: Duration::from_millis(3), keep: 2 };
        let checkpointing = Arc::new(Checkpointing { tasks, settings, started: SystemTime::now() });
        let running = tokio::spawn(Arc::clone(&checkpointing).run());
        let done = |told: &Told| told.made + told.failed;
        let all_had_two = async {
            while checkpointing.told().any(|(_, told)| done(&told) < 2) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), all_had_two).await.unwrap();
        running.abort();
        let made: Vec<bool> = checkpointing.told().map(|(_, told)| told.made > 0).collect();
        assert_eq!(made, [false, true, true]);
    }
}
