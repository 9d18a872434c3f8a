//! Stopping and starting: nothing in flight is lost, and nothing of before is counted again.

use std::time::Duration;

use sluice_gateway::{Gateway, GatewayError};
use sluice_log::{EmbeddedLog, EmbeddedOptions, MemoryLog, Partition, SharedLog};
use sluice_proto::v1::Job;
use sluice_proto::{Body, Epoch, EventTime};
use sluice_topology::runtime::{Producer, TopicReader};

use crate::jobs::{HARD, job};
use crate::logs::GatedLog;
use crate::pool::{Miner, PARTITIONS, Pool, config, create_topics, io};

#[tokio::test]
async fn a_stop_answers_what_is_in_flight_and_closes() {
    let log = GatedLog::new();
    let shared: SharedLog = log.clone();
    let pool = Pool::on(shared, 1, config()).await;
    let job = job(0x100, 1, HARD);
    pool.publish(&job).await;
    let (mut miner, mut idle) = (pool.miner(true).await, pool.miner(true).await);
    log.set_open(false);
    let share = miner.share(&job, true, 0);
    miner.send(Miner::submit_line(&share, 6).as_bytes()).await;
    log.called(2).await;
    let address = pool.gateway.addresses()[0];
    let gateway = pool.gateway;
    let stop = tokio::spawn(async move { gateway.stop().await });
    // An idle miner is let go while another one's share is still in flight.
    assert!(idle.end().await.is_empty());
    log.set_open(true);
    let rest = miner.end().await;
    assert_eq!((rest.len(), &rest[0]["id"], &rest[0]["result"]), (1, &6.into(), &true.into()));
    stop.await.unwrap();
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "nobody listens any more");
}

/// S1: the set of accepted headers does not outlive the process, so no header of before can come again: extranonce1 is
/// another one. The lanes of both starts are whole.
#[tokio::test]
async fn s1_a_new_start_gives_out_other_extranonces_and_serves_the_job_at_once() {
    let log: SharedLog = MemoryLog::new();
    let pool = Pool::on(log.clone(), 8, config()).await;
    let first = job(0x100, 1, HARD);
    pool.publish(&first).await;
    let mut miner = pool.miner(true).await;
    let share = miner.share(&first, true, 0);
    assert_eq!(miner.submit(&share).await["result"], true);
    let before = miner.extranonce1;
    pool.gateway.stop().await;

    let pool = Pool::on(log.clone(), 9, config()).await;
    let mut miner = pool.miner(true).await;
    let distance = (before & 0xff_ffff).abs_diff(miner.extranonce1 & 0xff_ffff);
    assert!(distance.min((1 << 24) - distance) > 1 << 20, "{distance} slots apart");
    let again = miner.submit(&share).await;
    assert_ne!(again["result"], true, "with another coinbase the nonce of before is worth nothing");
    let fresh = miner.share(&first, true, 0);
    assert_eq!(miner.submit(&fresh).await["result"], true);
    let mut sessions: Vec<u64> = pool.submissions().await.iter().map(|share| share.session).collect();
    sessions.sort_unstable();
    sessions.dedup();
    assert_eq!(sessions.len(), 2);
    pool.gateway.stop().await;
    for number in 0..PARTITIONS {
        let partition = Partition::new("shares", number);
        let end = log.bounds(&partition).await.unwrap().next;
        let mut reader = TopicReader::from_oldest(log.clone(), partition).await.unwrap();
        while reader.position() < end {
            reader.next_batch(Duration::ZERO).await.unwrap();
        }
        assert_eq!(reader.dropped(), 0);
    }
}

/// Months of jobs in the topic do not hold up a start, and those that can still be cited are known.
#[tokio::test]
async fn a_start_reads_the_jobs_that_can_still_be_cited() {
    let log: SharedLog = MemoryLog::new();
    create_topics(&log).await;
    let jobs = Producer::new(log.clone(), "jobs", 1, "jobmanager", Epoch::new(1));
    let now = EventTime::now().millis();
    let count = 5_000_u64;
    let all: Vec<Job> = (0..count).map(|n| Job { clean: false, ..job(0x1000 + n, 1, HARD) }).collect();
    let stamped = all
        .iter()
        .enumerate()
        .map(|(n, job)| (EventTime::from_millis(now - (count - n as u64) * 30_000), Body::Job(job.clone())));
    jobs.append(0, stamped.collect()).await.unwrap();
    let pool = Pool::on(log, 2, config()).await;
    let mut miner = pool.miner(true).await;
    assert_eq!(pool.gateway.status().latest_job.unwrap().job_id, 0x1000 + count - 1);
    let recent = &all[all.len() - 10];
    let share = miner.share(recent, true, 0);
    assert_eq!(miner.submit(&share).await["result"], true, "5 minutes old, kept for 10");
    let old = &all[all.len() - 100];
    let share = miner.share(old, true, 0);
    assert_eq!(miner.submit(&share).await["error"][0], 21);
}

/// A gateway that starts on a log on disk, behind days of jobs, one a second, has work before anyone makes a new job. How
/// long it took is printed: the budget is 200 ms.
#[tokio::test]
async fn a_cold_start_has_work_from_the_log() {
    let dir = tempfile::TempDir::new().unwrap();
    let newest = {
        let embedded = EmbeddedLog::open(EmbeddedOptions::new(dir.path())).unwrap();
        let log: SharedLog = embedded.clone();
        create_topics(&log).await;
        let jobs = Producer::new(log, "jobs", 1, "jobmanager", Epoch::new(1));
        let (now, count) = (EventTime::now().millis(), 50_000_u64);
        let same = Job { clean: false, ..job(0, 1, HARD) };
        let stamped = (0..count).map(|n| {
            let job = Job { job_id: 0x1000 + n, ..same.clone() };
            (EventTime::from_millis(now - (count - n) * 1_000), Body::Job(job))
        });
        let stamped: Vec<_> = stamped.collect();
        for some in stamped.chunks(1_000) {
            jobs.append(0, some.to_vec()).await.unwrap();
        }
        embedded.close().unwrap();
        Job { job_id: 0x1000 + count - 1, ..same }
    };
    let log: SharedLog = EmbeddedLog::open(EmbeddedOptions::new(dir.path())).unwrap();
    let begin = std::time::Instant::now();
    let pool = Pool::on(log, 2, config()).await;
    println!("started after {:?}", begin.elapsed());
    let mut miner = pool.miner(true).await;
    println!("a miner has work after {:?}", begin.elapsed());
    let share = miner.share(&newest, true, 0);
    assert_eq!(miner.submit(&share).await["result"], true);
    pool.gateway.stop().await;
}

#[tokio::test]
async fn a_gateway_that_cannot_work_does_not_start() {
    let log: SharedLog = MemoryLog::new();
    let Err(error) = Gateway::start(config(), io(&log, 1)).await else { panic!("without topics") };
    assert!(matches!(error, GatewayError::NoTopic { .. }), "{error}");
    create_topics(&log).await;
    let gateway = Gateway::start(config(), io(&log, 1)).await.unwrap();
    let mut taken = config();
    taken.listen = vec![gateway.addresses()[0].to_string()];
    let Err(error) = Gateway::start(taken, io(&log, 2)).await else { panic!("on a port that is taken") };
    assert!(matches!(error, GatewayError::Listen { .. }), "{error}");
    let jobs = Producer::new(log.clone(), "jobs", 1, "jobmanager", Epoch::new(1));
    let foreign = Job { network: "main".into(), ..job(1, 1, HARD) };
    jobs.append(0, vec![(EventTime::now(), Body::Job(foreign))]).await.unwrap();
    assert!(gateway.failed().await.contains("for the chain main"));
    let Err(error) = Gateway::start(config(), io(&log, 3)).await else { panic!("with a job of another chain") };
    assert!(matches!(error, GatewayError::Job { .. }), "{error}");
}
