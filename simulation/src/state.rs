//! States that remember all their commits, so that a crash can take the last ones away and a copy can be of any of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use sluice_state::{Backend, Change, MemoryBackend, Reader, SYSTEM_TABLE, StateEnv, StateError, TableSpec};

use crate::fuse::{DIED, Fuse, Point};

/// The state of a task on one machine.
#[derive(Clone, Default)]
pub struct Store(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    specs: Vec<TableSpec>,
    commits: Vec<Arc<Vec<Change>>>,
    durable: usize,
    tables: Option<MemoryBackend>,
}

/// Rows of a table by key.
pub type Rows = BTreeMap<Bytes, Bytes>;

impl Store {
    /// Commits there are.
    pub fn commits(&self) -> usize {
        self.0.lock().commits.len()
    }

    /// Commits that no loss of power takes away.
    pub fn durable(&self) -> usize {
        self.0.lock().durable
    }

    /// The state as it was behind the first `commits` commits: a checkpoint, or what a loss of power leaves.
    pub fn copy(&self, commits: usize) -> Self {
        let inner = self.0.lock();
        let commits = inner.commits[..commits.min(inner.commits.len())].to_vec();
        let durable = commits.len();
        Self(Arc::new(Mutex::new(Inner { specs: inner.specs.clone(), commits, durable, tables: None })))
    }

    /// States of one task, which dies as `fuse` says.
    pub fn env(&self, fuse: &Fuse) -> StateEnv {
        let (store, fuse) = (self.clone(), fuse.clone());
        StateEnv::lent(Box::new(move |_, specs| {
            let tables = store.0.lock().open(specs)?;
            Ok(Box::new(SimBackend { tables, store: store.clone(), fuse: fuse.clone() }))
        }))
    }

    /// All committed rows: of the operators' tables, and digests.
    pub fn rows(&self) -> Result<BTreeMap<String, Rows>, StateError> {
        let inner = self.0.lock();
        let mut all = BTreeMap::new();
        let Some(tables) = &inner.tables else { return Ok(all) };
        let system = std::iter::once(SYSTEM_TABLE);
        for (number, name) in inner.specs.iter().map(|spec| spec.name.as_str()).chain(system).enumerate() {
            let mut rows = Rows::new();
            Backend::scan(tables, number, &[], None, &mut |key, value| {
                rows.insert(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
                true
            })?;
            if name == SYSTEM_TABLE {
                rows.retain(|key, _| key.first() == Some(&b'd'));
            }
            all.insert(name.to_owned(), rows);
        }
        Ok(all)
    }
}

impl Inner {
    fn open(&mut self, specs: &[TableSpec]) -> Result<MemoryBackend, StateError> {
        if self.tables.is_none() {
            let mut tables = MemoryBackend::new(specs);
            self.commits.iter().try_for_each(|commit| tables.commit(commit))?;
            self.specs = specs.to_vec();
            self.tables = Some(tables);
        }
        self.tables.clone().ok_or_else(|| StateError::Storage("no tables".into()))
    }
}

struct SimBackend {
    tables: MemoryBackend,
    store: Store,
    fuse: Fuse,
}

impl SimBackend {
    fn passes(&self, point: Point) -> Result<(), StateError> {
        if self.fuse.passes(point) { Ok(()) } else { Err(StateError::Storage(DIED.into())) }
    }
}

impl Backend for SimBackend {
    fn get(&self, table: usize, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        Backend::get(&self.tables, table, key)
    }

    fn scan(
        &self,
        table: usize,
        from: &[u8],
        to: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StateError> {
        Backend::scan(&self.tables, table, from, to, visit)
    }

    fn commit(&mut self, changes: &[Change]) -> Result<(), StateError> {
        self.passes(Point::Commit)?;
        self.tables.commit(changes)?;
        self.store.0.lock().commits.push(Arc::new(changes.to_vec()));
        self.passes(Point::Committed)
    }

    fn sync(&mut self) -> Result<(), StateError> {
        let mut store = self.store.0.lock();
        store.durable = store.commits.len();
        Ok(())
    }

    fn reader(&self) -> Arc<dyn Reader> {
        self.tables.reader()
    }
}
