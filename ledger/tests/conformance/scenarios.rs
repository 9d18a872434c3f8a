//! What a ledger must do, whatever it is stored in.

use std::time::Duration;

use sluice_ledger::{Balance, ChainState, CreditState, LedgerError, LedgerStore, Score};
use sluice_mining::Sats;
use sluice_proto::v1::BlockStatus;

use crate::fixture::Fixture;
use crate::world::{Reader, Topics, all, end_of, hash, outcome, pplns, slice_end, solo, tally};

pub use crate::owners::*;

const VALUE: u64 = 312_500_007;

fn balance(store: &dyn LedgerStore, account: &str) -> (u64, u64) {
    let Balance { pending, available, paid } = store.balance(account).unwrap().unwrap();
    assert_eq!(paid, Sats::ZERO);
    (pending.get(), available.get())
}

/// The books balance, and every credit can be recomputed.
fn assert_sound(store: &dyn LedgerStore) {
    let sums = store.trial_balance().unwrap();
    assert!(sums.is_sound(), "{sums:?}");
    let proof = store.verify().unwrap();
    assert!(proof.findings.is_empty(), "{:?}", proof.findings);
}

/// Two miners, 600 and 300 milliblocks, one block, accepted.
fn simple() -> Topics {
    let mut topics = Topics::new(1);
    topics.tally(tally(0, 7, "alice", 600)).tally(tally(0, 7, "bob", 300)).end(slice_end(0, 1, 7));
    topics.outcome(outcome(1, 7, VALUE, "bob", BlockStatus::Accepted));
    topics
}

pub fn m1_a_block_is_credited_matured_and_sums_exactly(fixture: &Fixture) {
    let store = fixture.store.as_ref();
    let mut topics = simple();
    let rules = pplns(2, 150);
    let applied = store.apply(&all(&topics, rules)).unwrap();
    assert_eq!((applied.records, applied.credited, applied.matured), (4, 1, 0));
    // fee = floor(312500007 * 150 / 10000); the rest 2 : 1, the window of two blocks holds 0.9 and is normalised.
    let fee = 4_687_500;
    let rest = VALUE - fee;
    assert_eq!(rest % 3, 0, "an exact third, for this test");
    assert_eq!(balance(store, "alice"), (rest / 3 * 2, 0));
    assert_eq!(balance(store, "bob"), (rest / 3, 0));
    let totals = store.totals().unwrap();
    assert_eq!((totals.fee_pending.get(), totals.pending.get(), totals.coinbase_immature.get()), (fee, rest, VALUE));
    assert_eq!((totals.accounts, totals.closed_through), (2, Some(7)));
    assert_sound(store);

    topics.outcome(outcome(1, 7, VALUE, "bob", BlockStatus::Confirmed));
    let applied = store.apply(&all(&topics, rules)).unwrap();
    assert_eq!((applied.records, applied.repeats, applied.credited, applied.matured), (1, 4, 0, 1));
    assert_eq!(balance(store, "alice"), (0, rest / 3 * 2));
    assert_eq!(balance(store, "bob"), (0, rest / 3));
    let totals = store.totals().unwrap();
    assert_eq!((totals.fee_pending.get(), totals.fee_available.get()), (0, fee));
    assert_eq!((totals.coinbase_immature.get(), totals.coinbase_mature.get()), (0, VALUE));
    let block = store.block(hash(1)).unwrap().unwrap();
    assert_eq!((block.chain, block.credit, block.confirmations), (ChainState::Confirmed, CreditState::Available, 100));
    assert_eq!((block.finder.as_str(), block.answers.as_str()), ("bob", "a: null"));
    assert_sound(store);
    assert_eq!(store.verify().unwrap().recomputed, 1);
    assert_eq!(store.balance("nobody").unwrap(), None);
}

pub fn the_oldest_slice_counts_in_part(fixture: &Fixture) {
    let store = fixture.store.as_ref();
    let mut topics = Topics::new(1);
    // Window of one block, back from slice 9: 0.5 of slice 9 (carol), then half of slice 5 (alice 0.75, bob 0.25).
    topics.tally(tally(0, 2, "mallory", 5000)).end(slice_end(0, 1, 2));
    topics.tally(tally(0, 5, "alice", 750)).tally(tally(0, 5, "bob", 250)).end(slice_end(0, 1, 5));
    topics.tally(tally(0, 9, "carol", 500)).end(slice_end(0, 1, 9));
    topics.tally(tally(0, 10, "dave", 4000)).end(slice_end(0, 1, 10));
    topics.outcome(outcome(1, 9, 1_000_000, "carol", BlockStatus::Accepted));
    store.apply(&all(&topics, pplns(1, 0))).unwrap();
    assert_eq!(balance(store, "carol").0, 500_000);
    assert_eq!(balance(store, "alice").0, 375_000);
    assert_eq!(balance(store, "bob").0, 125_000);
    assert_eq!((balance(store, "mallory").0, balance(store, "dave").0), (0, 0));
    let reward = store.block(hash(1)).unwrap().unwrap().reward.unwrap();
    assert_eq!((reward.rules, reward.window.from, reward.window.to), (1, 5, 9));
    assert_eq!(reward.window.score, Score::blocks(1));
    assert!(reward.window.edge.unwrap().taken < reward.window.edge.unwrap().total);
    let credits = store.credits("carol", None, 10).unwrap();
    assert_eq!((credits.len(), credits[0].amount.get(), credits[0].block.hash), (1, 500_000, hash(1)));
    assert_eq!(credits[0].score.to_string(), "0.499999", "half a block, rounded down");
    assert_sound(store);
}

pub fn an_orphan_is_reversed(fixture: &Fixture) {
    let store = fixture.store.as_ref();
    let mut topics = simple();
    store.apply(&all(&topics, pplns(2, 150))).unwrap();
    topics.outcome(outcome(1, 7, VALUE, "bob", BlockStatus::Inactive));
    topics.outcome(outcome(1, 7, VALUE, "bob", BlockStatus::Orphaned));
    let applied = store.apply(&all(&topics, pplns(2, 150))).unwrap();
    assert_eq!(applied.reversed, 1);
    assert_eq!((balance(store, "alice"), balance(store, "bob")), ((0, 0), (0, 0)));
    let totals = store.totals().unwrap();
    assert_eq!((totals.coinbase_immature, totals.fee_pending), (Sats::ZERO, Sats::ZERO));
    assert_eq!(totals.blocks.get(&ChainState::Orphaned), Some(&1));
    assert_eq!(store.block(hash(1)).unwrap().unwrap().credit, CreditState::Reversed);
    assert_eq!(store.credits("alice", None, 10).unwrap().len(), 1, "what was credited stays on record");
    assert_sound(store);
}

pub fn an_inactive_block_stays_pending(fixture: &Fixture) {
    let store = fixture.store.as_ref();
    let mut topics = simple();
    topics.outcome(outcome(1, 7, VALUE, "bob", BlockStatus::Inactive));
    store.apply(&all(&topics, pplns(2, 0))).unwrap();
    let block = store.block(hash(1)).unwrap().unwrap();
    assert_eq!((block.chain, block.credit), (ChainState::Inactive, CreditState::Pending));
    assert!(balance(store, "alice").0 > 0);
    topics.outcome(outcome(1, 7, VALUE, "bob", BlockStatus::Active));
    store.apply(&all(&topics, pplns(2, 0))).unwrap();
    assert_eq!(store.block(hash(1)).unwrap().unwrap().chain, ChainState::Accepted);
    assert_sound(store);
}

pub fn a_refused_block_is_recorded_and_not_credited(fixture: &Fixture) {
    let store = fixture.store.as_ref();
    let mut topics = Topics::new(1);
    topics.tally(tally(0, 7, "alice", 600)).end(slice_end(0, 1, 7));
    topics.outcome(outcome(1, 7, VALUE, "alice", BlockStatus::Refused));
    store.apply(&all(&topics, pplns(2, 0))).unwrap();
    let block = store.block(hash(1)).unwrap().unwrap();
    assert_eq!((block.chain, block.credit, block.reward), (ChainState::Refused, CreditState::Waiting, None));
    assert_eq!(balance(store, "alice"), (0, 0));
    topics.outcome(outcome(1, 7, VALUE, "alice", BlockStatus::Accepted));
    assert_eq!(store.apply(&all(&topics, pplns(2, 0))).unwrap().credited, 1, "a node took it after all");
    assert_eq!(balance(store, "alice"), (VALUE, 0));
    assert_sound(store);
}

pub fn every_partition_must_have_closed_the_slice(fixture: &Fixture) {
    let store = fixture.store.as_ref();
    let mut topics = Topics::new(2);
    topics.outcome(outcome(1, 7, VALUE, "alice", BlockStatus::Accepted));
    topics.tally(tally(0, 7, "alice", 1)).end(slice_end(0, 2, 7));
    assert_eq!(store.apply(&all(&topics, pplns(2, 0))).unwrap().credited, 0);
    topics.tally(tally(1, 6, "bob", 2)).end(slice_end(1, 2, 6));
    assert_eq!(store.apply(&all(&topics, pplns(2, 0))).unwrap().credited, 0);
    assert_eq!(store.totals().unwrap().closed_through, Some(6));
    topics.end(slice_end(1, 2, 7));
    let mut reader = Reader::new(&topics, pplns(2, 0));
    // The end of slice 7 is seen in one partition of the tallies, and not yet in the other.
    let first = reader.batch(&[(("share.tallies", 0), 100)]);
    assert_eq!(store.apply(&first).unwrap().credited, 0);
    assert_eq!(store.apply(&reader.rest(true)).unwrap().credited, 1);
    assert_eq!((balance(store, "alice").0, balance(store, "bob").0), (VALUE / 3, VALUE / 3 * 2));
    assert_sound(store);
}

pub fn every_generation_must_have_closed_the_slice(fixture: &Fixture) {
    let store = fixture.store.as_ref();
    let mut topics = Topics::new(2);
    let credited = |topics: &Topics| store.apply(&all(topics, pplns(2, 0))).unwrap().credited;
    topics.outcome(outcome(1, 7, VALUE, "alice", BlockStatus::Accepted));
    topics.outcome(outcome(2, 8, VALUE, "alice", BlockStatus::Accepted));
    topics.tally(tally(0, 7, "alice", 1)).end(end_of(0, (0, 2), 7, 3));
    assert_eq!(credited(&topics), 0, "one of two partitions has ended");
    topics.tally(tally(1, 7, "bob", 2)).end(end_of(0, (1, 2), 7, 3));
    assert_eq!(credited(&topics), 0, "the next generation may still bring it");
    topics.end(end_of(2, (0, 3), 7, 0)).end(end_of(2, (1, 3), 7, 0));
    assert_eq!(credited(&topics), 0);
    topics.end(end_of(2, (2, 3), 7, 0));
    assert_eq!((credited(&topics), store.totals().unwrap().closed_through), (1, Some(7)));
    topics.tally(sluice_proto::v1::Tally { generation: 2, ..tally(2, 8, "bob", 3) });
    topics.end(end_of(2, (2, 3), 8, 0)).end(end_of(2, (1, 3), 9, 0)).end(end_of(2, (0, 3), 8, 0));
    assert_eq!((credited(&topics), store.totals().unwrap().closed_through), (1, Some(8)));
    // A third of the first block, a sixth of the second, each rounded down; what is left is the other's.
    let alice = VALUE / 3 + VALUE / 6;
    assert_eq!((balance(store, "alice").0, balance(store, "bob").0), (alice, 2 * VALUE - alice));
    assert_sound(store);
    let (digest, positions) = (store.digest().unwrap(), store.positions().unwrap());
    let refused = |change: &dyn Fn(&mut Topics)| {
        let mut wrong = topics.clone();
        change(&mut wrong);
        let error = store.apply(&all(&wrong, pplns(2, 0))).unwrap_err();
        assert!(matches!(error, LedgerError::Record(_)), "{error}");
        assert_eq!((store.digest().unwrap(), store.positions().unwrap()), (digest, positions.clone()));
    };
    refused(&|topics| {
        topics.tally(tally(0, 9, "alice", 1));
    });
    refused(&|topics| {
        topics.end(end_of(0, (0, 2), 9, 0));
    });
    refused(&|topics| {
        topics.end(end_of(2, (0, 4), 9, 0));
    });
    refused(&|topics| {
        topics.end(end_of(2, (1, 3), 9, 0));
    });
}

pub fn a_ledger_from_before_generations_goes_on(fixture: &Fixture) {
    // What is closed in a ledger of the first version: as its tables had it.
    let mut topics = Topics::new(1);
    topics.tally(tally(0, 7, "alice", 600)).end(slice_end(0, 1, 7));
    fixture.store.apply(&all(&topics, pplns(2, 150))).unwrap();
    fixture.downgrade();
    let store = fixture.again();
    assert_eq!(store.totals().unwrap().closed_through, Some(7));
    topics.end(end_of(0, (0, 1), 8, 1)).end(end_of(2, (0, 1), 8, 0));
    topics.outcome(outcome(1, 8, VALUE, "alice", BlockStatus::Accepted));
    assert_eq!(store.apply(&all(&topics, pplns(2, 150))).unwrap().credited, 1);
    assert_sound(store.as_ref());
}

pub fn outcomes_and_tallies_may_come_in_either_order(fixture: &Fixture) {
    let mut topics = simple();
    topics.outcome(outcome(1, 7, VALUE, "bob", BlockStatus::Orphaned));
    topics.outcome(outcome(2, 6, VALUE, "bob", BlockStatus::Accepted));
    topics.outcome(outcome(2, 6, VALUE, "bob", BlockStatus::Confirmed));
    let other = Fixture::sqlite();
    for (store, order) in
        [(&fixture.store, ["share.tallies", "block.outcomes"]), (&other.store, ["block.outcomes", "share.tallies"])]
    {
        let mut reader = Reader::new(&topics, pplns(2, 100));
        for topic in order {
            store.apply(&reader.only(topic)).unwrap();
        }
        assert_sound(store.as_ref());
    }
    assert_eq!(fixture.store.digest().unwrap(), other.store.digest().unwrap());
    assert_eq!(fixture.store.block(hash(1)).unwrap().unwrap().credit, CreditState::Reversed);
    assert_eq!(fixture.store.block(hash(2)).unwrap().unwrap().credit, CreditState::Available);
}

pub fn a_repeated_batch_changes_nothing(fixture: &Fixture) {
    let store = fixture.store.as_ref();
    let topics = simple();
    let batch = all(&topics, pplns(2, 150));
    store.apply(&batch).unwrap();
    let (digest, positions) = (store.digest().unwrap(), store.positions().unwrap());
    let again = store.apply(&batch).unwrap();
    assert_eq!((again.records, again.repeats, again.credited), (0, 4, 0));
    // Cut differently, through another handle, from the start.
    let second = fixture.again();
    let mut reader = Reader::new(&topics, pplns(2, 150));
    for _ in 0..4 {
        second.apply(&reader.batch(&[(("share.tallies", 0), 1), (("block.outcomes", 0), 1)])).unwrap();
    }
    assert_eq!(store.digest().unwrap(), digest);
    assert_eq!(store.positions().unwrap(), positions, "positions only grow");
    assert_sound(store);
}

pub fn an_empty_window_pays_the_finder(fixture: &Fixture) {
    let store = fixture.store.as_ref();
    let mut topics = Topics::new(1);
    // The block's own share was counted in the slice after the block's.
    topics.end(slice_end(0, 1, 7)).tally(tally(0, 8, "alice", 5)).end(slice_end(0, 1, 8));
    topics.outcome(outcome(1, 7, 1000, "finder", BlockStatus::Accepted));
    store.apply(&all(&topics, pplns(2, 100))).unwrap();
    assert_eq!((balance(store, "finder"), balance(store, "alice")), ((990, 0), (0, 0)));
    assert_eq!(store.block(hash(1)).unwrap().unwrap().reward.unwrap().window.score, Score::ZERO);
    assert_sound(store);
}

pub fn trap_19_a_window_that_is_not_full_pays_the_whole_reward(fixture: &Fixture) {
    let store = fixture.store.as_ref();
    let mut topics = Topics::new(1);
    // A window of a hundred blocks, and half a block's work in it.
    topics.tally(tally(0, 7, "alice", 300)).tally(tally(0, 7, "bob", 200)).end(slice_end(0, 1, 7));
    topics.outcome(outcome(1, 7, 1_000_000, "bob", BlockStatus::Accepted));
    store.apply(&all(&topics, pplns(100, 0))).unwrap();
    assert_eq!((balance(store, "alice").0, balance(store, "bob").0), (600_000, 400_000));
    assert_sound(store);
}

pub fn solo_pays_the_finder(fixture: &Fixture) {
    let store = fixture.store.as_ref();
    store.apply(&all(&simple(), solo(100))).unwrap();
    assert_eq!(balance(store, "bob"), (VALUE - VALUE / 100, 0));
    assert_eq!(balance(store, "alice"), (0, 0));
    assert_sound(store);
}

/// M1: made again of the same records with the versions of its rules, a ledger comes to the same money.
pub fn m1_a_ledger_is_made_again_with_the_rules_it_had(fixture: &Fixture) {
    let store = fixture.store.as_ref();
    let mut topics = simple();
    store.apply(&all(&topics, pplns(2, 150))).unwrap();
    topics.tally(tally(0, 8, "carol", 500)).end(slice_end(0, 1, 8));
    topics.outcome(outcome(2, 8, VALUE, "carol", BlockStatus::Accepted));
    store.apply(&all(&topics, solo(300))).unwrap();
    let snapshot = store.snapshot().unwrap();
    assert_eq!((snapshot.rules.len(), snapshot.digest), (2, store.digest().unwrap()));
    assert_eq!(snapshot.positions, store.positions().unwrap());

    let again = Fixture::sqlite();
    again.store.adopt_rules(&snapshot.rules).unwrap();
    again.store.apply(&all(&topics, solo(300))).unwrap();
    assert_eq!(again.store.snapshot().unwrap(), snapshot);
    let without = Fixture::sqlite();
    without.store.apply(&all(&topics, solo(300))).unwrap();
    assert_ne!(without.store.digest().unwrap().money, snapshot.digest.money, "the rules matter");
    assert!(again.store.adopt_rules(&snapshot.rules).is_err(), "it has rules already");
}

pub fn new_rules_hold_from_the_next_slice_on(fixture: &Fixture) {
    let store = fixture.store.as_ref();
    let mut topics = Topics::new(1);
    topics.tally(tally(0, 7, "alice", 1)).end(slice_end(0, 1, 7));
    store.apply(&all(&topics, pplns(2, 0))).unwrap();
    // Found under the old rules, heard of under the new ones.
    topics.outcome(outcome(1, 7, VALUE, "bob", BlockStatus::Accepted));
    topics.tally(tally(0, 8, "alice", 1)).end(slice_end(0, 1, 8));
    topics.outcome(outcome(2, 8, VALUE, "bob", BlockStatus::Accepted));
    assert_eq!(store.apply(&all(&topics, solo(1000))).unwrap().credited, 2);
    assert_eq!(balance(store, "alice"), (VALUE, 0));
    assert_eq!(balance(store, "bob"), (VALUE - VALUE / 10, 0));
    let versions = [1, 2].map(|number| store.block(hash(number)).unwrap().unwrap().reward.unwrap().rules);
    assert_eq!(versions, [1, 2]);
    assert_sound(store);
}

pub fn a_contradiction_of_the_chain_moves_no_money(fixture: &Fixture) {
    let store = fixture.store.as_ref();
    let mut topics = simple();
    topics.outcome(outcome(1, 7, VALUE, "bob", BlockStatus::Confirmed));
    store.apply(&all(&topics, pplns(2, 0))).unwrap();
    let digest = store.digest().unwrap();
    topics.outcome(outcome(1, 7, VALUE, "bob", BlockStatus::Orphaned));
    assert_eq!(store.apply(&all(&topics, pplns(2, 0))).unwrap().conflicts, 1);
    assert_eq!(store.digest().unwrap(), digest);
}

pub fn p1_records_that_cannot_be_right_stop_the_ledger(fixture: &Fixture) {
    let store = fixture.store.as_ref();
    let topics = simple();
    let rules = pplns(2, 0);
    store.apply(&all(&topics, rules)).unwrap();
    let (digest, positions) = (store.digest().unwrap(), store.positions().unwrap());
    let refused = |change: &dyn Fn(&mut Topics)| {
        let mut wrong = topics.clone();
        change(&mut wrong);
        let error = store.apply(&all(&wrong, rules)).unwrap_err();
        assert!(matches!(error, LedgerError::Record(_)), "{error}");
        let text = error.to_string();
        assert!(text.contains("share.tallies[0]@") || text.contains("block.outcomes[0]@"), "says where: {text}");
        assert_eq!(store.digest().unwrap(), digest, "nothing of the batch is stored");
        assert_eq!(store.positions().unwrap(), positions);
    };
    let late = |slice| tally(0, slice, "alice", 5);
    refused(&|topics| {
        topics.tally(late(8)).tally(late(7));
    });
    refused(&|topics| {
        topics.end(slice_end(0, 1, 8)).tally(late(8));
    });
    refused(&|topics| {
        topics.end(slice_end(0, 1, 7));
    });
    refused(&|topics| {
        topics.end(slice_end(0, 2, 8));
    });
    refused(&|topics| {
        topics.tally(sluice_proto::v1::Tally { slice_ms: 5000, ..late(8) });
    });
    refused(&|topics| {
        topics.tally(sluice_proto::v1::Tally { account: String::new(), ..late(8) });
    });
    refused(&|topics| {
        topics.outcome(outcome(1, 7, VALUE - 1, "bob", BlockStatus::Confirmed));
    });
    refused(&|topics| {
        topics.outcome(outcome(2, 7, u64::MAX, "bob", BlockStatus::Accepted));
    });
    refused(&|topics| {
        topics.outcome(outcome(2, 7, 5, "bob", BlockStatus::Unspecified));
    });
    refused(&|topics| {
        let outcome = outcome(2, 7, 5, "bob", BlockStatus::Accepted);
        topics.outcome(sluice_proto::v1::BlockOutcome { hash: vec![1, 2].into(), ..outcome });
    });
}

pub fn p1_a_ledger_that_lost_what_it_was_given_refuses_more(fixture: &Fixture) {
    let store = fixture.store.as_ref();
    let topics = simple();
    let mut reader = Reader::new(&topics, pplns(2, 0));
    let lane = topics.lanes()[1];
    let first = reader.batch(&[(lane, 2)]);
    let mut rest = reader.rest(true);
    rest.after = first.positions.clone();
    match store.apply(&rest) {
        Err(LedgerError::Behind { topic, partition: 0, stored: 0, given }) => {
            assert_eq!((topic.as_str(), given), (lane.0, rest.after[0].next.get()));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(store.totals().unwrap().accounts, 0, "nothing of it is stored");
    assert!(store.positions().unwrap().is_empty());
    store.apply(&first).unwrap();
    assert_eq!(store.apply(&rest).unwrap().credited, 1);
    // Knowing more is no harm: the reader had crashed before it could remember.
    assert_eq!(store.apply(&rest).unwrap().records, 0);
    assert_sound(store);
}

pub fn the_ledger_belongs_to_one_log(fixture: &Fixture) {
    fixture.store.bind_log([1; 16]).unwrap();
    fixture.store.bind_log([1; 16]).unwrap();
    assert!(matches!(fixture.again().bind_log([2; 16]), Err(LedgerError::OtherLog { .. })));
    fixture.store.apply(&all(&simple(), pplns(2, 0))).unwrap();
}

/// Work of a tenth of a block in each of the slices 1 to `last`.
fn steady(last: u64) -> Topics {
    let mut topics = Topics::new(1);
    for slice in 1..=last {
        topics.tally(tally(0, slice, "alice", 60)).tally(tally(0, slice, "bob", 40)).end(slice_end(0, 1, slice));
    }
    topics
}

pub fn old_slices_go_and_no_window_misses_them(fixture: &Fixture) {
    let store = fixture.store.as_ref();
    let mut topics = steady(1000);
    let mut batch = all(&topics, pplns(1, 0));
    batch.keep = Duration::from_secs(1000);
    let applied = store.apply(&batch).unwrap();
    // 100 slices are kept behind the newest; the window that ends there reaches 10 or 11 slices further back, since
    // scores are rounded down.
    assert!((888..=889).contains(&applied.pruned), "{applied:?}");
    // A block as late as may be, and one now.
    topics.outcome(outcome(1, 900, 1000, "bob", BlockStatus::Accepted));
    topics.outcome(outcome(2, 1000, 1000, "bob", BlockStatus::Accepted));
    assert_eq!(store.apply(&all(&topics, pplns(1, 0))).unwrap().credited, 2);
    assert_eq!((balance(store, "alice").0, balance(store, "bob").0), (1200, 800));
    assert_sound(store);
    assert_eq!(store.verify().unwrap().recomputed, 2);
    // Rules with a longer window start from what is there.
    let mut topics = topics.clone();
    topics.tally(tally(0, 1001, "alice", 60)).end(slice_end(0, 1, 1001));
    topics.outcome(outcome(3, 1001, 1000, "bob", BlockStatus::Accepted));
    assert_eq!(store.apply(&all(&topics, pplns(1000, 0))).unwrap().credited, 1);
    assert_sound(store);
}

pub fn a_window_that_was_removed_stops_the_credit(fixture: &Fixture) {
    let store = fixture.store.as_ref();
    let mut topics = steady(1000);
    let mut batch = all(&topics, pplns(1, 0));
    batch.keep = Duration::from_secs(1000);
    store.apply(&batch).unwrap();
    topics.outcome(outcome(1, 800, 1000, "bob", BlockStatus::Accepted));
    let error = store.apply(&all(&topics, pplns(1, 0))).unwrap_err();
    assert!(matches!(error, LedgerError::Pruned { .. }), "{error}");
    assert_eq!(balance(store, "bob"), (0, 0));
}

pub fn pages_go_through_everything_once(fixture: &Fixture) {
    let store = fixture.store.as_ref();
    let mut topics = Topics::new(1);
    for (number, name) in ["alice", "bob", "carol", "dave", "eve"].into_iter().enumerate() {
        topics.tally(tally(0, 7, name, number as u64 + 1));
    }
    topics.end(slice_end(0, 1, 8));
    for number in 1..=7 {
        topics.outcome(outcome(number, u64::from(number) % 3 + 6, 1000, "alice", BlockStatus::Accepted));
    }
    store.apply(&all(&topics, pplns(2, 0))).unwrap();
    let mut seen = Vec::new();
    let mut cursor = None;
    loop {
        let page = store.blocks(cursor, 2).unwrap();
        let Some(last) = page.last() else { break };
        cursor = Some(last.cursor());
        seen.extend(page.iter().map(|block| (block.found, block.hash)));
    }
    assert_eq!(seen.len(), 7);
    assert!(seen.windows(2).all(|pair| pair[0] > pair[1]), "newest first, each once");
    let first = store.credits("eve", None, 2).unwrap();
    let rest = store.credits("eve", Some(first[1].block.cursor()), 100).unwrap();
    assert_eq!(first.len() + rest.len(), 5, "blocks of slices 7 and 8 only");
    let names = |after: &str| store.balances(after, 3).unwrap().into_iter().map(|row| row.0).collect::<Vec<_>>();
    assert_eq!(names(""), ["alice", "bob", "carol"]);
    assert_eq!(names("carol"), ["dave", "eve"]);
}

pub fn postings_stay_and_balances_do_not_fall_below_zero(fixture: &Fixture) {
    fixture.store.apply(&all(&simple(), pplns(2, 150))).unwrap();
    for forbidden in [
        "UPDATE transfers SET amount = 1",
        "DELETE FROM transfers",
        "UPDATE entries SET time_ns = 1",
        "DELETE FROM entries",
        "UPDATE accounts SET debits = credits + 1 WHERE kind = 'miner_pending'",
        "UPDATE accounts SET credits = debits + 1 WHERE kind = 'coinbase_immature'",
        "UPDATE blocks SET credit = 'available'",
        "INSERT INTO entries (key, kind, block, time_ns) SELECT 'other', kind, block, 1 FROM entries",
        "INSERT INTO entries (key, kind, block, time_ns) SELECT key, 'mature', block, 1 FROM entries",
    ] {
        assert!(fixture.sql(forbidden).is_err(), "{forbidden}");
    }
    assert_sound(fixture.store.as_ref());
    // What the constraints cannot see, the checks find.
    fixture.sql("UPDATE accounts SET credits = credits + 1 WHERE kind = 'miner_pending'").unwrap();
    assert!(!fixture.store.trial_balance().unwrap().is_sound());
    fixture.sql("UPDATE accounts SET credits = credits - 1 WHERE kind = 'miner_pending'").unwrap();
    assert_sound(fixture.store.as_ref());
    let digest = fixture.store.digest().unwrap();
    fixture.sql("UPDATE credits SET amount = amount + 1 WHERE amount = (SELECT MAX(amount) FROM credits)").unwrap();
    assert_eq!(fixture.store.verify().unwrap().findings.len(), 3, "sum, postings, recomputation");
    assert_ne!(fixture.store.digest().unwrap().money, digest.money);
}

pub fn a_reward_of_nothing_is_credited(fixture: &Fixture) {
    let store = fixture.store.as_ref();
    let mut topics = Topics::new(1);
    topics.tally(tally(0, 7, "alice", 600)).end(slice_end(0, 1, 7));
    topics.outcome(outcome(1, 7, 0, "alice", BlockStatus::Accepted));
    topics.outcome(outcome(1, 7, 0, "alice", BlockStatus::Confirmed));
    let applied = store.apply(&all(&topics, pplns(2, 100))).unwrap();
    assert_eq!((applied.credited, applied.matured), (1, 1));
    assert_sound(store);
}

pub fn names_are_any_text(fixture: &Fixture) {
    let store = fixture.store.as_ref();
    let mut topics = Topics::new(3);
    let names = ["B", "a", "Ä'; DROP TABLE miners; --", "\u{1f600}", "%_$1"];
    for name in names {
        topics.tally(tally(0, 7, name, 100));
    }
    topics.end(slice_end(0, 1, 7));
    let mut worker = outcome(1, 7, 1000, "a", BlockStatus::Accepted);
    worker.worker = "rig\0\u{202e}'".into();
    topics.outcome(worker);
    store.apply(&all(&topics, pplns(2, 0))).unwrap();
    for name in names {
        assert_eq!(balance(store, name), (200, 0));
    }
    let listed: Vec<_> = store.balances("", 10).unwrap().into_iter().map(|row| row.0).collect();
    let mut sorted = names.map(str::to_owned);
    sorted.sort();
    assert_eq!(listed, sorted, "in order of bytes on every back end");
    assert_eq!(store.block(hash(1)).unwrap().unwrap().worker, "rig\u{fffd}\u{202e}'");
    assert_eq!(store.balance("a\0").unwrap(), None);
    assert_sound(store);
}
