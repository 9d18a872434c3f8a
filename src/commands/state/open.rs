//! Finding the states that a directory holds.

use std::path::{Path, PathBuf};

use anyhow::Context;
use sluice_state::{StateError, StoredState, states_in};

/// How often a state is read again that seems damaged: beside a running task, files can go between two looks.
const LOOKS: u32 = 3;

/// A state that was found.
pub(super) struct Opened {
    /// Its task, or its directory where that cannot be read.
    pub(super) name: String,
    /// Its directory.
    pub(super) path: PathBuf,
    /// The state, or why it cannot be opened.
    pub(super) state: Result<StoredState, StateError>,
}

impl Opened {
    fn of(path: &Path) -> Self {
        let state = open(path);
        let named = state.as_ref().map(|state| state.task().to_owned()).unwrap_or_default();
        let directory = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let name = if named.is_empty() { directory } else { named };
        Self { name, path: path.to_owned(), state }
    }

    /// Bytes of its files, as far as they can be asked.
    pub(super) fn bytes(&self) -> u64 {
        let files = self.path.read_dir().into_iter().flatten().flatten();
        files.filter_map(|file| Some(file.metadata().ok()?.len())).sum()
    }

    /// What is wrong with it; nothing, if it is in order.
    pub(super) fn check(&self) -> Vec<String> {
        let look = |state: &StoredState| state.check().unwrap_or_else(|error| vec![error.to_string()]);
        let mut faults = match &self.state {
            Ok(state) => look(state),
            Err(error) => vec![error.to_string()],
        };
        for _ in 1..LOOKS {
            if faults.is_empty() {
                break;
            }
            faults = match open(&self.path) {
                Ok(state) => look(&state),
                Err(error) => vec![error.to_string()],
            };
        }
        faults
    }
}

fn open(path: &Path) -> Result<StoredState, StateError> {
    let mut opened = StoredState::open_beside(path);
    for _ in 1..LOOKS {
        if opened.is_ok() {
            break;
        }
        opened = StoredState::open_beside(path);
    }
    opened
}

/// The states in `dir`: it is one, a checkpoint, or a directory with several.
///
/// # Errors
/// If it is nothing of that.
pub(super) fn opened(dir: &Path) -> anyhow::Result<Vec<Opened>> {
    let is_state = |dir: &Path| dir.join("CURRENT").exists();
    if is_state(dir) {
        return Ok(vec![Opened::of(dir)]);
    }
    let database = dir.join("db");
    if is_state(&database) {
        return Ok(vec![Opened::of(&database)]);
    }
    let states = states_in(dir).with_context(|| format!("{} holds no state", dir.display()))?;
    Ok(states.iter().map(|path| Opened::of(path)).collect())
}
