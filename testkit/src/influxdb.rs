//! A private InfluxDB server for tests: version 1.8, a real one, on a free port of the loopback, in a directory of its own.

use std::fs::{self, File};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::programs::{TICK, find, free_port, tail};
use crate::rpc::http;

/// How long the server may take to start.
const PATIENCE: Duration = Duration::from_secs(60);
/// Who may do everything there.
const USER: (&str, &str) = ("sluice", "secret");

/// A running server that asks for a password. Dropping it kills it and removes its data.
pub struct InfluxServer {
    dir: TempDir,
    port: u16,
    process: Option<Child>,
}

impl InfluxServer {
    /// Starts a server with the database `sluice`.
    ///
    /// The program is looked for at `INFLUXD_EXE`, else on the PATH, else where `make test` builds it.
    ///
    /// # Errors
    /// If it is not found (the error says what to do) or does not start.
    pub fn start() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("sluice-influxdb-").tempdir().context("a directory for InfluxDB")?;
        let (port, backup) = (free_port()?, free_port()?);
        let path = dir.path().display();
        let config = format!(
            "reporting-disabled = true
bind-address = \"127.0.0.1:{backup}\"
[meta]
dir = \"{path}/meta\"
[data]
dir = \"{path}/data\"
wal-dir = \"{path}/wal\"
index-version = \"tsi1\"
[http]
bind-address = \"127.0.0.1:{port}\"
auth-enabled = true
log-enabled = false
"
        );
        fs::write(dir.path().join("influxdb.conf"), config).context("the settings of InfluxDB")?;
        let mut server = Self { dir, port, process: None };
        server.launch()?;
        let (user, password) = USER;
        server.ask(&format!("CREATE USER {user} WITH PASSWORD '{password}' WITH ALL PRIVILEGES"))?;
        server.ask("CREATE DATABASE sluice")?;
        Ok(server)
    }

    /// `http://HOST:PORT`.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What it takes as a token.
    pub fn token(&self) -> String {
        format!("{}:{}", USER.0, USER.1)
    }

    /// Asks in InfluxQL, of the database `sluice`; times are in milliseconds.
    ///
    /// # Errors
    /// If it does not answer, or refuses.
    pub fn ask(&self, question: &str) -> Result<Value> {
        let escaped: String = question.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let path = format!("/query?db=sluice&epoch=ms&u={}&p={}&q={escaped}", USER.0, USER.1);
        let (status, body) = http("POST", &format!("127.0.0.1:{}", self.port), &path, "", &[])?;
        let answer: Value = serde_json::from_str(&body).with_context(|| format!("{status} {body}"))?;
        let error = answer.get("error").or_else(|| answer.pointer("/results/0/error"));
        match error {
            None if status == 200 => Ok(answer["results"][0]["series"].clone()),
            _ => bail!("InfluxDB answered {question} with {status} {body}"),
        }
    }

    /// The sum of a field over all series and times that fulfil a condition of InfluxQL; 0 if there are none.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn sum(&self, field: &str, measurement: &str, condition: &str) -> Result<f64> {
        let series = self.ask(&format!("SELECT sum(\"{field}\") FROM \"{measurement}\" WHERE {condition}"))?;
        Ok(series.pointer("/0/values/0/1").and_then(Value::as_f64).unwrap_or(0.0))
    }

    /// Kills it, as a power failure would (SIGKILL).
    ///
    /// # Errors
    /// If it cannot be killed.
    pub fn kill(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        process.kill().context("killing InfluxDB")?;
        process.wait().context("waiting for InfluxDB to end").map(drop)
    }

    /// Starts it again, on its port and data; returns once it serves.
    ///
    /// # Errors
    /// If it does not start.
    pub fn launch(&mut self) -> Result<()> {
        self.kill()?;
        let log_file = self.dir.path().join("log");
        let log = File::create(&log_file).context("the log of InfluxDB")?;
        let mut influxd = Command::new(find("influxd", "INFLUXD_EXE", true, "influxd/bin/influxd")?);
        influxd.arg("-config").arg(self.dir.path().join("influxdb.conf")).env("HOME", self.dir.path());
        influxd.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let process = self.process.insert(influxd.spawn().context("starting InfluxDB")?);
        let begun = Instant::now();
        while !matches!(http("GET", &format!("127.0.0.1:{}", self.port), "/ping", "", &[]), Ok((204, _))) {
            if let Some(status) = process.try_wait().context("asking whether InfluxDB runs")? {
                bail!("InfluxDB ended at once ({status}); {}", tail(&log_file));
            }
            if begun.elapsed() > PATIENCE {
                bail!("InfluxDB does not answer after {} s; {}", PATIENCE.as_secs(), tail(&log_file));
            }
            std::thread::sleep(TICK);
        }
        Ok(())
    }
}

impl Drop for InfluxServer {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            tracing::warn!(%error, "a server of InfluxDB is left running");
        }
    }
}
