//! `submit`: sends blocks to the nodes and follows what becomes of them (DESIGN 6, docs/adr/0006, invariant B1).
//!
//! Of two blocks of ours at one height the nodes are asked to prefer the first: the second one would replace a block
//! that the network knows already.
//!
//! A block is sent before anything is committed, and again if a crash came between: nodes know a block they have. A
//! block that no node could be reached for stays in the state and is sent again with each record that follows.
//!
//! What nodes say is no function of the input: a batch that is repeated after a crash may find other answers (role
//! [`Role::World`], docs/adr/0010). Its outcomes are then written beside those of the first time, and readers go by
//! block hash. So that they never stay with an answer the state does not know of, the first answer about each block
//! after a start is written whether it is news or not; and a refused block stays open until it is buried, since the
//! acceptance of a first time may be lost.
//!
//! Lent to it are the nodes (`Arc<dyn BlockNodes>`) and the [`Maturity`] that the section `ledger:` asks for.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use sluice_mining::node::{BlockNodes, ChainStatus, SentBlock};
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
/// Block hash of a block that is not settled, refused ones included, without a value: what a new tip must ask about.
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
    state: &[StateTable::plain("blocks"), StateTable::plain("unsent"), StateTable::plain("open")],
    parallel: Parallel::Single,
    role: Role::World(build),
};

/// Confirmations that settle a block, or its rival: `maturity` of the topology's section `ledger:`, as it is lent to the
/// operator. There is no setting of its own, since credits become available by what it writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Maturity(pub u32);

fn build(cx: &BuildContext<'_>) -> Result<Box<dyn Operator>, OperatorError> {
    let missing = |what: &str| OperatorError::Setting(format!("{}: no {what} is lent to it", cx.name));
    let nodes = cx.externals.get::<Arc<dyn BlockNodes>>().cloned().ok_or_else(|| missing("Bitcoin node"))?;
    let Maturity(maturity) = *cx.externals.get::<Maturity>().ok_or_else(|| missing("maturity of blocks"))?;
    Ok(Box::new(Submit { nodes, maturity, told: BTreeSet::new() }))
}

struct Submit {
    nodes: Arc<dyn BlockNodes>,
    maturity: u32,
    /// Hashes of open blocks whose place in the chain has been written since the start.
    told: BTreeSet<[u8; 32]>,
}

impl Operator for Submit {
    fn process(&mut self, input: &Input<'_>, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        let time = input.event_time;
        match &**input.record {
            Body::SolvedBlock(block) => {
                let new = cx.state.get(BLOCKS, &block.hash)?.is_none() && cx.state.get(UNSENT, &block.hash)?.is_none();
                if new {
                    self.send(block, time, cx)?;
                }
                self.resend(new.then_some(&block.hash[..]), time, cx)
            }
            Body::Job(job) => {
                self.resend(None, time, cx)?;
                if job.clean { self.follow(job.height, time, cx) } else { Ok(()) }
            }
            _ => Err(crate::unexpected("submit", input)),
        }
    }
}

impl Submit {
    fn send(&self, block: &SolvedBlock, time: EventTime, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        let hash = hash_of(&block.hash)?;
        let prefer = !has_sibling(block, cx)?;
        let nodes = self.nodes.submit(&SentBlock { hash, height: block.height, bytes: block.block.clone(), prefer });
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
        } else {
            tracing::error!(block = %shown, height = block.height, answers = ?outcome.nodes, "block refused by every node");
        }
        cx.state.put(OPEN, &block.hash, &[])?;
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

    /// Asks the nodes about every block that is not settled, at a job for a block of `height`.
    fn follow(&mut self, height: u32, time: EventTime, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        for known in open_blocks(cx)? {
            let key = hash_of(&known.hash)?;
            let status = match self.nodes.status(key, known.height) {
                Ok(status) => status,
                Err(cause) => {
                    tracing::warn!(block = %display_hash(&key), cause, "no node says where the block stands");
                    continue;
                }
            };
            let Some((step, confirmations)) = self.step(&known, status, height) else {
                if let Some((status, confirmations)) = place(known.status(), status)
                    && self.told.insert(key)
                {
                    // No news for the state, which stays as it is; it may be news for readers.
                    let outcome = BlockOutcome { status: status.into(), confirmations, nodes: Vec::new(), ..known };
                    send_out(outcome, time, cx);
                }
                continue;
            };
            self.told.insert(key);
            tracing::info!(block = %display_hash(&key), height = known.height, ?step, confirmations, "block");
            if matches!(step, BlockStatus::Confirmed | BlockStatus::Orphaned) {
                cx.state.delete(OPEN, &key)?;
                self.told.remove(&key);
            }
            let outcome = BlockOutcome { status: step.into(), confirmations, nodes: Vec::new(), ..known };
            write(outcome, time, cx)?;
        }
        Ok(())
    }

    /// The step that leads from what was last written to where the block stands now, if there is one. A refused block
    /// is not in the chain anyway; where the chain has grown by maturity and nobody knows it, it is buried.
    fn step(&self, known: &BlockOutcome, now: ChainStatus, height: u32) -> Option<(BlockStatus, u32)> {
        let (status, buried) = (known.status(), height >= known.height.saturating_add(self.maturity));
        let away = matches!(status, BlockStatus::Inactive | BlockStatus::Refused);
        match now {
            ChainStatus::Active { confirmations } if confirmations >= self.maturity => {
                Some((BlockStatus::Confirmed, confirmations))
            }
            ChainStatus::Active { confirmations } => away.then_some((BlockStatus::Active, confirmations)),
            ChainStatus::Inactive { rival_confirmations } if rival_confirmations >= self.maturity => {
                Some((BlockStatus::Orphaned, 0))
            }
            ChainStatus::Inactive { .. } => (!away).then_some((BlockStatus::Inactive, 0)),
            ChainStatus::Unknown => (status == BlockStatus::Refused && buried).then_some((BlockStatus::Orphaned, 0)),
        }
    }
}

/// Whether another block of ours is in the chain at this block's height, as far as is known. This one, which is only
/// about to be sent, is not open yet.
fn has_sibling(block: &SolvedBlock, cx: &Context<'_>) -> Result<bool, OperatorError> {
    let stands = |other: &BlockOutcome| matches!(other.status(), BlockStatus::Accepted | BlockStatus::Active);
    Ok(open_blocks(cx)?.iter().any(|other| stands(other) && other.height == block.height))
}

/// The blocks that are not settled, as last written.
fn open_blocks(cx: &Context<'_>) -> Result<Vec<BlockOutcome>, OperatorError> {
    let outcome = |(hash, _): (Vec<u8>, Bytes)| {
        let row = cx.state.get(BLOCKS, &hash)?.ok_or_else(|| damaged(&hash))?;
        BlockOutcome::decode(row.clone()).map_err(|_| damaged(&row))
    };
    rows(OPEN, cx)?.into_iter().map(outcome).collect()
}

/// Where a block stands that has taken no step, as an outcome; a refused one stands nowhere.
fn place(known: BlockStatus, now: ChainStatus) -> Option<(BlockStatus, u32)> {
    match now {
        _ if known == BlockStatus::Refused => None,
        ChainStatus::Active { confirmations } => Some((BlockStatus::Active, confirmations)),
        ChainStatus::Inactive { .. } => Some((BlockStatus::Inactive, 0)),
        ChainStatus::Unknown => None,
    }
}

fn write(outcome: BlockOutcome, time: EventTime, cx: &mut Context<'_>) -> Result<(), OperatorError> {
    cx.state.put(BLOCKS, &outcome.hash, &outcome.encode_to_vec())?;
    send_out(outcome, time, cx);
    Ok(())
}

fn send_out(outcome: BlockOutcome, time: EventTime, cx: &mut Context<'_>) {
    cx.emit("out", Key::Bytes(outcome.hash.clone()), time, Body::BlockOutcome(outcome));
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
