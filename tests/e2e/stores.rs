//! The stores beside the log, with real servers that die: InfluxDB for time series, Redis for what gateways share.

use sluice_testkit::harness::PoolProcess;
use sluice_testkit::influxdb::InfluxServer;
use sluice_testkit::miner::CpuMiner;
use sluice_testkit::redis::RedisServer;
use sluice_testkit::simnode::{SimNode, SimNodeConfig};

use crate::common::{PATIENCE, Setup, follow_log, pool, read_topic, wait};
use crate::crash::miner;

/// A pool of the tests' topology with more in it.
fn with(setup: &Setup<'_>, change: impl Fn(String) -> String) -> PoolProcess {
    let pool = pool(setup);
    pool.set_topology(&change(include_str!("topology.yaml").to_owned())).unwrap();
    pool
}

/// Condition and detail of a part, as `/health` tells them.
fn part(pool: &PoolProcess, name: &str) -> Option<(String, String)> {
    let health = pool.get_json("/health").ok()?;
    let part = health["parts"].as_array()?.iter().find(|part| part["name"] == name)?.clone();
    Some((part["condition"].as_str()?.to_owned(), part["detail"].as_str()?.to_owned()))
}

/// Waits until a part is in this condition; its detail.
fn wait_part(pool: &PoolProcess, name: &str, condition: &str) -> String {
    let found = || part(pool, name).filter(|(found, _)| found == condition);
    wait(&format!("{name} to be {condition}"), found).1
}

/// Shares of a miner that were accepted, once it has had some more.
fn mined(miner: &CpuMiner, more: u64) -> u64 {
    let before = miner.stats().accepted;
    miner.wait_until(PATIENCE, |stats| stats.accepted >= before + more).unwrap();
    miner.stats().accepted
}

/// Whatever dies, InfluxDB ends up with the totals of what was answered: a server that is away means lag and no loss, and what
/// a crash repeats counts once.
#[test]
fn influxdb_has_every_share_once_whoever_dies() {
    let mut influx = InfluxServer::start().unwrap();
    let node = SimNode::start(SimNodeConfig::default()).unwrap();
    let sink = format!(
        "  influx: {{ kind: influxdb, in: share.tallies, url: \"{}\", bucket: sluice, token: \"${{INFLUX_TOKEN}}\", every: 2s }}\n",
        influx.url()
    );
    let setup = Setup::simulated(&node, 5, "0.000001");
    let mut pool = with(&setup, |topology| topology + &sink).env("INFLUX_TOKEN", influx.token());
    pool.start().unwrap();
    let mut accepted = 0;
    for round in 0..3 {
        let miner = miner(&pool.address("stratumd").unwrap(), 1);
        mined(&miner, 20);
        if round > 0 {
            influx.kill().unwrap();
            mined(&miner, 20);
            let told = wait_part(&pool, "time series of influx", "degraded");
            assert!(told.contains("loses nothing"), "{told}");
            assert_eq!(pool.get("/ready").unwrap().0, 200, "miners are served");
        }
        mined(&miner, 20);
        accepted += miner.stop().0.accepted;
        if round == 1 {
            // With points that wait: they are made again.
            pool.kill().unwrap();
            pool.start().unwrap();
        }
        if round > 0 {
            influx.launch().unwrap();
        }
    }
    let sum = |field: &str, of: &str, which: &str| influx.sum(field, of, which).unwrap() as u64;
    // A share that was not answered any more counts too, if it is in the log.
    let log = follow_log(pool.dir());
    let counted = wait("all shares to be in InfluxDB", || {
        let counted = read_topic(&log, "share.valid").len() as u64;
        (counted >= accepted && sum("count", "shares", "status = 'accepted'") == counted).then_some(counted)
    });
    wait_part(&pool, "time series of influx", "ok");
    assert_eq!(sum("count", "shares", "status = 'accepted' AND worker_name = 'w1'"), counted);
    assert_eq!(sum("accepted", "pool", "accepted > 0"), counted);
    assert_eq!(sum("work", "pool", "accepted > 0"), sum("work", "shares", "status = 'accepted'"));
    let (_, page) = pool.get("/metrics").unwrap();
    assert!(page.contains("sluice_series_points_total{operator=\"influx\"}"), "{page}");
    assert!(pool.stop().unwrap().0.success());
}

/// Without Redis at the start, with it killed, flushed or standing still later, all miners are served, and health says so.
#[test]
fn redis_may_come_and_go() {
    let mut redis = RedisServer::away().unwrap();
    let node = SimNode::start(SimNodeConfig::default()).unwrap();
    let setup = Setup::simulated(&node, 5, "0.000001");
    let cache = format!("caches: {{ shared: {{ kind: redis, url: \"{}\" }} }}\ntopics:", redis.url());
    let mut pool = with(&setup, |topology| {
        let gateway = "stratumd:   { kind: gateway, ";
        topology.replace("topics:", &cache).replace(gateway, &format!("{gateway}cache: shared, unlimited: [], "))
    });
    pool.start().unwrap();
    let name = "cache shared";
    let told = wait_part(&pool, name, "degraded");
    assert!(told.contains("done without"), "{told}");
    let mut sessions: Vec<CpuMiner> = Vec::new();
    let mut all_mine = |pool: &PoolProcess| {
        sessions.push(miner(&pool.address("stratumd").unwrap(), 1 + sessions.len() as u8));
        for miner in &sessions {
            mined(miner, 10);
        }
    };
    all_mine(&pool);
    redis.launch().unwrap();
    wait("Redis to be found", || {
        all_mine(&pool);
        part(&pool, name).filter(|(condition, _)| condition == "ok")
    });
    let keys = |what: &str| redis.ask(&format!("KEYS *{what}*")).unwrap();
    wait("sessions and jobs to be kept there", || {
        (keys("session/").contains("sluice:{") && keys("/job").contains("sluice:{")).then_some(())
    });
    redis.ask("FLUSHALL").unwrap();
    all_mine(&pool);
    redis.stand_still().unwrap();
    all_mine(&pool);
    wait_part(&pool, name, "degraded");
    redis.go_on().unwrap();
    redis.kill().unwrap();
    all_mine(&pool);
    for miner in sessions {
        let (stats, _) = miner.stop();
        assert!(stats.rejected.is_empty() && stats.connections == 1, "{stats:?}");
    }
    assert!(pool.stop().unwrap().0.success());
}
