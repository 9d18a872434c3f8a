//! A log that is brought elsewhere (docs/adr/0027).

use std::fs;

use serde_json::Value;
use sluice_testkit::harness::PoolProcess;
use sluice_testkit::kafka::Kafka;
use sluice_testkit::simnode::{SimNode, SimNodeConfig};

use crate::books::{close, replayed};
use crate::common::{KAFKA, Setup, on_kafka, pool};
use crate::crash::NBITS;
use crate::replay::{digests, mine};

/// Brings the log of the file `old` to where the pool's file has it; what the comparison says, and the ledger's digest.
fn brought(pool: &PoolProcess, old: &str) -> (Value, Vec<u8>) {
    let output = pool.command(&["replay", "--verify", "--json", "--from-log", old]).output().unwrap();
    let (said, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{log}");
    assert!(log.contains("records are brought from the log"), "{log}");
    (serde_json::from_str(&said).unwrap(), ledger(pool))
}

fn ledger(pool: &PoolProcess) -> Vec<u8> {
    let store = sluice_ledger::open(&format!("sqlite:{}", pool.dir().join("ledger.db").display())).unwrap();
    format!("{:?} {:?}", store.digest().unwrap(), store.balances("", 1_000).unwrap()).into_bytes()
}

/// S2, M1, S1: from an embedded log to Kafka and back, changing `log:` only: the same digests, the same balances, and the pool
/// goes on each time.
#[test]
fn s2_a_log_goes_to_kafka_and_back_with_the_same_digests_and_balances() {
    let kafka = Kafka::shared().unwrap();
    let node = SimNode::start(SimNodeConfig { nbits: NBITS, mempool: 20, ..SimNodeConfig::default() }).unwrap();
    let mut pool = pool(&Setup::simulated(&node, 5, "0.0000005"));
    let embedded = fs::read_to_string(pool.dir().join("topology.yaml")).unwrap();
    pool.start().unwrap();
    let mut sent = mine(&pool, 100);
    close(&mut pool, &node, &mut sent);
    let (before, balances) = (digests(&replayed(&pool)), ledger(&pool));

    fs::write(pool.dir().join("embedded.yaml"), &embedded).unwrap();
    on_kafka(&pool, &kafka);
    let (said, after) = brought(&pool, "embedded.yaml");
    assert_eq!((digests(&said), after), (before, balances));
    let refused = pool.command(&["replay", "--from-log", "topology.yaml"]).output().unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("nothing to bring"), "{refused:?}");
    pool.start().unwrap();
    sent.extend(mine(&pool, 50));
    close(&mut pool, &node, &mut sent);
    let (before, balances) = (digests(&replayed(&pool)), ledger(&pool));

    fs::rename(pool.dir().join("topology.yaml"), pool.dir().join("kafka.yaml")).unwrap();
    fs::rename(pool.dir().join("log"), pool.dir().join("log-of-before")).unwrap();
    fs::remove_file(pool.dir().join(KAFKA)).unwrap();
    pool.set_topology(&embedded).unwrap();
    let (said, after) = brought(&pool, "kafka.yaml");
    assert_eq!((digests(&said), after), (before, balances));
    pool.start().unwrap();
    sent.extend(mine(&pool, 50));
    close(&mut pool, &node, &mut sent);
}
