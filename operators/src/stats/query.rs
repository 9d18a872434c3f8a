//! Reading the statistics from committed state: for the API, from any thread.

use sluice_proto::EventTime;
use sluice_proto::v1::Reason;
use sluice_state::{Reader, StateError};

use super::{ACCEPTED, BUCKETS, Subject};
use crate::codec::{Sum, read_u64, split_text};

/// Work over a stretch of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// Expected hashes.
    pub work: u128,
    /// Milliseconds.
    pub over_ms: u64,
}

/// Shares since the statistics began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Accepted shares.
    pub accepted: u64,
    /// Their work, expected hashes.
    pub work: u128,
    /// Shares not accepted, by reason, ascending.
    pub rejected: Vec<(Reason, u64)>,
    /// End of the last slice with an accepted share, milliseconds since the Unix epoch; 0 if there is none.
    pub last_share_ms: u64,
}

/// Reads the statistics of an operator called `name` in the topology.
pub struct Stats<'a> {
    reader: &'a dyn Reader,
    name: &'a str,
}

impl<'a> Stats<'a> {
    /// Statistics in `reader`, the state of the task of the operator `name`.
    pub fn new(reader: &'a dyn Reader, name: &'a str) -> Self {
        Self { reader, name }
    }

    fn table(&self, table: &str) -> String {
        format!("{}.{table}", self.name)
    }

    /// Work of `subject` in the `window_ms` before `now`, in whole buckets: minutes up to an hour, else 10 minutes.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub fn rate(&self, subject: Subject<'_>, window_ms: u64, now: EventTime) -> Result<Rate, StateError> {
        let (table, length) = if window_ms <= 3_600_000 { ("minutes", BUCKETS[0]) } else { ("tens", BUCKETS[1]) };
        let table = self.table(table);
        let last = now.millis() / length;
        let first = last.saturating_sub(window_ms / length);
        let name = subject.key();
        let mut work = 0_u128;
        for bucket in first..=last {
            let row = self.reader.get(&table, &[&bucket.to_be_bytes()[..], &name].concat())?;
            work = work.saturating_add(sum(row.as_deref())?.work);
        }
        Ok(Rate { work, over_ms: (now.millis() - first * length).max(1) })
    }

    /// Totals of `subject`.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub fn totals(&self, subject: Subject<'_>) -> Result<Totals, StateError> {
        let name = subject.key();
        let mut totals = Totals::default();
        let mut failed = None;
        let end = successor(&name);
        self.reader.scan(&self.table("totals"), &name, end.as_deref(), &mut |key, value| {
            // A longer key belongs to another subject whose name begins alike.
            let [kind] = key[name.len()..] else { return true };
            match (sum(Some(value)), kind) {
                (Ok(sum), ACCEPTED) => (totals.accepted, totals.work) = (sum.shares, sum.work),
                (Ok(sum), reason) => {
                    totals.rejected.push((Reason::try_from(i32::from(reason)).unwrap_or_default(), sum.shares));
                }
                (Err(error), _) => failed = Some(error),
            }
            failed.is_none()
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        let last = self.reader.get(&self.table("last"), &name)?;
        totals.last_share_ms = read_u64(last.as_deref()).map_err(|error| StateError::Storage(error.to_string()))?;
        Ok(totals)
    }

    /// Account, worker and end of the last slice with an accepted share (milliseconds) of every worker, or of those of
    /// one account, by name.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub fn workers(&self, account: Option<&str>) -> Result<Vec<(String, String, u64)>, StateError> {
        let mut from = vec![b'w'];
        if let Some(account) = account {
            crate::codec::push_text(&mut from, account);
        }
        let mut workers = Vec::new();
        let mut failed = None;
        let end = successor(&from);
        self.reader.scan(&self.table("last"), &from, end.as_deref(), &mut |key, value| {
            let read = || {
                let (account, rest) = split_text(&key[1..])?;
                let (worker, _) = split_text(rest)?;
                Ok((account.to_owned(), worker.to_owned(), read_u64(Some(value))?))
            };
            match read() {
                Ok(worker) => workers.push(worker),
                Err::<_, sluice_topology::OperatorError>(error) => failed = Some(error.to_string()),
            }
            failed.is_none()
        })?;
        failed.map_or(Ok(workers), |what| Err(StateError::Storage(what)))
    }
}

fn sum(row: Option<&[u8]>) -> Result<Sum, StateError> {
    Sum::read(row).map_err(|error| StateError::Storage(error.to_string()))
}

/// The smallest key above all that begin with `prefix`; `None` if there is none.
fn successor(prefix: &[u8]) -> Option<Vec<u8>> {
    let kept = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut next = prefix[..=kept].to_vec();
    next[kept] += 1;
    Some(next)
}
