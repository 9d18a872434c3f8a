//! New blocks to many miners, and a miner's block to the node.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sluice_mining::{Difficulty, Target};
use sluice_testkit::kafka::Kafka;
use sluice_testkit::simnode::{SimNode, SimNodeConfig};
use sluice_testkit::stratum::{Notify, StratumClient, Subscription};
use sluice_testkit::swarm::{self, Load, Phase, Plan};

use crate::pools::{DIFFICULTY, Pool};

/// A guard against hanging, not a measure.
const GUARD: Duration = Duration::from_secs(60);

/// Block hashes (internal order) as the node announces them, and when each came, microseconds since 1970.
fn notices(zmq: &str, stop: &AtomicBool) -> Result<Vec<([u8; 32], u64)>> {
    let socket = zmq::Context::new().socket(zmq::SUB)?;
    socket.connect(zmq)?;
    socket.set_subscribe(b"hashblock")?;
    socket.set_rcvtimeo(100)?;
    let mut heard = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let Ok(parts) = socket.recv_multipart(0) else { continue };
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros();
        let mut hash: [u8; 32] = parts.get(1).context("a notice without hash")?.as_slice().try_into()?;
        hash.reverse();
        heard.push((hash, u64::try_from(now)?));
    }
    Ok(heard)
}

/// From the node's notice of a new block to its job at the first and the last of idle connections; the median of several
/// blocks.
pub fn notify() -> Result<Vec<String>> {
    const CONNECTIONS: usize = 10_000;
    const BLOCKS: usize = 9;
    let mut pool = Pool::sluice()?;
    let stop = Arc::new(AtomicBool::new(false));
    let (zmq, stopped) = (pool.zmq()?, Arc::clone(&stop));
    let listener = std::thread::spawn(move || notices(&zmq, &stopped));
    let plan = Plan {
        connections: CONNECTIONS,
        load: Load::Idle,
        duration: Duration::from_secs(1),
        ..Plan::new(pool.stratum, pool.user.as_str())
    };
    let outcome = swarm::run(&plan, |phase| {
        if phase == Phase::Begin {
            for _ in 0..BLOCKS {
                pool.find_block()?;
                // One block at a time: nobody is still busy with the one before.
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        Ok(())
    })?;
    stop.store(true, Ordering::Relaxed);
    let heard = listener.join().map_err(|_| anyhow::anyhow!("the listener panicked"))??;
    let (mut first, mut last) = (Vec::new(), Vec::new());
    for spread in &outcome.spreads {
        let (_, noticed) =
            heard.iter().find(|(hash, _)| *hash == spread.prev_hash).context("a block without notice")?;
        ensure!(spread.heard == CONNECTIONS as u64, "{} heard of a block", spread.heard);
        let until = Duration::from_micros(spread.first_unix_us.saturating_sub(*noticed));
        first.push(until);
        last.push(until + (spread.last - spread.first));
    }
    ensure!(first.len() == BLOCKS, "{} blocks spread", first.len());
    Ok(vec![named("first after", &mut first), named("last after", &mut last)])
}

/// From the line of a share that is a block to the node's having read `submitblock`; node and miner take part in it.
pub fn submit(kafka: Option<Kafka>) -> Result<Vec<String>> {
    const BLOCKS: usize = 300;
    const REST: Duration = Duration::from_millis(50);
    let node = SimNode::start(SimNodeConfig::default())?;
    let pool = Pool::on_simulated(&node, kafka)?;
    let mut client = StratumClient::connect(&pool.stratum.to_string())?;
    let subscription = client.log_in(&pool.user)?;
    let mut took = Vec::new();
    let mut tip = [0; 32];
    for number in 0..BLOCKS as u64 {
        let job = loop {
            let job = client.notify()?;
            if job.clean && job.prev_hash != tip {
                break job;
            }
        };
        // Blocks do not come while the pool is still at work on the tip before.
        std::thread::sleep(REST);
        tip = job.prev_hash;
        let line = winning_line(&pool.user, &job, &subscription, number)?;
        let calls = |node: &SimNode| node.view().calls.get("submitblock").copied().unwrap_or(0);
        let before = calls(&node);
        let begun = Instant::now();
        client.send_line(&line)?;
        node.wait_until(GUARD, |view| view.calls.get("submitblock").is_some_and(|calls| *calls > before))?;
        took.push(begun.elapsed());
    }
    Ok(vec![named(&format!("{BLOCKS} blocks:"), &mut took)])
}

fn winning_line(user: &str, job: &Notify, to: &Subscription, number: u64) -> Result<String> {
    let share = Difficulty::parse_wire(DIFFICULTY).context("a difficulty")?.to_target();
    let network = Target::from_compact(job.nbits)?;
    let fits = |hash: &[u8; 32]| share.is_met_by(hash) && network.is_met_by(hash);
    let params = job.submission(user, to, number, fits)?;
    Ok(json!({ "id": 1_000 + number, "method": "mining.submit", "params": params }).to_string())
}

/// Median, 99th percentile and maximum of times.
fn named(what: &str, times: &mut [Duration]) -> String {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)].as_secs_f64() * 1e3;
    format!("{what} p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms", at(50), at(99), at(100))
}
