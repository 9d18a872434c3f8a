//! Ledgers: real ones on SQLite, made once and copied, in memory where the system has a file system there.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use sluice_ledger::{LedgerStore, open_sqlite};
use tempfile::TempDir;

/// A file system in memory: a ledger syncs each transaction, which is not what a simulation waits for.
const MEMORY: &str = "/dev/shm";

/// Makes ledgers.
pub struct Ledgers {
    dir: TempDir,
    made: u64,
}

/// A ledger, and the file that goes with it.
pub struct LedgerFile {
    path: PathBuf,
    /// The ledger.
    pub store: Arc<dyn LedgerStore>,
}

impl Ledgers {
    /// With a first, empty one.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn new() -> Result<Self> {
        let memory = Path::new(MEMORY);
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory)? } else { tempfile::tempdir()? };
        drop(open_sqlite(&dir.path().join("empty"))?);
        Ok(Self { dir, made: 0 })
    }

    /// An empty ledger.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn make(&mut self) -> Result<LedgerFile> {
        self.made += 1;
        let path = self.dir.path().join(self.made.to_string());
        std::fs::copy(self.dir.path().join("empty"), &path)?;
        Ok(LedgerFile { store: open_sqlite(&path)?, path })
    }
}

impl Drop for LedgerFile {
    fn drop(&mut self) {
        for end in ["", "-wal", "-shm"] {
            // The directory goes at the end, with what is left in it.
            let _ = std::fs::remove_file(format!("{}{end}", self.path.display()));
        }
    }
}
