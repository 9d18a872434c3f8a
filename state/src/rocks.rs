//! State on RocksDB: one database per task, a column family per table.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, LogLevel, Options, ReadOptions, WriteBatch,
    WriteBufferManager, WriteOptions,
};

use crate::types::{StateError, TableSpec};
use crate::{Backend, Change, Reader, SYSTEM_TABLE};

/// Write buffer of one column family; all of them together stay below the shared limit.
const WRITE_BUFFER: usize = 16 << 20;
/// Least memory that a column family with any row holds: there are many of them, most with few rows.
const ARENA_BLOCK: usize = 128 << 10;
/// Largest write-ahead log before column families are flushed.
const MAX_WAL: u64 = 128 << 20;
const BLOOM_BITS: f64 = 10.0;

/// Committed state of a task in RocksDB.
///
/// The write-ahead log is written at each commit but not synced: see the crate's documentation. Where rows expire by a
/// range, whole files of them are unlinked, but only after the commit that removed them has been made durable.
pub struct RocksBackend {
    shared: Arc<Shared>,
    write: WriteOptions,
}

struct Shared {
    db: DB,
    names: Vec<String>,
}

fn storage(error: rocksdb::Error) -> StateError {
    StateError::Storage(error.into_string())
}

fn foreign(path: &Path, what: impl Into<String>) -> StateError {
    StateError::Foreign { path: path.display().to_string(), what: what.into() }
}

impl RocksBackend {
    /// Opens the state in `path`, or creates it there; all tasks share `cache` and `buffers`.
    ///
    /// # Errors
    /// [`StateError::Foreign`] if the state there has other tables, [`StateError::Storage`] if it cannot be opened:
    /// it is locked by another process, damaged, or the disk fails.
    pub fn open(
        path: &Path,
        specs: &[TableSpec],
        cache: &Cache,
        buffers: &WriteBufferManager,
    ) -> Result<Self, StateError> {
        let mut names: Vec<String> = specs.iter().map(|spec| spec.name.clone()).collect();
        names.push(SYSTEM_TABLE.to_owned());
        let table_options: Vec<Options> =
            specs.iter().map(|spec| cf_options(spec.group_prefix, cache)).chain([cf_options(None, cache)]).collect();
        if path.join("CURRENT").exists() {
            check_tables(path, &names)?;
        } else {
            create(path, &names, &table_options, buffers)?;
        }
        let db = open_db(path, &names, &table_options, buffers)?;
        Ok(Self { shared: Arc::new(Shared { db, names }), write: WriteOptions::default() })
    }

    /// Unlinks files that hold nothing but removed rows. The commit that removed them must be durable before: else,
    /// after a loss of power, an older commit would be there without its rows.
    fn drop_files(&self, changes: &[Change]) -> Result<(), StateError> {
        let mut synced = false;
        for change in changes {
            if let Change::DeleteRange { table, from, to } = change {
                if !synced {
                    self.shared.db.flush_wal(true).map_err(storage)?;
                    synced = true;
                }
                let family = self.shared.family(*table)?;
                self.shared.db.delete_file_in_range_cf(family, from, to).map_err(storage)?;
            }
        }
        Ok(())
    }
}

fn db_options(buffers: &WriteBufferManager) -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
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
    blocks.set_format_version(5);
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

fn open_db(path: &Path, names: &[String], tables: &[Options], buffers: &WriteBufferManager) -> Result<DB, StateError> {
    let families: Vec<ColumnFamilyDescriptor> = names
        .iter()
        .zip(tables)
        .map(|(name, options)| ColumnFamilyDescriptor::new(name.clone(), options.clone()))
        .chain([ColumnFamilyDescriptor::new("default", Options::default())])
        .collect();
    DB::open_cf_descriptors(&db_options(buffers), path, families).map_err(storage)
}

/// Creates the database beside its place and moves it there: a crash in between leaves no half of one behind.
fn create(path: &Path, names: &[String], tables: &[Options], buffers: &WriteBufferManager) -> Result<(), StateError> {
    let io = |what: &str, error: std::io::Error| StateError::Storage(format!("{what} {}: {error}", path.display()));
    if path.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(foreign(path, "the directory holds something else than state; empty it or choose another one"));
    }
    let mut building = path.as_os_str().to_owned();
    building.push("%new");
    let building = std::path::PathBuf::from(building);
    if building.exists() {
        std::fs::remove_dir_all(&building).map_err(|error| io("cannot clear what was left beside", error))?;
    }
    std::fs::create_dir_all(&building).map_err(|error| io("cannot create", error))?;
    drop(open_db(&building, names, tables, buffers)?);
    if path.exists() {
        std::fs::remove_dir(path).map_err(|error| io("cannot replace", error))?;
    }
    std::fs::rename(&building, path).map_err(|error| io("cannot create", error))
}

fn check_tables(path: &Path, names: &[String]) -> Result<(), StateError> {
    let found = DB::list_cf(&Options::default(), path).map_err(storage)?;
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
    fn family(&self, table: usize) -> Result<&ColumnFamily, StateError> {
        let name = self.names.get(table).ok_or_else(|| StateError::NoTable(format!("number {table}")))?;
        self.db.cf_handle(name).ok_or_else(|| StateError::NoTable(name.clone()))
    }

    fn named(&self, table: &str) -> Result<&ColumnFamily, StateError> {
        self.db.cf_handle(table).ok_or_else(|| StateError::NoTable(table.to_owned()))
    }

    fn get(&self, family: &ColumnFamily, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        let value = self.db.get_pinned_cf(family, key).map_err(storage)?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(
        &self,
        family: &ColumnFamily,
        from: &[u8],
        to: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StateError> {
        let mut options = ReadOptions::default();
        options.set_total_order_seek(true);
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
        rows.status().map_err(storage)
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
        self.shared.db.write_opt(batch, &self.write).map_err(storage)?;
        self.drop_files(changes)
    }

    fn sync(&mut self) -> Result<(), StateError> {
        self.shared.db.flush_wal(true).map_err(storage)
    }

    fn reader(&self) -> Arc<dyn Reader> {
        Arc::new(RocksReader(Arc::clone(&self.shared)))
    }
}

struct RocksReader(Arc<Shared>);

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
}
