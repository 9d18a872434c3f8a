//! A state as it is stored: read by commands and checked, never by its task.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::digest::{Group, row_hash};
use crate::lineage::{StoredLineage, TableVersion};
use crate::rocks::{self, RocksReader, Shared};
use crate::tables::{DIGEST, LINEAGE, META, digest_key_parts};
use crate::types::{Digest, StateError, TableSpec};
use crate::{Reader, SYSTEM_TABLE};

/// A state that is only read: a checkpoint, or the state of a task, also while that runs.
pub struct StoredState {
    shared: Arc<Shared>,
    lineage: String,
    made_from: StoredLineage,
    tables: Vec<StoredTable>,
    /// Files of who reads beside the owner; removed with this.
    _scratch: Option<tempfile::TempDir>,
}

/// A table of a stored state, as its digests say.
#[derive(Clone, Debug)]
pub struct StoredTable {
    /// Its name and how its rows expire.
    pub spec: TableSpec,
    /// Rows in it.
    pub rows: u64,
    /// Digest of the rows.
    pub digest: Digest,
}

/// Digests of the groups of each table.
type Groups = Vec<BTreeMap<Bytes, Group>>;

impl StoredState {
    /// The state in the directory `path`, which no process changes.
    ///
    /// # Errors
    /// [`StateError::Damaged`] if it cannot be read as a state, [`StateError::Newer`] if a newer program has written it.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        Self::read(Shared::open_to_read(path, None)?, None)
    }

    /// The state in the directory `path` as it is now; its task may be running.
    ///
    /// # Errors
    /// As [`StoredState::open`], or if there is no place for temporary files.
    pub fn open_beside(path: &Path) -> Result<Self, StateError> {
        let scratch = tempfile::Builder::new().prefix("sluice-state-").tempdir();
        let scratch = scratch.map_err(|error| StateError::Storage(format!("no temporary directory: {error}")))?;
        Self::read(Shared::open_to_read(path, Some(scratch.path()))?, Some(scratch))
    }

    fn read(shared: Shared, scratch: Option<tempfile::TempDir>) -> Result<Self, StateError> {
        let lineage = shared.get(shared.named(SYSTEM_TABLE)?, LINEAGE)?;
        let lineage = lineage.ok_or_else(|| shared.damaged("it does not say what it was made from"))?;
        let lineage = String::from_utf8_lossy(&lineage).into_owned();
        shared.commits()?;
        let made_from = StoredLineage::parse(&lineage).map_err(|error| error.at(&shared.place()))?;
        let table =
            |table: &TableVersion| TableSpec { name: table.name.clone(), group_prefix: table.group_prefix, steps: &[] };
        let specs: Vec<TableSpec> = made_from.tables.iter().map(table).collect();
        let mut this = Self { shared: Arc::new(shared), lineage, made_from, tables: Vec::new(), _scratch: scratch };
        let groups = this.stored_groups(specs.len())?;
        let table = |(spec, groups): (TableSpec, BTreeMap<Bytes, Group>)| {
            let (digest, rows) = sum(&groups);
            StoredTable { spec, rows, digest }
        };
        this.tables = specs.into_iter().zip(groups).map(table).collect();
        Ok(this)
    }

    /// What it was made from, one fact a line.
    pub fn lineage(&self) -> &str {
        &self.lineage
    }

    /// The same, as it was understood.
    pub fn made_from(&self) -> &StoredLineage {
        &self.made_from
    }

    /// Name of its task.
    pub fn task(&self) -> &str {
        &self.made_from.lineage.task
    }

    /// Its tables, in the order of the task.
    pub fn tables(&self) -> &[StoredTable] {
        &self.tables
    }

    /// Reads its rows, by table name.
    pub fn reader(&self) -> Arc<dyn Reader> {
        Arc::new(RocksReader(Arc::clone(&self.shared)))
    }

    /// Calls `visit` with each entry that the runtime keeps beside the rows, in key order.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn entries(&self, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), StateError> {
        let system = self.shared.named(SYSTEM_TABLE)?;
        self.shared.scan(system, &[META], Some(&[META + 1]), &mut |key, value| {
            visit(key.get(1..).unwrap_or_default(), value);
            true
        })
    }

    /// Reads every row of every table and compares what they add up to with the digests that were committed. Returns
    /// what does not fit; nothing, if all does.
    ///
    /// # Errors
    /// [`StateError::Damaged`] at the first row that cannot be read.
    pub fn check(&self) -> Result<Vec<String>, StateError> {
        let stored = self.stored_groups(self.tables.len())?;
        let mut faults = Vec::new();
        for (table, stored) in self.tables.iter().zip(stored) {
            let counted = self.count(&table.spec, &mut faults)?;
            if counted != stored {
                let ((digest, rows), (said, said_rows)) = (sum(&counted), sum(&stored));
                let name = &table.spec.name;
                faults.push(format!(
                    "table {name} has {rows} rows with digest {digest}, and {said_rows} with {said} were committed"
                ));
            }
        }
        Ok(faults)
    }

    fn count(&self, table: &TableSpec, faults: &mut Vec<String>) -> Result<BTreeMap<Bytes, Group>, StateError> {
        let mut groups: BTreeMap<Bytes, Group> = BTreeMap::new();
        let mut scratch = Vec::new();
        let length = table.group_prefix.unwrap_or(0);
        self.shared.scan(self.shared.named(&table.name)?, &[], None, &mut |key, value| {
            let Some(prefix) = key.get(..length) else {
                faults.push(format!("table {} has a key shorter than its group prefix", table.name));
                return false;
            };
            let group = match groups.get_mut(prefix) {
                Some(group) => group,
                None => groups.entry(Bytes::copy_from_slice(prefix)).or_default(),
            };
            group.digest = group.digest.plus(row_hash(&mut scratch, key, value));
            group.rows += 1;
            true
        })?;
        Ok(groups)
    }

    fn stored_groups(&self, tables: usize) -> Result<Groups, StateError> {
        let mut groups: Groups = vec![BTreeMap::new(); tables];
        let mut damaged = false;
        let system = self.shared.named(SYSTEM_TABLE)?;
        self.shared.scan(system, &[DIGEST], Some(&[DIGEST + 1]), &mut |key, value| {
            let read = digest_key_parts(key).and_then(|(table, prefix)| {
                groups.get_mut(table)?.insert(Bytes::copy_from_slice(prefix), Group::from_bytes(value)?);
                Some(())
            });
            damaged |= read.is_none();
            !damaged
        })?;
        if damaged { Err(self.shared.damaged("a stored digest cannot be read")) } else { Ok(groups) }
    }
}

/// The directories of all states in a state's directory, sorted; what was moved aside is not among them.
///
/// # Errors
/// If the directory cannot be listed.
pub fn states_in(dir: &Path) -> Result<Vec<PathBuf>, StateError> {
    let failed = |error: std::io::Error| StateError::Storage(format!("cannot list {}: {error}", dir.display()));
    let mut found = Vec::new();
    for entry in dir.read_dir().map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let other = ["%new", "%upgraded", "%old"].iter().any(|suffix| name.ends_with(suffix))
            || name.contains("%aside-")
            || name == crate::checkpoint::DIRECTORY;
        if !other && rocks::is_state(&path) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn sum(groups: &BTreeMap<Bytes, Group>) -> (Digest, u64) {
    groups.values().fold((Digest::default(), 0), |(digest, rows), group| {
        (digest.plus(group.digest.to_u128()), rows.saturating_add(group.rows))
    })
}
