//! Vardiff's decisions: read from all partitions of their topic, handed to the workers of their sessions.

use std::sync::Arc;
use std::time::Duration;

use sluice_log::{Partition, SharedLog};
use sluice_mining::Difficulty;
use sluice_proto::Body;
use sluice_proto::v1::DifficultyTarget;
use sluice_topology::runtime::TopicReader;
use tokio::sync::mpsc::Sender;

use crate::GatewayError;
use crate::shared::Shared;

/// Longest wait for the next decision before asking again.
const POLL: Duration = Duration::from_secs(5);

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
    /// Begins at the end of the partition: what was decided before is for sessions that are gone.
    ///
    /// # Errors
    /// If the log has no such partition.
    pub(crate) async fn open(
        shared: Arc<Shared>,
        workers: Vec<Sender<Decision>>,
        log: SharedLog,
        partition: Partition,
    ) -> Result<Self, GatewayError> {
        let failed = |error| GatewayError::Log { name: shared.config.name.clone(), error };
        let next = log.bounds(&partition).await.map_err(failed)?.next;
        let reader = TopicReader::new(log, partition.clone(), next);
        Ok(Self { shared, workers, reader, partition })
    }

    /// Hands decisions over until the partition cannot be read any more.
    pub(crate) async fn run(mut self) {
        loop {
            match self.reader.next_batch(POLL).await {
                Ok(batch) => {
                    for (offset, envelope) in batch {
                        match envelope.body {
                            Some(Body::DifficultyTarget(target)) => self.hand_over(target).await,
                            _ => {
                                let found = format!("{} offset {offset} is no difficulty", self.partition);
                                return self.shared.fail(format!("{found}: correct the wiring of `targets`"));
                            }
                        }
                    }
                }
                Err(error) => return self.shared.fail(error.to_string()),
            }
        }
    }

    async fn hand_over(&self, target: DifficultyTarget) {
        let session = target.session;
        // Of another gateway, or of a start before this one.
        let Some(worker) = self.shared.identities.worker_of_session(session) else { return };
        // A difficulty is never 0 in units; should one come, the lowest is nearest.
        let difficulty = Difficulty::from_units(target.difficulty).unwrap_or(Difficulty::MIN);
        if let Some(sender) = self.workers.get(worker as usize)
            && sender.send((session, difficulty)).await.is_err()
        {
            tracing::debug!(session, "a difficulty after the stop");
        }
    }
}
