//! S2: what the gateway answers is what the topics say when they are judged again.

use std::collections::{HashMap, HashSet};

use sluice_log::{EmbeddedLog, EmbeddedOptions, Partition, SharedLog};
use sluice_mining::{Difficulty, JobTable};
use sluice_proto::Body;
use sluice_proto::v1::{Job, Reason, Submission};

use crate::jobs::{EASY, job, solve};
use crate::logs::records;
use crate::pool::{Miner, Pool, config};

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// A share that may be anything: good, low, repeated, late, of no job, out of its time, with version bits or without.
fn any_share(dice: &mut Dice, miner: &Miner, jobs: &[Job], sent: &[Submission]) -> Submission {
    let job = &jobs[dice.roll(jobs.len() as u64) as usize];
    let mut share = Submission { extranonce2: dice.roll(1 << 20), ..miner.share(job, true, dice.roll(1 << 20) as u32) };
    match dice.roll(8) {
        0 => share.job_id += 7,
        1 => share.ntime = job.max_ntime + dice.roll(2) as u32,
        2 => share.ntime = job.min_ntime - dice.roll(2) as u32,
        3 if !sent.is_empty() => return sent[dice.roll(sent.len() as u64) as usize].clone(),
        4 => (share.has_version_bits, share.version_bits) = (true, (dice.roll(1 << 20) as u32) << 10),
        5 => return share,
        _ => {}
    }
    share.version_mask = 0x1fff_e000;
    if share.job_id == job.job_id { solve(job, share, Difficulty::MIN, true) } else { share }
}

/// Judges the topic of shares as `verify` and `dedupe` do: by the jobs as of each share's job clock, and a set of headers
/// for each partition. Verdicts by session and nonce, in order.
async fn judged_again(pool: &Pool) -> HashMap<(u64, u32, u64), Vec<Reason>> {
    let mut jobs = JobTable::new();
    for (offset, envelope) in records(&*pool.log, &Partition::new("jobs", 0)).await {
        let issued = envelope.event_time();
        let Some(Body::Job(job)) = envelope.body else { panic!("not a job") };
        jobs.apply(offset, issued, job).unwrap();
    }
    let mut verdicts: HashMap<_, Vec<Reason>> = HashMap::new();
    let mut seen: HashSet<(u32, u64, [u8; 32])> = HashSet::new();
    for (partition, _, envelope) in pool.share_records().await {
        let time = envelope.event_time();
        let Some(Body::Submission(share)) = envelope.body else { continue };
        let judgement = jobs.judge(&share, time);
        let mut reason = judgement.reason;
        if reason == Reason::Accepted && !seen.insert((partition, share.job_id, judgement.hash.unwrap())) {
            reason = Reason::Duplicate;
        }
        verdicts.entry((share.session, share.nonce, share.extranonce2)).or_default().push(reason);
    }
    verdicts
}

fn says(answer: &serde_json::Value, reason: Reason) -> bool {
    let code = match reason {
        Reason::Accepted => return answer["result"] == true && answer["error"].is_null(),
        Reason::Stale | Reason::JobNotFound => 21,
        Reason::Duplicate => 22,
        Reason::LowDifficulty => 23,
        _ => 20,
    };
    answer["error"][0] == code && answer["result"].is_null()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s2_the_answers_are_the_verdicts() {
    let dir = tempfile::tempdir().unwrap();
    let log = EmbeddedLog::open(EmbeddedOptions::new(dir.path())).unwrap();
    let shared: SharedLog = log.clone();
    let pool = Pool::on(shared, 1, config()).await;
    let mut dice = Dice(7);
    let mut jobs = vec![job(0x100, 1, EASY)];
    pool.publish(&jobs[0]).await;
    let mut miners = Vec::new();
    for _ in 0..6 {
        let mut miner = pool.connect().await;
        miner.ask("mining.configure", serde_json::json!([["version-rolling"], {}])).await;
        miner.log_in().await;
        miner.next().await;
        miner.next().await;
        miners.push((miner, Vec::new(), Vec::new()));
    }
    for round in 0..6_u64 {
        for (miner, sent, answers) in &mut miners {
            for _ in 0..40 {
                let share = any_share(&mut dice, miner, &jobs, sent);
                answers.push(miner.submit(&share).await);
                sent.push(share);
            }
        }
        // Every other one on a new tip, so that the older ones are stale.
        let next = Job { clean: round % 2 == 0, ..job(0x101 + round, 1 + (round as u8 + 2) / 2, EASY) };
        pool.publish(&next).await;
        jobs.push(next);
        for (miner, ..) in &mut miners {
            assert_eq!(miner.next().await["method"], "mining.notify");
        }
    }
    let mut verdicts = judged_again(&pool).await;
    let sessions: HashMap<u32, u64> =
        pool.submissions().await.iter().map(|share| (share.extranonce1, share.session)).collect();
    let mut kinds = HashSet::new();
    for (miner, sent, answers) in &miners {
        for (share, answer) in sent.iter().zip(answers) {
            let key = (sessions[&miner.extranonce1], share.nonce, share.extranonce2);
            let reason = verdicts.get_mut(&key).unwrap().remove(0);
            assert!(says(answer, reason), "{answer} is not {reason:?}");
            kinds.insert(reason);
        }
    }
    assert!(verdicts.values().all(Vec::is_empty), "every record is an answered share");
    assert!(kinds.len() >= 6, "the shares were of many kinds: {kinds:?}");
    pool.gateway.stop().await;
    log.close().unwrap();
}
