//! The share processor: fused or split it gives the same (DESIGN 3); through crashes each share is counted once (S1).

use std::collections::BTreeMap;

use sluice_proto::Body;
use sluice_proto::v1::{Reason, Tally};

use crate::faults::Append;
use crate::harness::{Ground, Place};
use crate::pool::{Bodies, Day, OUTPUTS, Pool, topology};

/// What a pool has made of its day.
#[derive(Debug, PartialEq)]
struct Results {
    outputs: Vec<(&'static str, Bodies)>,
    digests: Vec<(String, String)>,
    money: String,
}

async fn results(pool: &Pool<'_>) -> Results {
    let mut outputs = Vec::new();
    for topic in OUTPUTS {
        outputs.push((topic, pool.bodies(topic).await));
    }
    let mut digests = pool.instance.digests().await;
    // Offsets of a topic, in which a record that was written twice has two places.
    digests.retain(|(table, _)| !table.starts_with("ledger.read"));
    Results { outputs, digests, money: pool.money() }
}

/// A day of a pool of this shape, its share processor dying at the appends that `fates` say.
async fn live(split: bool, day: &Day, place: Place, fates: &[Append]) -> (Results, u64) {
    let (graph, ground) = (topology(split), Ground::new(place));
    let mut pool = Pool::start(&graph, &ground).await;
    pool.live(day, |ground| ground.log.then(fates)).await;
    let results = results(&pool).await;
    pool.instance.stop().await;
    (results, ground.log.died())
}

/// Says what differs first, where something does.
fn assert_same(results: &Results, expected: &Results, what: &str) {
    for ((topic, records), (_, others)) in results.outputs.iter().zip(&expected.outputs) {
        let different = records.iter().zip(others).find(|(record, other)| record != other);
        assert!(different.is_none(), "{what}: {topic} differs: {different:?}");
        assert_eq!(records.len(), others.len(), "{what}: records of {topic}");
    }
    assert_eq!(results.digests, expected.digests, "{what}");
    assert_eq!(results.money, expected.money, "{what}");
    assert_eq!(results, expected, "{what}");
}

/// S1: each submission has one verdict, and is in one tally, with its work.
fn assert_counted_once(results: &Results, day: &Day) {
    let mut verdicts: BTreeMap<(u32, u64), Reason> = BTreeMap::new();
    let mut accepted = (0, 0);
    let mut tallied = (0, 0, 0);
    for body in results.outputs.iter().flat_map(|(_, records)| records.iter().map(|(.., body)| body)) {
        match body {
            Body::Verdict(verdict) => {
                let place = (verdict.origin_partition, verdict.origin_offset);
                assert_eq!(verdicts.insert(place, verdict.reason()), None, "a second verdict on {place:?}");
                if verdict.reason() == Reason::Accepted {
                    accepted = (accepted.0 + 1, accepted.1 + u128::from(verdict.work_lo));
                }
            }
            Body::Tally(Tally { accepted, rejected, .. }) => {
                let shares = accepted.iter().map(|at| at.shares).sum::<u64>();
                let work = accepted.iter().map(|at| u128::from(at.work_lo)).sum::<u128>();
                let rejected = rejected.iter().map(|count| count.shares).sum::<u64>();
                tallied = (tallied.0 + shares, tallied.1 + work, tallied.2 + rejected);
            }
            Body::SliceEnd(_) | Body::DifficultyTarget(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(verdicts.len(), day.submitted, "every submission has a verdict");
    let rejected = verdicts.len() as u64 - accepted.0;
    assert_eq!(tallied, (accepted.0, accepted.1, rejected), "what is accepted is counted, and nothing else is");
    let reasons: std::collections::BTreeSet<_> = verdicts.values().map(|reason| *reason as i32).collect();
    assert!(reasons.len() >= 5, "{reasons:?}");
}

#[tokio::test]
async fn s2_splitting_the_share_processor_changes_nothing() {
    let fused = topology(false).plan(&[]).unwrap().tasks.len();
    let split = topology(true).plan(&[]).unwrap().tasks.len();
    assert_eq!((fused, split), (2 + 4, 2 * 4 + 4), "one task for each partition, or four");
    let day = Day::new(1, 2_000);
    let (fused, _) = live(false, &day, Place::Disk, &[]).await;
    let (split, _) = live(true, &day, Place::Disk, &[]).await;
    assert_counted_once(&fused, &day);
    assert_same(&split, &fused, "split");
    for table in ["verify.clock", "dedupe.headers", "tally.clock", "vardiff.sessions", "stats.totals"] {
        assert!(fused.digests.iter().any(|(name, _)| name.starts_with(table)), "{table} was compared");
    }
    assert!(fused.money.contains("account"), "somebody was credited");
}

/// S1, S2: the process dies at each append of a batch in turn, before it or without hearing of it.
#[tokio::test]
async fn s1_a_share_is_counted_once_wherever_the_process_dies() {
    let day = Day::new(2, 300);
    let (expected, _) = live(false, &day, Place::Memory, &[]).await;
    assert_counted_once(&expected, &day);
    let mut deaths = 0;
    for fate in [Append::Unheard, Append::Lost] {
        for at in 0..24 {
            let mut fates = vec![Append::Durable; at];
            fates.push(fate);
            let (results, died) = live(false, &day, Place::Memory, &fates).await;
            assert_same(&results, &expected, &format!("{fate:?} at append {at}"));
            deaths += died;
        }
    }
    assert!(deaths >= 20, "it died {deaths} times only");
}

/// The same with the processor split and several deaths in a row.
#[tokio::test]
async fn s1_a_share_is_counted_once_by_split_tasks_that_die() {
    let day = Day::new(3, 300);
    let (expected, _) = live(false, &day, Place::Memory, &[]).await;
    for seed in 0..6 {
        let mut random = crate::records::Random::new(seed);
        let fates: Vec<Append> = (0..20)
            .map(|_| [Append::Durable, Append::Durable, Append::Unheard, Append::Lost][random.below(4) as usize])
            .collect();
        let (results, died) = live(true, &day, Place::Memory, &fates).await;
        assert!(died > 0);
        assert_same(&results, &expected, &format!("seed {seed}"));
    }
}
