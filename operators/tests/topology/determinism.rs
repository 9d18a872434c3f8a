//! S2 for every registered operator: being in `KINDS` is what brings one here.
//!
//! Outputs are compared as bytes. Those of a kind of the role `World` (`submit`) are no function of its input, and its
//! coordinates are those of a source (docs/adr/0010): of it bodies are compared, after dropping the outcomes that tell
//! a reader nothing new by the ledger's rule for block hashes.

use sluice_operators::KINDS;
use sluice_proto::Body;

use crate::harness::{Disturbance, Outcome, Place, run};
use crate::scenarios;

/// Runs every kind with `seed`: undisturbed twice, then in every other way; all end the same.
async fn every_kind(seed: u64, place: Place) {
    for kind in KINDS {
        let scenario = || {
            scenarios::of(kind.name, seed).unwrap_or_else(|| {
                panic!("operator {} has no scenario in tests/topology/scenarios.rs: give it one", kind.name)
            })
        };
        let first = run(kind, scenario(), Disturbance::None, seed, place).await;
        assert_tells_something(kind.name, &first);
        let mut disturbances = vec![Disturbance::None, Disturbance::Restarts, Disturbance::Crashes];
        if scenario().backlog {
            disturbances.push(Disturbance::Backlog);
        }
        for disturbance in disturbances {
            let again = run(kind, scenario(), disturbance, seed, place).await;
            assert_eq!(again, first, "{} with seed {seed} and {disturbance:?}", kind.name);
        }
    }
}

/// A scenario in which nothing happens would show nothing.
fn assert_tells_something(kind: &str, outcome: &Outcome) {
    let records: usize = outcome.outputs.iter().map(|(_, records)| records.len()).sum();
    assert!(outcome.outputs.is_empty() || records > 3, "{kind} wrote {records} records");
    let zero = "0".repeat(32);
    let filled = outcome.digests.iter().filter(|(_, digest)| *digest != zero).count();
    assert!(outcome.digests.is_empty() || filled > 0, "{kind} kept nothing: {:?}", outcome.digests);
    assert!(records > 0 || filled > 0, "{kind} did nothing");
}

#[tokio::test]
async fn s2_every_operator_gives_the_same_whatever_happens_to_its_task() {
    for seed in 0..6 {
        every_kind(seed, Place::Memory).await;
    }
}

#[tokio::test]
async fn s2_every_operator_gives_the_same_on_the_durable_log() {
    every_kind(100, Place::Disk).await;
}

/// A join must not lose blocks: what the table has forgotten by then is read from the topic again.
#[tokio::test]
async fn trap_02_a_candidate_that_waited_through_many_tips_becomes_its_block() {
    let kind = KINDS.iter().find(|kind| kind.name == "assemble").unwrap();
    for seed in 0..3 {
        let scenario = scenarios::of("assemble", seed).unwrap();
        let sent = scenario.steps.iter().flat_map(|step| &step.records);
        let good = sent.filter(|(_, body)| matches!(body, Body::Candidate(candidate) if candidate.template_id < 99));
        let expected = good.count();
        let last = scenario.steps.last().unwrap();
        assert!(last.records.len() == 14 && last.topic == "in.in", "candidates of all tips after all templates");
        let outcome = run(kind, scenario, Disturbance::Restarts, seed, Place::Memory).await;
        let solved: usize = outcome.outputs.iter().map(|(_, records)| records.len()).sum();
        assert_eq!(solved, expected);
    }
}

#[test]
fn an_operator_without_a_scenario_is_noticed() {
    assert!(scenarios::of("no such operator", 1).is_none());
}
