//! What must hold when everything has run to its end. The checks read the topics themselves, not through the product's
//! readers: a record is known by where its producer made it, whatever watermarks say.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use futures::FutureExt;
use sluice_ledger::ChainState;
use sluice_log::Partition;
use sluice_mining::header_hash;
use sluice_proto::v1::{Envelope, Reason, Submission, Tally, Verdict};
use sluice_proto::{Body, EventTime, Offset, decode, hash64};
use sluice_topology::runtime::TopicReader;

use crate::finish::Remains;
use crate::fuse::Fuse;
use crate::log::Disk;
use crate::miner::{Key, Miner, code, key};
use crate::pool::{OUTPUTS, VERDICTS, partitions};
use crate::world::Violation;

/// A check says what it has found, or that the simulation does not work.
type Found = Result<Result<(), Violation>>;

/// Everything, of a run that is over and of the one that was made again from its sources.
///
/// # Errors
/// If the topics or the ledger cannot be read.
pub fn all(miners: &[Miner], remains: &Remains, again: &Remains) -> Found {
    let topics = Topics::read(&remains.disk)?;
    for check in [
        topics.every_share_has_its_verdict(),
        topics.answers_are_verdicts(miners),
        topics.tallies_are_verdicts(),
        topics.blocks_are_solved(miners, remains)?,
        money_sums(remains)?,
        nothing_is_missing(&remains.disk)?,
        fences_stand_first(remains)?,
        outputs_are_the_same(&remains.disk, &again.disk)?,
        states_are_the_same(remains, again)?,
        money_is_the_same(remains, again)?,
    ] {
        if check.is_err() {
            return Ok(check);
        }
    }
    Ok(Ok(()))
}

fn ensure(holds: bool, invariant: &'static str, what: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation::new(invariant, what())) }
}

/// Where a record stands on its producer's lane; the same for records that were written again.
type Place = (Partition, u64, u32, u32, u64, u32);

/// What the topics hold, each record once.
struct Topics {
    submissions: BTreeMap<(u32, u64), Submission>,
    verdicts: Vec<Verdict>,
    tallies: Vec<Tally>,
    /// Headers by block hash.
    candidates: BTreeSet<[u8; 32]>,
    solved: BTreeSet<[u8; 32]>,
    outcomes: BTreeSet<[u8; 32]>,
}

impl Topics {
    fn read(disk: &Disk) -> Result<Self> {
        let mut this = Self {
            submissions: BTreeMap::new(),
            verdicts: Vec::new(),
            tallies: Vec::new(),
            candidates: BTreeSet::new(),
            solved: BTreeSet::new(),
            outcomes: BTreeSet::new(),
        };
        let mut seen: BTreeSet<Place> = BTreeSet::new();
        for partition in disk.partitions() {
            let mut fences: BTreeMap<u64, u32> = BTreeMap::new();
            for record in disk.records(&partition) {
                let envelope = decode(record.value)?;
                if let Some(Body::Fence(fence)) = &envelope.body {
                    let newest = fences.entry(fence.task).or_default();
                    *newest = fence.epoch.max(*newest);
                    continue;
                }
                let Some(from) = envelope.from.filter(|from| fences.get(&from.task) <= Some(&from.epoch)) else {
                    continue;
                };
                // A source counts anew in each epoch.
                let epoch = if from.source_topic == 0 { from.epoch } else { 0 };
                let lane = (from.task ^ u64::from(from.source_topic), epoch, from.source_partition);
                let place = (partition.clone(), lane.0, lane.1, lane.2, from.source_offset, from.ordinal);
                if seen.insert(place) {
                    this.take(&partition, record.offset, envelope.body)?;
                }
            }
        }
        Ok(this)
    }

    fn take(&mut self, partition: &Partition, offset: Offset, body: Option<Body>) -> Result<()> {
        match body {
            Some(Body::Submission(share)) => drop(self.submissions.insert((partition.number, offset.get()), share)),
            Some(Body::Verdict(verdict)) if VERDICTS.contains(&&*partition.topic) => self.verdicts.push(verdict),
            Some(Body::Tally(tally)) => self.tallies.push(tally),
            Some(Body::Candidate(candidate)) => {
                self.candidates.insert(header_hash(candidate.header.as_ref().try_into()?));
            }
            Some(Body::SolvedBlock(block)) => drop(self.solved.insert(block.hash.as_ref().try_into()?)),
            Some(Body::BlockOutcome(outcome)) => drop(self.outcomes.insert(outcome.hash.as_ref().try_into()?)),
            _ => {}
        }
        Ok(())
    }

    fn every_share_has_its_verdict(&self) -> Result<(), Violation> {
        let mut judged: BTreeSet<(u32, u64)> = BTreeSet::new();
        for verdict in &self.verdicts {
            let origin = (verdict.origin_partition, verdict.origin_offset);
            ensure(judged.insert(origin), "S1", || format!("share {origin:?} has two verdicts"))?;
            ensure(self.submissions.contains_key(&origin), "S1", || format!("a verdict on no share, {origin:?}"))?;
        }
        let missed = self.submissions.keys().find(|origin| !judged.contains(origin));
        ensure(missed.is_none(), "S1", || format!("share {missed:?} has no verdict"))
    }

    /// What each header was judged, in no order.
    fn judged(&self) -> BTreeMap<Key, Vec<Reason>> {
        let mut judged: BTreeMap<Key, Vec<Reason>> = BTreeMap::new();
        for verdict in &self.verdicts {
            if let Some(share) = self.submissions.get(&(verdict.origin_partition, verdict.origin_offset)) {
                judged.entry(key(share)).or_default().push(verdict.reason());
            }
        }
        judged
    }

    fn answers_are_verdicts(&self, miners: &[Miner]) -> Result<(), Violation> {
        let judged = self.judged();
        let mut answers: BTreeMap<Key, Vec<Option<u64>>> = BTreeMap::new();
        for sent in miners.iter().flat_map(|miner| &miner.sent) {
            answers.entry(sent.key).or_default().push(sent.answer);
        }
        for (key, answers) in answers {
            let none = Vec::new();
            let reasons = judged.get(&key).unwrap_or(&none);
            let accepted = reasons.iter().filter(|reason| **reason == Reason::Accepted).count();
            let said = || format!("share {key:?} was answered {answers:?} and judged {reasons:?}");
            let answered_true = answers.contains(&Some(0));
            ensure(!answered_true || accepted == 1, "S1", said)?;
            let unanswered = answers.contains(&None);
            ensure(accepted == 0 || answered_true || unanswered, "S1", said)?;
            ensure(accepted <= 1, "S1", said)?;
            let mut codes: Vec<u64> = reasons.iter().map(|reason| code(*reason)).collect();
            for answer in answers.iter().flatten() {
                let place = codes.iter().position(|code| code == answer);
                ensure(place.is_some(), "S2", said)?;
                if let Some(place) = place {
                    codes.swap_remove(place);
                }
            }
        }
        Ok(())
    }

    fn tallies_are_verdicts(&self) -> Result<(), Violation> {
        type Sums = BTreeMap<(String, String, u32), (u64, u128, u64)>;
        let (mut judged, mut counted) = (Sums::new(), Sums::new());
        for verdict in &self.verdicts {
            let key = (verdict.account.clone(), verdict.worker.clone(), verdict.origin_partition);
            let sums = judged.entry(key).or_default();
            if verdict.reason() == Reason::Accepted {
                sums.0 += 1;
                sums.1 += (u128::from(verdict.work_hi) << 64) | u128::from(verdict.work_lo);
            } else {
                sums.2 += 1;
            }
        }
        for tally in &self.tallies {
            let sums = counted.entry((tally.account.clone(), tally.worker.clone(), tally.partition)).or_default();
            for work in &tally.accepted {
                sums.0 += work.shares;
                sums.1 += (u128::from(work.work_hi) << 64) | u128::from(work.work_lo);
            }
            sums.2 += tally.rejected.iter().map(|count| count.shares).sum::<u64>();
        }
        ensure(judged == counted, "S1", || format!("judged {judged:?}, counted {counted:?}"))
    }

    fn blocks_are_solved(&self, miners: &[Miner], remains: &Remains) -> Found {
        let check = || {
            for verdict in self.verdicts.iter().filter(|verdict| verdict.is_block) {
                let origin = (verdict.origin_partition, verdict.origin_offset);
                let Some(share) = self.submissions.get(&origin) else { continue };
                let is_its = |sent: &&crate::miner::Sent| sent.key == key(share) && sent.answer == Some(0);
                let answered = miners.iter().flat_map(|miner| &miner.sent).any(|sent| is_its(&sent));
                let sent = self.candidates.iter().any(|hash| verdict.header_hash == hash.as_slice());
                let what = || format!("the block of share {origin:?}, which was answered true, is in no lane");
                ensure(sent || !answered, "B1", what)?;
            }
            for hash in &self.candidates {
                ensure(self.solved.contains(hash), "B1", || format!("candidate {hash:02x?} became no block"))?;
                ensure(remains.nodes.block(hash).is_some(), "B1", || format!("no node got block {hash:02x?}"))?;
                ensure(self.outcomes.contains(hash), "B1", || format!("block {hash:02x?} has no outcome"))?;
            }
            ensure(self.solved == self.candidates, "B1", || "there are blocks without candidates".into())
        };
        if let found @ Err(_) = check() {
            return Ok(found);
        }
        for hash in &self.candidates {
            let row = remains.ledger.block(*hash)?;
            let settled =
                row.as_ref().is_some_and(|row| matches!(row.chain, ChainState::Confirmed | ChainState::Orphaned));
            if !settled {
                return Ok(Err(Violation::new("B1", format!("block {hash:02x?} is not settled: {row:?}"))));
            }
        }
        Ok(Ok(()))
    }
}

/// The ledger's own proof, and that rewards are shared out to the satoshi.
fn money_sums(remains: &Remains) -> Found {
    let (proof, trial) = (remains.ledger.verify()?, remains.ledger.trial_balance()?);
    let totals = remains.ledger.totals()?;
    let parts = [totals.pending, totals.available, totals.paid, totals.fee_pending, totals.fee_available];
    let owed: u64 = parts.iter().map(|part| part.get()).sum();
    let rewards = totals.coinbase_immature.get() + totals.coinbase_mature.get();
    Ok(ensure(proof.findings.is_empty(), "M1", || format!("{:?}", proof.findings))
        .and_then(|()| ensure(trial.is_sound(), "M1", || format!("{trial:?}")))
        .and_then(|()| ensure(owed == rewards, "M1", || format!("{owed} is owed of {rewards}: {totals:?}"))))
}

/// The records of a partition as the product's readers get them.
fn read(disk: &Disk, partition: &Partition) -> Result<Vec<Envelope>, Violation> {
    let mut reader = TopicReader::new(disk.open(0, &Fuse::default()), partition.clone(), Offset::ZERO);
    let end = disk.records(partition).last().map_or(0, |last| last.offset.get());
    let mut all = Vec::new();
    while reader.position().get() <= end {
        // A read that waits for nothing is there at once.
        let batch = reader.next_batch(std::time::Duration::ZERO).now_or_never().unwrap_or_else(|| Ok(Vec::new()));
        let batch = batch.map_err(|error| Violation::new("P1", error.to_string()))?;
        all.extend(batch.into_iter().map(|(_, envelope)| envelope));
    }
    Ok(all)
}

/// A reader gets through every partition without a gap.
fn nothing_is_missing(disk: &Disk) -> Found {
    Ok(disk.partitions().iter().try_for_each(|partition| read(disk, partition).map(drop)))
}

/// What an owner of a task has written stands behind its own fence: only so are readers rid of the owner before.
fn fences_stand_first(remains: &Remains) -> Found {
    let tasks: BTreeSet<u64> = remains.stores.keys().map(|name| hash64(name)).collect();
    for partition in remains.disk.partitions() {
        let mut fenced: BTreeSet<(u64, u32)> = BTreeSet::new();
        for record in remains.disk.records(&partition) {
            let envelope = decode(record.value)?;
            let Some(from) = envelope.from.filter(|from| tasks.contains(&from.task)) else { continue };
            if let Some(Body::Fence(fence)) = envelope.body {
                fenced.insert((fence.task, fence.epoch));
            } else if !fenced.contains(&(from.task, from.epoch)) {
                let what =
                    format!("{partition} {} is of epoch {}, without its fence before", record.offset, from.epoch);
                return Ok(Err(Violation::new("S1", what)));
            }
        }
    }
    Ok(Ok(()))
}

/// Records by the partition they were made from, in order, with their times. Between two producers of a partition there
/// is no order, and where records stand depends on what was written again.
fn bodies(disk: &Disk, partition: &Partition) -> Result<BTreeMap<u32, Vec<(EventTime, Body)>>, Violation> {
    let mut bodies: BTreeMap<u32, Vec<_>> = BTreeMap::new();
    for envelope in read(disk, partition)? {
        let lane = envelope.from.map_or(0, |from| from.source_partition);
        let time = envelope.event_time();
        bodies.entry(lane).or_default().extend(envelope.body.map(|body| (time, body)));
    }
    Ok(bodies)
}

fn outputs_are_the_same(disk: &Disk, again: &Disk) -> Found {
    let same = |partition: Partition| {
        let (first, second) = (bodies(disk, &partition)?, bodies(again, &partition)?);
        ensure(first == second, "S2", || {
            let lanes = first.values().flatten().zip(second.values().flatten());
            let different = lanes.into_iter().find(|(one, other)| one != other);
            let counts = (first.values().map(Vec::len).sum::<usize>(), second.values().map(Vec::len).sum::<usize>());
            format!("{partition} is another when it is made again, {counts:?} records: {different:?}")
        })
    };
    Ok(OUTPUTS.into_iter().chain(["block.solved"]).flat_map(partitions).try_for_each(same))
}

/// Tables with what is no function of the sources: offsets of what tasks have written, and answers of nodes.
fn is_of_the_run(task: &str) -> bool {
    task.starts_with("ledger") || task.starts_with("submit")
}

fn states_are_the_same(remains: &Remains, again: &Remains) -> Found {
    for (task, store) in remains.stores.iter().filter(|(task, _)| !is_of_the_run(task)) {
        let (first, second) = (store.rows()?, again.stores.get(task).map(|store| store.rows()).transpose()?);
        let second = second.unwrap_or_default();
        if first != second {
            let tables: Vec<&String> = first.keys().filter(|table| first.get(*table) != second.get(*table)).collect();
            return Ok(Err(Violation::new("S2", format!("the state of {task} is another: {tables:?}"))));
        }
    }
    Ok(Ok(()))
}

/// A ledger made from the log alone has the same money.
fn money_is_the_same(remains: &Remains, again: &Remains) -> Found {
    let money = |of: &Remains| -> Result<String> {
        let mut text = format!("{:?} {:?}\n", of.ledger.totals()?, of.ledger.digest()?.slices);
        for (account, balance) in of.ledger.balances("", 1_000)? {
            text += &format!("{account} {balance:?}\n");
            for credit in of.ledger.credits(&account, None, 1_000)? {
                text += &format!("  {:02x?} {:?} {:?}\n", credit.block.hash, credit.score, credit.amount);
            }
        }
        Ok(text)
    };
    let (first, second) = (money(remains)?, money(again)?);
    Ok(ensure(first == second, "M1", || format!("the ledger:\n{first}made again:\n{second}")))
}
