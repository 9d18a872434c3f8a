use bytes::Bytes;
use proptest::prelude::*;
use sluice_proto::Body;
use sluice_proto::v1::{Reason, Verdict};

use super::*;
use crate::testing::records::{at, tick, verdict};
use crate::testing::{Rig, to};

/// Reasons of the verdicts on `out` and the port of the copy, for each of `verdicts`.
fn run(rig: &mut Rig, verdicts: impl IntoIterator<Item = Verdict>) -> Vec<(Reason, &'static str)> {
    let one = |verdict: Verdict| {
        let out = rig.give("in", at(verdict.origin_offset), Body::Verdict(verdict.clone()));
        assert_eq!((out.len(), out[1].port), (2, "out"));
        assert_eq!(out[0].body, out[1].body, "a copy");
        assert_eq!((&out[0].key, &out[1].key), (&Key::session(verdict.session), &Key::session(verdict.session)));
        match &out[1].body {
            Body::Verdict(judged) => (judged.reason(), out[0].port),
            other => panic!("{other:?}"),
        }
    };
    verdicts.into_iter().map(one).collect()
}

fn of_job(job_id: u64, number: u64) -> Verdict {
    Verdict { job_id, ..verdict(1, number, Reason::Accepted) }
}

#[test]
fn trap_06_a_header_counts_once_whoever_sends_it() {
    let mut rig = Rig::new(&KIND);
    let verdicts =
        [(1, 5), (1, 5), (2, 5), (2, 6), (1, 6)].map(|(session, hash)| verdict(session, hash, Reason::Accepted));
    let (new, again) = ((Reason::Accepted, "valid"), (Reason::Duplicate, "rejected"));
    assert_eq!(run(&mut rig, verdicts), [new, again, again, new, again]);
    assert_eq!(rig.rows("headers"), 1);
}

/// Two jobs never give one header; should a hash come back under another job, it is that job's.
#[test]
fn headers_belong_to_their_job() {
    let mut rig = Rig::new(&KIND);
    let expected = [Reason::Accepted, Reason::Accepted, Reason::Duplicate];
    assert_eq!(run(&mut rig, [of_job(1, 5), of_job(2, 5), of_job(1, 5)]).map_reasons(), expected);
}

trait Reasons {
    fn map_reasons(self) -> Vec<Reason>;
}

impl Reasons for Vec<(Reason, &'static str)> {
    fn map_reasons(self) -> Vec<Reason> {
        self.into_iter().map(|(reason, _)| reason).collect()
    }
}

#[test]
fn what_was_rejected_takes_no_place() {
    let mut rig = Rig::new(&KIND);
    let verdicts = [
        (Reason::LowDifficulty, "rejected"),
        (Reason::Stale, "stale"),
        (Reason::JobNotFound, "rejected"),
        (Reason::NtimeTooOld, "rejected"),
        (Reason::VersionMask, "rejected"),
        (Reason::Accepted, "valid"),
        (Reason::Stale, "stale"),
    ];
    assert_eq!(run(&mut rig, verdicts.map(|(reason, _)| verdict(1, 5, reason))), verdicts, "each stays what it was");
    assert_eq!(rig.rows("headers"), 1);
}

#[test]
fn headers_go_with_their_job_and_stay_gone() {
    let mut rig = Rig::new(&KIND);
    run(&mut rig, (0..30).map(|n| of_job(1 + n % 3, n)));
    assert_eq!(rig.rows("headers"), 3);
    rig.commit();
    // Job 1 can no longer be cited.
    run(&mut rig, [Verdict { live_from_job: 2, ..of_job(3, 100) }]);
    assert_eq!(rig.rows("headers"), 2);
    // A verdict that was late in coming does not bring it back, nor forget more.
    run(&mut rig, [Verdict { live_from_job: 1, ..of_job(3, 101) }]);
    assert_eq!(rig.rows("headers"), 2);
    rig.commit();
    rig.restart(&[]);
    let (new, again) = (Reason::Accepted, Reason::Duplicate);
    assert_eq!(run(&mut rig, [of_job(3, 100), of_job(2, 1), of_job(3, 102)]).map_reasons(), [again, again, new]);
    run(&mut rig, [Verdict { live_from_job: 4, ..of_job(4, 103) }]);
    assert_eq!(rig.rows("headers"), 1);
}

/// A copy before a crash is none after it, if the crash undid it: the batch comes again.
#[test]
fn s2_a_batch_that_is_repeated_gives_the_same() {
    let mut rig = Rig::new(&KIND);
    run(&mut rig, [of_job(1, 1)]);
    rig.commit();
    let first = run(&mut rig, [of_job(1, 1), of_job(1, 2), of_job(1, 2)]);
    rig.restart(&[]);
    assert_eq!(run(&mut rig, [of_job(1, 1), of_job(1, 2), of_job(1, 2)]), first);
}

#[test]
fn ticks_go_on_to_out_only() {
    let mut rig = Rig::new(&KIND);
    let out = rig.give_of("in", (2, 8), at(1), Body::Tick(tick(1, 1))).unwrap();
    assert_eq!((out.len(), &out[0].key), (1, &Key::Partition(2)));
    assert_eq!(to("out", &out), [Body::Tick(tick(1, 1))]);
}

#[test]
fn p1_an_accepted_share_without_a_hash_stops_it() {
    let mut rig = Rig::new(&KIND);
    let broken = Verdict { header_hash: Bytes::from_static(b"short"), ..verdict(1, 1, Reason::Accepted) };
    let error = rig.give_of("in", (0, 1), at(1), Body::Verdict(broken.clone())).unwrap_err();
    assert!(error.to_string().contains("5 bytes"), "{error}");
    let unknown = Verdict { header_hash: Bytes::new(), ..verdict(1, 1, Reason::JobNotFound) };
    assert_eq!(run(&mut rig, [unknown]), [(Reason::JobNotFound, "rejected")], "a rejected one needs none");
}

proptest! {
    /// Where batches end, and that the operator starts again in between, shows neither in the verdicts nor in the state,
    /// whether or not jobs expire meanwhile.
    #[test]
    fn s2_batches_do_not_show(
        shares in proptest::collection::vec((0_u64..3, 0_u64..150, prop::bool::weighted(0.02)), 1..400),
        ends in proptest::collection::vec((1_usize..120, any::<bool>()), 0..12),
    ) {
        let live = |from: &mut u64, (behind, number, expires): (u64, u64, bool)| {
            *from += u64::from(expires);
            Some(Verdict { live_from_job: *from, ..of_job(*from + behind, number) })
        };
        let shares: Vec<Verdict> = shares.into_iter().scan(1, live).collect();
        let mut whole = Rig::new(&KIND);
        let expected = run(&mut whole, shares.iter().cloned());
        let (mut cut, mut out, mut rest) = (Rig::new(&KIND), Vec::new(), &shares[..]);
        for (length, restart) in ends.into_iter().chain([(shares.len(), false)]) {
            let (batch, left) = rest.split_at(length.min(rest.len()));
            out.extend(run(&mut cut, batch.iter().cloned()));
            cut.commit();
            if restart {
                cut.restart(&[]);
            }
            rest = left;
        }
        prop_assert_eq!(out, expected);
        prop_assert_eq!(cut.digests(), whole.digests());
    }
}
