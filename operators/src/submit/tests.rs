use sluice_mining::node::ChainStatus;
use sluice_proto::Body;
use sluice_proto::v1::{BlockOutcome, BlockStatus, Job, SolvedBlock};
use sluice_topology::{Externals, Key};

use super::*;
use crate::testing::Rig;
use crate::testing::nodes::{Says, ScriptedNodes};
use crate::testing::records::{at, job, solved};

/// Confirmations that settle a block in these tests.
const MATURITY: u32 = 10;

fn rig() -> (Rig, Arc<ScriptedNodes>) {
    let nodes = Arc::new(ScriptedNodes::default());
    let mut externals = Externals::default();
    externals.insert::<Arc<dyn BlockNodes>>(nodes.clone());
    externals.insert(Maturity(MATURITY));
    (Rig::with(&KIND, &[], externals), nodes)
}

const fn hash(number: u8) -> [u8; 32] {
    [number; 32]
}

fn block(rig: &mut Rig, number: u8) -> Vec<(u8, BlockStatus)> {
    steps(rig, "in", Body::SolvedBlock(solved(number, at(u64::from(number)))))
}

/// A job, on a new tip or not.
fn tip(rig: &mut Rig, clean: bool) -> Vec<(u8, BlockStatus)> {
    steps(rig, "tips", Body::Job(Job { clean, ..job(1, 1) }))
}

/// Numbers and statuses of the outcomes that a record leads to.
fn steps(rig: &mut Rig, port: &'static str, body: Body) -> Vec<(u8, BlockStatus)> {
    outcomes(rig, port, body).iter().map(|outcome| (outcome.hash[0], outcome.status())).collect()
}

fn outcomes(rig: &mut Rig, port: &'static str, body: Body) -> Vec<BlockOutcome> {
    let out = rig.give(port, at(777), body).into_iter();
    out.map(|emission| match emission.body {
        Body::BlockOutcome(outcome) => {
            assert_eq!(
                (emission.port, emission.key, emission.event_time),
                ("out", Key::Bytes(outcome.hash.clone()), at(777))
            );
            outcome
        }
        other => panic!("{other:?}"),
    })
    .collect()
}

#[test]
fn an_outcome_carries_all_that_the_ledger_needs() {
    let (mut rig, nodes) = rig();
    nodes.say(hash(5), &[Says::Refuses, Says::Takes, Says::Nothing]);
    let sent = solved(5, at(3));
    let found = outcomes(&mut rig, "in", Body::SolvedBlock(sent.clone()));
    let SolvedBlock { hash, height, coinbase_value, nbits, account, worker, found_ns, .. } = sent;
    let answers: Vec<_> = found[0].nodes.iter().map(|node| (&*node.node, node.accepted, node.reached)).collect();
    assert_eq!(answers, [("node1", false, true), ("node2", true, true), ("node3", false, false)]);
    let status = BlockStatus::Accepted.into();
    let nodes = found[0].nodes.clone();
    let expected = BlockOutcome {
        hash,
        status,
        height,
        coinbase_value,
        nbits,
        account,
        worker,
        found_ns,
        nodes,
        confirmations: 0,
    };
    assert_eq!(found, [expected]);
}

#[test]
fn one_node_is_enough_and_none_is_a_refusal() {
    let (mut rig, nodes) = rig();
    nodes.say(hash(1), &[Says::Refuses, Says::Refuses, Says::Takes]);
    nodes.say(hash(2), &[Says::Nothing, Says::Refuses]);
    assert_eq!(block(&mut rig, 1), [(1, BlockStatus::Accepted)]);
    assert_eq!(block(&mut rig, 2), [(2, BlockStatus::Refused)]);
    tip(&mut rig, true);
    assert_eq!(nodes.take_asked(), [hash(1), hash(2)], "what is refused is not settled");
}

/// Ours that came first is known to the network: the nodes must not turn to the second one.
#[test]
fn trap_15_a_second_block_of_ours_at_a_height_does_not_replace_the_first() {
    let (mut rig, nodes) = rig();
    let send = |rig: &mut Rig, number, height| {
        let block = SolvedBlock { height, ..solved(number, at(u64::from(number))) };
        outcomes(rig, "in", Body::SolvedBlock(block));
        nodes.take_preferred()
    };
    for number in [1, 2, 3, 4, 5] {
        nodes.say(hash(number), &[Says::Takes]);
    }
    nodes.say(hash(6), &[Says::Refuses]);
    assert_eq!(send(&mut rig, 1, 200), [hash(1)]);
    assert_eq!(send(&mut rig, 2, 200), [[0; 32]; 0]);
    assert_eq!(send(&mut rig, 3, 201), [hash(3)], "another height");
    rig.commit();
    rig.restart(&[]);
    assert_eq!(send(&mut rig, 4, 200), [[0; 32]; 0], "also after a start");
    // All of ours have lost their place to a rival: then the next one may have it.
    for number in [1, 2, 4] {
        nodes.stands(hash(number), Some(ChainStatus::Inactive { rival_confirmations: 1 }));
    }
    tip(&mut rig, true);
    assert_eq!(send(&mut rig, 5, 200), [hash(5)]);
    assert_eq!(send(&mut rig, 6, 202), [hash(6)]);
}

/// B1: a block that no node could be reached for is sent again with everything that comes, until one answers.
#[test]
fn b1_a_block_that_reached_nobody_is_sent_again() {
    let (mut rig, nodes) = rig();
    assert_eq!(block(&mut rig, 1), []);
    assert_eq!(nodes.take_submitted(), [hash(1)]);
    rig.commit();
    rig.restart(&[]);
    nodes.say(hash(2), &[Says::Takes]);
    assert_eq!(block(&mut rig, 2), [(2, BlockStatus::Accepted)]);
    assert_eq!(nodes.take_submitted(), [hash(2), hash(1)], "the new one first");
    assert_eq!(tip(&mut rig, false), []);
    assert_eq!(block(&mut rig, 1), [], "repeated, and tried once");
    assert_eq!(nodes.take_submitted(), [hash(1); 2]);
    nodes.say(hash(1), &[Says::Nothing, Says::Takes]);
    assert_eq!(tip(&mut rig, false), [(1, BlockStatus::Accepted)], "any job will do");
    assert_eq!(tip(&mut rig, true), []);
    assert_eq!((nodes.take_submitted(), rig.rows("unsent")), (vec![hash(1)], 0));
    assert_eq!(nodes.take_asked(), [hash(1), hash(2)]);
}

#[test]
fn a_block_is_sent_once_for_its_hash() {
    let (mut rig, nodes) = rig();
    nodes.say(hash(1), &[Says::Takes]);
    nodes.say(hash(2), &[Says::Refuses]);
    for number in [1, 2] {
        assert_eq!(block(&mut rig, number).len(), 1);
        assert_eq!(block(&mut rig, number), []);
        rig.commit();
        rig.restart(&[]);
        assert_eq!(block(&mut rig, number), []);
    }
    assert_eq!(nodes.take_submitted(), [hash(1), hash(2)]);
}

/// A crash before the commit sends it again: the node has it and says so, and the outcome is the same.
#[test]
fn s2_a_crash_before_the_commit_repeats_the_outcome() {
    let (mut rig, nodes) = rig();
    nodes.say(hash(1), &[Says::Takes]);
    let first = block(&mut rig, 1);
    rig.restart(&[]);
    assert_eq!(block(&mut rig, 1), first);
    assert_eq!(nodes.take_submitted(), [hash(1); 2]);
}

#[test]
fn a_block_is_followed_to_its_confirmation() {
    let (mut rig, nodes) = rig();
    nodes.say(hash(1), &[Says::Takes]);
    block(&mut rig, 1);
    let mut at_depth = |confirmations| {
        nodes.stands(hash(1), Some(ChainStatus::Active { confirmations }));
        tip(&mut rig, true)
    };
    assert_eq!(at_depth(1), [(1, BlockStatus::Active)], "told once after a start");
    for confirmations in 2..MATURITY {
        assert_eq!(at_depth(confirmations), []);
    }
    assert_eq!(at_depth(MATURITY), [(1, BlockStatus::Confirmed)]);
    assert_eq!(at_depth(MATURITY + 1), []);
    assert_eq!(nodes.take_asked().len() as u32, MATURITY, "a settled block is not asked about any more");
    assert_eq!(rig.rows("open"), 0);
}

#[test]
fn a_block_may_leave_the_chain_and_come_back_or_be_buried() {
    let (mut rig, nodes) = rig();
    nodes.say(hash(1), &[Says::Takes]);
    nodes.say(hash(2), &[Says::Takes]);
    block(&mut rig, 1);
    block(&mut rig, 2);
    nodes.stands(hash(2), Some(ChainStatus::Active { confirmations: 1 }));
    let mut one = |status| {
        nodes.stands(hash(1), status);
        tip(&mut rig, true)
    };
    let behind = |rival_confirmations| Some(ChainStatus::Inactive { rival_confirmations });
    assert_eq!(one(behind(1)), [(1, BlockStatus::Inactive), (2, BlockStatus::Active)]);
    assert_eq!(one(behind(2)), [], "told once");
    assert_eq!(one(Some(ChainStatus::Active { confirmations: 4 })), [(1, BlockStatus::Active)]);
    assert_eq!(one(Some(ChainStatus::Active { confirmations: 5 })), []);
    assert_eq!(one(behind(3)), [(1, BlockStatus::Inactive)]);
    assert_eq!(one(None), [], "nodes that do not answer change nothing");
    assert_eq!(one(Some(ChainStatus::Unknown)), []);
    assert_eq!(one(behind(MATURITY - 1)), []);
    assert_eq!(one(behind(MATURITY)), [(1, BlockStatus::Orphaned)]);
    assert_eq!(one(Some(ChainStatus::Active { confirmations: 1 })), []);
}

/// A crash between append and commit, and other answers behind it: what stays in the log is corrected at the next tip,
/// although it is no news for the state.
#[test]
fn m1_the_place_of_each_open_block_is_told_after_a_start() {
    let (mut rig, nodes) = rig();
    let behind = Some(ChainStatus::Inactive { rival_confirmations: 1 });
    nodes.say(hash(1), &[Says::Takes]);
    block(&mut rig, 1);
    rig.commit();
    nodes.stands(hash(1), behind);
    assert_eq!(tip(&mut rig, true), [(1, BlockStatus::Inactive)]);
    rig.restart(&[]);
    nodes.stands(hash(1), None);
    assert_eq!(tip(&mut rig, true), [], "not told as long as nobody knows");
    nodes.stands(hash(1), Some(ChainStatus::Active { confirmations: 2 }));
    let before = rig.digests();
    assert_eq!(tip(&mut rig, true), [(1, BlockStatus::Active)]);
    assert_eq!(rig.digests(), before);
    assert_eq!(tip(&mut rig, true), []);
    nodes.stands(hash(1), behind);
    assert_eq!(tip(&mut rig, true), [(1, BlockStatus::Inactive)]);
    rig.commit();
    rig.restart(&[]);
    assert_eq!(tip(&mut rig, true), [(1, BlockStatus::Inactive)], "again, since the commit could have been missing");
    assert_eq!(tip(&mut rig, true), []);
}

/// Accepted by a node before a crash, refused by those that were reached after it: it is followed all the same, or its
/// credits would be pending for ever.
#[test]
fn m1_a_refused_block_is_followed_until_it_is_settled() {
    for (stands, end) in [
        (Some(ChainStatus::Active { confirmations: MATURITY }), BlockStatus::Confirmed),
        (Some(ChainStatus::Inactive { rival_confirmations: MATURITY }), BlockStatus::Orphaned),
        (Some(ChainStatus::Unknown), BlockStatus::Orphaned),
    ] {
        let (mut rig, nodes) = rig();
        nodes.say(hash(1), &[Says::Takes]);
        assert_eq!(block(&mut rig, 1), [(1, BlockStatus::Accepted)]);
        rig.restart(&[]);
        nodes.say(hash(1), &[Says::Nothing, Says::Refuses]);
        let sent = outcomes(&mut rig, "in", Body::SolvedBlock(solved(1, at(1)))).remove(0);
        assert_eq!(sent.status(), BlockStatus::Refused);
        let mut at_height = |height| steps(&mut rig, "tips", Body::Job(Job { clean: true, height, ..job(1, 1) }));
        for away in [ChainStatus::Unknown, ChainStatus::Inactive { rival_confirmations: MATURITY - 1 }] {
            nodes.stands(hash(1), Some(away));
            assert_eq!(at_height(sent.height + MATURITY - 1), [], "no news of a refused block: {away:?}");
        }
        nodes.stands(hash(1), stands);
        assert_eq!(at_height(sent.height + MATURITY), [(1, end)]);
        assert_eq!(at_height(sent.height + MATURITY + 1), []);
        assert_eq!(rig.rows("open"), 0);
    }
}

#[test]
fn a_refused_block_that_is_in_the_chain_after_all_is_told() {
    let (mut rig, nodes) = rig();
    nodes.say(hash(1), &[Says::Refuses]);
    assert_eq!(block(&mut rig, 1), [(1, BlockStatus::Refused)]);
    nodes.stands(hash(1), Some(ChainStatus::Active { confirmations: 1 }));
    assert_eq!(tip(&mut rig, true), [(1, BlockStatus::Active)]);
    assert_eq!(tip(&mut rig, true), []);
}

#[test]
fn a_confirmation_says_how_deep_and_keeps_the_rest() {
    let (mut rig, nodes) = rig();
    nodes.say(hash(1), &[Says::Takes]);
    let accepted = outcomes(&mut rig, "in", Body::SolvedBlock(solved(1, at(1)))).remove(0);
    nodes.stands(hash(1), Some(ChainStatus::Active { confirmations: 40 }));
    let confirmed = outcomes(&mut rig, "tips", Body::Job(Job { clean: true, ..job(1, 1) }));
    let status = BlockStatus::Confirmed.into();
    assert_eq!(confirmed, [BlockOutcome { status, confirmations: 40, nodes: Vec::new(), ..accepted }]);
}

#[test]
fn a_job_without_a_new_tip_asks_nothing() {
    let (mut rig, nodes) = rig();
    nodes.say(hash(1), &[Says::Takes]);
    block(&mut rig, 1);
    tip(&mut rig, false);
    assert_eq!(nodes.take_asked(), [[0; 32]; 0]);
    tip(&mut rig, true);
    assert_eq!(nodes.take_asked(), [hash(1)]);
}

/// B1: blocks go before tips, and nothing else is waited for.
#[test]
fn b1_blocks_have_their_own_lane() {
    let priority: Vec<_> = KIND.inputs.iter().map(|input| (input.name, input.priority)).collect();
    assert_eq!(priority, [("in", true), ("tips", false)]);
    let (rig, _) = rig();
    assert_eq!(rig.requires(Body::SolvedBlock(solved(1, at(1)))), None);
}

#[test]
fn what_it_needs_must_be_lent() {
    for missing in ["no Bitcoin node", "no maturity"] {
        let mut externals = Externals::default();
        if missing == "no maturity" {
            externals.insert::<Arc<dyn BlockNodes>>(Arc::new(ScriptedNodes::default()));
        }
        let error = crate::testing::build(&KIND, &Default::default(), &externals).err().unwrap().to_string();
        assert!(error.contains(missing), "{error}");
    }
}

#[test]
fn p1_a_hash_that_is_none_stops_it() {
    let (mut rig, _) = rig();
    let wrong = SolvedBlock { hash: Bytes::from_static(b"short"), ..solved(1, at(1)) };
    let error = rig.give_of("in", (0, 1), at(1), Body::SolvedBlock(wrong)).unwrap_err();
    assert!(error.to_string().contains("5 bytes"), "{error}");
}
