//! The blocks a simulated node knows, and which of them are its best chain.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bitcoin::hashes::Hash;
use bitcoin::{Amount, Block, BlockHash, Network};
use sluice_mining::template::subsidy;
use sluice_mining::{Chain as Net, Target};

use super::coins::{Coins, Undo, output_sum};
use super::validate::{self, Context};

/// A block and where it stands.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) block: Arc<Block>,
    pub(super) height: u32,
    /// Median time of this block and the ten before it, seconds.
    pub(super) median_time: u32,
    /// Among blocks of the same height the lowest is preferred: the first seen, or one made precious.
    rank: i64,
}

/// What became of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is the tip.
    Tip,
    /// It was known.
    Duplicate,
    /// It is known from now on, but the best chain is another one.
    Side,
    /// It is refused, for this reason.
    Invalid(String),
}

/// A step from one best chain to the next, in order.
pub(super) enum Step {
    /// This block is no longer in the best chain.
    Disconnected(Arc<Block>),
    /// This block is.
    Connected(Arc<Block>),
}

/// All blocks.
pub(super) struct Chain {
    network: Net,
    nbits: u32,
    blocks: HashMap<BlockHash, Entry>,
    invalid: HashSet<BlockHash>,
    /// The best chain by height, and how to take each block back.
    active: Vec<(BlockHash, Undo)>,
    coins: Coins,
    next_rank: i64,
    lowest_rank: i64,
}

impl Chain {
    /// A chain of the genesis block, whose other blocks all have the compact target `nbits`.
    pub(super) fn new(network: Net, nbits: u32) -> Self {
        let block = Arc::new(bitcoin::constants::genesis_block(match network {
            Net::Main => Network::Bitcoin,
            Net::Test => Network::Testnet,
            Net::Testnet4 => Network::Testnet4,
            Net::Signet => Network::Signet,
            Net::Regtest => Network::Regtest,
        }));
        let hash = block.block_hash();
        let median_time = block.header.time;
        let mut coins = Coins::default();
        // What the genesis block pays cannot be spent: it is connected without its transaction.
        let nothing = Block { header: block.header, txdata: Vec::new() };
        let active = coins.connect(&nothing, 0).map(|(undo, _)| (hash, undo)).into_iter().collect();
        let blocks = HashMap::from([(hash, Entry { block, height: 0, median_time, rank: 0 })]);
        Self { network, nbits, blocks, invalid: HashSet::new(), active, coins, next_rank: 1, lowest_rank: 0 }
    }

    pub(super) fn network(&self) -> Net {
        self.network
    }

    pub(super) fn nbits(&self) -> u32 {
        self.nbits
    }

    pub(super) fn coins(&self) -> &Coins {
        &self.coins
    }

    pub(super) fn height(&self) -> u32 {
        u32::try_from(self.active.len().saturating_sub(1)).unwrap_or(u32::MAX)
    }

    pub(super) fn tip(&self) -> BlockHash {
        self.active.last().map_or_else(BlockHash::all_zeros, |(hash, _)| *hash)
    }

    pub(super) fn get(&self, hash: &BlockHash) -> Option<&Entry> {
        self.blocks.get(hash)
    }

    /// Hash of the best chain's block at this height.
    pub(super) fn at(&self, height: u32) -> Option<BlockHash> {
        self.active.get(height as usize).map(|(hash, _)| *hash)
    }

    /// Whether the block is in the best chain.
    pub(super) fn is_active(&self, hash: &BlockHash) -> bool {
        self.get(hash).is_some_and(|entry| self.at(entry.height) == Some(*hash))
    }

    /// Median time of a block and the ten before it, seconds.
    pub(super) fn median_time(&self, hash: &BlockHash) -> u32 {
        self.get(hash).map_or(0, |entry| entry.median_time)
    }

    /// Expected hashes to make a chain that ends at this height.
    pub(super) fn work(&self, height: u32) -> u128 {
        let work = |nbits: u32| Target::from_compact(nbits).map_or(0, |target| target.work().get());
        let genesis =
            self.at(0).and_then(|hash| self.get(&hash)).map_or(0, |entry| entry.block.header.bits.to_consensus());
        work(genesis) + work(self.nbits) * u128::from(height)
    }

    /// Checks a block and keeps it if it is good; the steps it makes the best chain take.
    pub(super) fn accept(&mut self, block: Block, now: u64) -> (Fate, Vec<Step>) {
        let hash = block.block_hash();
        if let Err(reason) = validate::alone(&block) {
            return (Fate::Invalid(reason), Vec::new());
        }
        if self.invalid.contains(&hash) {
            return (Fate::Invalid("duplicate-invalid".into()), Vec::new());
        }
        if self.blocks.contains_key(&hash) {
            return (Fate::Duplicate, Vec::new());
        }
        match self.insert(hash, block, now) {
            Ok(()) => self.activate(hash),
            Err(reason) => (Fate::Invalid(reason), Vec::new()),
        }
    }

    /// Prefers a block over others of its height; the steps that follow from it. `None` if the block is unknown.
    pub(super) fn prefer(&mut self, hash: &BlockHash) -> Option<Vec<Step>> {
        let height = self.height();
        let entry = self.blocks.get_mut(hash)?;
        if entry.height < height {
            return Some(Vec::new());
        }
        self.lowest_rank -= 1;
        entry.rank = self.lowest_rank;
        Some(self.activate(*hash).1)
    }

    /// Checks a block against its parent and adds it, connected to nothing yet.
    fn insert(&mut self, hash: BlockHash, block: Block, now: u64) -> Result<(), String> {
        let previous = block.header.prev_blockhash;
        if self.invalid.contains(&previous) {
            return Err("bad-prevblk".into());
        }
        let parent = self.blocks.get(&previous).ok_or("prev-blk-not-found")?;
        let (height, median_time) = (parent.height + 1, parent.median_time);
        let context = Context { height, median_time, nbits: self.nbits, now };
        validate::header(&block, &context)?;
        if let Err(refusal) = validate::body(&block, &context) {
            if !refusal.mutated {
                self.invalid.insert(hash);
            }
            return Err(refusal.reason.into());
        }
        let median_time = self.median_with(&previous, block.header.time);
        let entry = Entry { block: Arc::new(block), height, median_time, rank: self.next_rank };
        self.next_rank += 1;
        self.blocks.insert(hash, entry);
        Ok(())
    }

    fn median_with(&self, previous: &BlockHash, time: u32) -> u32 {
        let mut times = vec![time];
        let mut at = *previous;
        while times.len() < 11
            && let Some(entry) = self.blocks.get(&at)
        {
            times.push(entry.block.header.time);
            at = entry.block.header.prev_blockhash;
        }
        times.sort_unstable();
        times[times.len() / 2]
    }

    /// Makes the chain of a block the best one, if it is.
    fn activate(&mut self, hash: BlockHash) -> (Fate, Vec<Step>) {
        let order = |hash: &BlockHash| self.blocks.get(hash).map(|entry| (entry.height, -entry.rank));
        if order(&hash) < order(&self.tip()) {
            return (Fate::Side, Vec::new());
        }
        let path = self.path_to(hash);
        let mut steps = Vec::new();
        let Some(fork) = path.first().map(|first| first.height as usize) else { return (Fate::Tip, steps) };
        let mut left: Vec<Arc<Block>> = Vec::new();
        while self.active.len() > fork {
            left.extend(self.disconnect());
        }
        steps.extend(left.iter().cloned().map(Step::Disconnected));
        for entry in &path {
            if let Err(reason) = self.connect(entry) {
                self.refuse(entry.block.block_hash());
                self.restore(fork, &left);
                return (Fate::Invalid(reason), Vec::new());
            }
            steps.push(Step::Connected(entry.block.clone()));
        }
        (Fate::Tip, steps)
    }

    /// The blocks from the best chain (not included) to a block, in order.
    fn path_to(&self, hash: BlockHash) -> Vec<Entry> {
        let mut path = Vec::new();
        let mut at = hash;
        while !self.is_active(&at)
            && let Some(entry) = self.blocks.get(&at)
        {
            path.push(entry.clone());
            at = entry.block.header.prev_blockhash;
        }
        path.reverse();
        path
    }

    fn disconnect(&mut self) -> Option<Arc<Block>> {
        let (hash, undo) = self.active.pop()?;
        self.coins.disconnect(undo);
        self.blocks.get(&hash).map(|entry| entry.block.clone())
    }

    fn connect(&mut self, entry: &Entry) -> Result<(), String> {
        let (undo, fees) = self.coins.connect(&entry.block, entry.height)?;
        let subsidy = Amount::from_sat(subsidy(self.network, entry.height).get());
        let paid = entry.block.txdata.first().map_or(Ok(Amount::ZERO), output_sum)?;
        if subsidy.checked_add(fees).is_none_or(|allowed| paid > allowed) {
            self.coins.disconnect(undo);
            return Err("bad-cb-amount".into());
        }
        self.active.push((entry.block.block_hash(), undo));
        Ok(())
    }

    /// Back to the chain before: its blocks were connected once, so they connect again.
    fn restore(&mut self, fork: usize, left: &[Arc<Block>]) {
        while self.active.len() > fork {
            self.disconnect();
        }
        for block in left.iter().rev() {
            let entry = self.blocks.get(&block.block_hash()).cloned();
            if let Some(Err(error)) = entry.map(|entry| self.connect(&entry)) {
                tracing::error!(%error, "a block of the best chain does not connect again");
            }
        }
    }

    /// Refuses a block that was kept, and all that follow it.
    fn refuse(&mut self, hash: BlockHash) {
        let mut refused = vec![hash];
        while let Some(hash) = refused.pop() {
            self.blocks.remove(&hash);
            self.invalid.insert(hash);
            let follow = self.blocks.iter().filter(|(_, entry)| entry.block.header.prev_blockhash == hash);
            refused.extend(follow.map(|(hash, _)| *hash));
        }
    }
}
