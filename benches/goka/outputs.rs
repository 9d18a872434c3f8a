//! What came out, read back from the broker and held against the truth.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::{Offset as KafkaOffset, TopicPartitionList};
use sluice_log::{Log as _, Partition};
use sluice_proto::v1::Reason;
use sluice_proto::{Body, Offset, decode};
use sluice_topology::runtime::TopicReader;

use crate::PARTITIONS;
use crate::broker::{Broker, SharedKafkaLog};
use crate::sluice::Leaves;
use crate::truth::{Decision, Truth};

/// How long a record that is there may take to come.
const ARRIVES: Duration = Duration::from_secs(20);

/// Everything that an engine has written.
#[derive(Default)]
pub struct Outputs {
    /// By number of the share: how often it was accepted, and how often it was not.
    verdicts: HashMap<u64, (u32, u32)>,
    decisions: HashMap<u64, Vec<Decision>>,
    /// Records that were dropped while reading, because they had been read before.
    pub repeated: u64,
}

/// How outputs differ from the truth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Errors {
    /// Good shares that were never accepted. `None` where accepted ones do not leave the task.
    pub lost: Option<u64>,
    /// Good shares that were rejected as duplicates.
    pub falsely_rejected: u64,
    /// Duplicates that were accepted, or never rejected.
    pub falsely_accepted: u64,
    /// Verdicts beyond the first one of a share.
    pub doubled: u64,
    /// Decisions that are missing, and that there should not be.
    pub decisions: (u64, u64),
}

impl Errors {
    /// There are none.
    pub fn none(&self) -> bool {
        *self == Self { lost: self.lost.map(|_| 0), ..Self::default() }
    }
}

impl Outputs {
    fn verdict(&mut self, number: u64, reason: Reason) {
        let of = self.verdicts.entry(number).or_default();
        match reason {
            Reason::Accepted => of.0 += 1,
            _ => of.1 += 1,
        }
    }

    /// Reads Sluice's as any reader of a topic does: it drops what it has read before, and stops at a gap.
    pub async fn of_sluice(log: &SharedKafkaLog, leaves: Leaves) -> Result<Self> {
        let (mut outputs, topics) = (Self::default(), ["share.rejected", "difficulty.targets", "share.valid"]);
        for topic in &topics[..if leaves == Leaves::All { 3 } else { 2 }] {
            for partition in 0..PARTITIONS {
                outputs.read_sluice(log, Partition::new(*topic, partition)).await?;
            }
        }
        Ok(outputs)
    }

    async fn read_sluice(&mut self, log: &SharedKafkaLog, partition: Partition) -> Result<()> {
        let end = log.bounds(&partition).await?.next;
        let mut reader = TopicReader::new(log.clone(), partition, Offset::ZERO);
        while reader.position() < end {
            for (_, envelope) in reader.next_batch(ARRIVES).await? {
                let time = envelope.event_time().nanos();
                match envelope.body {
                    Some(Body::Verdict(verdict)) => self.verdict(verdict.origin_offset, verdict.reason()),
                    Some(Body::DifficultyTarget(target)) => {
                        let decision = Decision { time, difficulty: target.difficulty };
                        self.decisions.entry(target.session).or_default().push(decision);
                    }
                    other => anyhow::bail!("an output that is neither verdict nor decision: {other:?}"),
                }
            }
        }
        self.repeated += reader.dropped();
        Ok(())
    }

    /// Reads Goka's: all there is, since nothing tells a repeated record from a new one.
    pub fn of_goka(broker: &Broker, verdicts: &str, decisions: &str) -> Result<Self> {
        let mut outputs = Self::default();
        read_all(broker, verdicts, |value| {
            let Some(Body::Verdict(verdict)) = decode(value.to_vec().into())?.body else { return Ok(()) };
            outputs.verdict(verdict.origin_offset, verdict.reason());
            Ok(())
        })?;
        read_all(broker, decisions, |value| {
            let (words, _) = value.as_chunks::<8>();
            let [session, time, difficulty] = words else { anyhow::bail!("a decision of {} bytes", value.len()) };
            let decision = Decision { time: u64::from_be_bytes(*time), difficulty: u64::from_be_bytes(*difficulty) };
            outputs.decisions.entry(u64::from_be_bytes(*session)).or_default().push(decision);
            Ok(())
        })?;
        Ok(outputs)
    }

    /// Holds them against the truth.
    pub fn compare(&self, truth: &Truth, leaves: Leaves) -> Errors {
        let mut errors = Errors { lost: (leaves == Leaves::All).then_some(0), ..Errors::default() };
        for (number, duplicate) in truth.duplicate.iter().enumerate().skip(1) {
            let (accepted, rejected) = self.verdicts.get(&(number as u64)).copied().unwrap_or_default();
            errors.doubled += u64::from((accepted + rejected).saturating_sub(1));
            if *duplicate {
                errors.falsely_accepted += u64::from(accepted > 0 || rejected == 0);
            } else {
                errors.falsely_rejected += u64::from(rejected > 0);
                errors.lost = errors.lost.map(|lost| lost + u64::from(accepted == 0));
            }
        }
        errors.decisions = self.differing(truth);
        errors
    }

    /// Decisions that are missing and that are too many, in each session's order.
    fn differing(&self, truth: &Truth) -> (u64, u64) {
        let (mut missing, mut wrong) = (0, 0);
        let none = Vec::new();
        let sessions = truth.decisions.keys().chain(self.decisions.keys());
        for session in sessions.collect::<std::collections::HashSet<_>>() {
            let expected = truth.decisions.get(session).unwrap_or(&none);
            let got = self.decisions.get(session).unwrap_or(&none);
            let same = in_common(expected, got);
            missing += expected.len() as u64 - same;
            wrong += got.len() as u64 - same;
        }
        (missing, wrong)
    }
}

/// How many decisions two lists have in common, in this order: where they part, the longer list goes on alone.
fn in_common(expected: &[Decision], got: &[Decision]) -> u64 {
    let (mut same, mut rest) = (0, expected.iter());
    for decision in got {
        let mut ahead = rest.clone();
        if ahead.any(|expected| expected == decision) {
            (same, rest) = (same + 1, ahead);
        }
    }
    same
}

fn read_all(broker: &Broker, topic: &str, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let consumer: BaseConsumer = broker.client().create().context("a consumer")?;
    for (partition, end) in broker.ends(topic)?.into_iter().enumerate().filter(|(_, end)| *end > 0) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition as i32, KafkaOffset::Beginning)?;
        consumer.assign(&list)?;
        let mut next = 0;
        while next < end {
            let message = consumer.poll(ARRIVES).with_context(|| format!("{topic}/{partition} shows no end"))??;
            ensure!(message.offset() >= next, "{topic}/{partition} goes back");
            next = message.offset() + 1;
            take(message.payload().unwrap_or_default())?;
        }
    }
    Ok(())
}
