//! What the tests share: a pool on a node, addresses, waiting, reading a log that no process has open.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use sluice_log::{EmbeddedLog, EmbeddedOptions, KafkaLog, KafkaOptions, LogFollower, MixedLog, Partition, SharedLog};
use sluice_proto::v1::Envelope;
use sluice_proto::{Body, Offset};
use sluice_testkit::harness::PoolProcess;
use sluice_testkit::kafka::Kafka;
use sluice_testkit::simnode::SimNode;
use sluice_topology::runtime::TopicReader;

/// The program under test.
pub const SLUICE: &str = env!("CARGO_BIN_EXE_sluice");
/// A guard against hanging, not a measure.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// How a pool is set up.
pub struct Setup<'a> {
    pub network: &'a str,
    pub rpc: String,
    pub auth: String,
    pub zmq: String,
    pub ledger: &'a str,
    pub maturity: u32,
    pub difficulty: &'a str,
}

impl Setup<'_> {
    /// The variables that the tests' topology asks for.
    pub fn environment(&self) -> [(&'static str, String); 8] {
        [
            ("NETWORK", self.network.to_owned()),
            ("PAYOUT", address(self.network, 0)),
            ("RPC", self.rpc.clone()),
            ("RPC_AUTH", self.auth.clone()),
            ("ZMQ", self.zmq.clone()),
            ("LEDGER_URL", self.ledger.to_owned()),
            ("MATURITY", self.maturity.to_string()),
            ("DIFFICULTY", self.difficulty.to_owned()),
        ]
    }

    /// On a simulated node, with a ledger beside the log.
    pub fn simulated(node: &SimNode, maturity: u32, difficulty: &'static str) -> Self {
        Self {
            network: "regtest",
            rpc: node.rpc_url(),
            auth: node.auth().to_owned(),
            zmq: node.zmq().to_owned(),
            ledger: "sqlite:./ledger.db",
            maturity,
            difficulty,
        }
    }
}

/// A pool of the tests' topology, not started.
pub fn pool(setup: &Setup<'_>) -> PoolProcess {
    let pool = PoolProcess::new(SLUICE, include_str!("topology.yaml")).unwrap();
    setup.environment().into_iter().fold(pool, |pool, (name, value)| pool.env(name, value))
}

/// Address number `number` of the tests on a network; the pool is 0.
pub fn address(network: &str, number: u8) -> String {
    sluice_testkit::addresses::address(network.parse().unwrap(), number).unwrap()
}

/// Asks until there is an answer.
pub fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "waited {} s for {what}", PATIENCE.as_secs());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The blocks that the pool shows.
pub fn blocks(pool: &PoolProcess) -> Vec<serde_json::Value> {
    pool.get_json("/api/v1/blocks?limit=1000").unwrap().as_array().unwrap().clone()
}

/// Numbers of a metric by the value of its label.
pub fn metric(pool: &PoolProcess, name: &str, label: &str) -> BTreeMap<String, u64> {
    let (status, page) = pool.get("/metrics").unwrap();
    assert_eq!(status, 200);
    let lines = page.lines().filter(|line| line.starts_with(name));
    let value = |line: &str| {
        let (labels, number) = line.rsplit_once(' ')?;
        let of = labels.split_once(&format!("{label}=\"")).map_or("", |(_, rest)| rest.split('"').next().unwrap());
        Some((of.to_owned(), number.parse::<f64>().ok()? as u64))
    };
    lines.filter_map(value).collect()
}

/// Moves a pool that has not been started to brokers: one of them, or three of which one may be missing.
pub fn on_kafka(pool: &PoolProcess, kafka: &Kafka) {
    let (brokers, copies) = (kafka.brokers(), kafka.brokers().len());
    // Each pool has a log of its own there.
    let prefix = format!("{}.", pool.dir().file_name().unwrap().to_string_lossy());
    let (replication, min_insync) = (copies, copies.div_ceil(2));
    let log = format!(
        "log: {{ kind: kafka, brokers: {brokers:?}, prefix: {prefix}, replication: {replication}, min_insync: {min_insync} }}"
    );
    let topology = include_str!("topology.yaml").replace("log: { kind: embedded, dir: ./log }", &log);
    pool.set_topology(&topology).unwrap();
    std::fs::write(pool.dir().join(KAFKA), format!("{prefix} {replication} {min_insync} {}", brokers.join(" ")))
        .unwrap();
}

/// Where [`on_kafka`] leaves what [`open_log`] needs.
pub const KAFKA: &str = "on-kafka";

/// Puts the topics that money is made of on brokers, for a pool that has not been started; the others stay where they are.
pub fn partly_on_kafka(pool: &PoolProcess, kafka: &Kafka) {
    let (brokers, prefix) = (kafka.brokers(), format!("{}-", pool.dir().file_name().unwrap().to_string_lossy()));
    let logs = format!(
        "logs: {{ warm: {{ kind: kafka, brokers: {brokers:?}, prefix: {prefix}, replication: 1, min_insync: 1 }} }}\ntopics:"
    );
    let topology = include_str!("topology.yaml").replace("topics:\n", &format!("{logs}\n"));
    let warm = WARM_TOPICS.iter().fold(topology, |topology, topic| {
        topology.replace(&format!("  {topic}:"), &format!("  {topic}: {{ log: warm }} # "))
    });
    pool.set_topology(&warm).unwrap();
    std::fs::write(pool.dir().join(WARM), format!("{prefix} 1 1 {}", brokers.join(" "))).unwrap();
}

/// Where [`partly_on_kafka`] leaves what [`open_log`] needs.
const WARM: &str = "partly-on-kafka";
const WARM_TOPICS: [&str; 2] = ["share.tallies", "block.outcomes"];

/// The log of a pool that has ended.
pub fn open_log(dir: &Path) -> SharedLog {
    match std::fs::read_to_string(dir.join(KAFKA)) {
        Ok(kafka) => log_on_kafka(&kafka),
        Err(_) => with_warm(dir, EmbeddedLog::open(EmbeddedOptions::new(dir.join("log"))).unwrap()),
    }
}

fn with_warm(dir: &Path, main: SharedLog) -> SharedLog {
    let Ok(kafka) = std::fs::read_to_string(dir.join(WARM)) else { return main };
    let others = BTreeMap::from([("warm".to_owned(), log_on_kafka(&kafka))]);
    let topics = WARM_TOPICS.map(|topic| (topic.to_owned(), "warm".to_owned()));
    MixedLog::new(main, others, topics.into()).unwrap()
}

/// The log of a pool, which may run.
pub fn follow_log(dir: &Path) -> SharedLog {
    match std::fs::read_to_string(dir.join(KAFKA)) {
        Ok(kafka) => log_on_kafka(&kafka),
        Err(_) => with_warm(dir, LogFollower::open(dir.join("log")).unwrap()),
    }
}

fn log_on_kafka(words: &str) -> SharedLog {
    let words: Vec<&str> = words.split(' ').collect();
    let [prefix, replication, min_insync, brokers @ ..] = &words[..] else { panic!("{words:?}") };
    let options = KafkaOptions {
        prefix: (*prefix).to_owned(),
        replication: replication.parse().unwrap(),
        min_insync: min_insync.parse().unwrap(),
        ..KafkaOptions::new(brokers.iter().map(|broker| (*broker).to_owned()).collect())
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(KafkaLog::find(options)).unwrap().unwrap()
}

/// A record, where it stands.
pub struct Read {
    pub partition: u32,
    pub offset: Offset,
    pub envelope: Envelope,
}

impl Read {
    pub fn body(&self) -> &Body {
        self.envelope.body.as_ref().unwrap()
    }
}

/// All records of a topic as a task reads them: repeated ones dropped, a missing one an error (P1).
pub fn read_topic(log: &SharedLog, topic: &str) -> Vec<Read> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let topics = log.topics().await.unwrap();
        let partitions = topics.iter().find(|known| &*known.name == topic).unwrap().partitions;
        let mut records = Vec::new();
        for partition in 0..partitions {
            let place = Partition::new(topic, partition);
            let end = log.bounds(&place).await.unwrap().next;
            let mut reader = TopicReader::new(log.clone(), place, Offset::ZERO);
            while reader.position() < end {
                for (offset, envelope) in reader.next_batch(Duration::ZERO).await.unwrap() {
                    records.push(Read { partition, offset, envelope });
                }
            }
        }
        records
    })
}
