//! Private Kafka brokers for tests: Apache Kafka itself, on free ports of the loopback, in a directory of its own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use parking_lot::Mutex;
use tempfile::TempDir;

use crate::programs::{TICK, cache_dir, free_port, tail};

/// How long brokers may take to start: a machine that is busy with tests is slow.
const PATIENCE: Duration = Duration::from_secs(120);

/// A cluster of brokers that are controllers, too. Dropping it kills them and removes their data.
pub struct Kafka {
    dir: TempDir,
    classpath: String,
    brokers: Vec<Broker>,
}

struct Broker {
    port: u16,
    process: Option<Child>,
}

impl Kafka {
    /// Starts this many brokers: 1, or 3 of which one may be missing.
    ///
    /// Its jars are looked for in the folder `KAFKA_LIB`, else where `make test` puts them.
    ///
    /// # Errors
    /// If the jars or Java are not found (the error says what to do), or a broker does not start.
    pub fn start(brokers: usize) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("sluice-kafka-").tempdir().context("a directory for Kafka")?;
        let ports = (0..brokers).map(|_| Ok((free_port()?, free_port()?))).collect::<Result<Vec<_>>>()?;
        let voters: Vec<_> = (1..).zip(&ports).map(|(id, (_, port))| format!("{id}@127.0.0.1:{port}")).collect();
        let classpath = format!("{}/*", lib()?.display());
        let brokers = ports.iter().map(|(port, _)| Broker { port: *port, process: None }).collect();
        let mut kafka = Self { dir, classpath, brokers };
        for (number, (port, controller)) in ports.into_iter().enumerate() {
            let file = kafka.file(number, "properties");
            fs::write(&file, properties(number + 1, port, controller, &voters, &kafka.file(number, "data")))
                .with_context(|| format!("writing {}", file.display()))?;
            // One id for the whole cluster; any will do.
            let mut format = kafka.java("kafka.tools.StorageTool", 128);
            let format = format.args(["format", "-t", "MkU3OEVBNTcwNTJENDM2Qg", "-c"]).arg(&file).output();
            let format = format.context("running java: install a Java runtime, or run `make test`, which does")?;
            if !format.status.success() {
                bail!("Kafka's storage was not formatted: {}", String::from_utf8_lossy(&format.stderr));
            }
        }
        (0..kafka.brokers.len()).try_for_each(|number| kafka.launch(number))?;
        (0..kafka.brokers.len()).try_for_each(|number| kafka.wait_started(number))?;
        Ok(kafka)
    }

    /// The broker that all tests of this process share while any of them holds it.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn shared() -> Result<Arc<Self>> {
        static SHARED: Mutex<Weak<Kafka>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock();
        if let Some(running) = shared.upgrade() {
            return Ok(running);
        }
        let started = Arc::new(Self::start(1)?);
        *shared = Arc::downgrade(&started);
        Ok(started)
    }

    /// `host:port` of each broker.
    pub fn brokers(&self) -> Vec<String> {
        self.brokers.iter().map(|broker| format!("127.0.0.1:{}", broker.port)).collect()
    }

    /// Kills broker `number`, from 0, as a power failure would (SIGKILL).
    ///
    /// # Errors
    /// If it cannot be killed.
    pub fn kill(&mut self, number: usize) -> Result<()> {
        let Some(mut process) = self.brokers[number].process.take() else { return Ok(()) };
        process.kill().context("killing a broker")?;
        process.wait().context("waiting for a broker to end").map(drop)
    }

    /// Starts broker `number` again, on its port and data; returns once it serves.
    ///
    /// # Errors
    /// If it does not start.
    pub fn restart(&mut self, number: usize) -> Result<()> {
        self.kill(number)?;
        self.launch(number)?;
        self.wait_started(number)
    }

    fn file(&self, number: usize, kind: &str) -> PathBuf {
        self.dir.path().join(format!("{}.{kind}", number + 1))
    }

    fn java(&self, class: &str, megabytes: u32) -> Command {
        let mut java = Command::new("java");
        java.arg(format!("-Xmx{megabytes}m")).args(["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
        java.args(["-Dorg.slf4j.simpleLogger.defaultLogLevel=info", "-cp", &self.classpath, class]);
        java
    }

    fn launch(&mut self, number: usize) -> Result<()> {
        let log = File::create(self.file(number, "log")).context("the log of a broker")?;
        let mut broker = self.java("kafka.Kafka", 512);
        broker.arg(self.file(number, "properties"));
        broker.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.brokers[number].process = Some(broker.spawn().context("starting a broker")?);
        Ok(())
    }

    fn wait_started(&mut self, number: usize) -> Result<()> {
        let (log, begun) = (self.file(number, "log"), Instant::now());
        loop {
            if fs::read_to_string(&log).is_ok_and(|text| text.contains("Kafka Server started")) {
                return Ok(());
            }
            let process = self.brokers[number].process.as_mut();
            if let Some(status) = process.and_then(|process| process.try_wait().ok().flatten()) {
                bail!("broker {} ended ({status}); {}", number + 1, tail(&log));
            }
            if begun.elapsed() > PATIENCE {
                bail!("broker {} has not started after {} s; {}", number + 1, PATIENCE.as_secs(), tail(&log));
            }
            std::thread::sleep(TICK);
        }
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        for number in 0..self.brokers.len() {
            if let Err(error) = self.kill(number) {
                tracing::warn!(%error, "a broker is left running");
            }
        }
    }
}

/// KRaft mode, topics by command only. Settings of topics of its own are for a cluster this small.
fn properties(id: usize, port: u16, controller: u16, voters: &[String], data: &Path) -> String {
    let (voters, copies, in_sync) = (voters.join(","), voters.len(), voters.len().div_ceil(2));
    format!(
        "process.roles=broker,controller
node.id={id}
controller.quorum.voters={voters}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={}
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
offsets.topic.num.partitions=1
offsets.topic.replication.factor={copies}
transaction.state.log.replication.factor={copies}
transaction.state.log.min.isr={in_sync}
broker.session.timeout.ms=6000
log.retention.check.interval.ms=1000
",
        data.display()
    )
}

fn lib() -> Result<PathBuf> {
    let named = std::env::var_os("KAFKA_LIB").filter(|named| !named.is_empty()).map(PathBuf::from);
    let lib = named.map_or_else(|| Ok::<_, anyhow::Error>(cache_dir()?.join("kafka/lib")), Ok)?;
    if lib.is_dir() {
        return Ok(lib);
    }
    bail!("no jars of Kafka in {}: run `make test`, which gets them once, or set KAFKA_LIB", lib.display())
}
