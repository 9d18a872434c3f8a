//! Vardiff's decisions: read from all partitions of their topic, handed to the workers of their sessions.

use std::sync::Arc;
use std::time::Duration;

use sluice_log::{Partition, SharedLog};
use sluice_mining::Difficulty;
use sluice_proto::v1::DifficultyTarget;
use sluice_proto::{Body, Offset};
use sluice_topology::runtime::TopicReader;
use tokio::sync::mpsc::Sender;

use crate::GatewayError;
use crate::shared::Shared;

/// Longest wait for the next decision before asking again.
const POLL: Duration = Duration::from_secs(5);

/// Offsets at the end of a partition that a start reads: sessions of before, and of gateways that are no more, go on here
/// with what was decided last.
const TAIL: u64 = 8192;

/// A decision for a session of a worker.
pub(crate) type Decision = (u64, Difficulty);

/// Reads one partition of decisions.
pub(crate) struct TargetFeed {
    shared: Arc<Shared>,
    workers: Vec<Sender<Decision>>,
    reader: TopicReader,
    partition: Partition,
}

impl TargetFeed {
    /// Takes in what was decided last, and goes on behind it.
    ///
    /// # Errors
    /// If the log has no such partition, or it cannot be read.
    pub(crate) async fn open(
        shared: Arc<Shared>,
        workers: Vec<Sender<Decision>>,
        log: SharedLog,
        partition: Partition,
    ) -> Result<Self, GatewayError> {
        let failed = |error| GatewayError::Log { name: shared.config.name.clone(), error };
        let bounds = log.bounds(&partition).await.map_err(failed)?;
        let read = |error| GatewayError::Read { name: shared.config.name.clone(), error: Box::new(error) };
        let reader = match bounds.next.get().checked_sub(TAIL).filter(|from| *from > bounds.start.get().max(1)) {
            Some(from) => TopicReader::new(log, partition.clone(), Offset::new(from)),
            None => TopicReader::from_oldest(log, partition.clone()).await.map_err(read)?,
        };
        let mut feed = Self { shared: Arc::clone(&shared), workers, reader, partition };
        while feed.reader.position() < bounds.next {
            // Offsets may have holes: where nothing comes at once, nothing is there.
            let before = feed.reader.position();
            feed.next(Duration::ZERO).await?;
            if feed.reader.position() == before {
                break;
            }
        }
        Ok(feed)
    }

    /// Hands decisions over until the partition cannot be read any more.
    pub(crate) async fn run(mut self) {
        loop {
            if let Err(error) = self.next(POLL).await {
                return self.shared.fail(error.to_string());
            }
        }
    }

    /// Takes in the next decisions.
    async fn next(&mut self, wait: Duration) -> Result<(), GatewayError> {
        let name = || self.shared.config.name.clone();
        let read = |error| GatewayError::Read { name: name(), error: Box::new(error) };
        for (offset, envelope) in self.reader.next_batch(wait).await.map_err(read)? {
            let Some(Body::DifficultyTarget(target)) = envelope.body else {
                let found = format!("{} offset {offset} is no difficulty", self.partition);
                return Err(GatewayError::Target {
                    name: name(),
                    problem: format!("{found}: correct the wiring of `targets`"),
                });
            };
            self.take(offset, target).await;
        }
        Ok(())
    }

    async fn take(&self, offset: Offset, target: DifficultyTarget) {
        let session = target.session;
        // A difficulty is never 0 in units; should one come, the lowest is nearest.
        let difficulty = Difficulty::from_units(target.difficulty).unwrap_or(Difficulty::MIN);
        self.shared.history.note_session(session, difficulty);
        // Others are of another gateway, or of a start before this one.
        let Some(worker) = self.shared.identities.worker_of_session(session) else { return };
        if let Some(cached) = &self.shared.cached {
            cached.note_session(session, offset, difficulty);
        }
        if let Some(sender) = self.workers.get(worker as usize)
            && sender.send((session, difficulty)).await.is_err()
        {
            tracing::debug!(session, "a difficulty after the stop");
        }
    }
}
