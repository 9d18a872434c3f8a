//! Which cursor serves a read: readers at the same place share one, those behind get one of their own.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::cluster::{Cluster, Place};
use super::cursor::{Cursor, Found};
use super::link::Fault;
use crate::Record;

/// A cursor that nobody has read for this long is given up.
const IDLE: Duration = Duration::from_secs(20);
/// How often that is looked for.
const TURN: Duration = Duration::from_secs(1);

/// All who read.
pub(super) struct Readers {
    cluster: Arc<Cluster>,
    runtime: Handle,
    cursors: Mutex<HashMap<Place, Vec<Arc<Cursor>>>>,
}

impl Readers {
    pub(super) fn new(cluster: Arc<Cluster>, runtime: Handle) -> Arc<Self> {
        let readers = Arc::new(Self { cluster, runtime, cursors: Mutex::default() });
        readers.runtime.spawn(look_after(Arc::downgrade(&readers)));
        readers
    }

    /// The records of a partition from `offset` on, which lies within it; see [`Cursor::read`]. After a fault the next read
    /// begins anew.
    pub(super) async fn read(
        &self,
        place: &Place,
        offset: u64,
        max_bytes: usize,
        deadline: Instant,
    ) -> Result<Vec<Record>, Fault> {
        loop {
            let cursor = self.cursor(place, offset);
            match cursor.read(offset, max_bytes, deadline).await {
                Found::Records(records) => return Ok(records),
                Found::Nothing => return Ok(Vec::new()),
                Found::Failed(fault) => {
                    self.give_up(place, |cursor| cursor.has_failed());
                    return Err(fault);
                }
                Found::Elsewhere => {}
            }
        }
    }

    /// Whether a read at `offset` goes on where one has been.
    pub(super) fn is_known(&self, place: &Place, offset: u64) -> bool {
        let cursors = self.cursors.lock();
        cursors.get(place).is_some_and(|open| open.iter().any(|cursor| cursor.covers(offset)))
    }

    fn cursor(&self, place: &Place, offset: u64) -> Arc<Cursor> {
        let mut cursors = self.cursors.lock();
        let open = cursors.entry(place.clone()).or_default();
        if let Some(known) = open.iter().find(|cursor| cursor.covers(offset)) {
            return Arc::clone(known);
        }
        let new = Arc::new(Cursor::new(Arc::clone(&self.cluster), &self.runtime, place.clone(), offset));
        open.push(Arc::clone(&new));
        new
    }

    /// Gives up the cursors at a place that has more than they show: their connection hangs.
    pub(super) fn give_up_at(&self, place: &Place, offset: u64) {
        self.give_up(place, |cursor| cursor.covers(offset));
    }

    /// Gives up those cursors of a partition that are done with.
    fn give_up(&self, place: &Place, done: impl Fn(&Cursor) -> bool) {
        let mut cursors = self.cursors.lock();
        let Some(open) = cursors.get_mut(place) else { return };
        open.retain(|cursor| !done(cursor));
        if open.is_empty() {
            cursors.remove(place);
        }
    }

    /// Gives up the cursors that nobody reads.
    fn sweep(&self) {
        let mut cursors = self.cursors.lock();
        for open in cursors.values_mut() {
            open.retain(|cursor| Arc::strong_count(cursor) > 1 || cursor.idle() < IDLE);
        }
        cursors.retain(|_, open| !open.is_empty());
    }
}

/// Gives up idle cursors, as long as there is a log.
async fn look_after(readers: Weak<Readers>) {
    loop {
        tokio::time::sleep(TURN).await;
        let Some(readers) = readers.upgrade() else { return };
        readers.sweep();
    }
}
