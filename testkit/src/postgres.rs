//! A private PostgreSQL server for tests: a real one, on a free port of the loopback, in a directory of its own.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use parking_lot::Mutex;
use tempfile::TempDir;

/// Where Debian puts PostgreSQL: `VERSION/bin` below it has the programs.
const DEBIAN: &str = "/usr/lib/postgresql";
/// Name of the server's superuser, who needs no password: it listens on the loopback only.
const USER: &str = "sluice";
/// How long the server may take to start or stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running server. Dropping it stops it and removes its data.
pub struct Postgres {
    bin: PathBuf,
    dir: TempDir,
    port: u16,
    server: Option<Child>,
    databases: AtomicU32,
}

impl Postgres {
    /// Creates a cluster and starts its server. `fsync` is on, as in production.
    ///
    /// The programs are looked for in the directory `POSTGRES_BIN`, else where Debian puts the newest
    /// version, else on the PATH. The server refuses to run as root: then it runs as the user `postgres`.
    ///
    /// # Errors
    /// If the programs are not found (the error says what to install) or the server does not start.
    pub fn start() -> Result<Self> {
        let bin = programs()?;
        let dir = tempfile::Builder::new().prefix("sluice-pg-").tempdir().context("a directory for PostgreSQL")?;
        if is_root()? {
            run(Command::new("chown").arg("postgres").arg(dir.path()))
                .context("PostgreSQL does not run as root and needs the user `postgres`")?;
        }
        let initdb = ["--username", USER, "--auth", "trust", "--encoding", "UTF8", "--locale", "C", "--pgdata"];
        run(as_user(&bin.join("initdb"), dir.path())?.args(initdb).arg(dir.path().join("data")))?;
        let mut postgres = Self { bin, dir, port: free_port()?, server: None, databases: AtomicU32::new(0) };
        postgres.launch()?;
        Ok(postgres)
    }

    /// The server that all tests of this process share while any of them holds it.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn shared() -> Result<Arc<Self>> {
        static SHARED: Mutex<Weak<Postgres>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock();
        if let Some(running) = shared.upgrade() {
            return Ok(running);
        }
        let started = Arc::new(Self::start()?);
        *shared = Arc::downgrade(&started);
        Ok(started)
    }

    /// Creates an empty database; returns its URL.
    ///
    /// # Errors
    /// If the server refuses.
    pub fn create_database(&self) -> Result<String> {
        let name = format!("ledger{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.sql("postgres", &format!("CREATE DATABASE {name}"))?;
        Ok(self.url(&name))
    }

    /// URL of the database `name`.
    pub fn url(&self, name: &str) -> String {
        format!("postgres://{USER}@127.0.0.1:{}/{name}", self.port)
    }

    /// Port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Runs statements in the database `name` by `psql`; returns what it prints, unaligned and without headers.
    ///
    /// # Errors
    /// If the server refuses a statement.
    pub fn sql(&self, name: &str, statements: &str) -> Result<String> {
        let port = self.port.to_string();
        let mut psql = Command::new(self.bin.join("psql"));
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", &port, "-U", USER]);
        run(psql.args(["-d", name, "-c", statements]).current_dir("/"))
    }

    /// Stops the server at once, as a crash would: nothing is flushed, clients are cut off.
    ///
    /// # Errors
    /// If it does not stop.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut server) = self.server.take() else { return Ok(()) };
        let mut ctl = as_user(&self.bin.join("pg_ctl"), self.dir.path())?;
        let stopped = run(ctl.args(["stop", "-m", "immediate", "-w", "-D"]).arg(self.dir.path().join("data")));
        if stopped.is_err() {
            server.kill().ok();
        }
        server.wait().context("waiting for PostgreSQL to stop")?;
        stopped.map(|_| ())
    }

    /// Starts the server again, on the same port and data.
    ///
    /// # Errors
    /// If it does not start.
    pub fn launch(&mut self) -> Result<()> {
        let log = File::create(self.dir.path().join("log")).context("the log of PostgreSQL")?;
        let mut command = as_user(&self.bin.join("postgres"), self.dir.path())?;
        command.arg("-D").arg(self.dir.path().join("data")).arg("-k").arg(self.dir.path());
        command.args(["-p", &self.port.to_string()]);
        for setting in ["listen_addresses=127.0.0.1", "max_connections=40", "shared_buffers=32MB"] {
            command.args(["-c", setting]);
        }
        let server = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        self.server = Some(server.context("starting PostgreSQL")?);
        let start = Instant::now();
        while self.sql("postgres", "SELECT 1").is_err() {
            let ended = self.server.as_mut().and_then(|server| server.try_wait().ok().flatten());
            if let Some(status) = ended {
                bail!("PostgreSQL ended at once ({status}):\n{}", self.log());
            }
            if start.elapsed() > PATIENCE {
                bail!("PostgreSQL does not answer after {} s:\n{}", PATIENCE.as_secs(), self.log());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::warn!(%error, "a PostgreSQL server of the tests did not stop");
        }
    }
}

fn programs() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let named = std::env::var_os("POSTGRES_BIN").map(PathBuf::from);
    let places = named.into_iter().chain(debian()).chain(std::env::split_paths(&path));
    let complete = |dir: &Path| ["initdb", "postgres", "pg_ctl", "psql"].iter().all(|name| dir.join(name).is_file());
    places.into_iter().find(|dir| complete(dir)).ok_or_else(|| {
        anyhow!(
            "PostgreSQL was not found in POSTGRES_BIN, below {DEBIAN} or on the PATH: install it (`make test` does, or \
             `apt-get install postgresql`), or set POSTGRES_BIN to the directory of initdb and postgres"
        )
    })
}

/// Debian's versions, the newest first.
fn debian() -> Vec<PathBuf> {
    let versions = fs::read_dir(DEBIAN).into_iter().flatten().filter_map(|entry| {
        let path = entry.ok()?.path();
        let version: u32 = path.file_name()?.to_str()?.parse().ok()?;
        Some((version, path.join("bin")))
    });
    let mut versions: Vec<_> = versions.collect();
    versions.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    versions.into_iter().map(|(_, bin)| bin).collect()
}

/// A command that runs as a user PostgreSQL accepts, in `dir`.
fn as_user(program: &Path, dir: &Path) -> Result<Command> {
    let mut command = if is_root()? {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.current_dir(dir).env_remove("PGDATA").env("LC_ALL", "C");
    Ok(command)
}

fn is_root() -> Result<bool> {
    let status = fs::read_to_string("/proc/self/status").context("who runs the tests")?;
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:")).and_then(|ids| ids.split_whitespace().nth(1));
    Ok(uid == Some("0"))
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("a free port for PostgreSQL")?;
    Ok(listener.local_addr()?.port())
}

/// Runs a command to its end; returns what it printed.
fn run(command: &mut Command) -> Result<String> {
    let program: OsString = command.get_program().to_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("running {}", program.display()))?;
    if !output.status.success() {
        bail!("{} failed: {}", program.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}
