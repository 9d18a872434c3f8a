//! A private Redis server for tests: a real one, on a free port of the loopback, without data on disk.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;

use crate::programs::{TICK, find, free_port, tail};

/// How long the server may take to start.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running server. Dropping it kills it.
pub struct RedisServer {
    dir: TempDir,
    port: u16,
    process: Option<Child>,
}

impl RedisServer {
    /// Starts a server.
    ///
    /// The program is looked for at `REDIS_EXE`, else on the PATH.
    ///
    /// # Errors
    /// If it is not found (the error says what to do) or does not start.
    pub fn start() -> Result<Self> {
        let mut server = Self::away()?;
        server.launch()?;
        Ok(server)
    }

    /// A server that is not running yet: nobody listens on its port.
    ///
    /// # Errors
    /// If there is no free port, or no directory can be made.
    pub fn away() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("sluice-redis-").tempdir().context("a directory for Redis")?;
        Ok(Self { dir, port: free_port()?, process: None })
    }

    /// `redis://HOST:PORT`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Kills it, with all that it holds.
    ///
    /// # Errors
    /// If it cannot be killed.
    pub fn kill(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        process.kill().context("killing Redis")?;
        process.wait().context("waiting for Redis to end").map(drop)
    }

    /// Starts it, empty, on its port; returns once it serves.
    ///
    /// # Errors
    /// If it does not start.
    pub fn launch(&mut self) -> Result<()> {
        self.kill()?;
        let log_file = self.dir.path().join("log");
        let log = File::create(&log_file).context("the log of Redis")?;
        let mut redis = Command::new(find("redis-server", "REDIS_EXE", true, "redis/redis-server")?);
        redis.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        redis.args(["--dir"]).arg(self.dir.path());
        redis.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let process = self.process.insert(redis.spawn().context("starting Redis")?);
        let begun = Instant::now();
        while !ask(self.port, "PING").is_ok_and(|answer| answer.starts_with("+PONG")) {
            if let Some(status) = process.try_wait().context("asking whether Redis runs")? {
                bail!("Redis ended at once ({status}); {}", tail(&log_file));
            }
            if begun.elapsed() > PATIENCE {
                bail!("Redis does not answer after {} s; {}", PATIENCE.as_secs(), tail(&log_file));
            }
            std::thread::sleep(TICK);
        }
        Ok(())
    }

    /// Runs a command; the first 64 KiB of its answer as they come over the wire.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn ask(&self, command: &str) -> Result<String> {
        ask(self.port, command)
    }

    /// Lets the server stand still (SIGSTOP): connections stay, answers do not come. [`Self::go_on`] ends it.
    ///
    /// # Errors
    /// If it cannot be told.
    pub fn stand_still(&self) -> Result<()> {
        self.signal("STOP")
    }

    /// See [`Self::stand_still`].
    ///
    /// # Errors
    /// If it cannot be told.
    pub fn go_on(&self) -> Result<()> {
        self.signal("CONT")
    }

    fn signal(&self, name: &str) -> Result<()> {
        let process = self.process.as_ref().context("Redis does not run")?;
        let kill = Command::new("sh").args(["-c", &format!("kill -{name} {}", process.id())]).status();
        if kill.context("running sh")?.success() { Ok(()) } else { bail!("Redis was not sent SIG{name}") }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            tracing::warn!(%error, "a server of Redis is left running");
        }
    }
}

fn ask(port: u16, command: &str) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(format!("{command}\r\n").as_bytes())?;
    let mut answer = vec![0; 64 << 10];
    let length = stream.read(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}
