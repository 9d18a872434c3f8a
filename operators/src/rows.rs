//! A table's rows as values in memory: read once after the start, written back once a batch
//! ([`sluice_topology::Operator::settle`]).
//!
//! Under load a batch holds many shares of one session or worker. Reading, writing and hashing its row for each of them
//! cost more than judging the share. For tables whose size goes with sessions and workers, not with shares.

use indexmap::IndexMap;
use sluice_topology::OperatorError;
use sluice_topology::operator::StateView;

/// A value that a row holds.
pub(crate) trait Row: Sized {
    /// Reads what [`Row::write`] wrote.
    fn read(row: &[u8]) -> Result<Self, OperatorError>;

    /// Appends the row.
    fn write(&self, to: &mut Vec<u8>);
}

/// All rows of one table as values. Nothing here depends on how keys are hashed.
pub(crate) struct Rows<V> {
    table: usize,
    loaded: bool,
    rows: IndexMap<Box<[u8]>, Kept<V>, foldhash::fast::RandomState>,
    /// Places of the rows that have changed since they were last written.
    changed: Vec<usize>,
}

/// A row that was taken out, by its key.
pub(crate) type Taken<V> = (Box<[u8]>, V);

struct Kept<V> {
    value: V,
    /// Of the row as it was last written; `None` if it never was.
    hash: Option<u128>,
    changed: bool,
}

impl<V: Row> Rows<V> {
    /// Rows of the operator's table number `table`, which nothing else writes to.
    pub(crate) fn of(table: usize) -> Self {
        Self { table, loaded: false, rows: IndexMap::default(), changed: Vec::new() }
    }

    /// Reads the rows, if that has not been done.
    fn load(&mut self, state: &StateView<'_>) -> Result<(), OperatorError> {
        if std::mem::replace(&mut self.loaded, true) {
            return Ok(());
        }
        let (rows, mut scratch, mut failed) = (&mut self.rows, Vec::new(), None);
        state.scan(self.table, &[], None, &mut |key, row| {
            let hash = Some(sluice_state::row_hash(&mut scratch, key, row));
            let read = V::read(row).map(|value| rows.insert(key.into(), Kept { value, hash, changed: false }));
            failed = read.err();
            failed.is_none()
        })?;
        failed.map_or(Ok(()), Err)
    }

    /// The value of `key`, to be changed; `absent` if there is no row.
    pub(crate) fn change(
        &mut self,
        key: &[u8],
        state: &StateView<'_>,
        absent: impl FnOnce() -> V,
    ) -> Result<&mut V, OperatorError> {
        self.load(state)?;
        let place = match self.rows.get_index_of(key) {
            Some(place) => place,
            None => self.rows.insert_full(key.into(), Kept { value: absent(), hash: None, changed: false }).0,
        };
        Ok(self.changing(place))
    }

    /// Changes a row that is there.
    pub(crate) fn set(&mut self, key: &[u8], value: V) {
        if let Some(place) = self.rows.get_index_of(key) {
            *self.changing(place) = value;
        }
    }

    /// The value of the row at `place`, which is to be written.
    fn changing(&mut self, place: usize) -> &mut V {
        let row = &mut self.rows[place];
        if !std::mem::replace(&mut row.changed, true) {
            self.changed.push(place);
        }
        &mut row.value
    }

    /// Keys and values in no order that means anything: what is made of them must be put in one.
    pub(crate) fn all(&mut self, state: &StateView<'_>) -> Result<impl Iterator<Item = (&[u8], &V)>, OperatorError> {
        self.load(state)?;
        Ok(self.rows.iter().map(|(key, row)| (&**key, &row.value)))
    }

    /// Takes rows out, in the order of their keys. To remove them from the state, too, is left to the caller, who may
    /// know a shorter way than one by one.
    pub(crate) fn take(
        &mut self,
        state: &StateView<'_>,
        mut gone: impl FnMut(&[u8], &V) -> bool,
    ) -> Result<Vec<Taken<V>>, OperatorError> {
        self.load(state)?;
        let mut taken: Vec<_> =
            self.rows.extract_if(.., |key, row| gone(key, &row.value)).map(|(key, row)| (key, row.value)).collect();
        taken.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        if !taken.is_empty() {
            // Those that are left have moved.
            self.changed.clear();
            self.changed.extend(self.rows.values().enumerate().filter(|(_, row)| row.changed).map(|(place, _)| place));
        }
        Ok(taken)
    }

    /// Writes what has changed.
    pub(crate) fn settle(&mut self, state: &mut StateView<'_>) -> Result<(), OperatorError> {
        let mut bytes = Vec::new();
        for place in self.changed.drain(..) {
            if let Some((key, row)) = self.rows.get_index_mut(place) {
                row.changed = false;
                bytes.clear();
                row.value.write(&mut bytes);
                row.hash = Some(state.put_over(self.table, key, row.hash, &bytes)?);
            }
        }
        Ok(())
    }
}
