//! A miner that nobody here wrote: `para miner` (DESIGN 13).

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::programs::{find, tail};

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
