//! Taking a checkpoint back.

use std::path::{Path, PathBuf};

use super::{Checkpoints, Found, Manifest, UNFINISHED, files, unusable, verified};
use crate::env::directory_name;
use crate::rocks;
use crate::types::StateError;

/// What a restoration did.
#[derive(Clone, Debug)]
pub struct Restored {
    /// The checkpoint that the state is now.
    pub manifest: Manifest,
    /// Where the state is that was there before.
    pub aside: Option<PathBuf>,
}

/// Makes a checkpoint out of `from` the state of its task in the state's directory `state`: number `sequence`, or the
/// newest one that is in order, and that `fits` says nothing against. No process may have the state open; what is there
/// is moved aside.
///
/// # Errors
/// If there is none that is in order, with the reasons; if the state is in use; if the storage fails.
pub fn restore(
    from: &Checkpoints,
    sequence: Option<u64>,
    state: &Path,
    fits: impl Fn(&Manifest) -> Option<String>,
) -> Result<Restored, StateError> {
    let mut faults = Vec::new();
    for found in from.list()?.into_iter().filter(|found| sequence.is_none_or(|only| only == found.sequence)) {
        let manifest = match usable(&found, &fits) {
            Ok(manifest) => manifest,
            Err(error) => {
                faults.push(error.to_string());
                continue;
            }
        };
        let live = state.join(directory_name(&manifest.task));
        if rocks::is_locked(&live) {
            let what = format!("{} is in use: stop the pool before its state is replaced", live.display());
            return Err(StateError::Storage(what));
        }
        let link = from == &Checkpoints::of(state, &manifest.task);
        let unfinished = prepare(&found, &manifest, &live, link)?;
        let aside = if live.exists() { Some(move_aside(&live)?) } else { None };
        files::rename(&unfinished, &live)?;
        return Ok(Restored { manifest, aside });
    }
    if faults.is_empty() {
        faults.push("there is no such checkpoint".to_owned());
    }
    Err(unusable(from.dir(), faults))
}

/// A checkpoint that is in order, and that `fits` says nothing against.
fn usable(found: &Found, fits: impl Fn(&Manifest) -> Option<String>) -> Result<Manifest, StateError> {
    let manifest = verified(found)?;
    match fits(&manifest) {
        Some(what) => Err(unusable(&found.path, vec![what])),
        None => Ok(manifest),
    }
}

/// Copies a verified checkpoint beside `live`.
fn prepare(found: &Found, manifest: &Manifest, live: &Path, link: bool) -> Result<PathBuf, StateError> {
    let mut unfinished = live.as_os_str().to_owned();
    unfinished.push(UNFINISHED);
    let unfinished = PathBuf::from(unfinished);
    files::create_dir(&unfinished)?;
    files::copy(&found.database(), &unfinished, &manifest.files, link)?;
    Ok(unfinished)
}

/// Moves the state in `live` out of the way, and tells where it is now.
pub(crate) fn move_aside(live: &Path) -> Result<PathBuf, StateError> {
    let place = |number: u32| {
        let mut name = live.as_os_str().to_owned();
        name.push(format!("%aside-{number}"));
        PathBuf::from(name)
    };
    let Some(aside) = (1..u32::MAX).map(place).find(|path| !path.exists()) else {
        return Err(StateError::Storage(format!("{} has been moved aside too often", live.display())));
    };
    files::rename(live, &aside)?;
    Ok(aside)
}

/// Makes the newest checkpoint that is in order, and that `fits` says nothing against, the state in `live`, which does
/// not exist. Each one that cannot be used is logged with the reason. Tells whether there was one.
///
/// # Errors
/// If the storage fails.
pub(crate) fn install_newest(
    checkpoints: &Checkpoints,
    live: &Path,
    fits: impl Fn(&Manifest) -> Option<String>,
) -> Result<Option<Manifest>, StateError> {
    for found in checkpoints.list()? {
        match usable(&found, &fits) {
            Ok(manifest) => {
                let unfinished = prepare(&found, &manifest, live, true)?;
                files::rename(&unfinished, live)?;
                return Ok(Some(manifest));
            }
            Err(reason) => tracing::warn!(%reason, "a checkpoint is passed over"),
        }
    }
    Ok(None)
}
