//! Shares: their answers, their records, blocks before anything else.

use std::sync::Arc;

use serde_json::json;
use sluice_log::{Partition, SharedLog};
use sluice_mining::{Difficulty, double_sha256, header_hash, merkle};
use sluice_proto::v1::{Job, Reason, Submission};
use sluice_proto::{Body, Offset, RecordKind};

use crate::jobs::{ADDRESS, EASY, HARD, job, solve};
use crate::logs::{GatedLog, records};
use crate::pool::{Miner, Pool, config};

fn code(answer: &serde_json::Value) -> i64 {
    answer["error"][0].as_i64().unwrap_or(0)
}

/// A pool on a log whose appends can be held up, with a job of this target and a miner.
async fn gated(nbits: u32) -> (Arc<GatedLog>, Pool, Job, Miner) {
    let log = GatedLog::new();
    let shared: SharedLog = log.clone();
    let pool = Pool::on(shared, 1, config()).await;
    let job = job(0x100, 1, nbits);
    pool.publish(&job).await;
    let miner = pool.miner(true).await;
    (log, pool, job, miner)
}

/// S1: what is answered `true` is in the log before the answer.
#[tokio::test]
async fn s1_trap_03_a_share_is_durable_before_it_is_answered() {
    let (log, pool, job, mut miner) = gated(HARD).await;
    log.set_open(false);
    let share = miner.share(&job, true, 0);
    miner.send(Miner::submit_line(&share, 6).as_bytes()).await;
    log.called(2).await;
    // The worker has handed the share to the log and goes on with other things, but does not answer it.
    assert_eq!(miner.ask("mining.ping", json!([])).await["result"], "pong");
    assert!(pool.submissions().await.is_empty());
    assert_eq!(pool.gateway.status().shares_with(Reason::Accepted), 0);
    log.set_open(true);
    assert_eq!(miner.next().await, json!({"id": 6, "result": true, "error": null}));
    let written = pool.submissions().await;
    assert_eq!(written.len(), 1);
    assert_eq!((written[0].account.as_str(), written[0].worker.as_str()), (ADDRESS, "rig"));
    assert_eq!((written[0].nonce, written[0].extranonce1), (share.nonce, miner.extranonce1));
    assert_eq!(written[0].job_clock, 1, "the job's offset");
    assert_eq!(pool.gateway.status().shares_with(Reason::Accepted), 1);
}

/// S1: what could not be appended is never answered `true`; the gateway has failed and says why.
#[tokio::test]
async fn s1_trap_03_a_share_that_was_not_appended_is_not_answered() {
    let (log, pool, job, mut miner) = gated(HARD).await;
    log.break_it();
    let share = miner.share(&job, true, 0);
    miner.send(Miner::submit_line(&share, 6).as_bytes()).await;
    assert!(pool.gateway.failed().await.contains("the disk is full"));
    assert!(miner.end().await.is_empty(), "closed without an answer");
    assert!(pool.gateway.status().failure.is_some());
}

/// B1: a block goes to its lane before its share, and whole.
#[tokio::test]
async fn b1_a_block_is_sent_before_its_share() {
    let (log, pool, job, mut miner) = gated(EASY).await;
    let share = miner.share(&job, true, 0);
    assert_eq!(miner.submit(&share).await["result"], true);
    assert_eq!(log.calls(), [RecordKind::Job, RecordKind::Candidate, RecordKind::Submission]);
    let lane = records(&*pool.log, &Partition::new("candidates", 0)).await;
    let Some(Body::Candidate(candidate)) = &lane[0].1.body else { panic!("{lane:?}") };
    let header: [u8; 80] = candidate.header[..].try_into().unwrap();
    assert!(sluice_mining::Target::from_compact(EASY).unwrap().is_met_by(&header_hash(&header)));
    assert_eq!(merkle::root([double_sha256(&candidate.coinbase)]), header[36..68]);
    assert_eq!((candidate.job_id, candidate.account.as_str(), candidate.gateway), (0x100, ADDRESS, 3));
    assert_eq!(pool.gateway.status().candidates, 1);
}

/// B1: a share that is too late, or that misses its own target, may still make a block.
#[tokio::test]
async fn b1_a_block_counts_where_its_share_does_not() {
    let pool = Pool::start().await;
    let (old, new) = (job(0x100, 1, EASY), job(0x101, 2, EASY));
    pool.publish(&old).await;
    let mut miner = pool.miner(true).await;
    pool.publish(&new).await;
    assert_eq!(miner.next().await["params"][0], "101");
    let stale = solve(&old, Submission { nonce: 0, ..miner.share(&old, true, 0) }, Difficulty::MIN, true);
    assert_eq!(code(&miner.submit(&stale).await), 21);
    assert_eq!(pool.gateway.status().candidates, 1);
    // Repeated, it is no new block; nor is the duplicate of an accepted one.
    assert_eq!(code(&miner.submit(&stale).await), 21);
    let good = miner.share(&new, true, 0);
    assert_eq!(miner.submit(&good).await["result"], true);
    assert_eq!(code(&miner.submit(&good).await), 22);
    let status = pool.gateway.status();
    assert_eq!(
        (status.candidates, status.shares_with(Reason::Stale), status.shares_with(Reason::Duplicate)),
        (2, 2, 1)
    );
    assert_eq!(pool.submissions().await.len(), 4, "all of them are written");
}

#[tokio::test]
async fn every_fault_of_a_share_is_answered_and_written() {
    let pool = Pool::start().await;
    let job = job(0x6a, 1, HARD);
    pool.publish(&job).await;
    let mut miner = pool.miner(true).await;
    let good = miner.share(&job, true, 0);
    assert_eq!(miner.submit(&good).await["result"], true);
    assert_eq!(code(&miner.submit(&good).await), 22);
    let upper = Miner::submit_line(&good, 9).replace("\"6a\"", "\"0x6A\"");
    miner.send(upper.as_bytes()).await;
    assert_eq!(code(&miner.next().await), 22, "the same number in another form");
    let low = miner.share(&job, false, 0);
    assert_eq!(code(&miner.submit(&low).await), 23);
    assert_eq!(code(&miner.submit(&Submission { job_id: 0x6b, ..good.clone() }).await), 21);
    assert_eq!(code(&miner.submit(&Submission { ntime: job.min_ntime - 1, ..good.clone() }).await), 20);
    assert_eq!(code(&miner.submit(&Submission { ntime: job.max_ntime + 1, ..good.clone() }).await), 20);
    let status = pool.gateway.status();
    for (reason, count) in [
        (Reason::Accepted, 1),
        (Reason::Duplicate, 2),
        (Reason::LowDifficulty, 1),
        (Reason::JobNotFound, 1),
        (Reason::NtimeTooOld, 1),
        (Reason::NtimeTooNew, 1),
        (Reason::Stale, 0),
    ] {
        assert_eq!(status.shares_with(reason), count, "{reason:?}");
    }
    assert_eq!(pool.submissions().await.len(), 7);
}

#[tokio::test]
async fn versions_roll_inside_the_mask_only() {
    let pool = Pool::start().await;
    let job = job(0x6a, 1, HARD);
    pool.publish(&job).await;
    let mut miner = pool.connect().await;
    let params = json!([["version-rolling"], {"version-rolling.mask": "00ffffff", "version-rolling.min-bit-count": 2}]);
    let agreed = miner.ask("mining.configure", params).await;
    assert_eq!(agreed["result"], json!({"version-rolling": true, "version-rolling.mask": "00ffe000"}));
    miner.log_in().await;
    assert_eq!(miner.next().await["method"], "mining.set_difficulty");
    assert_eq!(miner.next().await["method"], "mining.notify");
    let rolled = Submission {
        has_version_bits: true,
        version_bits: 0x00e2_a000,
        version_mask: 0x00ff_e000,
        ..miner.share(&job, true, 0)
    };
    let rolled = solve(&job, rolled, Difficulty::MIN, true);
    assert_eq!(miner.submit(&rolled).await["result"], true);
    let outside = miner.submit(&Submission { version_bits: 0x0100_0000, ..rolled.clone() }).await;
    assert_eq!(outside["error"], json!([20, "Invalid version mask", null]));
    let unrolled = miner.share(&job, true, 0);
    assert_eq!(miner.submit(&unrolled).await["result"], true, "five parameters go on to work");
    let written = pool.submissions().await;
    assert!(written.iter().all(|share| share.version_mask == 0x00ff_e000));
    assert_eq!(written.iter().filter(|share| share.has_version_bits).count(), 2);
}

#[tokio::test]
async fn a_decision_of_vardiff_takes_effect_with_the_next_job() {
    let pool = Pool::start().await;
    let first = job(0x100, 1, HARD);
    pool.publish(&first).await;
    let mut miner = pool.miner(true).await;
    let good = miner.share(&first, true, 0);
    assert_eq!(miner.submit(&good).await["result"], true);
    let session = pool.submissions().await[0].session;
    pool.decide(session ^ (1 << 40), Difficulty::ONE).await;
    pool.decide(session, Difficulty::from_integer(2).unwrap()).await;
    // The decision and the next job travel on two topics: the status tells when the first has come.
    pool.until(|status| status.targets > 0).await;
    let second = miner.share(&first, true, good.nonce + 1);
    assert_eq!(miner.submit(&second).await["result"], true, "the job of before counts at its difficulty");
    let next = sluice_proto::v1::Job { clean: false, ..job(0x101, 1, HARD) };
    pool.publish(&next).await;
    assert_eq!(miner.next().await["params"], json!([2]));
    let notify = miner.next().await;
    assert_eq!((&notify["params"][0], &notify["params"][8]), (&json!("101"), &json!(false)));
    let third = miner.share(&first, true, second.nonce + 1);
    assert_eq!(miner.submit(&third).await["result"], true, "still");
    let low = miner.share(&next, true, 0);
    assert_eq!(code(&miner.submit(&low).await), 23, "what met the lowest does not meet 2");
    let written = pool.submissions().await;
    let difficulties: Vec<u64> = written.iter().map(|share| share.difficulty).collect();
    assert_eq!(difficulties, [1, 1, 1, 2 << 24]);
}

#[tokio::test]
async fn answers_keep_the_order_of_the_submits() {
    let pool = Pool::start().await;
    let job = job(0x100, 1, HARD);
    pool.publish(&job).await;
    let mut miner = pool.miner(true).await;
    let mut lines = String::new();
    for id in 0..500 {
        let share = Submission { nonce: id, ..miner.share(&job, true, 0) };
        lines += &match id % 5 {
            // Malformed: answered, not written.
            3 => format!("{{\"id\":{id},\"method\":\"mining.submit\",\"params\":[\"x\"]}}\n"),
            _ => Miner::submit_line(&share, id.into()),
        };
    }
    miner.send(lines.as_bytes()).await;
    for id in 0..500 {
        assert_eq!(miner.next().await["id"], id);
    }
    assert_eq!(pool.submissions().await.len(), 400);
    assert_eq!(pool.gateway.status().submits_refused, 100);
}

/// A submit that cannot be read is answered without the log, but not before the shares in front of it.
#[tokio::test]
async fn a_refused_submit_does_not_overtake_a_share_in_flight() {
    let (log, pool, job, mut miner) = gated(HARD).await;
    log.set_open(false);
    miner.send(Miner::submit_line(&miner.share(&job, true, 0), 6).as_bytes()).await;
    log.called(2).await;
    miner.send(b"{\"id\":7,\"method\":\"mining.submit\",\"params\":[\"x\"]}\n").await;
    assert_eq!(miner.ask("mining.ping", json!([])).await["result"], "pong");
    log.set_open(true);
    assert_eq!(miner.next().await["id"], 6);
    assert_eq!(code(&miner.next().await), 20);
    assert_eq!(pool.submissions().await.len(), 1);
}

#[tokio::test]
async fn a_notify_reaches_every_session_with_its_difficulty_in_front_once() {
    let pool = Pool::start().await;
    let mut miners = Vec::new();
    for _ in 0..20 {
        miners.push(pool.miner(false).await);
    }
    let seen: std::collections::HashSet<u32> = miners.iter().map(|miner| miner.extranonce1).collect();
    assert_eq!(seen.len(), 20, "each works on a coinbase of its own");
    assert!(seen.iter().all(|one| one >> 24 == 3), "the gateway's id comes first");
    pool.publish(&job(0x100, 1, HARD)).await;
    for miner in &mut miners {
        assert_eq!(miner.next().await["method"], "mining.set_difficulty");
        let notify = miner.next().await;
        assert_eq!((&notify["params"][0], &notify["params"][8]), (&json!("100"), &json!(true)));
    }
    let status = pool.gateway.status();
    assert_eq!((status.connections, status.sessions_authorized, status.notifies), (20, 20, 20));
    assert_eq!(status.latest_job.unwrap().job_id, 0x100);
}

/// Ticks reach every partition, and stamps never go back in any.
#[tokio::test]
async fn every_partition_is_told_the_time() {
    let mut fast = config();
    fast.tick = std::time::Duration::from_millis(10);
    let pool = Pool::with(fast).await;
    let job = job(0x100, 1, HARD);
    pool.publish(&job).await;
    let mut miners = Vec::new();
    for _ in 0..8 {
        miners.push(pool.miner(true).await);
    }
    for round in 0..20 {
        for miner in &mut miners {
            let share = Submission { nonce: round, ..miner.share(&job, true, 0) };
            miner.submit(&share).await;
        }
    }
    for number in 0..crate::pool::PARTITIONS {
        let mut from = Offset::ZERO;
        // Waits for the third tick.
        for _ in 0..3 {
            loop {
                let wait = std::time::Duration::from_secs(60);
                let found = pool.log.read(&Partition::new("shares", number), from, 1, wait).await.unwrap();
                from = found[0].offset.next();
                let envelope = sluice_proto::decode(found[0].value.clone()).unwrap();
                if matches!(envelope.body, Some(Body::Tick(tick)) if tick.gateway == 3) {
                    break;
                }
            }
        }
        let times: Vec<_> = records(&*pool.log, &Partition::new("shares", number)).await;
        assert!(times.windows(2).all(|pair| pair[0].1.event_time() <= pair[1].1.event_time()));
    }
}
