//! Rounds of appends: shares of one turn of a worker are appended together, and answered when they are durable.

use std::collections::VecDeque;
use std::future::pending;

use futures::future::BoxFuture;
use sluice_log::{LogError, SharedLog};

use crate::connection::Connection;
use crate::outlet::{BlockAppend, Outlet, Round};

/// Rounds under way at once.
const MAX_ROUNDS: usize = 2;

/// Rounds under way, in the order in which they were begun.
pub(crate) struct Rounds<C = Connection>(VecDeque<(Append, Round<C>)>);

/// An append under way; `None` if there was nothing to append.
type Append = Option<BoxFuture<'static, Result<(), LogError>>>;

/// The shares of a round and the blocks that they made. Partitions become durable each for itself: a share that was
/// answered while its block could still be lost would be counted, and the block would not be (invariant B1).
fn with_blocks(shares: Append, blocks: Vec<BlockAppend>) -> BoxFuture<'static, Result<(), LogError>> {
    Box::pin(async move {
        for block in blocks {
            block.await?;
        }
        match shares {
            Some(shares) => shares.await,
            None => Ok(()),
        }
    })
}

impl<C> Default for Rounds<C> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<C> Rounds<C> {
    /// One more may be begun.
    pub(crate) fn have_room(&self) -> bool {
        self.0.len() < MAX_ROUNDS
    }

    /// Appends what `outlet` has taken in since the last round.
    pub(crate) fn begin(&mut self, outlet: &mut Outlet<C>, log: &SharedLog) {
        let (round, batches, blocks) = outlet.take();
        // A round of answers alone, to what was no share, only waits for the rounds before it.
        let append = if batches.is_empty() { None } else { Some(log.append_all(batches)) };
        self.0.push_back((if blocks.is_empty() { append } else { Some(with_blocks(append, blocks)) }, round));
    }

    /// The first round, once it is durable: its answers may be given (invariant S1). Never, while there is none.
    ///
    /// # Errors
    /// If it could not be appended: its answers are never given.
    pub(crate) async fn durable(&mut self) -> Result<Round<C>, LogError> {
        if let Some((Some(append), _)) = self.0.front_mut() {
            append.await?;
        }
        match self.0.pop_front() {
            Some((_, round)) => Ok(round),
            None => pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use futures::FutureExt;
    use sluice_log::{MemoryLog, Partition};
    use sluice_proto::Offset;
    use tokio::sync::oneshot;

    use super::*;

    fn outlet_with_a_block() -> (Outlet<()>, oneshot::Sender<Result<Offset, LogError>>) {
        let mut outlet = Outlet::new(Vec::new(), 1);
        let (durable, append) = oneshot::channel();
        outlet.add_block(append.map(|done| done.unwrap()).boxed());
        outlet.answer(&Rc::new(()), 1, b"true");
        (outlet, durable)
    }

    /// Partitions become durable each for itself: the share may be there before its block is.
    #[tokio::test]
    async fn b1_a_share_is_answered_once_its_block_is_durable_too() {
        let log: SharedLog = MemoryLog::new();
        let (mut outlet, durable) = outlet_with_a_block();
        let mut rounds = Rounds::default();
        rounds.begin(&mut outlet, &log);
        assert!(rounds.durable().now_or_never().is_none(), "the block is not durable yet");
        durable.send(Ok(Offset::new(1))).unwrap();
        let round = rounds.durable().now_or_never().unwrap().unwrap();
        assert_eq!(round.answers, b"true");
        assert!(outlet.is_empty() && rounds.durable().now_or_never().is_none());
    }

    #[tokio::test]
    async fn b1_a_block_that_could_not_be_appended_ends_the_rounds() {
        let log: SharedLog = MemoryLog::new();
        let (mut outlet, durable) = outlet_with_a_block();
        let mut rounds = Rounds::default();
        rounds.begin(&mut outlet, &log);
        durable.send(Err(LogError::Unknown(Partition::new("block.candidates", 0)))).unwrap();
        assert!(rounds.durable().now_or_never().unwrap().is_err());
    }
}
