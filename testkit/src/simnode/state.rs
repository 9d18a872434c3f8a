//! What the threads of a simulated node share, and what happens to it: blocks come, transactions come, others mine.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail};
use bitcoin::hashes::Hash;
use bitcoin::{Block, BlockHash, ScriptBuf};
use parking_lot::{Condvar, Mutex};
use sluice_mining::Target;

use super::chain::{Chain, Fate, Step};
use super::faults::Faults;
use super::mempool::Mempool;
use super::notify::Publisher;
use super::store::{Record, Store};
use super::template::{self, Plan};
use super::{Origin, View};
use crate::work::Work;

/// Nonces tried between looks at whether to stop.
const STRIDE: u64 = 1 << 16;

pub(super) struct State {
    pub(super) chain: Chain,
    pub(super) mempool: Mempool,
    pub(super) store: Option<Store>,
    pub(super) publisher: Publisher,
    /// By `submitblock`, in order of arrival.
    pub(super) submitted: Vec<BlockHash>,
    /// Blocks of others that do not reach a node whose tip is stuck.
    pub(super) held: Option<Vec<Placed>>,
    pub(super) calls: BTreeMap<String, u64>,
    pub(super) unique: u64,
}

/// A block and its height.
pub(super) type Placed = (Block, u32);

/// A wait that can be ended early.
#[derive(Default)]
pub(super) struct Stop {
    set: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    /// Waits; true if the node is to stop.
    pub(super) fn wait(&self, pause: Duration) -> bool {
        let mut set = self.set.lock();
        if !pause.is_zero() {
            let deadline = Instant::now() + pause;
            while !*set && !self.changed.wait_until(&mut set, deadline).timed_out() {}
        }
        *set
    }

    pub(super) fn is_set(&self) -> bool {
        *self.set.lock()
    }

    pub(super) fn set(&self) {
        *self.set.lock() = true;
        self.changed.notify_all();
    }
}

pub(super) struct Shared {
    pub(super) state: Mutex<State>,
    pub(super) changed: Condvar,
    pub(super) faults: Faults,
    pub(super) stop: Stop,
    /// When it started.
    pub(super) since: Instant,
}

impl State {
    /// Goes through what the disk has kept.
    pub(super) fn replay(&mut self, records: Vec<Record>) -> Result<()> {
        let count = records.len();
        for record in records {
            match record {
                Record::Block(block, origin) => {
                    let hash = block.block_hash();
                    // Its time was checked when it came; the clock may have been set back since.
                    let (fate, _) = self.chain.accept(*block, u64::MAX);
                    if let Fate::Invalid(reason) = fate {
                        bail!("block {hash} on disk is refused: {reason}");
                    }
                    if origin == Origin::Submitted {
                        self.submitted.push(hash);
                    }
                }
                Record::Precious(hash) => {
                    self.chain.prefer(&hash).with_context(|| format!("precious block {hash} is not on disk"))?;
                }
            }
        }
        tracing::debug!(records = count, height = self.chain.height(), "the simulated node goes on");
        Ok(())
    }

    pub(super) fn fill(&mut self, most: usize) {
        while self.mempool.len() < most && self.mempool.grow(self.chain.coins(), self.chain.height()).is_some() {}
    }

    pub(super) fn remember(&mut self, record: &Record) -> Result<()> {
        self.store.as_mut().map_or(Ok(()), |store| store.append(record))
    }

    /// What follows from a change of the best chain.
    pub(super) fn follow(&mut self, steps: &[Step], silent: bool) {
        if steps.is_empty() {
            return;
        }
        let left = steps.iter().filter_map(|step| match step {
            Step::Disconnected(block) => Some(block.as_ref()),
            Step::Connected(_) => None,
        });
        self.mempool.follow(left, self.chain.coins(), self.chain.height());
        if silent {
            return;
        }
        for step in steps {
            match step {
                Step::Disconnected(block) => self.publisher.block(block.block_hash(), false),
                Step::Connected(block) => self.publisher.block(block.block_hash(), true),
            }
        }
        self.publisher.tip(self.chain.tip());
    }

    pub(super) fn view(&self) -> View {
        View {
            height: self.chain.height(),
            tip: self.chain.tip(),
            mempool: self.mempool.len(),
            accepted: self.submitted.len(),
            calls: self.calls.clone(),
        }
    }
}

impl Shared {
    pub(super) fn count(&self, method: &str) {
        *self.state.lock().calls.entry(method.to_owned()).or_default() += 1;
        self.changed.notify_all();
    }

    pub(super) fn add_transactions(&self, count: usize) {
        let silent = self.faults.zmq_is_silent();
        let mut state = self.state.lock();
        state.publisher.lossy = self.faults.zmq_is_lossy();
        let state = &mut *state;
        for _ in 0..count {
            let added = state.mempool.grow(state.chain.coins(), state.chain.height());
            if let Some(txid) = added.filter(|_| !silent) {
                state.publisher.waiting(txid);
            }
        }
        self.changed.notify_all();
    }

    pub(super) fn accept(&self, block: Block, origin: Origin) -> Result<Fate> {
        let hash = block.block_hash();
        let silent = self.faults.zmq_is_silent();
        let mut state = self.state.lock();
        state.publisher.lossy = self.faults.zmq_is_lossy();
        let (fate, steps) = state.chain.accept(block.clone(), unix_time());
        if matches!(fate, Fate::Tip | Fate::Side) {
            state.remember(&Record::Block(Box::new(block), origin))?;
            if origin == Origin::Submitted {
                state.submitted.push(hash);
            }
        }
        state.follow(&steps, silent);
        tracing::debug!(%hash, ?origin, ?fate, "a block came to the simulated node");
        self.changed.notify_all();
        Ok(fate)
    }

    /// Makes a block precious; false if it is unknown.
    pub(super) fn prefer(&self, hash: &BlockHash) -> Result<bool> {
        let silent = self.faults.zmq_is_silent();
        let mut state = self.state.lock();
        state.publisher.lossy = self.faults.zmq_is_lossy();
        let Some(steps) = state.chain.prefer(hash) else { return Ok(false) };
        state.remember(&Record::Precious(*hash))?;
        state.follow(&steps, silent);
        self.changed.notify_all();
        Ok(true)
    }

    pub(super) fn mine(&self, count: usize, payout: &ScriptBuf) -> Result<Vec<BlockHash>> {
        let mut mined = Vec::with_capacity(count);
        while mined.len() < count {
            let ((block, height), held) = {
                let mut state = self.state.lock();
                let held = state.held.as_ref().map(|held| held.last().cloned());
                let with_transactions = held.is_none();
                let held_back = held.is_some();
                (state.unsolved(held.flatten().as_ref(), with_transactions, payout)?, held_back)
            };
            let block = self.solve(block)?;
            let hash = block.block_hash();
            // Where another block came first, this one is lost, as with real miners.
            if self.arrive((block, height), held)? == Fate::Tip {
                mined.push(hash);
            }
        }
        Ok(mined)
    }

    /// Blocks on top of the one `depth` below the tip.
    pub(super) fn rival(&self, depth: u32, count: u32) -> Result<Vec<BlockHash>> {
        let (mut parent, held) = {
            let state = self.state.lock();
            let height = state.chain.height();
            let fork = height.checked_sub(depth).and_then(|height| state.chain.at(height));
            let fork = fork.with_context(|| format!("a chain of {height} blocks has none {depth} below its tip"))?;
            (state.chain.get(&fork).map(|entry| (entry.block.as_ref().clone(), entry.height)), state.held.is_some())
        };
        let mut mined = Vec::new();
        for _ in 0..count {
            let (block, height) = self.state.lock().unsolved(parent.as_ref(), false, &foreign_script())?;
            let block = self.solve(block)?;
            mined.push(block.block_hash());
            parent = Some((block.clone(), height));
            if let Fate::Invalid(reason) = self.arrive((block, height), held)? {
                bail!("the simulated node refuses its own block: {reason}");
            }
        }
        Ok(mined)
    }

    /// A block of another miner reaches the node, or is held back where its tip is stuck.
    pub(super) fn arrive(&self, block: Placed, held: bool) -> Result<Fate> {
        if held && let Some(held) = &mut self.state.lock().held {
            held.push(block);
            return Ok(Fate::Tip);
        }
        self.accept(block.0, Origin::Foreign)
    }

    pub(super) fn solve(&self, mut block: Block) -> Result<Block> {
        let target = Target::from_compact(block.header.bits.to_consensus()).context("the target")?;
        loop {
            let header: Vec<u8> = bitcoin::consensus::serialize(&block.header);
            let Ok(header) = header.try_into() else { bail!("a header has 80 bytes") };
            let work = Work::new(header);
            for first in (0..=u32::MAX).step_by(STRIDE as usize) {
                if self.stop.is_set() {
                    bail!("the simulated node stops");
                }
                if let Some((nonce, _)) = work.search(target, first, STRIDE) {
                    block.header.nonce = nonce;
                    return Ok(block);
                }
            }
            block.header.time += 1;
        }
    }
}

impl State {
    /// An unsolved block of another miner on top of `parent`, else of the tip; with what waits if
    /// `with_transactions`.
    pub(super) fn unsolved(
        &mut self,
        parent: Option<&Placed>,
        with_transactions: bool,
        payout: &ScriptBuf,
    ) -> Result<Placed> {
        self.unique += 1;
        let tip = self.chain.tip();
        let parent_hash = parent.map_or(tip, |(block, _)| block.block_hash());
        let (height, median_time) = match (self.chain.get(&parent_hash), parent) {
            (Some(entry), _) => (entry.height, entry.median_time),
            // Held back, so the chain does not know it. No median time is above the last block's time.
            (None, Some((block, height))) => (*height, block.header.time),
            (None, None) => bail!("the tip is unknown"),
        };
        let time = unix_time().max(u64::from(median_time) + 1);
        let chosen = if with_transactions { template::select(&self.mempool) } else { Vec::new() };
        let plan = Plan {
            parent: parent_hash,
            height: height + 1,
            time: u32::try_from(time).context("the clock is beyond 2106")?,
            unique: self.unique,
        };
        Ok((template::unsolved(&self.chain, &plan, &chosen, payout), plan.height))
    }
}

/// What other miners are paid to.
pub(super) fn foreign_script() -> ScriptBuf {
    let hash = [0xf0_u8; 20];
    ScriptBuf::new_p2wpkh(&bitcoin::WPubkeyHash::from_byte_array(hash))
}

/// The clock, seconds.
pub(super) fn unix_time() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
