//! Records as the topology makes them, and ways to read them.

use std::collections::BTreeMap;
use std::sync::Arc;

use sluice_ledger::{BasisPoints, LedgerBatch, LedgerEvent, LedgerRecord, NextOffset, RecordSource, Rules, Scheme};
use sluice_mining::Target;
use sluice_proto::v1::{BlockOutcome, BlockStatus, NodeResult, SliceEnd, Tally, WorkAt};
use sluice_proto::{EventTime, Offset, partition_of};

/// Network target of the tests: a block takes 2^32 + 2^16 + 1 hashes.
pub const NBITS: u32 = 0x1d00_ffff;
/// Length of a slice, milliseconds.
pub const SLICE_MS: u32 = 10_000;
const SLICE_NS: u64 = SLICE_MS as u64 * 1_000_000;
const TALLIES: &str = "share.tallies";
const OUTCOMES: &str = "block.outcomes";

pub fn pplns(window: u32, fee: u64) -> Rules {
    Rules { scheme: Scheme::Pplns { window }, fee: BasisPoints::new(fee).unwrap() }
}

pub fn solo(fee: u64) -> Rules {
    Rules { scheme: Scheme::Solo, fee: BasisPoints::new(fee).unwrap() }
}

pub fn hash(number: u8) -> [u8; 32] {
    let mut hash = [0x11; 32];
    hash[0] = number;
    hash
}

/// Accepted work of one worker in a slice, in thousandths of a block.
pub fn tally(partition: u32, slice: u64, account: &str, milliblocks: u64) -> Tally {
    let block = Target::from_compact(NBITS).unwrap().work().get();
    let work = block / 1000 * u128::from(milliblocks);
    let accepted =
        vec![WorkAt { nbits: NBITS, work_hi: (work >> 64) as u64, work_lo: work as u64, shares: milliblocks }];
    let (account, worker) = (account.to_owned(), "rig".to_owned());
    Tally { slice, slice_ms: SLICE_MS, partition, account, worker, accepted, rejected: Vec::new(), generation: 0 }
}

pub fn slice_end(partition: u32, partitions: u32, slice: u64) -> SliceEnd {
    SliceEnd { slice, slice_ms: SLICE_MS, partition, partitions, generation: 0, next_partitions: 0 }
}

/// The same in a generation of the shares; `next` is the number of partitions of the one that follows, if it has ended.
pub fn end_of(generation: u32, (partition, partitions): (u32, u32), slice: u64, next: u32) -> SliceEnd {
    SliceEnd { generation, next_partitions: next, ..slice_end(partition, partitions, slice) }
}

/// A step of the block `number`, found by `finder` in `slice`.
pub fn outcome(number: u8, slice: u64, value: u64, finder: &str, status: BlockStatus) -> BlockOutcome {
    BlockOutcome {
        hash: hash(number).to_vec().into(),
        status: status.into(),
        height: 100 + u32::from(number),
        coinbase_value: value,
        nbits: NBITS,
        account: finder.to_owned(),
        worker: "rig".to_owned(),
        found_ns: slice * SLICE_NS + 5,
        nodes: vec![NodeResult {
            node: "a".into(),
            accepted: true,
            answer: "null".into(),
            micros: 7,
            reached: true,
            ..NodeResult::default()
        }],
        confirmations: u32::from(status == BlockStatus::Confirmed) * 100,
    }
}

/// Topic partitions with their records, as a log holds them: offset 0 is the genesis record.
#[derive(Clone, Debug)]
pub struct Topics {
    tally_partitions: u32,
    logs: BTreeMap<(&'static str, u32), Vec<LedgerRecord>>,
    clock: u64,
}

impl Topics {
    pub fn new(tally_partitions: u32) -> Self {
        Self { tally_partitions, logs: BTreeMap::new(), clock: 1 }
    }

    fn append(&mut self, topic: &'static str, partition: u32, partitions: u32, event: LedgerEvent) {
        let log = self.logs.entry((topic, partition)).or_default();
        // Offsets may have holes.
        let offset = log.last().map_or(1, |last| last.source.offset.get() + 1 + self.clock % 2);
        let source = RecordSource { topic: topic.into(), partition, partitions, offset: Offset::new(offset) };
        self.clock += 1;
        log.push(LedgerRecord { source, event_time: EventTime::from_nanos(self.clock), event });
    }

    pub fn tally(&mut self, tally: Tally) -> &mut Self {
        let partition = partition_of(tally.account.as_bytes(), self.tally_partitions);
        self.append(TALLIES, partition, self.tally_partitions, LedgerEvent::Tally(tally));
        self
    }

    /// To every partition of the tallies.
    pub fn end(&mut self, end: SliceEnd) -> &mut Self {
        for partition in 0..self.tally_partitions {
            self.append(TALLIES, partition, self.tally_partitions, LedgerEvent::SliceEnd(end));
        }
        self
    }

    pub fn outcome(&mut self, outcome: BlockOutcome) -> &mut Self {
        self.append(OUTCOMES, 0, 1, LedgerEvent::Outcome(outcome));
        self
    }

    /// Lanes there are.
    pub fn lanes(&self) -> Vec<(&'static str, u32)> {
        self.logs.keys().copied().collect()
    }
}

/// Reads topics into batches.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    topics: &'a Topics,
    /// Records read of each lane.
    pub at: BTreeMap<(&'static str, u32), usize>,
    pub rules: Rules,
}

impl<'a> Reader<'a> {
    pub fn new(topics: &'a Topics, rules: Rules) -> Self {
        Self { topics, at: BTreeMap::new(), rules }
    }

    /// The next records of each lane, as many as listed, in the order listed.
    pub fn batch(&mut self, takes: &[((&'static str, u32), usize)]) -> LedgerBatch {
        let mut batch = LedgerBatch::new(self.rules);
        let mut next = BTreeMap::new();
        for (lane, count) in takes {
            let log = &self.topics.logs[lane];
            let at = self.at.entry(*lane).or_default();
            let end = (*at + count).min(log.len());
            batch.records.extend_from_slice(&log[*at..end]);
            *at = end;
            let offset = end.checked_sub(1).map_or(1, |last| log[last].source.offset.get() + 1);
            next.insert(*lane, offset);
        }
        for ((topic, partition), offset) in next {
            batch.positions.push(NextOffset { topic: Arc::from(topic), partition, next: Offset::new(offset) });
        }
        batch
    }

    /// Everything that is left, tallies first or outcomes first.
    pub fn rest(&mut self, tallies_first: bool) -> LedgerBatch {
        let mut lanes = self.topics.lanes();
        lanes.sort_by_key(|(topic, partition)| ((*topic == OUTCOMES) == tallies_first, *partition));
        let takes: Vec<_> = lanes.into_iter().map(|lane| (lane, usize::MAX / 2)).collect();
        self.batch(&takes)
    }

    /// Everything that is left of one topic.
    pub fn only(&mut self, topic: &str) -> LedgerBatch {
        let lanes = self.topics.lanes().into_iter().filter(|(name, _)| *name == topic);
        let takes: Vec<_> = lanes.map(|lane| (lane, usize::MAX / 2)).collect();
        self.batch(&takes)
    }
}

/// All of `topics` in one batch.
pub fn all(topics: &Topics, rules: Rules) -> LedgerBatch {
    Reader::new(topics, rules).rest(true)
}
