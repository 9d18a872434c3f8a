//! Kill -9 of the program under the load of several hundred miners, again and again; then count (invariants S1, B1, M1,
//! P1).

use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::time::Duration;

use sluice_testkit::harness::PoolProcess;
use sluice_testkit::miner::{CpuMiner, CpuMinerConfig};
use sluice_testkit::simnode::{SimNode, SimNodeConfig};
use sluice_testkit::swarm::{Load, Phase, Plan, run};

use crate::books::{Sent, answered_to_a_swarm, close, sent_by};
use crate::common::{PATIENCE, Setup, address, pool};

/// Some 131,000 hashes a block: a few blocks between kills.
pub const NBITS: u32 = 0x1f00_8000;
/// Connections of the swarm, each a worker of its own.
const CONNECTIONS: usize = 300;
/// Shares that the swarm sends a second. It finds no blocks.
const RATE: f64 = 3_000.0;
/// Miners that find blocks too.
const MINERS: u8 = 2;

/// S1, B1, M1: after 30 kills every share that was answered `true` is counted once and for its worker, no block is lost
/// or credited twice, and the database says what the log says.
#[test]
fn s1_accepted_shares_and_blocks_survive_kill_9() {
    survives(kills(30), |_| ());
}

/// The same with 300 kills.
#[test]
#[ignore = "takes a quarter of an hour: make nightly"]
fn nightly_s1_accepted_shares_and_blocks_survive_kill_9() {
    survives(kills(300), |_| ());
}

/// `SLUICE_KILLS`, or as many as are usual.
fn kills(usual: u32) -> u32 {
    std::env::var("SLUICE_KILLS").map_or(usual, |kills| kills.parse().unwrap())
}

/// Kills a pool, set up by `set_up`, that often; then counts.
pub fn survives(kills: u32, set_up: impl FnOnce(&PoolProcess)) {
    // The seed is printed with a failure: moments differ from run to run on purpose.
    let mut moments = Moments(RandomState::new().hash_one(0));
    println!("seed {}", moments.0);
    let node = SimNode::start(SimNodeConfig { nbits: NBITS, mempool: 50, ..SimNodeConfig::default() }).unwrap();
    let mut pool = pool(&Setup::simulated(&node, 5, "0.0000001"));
    set_up(&pool);
    let mut sent = Vec::new();
    for kill in 0..kills {
        // Most die under load, some on the way there.
        if kill % 6 == 5 {
            die_early(&mut pool, &mut moments, &mut sent)
        } else {
            die_late(&mut pool, &mut moments, &mut sent)
        }
    }
    pool.start().unwrap();
    let accepted = close(&mut pool, &node, &mut sent);
    println!("{kills} kills, {accepted} shares answered true, all counted once");
    assert!(accepted >= kills as usize * 100, "there was load: {accepted}");
}

/// Random moments: their order is the seed's.
pub struct Moments(pub u64);

impl Moments {
    pub fn below(&mut self, limit: Duration) -> Duration {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Duration::from_micros((self.0 >> 33) % limit.as_micros() as u64)
    }
}

/// Starts the program, and kills it at a random moment once miners are served.
fn die_late(pool: &mut PoolProcess, moments: &mut Moments, sent: &mut Vec<Sent>) {
    pool.spawn().unwrap();
    let stratum = pool.wait_address("stratumd").unwrap();
    let miners: Vec<CpuMiner> = (1..=MINERS).map(|number| miner(&stratum, number)).collect();
    let plan = swarm(pool, &stratum);
    let (begun, begins) = channel();
    let outcome = std::thread::scope(|scope| {
        let swarm = scope.spawn(|| {
            run(&plan, |phase| {
                if phase == Phase::Begin {
                    begun.send(()).ok();
                }
                Ok(())
            })
        });
        begins.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no load: {}", pool.output().unwrap()));
        std::thread::sleep(moments.below(Duration::from_millis(600)));
        pool.kill().unwrap();
        swarm.join().unwrap().unwrap()
    });
    assert_eq!(outcome.mismatches, 0, "{outcome}");
    sent.extend(answered_to_a_swarm(plan.record.as_ref().unwrap()));
    sent.extend(miners.into_iter().flat_map(sent_by));
}

/// Starts the program, and kills it at a random moment that may come before it serves anybody.
fn die_early(pool: &mut PoolProcess, moments: &mut Moments, sent: &mut Vec<Sent>) {
    pool.spawn().unwrap();
    let moment = moments.below(Duration::from_millis(800));
    let begun = std::time::Instant::now();
    let served = loop {
        match pool.address("stratumd") {
            Ok(stratum) => break Some(stratum),
            Err(_) if begun.elapsed() > moment => break None,
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    let miners: Vec<CpuMiner> =
        served.iter().flat_map(|stratum| (1..=MINERS).map(|number| miner(stratum, number))).collect();
    std::thread::sleep(moment.saturating_sub(begun.elapsed()));
    pool.kill().unwrap();
    sent.extend(miners.into_iter().flat_map(sent_by));
}

/// A miner that finds blocks.
pub fn miner(stratum: &str, number: u8) -> CpuMiner {
    CpuMiner::start(CpuMinerConfig {
        address: stratum.to_owned(),
        user: format!("{}.w{number}", address("regtest", number)),
        hash_rate: 60_000,
        version_rolling: number.is_multiple_of(2),
        ..CpuMinerConfig::default()
    })
    .unwrap()
}

/// A swarm that goes on until the pool is gone, with a record of its own.
fn swarm(pool: &PoolProcess, stratum: &str) -> Plan {
    let mut plan = Plan::new(stratum.parse().unwrap(), format!("{}.swarm{{n}}", address("regtest", 100)));
    plan.connections = CONNECTIONS;
    plan.load = Load::Open { rate: RATE, poisson: true };
    plan.duration = PATIENCE;
    plan.record = Some(new_record(pool));
    plan
}

/// A file that there is not yet.
pub fn new_record(pool: &PoolProcess) -> PathBuf {
    let names = (0..).map(|number| pool.dir().join(format!("record-{number}")));
    names.into_iter().find(|path| !path.exists()).unwrap()
}
