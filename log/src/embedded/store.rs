//! The database under the log: what is kept under which key.
//!
//! - Column family `TOPIC/PARTITION`: the offset of a chunk's first record (8 bytes, big-endian) -> the chunk.
//! - Column family `default`: `log` -> version of this layout (1 byte) and the log's UUID (16 bytes);
//!   `topic/NAME` -> its settings; `genesis/NAME/PARTITION` -> the genesis record; `start/NAME/PARTITION` -> the first
//!   offset that is still there (8 bytes, big-endian).
//!
//! The genesis record stands apart so that whole files of a partition can be removed from its beginning.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rocksdb::{
    BoundColumnFamily, Cache, ColumnFamilyDescriptor, DBRawIteratorWithThreadMode, DBWithThreadMode, FlushOptions,
    IteratorMode, MultiThreaded, Options, ReadOptions, WriteBatch, WriteOptions,
};
use sluice_proto::hash64;
use sluice_rocks::ManifestError;

use super::mark::Marked;
use super::{EmbeddedOptions, tuning};
use crate::chunk::{Chunk, Head, Header, span, split};
use crate::{LogError, Partition, Record, Retention, TopicInfo, check_genesis, genesis_record, new_uuid};

pub(super) type Database = DBWithThreadMode<MultiThreaded>;
type Iter<'a> = DBRawIteratorWithThreadMode<'a, Database>;

const LAYOUT: u8 = 1;
const LOG: &[u8] = b"log";
const DEFAULT: &str = "default";

/// What a partition was found to hold when the log was opened.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) partition: Partition,
    pub(super) genesis: Bytes,
    pub(super) start: u64,
    pub(super) head: Head,
}

/// What retention has to know of a chunk.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChunkInfo {
    pub(super) first: u64,
    pub(super) end: u64,
    pub(super) time_ms: u64,
    pub(super) position: u64,
}

/// The database.
pub(super) struct Store {
    db: Database,
    dir: PathBuf,
    partition_options: Options,
    write_buffer_bytes: usize,
    uuid: [u8; 16],
}

impl Store {
    /// Opens or creates the log in `options.dir`.
    pub(super) fn open(options: &EmbeddedOptions) -> Result<Self, LogError> {
        let dir = options.dir.clone();
        let families = prepare(&dir)?;
        let cache = options.block_cache.clone().unwrap_or_else(|| Cache::new_lru_cache(options.block_cache_bytes));
        let partition_options = tuning::partition(options, &cache);
        let mut db_options = tuning::database(options);
        db_options.create_if_missing(families.is_none());
        let names = families.unwrap_or_else(|| vec![DEFAULT.into()]);
        let marked = Marked::read(&dir);
        // RocksDB removes the files of what is not in its manifest, so this comes first.
        check_names(&dir, &names, &marked)?;
        let descriptors = descriptors(&names, &partition_options, options.write_buffer_bytes);
        let db = Database::open_cf_descriptors(&db_options, &dir, descriptors).map_err(|e| open_error(&dir, &e))?;
        // Before anything is looked for in what was recovered: a log without its beginning looks like a new one.
        let (recovered, marked) = (db.latest_sequence_number(), marked.sequence);
        if recovered < marked {
            let what = format!("it recovered up to write {recovered} but had acknowledged write {marked}");
            return Err(lost(&dir, &what));
        }
        let uuid = identity(&db, &dir, &names, options.uuid)?;
        Ok(Self { db, dir, partition_options, write_buffer_bytes: options.write_buffer_bytes, uuid })
    }

    /// Opens the log in `dir` beside the process that writes it. `scratch` is a directory for RocksDB's own notes.
    pub(super) fn open_secondary(options: &EmbeddedOptions, scratch: &Path) -> Result<Self, LogError> {
        let dir = options.dir.clone();
        let Some(names) = existing(&dir)? else {
            return Err(LogError::Storage(format!("there is no log in {}", dir.display())));
        };
        let cache = Cache::new_lru_cache(options.block_cache_bytes);
        let partition_options = tuning::partition(options, &cache);
        let mut db_options = tuning::database(options);
        // A secondary must hold every file open, since the primary may remove any.
        db_options.set_max_open_files(-1);
        let descriptors = descriptors(&names, &partition_options, options.write_buffer_bytes);
        let db = Database::open_cf_descriptors_as_secondary(&db_options, dir.as_path(), scratch, descriptors)
            .map_err(|e| open_error(&dir, &e))?;
        let uuid = read_identity(&db, &dir)?.ok_or_else(|| not_a_log(&dir))?;
        Ok(Self { db, dir, partition_options, write_buffer_bytes: options.write_buffer_bytes, uuid })
    }

    /// Identity of the log.
    pub(super) fn uuid(&self) -> [u8; 16] {
        self.uuid
    }

    /// Its directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The newest sequence number.
    pub(super) fn sequence(&self) -> u64 {
        self.db.latest_sequence_number()
    }

    /// For a secondary: takes over what the primary has written since.
    pub(super) fn catch_up(&self) -> Result<(), LogError> {
        self.db.try_catch_up_with_primary().map_err(|e| self.error(&e))
    }

    fn error(&self, error: &rocksdb::Error) -> LogError {
        match error.kind() {
            rocksdb::ErrorKind::Corruption => LogError::Corrupt(format!("{}: {error}", self.dir.display())),
            _ => LogError::Storage(format!("{}: {error}", self.dir.display())),
        }
    }

    fn family(&self, of: &Partition) -> Result<Arc<BoundColumnFamily<'_>>, LogError> {
        let name = of.to_string();
        self.db.cf_handle(&name).ok_or_else(|| LogError::Corrupt(format!("{}: {name} is missing", self.dir.display())))
    }

    /// All topics.
    pub(super) fn topics(&self) -> Result<Vec<TopicInfo>, LogError> {
        let mut topics = Vec::new();
        for entry in self.db.iterator(IteratorMode::From(b"topic/", rocksdb::Direction::Forward)) {
            let (key, value) = entry.map_err(|e| self.error(&e))?;
            let Some(name) = key.strip_prefix(b"topic/") else { break };
            topics.push(read_topic(name, &value).ok_or_else(|| {
                LogError::Corrupt(format!(
                    "{}: settings of topic {}",
                    self.dir.display(),
                    String::from_utf8_lossy(name)
                ))
            })?);
        }
        Ok(topics)
    }

    /// What a partition of a topic with `partitions` of them holds.
    pub(super) fn find(&self, partition: Partition, partitions: u32) -> Result<Found, LogError> {
        let genesis = self.genesis(&partition)?;
        check_genesis(genesis.clone(), self.uuid, &partition, partitions)?;
        let start = self.start(&partition)?;
        let head = self.head(&partition)?;
        Ok(Found { partition, genesis, start, head })
    }

    /// The genesis record of a partition.
    pub(super) fn genesis(&self, of: &Partition) -> Result<Bytes, LogError> {
        let genesis = self.get(&format!("genesis/{of}"))?;
        genesis.ok_or_else(|| LogError::Corrupt(format!("{}: {of} has no genesis record", self.dir.display())))
    }

    fn get(&self, key: &str) -> Result<Option<Bytes>, LogError> {
        Ok(self.db.get(key).map_err(|e| self.error(&e))?.map(Bytes::from))
    }

    /// The first offset of a partition that is still there.
    pub(super) fn start(&self, of: &Partition) -> Result<u64, LogError> {
        match self.get(&format!("start/{of}"))? {
            None => Ok(0),
            Some(value) => match value.as_ref().try_into() {
                Ok(bytes) => Ok(u64::from_be_bytes(bytes)),
                Err(_) => Err(LogError::Corrupt(format!("{}: start of {of}", self.dir.display()))),
            },
        }
    }

    /// Where the next record of a partition goes. The genesis record counts as a record, but not its bytes.
    pub(super) fn head(&self, of: &Partition) -> Result<Head, LogError> {
        let mut iter = self.iter(of, ReadOptions::default())?;
        iter.seek_to_last();
        match self.entry(of, &iter)? {
            None => Ok(Head { next: 1, ..Head::EMPTY }),
            Some((first, data)) => Head::behind(first, data).map_err(|e| self.bad_chunk(of, first, &e)),
        }
    }

    fn bad_chunk(&self, of: &Partition, first: u64, error: &dyn std::fmt::Display) -> LogError {
        LogError::Corrupt(format!("{}: {of} at offset {first}: {error}", self.dir.display()))
    }

    fn iter(&self, of: &Partition, options: ReadOptions) -> Result<Iter<'_>, LogError> {
        Ok(self.db.raw_iterator_cf_opt(&self.family(of)?, options))
    }

    /// The chunk under the iterator, if there is one.
    fn entry<'a>(&self, of: &Partition, iter: &'a Iter<'_>) -> Result<Option<(u64, &'a [u8])>, LogError> {
        iter.status().map_err(|e| self.error(&e))?;
        let Some((key, value)) = iter.item() else { return Ok(None) };
        let key = key.try_into().map_err(|_| LogError::Corrupt(format!("{}: a key of {of}", self.dir.display())))?;
        Ok(Some((u64::from_be_bytes(key), value)))
    }

    /// Makes the settings of a topic durable.
    pub(super) fn put_topic(&self, info: &TopicInfo) -> Result<(), LogError> {
        self.db.put_opt(topic_key(info), write_topic(info), &synced()).map_err(|e| self.error(&e))
    }

    /// Creates a topic: its column families, then its settings and all its genesis records in one write. Column
    /// families that a crash left without a topic are used again.
    pub(super) fn create_topic(&self, info: &TopicInfo) -> Result<Vec<Found>, LogError> {
        let mut batch = WriteBatch::default();
        let mut created = Vec::new();
        for partition in info.all() {
            let name = partition.to_string();
            if self.db.cf_handle(&name).is_none() {
                self.db
                    .create_cf(&name, &tuning::family(&self.partition_options, &name, self.write_buffer_bytes))
                    .map_err(|e| self.error(&e))?;
            }
            let genesis = genesis_record(self.uuid, &partition, info.partitions);
            batch.put(format!("genesis/{partition}"), &genesis);
            created.push(Found { partition, genesis, start: 0, head: Head { next: 1, ..Head::EMPTY } });
        }
        batch.put(topic_key(info), write_topic(info));
        self.db.write_opt(batch, &synced()).map_err(|e| self.error(&e))?;
        Ok(created)
    }

    /// Makes chunks durable, all of them or none.
    pub(super) fn write<'a>(&self, chunks: impl Iterator<Item = (&'a Partition, &'a Chunk)>) -> Result<(), LogError> {
        let mut batch = WriteBatch::default();
        for (partition, chunk) in chunks {
            batch.put_cf(&self.family(partition)?, chunk.first.to_be_bytes(), &chunk.data);
        }
        self.db.write_opt(batch, &synced()).map_err(|e| self.error(&e))
    }

    /// Adds the records of `of` from `from` on and before `end` to `into`, up to about `max_bytes` and at least one.
    /// Stops before a gap: where `from` itself is gone, nothing is added.
    pub(super) fn read(
        &self,
        of: &Partition,
        from: u64,
        end: u64,
        max_bytes: usize,
        into: &mut Vec<Record>,
    ) -> Result<(), LogError> {
        let mut options = ReadOptions::default();
        // Who reads old records reads them once: they would only push others' blocks out of the cache.
        options.fill_cache(false);
        options.set_readahead_size(max_bytes.clamp(64 << 10, 1 << 20));
        options.set_iterate_upper_bound(end.to_be_bytes());
        let mut iter = self.iter(of, options)?;
        iter.seek_for_prev(from.to_be_bytes());
        let (mut at, mut left) = (from, max_bytes);
        while at < end {
            let Some((first, data)) = self.entry(of, &iter)? else { break };
            let bad = |e| self.bad_chunk(of, first, &e);
            let count = Header::read(data).map_err(bad)?.count;
            if first > at || first + u64::from(count) <= at {
                break;
            }
            let skip = u32::try_from(at - first).unwrap_or(u32::MAX);
            let span = span(data, skip, left).map_err(bad)?;
            let taken = split(&Bytes::copy_from_slice(&data[span]), at, into).map_err(bad)?;
            at = into.last().map_or(at, |r| r.offset.get() + 1);
            left = left.saturating_sub(taken);
            if left == 0 || at < first + u64::from(count) {
                break;
            }
            iter.next();
        }
        Ok(())
    }

    /// The chunk that holds `offset`.
    pub(super) fn chunk_at(&self, of: &Partition, offset: u64) -> Result<Option<ChunkInfo>, LogError> {
        let mut options = ReadOptions::default();
        options.fill_cache(false);
        let mut iter = self.iter(of, options)?;
        iter.seek_for_prev(offset.to_be_bytes());
        let Some((first, data)) = self.entry(of, &iter)? else { return Ok(None) };
        let header = Header::read(data).map_err(|e| self.bad_chunk(of, first, &e))?;
        let end = first + u64::from(header.count);
        Ok((offset < end).then_some(ChunkInfo { first, end, time_ms: header.time_ms, position: header.position }))
    }

    /// Makes the first offset of a partition durable, before anything is removed.
    pub(super) fn put_start(&self, of: &Partition, start: u64) -> Result<(), LogError> {
        self.db.put_opt(format!("start/{of}"), start.to_be_bytes(), &synced()).map_err(|e| self.error(&e))
    }

    /// Removes the files that hold only records before `start`. What shares a file with newer records goes with them
    /// later. No range tombstone is written: it would overlap every file of the partition, and so make RocksDB rewrite
    /// them all.
    pub(super) fn remove_before(&self, of: &Partition, start: u64) -> Result<(), LogError> {
        let Some(chunk) = self.chunk_at(of, start)? else { return Ok(()) };
        let Some(last) = chunk.first.checked_sub(1) else { return Ok(()) };
        let family = self.family(of)?;
        let removed = self.db.delete_file_in_range_cf(&family, 0_u64.to_be_bytes(), last.to_be_bytes());
        removed.map_err(|e| self.error(&e))
    }

    /// Writes all memtables out, so that the next opening has nothing to recover.
    pub(super) fn flush(&self, partitions: &[Partition]) -> Result<(), LogError> {
        let handles = partitions.iter().map(|p| self.family(p)).collect::<Result<Vec<_>, _>>()?;
        let mut families: Vec<_> = handles.iter().collect();
        let default = self.db.cf_handle(DEFAULT);
        families.extend(&default);
        self.db.flush_cfs_opt(&families, &FlushOptions::default()).map_err(|e| self.error(&e))
    }
}

/// The column families of these names, each with the options of its own.
fn descriptors<'a>(
    names: &'a [String],
    partition: &'a Options,
    write_buffer_bytes: usize,
) -> impl Iterator<Item = ColumnFamilyDescriptor> + 'a {
    let family = move |name| tuning::family(partition, name, write_buffer_bytes);
    names.iter().map(move |name| ColumnFamilyDescriptor::new(name, family(name)))
}

fn synced() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.set_sync(true);
    options
}

fn topic_key(info: &TopicInfo) -> String {
    format!("topic/{}", info.name)
}

/// `PARTITIONS AGE BYTES`, the age in nanoseconds, `-` for no bound.
fn write_topic(info: &TopicInfo) -> String {
    let show = |bound: Option<u64>| bound.map_or_else(|| "-".to_owned(), |b| b.to_string());
    let age = info.retention.age.map(|age| u64::try_from(age.as_nanos()).unwrap_or(u64::MAX));
    format!("{} {} {}", info.partitions, show(age), show(info.retention.bytes))
}

fn read_topic(name: &[u8], value: &[u8]) -> Option<TopicInfo> {
    let bound = |text: &str| if text == "-" { Some(None) } else { text.parse().ok().map(Some) };
    let mut words = std::str::from_utf8(value).ok()?.split(' ');
    let partitions = words.next()?.parse().ok()?;
    let age = bound(words.next()?)?.map(Duration::from_nanos);
    let bytes = bound(words.next()?)?;
    if words.next().is_some() {
        return None;
    }
    Some(TopicInfo { name: std::str::from_utf8(name).ok()?.into(), partitions, retention: Retention { age, bytes } })
}

/// Makes the directory; the column families of the log in it, or `None` if there is no log yet.
fn prepare(dir: &Path) -> Result<Option<Vec<String>>, LogError> {
    let failed = |e: std::io::Error| LogError::Storage(format!("{}: {e}", dir.display()));
    std::fs::create_dir_all(dir).map_err(failed)?;
    if let Some(names) = existing(dir)? {
        return Ok(Some(names));
    }
    let mut lost = dir.join(super::mark::FILE).exists();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        lost |= entry.map_err(failed)?.path().extension().is_some_and(|e| e == "sst");
    }
    if lost {
        return Err(LogError::Corrupt(format!(
            "{} holds records but its file CURRENT is missing; restore the directory, or move it away to begin a new log",
            dir.display()
        )));
    }
    // The new directory itself must survive a loss of power.
    if let Some(parent) = dir.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::File::open(parent).and_then(|d| d.sync_all()).map_err(failed)?;
    }
    Ok(None)
}

/// The column families of the log in `dir`, if there is a database. One of another program is refused here, before
/// anything in it is touched.
fn existing(dir: &Path) -> Result<Option<Vec<String>>, LogError> {
    if !dir.join("CURRENT").exists() {
        return Ok(None);
    }
    sluice_rocks::check_manifest(dir).map_err(|error| match error {
        ManifestError::Damaged(what) => LogError::Corrupt(what),
        ManifestError::Storage(what) => LogError::Storage(what),
    })?;
    let names = Database::list_cf(&Options::default(), dir).map_err(|e| open_error(dir, &e))?;
    if names.iter().any(|name| name != DEFAULT && !name.contains('/')) {
        return Err(not_a_log(dir));
    }
    Ok(Some(names))
}

/// Refuses a log whose manifest lacks a partition that the mark has: it is cut or its middle is taken for its end.
fn check_names(dir: &Path, names: &[String], marked: &Marked) -> Result<(), LogError> {
    let found: HashSet<u64> = names.iter().map(|name| hash64(name)).collect();
    match marked.heads.iter().find(|(name, _)| !found.contains(name)) {
        None => Ok(()),
        Some((_, next)) => Err(lost(dir, &format!("a partition that had ended before offset {next} is missing"))),
    }
}

/// The error of a log that has recovered less than it had acknowledged.
pub(super) fn lost(dir: &Path, what: &str) -> LogError {
    LogError::Corrupt(format!(
        "{}: {what}: its write-ahead log or its manifest is damaged; restore the directory from a copy, or remove its \
         file {} to go on without the lost records",
        dir.display(),
        super::mark::FILE
    ))
}

fn not_a_log(dir: &Path) -> LogError {
    LogError::Corrupt(format!(
        "{} holds a database of another kind; give the log a directory of its own",
        dir.display()
    ))
}

fn open_error(dir: &Path, error: &rocksdb::Error) -> LogError {
    let text = error.to_string();
    let at = dir.display();
    if text.contains("lock file") || text.contains("lock hold by current process") {
        return LogError::Locked(at.to_string());
    }
    match error.kind() {
        rocksdb::ErrorKind::IOError if !text.contains("No such file") => LogError::Storage(format!("{at}: {text}")),
        _ => LogError::Corrupt(format!("{at}: {text}; restore it from a copy")),
    }
}

fn read_identity(db: &Database, dir: &Path) -> Result<Option<[u8; 16]>, LogError> {
    let value = db.get(LOG).map_err(|e| open_error(dir, &e))?;
    let Some(value) = value else { return Ok(None) };
    match value.split_first() {
        Some((&LAYOUT, uuid)) => uuid.try_into().map(Some).map_err(|_| not_a_log(dir)),
        Some((version, _)) => Err(LogError::Corrupt(format!(
            "{} has layout {version}, this program reads layout {LAYOUT}; run the newer program",
            dir.display()
        ))),
        None => Err(not_a_log(dir)),
    }
}

/// The log's identity; a database without anything in it gets one.
fn identity(db: &Database, dir: &Path, names: &[String], wanted: Option<[u8; 16]>) -> Result<[u8; 16], LogError> {
    if let Some(uuid) = read_identity(db, dir)? {
        return crate::genesis::is_wanted(uuid, wanted);
    }
    let empty = names.len() == 1 && db.iterator(IteratorMode::Start).next().is_none();
    if !empty {
        return Err(not_a_log(dir));
    }
    let uuid = wanted.unwrap_or_else(new_uuid);
    let value = [&[LAYOUT], &uuid[..]].concat();
    db.put_opt(LOG, value, &synced()).map_err(|e| open_error(dir, &e))?;
    Ok(uuid)
}
