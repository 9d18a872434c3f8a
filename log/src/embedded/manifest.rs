//! A look at the manifest before RocksDB reads it.
//!
//! RocksDB 11.8 reads for ever where a record's type says that its file was recycled and the first record's did not
//! (`log::Reader::ReadPhysicalRecord` gives the record back without taking it). Manifests are never recycled, so one
//! flipped bit in one would keep a log from opening without a word.

use std::path::Path;

use crate::LogError;

/// Bytes of a block; no record's header stands across the end of one.
const BLOCK: usize = 32 << 10;
/// Checksum (4 bytes), length (2 bytes, little-endian), type.
const HEADER: usize = 7;
/// Types of records: whole, first, middle and last parts.
const TYPES: std::ops::RangeInclusive<u8> = 1..=4;

/// Refuses a manifest of the database in `dir` with a record that is none. What it holds RocksDB checks by itself.
///
/// # Errors
/// [`LogError::Corrupt`] with the place; [`LogError::Storage`] if a file cannot be read.
pub(super) fn check(dir: &Path) -> Result<(), LogError> {
    let read = |name: &str| {
        let path = dir.join(name);
        std::fs::read(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => LogError::Corrupt(format!("{} is missing", path.display())),
            _ => LogError::Storage(format!("{}: {error}", path.display())),
        })
    };
    let current = read("CURRENT")?;
    let name = std::str::from_utf8(&current).ok().and_then(|text| text.strip_suffix('\n'));
    let Some(name) = name.filter(|name| name.starts_with("MANIFEST-") && !name.contains(['/', '\0'])) else {
        return Err(LogError::Corrupt(format!("{} names no manifest", dir.join("CURRENT").display())));
    };
    match wrong_type(&read(name)?) {
        None => Ok(()),
        Some((at, found)) => Err(LogError::Corrupt(format!(
            "{}: a record of type {found} at byte {at}; restore the directory from a copy",
            dir.join(name).display()
        ))),
    }
}

/// Where a record has a type that there is not, and the type. A record that is cut is the end, as after a crash; so are
/// zeros that a file system leaves.
fn wrong_type(manifest: &[u8]) -> Option<(usize, u8)> {
    for (number, block) in manifest.chunks(BLOCK).enumerate() {
        let mut at = 0;
        while let Some(&[_, _, _, _, low, high, kind]) = block.get(at..at + HEADER) {
            let length = u16::from_le_bytes([low, high]);
            if kind == 0 && length == 0 {
                break;
            }
            if !TYPES.contains(&kind) {
                return Some((number * BLOCK + at, kind));
            }
            at += HEADER + usize::from(length);
        }
    }
    None
}

#[cfg(test)]
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
        let mut sound = [record(1, 30), record(1, 0), record(2, (BLOCK - 2 * HEADER - 30 - HEADER) as u16)].concat();
        assert_eq!(sound.len(), BLOCK);
        sound.extend(record(4, 40));
        assert_eq!(wrong_type(&sound), None);
        assert_eq!(wrong_type(&sound[..sound.len() - 1]), None);
        assert_eq!(wrong_type(&[&sound[..], &[0; 50]].concat()), None);
        for kind in [5, 8, 11, 131] {
            assert_eq!(wrong_type(&[&sound[..], &record(kind, 3)].concat()), Some((BLOCK + HEADER + 40, kind)));
        }
    }

    #[test]
    fn a_manifest_that_rocksdb_would_read_for_ever_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut options = rocksdb::Options::default();
        options.create_if_missing(true);
        drop(rocksdb::DB::open(&options, dir.path()).unwrap());
        check(dir.path()).unwrap();
        let name = std::fs::read_to_string(dir.path().join("CURRENT")).unwrap();
        let path = dir.path().join(name.trim());
        let mut bytes = std::fs::read(&path).unwrap();
        let second = HEADER + usize::from(u16::from_le_bytes([bytes[4], bytes[5]]));
        bytes[second + 6] = 131;
        std::fs::write(&path, bytes).unwrap();
        let error = check(dir.path()).unwrap_err().to_string();
        assert!(error.contains("type 131") && error.contains(&path.display().to_string()), "{error}");
        std::fs::write(dir.path().join("CURRENT"), "MANIFEST/../x\n").unwrap();
        assert!(check(dir.path()).unwrap_err().to_string().contains("names no manifest"));
    }
}
