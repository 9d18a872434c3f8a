//! The demo's Bitcoin node: Core on a private signet where it is found, else a simulated one.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use sluice_mining::Chain;
use sluice_testkit::bitcoind::Bitcoind;
use sluice_testkit::simnode::{SimNode, SimNodeConfig};

/// Some 1.9 million hashes a block: every few seconds one, at the rate of the demo's miners.
const NBITS: u32 = 0x1e09_1000;
/// The simulated node's other miner finds a block this often.
const FOREIGN: Duration = Duration::from_secs(60);

/// A running node.
pub(super) enum DemoNode {
    /// A simulated one.
    Simulated(SimNode),
    /// Bitcoin Core.
    Core(Bitcoind),
}

impl DemoNode {
    /// Starts the node on the chain in `dir`: Bitcoin Core where the machine has it, unless `simulated` says otherwise.
    ///
    /// # Errors
    /// If it does not start, or the directory has been used with the other kind of node: log and ledger there belong
    /// to its chain.
    pub(super) fn start(dir: &Path, simulated: bool) -> anyhow::Result<Self> {
        let (core, simulation) = (dir.join("signet"), dir.join("node"));
        let wants_core = !simulated && Bitcoind::is_installed();
        let other = if wants_core { &simulation } else { &core };
        if other.exists() {
            let is = if wants_core { "a simulated node; add --simulated" } else { "Bitcoin Core; set BITCOIND_EXE" };
            bail!("{} was used with {is}, or name another directory with --dir", dir.display());
        }
        if wants_core {
            return Ok(Self::Core(Bitcoind::start_in(Chain::Signet, &core).context("Bitcoin Core")?));
        }
        let config = SimNodeConfig {
            network: Chain::Signet,
            nbits: NBITS,
            dir: Some(simulation),
            mempool: 200,
            arrivals: Some(Duration::from_millis(100)),
            foreign: Some(FOREIGN),
            ..SimNodeConfig::default()
        };
        Ok(Self::Simulated(SimNode::start(config).context("the simulated node")?))
    }

    /// What it is, for people.
    pub(super) fn describe(&self) -> &'static str {
        match self {
            Self::Simulated(_) => "a simulated node",
            Self::Core(_) => "Bitcoin Core (a private signet)",
        }
    }

    /// The chain of either: its subsidy does not halve while anybody watches, as regtest's would.
    pub(super) fn network(&self) -> Chain {
        Chain::Signet
    }

    /// How much faster miners must be than at the simulated node for a block every few seconds.
    pub(super) fn pace(&self) -> u64 {
        match self {
            Self::Simulated(_) => 1,
            Self::Core(_) => 3,
        }
    }

    /// `http://HOST:PORT` of its RPC.
    pub(super) fn rpc(&self) -> String {
        match self {
            Self::Simulated(node) => node.rpc_url(),
            Self::Core(node) => node.rpc_url(),
        }
    }

    /// `USER:PASSWORD` of its RPC.
    pub(super) fn auth(&self) -> &str {
        match self {
            Self::Simulated(node) => node.auth(),
            Self::Core(node) => node.auth(),
        }
    }

    /// Its ZMQ endpoint.
    pub(super) fn zmq(&self) -> String {
        match self {
            Self::Simulated(node) => node.zmq().to_owned(),
            Self::Core(node) => node.zmq(),
        }
    }

    /// Address number `number` of the demo: the pool is 0, its miners are the others. Nobody has their keys.
    ///
    /// # Errors
    /// Never for the chains the demo runs on.
    pub(super) fn address(&self, number: u8) -> anyhow::Result<String> {
        let network = self.network().as_str().parse::<bitcoin::Network>()?;
        sluice_testkit::addresses::address(network, number)
    }
}
