//! `submit`: sends blocks to the nodes and follows what becomes of them (DESIGN 6, docs/adr/0006, invariant B1).
//!
//! A block is sent before anything is committed, and again if a crash came between: nodes know a block they have. A
//! block that no node could be reached for stays in the state and is sent again with each record that follows.
//!
//! Lent to it are the nodes (`Arc<dyn BlockNodes>`) and the [`Maturity`] that the section `ledger:` asks for.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use sluice_mining::node::{BlockNodes, ChainStatus};
use sluice_mining::wire::display_hash;
use sluice_proto::v1::{BlockOutcome, BlockStatus, SolvedBlock};
use sluice_proto::{Body, EventTime, RecordKind};
use sluice_topology::{
    BuildContext, Context, Input, InputSpec, Key, Keyed, Kind, Operator, OperatorError, OutputSpec, Parallel, Role,
    StateTable,
};

use crate::codec::damaged;

/// Block hash -> [`BlockOutcome`] as last written.
const BLOCKS: usize = 0;
/// Block hash -> [`SolvedBlock`] that no node could be reached for.
const UNSENT: usize = 1;
/// Block hash of a block that is not settled, without a value: what a new tip must ask about.
const OPEN: usize = 2;

/// What the topology knows of it.
pub static KIND: Kind = Kind {
    name: "submit",
    summary: "sends blocks to the nodes and follows them",
    inputs: &[
        InputSpec { name: "in", accepts: &[RecordKind::SolvedBlock], optional: false, priority: true },
        InputSpec { name: "tips", accepts: &[RecordKind::Job], optional: false, priority: false },
    ],
    outputs: &[OutputSpec {
        name: "out",
        writes: &[RecordKind::BlockOutcome],
        optional: false,
        keyed: Keyed::BlockHash,
    }],
    lookups: &[],
    settings: &[],
    state: &[
        StateTable { name: "blocks", group_prefix: None },
        StateTable { name: "unsent", group_prefix: None },
        StateTable { name: "open", group_prefix: None },
    ],
    parallel: Parallel::Single,
    role: Role::Operator(build),
};

/// Confirmations that settle a block, or its rival: `maturity` of the topology's section `ledger:`, as it is lent to the
/// operator. There is no setting of its own, since credits become available by what it writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Maturity(pub u32);

fn build(cx: &BuildContext<'_>) -> Result<Box<dyn Operator>, OperatorError> {
    let missing = |what: &str| OperatorError::Setting(format!("{}: no {what} is lent to it", cx.name));
    let nodes = cx.externals.get::<Arc<dyn BlockNodes>>().cloned().ok_or_else(|| missing("Bitcoin node"))?;
    let Maturity(maturity) = *cx.externals.get::<Maturity>().ok_or_else(|| missing("maturity of blocks"))?;
    Ok(Box::new(Submit { nodes, maturity }))
}

struct Submit {
    nodes: Arc<dyn BlockNodes>,
    maturity: u32,
}

impl Operator for Submit {
    fn process(&mut self, input: &Input<'_>, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        let time = input.record.event_time();
        match &input.record.body {
            Some(Body::SolvedBlock(block)) => {
                let new = cx.state.get(BLOCKS, &block.hash)?.is_none() && cx.state.get(UNSENT, &block.hash)?.is_none();
                if new {
                    self.send(block, time, cx)?;
                }
                self.resend(new.then_some(&block.hash[..]), time, cx)
            }
            Some(Body::Job(job)) => {
                self.resend(None, time, cx)?;
                if job.clean { self.follow(time, cx) } else { Ok(()) }
            }
            other => Err(crate::unexpected("submit", input, other.as_ref())),
        }
    }
}

impl Submit {
    fn send(&self, block: &SolvedBlock, time: EventTime, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        let hash = hash_of(&block.hash)?;
        let nodes = self.nodes.submit(hash, &block.block);
        let accepted = nodes.iter().any(|node| node.accepted);
        let shown = display_hash(&block.hash);
        if !accepted && !nodes.iter().any(|node| node.reached) {
            tracing::error!(block = %shown, height = block.height, "no node could be reached, the block will be sent again");
            return Ok(cx.state.put(UNSENT, &block.hash, &block.encode_to_vec())?);
        }
        let status = if accepted { BlockStatus::Accepted } else { BlockStatus::Refused };
        let outcome = BlockOutcome {
            hash: block.hash.clone(),
            status: status.into(),
            height: block.height,
            coinbase_value: block.coinbase_value,
            nbits: block.nbits,
            account: block.account.clone(),
            worker: block.worker.clone(),
            found_ns: block.found_ns,
            nodes,
            confirmations: 0,
        };
        if accepted {
            tracing::info!(block = %shown, height = block.height, "block accepted");
            cx.state.put(OPEN, &block.hash, &[])?;
        } else {
            tracing::error!(block = %shown, height = block.height, answers = ?outcome.nodes, "block refused by every node");
        }
        cx.state.delete(UNSENT, &block.hash)?;
        write(outcome, time, cx)
    }

    /// Sends what no node could be reached for before, but not `except`, which has just been tried.
    fn resend(&self, except: Option<&[u8]>, time: EventTime, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        for (hash, row) in rows(UNSENT, cx)? {
            if except != Some(&hash[..]) {
                let block = SolvedBlock::decode(row.clone()).map_err(|_| damaged(&row))?;
                self.send(&block, time, cx)?;
            }
        }
        Ok(())
    }

    /// Asks the nodes about every block that is not settled.
    fn follow(&self, time: EventTime, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        for (hash, _) in rows(OPEN, cx)? {
            let row = cx.state.get(BLOCKS, &hash)?.ok_or_else(|| damaged(&hash))?;
            let known = BlockOutcome::decode(row.clone()).map_err(|_| damaged(&row))?;
            let status = match self.nodes.status(hash_of(&hash)?, known.height) {
                Ok(status) => status,
                Err(cause) => {
                    tracing::warn!(block = %display_hash(&hash), cause, "no node says where the block stands");
                    continue;
                }
            };
            let Some((step, confirmations)) = self.step(known.status(), status) else { continue };
            tracing::info!(block = %display_hash(&hash), height = known.height, ?step, confirmations, "block");
            if matches!(step, BlockStatus::Confirmed | BlockStatus::Orphaned) {
                cx.state.delete(OPEN, &hash)?;
            }
            let outcome = BlockOutcome { status: step.into(), confirmations, nodes: Vec::new(), ..known };
            write(outcome, time, cx)?;
        }
        Ok(())
    }

    /// The step that leads from what was last written to where the block stands now, if there is one.
    fn step(&self, known: BlockStatus, now: ChainStatus) -> Option<(BlockStatus, u32)> {
        match now {
            ChainStatus::Active { confirmations } if confirmations >= self.maturity => {
                Some((BlockStatus::Confirmed, confirmations))
            }
            ChainStatus::Active { confirmations } => {
                (known == BlockStatus::Inactive).then_some((BlockStatus::Active, confirmations))
            }
            ChainStatus::Inactive { rival_confirmations } if rival_confirmations >= self.maturity => {
                Some((BlockStatus::Orphaned, 0))
            }
            ChainStatus::Inactive { .. } => (known != BlockStatus::Inactive).then_some((BlockStatus::Inactive, 0)),
            ChainStatus::Unknown => None,
        }
    }
}

fn write(outcome: BlockOutcome, time: EventTime, cx: &mut Context<'_>) -> Result<(), OperatorError> {
    cx.state.put(BLOCKS, &outcome.hash, &outcome.encode_to_vec())?;
    cx.emit("out", Key::Bytes(outcome.hash.clone()), time, Body::BlockOutcome(outcome));
    Ok(())
}

fn rows(table: usize, cx: &Context<'_>) -> Result<Vec<(Vec<u8>, Bytes)>, OperatorError> {
    let mut rows = Vec::new();
    cx.state.scan(table, &[], None, &mut |key, value| {
        rows.push((key.to_vec(), Bytes::copy_from_slice(value)));
        true
    })?;
    Ok(rows)
}

fn hash_of(bytes: &[u8]) -> Result<[u8; 32], OperatorError> {
    bytes.try_into().map_err(|_| OperatorError::Record(format!("a block hash of {} bytes", bytes.len())))
}
