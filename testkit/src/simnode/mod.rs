//! A simulated Bitcoin node: JSON-RPC and ZMQ as Bitcoin Core has them, blocks truly validated, faults on demand.
//!
//! It is for the demo and for what a real node cannot be made to show; where a test can use Bitcoin Core, it uses
//! [`crate::bitcoind::Bitcoind`]. Differences from a real node: every block has the same compact target, set at the
//! start; scripts and signatures are not checked; transactions are its own, paid from outputs that never were.

mod chain;
mod coins;
mod faults;
mod http;
mod mempool;
mod notify;
mod rpc;
mod state;
mod store;
mod template;
mod validate;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bitcoin::{Block, BlockHash, ScriptBuf};
use parking_lot::{Condvar, Mutex};
use sluice_mining::{Chain as Network, Target};

use chain::Chain;
pub use faults::{EVERY_METHOD, Faults, Refusal};
use http::Server;
use mempool::Mempool;
use notify::Publisher;
use state::{Shared, State, Stop, foreign_script};
use store::Store;

/// Settings of a simulated node.
#[derive(Clone, Debug)]
pub struct SimNodeConfig {
    /// The network it claims to be: it decides on subsidy, halvings, genesis block and addresses.
    pub network: Network,
    /// Compact target of every block.
    pub nbits: u32,
    /// Credentials of its RPC, `USER:PASSWORD`.
    pub auth: String,
    /// Port of its RPC on the loopback; 0 for a free one.
    pub rpc_port: u16,
    /// Port of its ZMQ notices on the loopback; 0 for a free one.
    pub zmq_port: u16,
    /// Where its blocks are kept over restarts; `None` for in memory only.
    pub dir: Option<PathBuf>,
    /// How many transactions wait at the start and are to wait at most.
    pub mempool: usize,
    /// A transaction is added this often, up to `mempool`; `None` for only by [`SimNode::add_transactions`].
    pub arrivals: Option<Duration>,
    /// Another miner finds a block this often; `None` for only by [`SimNode::mine`].
    pub foreign: Option<Duration>,
    /// RPC connections on which nothing comes for this long are closed (Bitcoin Core: 30 s).
    pub idle: Duration,
}

impl Default for SimNodeConfig {
    fn default() -> Self {
        Self {
            network: Network::Regtest,
            nbits: 0x207f_ffff,
            auth: "sluice:simulated".into(),
            rpc_port: 0,
            zmq_port: 0,
            dir: None,
            mempool: 0,
            arrivals: None,
            foreign: None,
            idle: Duration::from_secs(30),
        }
    }
}

/// Where a block came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// By `submitblock`.
    Submitted,
    /// From another miner, which the node simulates.
    Foreign,
}

/// A block that came by `submitblock` and was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcceptedBlock {
    /// Its hash.
    pub hash: BlockHash,
    /// Its height.
    pub height: u32,
    /// It is in the best chain now.
    pub active: bool,
}

/// What [`SimNode::wait_until`] looks at.
#[derive(Clone, Debug)]
pub struct View {
    /// Height of the tip.
    pub height: u32,
    /// Hash of the tip.
    pub tip: BlockHash,
    /// Waiting transactions.
    pub mempool: usize,
    /// Blocks that came by `submitblock` and were kept.
    pub accepted: usize,
    /// RPC calls so far, by method.
    pub calls: BTreeMap<String, u64>,
}

/// A running node. Dropping it stops it.
pub struct SimNode {
    config: SimNodeConfig,
    shared: Arc<Shared>,
    server: Server,
    zmq: String,
    threads: Vec<JoinHandle<()>>,
}

impl SimNode {
    /// Starts a node; with a directory, on the chain that is there.
    ///
    /// # Errors
    /// If a port is in use, the target is none, or the directory holds a damaged chain or one of other settings.
    pub fn start(config: SimNodeConfig) -> Result<Self> {
        Target::from_compact(config.nbits).context("nbits of the simulated node")?;
        let publisher = Publisher::bind(config.zmq_port)?;
        let zmq = publisher.endpoint().to_owned();
        let mut state = State {
            chain: Chain::new(config.network, config.nbits),
            mempool: Mempool::default(),
            store: None,
            publisher,
            submitted: Vec::new(),
            held: None,
            calls: BTreeMap::new(),
            unique: 0,
        };
        if let Some(dir) = &config.dir {
            let (store, records) = Store::open(dir)?;
            state.replay(records).with_context(|| {
                format!("{} holds a chain of other settings: use another directory, or delete it", dir.display())
            })?;
            state.store = Some(store);
        }
        state.fill(config.mempool);
        let shared = Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            faults: Faults::default(),
            stop: Stop::default(),
            since: Instant::now(),
        };
        let shared = Arc::new(shared);
        let answering = shared.clone();
        let handler = Arc::new(move |body: &[u8]| rpc::answer(&answering, body));
        let server = Server::start(config.rpc_port, &config.auth, config.idle, handler)?;
        let mut node = Self { config, shared, server, zmq, threads: Vec::new() };
        node.start_threads()?;
        Ok(node)
    }

    fn start_threads(&mut self) -> Result<()> {
        if let Some(pause) = self.config.arrivals {
            let (shared, most) = (self.shared.clone(), self.config.mempool);
            self.spawn("simnode-mempool", move || {
                while !shared.stop.wait(pause) {
                    if shared.state.lock().mempool.len() < most {
                        shared.add_transactions(1);
                    }
                }
            })?;
        }
        if let Some(pause) = self.config.foreign {
            let shared = self.shared.clone();
            self.spawn("simnode-foreign", move || {
                while !shared.stop.wait(pause) {
                    if let Err(error) = shared.mine(1, &foreign_script()) {
                        tracing::warn!(%error, "the other miner of the simulated node made no block");
                    }
                }
            })?;
        }
        Ok(())
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = std::thread::Builder::new().name(name.into()).spawn(run);
        self.threads.push(thread.with_context(|| format!("starting the thread {name}"))?);
        Ok(())
    }

    /// `http://127.0.0.1:PORT` of its RPC.
    pub fn rpc_url(&self) -> String {
        format!("http://{}", self.server.address())
    }

    /// `127.0.0.1:PORT` of its RPC.
    pub fn rpc_address(&self) -> String {
        self.server.address().to_string()
    }

    /// `USER:PASSWORD` of its RPC.
    pub fn auth(&self) -> &str {
        &self.config.auth
    }

    /// Connections to its RPC so far.
    pub fn connections(&self) -> u64 {
        self.server.connections()
    }

    /// A client of its RPC.
    pub fn rpc(&self) -> crate::rpc::Rpc {
        crate::rpc::Rpc::new(self.rpc_address(), self.auth())
    }

    /// `tcp://127.0.0.1:PORT` of its ZMQ notices (`hashblock` and `sequence`).
    pub fn zmq(&self) -> &str {
        &self.zmq
    }

    /// Hash of the tip.
    pub fn tip(&self) -> BlockHash {
        self.shared.state.lock().chain.tip()
    }

    /// Height of the tip.
    pub fn height(&self) -> u32 {
        self.shared.state.lock().chain.height()
    }

    /// A block that it knows.
    pub fn block(&self, hash: &BlockHash) -> Option<Arc<Block>> {
        self.shared.state.lock().chain.get(hash).map(|entry| entry.block.clone())
    }

    /// Hash of the best chain's block at this height.
    pub fn block_hash(&self, height: u32) -> Option<BlockHash> {
        self.shared.state.lock().chain.at(height)
    }

    /// Blocks that came by `submitblock` and were kept, in order of arrival; those of earlier runs too where there is
    /// a directory.
    pub fn accepted_blocks(&self) -> Vec<AcceptedBlock> {
        let state = self.shared.state.lock();
        let accepted = |hash: &BlockHash| {
            let height = state.chain.get(hash)?.height;
            Some(AcceptedBlock { hash: *hash, height, active: state.chain.is_active(hash) })
        };
        state.submitted.iter().filter_map(accepted).collect()
    }

    /// What it is and was asked, at this moment.
    pub fn view(&self) -> View {
        self.shared.state.lock().view()
    }

    /// Waits until something holds of the node; `guard` is for how long at most.
    ///
    /// # Errors
    /// If it does not hold in time; the error shows what holds instead.
    pub fn wait_until(&self, guard: Duration, mut holds: impl FnMut(&View) -> bool) -> Result<View> {
        let deadline = Instant::now() + guard;
        let mut state = self.shared.state.lock();
        loop {
            let view = state.view();
            if holds(&view) {
                return Ok(view);
            }
            if self.shared.changed.wait_until(&mut state, deadline).timed_out() {
                bail!("the simulated node did not get there in {} s: {view:?}", guard.as_secs());
            }
        }
    }

    /// The switches of its faults.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// Adds made-up transactions to those that wait.
    pub fn add_transactions(&self, count: usize) {
        self.shared.add_transactions(count);
    }

    /// Another miner finds `count` blocks in the best chain, with what waits; their hashes. Takes as long as the
    /// target asks for.
    ///
    /// # Errors
    /// If the node stops meanwhile or its disk fails.
    pub fn mine(&self, count: usize) -> Result<Vec<BlockHash>> {
        self.shared.mine(count, &foreign_script())
    }

    /// As [`Self::mine`], with coinbases that pay `script`.
    ///
    /// # Errors
    /// As [`Self::mine`].
    pub fn mine_to(&self, count: usize, script: &ScriptBuf) -> Result<Vec<BlockHash>> {
        self.shared.mine(count, script)
    }

    /// Replaces the last `depth` blocks of the best chain by `depth + 1` blocks of another miner, without
    /// transactions; their hashes. What they replace stays known, and can come back.
    ///
    /// # Errors
    /// If the chain has fewer blocks, the node stops meanwhile or its disk fails.
    pub fn reorg(&self, depth: u32) -> Result<Vec<BlockHash>> {
        self.shared.rival(depth, depth + 1)
    }

    /// Replaces the tip by a block of the same height (as if it had been first), by making it precious; its hash.
    ///
    /// # Errors
    /// As [`Self::reorg`].
    pub fn replace_tip(&self) -> Result<BlockHash> {
        let rival = self.shared.rival(1, 1)?;
        let hash = *rival.last().context("a rival of the tip")?;
        self.shared.prefer(&hash)?;
        Ok(hash)
    }

    /// While stuck, the blocks of other miners ([`Self::mine`], [`Self::reorg`], the timer) do not reach the node, so
    /// that it goes on with an old tip; afterwards all arrive at once.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn stick(&self, stuck: bool) -> Result<()> {
        let held = {
            let mut state = self.shared.state.lock();
            if stuck {
                state.held.get_or_insert_default();
                return Ok(());
            }
            state.held.take()
        };
        for (block, _) in held.into_iter().flatten() {
            self.shared.accept(block, Origin::Foreign)?;
        }
        Ok(())
    }
}

impl Drop for SimNode {
    fn drop(&mut self) {
        self.shared.stop.set();
        // Taken so that no call is between its look at the switch and its wait.
        drop(self.shared.state.lock());
        self.shared.changed.notify_all();
        self.server.stop();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the simulated node had panicked");
            }
        }
    }
}
