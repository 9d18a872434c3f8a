//! The pools under test, each with a node of its own.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bitcoin::Network;
use sluice_mining::Chain;
use sluice_testkit::addresses::{address, script};
use sluice_testkit::bitcoind::Bitcoind;
use sluice_testkit::foreign::ForeignPool;
use sluice_testkit::harness::PoolProcess;
use sluice_testkit::kafka::Kafka;
use sluice_testkit::simnode::SimNode;

/// The topology that people start with.
const TOPOLOGY: &str = include_str!("../../topology.yaml");
/// The lowest difficulty there is, 2^-24: about 256 hashes a share.
pub const DIFFICULTY: &str = "0.000000059604644775390625";
/// Where its states are, beside the file.
pub const STATES: &str = "data/state";
/// How long operators may need to read what came before: a guard, not a measure.
const GUARD: Duration = Duration::from_secs(120);

/// A running pool and its node.
pub struct Pool {
    pub stratum: SocketAddr,
    /// Who mines: each connection is a worker of one account.
    pub user: String,
    process: Process,
    /// `None` where the node is the caller's.
    node: Option<Bitcoind>,
    /// Where its log is, if not on this disk.
    _kafka: Option<Kafka>,
}

enum Process {
    Sluice(PoolProcess),
    Para(ForeignPool),
}

fn user(network: Network) -> Result<String> {
    Ok(format!("{}.rig{{n}}", address(network, 1)?))
}

/// A private signet that has left its initial download behind.
fn node() -> Result<Bitcoind> {
    let mut node = Bitcoind::start(Chain::Signet)?;
    node.generate(1, &script(2))?;
    Ok(node)
}

/// The topology with its log on brokers.
fn on_brokers(kafka: &Kafka) -> Result<String> {
    let line = TOPOLOGY.lines().find(|line| line.starts_with("log: ")).context("topology.yaml has no log")?;
    let brokers = kafka.brokers();
    let log = format!("log: {{ kind: kafka, brokers: {brokers:?}, replication: 1, min_insync: 1 }}");
    Ok(TOPOLOGY.replace(line, &log))
}

impl Pool {
    /// Sluice on a private signet.
    pub fn sluice() -> Result<Self> {
        Self::on_signet(None)
    }

    /// The same, with its log on a broker of this machine.
    pub fn on_kafka() -> Result<Self> {
        Self::on_signet(Some(Kafka::start(1)?))
    }

    fn on_signet(kafka: Option<Kafka>) -> Result<Self> {
        let node = node()?;
        let (rpc, auth, zmq) = (node.rpc_url(), node.auth().to_owned(), node.zmq());
        Self::start(Network::Signet, [rpc, auth, zmq], Some(node), kafka)
    }

    /// Sluice on a simulated node, where it may find as many blocks as it likes.
    pub fn on_simulated(node: &SimNode, kafka: Option<Kafka>) -> Result<Self> {
        Self::start(Network::Regtest, [node.rpc_url(), node.auth().to_owned(), node.zmq().to_owned()], None, kafka)
    }

    /// With everything that `topology.yaml` has. Its difficulty stands still, since what is measured is a share.
    fn start(
        network: Network,
        [rpc, auth, zmq]: [String; 3],
        node: Option<Bitcoind>,
        kafka: Option<Kafka>,
    ) -> Result<Self> {
        let settings = [
            format!("operators.stratumd.difficulty={DIFFICULTY}"),
            format!("operators.stratumd.max_difficulty={DIFFICULTY}"),
            "ledger.url=sqlite:./ledger.db".to_owned(),
        ];
        let topology = match &kafka {
            Some(kafka) => on_brokers(kafka)?,
            None => TOPOLOGY.to_owned(),
        };
        let mut process = PoolProcess::new(env!("CARGO_BIN_EXE_sluice"), &topology)?
            .env("BITCOIN_NETWORK", network.to_string())
            .env("POOL_ADDRESS", address(network, 0)?)
            .env("BITCOIN_RPC", rpc)
            .env("BITCOIN_RPC_AUTH", auth)
            .env("BITCOIN_ZMQ", zmq)
            .env("SLUICE_HTTP", "127.0.0.1:0")
            .env("SLUICE_STRATUM", "127.0.0.1:0");
        for setting in settings {
            process = process.arg("--set").arg(setting);
        }
        process.start()?;
        let stratum = process.address("stratumd")?.parse().context("the address of stratumd")?;
        Ok(Self { stratum, user: user(network)?, process: Process::Sluice(process), node, _kafka: kafka })
    }

    /// para, on a node like that of Sluice, with the same difficulty.
    pub fn para() -> Result<Self> {
        let node = node()?;
        let process = ForeignPool::start(&node, DIFFICULTY)?;
        let user = user(Network::Signet)?;
        Ok(Self { stratum: process.address(), user, process: Process::Para(process), node: Some(node), _kafka: None })
    }

    /// Where the node announces blocks.
    pub fn zmq(&self) -> Result<String> {
        Ok(self.node.as_ref().context("no node of its own")?.zmq())
    }

    /// Somebody else finds a block.
    pub fn find_block(&mut self) -> Result<()> {
        self.node.as_mut().context("no node of its own")?.generate(1, &script(2)).map(|_| ())
    }

    /// Waits until all operators have read what there is; how long that took.
    pub fn catch_up(&self) -> Result<Duration> {
        let begun = Instant::now();
        let Process::Sluice(pool) = &self.process else { return Ok(Duration::ZERO) };
        loop {
            let health = pool.get_json("/health")?;
            let tasks = health["tasks"].as_array().context("tasks in /health")?;
            ensure!(!tasks.is_empty(), "no tasks in /health");
            if tasks.iter().all(|task| task["lag_records"] == 0) {
                return Ok(begun.elapsed());
            }
            ensure!(begun.elapsed() < GUARD, "the operators do not catch up: {health}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The program itself.
    pub fn sluice_process(&mut self) -> Result<&mut PoolProcess> {
        match &mut self.process {
            Process::Sluice(pool) => Ok(pool),
            Process::Para(_) => anyhow::bail!("this is para"),
        }
    }

    /// Bytes of all states.
    pub fn states(&mut self) -> Result<u64> {
        let mut bytes = 0;
        for state in sluice_state::states_in(&self.sluice_process()?.dir().join(STATES))? {
            for file in state.read_dir()? {
                bytes += file?.metadata()?.len();
            }
        }
        Ok(bytes)
    }

    fn id(&self) -> Result<u32> {
        match &self.process {
            Process::Sluice(pool) => pool.id().context("the pool does not run"),
            Process::Para(pool) => Ok(pool.id()),
        }
    }

    /// CPU time that its process has used, with what the system did for it.
    pub fn cpu(&self) -> Result<Duration> {
        /// Ticks of /proc a second, on every Linux there is.
        const TICKS: u64 = 100;
        let stat = self.read("stat")?;
        // The name in parentheses may hold anything.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |place: usize| fields.get(place).and_then(|text| text.parse::<u64>().ok()).context("ticks of CPU");
        Ok(Duration::from_millis((ticks(11)? + ticks(12)?) * 1_000 / TICKS))
    }

    /// Bytes of memory that its process has.
    pub fn resident(&self) -> Result<u64> {
        let status = self.read("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>().context("VmRSS")? << 10)
    }

    /// Has perf look at the process for a while, where `PERF` names a file for that.
    pub fn profile(&self, time: Duration) -> Result<()> {
        let Some(file) = std::env::var_os("PERF") else { return Ok(()) };
        let mut perf = Command::new("perf");
        perf.args(["record", "--quiet", "-F", "999", "-g", "-p", &self.id()?.to_string(), "-o"]).arg(file);
        perf.args(["--", "sleep", &time.as_secs().to_string()]).spawn().context("starting perf")?;
        Ok(())
    }

    fn read(&self, file: &str) -> Result<String> {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.id()?)).context("the pool's numbers in /proc")
    }
}
