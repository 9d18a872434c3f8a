use bytes::Bytes;
use sluice_mining::header_hash;
use sluice_proto::Body;
use sluice_proto::v1::{Job, Reason, Submission, Verdict};
use sluice_topology::Key;

use super::*;
use crate::testing::records::{GRACE_MS, Hash, KEEP_MS, MASK, at, job, mined, prepared, submission, tick};
use crate::testing::{Rig, to};

/// When job 2, on another tip, replaces job 1.
const CHANGE: u64 = 10_000;

/// Job 1 at offset 1 of the topic; job 2 on another tip at offset 2, 10 s later.
fn rig() -> (Rig, Job, Job) {
    let mut rig = Rig::new(&KIND);
    rig.lookup("job_table", Box::new(JobTableState::default()));
    let jobs = [job(1, 1), job(2, 2)];
    for (number, job) in jobs.iter().enumerate() {
        let offset = number as u64 + 1;
        rig.apply("job_table", offset, at(number as u64 * CHANGE), Body::Job(job.clone())).unwrap();
    }
    let [first, second] = jobs;
    (rig, first, second)
}

fn share(job: &Job, clock: u64, wanted: Hash) -> Submission {
    mined(&prepared(job, 1, at(0)), &submission(job, clock, 9), wanted)
}

/// The one verdict on `submission`, received at `millis`.
fn judge(rig: &mut Rig, submission: &Submission, millis: u64) -> Verdict {
    let out = rig.give("in", at(millis), Body::Submission(submission.clone()));
    assert_eq!((out.len(), out[0].port, &out[0].key), (1, "out", &Key::session(submission.session)));
    assert_eq!(out[0].event_time, at(millis), "time comes with the record");
    match &out[0].body {
        Body::Verdict(verdict) => verdict.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_verdict_carries_all_that_later_operators_need() {
    let (mut rig, first, _) = rig();
    let submitted = share(&first, 1, Hash::Share);
    rig.give("in", at(1), Body::Tick(tick(1, 1)));
    let verdict = judge(&mut rig, &submitted, 2);
    let header = prepared(&first, 1, at(0)).header(&submitted);
    let work = sluice_mining::Difficulty::MIN.work().to_parts();
    let expected = Verdict {
        reason: Reason::Accepted.into(),
        session: 9,
        account: "account4".into(),
        worker: "rig2".into(),
        job_id: 1,
        nbits: first.nbits,
        difficulty: 1,
        work_hi: work.0,
        work_lo: work.1,
        header_hash: Bytes::copy_from_slice(&header_hash(&header)),
        origin_partition: 0,
        origin_offset: 2,
        gateway: 0,
        live_from_job: 1,
        is_block: false,
    };
    assert_eq!(verdict, expected);
}

#[test]
fn shares_are_judged_at_the_difficulty_they_were_issued_with() {
    let (mut rig, first, _) = rig();
    let easy = share(&first, 1, Hash::Share);
    assert_eq!(judge(&mut rig, &easy, 1).reason(), Reason::Accepted);
    assert_eq!(judge(&mut rig, &share(&first, 1, Hash::Above), 1).reason(), Reason::LowDifficulty);
    let harder = Submission { difficulty: 1 << 24, ..easy };
    let verdict = judge(&mut rig, &harder, 1);
    assert_eq!(
        (verdict.reason(), verdict.difficulty, verdict.work_lo),
        (Reason::LowDifficulty, 1 << 24, 0x1_0001_0001)
    );
}

#[test]
fn stale_is_decided_as_of_the_job_clock_and_with_grace() {
    let (mut rig, first, second) = rig();
    let old = share(&first, 1, Hash::Share);
    assert_eq!(judge(&mut rig, &old, CHANGE + 60_000).reason(), Reason::Accepted, "the gateway did not know better");
    let old = Submission { job_clock: 2, ..old };
    let grace = u64::from(GRACE_MS);
    assert_eq!(judge(&mut rig, &old, CHANGE + grace).reason(), Reason::Accepted);
    assert_eq!(judge(&mut rig, &old, CHANGE + grace + 1).reason(), Reason::Stale);
    assert_eq!(judge(&mut rig, &share(&second, 2, Hash::Share), CHANGE + grace + 1).reason(), Reason::Accepted);
}

#[test]
fn a_job_of_the_same_tip_lives_on_for_its_keep() {
    let (mut rig, _, second) = rig();
    rig.apply("job_table", 3, at(20_000), Body::Job(Job { clean: false, ..job(3, 2) })).unwrap();
    let old = share(&second, 3, Hash::Share);
    let life = u64::from(KEEP_MS);
    assert_eq!(judge(&mut rig, &old, 20_000 + life).reason(), Reason::Accepted);
    assert_eq!(judge(&mut rig, &old, 20_000 + life + 1).reason(), Reason::JobNotFound);
}

#[test]
fn an_unknown_job_has_no_header() {
    let (mut rig, first, second) = rig();
    let unknown = Submission { job_id: 77, ..share(&first, 2, Hash::Share) };
    let verdict = judge(&mut rig, &unknown, 5);
    assert_eq!((verdict.reason(), verdict.nbits, verdict.header_hash.len()), (Reason::JobNotFound, 0, 0));
    let from_the_future = Submission { job_clock: 1, ..share(&second, 2, Hash::Share) };
    assert_eq!(judge(&mut rig, &from_the_future, 5).reason(), Reason::JobNotFound, "not there as of the job clock");
}

#[test]
fn ntime_and_version_bits_have_their_rules() {
    let (mut rig, first, _) = rig();
    let mut expect = |change: &dyn Fn(&mut Submission), reason| {
        let mut changed = submission(&first, 1, 9);
        change(&mut changed);
        let submitted = mined(&prepared(&first, 1, at(0)), &changed, Hash::Share);
        assert_eq!(judge(&mut rig, &submitted, 1).reason(), reason);
    };
    expect(&|share| share.ntime = first.min_ntime, Reason::Accepted);
    expect(&|share| share.ntime = first.min_ntime - 1, Reason::NtimeTooOld);
    expect(&|share| share.ntime = first.max_ntime, Reason::Accepted);
    expect(&|share| share.ntime = first.max_ntime + 1, Reason::NtimeTooNew);
    let bits = |share: &mut Submission, bits| {
        share.has_version_bits = true;
        share.version_bits = bits;
    };
    expect(&|share| bits(share, MASK), Reason::Accepted);
    expect(&|share| bits(share, 0), Reason::Accepted);
    expect(&|share| bits(share, 1), Reason::VersionMask);
    // A session that agreed on fewer bits than the job leaves.
    let narrow = |share: &mut Submission| {
        share.version_mask = 0x0000_2000;
        bits(share, 0x0000_6000);
    };
    expect(&narrow, Reason::VersionMask);
}

/// B1: a hash that makes a block is told whatever else is wrong with the share.
#[test]
fn b1_a_block_is_a_block_although_its_share_is_rejected() {
    let (mut rig, first, _) = rig();
    let good = share(&first, 1, Hash::Block);
    let verdict = judge(&mut rig, &good, 1);
    assert!(verdict.is_block && verdict.reason() == Reason::Accepted);
    let stale = Submission { job_clock: 2, ..good.clone() };
    let verdict = judge(&mut rig, &stale, CHANGE + 5_000);
    assert!(verdict.is_block && verdict.reason() == Reason::Stale);
    let low = Submission { difficulty: 1 << 50, ..good };
    let verdict = judge(&mut rig, &low, 1);
    assert!(verdict.is_block && verdict.reason() == Reason::LowDifficulty);
    let mut late = submission(&first, 1, 9);
    late.ntime = first.max_ntime + 1;
    let late = mined(&prepared(&first, 1, at(0)), &late, Hash::Block);
    let verdict = judge(&mut rig, &late, 1);
    assert!(verdict.is_block && verdict.reason() == Reason::NtimeTooNew);
}

#[test]
fn it_waits_for_the_table_to_be_as_far_as_the_gateway_was() {
    let (rig, first, _) = rig();
    let waits = Some(("job_table", Offset::new(7)));
    assert_eq!(rig.requires(Body::Submission(submission(&first, 7, 1))), waits);
    assert_eq!(rig.requires(Body::Tick(tick(1, 7))), waits);
    assert_eq!(rig.requires(Body::Job(first)), None);
}

/// S2: what the table learns later does not change a verdict.
#[test]
fn s2_later_jobs_change_nothing() {
    let (mut rig, first, second) = rig();
    let shares: Vec<Submission> = [(&first, 1), (&first, 2), (&second, 2)]
        .into_iter()
        .map(|(job, clock)| share(job, clock, Hash::Share))
        .collect();
    let times = [1, CHANGE + 500, CHANGE + 5_000];
    let verdicts = |rig: &mut Rig| -> Vec<Verdict> {
        let all = shares.iter().flat_map(|share| times.map(|time| (share, time)));
        all.map(|(share, time)| Verdict { origin_offset: 0, ..judge(rig, share, time) }).collect()
    };
    let before = verdicts(&mut rig);
    for id in 3..6 {
        rig.apply("job_table", id, at(20_000 + id), Body::Job(job(id, id as u8))).unwrap();
    }
    assert_eq!(verdicts(&mut rig), before);
}

/// S2: what is told to come, in part, too much of it or of jobs that are not known yet, does not change a verdict.
#[test]
fn s2_what_is_foreseen_changes_nothing() {
    let jobs: Vec<Job> = (1..=3).map(|id| job(id, 1)).collect();
    let shares: Vec<Submission> = (0..400)
        .map(|number: u64| {
            // Jobs are mixed around each new one, which no clock before has reached; job 4 does not exist.
            let (clock, back) = (1 + number / 134, number % 7 / 5);
            let job = &jobs[(clock - back.min(clock - 1)) as usize - 1];
            let share = Submission { extranonce2: number, nonce: number as u32, ..submission(job, clock, number) };
            if number % 50 == 3 { Submission { job_id: 4, ..share } } else { share }
        })
        .collect();
    let run = |foreseen: &dyn Fn(usize) -> usize| -> Vec<Verdict> {
        let mut rig = Rig::new(&KIND);
        rig.lookup("job_table", Box::new(JobTableState::default()));
        for (offset, job) in (1..).zip(&jobs) {
            rig.apply("job_table", offset, at(offset), Body::Job(job.clone())).unwrap();
        }
        let tell = |rig: &mut Rig, share: &Submission, times: usize| {
            (0..times).for_each(|_| rig.foresee(&share.into()));
        };
        for (batch, shares) in shares.chunks(150).enumerate() {
            shares.iter().enumerate().for_each(|(number, share)| tell(&mut rig, share, foreseen(batch * 150 + number)));
        }
        shares.iter().map(|share| judge(&mut rig, share, 5)).collect()
    };
    let plain = run(&|_| 0);
    assert_eq!(run(&|_| 1), plain, "all of it");
    assert_eq!(run(&|number| usize::from(number % 3 != 1)), plain, "a part");
    assert_eq!(run(&|number| number % 4), plain, "some twice and thrice");
    let unknown = plain.iter().filter(|verdict| verdict.header_hash.is_empty()).count();
    assert_eq!((unknown, plain.len()), (8, 400));
}

/// S2: how far the topic of jobs has been read does not show, nor does a restart: a job is forgotten by the job clocks of
/// the records before, not by what the table has received.
#[test]
fn s2_jobs_are_forgotten_by_job_clock() {
    let life = u64::from(KEEP_MS);
    let jobs: Vec<Job> = (1..=8).map(|id| Job { clean: false, ..job(id, 1) }).collect();
    let issued = |id: u64| id * (life * 3 / 4);
    let submitted: Vec<(u64, Submission)> = (1..=8)
        .flat_map(|clock: u64| (1..=clock).map(move |id| (clock, id)))
        .flat_map(|(clock, id)| [(clock, id), (clock.saturating_sub(1).max(1), id)])
        .map(|(clock, id)| {
            (
                issued(clock) + 5,
                mined(
                    &prepared(&jobs[id as usize - 1], id, at(0)),
                    &submission(&jobs[id as usize - 1], clock, 9),
                    Hash::Share,
                ),
            )
        })
        .collect();
    let run = |ahead: bool, restarts: bool| -> Vec<Verdict> {
        let mut rig = Rig::new(&KIND);
        rig.lookup("job_table", Box::new(JobTableState::default()));
        let mut received = 0;
        let mut receive = |rig: &mut Rig, until: u64| {
            for id in received + 1..=until {
                rig.apply("job_table", id, at(issued(id)), Body::Job(jobs[id as usize - 1].clone())).unwrap();
            }
            received = received.max(until);
        };
        if ahead {
            receive(&mut rig, 8);
        }
        let mut verdicts = Vec::new();
        for (number, (time, share)) in submitted.iter().enumerate() {
            receive(&mut rig, share.job_clock);
            verdicts.push(Verdict { origin_offset: 0, ..judge(&mut rig, share, *time) });
            if restarts && number % 3 == 0 {
                rig.commit();
                rig.restart(&[]);
                rig.rebuild_jobs();
            }
        }
        verdicts
    };
    let plain = run(false, false);
    assert_eq!(run(true, false), plain);
    assert_eq!(run(false, true), plain);
    assert_eq!(run(true, true), plain);
    let forgotten = plain.iter().filter(|verdict| verdict.nbits == 0).count();
    assert!((10..plain.len() - 10).contains(&forgotten), "{forgotten} of {}", plain.len());
}

#[test]
fn ticks_go_through_in_their_place() {
    let (mut rig, ..) = rig();
    let out = rig.give_of("in", (3, 8), at(9), Body::Tick(tick(4, 2))).unwrap();
    assert_eq!((out.len(), &out[0].key, out[0].event_time), (1, &Key::Partition(3), at(9)));
    assert_eq!(to("out", &out), [Body::Tick(tick(4, 2))]);
}

#[test]
fn p1_a_record_of_another_kind_stops_it() {
    let (mut rig, first, _) = rig();
    let error = rig.give_of("in", (2, 8), at(1), Body::Job(first)).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("kind job") && text.contains("topic.in/2 offset 1"), "{text}");
}
