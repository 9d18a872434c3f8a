//! Where the states of all tasks of a process live, and the memory they share.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rocksdb::{Cache, WriteBufferManager};

use crate::memory::MemoryBackend;
use crate::rocks::RocksBackend;
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

/// Opens the states of tasks. Clones are the same environment.
#[derive(Clone)]
pub struct StateEnv(Arc<Place>);

enum Place {
    Disk { dir: PathBuf, cache: Cache, buffers: WriteBufferManager },
    Memory { states: Mutex<BTreeMap<String, MemoryBackend>> },
}

impl StateEnv {
    /// States below the directory `dir`, one directory a task, with shared memory of these limits.
    ///
    /// # Errors
    /// If the directory cannot be created.
    pub fn on_disk(dir: impl Into<PathBuf>, limits: MemoryLimits) -> Result<Self, StateError> {
        let dir = dir.into();
        std::fs::create_dir_all(&dir)
            .map_err(|error| StateError::Storage(format!("cannot create {}: {error}", dir.display())))?;
        let cache = Cache::new_lru_cache(limits.cache);
        let buffers =
            WriteBufferManager::new_write_buffer_manager_with_cache(limits.write_buffers, false, cache.clone());
        Ok(Self(Arc::new(Place::Disk { dir, cache, buffers })))
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

    /// The state of the task that `lineage` names, created empty if there is none.
    ///
    /// # Errors
    /// [`StateError::Foreign`] if the state that is there has another lineage, [`StateError::Storage`] if it cannot be
    /// opened.
    pub fn open(&self, specs: Vec<TableSpec>, lineage: &Lineage) -> Result<Tables, StateError> {
        match self.0.as_ref() {
            Place::Disk { dir, cache, buffers } => {
                let path = dir.join(directory_name(&lineage.task));
                let backend = RocksBackend::open(&path, &specs, cache, buffers)?;
                Tables::open(Box::new(backend), specs, lineage, &path.display().to_string())
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
}

/// `task` with everything but letters, digits, `.`, `_` and `-` written as `%` and two hex digits, so that a task's
/// name can be any text and no two names share a directory.
fn directory_name(task: &str) -> String {
    let mut name = String::with_capacity(task.len());
    for byte in task.bytes() {
        match byte {
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
    }
}
