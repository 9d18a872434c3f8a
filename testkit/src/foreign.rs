//! A miner and a pool that nobody here wrote: `para miner` and `para pool` (DESIGN 13).

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;

use crate::bitcoind::Bitcoind;
use crate::programs::{TICK, find, free_port, tail};

/// How long the pool may take to listen: a guard against hanging, not a measure.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running `para miner`. Dropping it kills it.
pub struct ForeignMiner {
    dir: TempDir,
    process: Child,
}

impl ForeignMiner {
    /// Starts it on `cores` cores against the pool at `HOST:PORT`, as `user` (payout address, and a worker's name after
    /// a dot).
    ///
    /// The program is the one in `PARA_EXE`, else the one that the set-up has built.
    ///
    /// # Errors
    /// If the program is not found (the error says what to do) or cannot be started.
    pub fn start(address: &str, user: &str, cores: usize) -> Result<Self> {
        let exe = find("para", "PARA_EXE", false, "para/bin/para")?;
        let dir = tempfile::Builder::new().prefix("sluice-para-").tempdir().context("a directory for para")?;
        let output = File::create(dir.path().join("output")).context("the output of para")?;
        let mut command = Command::new(&exe);
        command.args(["miner", address, "--username", user, "--password", "x", "--cpu-cores", &cores.to_string()]);
        // It writes to its home directory.
        command.current_dir(dir.path()).env("HOME", dir.path()).env("RUST_LOG", "info");
        let process = command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).spawn();
        Ok(Self { process: process.with_context(|| format!("starting {}", exe.display()))?, dir })
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// If the system does not tell.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.process.try_wait().context("asking whether para has ended")?.is_none())
    }

    /// What it has printed.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn output(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(self.file()).context("the output of para")?).into_owned())
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("output")
    }
}

impl Drop for ForeignMiner {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("para, {}", tail(&self.file()));
        }
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// A running `para pool`, for comparison. Dropping it kills it.
pub struct ForeignPool {
    address: SocketAddr,
    dir: TempDir,
    process: Child,
}

impl ForeignPool {
    /// Starts it on a node, with a share difficulty that stands still, and waits until it takes connections.
    ///
    /// # Errors
    /// If the program is not found (the error says what to do), ends, or does not listen within a minute.
    pub fn start(node: &Bitcoind, difficulty: &str) -> Result<Self> {
        let exe = find("para", "PARA_EXE", false, "para/bin/para")?;
        let dir = tempfile::Builder::new().prefix("sluice-para-").tempdir().context("a directory for para")?;
        let output = File::create(dir.path().join("output")).context("the output of para")?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let (user, password) = node.auth().split_once(':').context("the credentials of the node")?;
        let url = node.rpc_url();
        let rpc_port = url.rsplit(':').next().unwrap_or_default();
        let mut command = Command::new(&exe);
        command.args(["pool", "--chain", &node.chain().to_string(), "--bitcoin-rpc-port", rpc_port]);
        command.args(["--bitcoin-rpc-username", user, "--bitcoin-rpc-password", password]);
        command.args(["--zmq-block-notifications", &node.zmq(), "--data-dir"]).arg(dir.path().join("data"));
        command.args(["--address", &address.ip().to_string(), "--port", &address.port().to_string()]);
        for setting in ["--start-diff", "--min-diff", "--max-diff"] {
            command.args([setting, difficulty]);
        }
        // It bans whoever is fast, and writes to its home directory.
        command.args(["--disable-bouncer"]).current_dir(dir.path()).env("HOME", dir.path()).env("RUST_LOG", "warn");
        let process = command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).spawn();
        let process = process.with_context(|| format!("starting {}", exe.display()))?;
        let mut pool = Self { address, dir, process };
        pool.wait_listening()?;
        Ok(pool)
    }

    fn wait_listening(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(self.address).is_err() {
            let ended = self.process.try_wait().context("asking whether para has ended")?;
            if ended.is_some() || Instant::now() > deadline {
                bail!("para does not listen; {}", tail(&self.dir.path().join("output")));
            }
            std::thread::sleep(TICK);
        }
        Ok(())
    }

    /// Where miners connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for ForeignPool {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}
