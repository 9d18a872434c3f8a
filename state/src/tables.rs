//! Tables of a task: uncommitted changes above a back end, digests, and one atomic commit.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use crate::digest::{TableDigest, row_hash};
use crate::lineage::{Fit, Lineage, StoredLineage};
use crate::types::{Digest, StateError, TableSpec};
use crate::{Backend, Change, Reader};

/// First byte of the system table's keys, by what they hold.
pub(crate) const LINEAGE: &[u8] = b"L";
pub(crate) const DIGEST: u8 = b'd';
pub(crate) const META: u8 = b'm';

/// Committed rows of a plain table that are kept in memory from batch to batch, at most. Beyond it the table's cache
/// starts again from nothing: what is in it never changes a result.
const CACHED_ROWS: usize = 16_384;

/// The tables of a task's state. All changes stay in memory until [`Tables::commit`] writes them in one atomic step,
/// together with the digests and with what the runtime put beside them ([`Tables::put_meta`]); reads see them at once.
pub struct Tables {
    backend: Box<dyn Backend>,
    tables: Vec<Table>,
    meta: BTreeMap<Bytes, Option<Bytes>>,
    scratch: Vec<u8>,
    changes: Vec<Change>,
}

struct Table {
    spec: TableSpec,
    /// Uncommitted rows; `None` is a deleted one.
    changed: BTreeMap<Bytes, Option<Bytes>>,
    /// Committed rows with a prefix below this, if there is any, are as good as deleted.
    expired_below: Bytes,
    /// First prefix that `expired_below` removes.
    expired_from: Option<Bytes>,
    /// Committed rows as read, absent ones included.
    cache: RefCell<HashMap<Bytes, Option<Bytes>>>,
    /// Its user keeps the rows ([`Tables::put_over`]): then they are not kept here too.
    kept_elsewhere: bool,
    digest: TableDigest,
}

impl Table {
    fn new(spec: TableSpec) -> Self {
        Self {
            spec,
            changed: BTreeMap::new(),
            expired_below: Bytes::new(),
            expired_from: None,
            cache: RefCell::default(),
            kept_elsewhere: false,
            digest: TableDigest::default(),
        }
    }

    fn misuse(&self, what: &'static str) -> StateError {
        StateError::Misuse { table: self.spec.name.clone(), what }
    }

    /// The part of `key` that names its group.
    fn group<'k>(&self, key: &'k [u8]) -> Result<&'k [u8], StateError> {
        let length = self.spec.group_prefix.unwrap_or(0);
        key.get(..length).ok_or_else(|| self.misuse("a key shorter than the group prefix"))
    }

    fn forget_changes(&mut self) {
        self.changed.clear();
        self.expired_below = Bytes::new();
        self.expired_from = None;
        self.cache.get_mut().clear();
        self.digest = TableDigest::default();
    }

    /// Makes the changes committed ones: rows of a plain table are likely to be asked for again.
    fn settle(&mut self) {
        let cache = self.cache.get_mut();
        let changed = std::mem::take(&mut self.changed);
        if self.spec.group_prefix.is_some() || self.kept_elsewhere {
            cache.clear();
        } else {
            if cache.len() + changed.len() > CACHED_ROWS {
                cache.clear();
            }
            cache.extend(changed);
        }
        self.expired_below = Bytes::new();
        self.expired_from = None;
    }
}

/// A state as it was found.
pub(crate) enum Opened {
    /// As this program writes it.
    Ready(Tables),
    /// With rows of earlier versions, which the lineage tells: to be read and upgraded only.
    Older(Tables, StoredLineage),
}

impl Opened {
    /// The tables of a state that was just written.
    pub(crate) fn ready(self, place: &str) -> Result<Tables, StateError> {
        match self {
            Self::Ready(tables) => Ok(tables),
            Self::Older(..) => {
                Err(StateError::Storage(format!("{place} has rows of an earlier version after its upgrade")))
            }
        }
    }
}

impl Tables {
    /// Tables above a back end that was opened with the same specs.
    ///
    /// # Errors
    /// If the committed digests cannot be read.
    pub fn new(backend: Box<dyn Backend>, specs: Vec<TableSpec>) -> Result<Self, StateError> {
        Self::at(backend, specs, "(lent)")
    }

    /// As [`Tables::new`]; `place` says where the state lies.
    fn at(backend: Box<dyn Backend>, specs: Vec<TableSpec>, place: &str) -> Result<Self, StateError> {
        let tables = specs.into_iter().map(Table::new).collect();
        let mut this = Self { backend, tables, meta: BTreeMap::new(), scratch: Vec::new(), changes: Vec::new() };
        this.load_digests(place)?;
        Ok(this)
    }

    /// As [`Tables::new`], for a state of this lineage: an empty back end takes it on, another one must have it.
    ///
    /// # Errors
    /// [`StateError::Foreign`] with the first difference if the state was made from something else, [`StateError::Newer`]
    /// if a newer program has written it; `place` says where it lies.
    pub(crate) fn open(
        backend: Box<dyn Backend>,
        specs: Vec<TableSpec>,
        lineage: &Lineage,
        place: &str,
    ) -> Result<Opened, StateError> {
        let foreign = |what| StateError::Foreign { path: place.to_owned(), what };
        let wanted = lineage.with_tables(&specs);
        let stored = backend.get(specs.len(), LINEAGE)?;
        let text = stored.as_deref().map(String::from_utf8_lossy);
        let found = text.as_deref().map_or_else(|| Ok(wanted.clone()), StoredLineage::parse);
        let found = found.map_err(|error| error.at(place))?;
        match found.fit(&wanted) {
            Fit::Foreign(what) => {
                let what = format!("{what}; replay the task into a new state, or go back to what made this one");
                Err(foreign(what))
            }
            Fit::Newer(what) => Err(StateError::Newer { path: place.to_owned(), what }),
            Fit::Older(_) => Ok(Opened::Older(Self::at(backend, specs, place)?, found)),
            // A crash of an earlier program may have come between making it and this; but rows cannot be there before it.
            Fit::Same if text.is_none() && has_rows(backend.as_ref(), specs.len())? => {
                let what = "it has rows and does not say what they were made from".to_owned();
                Err(StateError::Damaged { path: place.to_owned(), what })
            }
            Fit::Same => {
                let is_written = text.is_some_and(|text| text == wanted.to_text());
                let mut this = Self::at(backend, specs, place)?;
                if !is_written {
                    this.store_lineage(&wanted)?;
                }
                Ok(Opened::Ready(this))
            }
        }
    }

    /// Writes the lineage, durably.
    pub(crate) fn store_lineage(&mut self, lineage: &StoredLineage) -> Result<(), StateError> {
        let (key, value) = (Bytes::from_static(LINEAGE), Bytes::from(lineage.to_text()));
        self.backend.commit(&[Change::Put { table: self.system(), key, value }])?;
        self.backend.sync()
    }

    fn system(&self) -> usize {
        self.tables.len()
    }

    fn load_digests(&mut self, place: &str) -> Result<(), StateError> {
        let system = self.tables.len();
        let mut damaged = false;
        let tables = &mut self.tables;
        self.backend.scan(system, &[DIGEST], Some(&[DIGEST + 1]), &mut |key, value| {
            let loaded = digest_key_parts(key)
                .and_then(|(table, prefix)| Some(tables.get_mut(table)?.digest.load(prefix, value)))
                .unwrap_or(false);
            damaged = !loaded;
            loaded
        })?;
        if damaged {
            let what = "a stored digest cannot be read".to_owned();
            return Err(StateError::Damaged { path: place.to_owned(), what });
        }
        Ok(())
    }

    fn table(&self, table: usize) -> Result<&Table, StateError> {
        self.tables.get(table).ok_or_else(|| StateError::NoTable(format!("number {table}")))
    }

    /// Value of `key`, uncommitted changes included.
    pub fn get(&self, table: usize, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        let rows = self.table(table)?;
        if let Some(value) = rows.changed.get(key) {
            return Ok(value.clone());
        }
        if key < rows.expired_below.as_ref() {
            return Ok(None);
        }
        if let Some(value) = rows.cache.borrow().get(key) {
            return Ok(value.clone());
        }
        let value = self.backend.get(table, key)?;
        if rows.spec.group_prefix.is_none() {
            let mut cache = rows.cache.borrow_mut();
            if cache.len() >= CACHED_ROWS {
                cache.clear();
            }
            cache.insert(Bytes::copy_from_slice(key), value.clone());
        }
        Ok(value)
    }

    /// Replaces the row `old` of `key` by `new`, in the changes and in the digest.
    fn replace(&mut self, table: usize, key: &[u8], old: Option<&[u8]>, new: Option<&[u8]>) -> Result<(), StateError> {
        let scratch = &mut self.scratch;
        let rows = self.tables.get_mut(table).ok_or_else(|| StateError::NoTable(format!("number {table}")))?;
        let group = rows.group(key)?;
        let old = old.map(|value| row_hash(scratch, key, value));
        let added = new.map(|value| row_hash(scratch, key, value));
        rows.digest.replace(group, old, added);
        rows.changed.insert(Bytes::copy_from_slice(key), new.map(Bytes::copy_from_slice));
        Ok(())
    }

    /// Sets `key`.
    pub fn put(&mut self, table: usize, key: &[u8], value: &[u8]) -> Result<(), StateError> {
        let old = self.get(table, key)?;
        self.replace(table, key, old.as_deref(), Some(value))
    }

    /// Sets `key`, whose row has the hash `old` ([`row_hash`]; `None`: there is no row): for who keeps a table's rows in
    /// memory, it spares looking up the old one. A wrong `old` makes the table's digest wrong. Returns the hash of the
    /// new row.
    pub fn put_over(&mut self, table: usize, key: &[u8], old: Option<u128>, value: &[u8]) -> Result<u128, StateError> {
        let scratch = &mut self.scratch;
        let rows = self.tables.get_mut(table).ok_or_else(|| StateError::NoTable(format!("number {table}")))?;
        let new = row_hash(scratch, key, value);
        let group = rows.group(key)?;
        rows.digest.replace(group, old, Some(new));
        rows.kept_elsewhere = true;
        rows.changed.insert(Bytes::copy_from_slice(key), Some(Bytes::copy_from_slice(value)));
        Ok(new)
    }

    /// Sets `key` unless it is there; tells whether it was set.
    pub fn insert(&mut self, table: usize, key: &[u8], value: &[u8]) -> Result<bool, StateError> {
        if self.get(table, key)?.is_some() {
            return Ok(false);
        }
        self.replace(table, key, None, Some(value))?;
        Ok(true)
    }

    /// Removes `key`.
    pub fn delete(&mut self, table: usize, key: &[u8]) -> Result<(), StateError> {
        match self.get(table, key)? {
            Some(old) => self.replace(table, key, Some(&old), None),
            None => Ok(()),
        }
    }

    /// Removes every row of a grouped table whose prefix is below `prefix`, without reading them. `prefix` has at most
    /// the length that the table's groups have.
    ///
    /// # Errors
    /// [`StateError::Misuse`] if the table is not grouped or the prefix is too long.
    pub fn expire_below(&mut self, table: usize, prefix: &[u8]) -> Result<(), StateError> {
        let rows = self.tables.get_mut(table).ok_or_else(|| StateError::NoTable(format!("number {table}")))?;
        let length = match rows.spec.group_prefix {
            None => return Err(rows.misuse("expiry of a range, but its rows are not grouped")),
            Some(length) if prefix.len() > length => return Err(rows.misuse("expiry by more than the group prefix")),
            Some(length) => length,
        };
        // A group whose rows were all deleted since the last commit is in the changes only.
        let deleted = rows
            .changed
            .range::<[u8], _>((Bound::Unbounded, Bound::Excluded(prefix)))
            .next()
            .map(|(key, _)| key.slice(..key.len().min(length)));
        if let Some(first) = rows.digest.expire_below(prefix).into_iter().chain(deleted).min() {
            rows.changed = rows.changed.split_off(prefix);
            rows.expired_from = Some(rows.expired_from.take().map_or(first.clone(), |known| known.min(first)));
            if prefix > rows.expired_below.as_ref() {
                rows.expired_below = Bytes::copy_from_slice(prefix);
            }
        }
        Ok(())
    }

    /// Calls `visit` with each key and value in `from..to` (`None`: to the end) in key order, uncommitted changes
    /// included, until it returns `false`.
    pub fn scan(
        &self,
        table: usize,
        from: &[u8],
        to: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StateError> {
        if to.is_some_and(|to| to <= from) {
            return Ok(());
        }
        let rows = self.table(table)?;
        let end = to.map_or(Bound::Unbounded, Bound::Excluded);
        let mut changed = rows.changed.range::<[u8], _>((Bound::Included(from), end)).peekable();
        let mut going = true;
        let start = from.max(rows.expired_below.as_ref());
        if to.is_none_or(|to| start < to) {
            self.backend.scan(table, start, to, &mut |key, value| {
                while going && let Some((new_key, new_value)) = changed.next_if(|(new, _)| new.as_ref() < key) {
                    going = new_value.as_ref().is_none_or(|new_value| visit(new_key, new_value));
                }
                if going {
                    going = match changed.next_if(|(new, _)| new.as_ref() == key) {
                        Some((_, Some(new_value))) => visit(key, new_value),
                        Some((_, None)) => true,
                        None => visit(key, value),
                    };
                }
                going
            })?;
        }
        while going && let Some((key, value)) = changed.next() {
            going = value.as_ref().is_none_or(|value| visit(key, value));
        }
        Ok(())
    }

    /// Digest of a table as it stands, uncommitted changes included.
    pub fn digest(&self, table: usize) -> Result<Digest, StateError> {
        Ok(self.table(table)?.digest.total())
    }

    /// Number of rows of a table as it stands.
    pub fn rows(&self, table: usize) -> Result<u64, StateError> {
        Ok(self.table(table)?.digest.rows())
    }

    /// Name and digest of every table.
    pub fn digests(&self) -> Vec<(String, Digest)> {
        self.tables.iter().map(|table| (table.spec.name.clone(), table.digest.total())).collect()
    }

    /// Digest of every table, in order.
    pub fn table_digests(&self) -> impl Iterator<Item = Digest> {
        self.tables.iter().map(|table| table.digest.total())
    }

    /// The tables, in order.
    pub fn specs(&self) -> impl Iterator<Item = &TableSpec> {
        self.tables.iter().map(|table| &table.spec)
    }

    /// What the runtime keeps under `key`, which has no part in the digests.
    pub fn meta(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        match self.meta.get(key) {
            Some(value) => Ok(value.clone()),
            None => self.backend.get(self.system(), &meta_key(key)),
        }
    }

    /// Keeps `value` under `key` with the next commit.
    pub fn put_meta(&mut self, key: &[u8], value: Bytes) {
        self.meta.insert(Bytes::copy_from_slice(key), Some(value));
    }

    /// Removes `key` with the next commit.
    pub fn delete_meta(&mut self, key: &[u8]) {
        self.meta.insert(Bytes::copy_from_slice(key), None);
    }

    /// What was committed with [`Tables::put_meta`] under keys that begin with `prefix`, in key order.
    pub fn committed_meta(&self, prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>, StateError> {
        let mut found = Vec::new();
        let start = meta_key(prefix);
        self.backend.scan(self.system(), &start, Some(&[META + 1]), &mut |key, value| {
            let inside = key.starts_with(&start);
            if inside && let Some(key) = key.get(1..) {
                found.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
            }
            inside
        })?;
        Ok(found)
    }

    /// Nothing has changed since the last commit.
    pub fn is_clean(&self) -> bool {
        self.meta.is_empty() && self.tables.iter().all(|table| table.changed.is_empty() && table.expired_from.is_none())
    }

    /// Writes all changes, their digests and the runtime's entries in one atomic step.
    ///
    /// # Errors
    /// If the storage fails: then nothing of it is committed, and the tables must not be used any more before
    /// [`Tables::rollback`].
    pub fn commit(&mut self) -> Result<(), StateError> {
        let system = self.system();
        let changes = &mut self.changes;
        changes.clear();
        for (index, table) in self.tables.iter_mut().enumerate() {
            if let Some(from) = &table.expired_from {
                changes.push(Change::DeleteRange { table: index, from: from.clone(), to: table.expired_below.clone() });
            }
            for (key, value) in &table.changed {
                changes.push(row_change(index, key.clone(), value.clone()));
            }
            table.digest.take_dirty(|prefix, group| {
                changes.push(row_change(system, digest_key(index, &prefix), group));
            });
        }
        for (key, value) in std::mem::take(&mut self.meta) {
            changes.push(row_change(system, meta_key(&key), value));
        }
        if !changes.is_empty() {
            self.backend.commit(changes)?;
        }
        self.tables.iter_mut().for_each(Table::settle);
        Ok(())
    }

    /// Drops everything since the last commit.
    ///
    /// # Errors
    /// If the committed digests cannot be read.
    pub fn rollback(&mut self) -> Result<(), StateError> {
        self.meta.clear();
        self.tables.iter_mut().for_each(Table::forget_changes);
        self.load_digests("(open)")
    }

    /// Makes all commits durable.
    ///
    /// # Errors
    /// If the storage fails.
    pub fn sync(&mut self) -> Result<(), StateError> {
        self.backend.sync()
    }

    /// A handle that reads the committed state from other threads.
    pub fn reader(&self) -> Arc<dyn Reader> {
        self.backend.reader()
    }
}

/// Whether one of the first `tables` tables has a row.
fn has_rows(backend: &dyn Backend, tables: usize) -> Result<bool, StateError> {
    let mut found = false;
    for table in 0..tables {
        backend.scan(table, &[], None, &mut |_, _| {
            found = true;
            false
        })?;
    }
    Ok(found)
}

fn row_change(table: usize, key: Bytes, value: Option<Bytes>) -> Change {
    match value {
        Some(value) => Change::Put { table, key, value },
        None => Change::Delete { table, key },
    }
}

/// `d`, the table's index as 4 bytes big-endian, the group's prefix.
fn digest_key(table: usize, prefix: &[u8]) -> Bytes {
    let mut key = Vec::with_capacity(5 + prefix.len());
    key.push(DIGEST);
    key.extend_from_slice(&(table as u32).to_be_bytes());
    key.extend_from_slice(prefix);
    key.into()
}

pub(crate) fn digest_key_parts(key: &[u8]) -> Option<(usize, &[u8])> {
    let (table, prefix) = key.strip_prefix(&[DIGEST])?.split_first_chunk::<4>()?;
    Some((u32::from_be_bytes(*table) as usize, prefix))
}

fn meta_key(key: &[u8]) -> Bytes {
    let mut bytes = Vec::with_capacity(1 + key.len());
    bytes.push(META);
    bytes.extend_from_slice(key);
    bytes.into()
}
