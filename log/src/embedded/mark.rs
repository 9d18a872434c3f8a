//! The durable mark: how far the log was durable, written beside it after each commit.
//!
//! Recovery takes the first broken record of the write-ahead log for its end. After a crash that is right; after damage
//! to an older part of the file it would silently forget acknowledged records. The mark is written after each sync and
//! is itself never synced: it may be behind after a loss of power, but never ahead. A log that recovers less than
//! its mark has lost something.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Name of the file in the log's directory.
pub(super) const FILE: &str = "durable.mark";

/// The mark of an open log.
#[derive(Debug)]
pub(super) struct Mark {
    /// `None` once it could not be written.
    file: Option<File>,
}

impl Mark {
    /// The sequence number of the mark in `dir`; 0 if there is none. Two equal copies, or it is not taken for one.
    pub(super) fn read(dir: &Path) -> u64 {
        let Ok(bytes) = std::fs::read(dir.join(FILE)) else { return 0 };
        match (bytes.first_chunk::<8>(), bytes.last_chunk::<8>()) {
            (Some(a), Some(b)) if a == b && bytes.len() == 16 => u64::from_le_bytes(*a),
            _ => 0,
        }
    }

    /// Opens the mark in `dir` and sets it to `sequence`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(super) fn open(dir: &Path, sequence: u64) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(dir.join(FILE))?;
        let mut mark = Self { file: Some(file) };
        mark.set(sequence)?;
        Ok(mark)
    }

    fn set(&mut self, sequence: u64) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let one = sequence.to_le_bytes();
        let mut both = [0; 16];
        both[..8].copy_from_slice(&one);
        both[8..].copy_from_slice(&one);
        file.write_all_at(&both, 0)
    }

    /// Moves the mark to `sequence`. A mark that cannot be written is given up with a warning: it stays behind, which
    /// is safe, and the log itself is sound.
    pub(super) fn advance(&mut self, sequence: u64) {
        if let Err(error) = self.set(sequence) {
            tracing::warn!(%error, "the durable mark cannot be written; damage to the newest records may go unseen");
            self.file = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_marked_is_read() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Mark::read(dir.path()), 0);
        Mark::open(dir.path(), 5).unwrap().advance(77);
        assert_eq!(Mark::read(dir.path()), 77);
        std::fs::write(dir.path().join(FILE), [1; 15]).unwrap();
        assert_eq!(Mark::read(dir.path()), 0);
    }
}
