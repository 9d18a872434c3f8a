//! Where a replay makes its states: beside those of the pool, in whose place they may be put at the end.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{CWD, RenameFlags};
use sluice_state::state_directory;
use tempfile::TempDir;

/// Name of the directory in the state's directory where new states are made.
const BUILDING: &str = "%replay";

/// A place for states.
pub(super) enum Place {
    /// Removed at the end.
    Temporary(TempDir),
    /// Kept.
    Kept(PathBuf),
    /// In the pool's own directory, to be swapped with its states.
    Live { live: PathBuf, building: PathBuf },
}

impl Place {
    /// A temporary one.
    pub(super) fn temporary() -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("sluice-replay-").tempdir();
        Ok(Self::Temporary(dir.context("no temporary directory for the states")?))
    }

    /// A directory of the user's, which must hold no state yet.
    pub(super) fn kept(dir: &Path) -> anyhow::Result<Self> {
        if dir.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
            bail!("{} is not empty: a replay needs a directory of its own", dir.display());
        }
        Ok(Self::Kept(dir.to_owned()))
    }

    /// Beside the states in `live`. What an earlier replay has left there is removed: nobody else may be at it, which the
    /// lock of the log ensures.
    pub(super) fn live(live: &Path) -> anyhow::Result<Self> {
        let building = live.join(BUILDING);
        if building.exists() {
            std::fs::remove_dir_all(&building).with_context(|| format!("clearing {}", building.display()))?;
        }
        Ok(Self::Live { live: live.to_owned(), building })
    }

    /// The directory in which states are made.
    pub(super) fn dir(&self) -> &Path {
        match self {
            Self::Temporary(dir) => dir.path(),
            Self::Kept(dir) => dir,
            Self::Live { building, .. } => building,
        }
    }

    /// Puts the new states of these tasks in the place of the old ones, each in one step; the old ones are removed once
    /// all are there. Does nothing for a place of its own.
    pub(super) fn install(&self, tasks: &[String]) -> anyhow::Result<()> {
        let Self::Live { live, building } = self else { return Ok(()) };
        for task in tasks {
            let (new, old) = (state_directory(building, task), state_directory(live, task));
            let swapped = if old.exists() {
                rustix::fs::renameat_with(CWD, &new, CWD, &old, RenameFlags::EXCHANGE).map_err(Into::into)
            } else {
                std::fs::rename(&new, &old)
            };
            swapped.with_context(|| format!("putting {} in the place of {}", new.display(), old.display()))?;
        }
        // What is swapped survives a loss of power before what it replaces is gone.
        std::fs::File::open(live).and_then(|dir| dir.sync_all()).with_context(|| live.display().to_string())?;
        std::fs::remove_dir_all(building).with_context(|| format!("removing the old states in {}", building.display()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn new_states_take_the_place_of_old_ones() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: PathBuf, text: &str| {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write(dir.path().join(BUILDING).join("left"), "by a replay that was killed");
        let place = Place::live(dir.path()).unwrap();
        assert!(!place.dir().exists());
        write(dir.path().join("a.0/x"), "old");
        write(place.dir().join("a.0/x"), "new");
        write(place.dir().join("b/x"), "new");
        place.install(&["a.0".to_owned(), "b".to_owned()]).unwrap();
        let read = |path: &str| std::fs::read_to_string(dir.path().join(path)).unwrap();
        assert_eq!((read("a.0/x"), read("b/x")), ("new".to_owned(), "new".to_owned()));
        assert!(!place.dir().exists());
    }

    #[test]
    fn a_directory_with_something_in_it_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Place::kept(dir.path()).is_ok());
        std::fs::write(dir.path().join("x"), "").unwrap();
        assert!(Place::kept(dir.path()).is_err());
    }
}
