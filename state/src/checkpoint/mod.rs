//! Checkpoints: what a task's state was at a moment, kept beside it, copied elsewhere, taken back (DESIGN 5).
//!
//! ```text
//! STATE/checkpoints/TASK/00000007/manifest.json    what it is, with hashes of everything
//!                                 db/              the database; tables are hard links to those of the live state
//! ```
//!
//! A checkpoint is made through a handle of the open state while its task goes on. It is read back and counted before
//! it gets its name, so one that is there was right when it was made; what happens to its files later, the hashes tell.

mod files;
mod manifest;
mod restore;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use sluice_failpoints::Point;

use crate::env::{MemoryLimits, directory_name};
use crate::rocks::RocksBackend;
use crate::stored::StoredState;
use crate::types::{StateError, TableSpec};
use crate::{Backend, Reader};

pub use manifest::{Facts, FileEntry, Manifest, TableEntry};
pub use restore::{Restored, restore};
pub(crate) use restore::{install_newest, move_aside};

/// Name of the directory in the state's directory.
pub(crate) const DIRECTORY: &str = "checkpoints";
/// Name of the directory with the database.
const DATABASE: &str = "db";
/// What a directory's name ends with while it is being filled.
const UNFINISHED: &str = "%new";

/// Tells of one entry (key and value) that the runtime committed beside the rows, if it means something to people.
pub type Describe = fn(key: &[u8], value: &[u8], facts: &mut Facts) -> Result<(), StateError>;

/// The checkpoints of one task in one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoints {
    dir: PathBuf,
}

/// A checkpoint that was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its number.
    pub sequence: u64,
    /// Its directory.
    pub path: PathBuf,
    /// What it says of itself, or why that cannot be read. Its files have not been looked at: see [`verify`].
    pub manifest: Result<Manifest, String>,
}

impl Found {
    /// The directory of its database, to be read as a [`StoredState`].
    pub fn database(&self) -> PathBuf {
        self.path.join(DATABASE)
    }
}

impl Checkpoints {
    /// Those of `task` in the state's directory.
    pub fn of(state: &Path, task: &str) -> Self {
        Self::below(&state.join(DIRECTORY), task)
    }

    /// Those of `task` below `dir`, where they were copied to.
    pub fn below(dir: &Path, task: &str) -> Self {
        Self { dir: dir.join(directory_name(task)) }
    }

    /// Those of all tasks below `dir`: the directory `checkpoints` of a state, or one that they were copied to.
    ///
    /// # Errors
    /// If the directory cannot be listed.
    pub fn all_below(dir: &Path) -> Result<Vec<Self>, StateError> {
        if !dir.exists() {
            return Ok(Vec::new());
        }
        let paths = files::names(dir)?.into_iter().map(|name| Self { dir: dir.join(name) });
        Ok(paths.filter(|it| it.dir.is_dir()).collect())
    }

    /// Those of all tasks in the state's directory.
    ///
    /// # Errors
    /// If the directory cannot be listed.
    pub fn all_of(state: &Path) -> Result<Vec<Self>, StateError> {
        Self::all_below(&state.join(DIRECTORY))
    }

    /// Where they are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// All of them, newest first.
    ///
    /// # Errors
    /// If the directory cannot be listed.
    pub fn list(&self) -> Result<Vec<Found>, StateError> {
        if !self.dir.exists() {
            return Ok(Vec::new());
        }
        let numbers = files::names(&self.dir)?.into_iter().filter_map(|name| name.parse::<u64>().ok());
        let mut found: Vec<Found> = numbers.map(|sequence| self.found(sequence)).collect();
        found.sort_by_key(|it| std::cmp::Reverse(it.sequence));
        Ok(found)
    }

    /// The live state that these are of, where they lie beside it.
    fn live(&self) -> PathBuf {
        let (state, name) = (self.dir.ancestors().nth(2), self.dir.file_name());
        state.unwrap_or(&self.dir).join(name.unwrap_or_default())
    }

    fn path(&self, sequence: u64) -> PathBuf {
        self.dir.join(format!("{sequence:08}"))
    }

    fn found(&self, sequence: u64) -> Found {
        let path = self.path(sequence);
        let manifest = Manifest::read(&path).and_then(|manifest| {
            if manifest.sequence == sequence {
                return Ok(manifest);
            }
            Err(format!("it is checkpoint {}, in the place of {sequence}", manifest.sequence))
        });
        Found { sequence, path, manifest }
    }

    /// Removes all but the newest `keep` that are in order as far as their manifests and the lengths of their files say.
    /// Damaged ones that are newer than those stay, to be looked at. Returns the numbers of those that went.
    ///
    /// # Errors
    /// If one cannot be removed.
    pub fn keep(&self, keep: usize) -> Result<Vec<u64>, StateError> {
        let (mut kept, mut removed) = (0, Vec::new());
        for found in self.list()? {
            if kept >= keep {
                files::remove_dir(&found.path)?;
                removed.push(found.sequence);
            } else if is_complete(&found) {
                kept += 1;
            }
        }
        Ok(removed)
    }

    /// Copies checkpoint `sequence` to another place as plain files. It is verified before and after.
    ///
    /// # Errors
    /// [`StateError::Checkpoint`] if one or the other is not in order, [`StateError::Storage`] if the copy fails or another
    /// checkpoint has its number there.
    pub fn copy_to(&self, sequence: u64, to: &Self) -> Result<Manifest, StateError> {
        let from = self.found(sequence);
        let manifest = verified(&from)?;
        let target = to.found(sequence);
        if target.path.exists() {
            if target.manifest.as_ref() == Ok(&manifest) {
                return verified(&target);
            }
            let what = format!("{} is another checkpoint; choose another directory", target.path.display());
            return Err(StateError::Storage(what));
        }
        let building = to.dir.join(format!("{sequence:08}{UNFINISHED}"));
        let database = building.join(DATABASE);
        files::create_dir(&database)?;
        files::copy(&from.database(), &database, &manifest.files, false)?;
        seal(&building, &manifest, &target.path)?;
        verified(&to.found(sequence))
    }
}

/// Writes the manifest into `building` and gives it its name.
fn seal(building: &Path, manifest: &Manifest, path: &Path) -> Result<(), StateError> {
    let file = building.join(manifest::FILE);
    let text = manifest.to_json().map_err(StateError::Storage)?;
    std::fs::write(&file, text).map_err(|error| files::failed("write", &file, &error))?;
    for path in [&file, &building.join(DATABASE), building] {
        files::sync(path)?;
    }
    files::rename(building, path)
}

/// Its manifest can be read and its files have the lengths they had.
fn is_complete(found: &Found) -> bool {
    let Ok(manifest) = &found.manifest else { return false };
    let length = |name: &str| Some(std::fs::metadata(found.database().join(name)).ok()?.len());
    manifest.files.iter().all(|file| length(&file.name) == Some(file.bytes))
}

/// Everything about a checkpoint: manifest, every byte of every file, and the digests counted from the rows.
///
/// # Errors
/// All reasons why it is not in order.
pub fn verify(found: &Found) -> Result<Manifest, Vec<String>> {
    let manifest = found.manifest.clone().map_err(|what| vec![what])?;
    let faults = files::differences(&found.database(), &manifest.files);
    if !faults.is_empty() {
        return Err(faults);
    }
    let (lineage, tables) = count(&found.database()).map_err(|error| vec![error.to_string()])?;
    let mut faults = Vec::new();
    if lineage != manifest.lineage {
        faults.push("the database was made from something else than the manifest says".to_owned());
    }
    if tables != manifest.tables {
        faults.push("the rows of the database have other digests than the manifest says".to_owned());
    }
    if faults.is_empty() { Ok(manifest) } else { Err(faults) }
}

/// As [`verify`], with the reasons in one error.
fn verified(found: &Found) -> Result<Manifest, StateError> {
    verify(found).map_err(|faults| unusable(&found.path, faults))
}

fn unusable(path: &Path, faults: Vec<String>) -> StateError {
    StateError::Checkpoint { path: path.display().to_string(), what: faults.join("; ") }
}

/// Lineage and tables of the database in `path`, whose rows add up.
fn count(path: &Path) -> Result<(String, Vec<TableEntry>), StateError> {
    let state = StoredState::open(path)?;
    let faults = state.check()?;
    if !faults.is_empty() {
        return Err(unusable(path, faults));
    }
    Ok((state.lineage().to_owned(), tables(&state)))
}

fn tables(state: &StoredState) -> Vec<TableEntry> {
    let entry = |table: &crate::StoredTable| TableEntry {
        name: table.spec.name.clone(),
        rows: table.rows,
        digest: table.digest.to_string(),
    };
    state.tables().iter().map(entry).collect()
}

/// Makes checkpoints of one open state, from any thread.
#[derive(Clone)]
pub struct Checkpointer(Arc<Source>);

struct Source {
    checkpoints: Checkpoints,
    reader: Arc<dyn Reader>,
    describe: Describe,
    /// One at a time.
    busy: Mutex<()>,
}

impl Checkpointer {
    /// Makes those of the state that `reader` reads, in `checkpoints`.
    pub fn new(checkpoints: Checkpoints, reader: Arc<dyn Reader>, describe: Describe) -> Self {
        Self(Arc::new(Source { checkpoints, reader, describe, busy: Mutex::new(()) }))
    }

    /// Makes those of the state in the directory `path`, which no process has open, in the state's directory around it.
    /// The state is open until this is dropped.
    ///
    /// # Errors
    /// [`StateError::Damaged`] if it cannot be opened, [`StateError::Storage`] if a process has it open.
    pub fn of_stopped(path: &Path, describe: Describe) -> Result<Self, StateError> {
        let stored = StoredState::open_beside(path)?;
        let specs: Vec<TableSpec> = stored.tables().iter().map(|table| table.spec.clone()).collect();
        let checkpoints = Checkpoints::of(path.parent().unwrap_or(path), stored.task());
        drop(stored);
        let (cache, buffers) = MemoryLimits::default().shared();
        let backend = RocksBackend::open(path, &specs, &cache, &buffers)?;
        Ok(Self::new(checkpoints, backend.reader(), describe))
    }

    /// Where they are made.
    pub fn checkpoints(&self) -> &Checkpoints {
        &self.0.checkpoints
    }

    /// Makes one: of what is committed at some moment of the call. It blocks until every row is counted and every byte
    /// hashed and durable; a crash before leaves nothing that looks like a checkpoint.
    ///
    /// # Errors
    /// [`StateError::Damaged`] if the rows do not add up, so that the live state is damaged; [`StateError::Storage`] if
    /// it cannot be written.
    pub fn create(&self) -> Result<Manifest, StateError> {
        let _one = self.0.busy.lock();
        let checkpoints = &self.0.checkpoints;
        let sequence = checkpoints.list()?.first().map_or(1, |newest| newest.sequence + 1);
        let building = checkpoints.dir.join(format!("{sequence:08}{UNFINISHED}"));
        files::create_dir(&building)?;
        let made = self.fill(&building, sequence).and_then(|manifest| {
            sluice_failpoints::pass(Point::CheckpointBefore);
            seal(&building, &manifest, &checkpoints.path(sequence))?;
            sluice_failpoints::pass(Point::CheckpointAfter);
            Ok(manifest)
        });
        if made.is_err() {
            files::remove_dir(&building)?;
        }
        made
    }

    fn fill(&self, building: &Path, sequence: u64) -> Result<Manifest, StateError> {
        let database = building.join(DATABASE);
        self.0.reader.checkpoint(&database)?;
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let state = StoredState::open(&database)?;
        let faults = state.check()?;
        if !faults.is_empty() {
            let path = self.0.checkpoints.live().display().to_string();
            return Err(StateError::Damaged { path, what: faults.join("; ") });
        }
        let mut facts = Facts::default();
        let mut described = Ok(());
        state.entries(&mut |key, value| {
            if described.is_ok() {
                described = (self.0.describe)(key, value, &mut facts);
            }
        })?;
        described?;
        let line = |name: &str| state.lineage().lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        let manifest = Manifest {
            format: 0,
            task: state.task().to_owned(),
            sequence,
            time_ms: u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
            log_uuid: line("log ").to_owned(),
            lineage: state.lineage().to_owned(),
            topology_hash: manifest::text_hash(state.lineage()),
            facts,
            tables: tables(&state),
            files: files::inventory(&database)?,
            hash: String::new(),
        };
        manifest.sealed().map_err(StateError::Storage)
    }
}
