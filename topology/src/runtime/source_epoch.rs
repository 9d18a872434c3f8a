//! The epoch of a source that has not claimed any in its log yet: the first one, or one that an earlier program, which did
//! not claim them, kept in a file.

use std::path::Path;

use sluice_proto::{Epoch, EventTime, hash64};

/// Why a source could not take an epoch.
#[derive(Debug, thiserror::Error)]
pub enum EpochError {
    /// The file that holds the last epoch cannot be read.
    #[error("cannot take an epoch for {task}: {path}: {error}")]
    Io {
        /// Name of the source.
        task: String,
        /// The file.
        path: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// The file holds something else.
    #[error("cannot take an epoch for {task}: {path} holds {found:?} and not a number below 2^32; repair it by hand")]
    Damaged {
        /// Name of the source.
        task: String,
        /// The file.
        path: String,
        /// What it holds.
        found: String,
    },
}

/// Start of the count of minutes that a source without a stored epoch begins with: 2025-01-01, seconds since the Unix
/// epoch.
const FIRST_EPOCH_BASE: u64 = 1_735_689_600;

/// What the first epoch that the source `task_name` claims is above: the last one it took before epochs were claimed, in a
/// file of `state_dir`.
///
/// Where there is none, it is the minutes since 2025: should that file have been lost while the log was kept, new epochs
/// are still above the old ones (at up to one start a minute), and readers do not take the new records for repeated
/// ones. Epochs stay below 2^24 until 2056.
///
/// # Errors
/// If the file cannot be read or is damaged.
pub(super) fn before_claims(state_dir: &Path, task_name: &str) -> Result<Epoch, EpochError> {
    let path = state_dir.join("epochs").join(format!("{:016x}", hash64(task_name)));
    let (task, shown) = (task_name.to_owned(), path.display().to_string());
    match std::fs::read_to_string(&path) {
        Ok(text) => match text.trim_end().split_once(' ').map(|(last, name)| (last.parse().ok(), name)) {
            Some((Some(last), name)) if name == task_name => Ok(Epoch::new(last)),
            _ => Err(EpochError::Damaged { task, path: shown, found: text }),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let minutes = EventTime::now().secs().saturating_sub(FIRST_EPOCH_BASE) / 60;
            Ok(Epoch::new(u32::try_from(minutes).unwrap_or_default()))
        }
        Err(error) => Err(EpochError::Io { task, path: shown, error }),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::runtime::Owners;
    use sluice_log::MemoryLog;

    fn store(dir: &Path, content: &str) {
        std::fs::create_dir_all(dir.join("epochs")).unwrap();
        std::fs::write(dir.join("epochs").join(format!("{:016x}", hash64("stratumd"))), content).unwrap();
    }

    #[tokio::test]
    async fn epochs_grow_by_one_from_start_to_start_whatever_the_state_directory_says() {
        let (dir, log) = (tempfile::tempdir().unwrap(), MemoryLog::new());
        let claim = async |name: &str| Owners::new(log.clone(), [1; 16]).claim_source(name, dir.path()).await.unwrap();
        let first = claim("stratumd").await;
        assert!((1..1 << 24).contains(&first.get()), "{first}");
        store(dir.path(), "4000000000 stratumd");
        assert_eq!(claim("stratumd").await, first.next().unwrap());
        assert!(claim("jobmanager").await >= first);
    }

    /// A log that an earlier program has written: its sources go on above their epochs.
    #[tokio::test]
    async fn s1_the_first_claim_is_above_the_epoch_of_an_earlier_program() {
        let (dir, log) = (tempfile::tempdir().unwrap(), MemoryLog::new());
        store(dir.path(), "4000000000 stratumd\n");
        let claimed = Owners::new(log, [1; 16]).claim_source("stratumd", dir.path()).await.unwrap();
        assert_eq!(claimed, Epoch::new(4_000_000_001));
    }

    #[test]
    fn a_damaged_epoch_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        for content in ["", "x stratumd", "7 other", "4294967296 stratumd"] {
            store(dir.path(), content);
            let read = before_claims(dir.path(), "stratumd");
            assert!(matches!(read, Err(EpochError::Damaged { .. })), "{content}");
        }
    }
}
