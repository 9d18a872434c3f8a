use bitcoin::Block;
use sluice_mining::JobTable;
use sluice_mining::block::BlockTx;
use sluice_mining::template::Template;
use sluice_proto::Body;
use sluice_proto::v1::{Candidate, SolvedBlock, Submission};
use sluice_topology::Key;

use super::*;
use crate::testing::Rig;
use crate::testing::records::{
    Hash, at, candidate, chunks, job_of, mined, prepared, submission, template, transaction,
};

fn rig() -> Rig {
    let mut rig = Rig::new(&KIND);
    rig.lookup("template_table", Box::new(TemplateTable::default()));
    rig
}

/// Sends `template` as number `id`, from offset `from` on; returns the candidate of a block of it.
fn candidate_of(rig: &mut Rig, template: &Template, id: u64, from: u64) -> Candidate {
    let pieces = chunks(template, id, true, 100, |_| false);
    let clock = from + pieces.len() as u64 - 1;
    for (offset, chunk) in (from..).zip(pieces) {
        rig.apply("template_table", offset, at(0), Body::TemplateChunk(chunk)).unwrap();
    }
    let job = job_of(template, id, clock, true);
    let mut jobs = JobTable::new();
    jobs.apply(Offset::new(1), at(0), job.clone()).unwrap();
    let found = mined(&prepared(&job, 1, at(0)), &submission(&job, 1, 3), Hash::Block);
    candidate(&jobs, &found, at(1))
}

fn transactions(count: u64, witness: bool) -> Vec<BlockTx> {
    (0..count).map(|number| transaction(number, witness)).collect()
}

/// The one block made of `candidate`.
fn assembled(rig: &mut Rig, candidate: &Candidate) -> (SolvedBlock, Block) {
    let out = rig.give("in", at(7), Body::Candidate(candidate.clone()));
    let [emission] = &out[..] else { panic!("{out:?}") };
    let Body::SolvedBlock(solved) = &emission.body else { panic!("{emission:?}") };
    assert_eq!((emission.port, &emission.key), ("out", &Key::Bytes(solved.hash.clone())));
    (solved.clone(), bitcoin::consensus::deserialize(&solved.block).unwrap())
}

#[test]
fn trap_14_a_block_is_whole_with_and_without_witness() {
    for (count, witness, segwit) in
        [(0, false, true), (0, false, false), (1, true, true), (12, true, true), (7, false, false), (5, false, true)]
    {
        let mut rig = rig();
        let candidate = candidate_of(&mut rig, &template(1, transactions(count, witness), segwit), 5, 1);
        let (solved, block) = assembled(&mut rig, &candidate);
        assert_eq!(block.txdata.len() as u64, count + 1);
        assert!(block.check_merkle_root() && block.check_witness_commitment(), "{count} {witness} {segwit}");
        assert_eq!(block.bip34_block_height().unwrap(), u64::from(solved.height));
        assert_eq!(solved.hash[..], bitcoin::consensus::serialize(&block.block_hash())[..]);
        assert_eq!(block.txdata[0].input[0].witness.is_empty(), !segwit);
        let expected = (101, 5_000_000_000, candidate.nbits, "account3", "rig3", at(7).nanos());
        let found =
            (solved.height, solved.coinbase_value, solved.nbits, &*solved.account, &*solved.worker, solved.found_ns);
        assert_eq!(found, expected);
    }
}

/// B1: it waits for the template that the candidate names, and for nothing else.
#[test]
fn b1_it_waits_for_its_template_only() {
    let mut rig = rig();
    let with = candidate_of(&mut rig, &template(1, transactions(3, true), true), 5, 1);
    assert_eq!(rig.requires(Body::Candidate(with.clone())), Some(("template_table", Offset::new(with.template_clock))));
    let empty = candidate_of(&mut rig, &template(1, Vec::new(), true), 6, 50);
    let at_once = Candidate { template_clock: 0, ..empty };
    assert_eq!(
        rig.requires(Body::Candidate(at_once.clone())),
        Some(("template_table", Offset::ZERO)),
        "offset 0 is there"
    );
    let mut bare = self::rig();
    assembled(&mut bare, &at_once);
    assert!(KIND.inputs.iter().all(|input| input.priority), "its lane goes first");
    assert!(KIND.lookups == ["template_table"] && KIND.state.is_empty());
}

/// P1: a candidate that no node would take is told, not sent on; the next one is not held up.
#[test]
fn p1_a_candidate_that_makes_no_block_is_left_out() {
    let mut rig = rig();
    let good = candidate_of(&mut rig, &template(1, transactions(3, true), true), 5, 1);
    let changes: [fn(&mut Candidate); 5] = [
        |candidate| candidate.template_id = 99,
        |candidate| candidate.template_id = 0,
        |candidate| candidate.header = candidate.header.slice(1..),
        |candidate| candidate.coinbase = candidate.coinbase.slice(..40),
        |candidate| candidate.segwit = false,
    ];
    for change in changes {
        let mut wrong = good.clone();
        change(&mut wrong);
        assert_eq!(rig.give("in", at(1), Body::Candidate(wrong)), []);
        assembled(&mut rig, &good);
    }
}

#[test]
fn trap_02_a_candidate_of_a_forgotten_tip_gets_its_template_back() {
    let mut rig = rig();
    let candidates: Vec<Candidate> = (0..6)
        .map(|tip| {
            candidate_of(
                &mut rig,
                &template(tip, transactions(2 + u64::from(tip), true), true),
                u64::from(tip) + 1,
                1 + u64::from(tip) * 100,
            )
        })
        .collect();
    for recent in &candidates[2..] {
        assert!(!rig.has_forgotten("template_table", recent.template_clock));
        assembled(&mut rig, recent);
    }
    for old in candidates[..2].iter().chain(&candidates[..1]) {
        assert!(rig.has_forgotten("template_table", old.template_clock));
        let clock = old.template_clock;
        assert!(!rig.recall("template_table", clock, clock), "its beginning is further back");
        assert!(rig.recall("template_table", 1, clock));
        assert!(!rig.has_forgotten("template_table", clock));
        assembled(&mut rig, old);
    }
    assembled(&mut rig, &candidates[5]);
    assert_eq!(rig.give("in", at(1), Body::Candidate(candidates[1].clone())), [], "not recalled: no wrong block");
}

/// A log that has trimmed the beginning of an era: the table begins with the next one.
#[test]
fn chunks_without_their_beginning_are_passed_over() {
    let mut rig = rig();
    let trimmed = template(1, transactions(3, true), true);
    for (offset, chunk) in (1..).zip(chunks(&trimmed, 1, true, 100, |_| false)).skip(1) {
        rig.apply("template_table", offset, at(0), Body::TemplateChunk(chunk)).unwrap();
    }
    let later = chunks(&trimmed, 2, false, 10_000, |_| true).remove(0);
    rig.apply("template_table", 90, at(0), Body::TemplateChunk(later)).unwrap();
    let next = candidate_of(&mut rig, &template(2, transactions(3, true), true), 3, 100);
    assembled(&mut rig, &next);
}

#[test]
fn p1_a_record_of_another_kind_stops_it() {
    let mut rig = rig();
    let error = rig.give_of("in", (0, 1), at(1), Body::Submission(Submission::default())).unwrap_err();
    assert!(error.to_string().contains("assemble cannot read a record of kind submission"), "{error}");
}
