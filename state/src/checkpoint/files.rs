//! Files of checkpoints: hashed, copied, made durable.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use xxhash_rust::xxh3::Xxh3;

use super::manifest::{FileEntry, hex};
use crate::types::StateError;

/// Bytes read at a time.
const CHUNK: usize = 1 << 20;

pub(super) fn failed(what: &str, path: &Path, error: &io::Error) -> StateError {
    StateError::Storage(format!("cannot {what} {}: {error}", path.display()))
}

/// Length and hash of a file.
pub(super) fn hash(path: &Path) -> io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    let (mut hasher, mut length) = (Xxh3::new(), 0);
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = file.read(&mut chunk)?;
        if read == 0 {
            return Ok((length, hex(hasher.digest128())));
        }
        hasher.update(&chunk[..read]);
        length += read as u64;
    }
}

/// Names of the files in `dir`, sorted.
pub(super) fn names(dir: &Path) -> Result<Vec<String>, StateError> {
    let listed = || -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in dir.read_dir()? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    };
    listed().map_err(|error| failed("list", dir, &error))
}

/// All files in `dir` with lengths and hashes, each made durable.
pub(super) fn inventory(dir: &Path) -> Result<Vec<FileEntry>, StateError> {
    let entry = |name: String| {
        let path = dir.join(&name);
        sync(&path)?;
        let (bytes, hash) = hash(&path).map_err(|error| failed("read", &path, &error))?;
        Ok(FileEntry { name, bytes, hash })
    };
    names(dir)?.into_iter().map(entry).collect()
}

/// What differs between the files in `dir` and those that were there; nothing, if nothing does.
pub(super) fn differences(dir: &Path, files: &[FileEntry]) -> Vec<String> {
    let mut faults = Vec::new();
    for file in files {
        match hash(&dir.join(&file.name)) {
            Err(error) => faults.push(format!("{} cannot be read: {error}", file.name)),
            Ok((bytes, _)) if bytes != file.bytes => {
                faults.push(format!("{} has {bytes} bytes, it had {}", file.name, file.bytes));
            }
            Ok((_, hash)) if hash != file.hash => faults.push(format!("{} has other bytes than it had", file.name)),
            Ok(_) => {}
        }
    }
    match names(dir) {
        Ok(names) => {
            let strange = names.iter().filter(|name| !files.iter().any(|file| file.name == **name));
            faults.extend(strange.map(|name| format!("{name} does not belong to it")));
        }
        Err(error) => faults.push(error.to_string()),
    }
    faults
}

/// Makes a file or directory durable.
pub(super) fn sync(path: &Path) -> Result<(), StateError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(|error| failed("sync", path, &error))
}

/// Creates the empty directory `dir`, without what an interrupted attempt has left there.
pub(super) fn create_dir(dir: &Path) -> Result<(), StateError> {
    remove_dir(dir)?;
    std::fs::create_dir_all(dir).map_err(|error| failed("create", dir, &error))
}

/// Removes `dir` with all in it, if it is there.
pub(super) fn remove_dir(dir: &Path) -> Result<(), StateError> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", dir, &error)),
        _ => Ok(()),
    }
}

/// Moves `from` to `to` and makes that durable.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), StateError> {
    std::fs::rename(from, to).map_err(|error| failed("move", from, &error))?;
    to.parent().map_or(Ok(()), sync)
}

/// Copies the `files` of the directory `from` into the directory `to`, durably. Tables, which never change, may be
/// linked where both are on the same file system.
pub(super) fn copy(from: &Path, to: &Path, files: &[FileEntry], link: bool) -> Result<(), StateError> {
    for file in files {
        let (source, target) = (from.join(&file.name), to.join(&file.name));
        let linked = link && file.name.ends_with(".sst") && std::fs::hard_link(&source, &target).is_ok();
        if !linked {
            std::fs::copy(&source, &target).map_err(|error| failed("copy", &source, &error))?;
            sync(&target)?;
        }
    }
    sync(to)
}
