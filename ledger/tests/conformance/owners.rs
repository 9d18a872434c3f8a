//! Two processes that both take themselves for the owner of the ledger's task.

use std::sync::Barrier;

use sluice_ledger::{BatchOwner, LedgerBatch, LedgerError, LedgerStore};
use sluice_proto::Epoch;
use sluice_proto::v1::BlockStatus;

use crate::fixture::Fixture;
use crate::world::{Reader, Topics, all, outcome, pplns, slice_end, tally};

const SLICES: u64 = 12;

fn by(epoch: u32, mut batch: LedgerBatch) -> LedgerBatch {
    batch.owner = Some(BatchOwner { task: "ledger.0".into(), epoch: Epoch::new(epoch) });
    batch
}

/// Work and blocks in two partitions of the tallies.
fn topics() -> Topics {
    let mut topics = Topics::new(2);
    for slice in 1..=SLICES {
        for (account, work) in [("alice", 400), ("bob", 250), ("carol", slice * 10)] {
            topics.tally(tally(0, slice, account, work));
        }
        topics.end(slice_end(0, 1, slice));
        topics.outcome(outcome(slice as u8, slice, 5_000_000_001, "bob", BlockStatus::Accepted));
        if slice % 3 == 0 {
            topics.outcome(outcome(slice as u8, slice, 5_000_000_001, "bob", BlockStatus::Confirmed));
        }
    }
    topics
}

/// P1: once an owner of a higher epoch has written, one of a lower epoch writes nothing, whatever it has to say.
pub fn p1_an_owner_that_was_replaced_writes_nothing(fixture: &Fixture) {
    let (old, new, topics) = (fixture.store.as_ref(), fixture.again(), topics());
    let lanes = topics.lanes();
    let part = |reader: &mut Reader<'_>, count| reader.batch(&lanes.iter().map(|l| (*l, count)).collect::<Vec<_>>());
    let mut reader = Reader::new(&topics, pplns(2, 100));
    let first = part(&mut reader, 3);
    old.apply(&by(3, first.clone())).unwrap();
    old.apply(&by(3, first)).unwrap();
    new.apply(&by(5, part(&mut reader.clone(), 2))).unwrap();
    let before = new.digest().unwrap();
    let rest = reader.rest(true);
    let refused = old.apply(&by(3, rest.clone()));
    assert!(matches!(&refused, Err(LedgerError::Replaced { by: 5, .. })), "{refused:?}");
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("ledger.0 runs in epoch 5") && text.contains("holds epoch 3"), "{text}");
    assert_eq!((old.digest().unwrap(), new.positions().unwrap().len()), (before, 3));
    new.apply(&by(5, rest)).unwrap();
    assert_eq!(new.digest().unwrap(), expected(&topics, fixture));
}

fn expected(topics: &Topics, fixture: &Fixture) -> sluice_ledger::LedgerDigest {
    let alone = fixture.another();
    alone.store.apply(&all(topics, pplns(2, 100))).unwrap();
    alone.store.digest().unwrap()
}

/// Applies everything in batches of `step` records a lane, until another owner has taken over.
fn work(store: &dyn LedgerStore, topics: &Topics, epoch: u32, step: usize, turn: &Barrier) {
    let mut reader = Reader::new(topics, pplns(2, 100));
    let takes: Vec<_> = topics.lanes().into_iter().map(|lane| (lane, step)).collect();
    turn.wait();
    for _ in 0..(5 * SLICES as usize).div_ceil(step) {
        match store.apply(&by(epoch, reader.batch(&takes))) {
            Ok(_) => {}
            Err(LedgerError::Replaced { .. }) => return,
            Err(error) => panic!("epoch {epoch}: {error}"),
        }
    }
}

/// M1, S1: both write at once, cut their batches differently, and the money is that of one.
pub fn m1_two_owners_at_once_change_no_balance(fixture: &Fixture) {
    let topics = topics();
    let (old, new) = (fixture.store.clone(), fixture.again());
    let turn = Barrier::new(2);
    std::thread::scope(|scope| {
        scope.spawn(|| work(old.as_ref(), &topics, 1, 1, &turn));
        scope.spawn(|| work(new.as_ref(), &topics, 2, 2, &turn));
    });
    assert_eq!(new.digest().unwrap(), expected(&topics, fixture));
    assert!(new.trial_balance().unwrap().is_sound());
    assert_eq!(new.verify().unwrap().findings, Vec::<String>::new());
}
