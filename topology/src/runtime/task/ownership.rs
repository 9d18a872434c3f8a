//! Taking a task over, and looking whether it is still one's own (docs/adr/0014).

use std::sync::Arc;

use sluice_proto::{Epoch, Offset, hash64};

use super::Task;
use crate::operator::Ownership;
use crate::runtime::error::TaskError;
use crate::runtime::order::Order;
use crate::runtime::owners::Tenure;
use crate::runtime::{persist, world};

/// The epoch of tasks of before there were claims.
const UNCLAIMED: Epoch = Epoch::new(1);

impl Task {
    /// Takes the task's next epoch and begins it in all output partitions: what an owner before it still writes there
    /// does not count. The epoch goes with the next commit: a task that is promoted may be in the middle of a batch.
    pub(in crate::runtime) async fn take_over(&mut self) -> Result<(), TaskError> {
        let owners = Arc::clone(&self.owners);
        let epoch = owners.claim(&self.identity, self.last_epoch().await?).await?;
        self.outbox.begin(&self.identity, epoch, &owners).await?;
        if let Some(order) = &mut self.order {
            // Last: outputs of an earlier owner that stand before their fences were made in turns that stand before this.
            owners.create(&Order::topic()).await?;
            owners.fence(&self.identity, epoch, vec![order.partition()]).await?;
            order.begin(epoch).await?;
        }
        persist::save_epoch(&mut self.tables, epoch);
        self.nodes.iter_mut().for_each(|node| node.operator.owned(&Ownership { task: &self.identity, epoch }));
        self.tenure = Some(Tenure::new(owners, &self.identity, epoch));
        Ok(())
    }

    /// An epoch that no owner before was above, for what claims do not tell: there were none when the log was written.
    async fn last_epoch(&self) -> Result<Epoch, TaskError> {
        if let Some(stored) = persist::epoch(&self.tables)? {
            return Ok(stored);
        }
        let task = hash64(&self.identity);
        self.owners.open().await?;
        if self.owners.newest(task).is_some() {
            return Ok(Epoch::default());
        }
        if self.outbox.is_source() {
            return Ok(world::newest_epoch(task, self.outbox.partitions(), self.owners.log()).await?);
        }
        let has_worked = self.inputs.iter().any(|input| input.feed.next > Offset::ZERO);
        Ok(if has_worked { UNCLAIMED } else { Epoch::default() })
    }

    /// An error if another process has taken the task over.
    pub(in crate::runtime) async fn still_owned(&self) -> Result<(), TaskError> {
        let Some(tenure) = &self.tenure else { return Ok(()) };
        self.judge(tenure.ended().await?)
    }

    pub(super) fn judge(&self, by: Option<Epoch>) -> Result<(), TaskError> {
        match (&self.tenure, by) {
            (Some(Tenure { epoch: own, .. }), Some(by)) => {
                Err(TaskError::Fenced { task: self.name.clone(), own: *own, by })
            }
            _ => Ok(()),
        }
    }
}
