//! A private Bitcoin Core for tests: a real one, in a directory and on ports of its own.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bitcoin::{Address, BlockHash, Network, ScriptBuf};
use serde_json::{Value, json};
use sluice_mining::Chain;
use sluice_mining::template::{JobParams, Template, build_job};
use tempfile::TempDir;

use crate::programs::{TICK, find, free_port, tail, terminate, wait_exit};
use crate::rpc::{Rpc, RpcError};
use crate::work::solve_block;

/// How long the node may take to start or stop.
const PATIENCE: Duration = Duration::from_secs(120);
/// Credentials of its RPC, which listens on the loopback only.
const AUTH: &str = "sluice:test";
/// RPC_IN_WARMUP: it is still starting.
const WARMING_UP: i64 = -28;

/// A running node. Dropping it stops it and removes its data.
pub struct Bitcoind {
    exe: PathBuf,
    dir: Place,
    chain: Chain,
    rpc_port: u16,
    zmq_port: u16,
    process: Option<Child>,
    blocks: u64,
}

/// Where its data are.
enum Place {
    /// Removed with the node.
    Temporary(TempDir),
    /// Kept.
    Kept(PathBuf),
}

impl Bitcoind {
    /// Whether the machine has Bitcoin Core of its own: in `BITCOIND_EXE` or on the PATH.
    pub fn is_installed() -> bool {
        find("bitcoind", "BITCOIND_EXE", true, "").is_ok()
    }

    /// As [`Self::start`], on the chain in `dir`, which is made if it is not there and stays.
    ///
    /// # Errors
    /// As [`Self::start`], or if the directory cannot be made.
    pub fn start_in(chain: Chain, dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        // The node takes a relative path for one in its own default directory.
        let dir = dir.canonicalize().with_context(|| format!("finding {}", dir.display()))?;
        Self::start_at(chain, Place::Kept(dir))
    }

    /// Starts a node on a chain of its own: regtest, or a private signet that takes blocks without signature (its
    /// difficulty is 0.0011, about 5 million hashes a block). It has no peers and no wallet.
    ///
    /// The program is the one in `BITCOIND_EXE`, else on the PATH, else the one that the set-up has built.
    ///
    /// # Errors
    /// If the program is not found (the error says what to do) or does not start.
    pub fn start(chain: Chain) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("sluice-bitcoind-").tempdir().context("a directory for bitcoind")?;
        Self::start_at(chain, Place::Temporary(dir))
    }

    fn start_at(chain: Chain, dir: Place) -> Result<Self> {
        if !matches!(chain, Chain::Regtest | Chain::Signet) {
            bail!("a private node runs on regtest or signet, not on {chain}");
        }
        let exe = find("bitcoind", "BITCOIND_EXE", true, "bitcoind/bin/bitcoind")?;
        let (rpc_port, zmq_port) = (free_port()?, free_port()?);
        let mut node = Self { exe, dir, chain, rpc_port, zmq_port, process: None, blocks: 0 };
        node.launch()?;
        Ok(node)
    }

    /// Starts it again, on the same ports and data.
    ///
    /// # Errors
    /// If it does not start.
    pub fn launch(&mut self) -> Result<()> {
        let output = File::create(self.output()).context("the output of bitcoind")?;
        let mut command = Command::new(&self.exe);
        command.arg(format!("-datadir={}", self.data().display()));
        match self.chain {
            Chain::Signet => command.args(["-signet", "-signetchallenge=51"]),
            _ => command.arg("-regtest"),
        };
        command.args(["-server=1", "-listen=0", "-connect=0", "-dnsseed=0", "-fixedseeds=0", "-txindex=1"]);
        command.args(["-rpcbind=127.0.0.1", "-rpcallowip=127.0.0.1", "-printtoconsole=1", "-debug=rpc"]);
        let (user, password) = AUTH.split_once(':').context("the credentials")?;
        command.arg(format!("-rpcuser={user}")).arg(format!("-rpcpassword={password}"));
        command.arg(format!("-rpcport={}", self.rpc_port));
        for topic in ["hashblock", "sequence"] {
            command.arg(format!("-zmqpub{topic}={}", self.zmq()));
        }
        let process = command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).spawn();
        self.process = Some(process.with_context(|| format!("starting {}", self.exe.display()))?);
        self.wait_ready()
    }

    fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let error = match self.call("getblockchaininfo", json!([])) {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            if let Some(status) = self.process.as_mut().map(Child::try_wait).transpose()?.flatten() {
                bail!("bitcoind ended at once ({status}); {}", tail(&self.output()));
            }
            let starting = error.downcast_ref::<RpcError>().is_none_or(|error| error.code == WARMING_UP);
            if !starting || Instant::now() > deadline {
                return Err(error.context(format!("bitcoind is not ready; {}", tail(&self.output()))));
            }
            std::thread::sleep(TICK);
        }
    }

    /// Stops it in order; [`Self::launch`] starts it again.
    ///
    /// # Errors
    /// If it does not stop.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        let stopped = terminate(&process).and_then(|()| wait_exit(&mut process, PATIENCE));
        if stopped.is_err() {
            process.kill().ok();
            process.wait().ok();
        }
        stopped.map(|_| ())
    }

    /// Kills it, as a crash would.
    ///
    /// # Errors
    /// If that is not possible.
    pub fn kill(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        process.kill().context("killing bitcoind")?;
        process.wait().map(|_| ()).context("waiting for bitcoind's end")
    }

    /// The chain it runs on.
    pub fn chain(&self) -> Chain {
        self.chain
    }

    /// `http://127.0.0.1:PORT` of its RPC.
    pub fn rpc_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.rpc_port)
    }

    /// `USER:PASSWORD` of its RPC.
    pub fn auth(&self) -> &str {
        AUTH
    }

    /// `tcp://127.0.0.1:PORT` of its ZMQ notices (`hashblock` and `sequence`).
    pub fn zmq(&self) -> String {
        format!("tcp://127.0.0.1:{}", self.zmq_port)
    }

    /// A client of its RPC.
    pub fn rpc(&self) -> Rpc {
        Rpc::new(format!("127.0.0.1:{}", self.rpc_port), AUTH)
    }

    /// Calls a method with positional parameters.
    ///
    /// # Errors
    /// As [`Rpc::call`].
    pub fn call(&self, method: &str, params: Value) -> Result<Value> {
        self.rpc().call(method, &params)
    }

    /// Height of the tip.
    ///
    /// # Errors
    /// If the node does not answer.
    pub fn height(&self) -> Result<u32> {
        let count = self.call("getblockcount", json!([]))?;
        count.as_u64().and_then(|count| u32::try_from(count).ok()).context("a height")
    }

    /// Hash of the tip.
    ///
    /// # Errors
    /// If the node does not answer.
    pub fn tip(&self) -> Result<BlockHash> {
        parse_hash(&self.call("getbestblockhash", json!([]))?)
    }

    /// Makes blocks that pay `script`, with what waits in the mempool; their hashes. On regtest the node makes them
    /// itself, where `script` has an address; else they are mined here.
    ///
    /// # Errors
    /// If the node refuses.
    pub fn generate(&mut self, count: usize, script: &ScriptBuf) -> Result<Vec<BlockHash>> {
        match Address::from_script(script, Network::Regtest) {
            Ok(address) if self.chain == Chain::Regtest => {
                let hashes = self.call("generatetoaddress", json!([count, address.to_string()]))?;
                hashes.as_array().context("hashes")?.iter().map(parse_hash).collect()
            }
            _ => (0..count).map(|_| self.mine(script)).collect(),
        }
    }

    fn mine(&mut self, script: &ScriptBuf) -> Result<BlockHash> {
        let rules = if self.chain == Chain::Signet { json!(["segwit", "signet"]) } else { json!(["segwit"]) };
        let template = self.call("getblocktemplate", json!([{ "rules": rules }]))?;
        let template = Template::from_gbt(&template.to_string())?;
        self.blocks += 1;
        let params = JobParams {
            job_id: self.blocks,
            template_id: 0,
            template_clock: 0,
            payout: script.clone(),
            tag: b"/sluice testkit/",
            source_tag: self.blocks.to_be_bytes(),
            version_mask: 0,
            stale_grace_ms: 0,
            keep_ms: 0,
            clean: true,
            chain: self.chain,
        };
        let block = solve_block(&build_job(&template, &params)?, 0, &template.transactions)?;
        let refused = self.call("submitblock", json!([hex::encode(&block)]))?;
        if !refused.is_null() {
            bail!("bitcoind refuses a block: {refused}");
        }
        let header: bitcoin::block::Header = bitcoin::consensus::deserialize(&block[..80])?;
        Ok(header.block_hash())
    }

    /// What it printed last, for errors.
    pub fn log(&self) -> String {
        tail(&self.output())
    }

    fn data(&self) -> &Path {
        match &self.dir {
            Place::Temporary(dir) => dir.path(),
            Place::Kept(dir) => dir,
        }
    }

    fn output(&self) -> PathBuf {
        self.data().join("output")
    }
}

impl Drop for Bitcoind {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("bitcoind, {}", self.log());
        }
        let stopped = match self.dir {
            // Its data are removed: there is nothing to be written in order.
            Place::Temporary(_) => self.kill(),
            Place::Kept(_) => self.stop(),
        };
        if let Err(error) = stopped {
            tracing::warn!(%error, "a node of its own did not stop");
        }
    }
}

fn parse_hash(value: &Value) -> Result<BlockHash> {
    value.as_str().and_then(|text| text.parse().ok()).with_context(|| format!("not a hash: {value}"))
}
