//! Where the states of all tasks of a process live, and the memory they share.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rocksdb::{Cache, WriteBufferManager};

use crate::Backend;
use crate::checkpoint::{self, Checkpointer, Checkpoints, Describe};
use crate::lineage::{Lineage, StoredLineage};
use crate::memory::MemoryBackend;
use crate::rocks;
use crate::rocks::RocksBackend;
use crate::stored::StoredState;
use crate::tables::{Opened, Tables};
use crate::types::{StateError, TableSpec};
use crate::upgrade::{Swap, upgrade};

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
    Disk { dir: PathBuf, cache: Cache, buffers: WriteBufferManager, keep: Keep },
    Memory { states: Mutex<BTreeMap<String, MemoryBackend>> },
    Lent { open: OpenBackend },
}

/// What states on disk are for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    /// They are gone on with after a crash.
    Whole,
    /// As [`Keep::Whole`]; one that is not right is made again.
    Rebuilt,
    /// They are made in one go, and anew if that fails.
    Scratch,
}

/// Opens the back end of a task's state, given its name and its tables.
pub type OpenBackend = Box<dyn Fn(&str, &[TableSpec]) -> Result<Box<dyn Backend>, StateError> + Send + Sync>;

impl StateEnv {
    /// States below the directory `dir`, one directory a task, with shared memory of these limits.
    ///
    /// # Errors
    /// If the directory cannot be created.
    pub fn on_disk(dir: impl Into<PathBuf>, limits: MemoryLimits) -> Result<Self, StateError> {
        Self::disk(dir.into(), limits, Keep::Whole)
    }

    /// As [`StateEnv::on_disk`], for states that may be damaged or foreign: each is checked row by row when it is
    /// opened, and one that is not right is moved aside and made again.
    ///
    /// # Errors
    /// If the directory cannot be created.
    pub fn rebuilding(dir: impl Into<PathBuf>, limits: MemoryLimits) -> Result<Self, StateError> {
        Self::disk(dir.into(), limits, Keep::Rebuilt)
    }

    /// As [`StateEnv::on_disk`], for states that are made in one go, as a replay makes them: commits are kept in
    /// memory until [`Tables::sync`] writes them out. Who is killed before leaves an earlier commit.
    ///
    /// # Errors
    /// If the directory cannot be created.
    pub fn scratch(dir: impl Into<PathBuf>, limits: MemoryLimits) -> Result<Self, StateError> {
        Self::disk(dir.into(), limits, Keep::Scratch)
    }

    fn disk(dir: PathBuf, limits: MemoryLimits, keep: Keep) -> Result<Self, StateError> {
        std::fs::create_dir_all(&dir)
            .map_err(|error| StateError::Storage(format!("cannot create {}: {error}", dir.display())))?;
        let (cache, buffers) = limits.shared();
        Ok(Self(Arc::new(Place::Disk { dir, cache, buffers, keep })))
    }

    /// States in memory. They live as long as the environment: a task that is opened again finds its own.
    pub fn in_memory() -> Self {
        Self(Arc::new(Place::Memory { states: Mutex::default() }))
    }

    /// States in back ends that `open` gives, for who must decide himself what a crash leaves of them; none of an earlier
    /// version.
    pub fn lent(open: OpenBackend) -> Self {
        Self(Arc::new(Place::Lent { open }))
    }

    /// The directory, if states are on disk.
    pub fn dir(&self) -> Option<&Path> {
        match self.0.as_ref() {
            Place::Disk { dir, .. } => Some(dir),
            Place::Memory { .. } | Place::Lent { .. } => None,
        }
    }

    /// The state of the task that `lineage` names: the one that is there; else the newest checkpoint of the same lineage
    /// that is in order, older ones after newer ones; else an empty one. Tables of earlier versions are brought to the
    /// newest one: the state is written anew beside the old one and takes its place at once, or not at all.
    ///
    /// # Errors
    /// [`StateError::Foreign`] if the state that is there has another lineage, [`StateError::Damaged`] if it is damaged,
    /// unless the environment rebuilds such states; [`StateError::Newer`] if a newer program has written it;
    /// [`StateError::Storage`] if it cannot be opened.
    pub fn open(&self, specs: Vec<TableSpec>, lineage: &Lineage) -> Result<Tables, StateError> {
        match self.0.as_ref() {
            Place::Disk { dir, cache, buffers, keep } => {
                let rebuild = *keep == Keep::Rebuilt;
                let path = state_directory(dir, &lineage.task);
                Swap::of(&path).recover()?;
                let open = || on_disk(&path, &specs, lineage, (cache, buffers), *keep);
                if is_occupied(&path) {
                    let checked = if rebuild && rocks::is_state(&path) { checked(&path) } else { Ok(()) };
                    match checked.and_then(|()| open()) {
                        Err(error)
                            if rebuild && !matches!(error, StateError::Storage(_) | StateError::Newer { .. }) =>
                        {
                            let aside = checkpoint::move_aside(&path)?;
                            tracing::warn!(task = lineage.task, reason = %error, aside = %aside.display(),
                                "the state was moved aside and is made again");
                        }
                        other => return other,
                    }
                }
                restore(dir, &path, lineage, &specs)?;
                open()
            }
            Place::Memory { states } => {
                let place = format!("(in memory) {}", lineage.task);
                let mut states = states.lock();
                let backend = states.entry(lineage.task.clone()).or_insert_with(|| MemoryBackend::new(&specs)).clone();
                if backend.table_count() != specs.len() + 1 {
                    return Err(StateError::Foreign { path: place, what: "it has other tables".into() });
                }
                match Tables::open(Box::new(backend), specs.clone(), lineage, &place)? {
                    Opened::Ready(tables) => Ok(tables),
                    Opened::Older(old, found) => {
                        told(&lineage.task, &found, &specs);
                        let new = MemoryBackend::new(&specs);
                        upgrade(&old, &found, Box::new(new.clone()), &lineage.with_tables(&specs), &place)?;
                        states.insert(lineage.task.clone(), new.clone());
                        Tables::open(Box::new(new), specs, lineage, &place)?.ready(&place)
                    }
                }
            }
            Place::Lent { open } => {
                let backend = open(&lineage.task, &specs)?;
                Tables::open(backend, specs, lineage, "(lent)")?.ready("(lent)")
            }
        }
    }

    /// What makes checkpoints of `tables`, the open state of `task`; `None` where states are in memory.
    pub fn checkpointer(&self, tables: &Tables, task: &str, describe: Describe) -> Option<Checkpointer> {
        let checkpoints = Checkpoints::of(self.dir()?, task);
        Some(Checkpointer::new(checkpoints, tables.reader(), describe))
    }
}

/// Opens the state in `path`, and upgrades it where it is of an earlier version.
fn on_disk(
    path: &Path,
    specs: &[TableSpec],
    lineage: &Lineage,
    shared: (&Cache, &WriteBufferManager),
    keep: Keep,
) -> Result<Tables, StateError> {
    let place = path.display().to_string();
    let backend = |path: &Path| backend(path, specs, shared, keep);
    if !rocks::is_state(path) {
        make(path, specs, lineage, shared, keep)?;
    }
    match Tables::open(backend(path)?, specs.to_vec(), lineage, &place)? {
        Opened::Ready(tables) => Ok(tables),
        Opened::Older(old, found) => {
            told(&lineage.task, &found, specs);
            let swap = Swap::of(path);
            upgrade(&old, &found, backend(swap.upgraded())?, &lineage.with_tables(specs), &place)?;
            drop(old);
            swap.leave()?;
            swap.enter()?;
            swap.recover()?;
            Tables::open(backend(path)?, specs.to_vec(), lineage, &place)?.ready(&place)
        }
    }
}

/// The database in `path`, which is made if it is not there.
fn backend(
    path: &Path,
    specs: &[TableSpec],
    (cache, buffers): (&Cache, &WriteBufferManager),
    keep: Keep,
) -> Result<Box<RocksBackend>, StateError> {
    let open = if keep == Keep::Scratch { RocksBackend::open_unlogged } else { RocksBackend::open };
    open(path, specs, cache, buffers).map(Box::new)
}

/// Makes an empty state beside its place and moves it there: whatever comes between, who finds a state finds what it was
/// made from, too.
fn make(
    path: &Path,
    specs: &[TableSpec],
    lineage: &Lineage,
    shared: (&Cache, &WriteBufferManager),
    keep: Keep,
) -> Result<(), StateError> {
    let io = |what: &str, error: std::io::Error| StateError::Storage(format!("{what} {}: {error}", path.display()));
    if is_occupied(path) {
        return Err(rocks::something_else(path));
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push("%new");
    let beside = PathBuf::from(beside);
    if beside.exists() {
        std::fs::remove_dir_all(&beside).map_err(|error| io("cannot clear what was left beside", error))?;
    }
    let place = path.display().to_string();
    Tables::open(backend(&beside, specs, shared, keep)?, specs.to_vec(), lineage, &place)?.ready(&place)?.sync()?;
    if path.exists() {
        std::fs::remove_dir(path).map_err(|error| io("cannot replace", error))?;
    }
    std::fs::rename(&beside, path).map_err(|error| io("cannot create", error))
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

/// Says what is upgraded.
fn told(task: &str, found: &StoredLineage, specs: &[TableSpec]) {
    for (found, spec) in found.tables.iter().zip(specs).filter(|(found, spec)| found.version < spec.version()) {
        tracing::info!(task, table = spec.name, from = found.version, to = spec.version(), "a table is upgraded");
    }
}

/// Where the state of `task` lies below `dir`.
pub fn state_directory(dir: &Path, task: &str) -> PathBuf {
    dir.join(directory_name(task))
}

/// Whether something lies in `path` that is, or was, a state. An empty directory is none: somebody has removed it.
pub fn is_occupied(path: &Path) -> bool {
    path.read_dir().is_ok_and(|mut files| files.next().is_some())
}

/// Where the state of `task` can be read now: a crash during an upgrade may have left it beside its place.
pub fn state_now(dir: &Path, task: &str) -> PathBuf {
    Swap::of(&state_directory(dir, task)).current().to_owned()
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
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// S1: a process may die right behind the making of a state. Whoever looks at it then must not take it for a damaged one.
    #[test]
    fn s1_a_state_that_is_there_says_what_it_was_made_from() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, buffers) = MemoryLimits { cache: 1 << 20, write_buffers: 1 << 20 }.shared();
        let specs = [TableSpec { name: "rows".into(), group_prefix: None, steps: &[] }];
        for keep in [Keep::Whole, Keep::Scratch] {
            let path = dir.path().join(format!("shareproc.{}", keep as u8));
            let lineage = Lineage { task: "shareproc.0".into(), log_uuid: [7; 16], wiring: "wired".into() };
            make(&path, &specs, &lineage, (&cache, &buffers), keep).unwrap();
            assert_eq!(StoredState::open(&path).unwrap().task(), "shareproc.0");
            on_disk(&path, &specs, &lineage, (&cache, &buffers), keep).unwrap();
        }
    }

    #[test]
    fn task_names_make_safe_directories() {
        assert_eq!(directory_name("shareproc-3"), "shareproc-3");
        assert_eq!(directory_name("a/b"), "a%2fb");
        assert_eq!(directory_name("../x"), "%2e.%2fx");
        assert_eq!(directory_name("checkpoints"), "%63heckpoints");
    }
}
