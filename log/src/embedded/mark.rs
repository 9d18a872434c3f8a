//! The durable mark: how far the log was durable, written beside it after each commit.
//!
//! Recovery takes the first broken record of the write-ahead log for its end. After a crash that is right; after damage
//! to an older part of the file it would silently forget acknowledged records. So it is with the manifest: one flipped bit in
//! the length of a record of it, and everything behind is taken for cut off, tables, partitions and topics. So the mark
//! holds the newest write and the end of each partition: a log that has recovered less than its mark has lost something.
//!
//! The mark is written after each sync and is itself never synced: it may be behind after a loss of power, but never
//! ahead. A mark that is damaged or gone is no mark: the log is sound without it, only damage to it may go unseen.
//!
//! Layout, integers little-endian, all of it twice: the sequence number of the newest write (8 bytes); for each partition
//! the hash of its name (8 bytes) and its next offset (8 bytes).

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use sluice_proto::hash64;

use crate::{LogError, Partition};

/// Name of the file in the log's directory.
pub(super) const FILE: &str = "durable.mark";

const HEAD: usize = 16;
/// How often a mark is looked at that is not one.
const LOOKS: u32 = 8;

/// What a log had acknowledged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Marked {
    /// Sequence number of the newest write.
    pub(super) sequence: u64,
    /// By the hash of its name, where the next record of a partition goes.
    pub(super) heads: BTreeMap<u64, u64>,
}

impl Marked {
    /// The mark in `dir`; one of nothing if there is none. Two equal copies, or it is not taken for one; whoever writes it may
    /// be between the two, so it is looked at more than once.
    pub(super) fn read(dir: &Path) -> Self {
        let file = dir.join(FILE);
        for _ in 0..LOOKS {
            match std::fs::read(&file).map(|bytes| Self::decode(&bytes)) {
                Ok(Some(marked)) => return marked,
                Ok(None) => std::thread::sleep(Duration::from_millis(1)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::default(),
                Err(error) => {
                    tracing::warn!(file = %file.display(), %error, "the durable mark cannot be read; damage may go unseen");
                    return Self::default();
                }
            }
        }
        tracing::warn!(file = %file.display(), "the durable mark is damaged; other damage to the log may go unseen");
        Self::default()
    }

    /// What stands for a partition in a mark: the hash of its name.
    pub(super) fn name(partition: &Partition) -> u64 {
        hash64(&partition.to_string())
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (one, other) = bytes.split_at(bytes.len() / 2);
        let (sequence, heads) = one.split_first_chunk()?;
        let (heads, []) = heads.as_chunks::<HEAD>() else { return None };
        let head = |head: &[u8; HEAD]| {
            let (name, next) = head.split_at(HEAD / 2);
            Some((u64::from_le_bytes(name.try_into().ok()?), u64::from_le_bytes(next.try_into().ok()?)))
        };
        let heads: BTreeMap<u64, u64> = heads.iter().map(head).collect::<Option<_>>()?;
        let sequence = u64::from_le_bytes(*sequence);
        // After a loss of power some file systems leave zeros in the place of what was never synced.
        let zeros = sequence == 0 && !heads.is_empty();
        (one == other && !zeros).then_some(Self { sequence, heads })
    }

    /// An error if a partition of the log in `dir`, by the hash of its name, ends before the place where it had ended.
    pub(super) fn check(&self, dir: &Path, ends: &BTreeMap<u64, (Partition, u64)>) -> Result<(), LogError> {
        for (name, marked) in &self.heads {
            let what = match ends.get(name) {
                Some((_, next)) if next >= marked => continue,
                Some((partition, next)) => {
                    format!("{partition} ends before offset {next}, and had ended before {marked}")
                }
                // Its records are there; what says that it belongs to a topic is not.
                None => format!("the topic of a partition that had ended before offset {marked} is missing"),
            };
            return Err(super::store::lost(dir, &what));
        }
        Ok(())
    }

    fn encode(&self, into: &mut Vec<u8>) {
        into.clear();
        for _ in 0..2 {
            into.extend(self.sequence.to_le_bytes());
            for (name, next) in &self.heads {
                into.extend(name.to_le_bytes());
                into.extend(next.to_le_bytes());
            }
        }
    }
}

/// The mark of an open log.
#[derive(Debug)]
pub(super) struct Mark {
    /// `None` once it could not be written.
    file: Option<File>,
    marked: Marked,
    /// What is written; kept for its memory.
    buffer: Vec<u8>,
}

impl Mark {
    /// Opens the mark in `dir` and sets it to `marked`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(super) fn open(dir: &Path, marked: Marked) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(dir.join(FILE))?;
        let mut mark = Self { file: Some(file), marked, buffer: Vec::new() };
        mark.write()?;
        if let Some(file) = &mark.file {
            file.set_len(mark.buffer.len() as u64)?;
        }
        Ok(mark)
    }

    fn write(&mut self) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        self.marked.encode(&mut self.buffer);
        file.write_all_at(&self.buffer, 0)
    }

    /// Moves the mark to `sequence`, and the partitions named by their hash to their next offsets. A mark that cannot be
    /// written is given up with a warning: it stays behind, which is safe, and the log itself is sound.
    pub(super) fn advance(&mut self, sequence: u64, heads: impl IntoIterator<Item = (u64, u64)>) {
        self.marked.sequence = sequence;
        self.marked.heads.extend(heads);
        if let Err(error) = self.write() {
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
        assert_eq!(Marked::read(dir.path()), Marked::default());
        let marked = |sequence, heads: &[(u64, u64)]| Marked { sequence, heads: heads.iter().copied().collect() };
        let mut mark = Mark::open(dir.path(), marked(5, &[(1, 10), (2, 20)])).unwrap();
        assert_eq!(Marked::read(dir.path()), marked(5, &[(1, 10), (2, 20)]));
        mark.advance(77, [(2, 21), (3, 30)]);
        assert_eq!(Marked::read(dir.path()), marked(77, &[(1, 10), (2, 21), (3, 30)]));
        drop(Mark::open(dir.path(), marked(78, &[])).unwrap());
        assert_eq!(Marked::read(dir.path()), marked(78, &[]), "what is longer leaves nothing behind");
    }

    #[test]
    fn a_damaged_mark_is_none() {
        let dir = tempfile::tempdir().unwrap();
        Mark::open(dir.path(), Marked::default()).unwrap().advance(77, [(1, 10)]);
        let whole = std::fs::read(dir.path().join(FILE)).unwrap();
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x10;
            assert_eq!(Marked::decode(&flipped), None);
            assert_eq!(Marked::decode(&whole[..at]), None);
        }
        assert_eq!(Marked::decode(&vec![0; whole.len()]), None, "what a loss of power may leave");
        std::fs::write(dir.path().join(FILE), &whole[1..]).unwrap();
        assert_eq!(Marked::read(dir.path()), Marked::default());
    }
}
