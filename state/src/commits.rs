//! The number of commits: how a state is told that has lost some of them.
//!
//! State is written but not synced, and a damaged write-ahead log gives an older commit: harmless, since positions come
//! with it. Two things would not be harmless. Commits missing *between* others, where a file of the write-ahead log was
//! lost that the database does not miss. And an older commit after files of expired rows were unlinked, which it needs.
//! So each commit writes its number and, apart from it, adds one to a sum: the two agree only where none is missing. And
//! before files are unlinked, the number of commits that must be there is written beside the database.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rocksdb::{ColumnFamily, MergeOperands, Options, WriteBatch};

use crate::types::StateError;

/// Keys of the system table: the number of the last commit, and the sum of all.
pub(crate) const KEYS: [&[u8]; 2] = [b"c#", b"c+"];

/// Name of the file with the least number of commits, in the state's directory.
const FLOOR: &str = "commits.floor";

fn number(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

/// Options of the system table: it sums.
pub(crate) fn count_in(options: &mut Options) {
    options.set_merge_operator_associative("sluice.sum", |_: &[u8], before: Option<&[u8]>, added: &MergeOperands| {
        let before = before.map_or(Some(0), number);
        let sum = added.iter().try_fold(before?, |sum, one| sum.checked_add(number(one)?))?;
        Some(sum.to_le_bytes().to_vec())
    });
}

/// Counts commit `number` in.
pub(crate) fn count(batch: &mut WriteBatch, system: &ColumnFamily, number: u64) {
    let [made, there] = KEYS;
    batch.put_cf(system, made, number.to_le_bytes());
    batch.merge_cf(system, there, 1_u64.to_le_bytes());
}

/// The number of commits, of what stands under the two [`KEYS`]; or why they do not fit. A state that has neither is new,
/// or of a version that did not count.
pub(crate) fn agree(made: Option<&[u8]>, there: Option<&[u8]>) -> Result<u64, String> {
    let read = |bytes: Option<&[u8]>| bytes.map_or(Some(0), number).ok_or("its count of commits cannot be read");
    let (made, there) = (read(made)?, read(there)?);
    if made == there {
        return Ok(made);
    }
    Err(format!("{made} commits were made and {there} are there: a part of its write-ahead log is missing"))
}

/// The least number of commits that the state must have. It is made durable before what older commits need is unlinked.
#[derive(Debug)]
pub(crate) struct Floor {
    path: PathBuf,
    file: Option<File>,
}

impl Floor {
    /// The floor of the state in `dir`, which has `commits`.
    ///
    /// # Errors
    /// If it has fewer than it must have, or the file cannot be read.
    pub(crate) fn open(dir: &Path, commits: u64) -> Result<Self, StateError> {
        let path = dir.join(FLOOR);
        let damaged = |what: String| StateError::Damaged { path: dir.display().to_string(), what };
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(failed(&path, &error)),
        };
        // An empty file is one that a crash left before it was first written.
        let floor = match (bytes.first_chunk::<8>(), bytes.last_chunk::<8>()) {
            (Some(one), Some(other)) if one == other && bytes.len() == 16 => u64::from_le_bytes(*one),
            _ if bytes.is_empty() => 0,
            _ => return Err(damaged(format!("its file {FLOOR} cannot be read"))),
        };
        if commits < floor {
            let what =
                format!("it has {commits} commits and must have {floor}: the end of its write-ahead log is missing");
            return Err(damaged(what));
        }
        Ok(Self { path, file: None })
    }

    /// Raises it to `commits`, durably.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn raise(&mut self, commits: u64) -> Result<(), StateError> {
        let raised = match &self.file {
            Some(file) => write(file, commits),
            None => self.create().and_then(|file| {
                write(&file, commits)?;
                self.file = Some(file);
                Ok(())
            }),
        };
        raised.map_err(|error| failed(&self.path, &error))
    }

    fn create(&self) -> io::Result<File> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&self.path)?;
        self.path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())?;
        Ok(file)
    }
}

/// The number twice, so that half of one is told.
fn write(file: &File, commits: u64) -> io::Result<()> {
    let one = commits.to_le_bytes();
    file.write_all_at(&[one, one].concat(), 0)?;
    file.sync_data()
}

fn failed(path: &Path, error: &io::Error) -> StateError {
    StateError::Storage(format!("{}: {error}", path.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_state_below_its_floor_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        Floor::open(dir.path(), 0).unwrap().raise(7).unwrap();
        assert!(Floor::open(dir.path(), 7).is_ok());
        assert!(matches!(Floor::open(dir.path(), 6), Err(StateError::Damaged { .. })));
        let path = dir.path().join(FLOOR);
        std::fs::write(&path, [1, 2, 3]).unwrap();
        assert!(matches!(Floor::open(dir.path(), 9), Err(StateError::Damaged { .. })));
        std::fs::write(&path, []).unwrap();
        assert!(Floor::open(dir.path(), 0).is_ok());
    }

    #[test]
    fn numbers_that_differ_are_told() {
        let [two, three] = [2_u64.to_le_bytes(), 3_u64.to_le_bytes()];
        assert_eq!(agree(Some(&two), Some(&two)), Ok(2));
        assert_eq!(agree(None, None), Ok(0));
        assert!(agree(Some(&three), Some(&two)).is_err());
        assert!(agree(Some(&three), None).is_err());
        assert!(agree(Some(b"x"), Some(&two)).is_err());
    }
}
