//! State on RocksDB: one database per task, a column family per table.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rocksdb::checkpoint::Checkpoint;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBRecoveryMode, ErrorKind, FlushOptions,
    LogLevel, Options, ReadOptions, WriteBatch, WriteBufferManager, WriteOptions,
};

use sluice_rocks::ManifestError;

use crate::commits::{self, Floor};
use crate::env::is_occupied;
use crate::types::{StateError, TableSpec};
use crate::{Backend, Change, Reader, SYSTEM_TABLE};

/// Write buffer of one column family; all of them together stay below the shared limit.
const WRITE_BUFFER: usize = 16 << 20;
/// Least memory that a column family with any row holds: there are many of them, most with few rows.
const ARENA_BLOCK: usize = 128 << 10;
/// Largest write-ahead log before column families are flushed. A start goes through it more than once: where the state
/// is judged, and where it is opened.
const MAX_WAL: u64 = 16 << 20;
const BLOOM_BITS: f64 = 10.0;

/// Committed state of a task in RocksDB.
///
/// The write-ahead log is written at each commit but not synced: see the crate's documentation. Where rows expire by a
/// range, whole files of them are unlinked, but only after the commit that removed them has been made durable.
pub struct RocksBackend {
    shared: Arc<Shared>,
    write: WriteOptions,
    /// Commits go to the write-ahead log.
    logged: bool,
    /// Commits made so far.
    commits: u64,
    floor: Floor,
}

/// An open database.
pub(crate) struct Shared {
    db: DB,
    names: Vec<String>,
    path: PathBuf,
    /// Its files may be read without keeping their blocks in the cache: they are read once.
    once: bool,
}

/// What the database says of the state in `path`: that it is damaged, or that the storage fails.
fn failure(path: &Path, error: rocksdb::Error) -> StateError {
    let missing = |text: &str| text.contains("No such file");
    match error.kind() {
        ErrorKind::Corruption | ErrorKind::InvalidArgument | ErrorKind::NotSupported => damaged(path, error),
        ErrorKind::IOError if missing(error.as_ref()) => damaged(path, error),
        _ => StateError::Storage(format!("{}: {error}", path.display())),
    }
}

fn damaged(path: &Path, what: impl ToString) -> StateError {
    StateError::Damaged { path: path.display().to_string(), what: what.to_string() }
}

fn foreign(path: &Path, what: impl Into<String>) -> StateError {
    StateError::Foreign { path: path.display().to_string(), what: what.into() }
}

/// The error of a directory that is not empty and has no state.
pub(crate) fn something_else(path: &Path) -> StateError {
    foreign(path, "the directory holds something else than state; empty it or choose another one")
}

impl RocksBackend {
    /// Opens the state in `path`, or creates it there, of which a crash may leave a half; all tasks share `cache` and `buffers`.
    ///
    /// # Errors
    /// [`StateError::Foreign`] if the state there has other tables, [`StateError::Damaged`] if it is damaged,
    /// [`StateError::Storage`] if it is locked by another process or the disk fails.
    pub fn open(
        path: &Path,
        specs: &[TableSpec],
        cache: &Cache,
        buffers: &WriteBufferManager,
    ) -> Result<Self, StateError> {
        Self::open_as(path, specs, cache, buffers, true)
    }

    /// As [`RocksBackend::open`], with commits in memory only, until [`Backend::sync`] or want of memory writes them out,
    /// all tables at once: who is killed leaves an earlier commit.
    ///
    /// # Errors
    /// As [`RocksBackend::open`].
    pub fn open_unlogged(
        path: &Path,
        specs: &[TableSpec],
        cache: &Cache,
        buffers: &WriteBufferManager,
    ) -> Result<Self, StateError> {
        Self::open_as(path, specs, cache, buffers, false)
    }

    fn open_as(
        path: &Path,
        specs: &[TableSpec],
        cache: &Cache,
        buffers: &WriteBufferManager,
        logged: bool,
    ) -> Result<Self, StateError> {
        let mut options = db_options(buffers);
        options.set_atomic_flush(!logged);
        let mut write = WriteOptions::default();
        write.disable_wal(!logged);
        let mut names: Vec<String> = specs.iter().map(|spec| spec.name.clone()).collect();
        names.push(SYSTEM_TABLE.to_owned());
        let mut system = cf_options(None, cache);
        commits::count_in(&mut system);
        let table_options: Vec<Options> =
            specs.iter().map(|spec| cf_options(spec.group_prefix, cache)).chain([system]).collect();
        if is_state(path) {
            check_files(path)?;
            check_tables(path, &names)?;
        } else {
            if is_occupied(path) {
                return Err(something_else(path));
            }
            options.create_if_missing(true);
            options.create_missing_column_families(true);
        }
        let db = open_db(path, &names, &table_options, &options)?;
        let shared = Shared { db, names, path: path.to_owned(), once: false };
        let commits = shared.commits()?;
        let floor = Floor::open(path, commits)?;
        Ok(Self { shared: Arc::new(shared), write, logged, commits, floor })
    }

    /// Unlinks files that hold nothing but removed rows. The commit that removed them must be durable before: else,
    /// after a loss of power, an older commit would be there without its rows. Should damage to the write-ahead log
    /// bring an older commit back all the same, the floor tells.
    fn drop_files(&mut self, changes: &[Change]) -> Result<(), StateError> {
        if !self.logged {
            return Ok(());
        }
        let mut synced = false;
        for change in changes {
            if let Change::DeleteRange { table, from, to } = change {
                if !synced {
                    self.sync()?;
                    self.floor.raise(self.commits)?;
                    synced = true;
                }
                let family = self.shared.family(*table)?;
                let dropped = self.shared.db.delete_file_in_range_cf(family, from, to);
                dropped.map_err(|error| self.shared.failure(error))?;
            }
        }
        Ok(())
    }
}

/// How a state is recovered, by its owner and by whoever reads it.
fn recovery() -> Options {
    let mut options = Options::default();
    // Damage in the write-ahead log ends recovery there: an older commit, whole. Where that cannot be, since a table is
    // ahead of it, or a file of the log is missing, opening fails. What neither sees, the count of commits does.
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    options.set_track_and_verify_wals_in_manifest(true);
    options
}

fn db_options(buffers: &WriteBufferManager) -> Options {
    let mut options = recovery();
    options.set_write_buffer_manager(buffers);
    options.set_max_total_wal_size(MAX_WAL);
    options.set_keep_log_file_num(2);
    options.set_log_level(LogLevel::Warn);
    options.set_max_background_jobs(2);
    options
}

fn cf_options(group_prefix: Option<usize>, cache: &Cache) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    blocks.set_bloom_filter(BLOOM_BITS, false);
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    // Checksums cover the place of a block and the end of the file, too.
    blocks.set_format_version(6);
    let mut options = Options::default();
    options.set_block_based_table_factory(&blocks);
    options.set_compression_type(rocksdb::DBCompressionType::Lz4);
    options.set_write_buffer_size(WRITE_BUFFER);
    options.set_arena_block_size(ARENA_BLOCK);
    if group_prefix.is_some() {
        // Most lookups in a set of seen things miss: answer them from a filter in memory.
        options.set_memtable_whole_key_filtering(true);
        options.set_memtable_prefix_bloom_ratio(0.02);
    }
    options
}

fn open_db(path: &Path, names: &[String], tables: &[Options], options: &Options) -> Result<DB, StateError> {
    let families = names.iter().zip(tables).map(|(name, options)| ColumnFamilyDescriptor::new(name, options.clone()));
    let families = families.chain([ColumnFamilyDescriptor::new("default", Options::default())]);
    DB::open_cf_descriptors(options, path, families).map_err(|error| failure(path, error))
}

/// Whether there is a state in `path`, whole or not.
pub(crate) fn is_state(path: &Path) -> bool {
    path.join("CURRENT").exists()
}

/// What RocksDB would read for ever is refused before.
fn check_files(path: &Path) -> Result<(), StateError> {
    let checked = sluice_rocks::check_manifest(path).and_then(|()| sluice_rocks::check_unrecycled_logs(path));
    checked.map_err(|error| match error {
        ManifestError::Damaged(what) => damaged(path, what),
        ManifestError::Storage(what) => StateError::Storage(what),
    })
}

/// Whether a process has the state in `path` open.
pub(crate) fn is_locked(path: &Path) -> bool {
    if check_files(path).is_err() {
        return false;
    }
    let Ok(names) = DB::list_cf(&Options::default(), path) else { return false };
    let opened = DB::open_cf_descriptors(&recovery(), path, families_to_read(&names));
    opened.is_err_and(|error| error.kind() == ErrorKind::IOError && error.as_ref().contains("lock"))
}

/// Families as whoever only reads them opens them.
fn families_to_read(names: &[String]) -> Vec<ColumnFamilyDescriptor> {
    let family = |name: &String| {
        let mut options = Options::default();
        if name == SYSTEM_TABLE {
            commits::count_in(&mut options);
        }
        ColumnFamilyDescriptor::new(name, options)
    };
    names.iter().map(family).collect()
}

fn check_tables(path: &Path, names: &[String]) -> Result<(), StateError> {
    let found = DB::list_cf(&Options::default(), path).map_err(|error| failure(path, error))?;
    for name in &found {
        if name != "default" && !names.contains(name) {
            let what =
                format!("it has a table {name} that the topology does not have; replay the task into a new state");
            return Err(foreign(path, what));
        }
    }
    for name in names {
        if !found.contains(name) {
            return Err(foreign(path, format!("it has no table {name}; replay the task into a new state")));
        }
    }
    Ok(())
}

impl Shared {
    /// Opens the state in `path` to read it only, where no process changes it; with `scratch`, a directory for its own
    /// files, beside one that does.
    pub(crate) fn open_to_read(path: &Path, scratch: Option<&Path>) -> Result<Self, StateError> {
        if !is_state(path) {
            return Err(damaged(path, "there is no state; has its file CURRENT been removed?"));
        }
        check_files(path)?;
        let names = DB::list_cf(&Options::default(), path).map_err(|error| failure(path, error))?;
        let mut options = recovery();
        let opened = match scratch {
            Some(scratch) => {
                // Its writer may remove files while they are read: all must be open.
                options.set_max_open_files(-1);
                DB::open_cf_descriptors_as_secondary(&options, path, scratch, families_to_read(&names))
            }
            None => DB::open_cf_descriptors_read_only(&options, path, families_to_read(&names), false),
        };
        let db = opened.map_err(|error| failure(path, error))?;
        Ok(Self { db, names, path: path.to_owned(), once: true })
    }

    pub(crate) fn failure(&self, error: rocksdb::Error) -> StateError {
        failure(&self.path, error)
    }

    /// Its directory, as errors name it.
    pub(crate) fn place(&self) -> String {
        self.path.display().to_string()
    }

    pub(crate) fn damaged(&self, what: impl ToString) -> StateError {
        damaged(&self.path, what)
    }

    /// How many commits the state has.
    ///
    /// # Errors
    /// If some that it once had are missing between others.
    pub(crate) fn commits(&self) -> Result<u64, StateError> {
        let system = self.named(SYSTEM_TABLE)?;
        let [made, there] = commits::KEYS;
        commits::agree(self.get(system, made)?.as_deref(), self.get(system, there)?.as_deref())
            .map_err(|what| self.damaged(what))
    }

    fn family(&self, table: usize) -> Result<&ColumnFamily, StateError> {
        let name = self.names.get(table).ok_or_else(|| StateError::NoTable(format!("number {table}")))?;
        self.db.cf_handle(name).ok_or_else(|| StateError::NoTable(name.clone()))
    }

    pub(crate) fn named(&self, table: &str) -> Result<&ColumnFamily, StateError> {
        self.db.cf_handle(table).ok_or_else(|| StateError::NoTable(table.to_owned()))
    }

    pub(crate) fn get(&self, family: &ColumnFamily, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        let value = self.db.get_pinned_cf(family, key).map_err(|error| self.failure(error))?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    pub(crate) fn scan(
        &self,
        family: &ColumnFamily,
        from: &[u8],
        to: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StateError> {
        let mut options = ReadOptions::default();
        options.set_total_order_seek(true);
        options.fill_cache(!self.once);
        if let Some(to) = to {
            options.set_iterate_upper_bound(to);
        }
        let mut rows = self.db.raw_iterator_cf_opt(family, options);
        rows.seek(from);
        while let Some((key, value)) = rows.item() {
            if !visit(key, value) {
                return Ok(());
            }
            rows.next();
        }
        rows.status().map_err(|error| self.failure(error))
    }
}

impl Backend for RocksBackend {
    fn get(&self, table: usize, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        self.shared.get(self.shared.family(table)?, key)
    }

    fn scan(
        &self,
        table: usize,
        from: &[u8],
        to: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StateError> {
        if to.is_some_and(|to| to <= from) {
            return Ok(());
        }
        self.shared.scan(self.shared.family(table)?, from, to, visit)
    }

    fn commit(&mut self, changes: &[Change]) -> Result<(), StateError> {
        let mut batch = WriteBatch::default();
        for change in changes {
            let family = self.shared.family(change.table())?;
            match change {
                Change::Put { key, value, .. } => batch.put_cf(family, key, value),
                Change::Delete { key, .. } => batch.delete_cf(family, key),
                Change::DeleteRange { from, to, .. } => batch.delete_range_cf(family, from, to),
            }
        }
        self.commits += 1;
        commits::count(&mut batch, self.shared.named(SYSTEM_TABLE)?, self.commits);
        self.shared.db.write_opt(batch, &self.write).map_err(|error| self.shared.failure(error))?;
        self.drop_files(changes)
    }

    fn sync(&mut self) -> Result<(), StateError> {
        if self.logged {
            return self.shared.db.flush_wal(true).map_err(|error| self.shared.failure(error));
        }
        let names = self.shared.names.iter();
        let families = names.map(|name| self.shared.named(name)).collect::<Result<Vec<_>, _>>()?;
        let flushed = self.shared.db.flush_cfs_opt(&families, &FlushOptions::default());
        flushed.map_err(|error| self.shared.failure(error))
    }

    fn reader(&self) -> Arc<dyn Reader> {
        Arc::new(RocksReader(Arc::clone(&self.shared)))
    }
}

/// Reads a database by the names of its tables.
pub(crate) struct RocksReader(pub(crate) Arc<Shared>);

impl Reader for RocksReader {
    fn get(&self, table: &str, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        self.0.get(self.0.named(table)?, key)
    }

    fn scan(
        &self,
        table: &str,
        from: &[u8],
        to: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StateError> {
        if to.is_some_and(|to| to <= from) {
            return Ok(());
        }
        self.0.scan(self.0.named(table)?, from, to, visit)
    }
    fn checkpoint(&self, into: &Path) -> Result<(), StateError> {
        let checkpoint = Checkpoint::new(&self.0.db).map_err(|error| self.0.failure(error))?;
        checkpoint.create_checkpoint(into).map_err(|error| self.0.failure(error))
    }
}
