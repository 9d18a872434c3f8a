//! Random worlds, read in random orders, with crashes: always the same money.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use sluice_ledger::{CreditState, LedgerDigest, LedgerStore, Rules};
use sluice_proto::v1::{BlockStatus, Tally};

use crate::fixture::Fixture;
use crate::world::{Reader, Topics, all, end_of, outcome, pplns, solo, tally};

const NAMES: [&str; 6] = ["alice", "bob", "carol", "dave", "eve", "mallory"];
/// Slices of a world.
const SLICES: u64 = 8;

/// Steps that the watcher of blocks writes for one block.
const LIVES: [&[BlockStatus]; 7] = [
    &[BlockStatus::Accepted],
    &[BlockStatus::Refused],
    &[BlockStatus::Accepted, BlockStatus::Confirmed],
    &[BlockStatus::Accepted, BlockStatus::Inactive, BlockStatus::Orphaned],
    &[BlockStatus::Accepted, BlockStatus::Inactive, BlockStatus::Active, BlockStatus::Confirmed],
    &[BlockStatus::Refused, BlockStatus::Accepted, BlockStatus::Accepted, BlockStatus::Confirmed],
    &[BlockStatus::Accepted, BlockStatus::Inactive],
];

#[derive(Clone, Debug)]
struct World {
    topics: Topics,
    rules: Rules,
}

fn worlds() -> impl Strategy<Value = World> {
    let rules = prop_oneof![
        4 => (1..4_u32, 0..=10_000_u64).prop_map(|(window, fee)| pplns(window, fee)),
        1 => (0..=10_000_u64).prop_map(solo),
    ];
    let work = vec((0..3_u32, 0..SLICES, 0..NAMES.len(), prop_oneof![Just(0_u64), 1..3000_u64]), 0..60);
    let blocks = vec((0..SLICES + 1, 0..=350_000_000_000_000_u64, 0..NAMES.len(), 0..LIVES.len()), 0..6);
    // The shares may have another number of partitions from the slice behind this one on.
    let cut = (0..2 * SLICES, 1..=3_u32);
    (1..=3_u32, 1..=3_u32, work, blocks, rules, cut).prop_map(|(before, tally_partitions, work, blocks, rules, cut)| {
        let mut topics = Topics::new(tally_partitions);
        for slice in 0..SLICES {
            let (generation, partitions) = if slice > cut.0 { (2, cut.1) } else { (0, before) };
            for partition in 0..partitions {
                for (at, when, who, amount) in &work {
                    if at % partitions == partition && *when == slice {
                        let tally = tally(partition, slice, NAMES[*who], *amount);
                        topics.tally(Tally { generation, ..tally });
                    }
                }
                let next = if slice == cut.0 { cut.1 } else { 0 };
                topics.end(end_of(generation, (partition, partitions), slice, next));
            }
            if slice == cut.0 {
                for partition in 0..cut.1 {
                    topics.end(end_of(2, (partition, cut.1), slice, 0));
                }
            }
        }
        let longest = LIVES.iter().map(|life| life.len()).max().unwrap_or(0);
        for step in 0..longest {
            for (number, (slice, value, finder, life)) in blocks.iter().enumerate() {
                if let Some(status) = LIVES[*life].get(step) {
                    topics.outcome(outcome(number as u8, *slice, *value, NAMES[*finder], *status));
                }
            }
        }
        World { topics, rules }
    })
}

/// One step of a run: which lane to read on, how far, and what happens then.
type Steps = Vec<(prop::sample::Index, usize, Then)>;

#[derive(Clone, Copy, Debug)]
enum Then {
    GoOn,
    /// Crash after the commit, before anybody knows: the same batch again.
    Repeat,
    /// Back to the start of everything, with other cuts.
    Rewind,
}

fn steps() -> impl Strategy<Value = Steps> {
    let then = prop_oneof![6 => Just(Then::GoOn), 2 => Just(Then::Repeat), 1 => Just(Then::Rewind)];
    vec((any::<prop::sample::Index>(), 0..20_usize, then), 0..25)
}

fn run(store: &dyn LedgerStore, world: &World, steps: &Steps) -> LedgerDigest {
    let mut reader = Reader::new(&world.topics, world.rules);
    let lanes = world.topics.lanes();
    for (lane, count, then) in steps {
        let batch = reader.batch(&[(*lane.get(&lanes), *count)]);
        store.apply(&batch).unwrap();
        match then {
            Then::GoOn => {}
            Then::Repeat => assert_eq!(store.apply(&batch).unwrap().records, 0),
            Then::Rewind => reader.at = BTreeMap::new(),
        }
    }
    store.apply(&reader.rest(steps.len().is_multiple_of(2))).unwrap();
    store.digest().unwrap()
}

/// M1: the books balance, and credits and fee of each block sum to its reward.
fn assert_m1(store: &dyn LedgerStore) {
    let proof = store.verify().unwrap();
    assert!(proof.findings.is_empty(), "{:?}", proof.findings);
    assert!(store.trial_balance().unwrap().is_sound());
    let (mut pending, mut available) = (0, 0);
    let mut paid: BTreeMap<[u8; 32], u64> = BTreeMap::new();
    for name in NAMES {
        for credit in store.credits(name, None, 1000).unwrap() {
            *paid.entry(credit.block.hash).or_default() += credit.amount.get();
        }
    }
    for block in store.blocks(None, 1000).unwrap() {
        match block.credit {
            CreditState::Pending => pending += block.value.get(),
            CreditState::Available => available += block.value.get(),
            CreditState::Waiting | CreditState::Reversed => {}
        }
        if let Some(reward) = block.reward {
            let credited = paid.get(&block.hash).copied().unwrap_or(0);
            assert_eq!(credited + reward.fee.get(), block.value.get());
        }
    }
    let totals = store.totals().unwrap();
    assert_eq!(totals.pending.get() + totals.fee_pending.get(), pending);
    assert_eq!(totals.available.get() + totals.fee_available.get(), available);
    assert_eq!((totals.coinbase_immature.get(), totals.coinbase_mature.get()), (pending, available));
}

fn check(cases: u32, property: impl Fn(World, Steps) -> Result<(), TestCaseError>) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    TestRunner::new(config).run(&(worlds(), steps()), |(world, steps)| property(world, steps)).unwrap();
}

#[test]
fn m1_no_order_of_reading_and_no_crash_changes_the_money() {
    check(40, |world, steps| {
        let (plain, crashing, outcomes_first) = (Fixture::sqlite(), Fixture::sqlite(), Fixture::sqlite());
        plain.store.apply(&all(&world.topics, world.rules)).unwrap();
        let expected = plain.store.digest().unwrap();
        prop_assert_eq!(run(crashing.store.as_ref(), &world, &steps), expected);
        let mut reader = Reader::new(&world.topics, world.rules);
        outcomes_first.store.apply(&reader.rest(false)).unwrap();
        prop_assert_eq!(outcomes_first.store.digest().unwrap(), expected);
        prop_assert_eq!(plain.store.positions().unwrap(), crashing.store.positions().unwrap());
        assert_m1(crashing.store.as_ref());
        Ok(())
    });
}

#[test]
fn m1_both_back_ends_hold_the_same_money() {
    check(12, |world, steps| {
        let (sqlite, postgres) = (Fixture::sqlite(), Fixture::postgres());
        sqlite.store.apply(&all(&world.topics, world.rules)).unwrap();
        prop_assert_eq!(run(postgres.store.as_ref(), &world, &steps), sqlite.store.digest().unwrap());
        prop_assert_eq!(postgres.store.blocks(None, 100).unwrap(), sqlite.store.blocks(None, 100).unwrap());
        prop_assert_eq!(postgres.store.balances("", 100).unwrap(), sqlite.store.balances("", 100).unwrap());
        prop_assert_eq!(postgres.store.totals().unwrap(), sqlite.store.totals().unwrap());
        assert_m1(postgres.store.as_ref());
        Ok(())
    });
}
