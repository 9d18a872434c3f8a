//! Where the states of all tasks of a process live, and the memory they share.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rocksdb::{Cache, WriteBufferManager};

use crate::checkpoint::{self, Checkpointer, Checkpoints, Describe};
use crate::memory::MemoryBackend;
use crate::rocks;
use crate::rocks::RocksBackend;
use crate::stored::StoredState;
use crate::tables::Tables;
use crate::types::{Lineage, StateError, TableSpec};

/// Bounds of what all states of a process keep in memory together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLimits {
    /// Bytes of the block cache, which holds blocks, indexes and filters, and what the write buffers use.
    pub cache: usize,
    /// Bytes of all write buffers, a part of the former. Beyond it, who writes flushes its own; it never waits for another.
    pub write_buffers: usize,
}

impl Default for MemoryLimits {
    fn default() -> Self {
        Self { cache: 256 << 20, write_buffers: 96 << 20 }
    }
}

impl MemoryLimits {
    /// A cache and the bound of write buffers in it.
    pub(crate) fn shared(self) -> (Cache, WriteBufferManager) {
        let cache = Cache::new_lru_cache(self.cache);
        let buffers = WriteBufferManager::new_write_buffer_manager_with_cache(self.write_buffers, false, cache.clone());
        (cache, buffers)
    }
}

/// Opens the states of tasks. Clones are the same environment.
#[derive(Clone)]
pub struct StateEnv(Arc<Place>);

enum Place {
    Disk { dir: PathBuf, cache: Cache, buffers: WriteBufferManager, rebuild: bool },
    Memory { states: Mutex<BTreeMap<String, MemoryBackend>> },
}

impl StateEnv {
    /// States below the directory `dir`, one directory a task, with shared memory of these limits.
    ///
    /// # Errors
    /// If the directory cannot be created.
    pub fn on_disk(dir: impl Into<PathBuf>, limits: MemoryLimits) -> Result<Self, StateError> {
        Self::disk(dir.into(), limits, false)
    }

    /// As [`StateEnv::on_disk`], for states that may be damaged or foreign: each is checked row by row when it is
    /// opened, and one that is not right is moved aside and made again.
    ///
    /// # Errors
    /// If the directory cannot be created.
    pub fn rebuilding(dir: impl Into<PathBuf>, limits: MemoryLimits) -> Result<Self, StateError> {
        Self::disk(dir.into(), limits, true)
    }

    fn disk(dir: PathBuf, limits: MemoryLimits, rebuild: bool) -> Result<Self, StateError> {
        std::fs::create_dir_all(&dir)
            .map_err(|error| StateError::Storage(format!("cannot create {}: {error}", dir.display())))?;
        let (cache, buffers) = limits.shared();
        Ok(Self(Arc::new(Place::Disk { dir, cache, buffers, rebuild })))
    }

    /// States in memory. They live as long as the environment: a task that is opened again finds its own.
    pub fn in_memory() -> Self {
        Self(Arc::new(Place::Memory { states: Mutex::default() }))
    }

    /// The directory, if states are on disk.
    pub fn dir(&self) -> Option<&Path> {
        match self.0.as_ref() {
            Place::Disk { dir, .. } => Some(dir),
            Place::Memory { .. } => None,
        }
    }

    /// The state of the task that `lineage` names: the one that is there; else the newest checkpoint of the same lineage
    /// that is in order, older ones after newer ones; else an empty one.
    ///
    /// # Errors
    /// [`StateError::Foreign`] if the state that is there has another lineage, [`StateError::Damaged`] if it is damaged,
    /// unless the environment rebuilds such states; [`StateError::Storage`] if it cannot be opened.
    pub fn open(&self, specs: Vec<TableSpec>, lineage: &Lineage) -> Result<Tables, StateError> {
        match self.0.as_ref() {
            Place::Disk { dir, cache, buffers, rebuild } => {
                let path = dir.join(directory_name(&lineage.task));
                let open = |specs: Vec<TableSpec>| {
                    let backend = RocksBackend::open(&path, &specs, cache, buffers)?;
                    Tables::open(Box::new(backend), specs, lineage, &path.display().to_string())
                };
                // An empty directory is no state: somebody has removed it.
                if path.read_dir().is_ok_and(|mut files| files.next().is_some()) {
                    let checked = if *rebuild && rocks::is_state(&path) { checked(&path) } else { Ok(()) };
                    match checked.and_then(|()| open(specs.clone())) {
                        Err(error) if *rebuild && !matches!(error, StateError::Storage(_)) => {
                            let aside = checkpoint::move_aside(&path)?;
                            tracing::warn!(task = lineage.task, reason = %error, aside = %aside.display(),
                                "the state was moved aside and is made again");
                        }
                        other => return other,
                    }
                }
                restore(dir, &path, lineage, &specs)?;
                open(specs)
            }
            Place::Memory { states } => {
                let mut states = states.lock();
                let backend = states.entry(lineage.task.clone()).or_insert_with(|| MemoryBackend::new(&specs)).clone();
                if backend.table_count() != specs.len() + 1 {
                    let path = format!("(in memory) {}", lineage.task);
                    return Err(StateError::Foreign { path, what: "it has other tables".into() });
                }
                Tables::open(Box::new(backend), specs, lineage, "(in memory)")
            }
        }
    }

    /// What makes checkpoints of `tables`, the open state of `task`; `None` where states are in memory.
    pub fn checkpointer(&self, tables: &Tables, task: &str, describe: Describe) -> Option<Checkpointer> {
        let checkpoints = Checkpoints::of(self.dir()?, task);
        Some(Checkpointer::new(checkpoints, tables.reader(), describe))
    }
}

/// The rows of the state in `path` add up.
fn checked(path: &Path) -> Result<(), StateError> {
    let faults = StoredState::open(path)?.check()?;
    if faults.is_empty() {
        return Ok(());
    }
    Err(StateError::Damaged { path: path.display().to_string(), what: faults.join("; ") })
}

/// Takes the newest checkpoint that can be used.
fn restore(dir: &Path, path: &Path, lineage: &Lineage, specs: &[TableSpec]) -> Result<(), StateError> {
    let checkpoints = Checkpoints::of(dir, &lineage.task);
    let installed = checkpoint::install_newest(&checkpoints, path, |found| lineage.differs(specs, &found.lineage))?;
    if let Some(manifest) = installed {
        tracing::warn!(
            task = lineage.task,
            sequence = manifest.sequence,
            time_ms = manifest.time_ms,
            "there was no state: it was restored from a checkpoint, what came after is made again from the log"
        );
    }
    Ok(())
}

/// `task` with everything but letters, digits, `.`, `_` and `-` written as `%` and two hex digits, so that a task's
/// name can be any text and no two names share a directory. The name of the directory with the checkpoints is no task's.
pub(crate) fn directory_name(task: &str) -> String {
    let mut name = String::with_capacity(task.len());
    for byte in task.bytes() {
        match byte {
            b'c' if name.is_empty() && task == checkpoint::DIRECTORY => name.push_str("%63"),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' => name.push(char::from(byte)),
            b'.' if !name.is_empty() => name.push('.'),
            _ => name.push_str(&format!("%{byte:02x}")),
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::directory_name;

    #[test]
    fn task_names_make_safe_directories() {
        assert_eq!(directory_name("shareproc-3"), "shareproc-3");
        assert_eq!(directory_name("a/b"), "a%2fb");
        assert_eq!(directory_name("../x"), "%2e.%2fx");
        assert_eq!(directory_name("checkpoints"), "%63heckpoints");
    }
}
