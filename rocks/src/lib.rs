//! A look at the files of a database before RocksDB reads them: for the log and for states.
//!
//! RocksDB 11.8 reads for ever where a record's type says that its file was recycled and the first record's did not
//! (`log::Reader::ReadPhysicalRecord` gives the record back without taking it). Manifests are never recycled, so one
//! flipped bit in one would keep a log or a state from opening without a word.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::Path;

/// Why RocksDB must not read a database.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// The manifest, or the file that names it, is damaged.
    #[error("{0}")]
    Damaged(String),
    /// A file cannot be read.
    #[error("{0}")]
    Storage(String),
}

/// Bytes of a block; no record's header stands across the end of one.
const BLOCK: usize = 32 << 10;
/// Checksum (4 bytes), length (2 bytes, little-endian), type.
const HEADER: usize = 7;
/// Types of records: whole, first, middle and last parts.
const TYPES: std::ops::RangeInclusive<u8> = 1..=4;
/// Types of records of recycled files.
const RECYCLED: [u8; 6] = [5, 6, 7, 8, 11, 131];

/// Refuses a manifest of the database in `dir` with a record that is none. What it holds RocksDB checks by itself.
///
/// # Errors
/// [`ManifestError::Damaged`] with the place; [`ManifestError::Storage`] if a file cannot be read.
pub fn check_manifest(dir: &Path) -> Result<(), ManifestError> {
    let failed = |path: &Path, error: io::Error| match error.kind() {
        ErrorKind::NotFound => ManifestError::Damaged(format!("{} is missing", path.display())),
        _ => ManifestError::Storage(format!("{}: {error}", path.display())),
    };
    let path = dir.join("CURRENT");
    let current = std::fs::read(&path).map_err(|error| failed(&path, error))?;
    let name = std::str::from_utf8(&current).ok().and_then(|text| text.strip_suffix('\n'));
    let Some(name) = name.filter(|name| name.starts_with("MANIFEST-") && !name.contains(['/', '\0'])) else {
        return Err(ManifestError::Damaged(format!("{} names no manifest", path.display())));
    };
    let path = dir.join(name);
    let wrong = File::open(&path).and_then(|file| wrong_type(file, |kind| !TYPES.contains(&kind)));
    match wrong.map_err(|error| failed(&path, error))? {
        None => Ok(()),
        Some((at, found)) => Err(ManifestError::Damaged(format!(
            "{}: a record of type {found} at byte {at}; restore the directory from a copy",
            path.display()
        ))),
    }
}

/// Refuses a write-ahead log of the database in `dir` with a record that says its file was recycled: for databases whose
/// write-ahead logs never are. All other damage RocksDB tells by itself.
///
/// # Errors
/// As [`check_manifest`].
pub fn check_unrecycled_logs(dir: &Path) -> Result<(), ManifestError> {
    let failed = |path: &Path, error: io::Error| ManifestError::Storage(format!("{}: {error}", path.display()));
    for entry in dir.read_dir().map_err(|error| failed(dir, error))? {
        let path = entry.map_err(|error| failed(dir, error))?.path();
        if path.extension().is_none_or(|extension| extension != "log") {
            continue;
        }
        let wrong = match File::open(&path).and_then(|file| wrong_type(file, |kind| RECYCLED.contains(&kind))) {
            // Its owner has removed it since.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            other => other.map_err(|error| failed(&path, error))?,
        };
        if let Some((at, found)) = wrong {
            let what = format!("{}: a record of type {found} at byte {at}, as of a recycled file", path.display());
            return Err(ManifestError::Damaged(what));
        }
    }
    Ok(())
}

/// Where a record has a wrong type, and the type. A record that is cut is the end, as after a crash; so are
/// zeros that a file system leaves. A block at a time is in memory.
fn wrong_type(mut file: impl Read, is_wrong: impl Fn(u8) -> bool) -> io::Result<Option<(u64, u8)>> {
    let (mut block, mut begin) = (Vec::with_capacity(BLOCK), 0);
    loop {
        block.clear();
        if file.by_ref().take(BLOCK as u64).read_to_end(&mut block)? == 0 {
            return Ok(None);
        }
        let mut at = 0;
        while let Some(&[_, _, _, _, low, high, kind]) = block.get(at..at + HEADER) {
            let length = u16::from_le_bytes([low, high]);
            if kind == 0 && length == 0 {
                break;
            }
            if is_wrong(kind) {
                return Ok(Some((begin + at as u64, kind)));
            }
            at += HEADER + usize::from(length);
        }
        begin += block.len() as u64;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn record(kind: u8, length: u16) -> Vec<u8> {
        let mut record = vec![9; HEADER + usize::from(length)];
        record[4..6].copy_from_slice(&length.to_le_bytes());
        record[6] = kind;
        record
    }

    #[test]
    fn a_record_that_is_none_is_found_and_a_cut_one_is_the_end() {
        let wrong = |file: &[u8]| wrong_type(file, |kind| !TYPES.contains(&kind)).unwrap();
        let mut sound = [record(1, 30), record(1, 0), record(2, (BLOCK - 2 * HEADER - 30 - HEADER) as u16)].concat();
        assert_eq!(sound.len(), BLOCK);
        sound.extend(record(4, 40));
        assert_eq!(wrong(&sound), None);
        assert_eq!(wrong(&sound[..sound.len() - 1]), None);
        assert_eq!(wrong(&[&sound[..], &[0; 50]].concat()), None);
        for kind in [5, 8, 11, 131] {
            assert_eq!(wrong(&[&sound[..], &record(kind, 3)].concat()), Some(((BLOCK + HEADER + 40) as u64, kind)));
        }
    }

    #[test]
    fn a_manifest_that_rocksdb_would_read_for_ever_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("MANIFEST-000005");
        std::fs::write(dir.path().join("CURRENT"), "MANIFEST-000005\n").unwrap();
        let missing = check_manifest(dir.path()).unwrap_err().to_string();
        assert!(missing.contains("is missing"), "{missing}");
        std::fs::write(&path, [record(1, 30), record(1, 7)].concat()).unwrap();
        check_manifest(dir.path()).unwrap();
        std::fs::write(&path, [record(1, 30), record(131, 7)].concat()).unwrap();
        let error = check_manifest(dir.path()).unwrap_err().to_string();
        assert!(error.contains("type 131") && error.contains(&path.display().to_string()), "{error}");
        std::fs::write(dir.path().join("CURRENT"), "MANIFEST/../x\n").unwrap();
        assert!(check_manifest(dir.path()).unwrap_err().to_string().contains("names no manifest"));
    }

    #[test]
    fn a_write_ahead_log_that_says_it_was_recycled_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("000007.log");
        for (kind, refused) in [(1, false), (4, false), (9, false), (5, true), (131, true)] {
            std::fs::write(&path, [record(1, 30), record(kind, 7)].concat()).unwrap();
            assert_eq!(check_unrecycled_logs(dir.path()).is_err(), refused, "{kind}");
        }
    }
}
