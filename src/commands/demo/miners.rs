//! The demo's miners: threads of this process that speak Stratum to the gateway like any other.

use std::net::SocketAddr;

use sluice_testkit::miner::{CpuMiner, CpuMinerConfig};

use super::node::DemoNode;

/// Account, worker and hashes per second of each miner, at a pace of 1.
const MINERS: [(u8, &str, u64); 4] =
    [(1, "attic", 40_000), (1, "garage", 80_000), (2, "farm", 200_000), (3, "usb", 20_000)];

/// Starts them.
///
/// # Errors
/// If the system gives no threads.
pub(super) fn start(node: &DemoNode, pool: SocketAddr) -> anyhow::Result<Vec<CpuMiner>> {
    let miners = MINERS.iter().map(|(account, worker, hash_rate)| {
        CpuMiner::start(CpuMinerConfig {
            address: pool.to_string(),
            user: format!("{}.{worker}", node.address(*account)?),
            hash_rate: *hash_rate * node.pace(),
            keep_shares: false,
            ..CpuMinerConfig::default()
        })
    });
    miners.collect()
}
