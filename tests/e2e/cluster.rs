//! Two processes of each service over three brokers, with several hundred miners: brokers and processes die at random, one every
//! few seconds (invariants S1, B1, M1, P1, S2).

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sluice_testkit::free_port;
use sluice_testkit::harness::PoolProcess;
use sluice_testkit::kafka::Kafka;
use sluice_testkit::miner::CpuMiner;
use sluice_testkit::simnode::{SimNode, SimNodeConfig};
use sluice_testkit::swarm::{Load, Plan, run};

use crate::books::{Sent, answered_to_a_swarm, close_parts, sent_by};
use crate::common::{Setup, address, on_kafka, pool};
use crate::crash::{Moments, NBITS, miner};
use crate::kafka::{bring_states, more};

/// What runs in two processes each, shared out among them; the gateways are two by themselves.
const SHARED: [&str; 5] = ["jobmanager", "verify,dedupe,vardiff,tally", "assemble,submit", "ledger", "stats,apiserver"];
const GATEWAYS: [&str; 2] = ["stratumd", "stratumd2"];
/// What makes the end, a process each.
const REST: [&str; 4] =
    ["jobmanager,stratumd,stratumd2", "verify,dedupe,vardiff,tally", "assemble,submit", "ledger,stats,apiserver"];
/// Connections of a swarm, of which each gateway has one.
const CONNECTIONS: usize = 150;

#[test]
fn s1_two_processes_of_each_service_and_three_brokers_lose_nothing() {
    survives(|kills, _| kills >= 10);
}

#[test]
#[ignore = "takes ten minutes: make nightly"]
fn nightly_s1_two_processes_of_each_service_and_three_brokers_lose_nothing() {
    survives(|_, begun| begun.elapsed() > Duration::from_secs(600));
}

struct Cluster {
    kafka: Kafka,
    processes: Vec<PoolProcess>,
}

impl Cluster {
    /// Kills a broker or a process, and starts it again some moments later.
    fn kill_one(&mut self, victim: usize, away: Duration) {
        let brokers = self.kafka.brokers().len();
        if victim < brokers {
            self.kafka.kill(victim).unwrap();
            std::thread::sleep(away);
            self.kafka.restart(victim).unwrap();
        } else {
            let process = &mut self.processes[victim - brokers];
            assert!(process.is_running().unwrap(), "it died by itself: {}", process.output().unwrap());
            process.kill().unwrap();
            std::thread::sleep(away);
            process.spawn().unwrap();
        }
    }

    fn size(&self) -> usize {
        self.kafka.brokers().len() + self.processes.len()
    }
}

/// Ends the load when it is dropped.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Kills until it is `enough`, then counts.
fn survives(enough: impl Fn(u32, Instant) -> bool) {
    let mut moments = Moments(RandomState::new().hash_one(0));
    println!("seed {}", moments.0);
    let node = SimNode::start(SimNodeConfig { nbits: NBITS, mempool: 20, ..SimNodeConfig::default() }).unwrap();
    let kafka = Kafka::start(3).unwrap();
    let mut setup = Setup::simulated(&node, 5, "0.0000001");
    let rest = pool(&setup).arg("--only").arg(REST[3]);
    // One database for all.
    let ledger = format!("sqlite:{}", rest.dir().join("ledger.db").display());
    setup.ledger = &ledger;
    on_kafka(&rest, &kafka);
    let ports = GATEWAYS.map(|_| free_port().unwrap());
    let topology = with_two_gateways(&std::fs::read_to_string(rest.dir().join("topology.yaml")).unwrap(), ports);
    let with = |only: &str, shared: bool| {
        let process = pool(&setup).arg("--only").arg(only);
        let process = if shared { process.arg("--shared") } else { process };
        process.set_topology(&topology).unwrap();
        process
    };
    let mut rest = [with(REST[0], false), with(REST[1], false), with(REST[2], false), {
        rest.set_topology(&topology).unwrap();
        rest.env("LEDGER_URL", &ledger)
    }];
    let shared = SHARED.iter().flat_map(|only| [with(only, true), with(only, true)]);
    let processes: Vec<PoolProcess> = GATEWAYS.iter().map(|only| with(only, false)).chain(shared).collect();
    let mut cluster = Cluster { kafka, processes };
    cluster.processes.iter_mut().for_each(|process| process.spawn().unwrap());
    let addresses = ports.map(|port| format!("127.0.0.1:{port}"));
    let miners: Vec<CpuMiner> = (1..).zip(&addresses).map(|(number, stratum)| miner(stratum, number)).collect();
    miners.iter().for_each(|miner| more(miner, 20));
    let (stop, begun) = (AtomicBool::new(false), Instant::now());
    let (mut kills, mut sent) = (0, Vec::new());
    std::thread::scope(|scope| {
        // Also where the test fails.
        let stopping = Stop(&stop);
        let loads = addresses.each_ref().map(|stratum| scope.spawn(|| load(&rest[3], stratum, &stop)));
        while !enough(kills, begun) {
            std::thread::sleep(Duration::from_secs(1) + moments.below(Duration::from_secs(2)));
            let victim = moments.below(Duration::from_micros(cluster.size() as u64)).as_micros() as usize;
            // Every third is a broker, of which there are fewer.
            let victim = if kills % 3 == 0 { victim % 3 } else { victim };
            println!("{:?}: kills {victim}", begun.elapsed());
            cluster.kill_one(victim, Duration::from_millis(200) + moments.below(Duration::from_secs(2)));
            kills += 1;
        }
        miners.iter().for_each(|miner| more(miner, 20));
        drop(stopping);
        loads.into_iter().for_each(|load| sent.extend(load.join().unwrap()));
    });
    sent.extend(miners.into_iter().flat_map(sent_by));
    for process in &mut cluster.processes {
        assert!(process.is_running().unwrap(), "{}", process.output().unwrap());
        process.kill().unwrap();
    }
    let accepted = close(&mut rest, &node, &mut sent);
    println!("{kills} kills, {accepted} shares answered true, all counted once");
    assert!(accepted > 1_000, "there was load: {accepted}");
}

/// Goes on with what is in the log, with states of its own, until all is counted; then compares.
fn close(rest: &mut [PoolProcess; 4], node: &SimNode, sent: &mut Vec<Sent>) -> usize {
    rest.iter_mut().for_each(|part| part.start().unwrap());
    let [sources, shares, blocks, money] = rest;
    let (stratum, states) = (sources.address("stratumd").unwrap(), money.dir().join("state"));
    close_parts(money, &stratum, node, sent, || {
        for part in [sources, shares, blocks] {
            assert!(part.stop().unwrap().0.success(), "{}", part.output().unwrap());
            bring_states(part, &states);
        }
    })
}

/// The topology with a second gateway, both at ports that stay.
fn with_two_gateways(topology: &str, [one, other]: [u16; 2]) -> String {
    let begin = topology.find("  stratumd:").unwrap();
    let end = topology.find("  verify:").unwrap();
    let gateway = topology[begin..end].replace("127.0.0.1:0", &format!("127.0.0.1:{one}"));
    let second = gateway.replace("stratumd:  ", "stratumd2: ").replace("kind: gateway,", "kind: gateway, id: 1,");
    let second = second.replace(&one.to_string(), &other.to_string());
    format!("{}{gateway}{second}{}", &topology[..begin], &topology[end..])
}

/// Puts load on a gateway that comes and goes; what was answered `true`.
fn load(records: &PoolProcess, stratum: &str, stop: &AtomicBool) -> Vec<Sent> {
    let mut sent = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let user = format!("{}.swarm{{n}}", address("regtest", 100));
        let mut plan = Plan::new(stratum.parse().unwrap(), user);
        (plan.connections, plan.threads, plan.stock) = (CONNECTIONS, 1, 0);
        plan.load = Load::Open { rate: 300.0, poisson: true };
        plan.duration = Duration::from_secs(5);
        let port = stratum.rsplit(':').next().unwrap();
        let record = records.dir().join(format!("record-of-{port}"));
        plan.record = Some(record.clone());
        match run(&plan, |_| Ok(())) {
            Ok(outcome) => assert_eq!(outcome.mismatches, 0, "{stratum}: {outcome}"),
            // Nobody listens there just now.
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
        if record.exists() {
            sent.extend(answered_to_a_swarm(&record));
            std::fs::remove_file(record).unwrap();
        }
    }
    sent
}
