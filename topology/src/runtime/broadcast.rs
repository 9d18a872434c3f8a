//! Broadcast tables of a task: fed by a topic, read on when a record asks for it, rebuilt from the task's state.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use sluice_log::{Partition, Record, SharedLog};
use sluice_proto::{Offset, decode};
use sluice_state::Tables;

use super::error::TaskError;
use super::feed::Feed;
use super::lanes::Watermarks;
use super::persist;
use super::plan::{TableFeed, TaskSpec};
use super::reader::ReadError;
use super::task::Surroundings;
use crate::operator::{BroadcastTable, BuildContext, Lookups};

/// How many offsets are read again first where a table has forgotten something, and by how much more each time.
const RECALL: u64 = 256;
const RECALL_GROWTH: u64 = 8;

/// What feeds one table; the table itself is among the task's [`Lookups`].
pub(crate) struct Broadcast {
    pub(crate) kind: &'static str,
    name: String,
    slot: String,
    pub(crate) feed: Feed,
    /// Records whose bytes are kept in the task's state.
    kept: BTreeSet<Offset>,
    /// Offset of the oldest of them; what is before it the table may have forgotten.
    kept_from: Offset,
    pub(crate) processed: u64,
}

/// Opens the broadcast tables of a task.
pub(crate) async fn open_tables(
    spec: &TaskSpec,
    around: &Surroundings,
    tables: &mut Tables,
) -> Result<(Lookups, Vec<Broadcast>), TaskError> {
    let mut lookups = Lookups::default();
    let mut broadcasts = Vec::with_capacity(spec.tables.len());
    for feed in &spec.tables {
        let context = BuildContext {
            name: &feed.shown,
            settings: &feed.settings,
            network: &around.network,
            partition: 0,
            partitions: 1,
            externals: &around.externals,
        };
        let built = (feed.kind.build)(&context);
        let mut table = built.map_err(|error| TaskError::Build { name: feed.shown.clone(), error })?;
        broadcasts.push(Broadcast::open(feed, table.as_mut(), &around.log, tables).await?);
        lookups.insert(feed.kind.name, table);
    }
    Ok((lookups, broadcasts))
}

impl Broadcast {
    /// Rebuilds `table` from the records that the state kept, and reads on behind them. With no state yet, it begins
    /// with the oldest record that the log has.
    pub(crate) async fn open(
        spec: &TableFeed,
        table: &mut dyn BroadcastTable,
        log: &SharedLog,
        tables: &mut Tables,
    ) -> Result<Self, TaskError> {
        let (partition, slot) = (Partition::new(spec.topic.clone(), 0), format!("table/{}", spec.kind.name));
        let (next, watermarks) = match persist::position(tables, &slot)? {
            Some(next) => {
                let mut watermarks = Watermarks::from_the_start();
                persist::load_watermarks(tables, &slot, &mut watermarks)?;
                (next, watermarks)
            }
            None => {
                let (next, watermarks) = oldest(log, &partition).await?;
                persist::save_start(tables, &slot, &watermarks);
                (next, watermarks)
            }
        };
        let feed = Feed::new(log.clone(), partition, next, watermarks);
        let (kind, name, kept) = (spec.kind.name, spec.shown.clone(), BTreeSet::new());
        let mut this = Self { kind, name, slot, feed, kept, kept_from: Offset::ZERO, processed: 0 };
        for (offset, raw) in persist::raw_records(tables, &this.slot)? {
            let partition = this.feed.partition().clone();
            let record = decode(raw).map_err(|error| ReadError::Decode { partition, offset, error })?;
            table.apply(offset, &record).map_err(|error| this.refused(offset, error))?;
            this.kept.insert(offset);
        }
        this.kept_from = table.keep_from();
        Ok(this)
    }

    fn refused(&self, offset: Offset, error: crate::operator::OperatorError) -> TaskError {
        TaskError::Table { table: self.name.clone(), partition: self.feed.partition().clone(), offset, error }
    }

    /// The table has applied the record at `offset`, or there is none there and it is past it.
    pub(crate) fn has_reached(&self, offset: Offset) -> bool {
        self.feed.next > offset
    }

    /// Applies one read's worth of records that are ready, if there are any; none at or behind `until`.
    pub(crate) fn apply_ready(
        &mut self,
        until: Option<Offset>,
        lookups: &mut Lookups,
        tables: &mut Tables,
    ) -> Result<(), TaskError> {
        let records = self.feed.take(until);
        self.apply(records, lookups, tables)
    }

    fn apply(&mut self, records: Vec<Record>, lookups: &mut Lookups, tables: &mut Tables) -> Result<(), TaskError> {
        let Some(table) = lookups.get_mut(self.kind) else {
            let what = format!("no table of kind {}", self.kind);
            return Err(TaskError::Plan { task: self.name.clone(), what });
        };
        for record in records {
            let next = record.offset.next();
            if let Some(admitted) = self.feed.gate.pass(record)? {
                let offset = admitted.offset;
                table.apply(offset, &admitted.envelope).map_err(|error| self.refused(offset, error))?;
                persist::keep_raw(tables, &self.slot, offset, admitted.raw);
                self.kept.insert(offset);
                self.processed += 1;
            }
            self.feed.next = next;
        }
        self.kept_from = table.keep_from();
        let still_needed = self.kept.split_off(&self.kept_from);
        for forgotten in std::mem::replace(&mut self.kept, still_needed) {
            persist::forget_raw(tables, &self.slot, forgotten);
        }
        persist::save_feed(tables, &self.slot, &mut self.feed);
        Ok(())
    }

    /// Reads on until the record at `offset` has been applied, for at most `timeout`; tells whether it was. A gateway
    /// cites only what it has read itself, so the record is in the log, and the wait is one for the log to hand it out.
    pub(crate) async fn reach(
        &mut self,
        offset: Offset,
        timeout: Duration,
        lookups: &mut Lookups,
        tables: &mut Tables,
    ) -> Result<bool, TaskError> {
        let deadline = tokio::time::Instant::now() + timeout;
        while !self.has_reached(offset) {
            let feed = &mut self.feed;
            let fetched = poll_fn(|cx| match feed.poll_fetch(cx) {
                Err(error) => Poll::Ready(Err(error)),
                Ok(()) if feed.is_ready() => Poll::Ready(Ok(())),
                Ok(()) => Poll::Pending,
            });
            match tokio::time::timeout_at(deadline, fetched).await {
                Ok(fetched) => fetched?,
                Err(_) => return Ok(false),
            }
            // Not further: who catches up with years of shares would find the jobs of their time forgotten.
            self.apply_ready(Some(offset.next()), lookups, tables)?;
        }
        Ok(true)
    }

    /// Where the table has forgotten what the record at `offset` brought, reads the topic again, from further and further
    /// back, until the table knows it again. A record that the log has trimmed stays forgotten.
    pub(crate) async fn recall(&mut self, offset: Offset, lookups: &mut Lookups) -> Result<(), TaskError> {
        if offset >= self.kept_from {
            return Ok(());
        }
        let Some(table) = lookups.get_mut(self.kind).filter(|table| table.has_forgotten(offset)) else { return Ok(()) };
        let (start, mut span) = (self.feed.start_of_log().await?, RECALL);
        loop {
            let from = Offset::new((offset.get() + 1).saturating_sub(span)).max(start);
            let records = self.feed.read_again(from, offset).await?;
            if table.recall(offset, &records).map_err(|error| self.refused(offset, error))? {
                tracing::info!(table = self.name, %offset, records = records.len(), "read again what a table had forgotten");
                return Ok(());
            }
            if from <= start {
                tracing::error!(
                    table = self.name, partition = %self.feed.partition(), %offset, %start,
                    "a record needs what the log has trimmed: keep the topic for longer"
                );
                return Ok(());
            }
            span = span.saturating_mul(RECALL_GROWTH);
        }
    }

    /// The error of a record that needs `needed`, which [`Broadcast::reach`] did not find.
    pub(crate) fn behind(&self, operator: &str, needed: Offset, timeout: Duration) -> TaskError {
        TaskError::TableBehind {
            operator: operator.to_owned(),
            table: self.name.clone(),
            partition: self.feed.partition().clone(),
            needed,
            have: self.feed.next,
            waited_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// Where a table without state begins: with the first record, or with the oldest one left.
async fn oldest(log: &SharedLog, partition: &Partition) -> Result<(Offset, Watermarks), TaskError> {
    let bounds = log.bounds(partition).await.map_err(|error| ReadError::Log {
        partition: partition.clone(),
        offset: Offset::ZERO,
        error,
    })?;
    if bounds.start <= Offset::new(1) {
        return Ok((Offset::ZERO, Watermarks::from_the_start()));
    }
    tracing::warn!(%partition, start = %bounds.start, "a table begins behind records that the log has trimmed");
    Ok((bounds.start, Watermarks::mid_stream()))
}
