//! Reading and trimming partitions, within the bounds that they have on the cluster and by the log's marks.

use std::time::Duration;

use sluice_proto::Offset;
use tokio::time::Instant;

use super::cluster::Place;
use super::{Inner, KnownPartition, marks};
use crate::metrics::count;
use crate::{Bounds, LogError, Partition, Record, check_range};

/// How long a record that is there may take to come: SPUs may change meanwhile.
pub(super) const ARRIVES: Duration = Duration::from_secs(30);
/// How long one may take to come to a cursor that is open, before its connection is taken for one that hangs.
const HANGS: Duration = Duration::from_secs(2);
/// Between two tries.
pub(super) const PAUSE: Duration = Duration::from_millis(50);

impl Inner {
    pub(super) async fn read(
        &self,
        at: &Partition,
        offset: Offset,
        max_bytes: usize,
        wait: Duration,
    ) -> Result<Vec<Record>, LogError> {
        let known = self.known(at).await?;
        let KnownPartition { place, genesis, .. } = &known.partitions[at.number as usize];
        if offset > Offset::ZERO {
            return self.read_behind(at, place, offset, max_bytes, wait).await;
        }
        // With the genesis record in hand there is nothing to wait for. The newest record is never removed, so what follows
        // tells the reader where to go on.
        let from = self.bounds(at).await?.start.max(Offset::new(1));
        let mut records = vec![Record { offset, value: genesis.clone() }];
        records.extend(self.read_behind(at, place, from, max_bytes, Duration::ZERO).await?);
        Ok(records)
    }

    /// As [`crate::Log::read`], behind the genesis record. How far the partition goes is asked where no cursor has been yet, and
    /// where nothing came for as long as the caller waits: so a partition that has become shorter is noticed.
    async fn read_behind(
        &self,
        at: &Partition,
        place: &Place,
        from: Offset,
        max_bytes: usize,
        wait: Duration,
    ) -> Result<Vec<Record>, LogError> {
        let deadline = Instant::now() + wait;
        let counters = self.appends.counters();
        if self.readers.is_known(place, from.get()) && !self.is_trimmed(at, from).await {
            count(&counters.tail_reads, 1);
            let found = self.read_once(at, place, from, max_bytes, deadline).await?;
            if !found.is_empty() {
                return Ok(found);
            }
        }
        loop {
            count(&counters.disk_reads, 1);
            let bounds = self.bounds_by_marks(at, place).await?;
            check_range(at, from, bounds)?;
            if from < bounds.next {
                return self.read_there(at, place, from, max_bytes).await;
            }
            if Instant::now() >= deadline {
                return Ok(Vec::new());
            }
            let found = self.read_once(at, place, from, max_bytes, deadline).await?;
            if !found.is_empty() {
                return Ok(found);
            }
        }
    }

    /// What is known to be there. A cursor that does not show it is given up: an SPU that has vanished says nothing.
    async fn read_there(
        &self,
        at: &Partition,
        place: &Place,
        from: Offset,
        max_bytes: usize,
    ) -> Result<Vec<Record>, LogError> {
        if self.readers.is_known(place, from.get()) {
            let found = self.read_once(at, place, from, max_bytes, Instant::now() + HANGS).await?;
            if !found.is_empty() {
                return Ok(found);
            }
            tracing::debug!(%at, %from, "a cursor shows nothing of what is there: it is given up");
            self.readers.give_up_at(place, from.get());
        }
        let found = self.read_once(at, place, from, max_bytes, Instant::now() + ARRIVES).await?;
        let missing = || LogError::Storage(format!("Fluvio does not show {at} offset {from}, and has it"));
        if found.is_empty() { Err(missing()) } else { Ok(found) }
    }

    async fn read_once(
        &self,
        at: &Partition,
        place: &Place,
        from: Offset,
        max_bytes: usize,
        deadline: Instant,
    ) -> Result<Vec<Record>, LogError> {
        let (what, until) = (format!("reading {at} from offset {from} on"), Instant::now() + ARRIVES);
        loop {
            let fault = match self.readers.read(place, from.get(), max_bytes, deadline).await {
                Ok(found) => return Ok(found),
                Err(fault) => fault,
            };
            // Where the place is right, an SPU that is about to go, or has just come, said otherwise.
            check_range(at, from, self.bounds_by_marks(at, place).await?)?;
            self.again(&what, fault, until).await?;
        }
    }

    async fn is_trimmed(&self, at: &Partition, from: Offset) -> bool {
        let all = Bounds { start: Offset::ZERO, next: Offset::new(u64::MAX) };
        self.marks.said.lock().await.what.within(at, all).start > from
    }

    /// Where a partition begins and ends, by the marks that are known.
    async fn bounds_by_marks(&self, at: &Partition, place: &Place) -> Result<Bounds, LogError> {
        let bounds = self.cluster.bounds(place, at).await?;
        Ok(self.marks.said.lock().await.what.within(at, bounds))
    }

    /// The same, by all marks there are.
    pub(super) async fn bounds(&self, of: &Partition) -> Result<Bounds, LogError> {
        let known = self.known(of).await?;
        let place = &known.partitions[of.number as usize].place;
        let marks = self.refresh_marks().await?;
        Ok(marks.what.within(of, self.cluster.bounds(place, of).await?))
    }

    pub(super) async fn trim(&self, of: &Partition, before: Offset) -> Result<(), LogError> {
        let known = self.known(of).await?;
        let place = &known.partitions[of.number as usize].place;
        let mut marks = self.refresh_marks().await?;
        let bounds = marks.what.within(of, self.cluster.bounds(place, of).await?);
        if let Some(start) = crate::trim_to(of, bounds, before)? {
            self.mark(&mut marks, marks::trimmed(of, start)).await?;
            count(&self.appends.counters().trimmed, start.saturating_sub(bounds.start.get()));
        }
        Ok(())
    }
}
