//! The shares: as `verify` writes them to `share.checked`, the same from run to run and for both engines.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::future::try_join_all;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::util::Timeout;
use sluice_log::{Log, Partition};
use sluice_mining::Difficulty;
use sluice_proto::v1::{Reason, Verdict};
use sluice_proto::{Body, Epoch, EventTime, Offset, decode, partition_of};
use sluice_topology::runtime::Producer;

use crate::broker::{Broker, SharedKafkaLog};
use crate::{CHECKED, DUPLICATE_PERCENT, PARTITIONS, SESSIONS};

/// Event time of the first share, seconds since the Unix epoch.
const START: u64 = 1_700_000_400;
/// Event time between two shares, nanoseconds: a session has 20 a minute on average.
const EVERY: u64 = 60_000_000_000 / 20 / SESSIONS;
/// Event time between two jobs, nanoseconds, and how many of them can be cited.
const JOB: u64 = 30_000_000_000;
const LIVE: u64 = 4;
/// Of so many of a session's newest shares one is sent again.
const RECENT: usize = 8;
/// Records of one append.
const BATCH: usize = 500;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn hash(&mut self) -> Bytes {
        let words: [[u8; 8]; 4] = std::array::from_fn(|_| self.next().to_be_bytes());
        Bytes::copy_from_slice(words.as_flattened())
    }
}

/// A share on its way to `dedupe`, which has been found to meet its target. `origin_offset` numbers the shares from 1.
pub struct Share {
    pub time: EventTime,
    pub verdict: Verdict,
}

impl Share {
    /// The partition of its session.
    pub fn partition(&self) -> u32 {
        partition_of(&self.verdict.session.to_be_bytes(), PARTITIONS)
    }
}

/// `count` shares of all sessions. Sessions differ in their difficulty, and in how far their share rate is from the wanted
/// one, so that there is something to decide.
pub fn shares(count: u64) -> Vec<Share> {
    let mut random = Random(7);
    let mut recent: Vec<Vec<(u64, Bytes)>> = vec![Vec::new(); SESSIONS as usize];
    (1..=count).map(|number| share(number, &mut random, &mut recent)).collect()
}

fn share(number: u64, random: &mut Random, recent: &mut [Vec<(u64, Bytes)>]) -> Share {
    let time = EventTime::from_nanos(START * 1_000_000_000 + number * EVERY);
    let session = busy(random);
    let job = time.nanos() / JOB;
    let live_from = job + 1 - LIVE;
    let before = &mut recent[session as usize];
    before.retain(|(job, _)| *job >= live_from);
    let again = !before.is_empty() && random.below(100) < DUPLICATE_PERCENT;
    let (job_id, header_hash) = if again {
        before[random.below(before.len() as u64) as usize].clone()
    } else {
        let new = (job, random.hash());
        if before.len() == RECENT {
            before.remove(0);
        }
        before.push(new.clone());
        new
    };
    let difficulty = Difficulty::from_integer(1 << (session % 12)).unwrap_or(Difficulty::ONE);
    let (work_hi, work_lo) = difficulty.work().to_parts();
    let verdict = Verdict {
        reason: Reason::Accepted.into(),
        session,
        account: format!("bc1q{:038}", session / 4),
        worker: format!("rig{session}"),
        job_id,
        nbits: 0x1702_5a2c,
        difficulty: difficulty.units(),
        work_hi,
        work_lo,
        header_hash,
        origin_partition: 0,
        origin_offset: number,
        gateway: (session % 3) as u32,
        live_from_job: live_from,
        is_block: false,
    };
    Share { time, verdict }
}

/// A session at random: those of the upper half come three times as often.
fn busy(random: &mut Random) -> u64 {
    match random.below(4) {
        0 => random.below(SESSIONS / 2),
        _ => SESSIONS / 2 + random.below(SESSIONS / 2),
    }
}

/// Writes the shares to `share.checked`, as a task would. The topic is there.
pub async fn fill(log: &SharedKafkaLog, shares: &[Share]) -> Result<()> {
    let producer = Producer::new(log.clone(), CHECKED, PARTITIONS, "verify", Epoch::new(1));
    let mut waiting: Vec<Vec<(EventTime, Body)>> = vec![Vec::new(); PARTITIONS as usize];
    for round in shares.chunks(BATCH * PARTITIONS as usize) {
        for share in round {
            waiting[share.partition() as usize].push((share.time, Body::Verdict(share.verdict.clone())));
        }
        let appends = (0..PARTITIONS).zip(&mut waiting);
        let appends = appends.map(|(partition, batch)| producer.append(partition, std::mem::take(batch)));
        try_join_all(appends).await.context("filling share.checked")?;
    }
    Ok(())
}

/// The same records once more, byte for byte and partition for partition, each under its session's key: Goka's tables go by
/// the key of a record.
pub async fn fill_keyed(broker: &Broker, log: &SharedKafkaLog, topic: &str) -> Result<u64> {
    let producer: BaseProducer = broker.client().set("enable.idempotence", "true").create().context("a producer")?;
    let mut copied = 0;
    for partition in 0..PARTITIONS {
        let of = Partition::new(CHECKED, partition);
        let end = log.bounds(&of).await?.next;
        let mut next = Offset::ZERO;
        while next < end {
            let records = log.read(&of, next, 1 << 20, std::time::Duration::from_secs(10)).await?;
            ensure!(!records.is_empty(), "{of} ends at {next}, not at {end}");
            for record in records {
                next = record.offset.next();
                // The genesis record is Sluice's own.
                let Some(Body::Verdict(verdict)) = decode(record.value.clone())?.body else { continue };
                send(&producer, topic, partition, &verdict.session.to_be_bytes(), &record.value)?;
                copied += 1;
            }
        }
    }
    producer.flush(Timeout::Never).context("filling Goka's input")?;
    Ok(copied)
}

fn send(producer: &BaseProducer, topic: &str, partition: u32, key: &[u8], value: &[u8]) -> Result<()> {
    loop {
        let record = BaseRecord::to(topic).partition(partition as i32).key(key).payload(value);
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((error, _)) if error.rdkafka_error_code() == Some(rdkafka::types::RDKafkaErrorCode::QueueFull) => {
                producer.poll(std::time::Duration::from_millis(10));
            }
            Err((error, _)) => return Err(error).context("filling Goka's input"),
        }
    }
}
