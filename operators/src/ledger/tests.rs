use std::time::Duration;

use sluice_ledger::{Applied, open_sqlite};
use sluice_mining::Sats;
use sluice_proto::v1::BlockStatus;
use sluice_topology::{Externals, SettingValue};
use tempfile::TempDir;

use super::*;
use crate::testing::records::{START, at, outcome, slice_end, solved, tally, tick};
use crate::testing::store::{Fate, FatefulStore};
use crate::testing::{Rig, build, settings_of};

/// Number of the slice that the tests begin in.
const FIRST: u64 = START / 10;
/// Reward of the blocks of the tests.
const VALUE: u64 = 5_000_000_007;

struct World {
    rig: Rig,
    store: Arc<FatefulStore>,
    /// Holds the database.
    _dir: TempDir,
}

fn lend(store: &Arc<FatefulStore>) -> Externals {
    let mut externals = Externals::default();
    externals.insert::<Arc<dyn LedgerStore>>(store.clone());
    externals.insert(LedgerRules(Rules { scheme: Scheme::Pplns { window: 2 }, fee: BasisPoints::new(100).unwrap() }));
    externals
}

fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let store = FatefulStore::new(open_sqlite(&dir.path().join("ledger.db")).unwrap());
    World { rig: Rig::with(&KIND, &[], lend(&store)), store, _dir: dir }
}

impl World {
    fn give(&mut self, port: &'static str, body: Body) {
        assert_eq!(self.rig.give(port, at(5), body), [], "it writes to no topic");
    }

    /// A slice with work of two accounts, two to one, and its end.
    fn slice(&mut self, number: u64) {
        for (account, milliblocks) in [("alice", 250), ("bob", 125)] {
            self.give("tallies", Body::Tally(tally(0, FIRST + number, account, "rig", milliblocks)));
        }
        self.give("tallies", Body::SliceEnd(slice_end(0, 1, FIRST + number)));
    }

    fn block(&mut self, number: u8, status: BlockStatus) {
        self.give("outcomes", Body::BlockOutcome(outcome(&solved(number, at(1)), status)));
    }

    fn pending(&self, account: &str) -> u64 {
        self.store.balance(account).unwrap().map_or(0, |balance| balance.pending.get())
    }

    fn positions(&self) -> Vec<(String, u64)> {
        let all = self.store.positions().unwrap().into_iter();
        all.map(|position| (position.topic.to_string(), position.next.get())).collect()
    }
}

/// M1: what it hands over is credited, to the satoshi, and matures.
#[test]
fn m1_tallies_and_outcomes_become_balances() {
    let mut world = world();
    world.slice(0);
    world.block(1, BlockStatus::Accepted);
    assert_eq!(world.pending("alice"), 0, "nothing before the batch is flushed");
    world.rig.commit();
    let fee = VALUE / 100;
    let parts = [world.pending("alice"), world.pending("bob")];
    assert_eq!(parts.iter().sum::<u64>() + fee, VALUE);
    assert_eq!(parts[0], (VALUE - fee) * 2 / 3 + u64::from((VALUE - fee) * 2 % 3 == 2));
    world.block(1, BlockStatus::Confirmed);
    world.rig.commit();
    let totals = world.store.totals().unwrap();
    assert_eq!((totals.pending, totals.available.get(), totals.fee_available.get()), (Sats::ZERO, VALUE - fee, fee));
    assert!(world.store.verify().unwrap().findings.is_empty());
}

#[test]
fn records_and_positions_are_one_transaction() {
    let mut world = world();
    world.slice(0);
    world.block(1, BlockStatus::Accepted);
    world.store.then(&[Fate::Interrupted]);
    assert!(matches!(world.rig.flush(), Err(OperatorError::Interrupted(_))));
    assert_eq!((world.positions(), world.pending("alice")), (vec![], 0));
    world.rig.restart(&[]);
    world.slice(0);
    world.block(1, BlockStatus::Accepted);
    world.rig.commit();
    assert_eq!(world.positions(), [("topic.outcomes".to_owned(), 2), ("topic.tallies".to_owned(), 4)]);
    assert!(world.pending("alice") > 0);
}

/// S1: a batch whose commit the task never heard of is repeated and counts once.
#[test]
fn s1_a_crash_behind_the_transaction_counts_nothing_twice() {
    let mut world = world();
    world.slice(0);
    world.rig.commit();
    world.slice(1);
    world.block(1, BlockStatus::Accepted);
    world.store.then(&[Fate::Unheard]);
    assert!(matches!(world.rig.flush(), Err(OperatorError::External(_))));
    let before = world.store.digest().unwrap();
    world.rig.restart(&[("tallies", 0, 4)]);
    world.slice(1);
    world.block(1, BlockStatus::Accepted);
    world.rig.commit();
    assert_eq!(world.store.digest().unwrap(), before);
    world.slice(2);
    world.rig.commit();
    assert_ne!(world.store.digest().unwrap().slices, before.slices, "it goes on");
}

/// P1: a database that has lost what it was given is refused, whichever topic comes first.
#[test]
fn p1_a_new_or_older_database_is_refused() {
    for first in ["tallies", "outcomes"] {
        let (mut world, mut older) = (world(), self::world());
        for world in [&mut world, &mut older] {
            world.slice(0);
            world.rig.commit();
        }
        world.slice(1);
        world.block(1, BlockStatus::Accepted);
        world.rig.commit();
        for store in [older.store, self::world().store] {
            let before = store.digest().unwrap();
            world.rig.lend(lend(&store));
            world.rig.restart(&[("tallies", 0, 7), ("outcomes", 0, 2)]);
            match first {
                "tallies" => world.slice(2),
                _ => world.block(2, BlockStatus::Accepted),
            }
            let error = world.rig.flush().unwrap_err().to_string();
            assert!(error.contains("a new one or an old copy") && error.contains("topic."), "{error}");
            assert_eq!(store.digest().unwrap(), before, "nothing of the batch is stored");
        }
    }
}

#[test]
fn the_state_says_how_far_it_was_handed_over() {
    let mut world = world();
    for partition in [0, 1] {
        let end = slice_end(partition, 2, FIRST);
        world.rig.give_of("tallies", (partition, 2), at(1), Body::SliceEnd(end)).unwrap();
    }
    world.block(1, BlockStatus::Refused);
    world.rig.commit();
    assert_eq!(world.rig.rows("read"), 3);
    assert_eq!(world.positions().len(), 3);
    assert_eq!(world.store.totals().unwrap().closed_through, None, "one partition of the tallies is missing each");
}

/// A batch without a record for it, such as one of repeated records only, leaves the ledger alone.
#[test]
fn an_empty_batch_makes_no_transaction() {
    let mut world = world();
    world.rig.flush().unwrap();
    assert!(world.store.positions().unwrap().is_empty());
    world.slice(0);
    world.rig.commit();
    let applied = world.store.positions().unwrap();
    world.rig.flush().unwrap();
    assert_eq!(world.store.positions().unwrap(), applied);
    assert_eq!(
        world.store.apply(&LedgerBatch::new(Rules { scheme: Scheme::Solo, fee: BasisPoints::default() })).unwrap(),
        Applied::default()
    );
}

#[test]
fn p1_records_that_cannot_be_right_stop_it_with_their_place() {
    let mut world = world();
    world.slice(1);
    world.give("tallies", Body::SliceEnd(slice_end(0, 1, FIRST)));
    let Err(OperatorError::Record(text)) = world.rig.flush() else { panic!("a slice that ends twice") };
    assert!(text.contains("topic.tallies[0]@4"), "{text}");
    let other = world.rig.give_of("tallies", (0, 1), at(1), Body::Tick(tick(0, 1))).unwrap_err();
    assert!(other.to_string().contains("ledger cannot read a record of kind tick"), "{other}");
}

#[test]
fn what_it_needs_must_be_lent() {
    let missing =
        |externals: &Externals| build(&KIND, &settings_of(&KIND, &[]), externals).err().map(|error| error.to_string());
    let mut externals = Externals::default();
    assert!(missing(&externals).unwrap().contains("no ledger is lent"));
    let world = world();
    externals.insert::<Arc<dyn LedgerStore>>(world.store.clone());
    assert!(missing(&externals).unwrap().contains("no rules of rewards"));
    assert_eq!(missing(&lend(&world.store)), None);
}

/// `keep` reaches the store: slices that no window can reach any more go.
#[test]
fn keep_bounds_the_stored_work() {
    let mut world = world();
    let keep = [("keep", SettingValue::Duration(Duration::from_secs(100)))];
    world.rig = Rig::with(&KIND, &keep, lend(&world.store));
    for number in 0..400 {
        world.slice(number);
    }
    world.rig.commit();
    // A slice is 0.375 blocks: the window of 2 blocks reaches 5 slices back, `keep` 10 more.
    assert!((383..=385).contains(&world.store.pruned()), "{}", world.store.pruned());
    assert!(world.store.verify().unwrap().findings.is_empty());
}

#[test]
fn rules_come_from_the_topology() {
    let config =
        |scheme, fee_bps| Config { url: sluice_topology::Secret::known("sqlite:x"), scheme, fee_bps, maturity: 100 };
    let fee = BasisPoints::new(250).unwrap();
    assert_eq!(rules(&config(RewardScheme::Solo, 250)).unwrap(), Rules { scheme: Scheme::Solo, fee });
    let pplns = rules(&config(RewardScheme::Pplns { window: 3 }, 250)).unwrap();
    assert_eq!(pplns, Rules { scheme: Scheme::Pplns { window: 3 }, fee });
    assert!(rules(&config(RewardScheme::Pplns { window: 0 }, 250)).is_err());
    assert!(rules(&config(RewardScheme::Solo, 10_001)).is_err());
}
