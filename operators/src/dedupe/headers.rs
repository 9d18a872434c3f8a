//! Accepted headers of the jobs that can still be cited: in memory to be looked up, in rows of many to be kept.
//!
//! A row for each header made the state's writes the dearest part of a share. Headers come and go with their job and are
//! never asked for alone after a restart, so they are written together: a job's first 32 in one row, the next 32 in
//! another. What a row holds depends on the order of the shares alone, not on where batches end (invariant S2).

use std::collections::BTreeMap;

use hashbrown::HashTable;
use sluice_topology::OperatorError;
use sluice_topology::operator::StateView;

use crate::codec::damaged;

/// Headers of one row.
const ROW: usize = 32;
/// Double SHA-256 of a header, internal order.
type Hash = [u8; 32];

/// Accepted headers by job.
#[derive(Default)]
pub(super) struct Headers {
    jobs: BTreeMap<u64, Job>,
}

#[derive(Default)]
struct Job {
    /// In the order in which they came.
    headers: Vec<Hash>,
    /// Numbers of the headers, by their first bytes.
    numbers: HashTable<u32>,
    /// The first row that has changed since rows were last written.
    changed: Option<usize>,
}

impl Headers {
    /// Reads what the table number `table` holds.
    pub(super) fn read(table: usize, state: &StateView<'_>) -> Result<Self, OperatorError> {
        let (mut headers, mut failed) = (Self::default(), None);
        state.scan(table, &[], None, &mut |key, row| {
            failed = headers.take_row(key, row).err();
            failed.is_none()
        })?;
        failed.map_or(Ok(headers), Err)
    }

    fn take_row(&mut self, key: &[u8], row: &[u8]) -> Result<(), OperatorError> {
        let (id, number) = key.split_first_chunk::<8>().ok_or_else(|| damaged(key))?;
        let number = number.try_into().map(u32::from_be_bytes).map_err(|_| damaged(key))?;
        let (headers, rest) = row.as_chunks::<32>();
        let job = self.jobs.entry(u64::from_be_bytes(*id)).or_default();
        let in_place = job.headers.len() == number as usize * ROW;
        if !in_place || !rest.is_empty() || headers.is_empty() || headers.len() > ROW {
            return Err(damaged(row));
        }
        for header in headers {
            job.insert(*header)?;
        }
        job.changed = None;
        Ok(())
    }

    /// Takes in a header of `job`; false if it was there.
    pub(super) fn accept(&mut self, job: u64, header: Hash) -> Result<bool, OperatorError> {
        match self.jobs.get_mut(&job) {
            Some(job) => job.insert(header),
            None => {
                // A job gets about as many as the one before it.
                let before = self.jobs.last_key_value().map_or(0, |(_, last)| last.headers.len());
                self.jobs.entry(job).or_insert(Job::with_capacity(before)).insert(header)
            }
        }
    }

    /// Forgets the jobs before `live_from`.
    pub(super) fn expire_below(&mut self, live_from: u64) {
        self.jobs = self.jobs.split_off(&live_from);
    }

    /// Writes the rows that have changed.
    pub(super) fn settle(&mut self, table: usize, state: &mut StateView<'_>) -> Result<(), OperatorError> {
        for (id, job) in &mut self.jobs {
            let Some(first) = job.changed.take() else { continue };
            for (number, row) in job.headers.chunks(ROW).enumerate().skip(first) {
                let mut key = [0; 12];
                key[..8].copy_from_slice(&id.to_be_bytes());
                key[8..].copy_from_slice(&(number as u32).to_be_bytes());
                state.put(table, &key, row.as_flattened())?;
            }
        }
        Ok(())
    }
}

impl Job {
    fn with_capacity(headers: usize) -> Self {
        Self { headers: Vec::with_capacity(headers), numbers: HashTable::with_capacity(headers), changed: None }
    }

    fn insert(&mut self, header: Hash) -> Result<bool, OperatorError> {
        let headers = &self.headers;
        let known = |number: &u32| headers.get(*number as usize) == Some(&header);
        if self.numbers.find(leading(&header), known).is_some() {
            return Ok(false);
        }
        let (count, row) = (headers.len(), headers.len() / ROW);
        let number = u32::try_from(count)
            .map_err(|_| OperatorError::Record("2^32 accepted headers of one job: add partitions".into()))?;
        let again = |number: &u32| headers.get(*number as usize).map_or(0, leading);
        self.numbers.insert_unique(leading(&header), number, again);
        self.headers.push(header);
        self.changed.get_or_insert(row);
        Ok(true)
    }
}

/// A header hash is random already. (The last bytes are the zeros of the proof of work.)
fn leading(header: &Hash) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&header[..8]);
    u64::from_le_bytes(first)
}
