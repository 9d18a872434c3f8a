//! State in memory: for tests and for tasks that need none on disk.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;

use crate::types::{StateError, TableSpec};
use crate::{Backend, Change, Reader, SYSTEM_TABLE};

type Rows = BTreeMap<Bytes, Bytes>;

/// Committed state in memory. Clones share it: one that is kept outlives the task that used the other, as a directory
/// on disk would.
#[derive(Clone, Debug)]
pub struct MemoryBackend {
    names: Arc<Vec<String>>,
    tables: Arc<RwLock<Vec<Rows>>>,
}

impl MemoryBackend {
    /// Empty tables.
    pub fn new(specs: &[TableSpec]) -> Self {
        let mut names: Vec<String> = specs.iter().map(|spec| spec.name.clone()).collect();
        names.push(SYSTEM_TABLE.to_owned());
        let tables = names.iter().map(|_| Rows::new()).collect();
        Self { names: Arc::new(names), tables: Arc::new(RwLock::new(tables)) }
    }

    /// How many tables it has, the system table included.
    pub fn table_count(&self) -> usize {
        self.names.len()
    }

    fn index(&self, table: &str) -> Result<usize, StateError> {
        self.names.iter().position(|name| name == table).ok_or_else(|| StateError::NoTable(table.to_owned()))
    }

    fn check(&self, table: usize) -> Result<usize, StateError> {
        if table < self.names.len() { Ok(table) } else { Err(StateError::NoTable(format!("number {table}"))) }
    }
}

fn rows(tables: &[Rows], table: usize) -> Result<&Rows, StateError> {
    tables.get(table).ok_or_else(|| StateError::NoTable(format!("number {table}")))
}

/// Rows are visited a page at a time, so that the lock is not held while `visit` runs.
const PAGE: usize = 256;

impl Backend for MemoryBackend {
    fn get(&self, table: usize, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        Ok(rows(&self.tables.read(), table)?.get(key).cloned())
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
        let mut start = Bound::Included(Bytes::copy_from_slice(from));
        let end = to.map_or(Bound::Unbounded, |to| Bound::Excluded(Bytes::copy_from_slice(to)));
        loop {
            let page: Vec<(Bytes, Bytes)> = rows(&self.tables.read(), table)?
                .range((start.clone(), end.clone()))
                .take(PAGE)
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect();
            for (key, value) in &page {
                if !visit(key, value) {
                    return Ok(());
                }
            }
            match page.last() {
                Some((key, _)) if page.len() == PAGE => start = Bound::Excluded(key.clone()),
                _ => return Ok(()),
            }
        }
    }

    fn commit(&mut self, changes: &[Change]) -> Result<(), StateError> {
        for change in changes {
            self.check(change.table())?;
        }
        let mut tables = self.tables.write();
        for change in changes {
            let Some(rows) = tables.get_mut(change.table()) else { continue };
            match change {
                Change::Put { key, value, .. } => {
                    rows.insert(key.clone(), value.clone());
                }
                Change::Delete { key, .. } => {
                    rows.remove(key);
                }
                Change::DeleteRange { from, to, .. } => {
                    let mut tail = rows.split_off(from);
                    rows.append(&mut tail.split_off(to));
                }
            }
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StateError> {
        Ok(())
    }

    fn reader(&self) -> Arc<dyn Reader> {
        Arc::new(self.clone())
    }
}

impl Reader for MemoryBackend {
    fn get(&self, table: &str, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        Backend::get(self, self.index(table)?, key)
    }

    fn scan(
        &self,
        table: &str,
        from: &[u8],
        to: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StateError> {
        Backend::scan(self, self.index(table)?, from, to, visit)
    }
}
