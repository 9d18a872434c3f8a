//! Who writes a log: asked of the lock that its database holds.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;

use rustix::process::{Flock, FlockOffsetType, FlockType, fcntl_getlk};

use crate::LogError;

/// Name of the file that the database locks.
const LOCK: &str = "LOCK";

/// Whether another process has the log in `dir` open for writing. The system frees its lock with the process, however
/// that ends. Only asks; unlike an attempt to open the log, it leaves no trace in the directory.
///
/// Not to be called by a process that has the log open itself: closing the file would free the process's own lock.
///
/// # Errors
/// [`LogError::Storage`] if the file cannot be asked.
pub fn is_written(dir: &Path) -> Result<bool, LogError> {
    let path = dir.join(LOCK);
    let failed = |error: std::io::Error| LogError::Storage(format!("{}: {error}", path.display()));
    let file = match File::options().read(true).write(true).open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed(error)),
    };
    let whole = Flock { start: 0, length: 0, pid: None, typ: FlockType::WriteLock, offset_type: FlockOffsetType::Set };
    fcntl_getlk(&file, &whole).map(|holder| holder.is_some()).map_err(|error| failed(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_is_not_there_or_not_open_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_written(dir.path()).unwrap());
        drop(crate::EmbeddedLog::open(crate::EmbeddedOptions::new(dir.path())).unwrap());
        assert!(!is_written(dir.path()).unwrap());
    }
}
