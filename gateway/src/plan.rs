//! What a session is served with, its difficulty above all: which one each job was issued with, and what comes next.
//!
//! A share is judged at the difficulty of its job as it was issued, whatever has been decided since. A new difficulty
//! takes effect with the next job: miners apply one difficulty per notify.

use sluice_mining::{Difficulty, SILENCE};
use sluice_proto::EventTime;

use crate::GatewayConfig;
use crate::protocol::reply;

/// What a job was issued with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    /// Difficulty of its shares.
    pub(crate) difficulty: Difficulty,
    /// Version bits that may be rolled.
    pub(crate) mask: u32,
    /// Extranonce1.
    pub(crate) extranonce1: u32,
}

/// Where a difficulty comes from, the weakest first: the first difficulty of a session is the strongest there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    /// The pool's setting.
    Default,
    /// What the worker had when it was last here.
    History,
    /// What the session had before it was resumed.
    Resumed,
    /// The miner's suggestion.
    Suggested,
    /// Vardiff.
    Decided,
}

/// What a session is served with: difficulty, version mask, extranonce1.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Terms from the job of this id on, ascending.
    issued: Vec<(u64, Terms)>,
    /// Newest job issued.
    last_job: Option<u64>,
    /// When the difficulty last changed.
    since: EventTime,
    /// Difficulty from the next job on.
    wanted: Difficulty,
    /// Where it comes from.
    origin: Origin,
    /// Difficulty that the miner was told last, on this connection.
    told: Option<Difficulty>,
    /// The miner's own minimum.
    minimum: Option<Difficulty>,
    /// The least that this kind of miner takes.
    floor: Option<Difficulty>,
    /// The miner's last suggestion.
    suggested: Option<Difficulty>,
    /// A share has come.
    heard: bool,
    /// Bits that the miner can roll; 0 where version rolling is off.
    rollable: u32,
    /// The mask the miner was told last.
    mask: u32,
    /// Extranonce1 from the next job on, and the one the miner was told last.
    extranonce1: u32,
    told_extranonce1: u32,
}

impl Plan {
    /// The plan of a new connection.
    pub(crate) fn new(config: &GatewayConfig) -> Self {
        Self {
            issued: Vec::new(),
            last_job: None,
            since: EventTime::default(),
            wanted: config.difficulty,
            origin: Origin::Default,
            told: None,
            minimum: None,
            floor: None,
            suggested: None,
            heard: false,
            rollable: 0,
            mask: 0,
            extranonce1: 0,
            told_extranonce1: 0,
        }
    }

    /// Newest job issued to the session.
    pub(crate) fn last_job(&self) -> Option<u64> {
        self.last_job
    }

    /// The difficulty that has proved itself, for the next session of the same worker: `None` before the first share.
    pub(crate) fn proven(&self) -> Option<Difficulty> {
        self.heard.then_some(self.wanted)
    }

    /// The session's first extranonce1, which the miner is told in the answer to its subscription.
    pub(crate) fn subscribe(&mut self, extranonce1: u32) {
        self.extranonce1 = extranonce1;
        self.told_extranonce1 = extranonce1;
    }

    /// Another extranonce1, from the next job on.
    pub(crate) fn change_extranonce1(&mut self, extranonce1: u32) {
        self.extranonce1 = extranonce1;
    }

    /// Goes on where the session's last connection ended: jobs keep the terms they were issued with. What this
    /// connection has asked for already stays: a suggestion that is not the one of before is news.
    pub(crate) fn resume(&mut self, past: Self, config: &GatewayConfig) {
        let repeated = self.suggested.is_none() || self.suggested == past.suggested;
        if repeated {
            self.origin = Origin::Resumed;
            self.wanted = self.clamp(past.wanted, config);
        }
        self.suggested = self.suggested.or(past.suggested);
        self.issued = past.issued;
        self.last_job = past.last_job;
        self.heard = past.heard;
        self.subscribe(past.extranonce1);
    }

    /// A difficulty from somewhere else than the miner or vardiff; it counts if nothing stronger is there.
    pub(crate) fn offer(&mut self, origin: Origin, difficulty: Difficulty, config: &GatewayConfig) {
        if origin >= self.origin {
            self.origin = origin;
            self.wanted = self.clamp(difficulty, config);
        }
    }

    /// The miner suggests a difficulty. It counts until vardiff has decided for the session, since vardiff measures what
    /// the miner can only guess, and some miners repeat their guess every 30 s.
    pub(crate) fn suggest(&mut self, difficulty: Difficulty, config: &GatewayConfig) {
        if self.suggested != Some(difficulty) {
            self.offer(Origin::Suggested, difficulty, config);
        }
        self.suggested = Some(difficulty);
    }

    /// The miner's own minimum; `None` takes it back.
    pub(crate) fn set_minimum(&mut self, minimum: Option<Difficulty>, config: &GatewayConfig) {
        self.minimum = minimum;
        self.wanted = self.clamp(self.wanted, config);
    }

    /// The least that this kind of miner takes, whatever it says.
    pub(crate) fn set_floor(&mut self, floor: Difficulty, config: &GatewayConfig) {
        self.floor = Some(floor);
        self.wanted = self.clamp(self.wanted, config);
    }

    /// Vardiff's decision.
    pub(crate) fn decide(&mut self, difficulty: Difficulty, config: &GatewayConfig) {
        self.offer(Origin::Decided, difficulty, config);
    }

    /// A share has come.
    pub(crate) fn hear(&mut self) {
        self.heard = true;
    }

    /// The miner can roll `rollable`, the pool allows `pool`. Returns the mask agreed on, which holds from the newest job
    /// on: the miner may use it at once.
    pub(crate) fn configure_mask(&mut self, rollable: u32, pool: u32) -> u32 {
        self.rollable = rollable;
        self.mask = rollable & pool;
        if let (Some(job), Some(&(_, terms))) = (self.last_job, self.issued.last()) {
            self.push(job, Terms { mask: self.mask, ..terms });
        }
        self.mask
    }

    /// Issues `job`: writes what must be said before its notify, and notes its terms. Jobs before `live_from` can no
    /// longer be cited.
    pub(crate) fn issue(
        &mut self,
        job: u64,
        pool_mask: u32,
        live_from: u64,
        now: EventTime,
        config: &GatewayConfig,
        out: &mut Vec<u8>,
    ) {
        if let Some(told) = self.told {
            self.ease(told, now, config);
        }
        if self.rollable & pool_mask != self.mask {
            self.mask = self.rollable & pool_mask;
            reply::set_version_mask(out, self.mask);
        }
        if self.extranonce1 != self.told_extranonce1 {
            self.told_extranonce1 = self.extranonce1;
            reply::set_extranonce(out, self.extranonce1);
        }
        if self.told != Some(self.wanted) {
            self.since = now;
            self.told = Some(self.wanted);
            reply::set_difficulty(out, self.wanted);
        }
        self.last_job = Some(job);
        let expired = self.issued.iter().skip(1).take_while(|(from, _)| *from <= live_from).count();
        self.issued.drain(..expired);
        self.push(job, self.next_terms());
    }

    /// Terms of the next job.
    fn next_terms(&self) -> Terms {
        Terms { difficulty: self.wanted, mask: self.mask, extranonce1: self.extranonce1 }
    }

    /// Lowers what comes next if the session has been silent at `current` since it was set.
    fn ease(&mut self, current: Difficulty, now: EventTime, config: &GatewayConfig) {
        let silent = u128::from(now.nanos_since(self.since)) >= SILENCE.as_nanos();
        if !self.heard && silent && self.wanted == current {
            self.wanted = self.clamp(current.eased(), config);
        }
    }

    /// Terms from `job` on.
    fn push(&mut self, job: u64, terms: Terms) {
        match self.issued.last_mut() {
            Some((_, last)) if *last == terms => {}
            Some((from, last)) if *from == job => *last = terms,
            _ => {
                self.issued.reserve_exact(1);
                self.issued.push((job, terms));
            }
        }
    }

    /// The terms of a share of `job`. A job older than the session's first counts at the terms of the first.
    pub(crate) fn terms(&self, job: u64) -> Terms {
        let at = self.issued.partition_point(|(from, _)| *from <= job).saturating_sub(1);
        self.issued.get(at).map_or_else(|| self.next_terms(), |(_, terms)| *terms)
    }

    /// `difficulty` within the pool's range and not below the miner's own minimum and its kind's.
    fn clamp(&self, difficulty: Difficulty, config: &GatewayConfig) -> Difficulty {
        let least = self.minimum.max(self.floor).unwrap_or(difficulty);
        config.clamp(difficulty.max(least))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_mining::Chain;

    const POOL: u32 = 0x1fff_e000;

    struct Case {
        config: GatewayConfig,
        plan: Plan,
        now: u64,
    }

    impl Case {
        fn new() -> Self {
            let config = GatewayConfig::new("g", Chain::Regtest);
            Self { plan: Plan::new(&config), config, now: 1_000 }
        }

        fn issue(&mut self, job: u64, live_from: u64) -> String {
            let mut out = Vec::new();
            let now = EventTime::from_millis(self.now * 1000);
            self.plan.issue(job, POOL, live_from, now, &self.config, &mut out);
            String::from_utf8(out).unwrap()
        }

        fn difficulty(&self, job: u64) -> String {
            self.plan.terms(job).difficulty.to_string()
        }
    }

    fn whole(value: u64) -> Difficulty {
        Difficulty::from_integer(value).unwrap()
    }

    #[test]
    fn trap_04_a_share_counts_at_the_difficulty_of_its_job() {
        let mut case = Case::new();
        case.plan.hear();
        assert!(case.issue(10, 0).contains("[1024]"));
        assert_eq!(case.issue(11, 0), "", "nothing has changed");
        case.plan.decide(whole(4096), &case.config);
        assert_eq!(case.difficulty(11), "1024", "with the next job");
        assert!(case.issue(12, 0).contains("[4096]"));
        let at: Vec<_> = [5, 10, 11, 12, 99].map(|job| case.difficulty(job)).into();
        assert_eq!(at, ["1024", "1024", "1024", "4096", "4096"]);
        case.issue(13, 12);
        assert_eq!(case.plan.issued.len(), 1, "what no job can cite is forgotten");
        assert_eq!(case.difficulty(12), "4096");
    }

    #[test]
    fn a_suggestion_counts_until_vardiff_decides_and_a_minimum_always() {
        let mut case = Case::new();
        case.plan.suggest(Difficulty::parse_wire("0.00015").unwrap(), &case.config);
        assert!(case.issue(1, 0).contains("[0.0001220703125]"));
        case.plan.decide(whole(2), &case.config);
        case.plan.suggest(Difficulty::parse_wire("0.00015").unwrap(), &case.config);
        case.plan.suggest(whole(7), &case.config);
        assert!(case.issue(2, 0).contains("[2]"));
        case.plan.set_minimum(Some(whole(500)), &case.config);
        assert!(case.issue(3, 0).contains("[500]"));
        case.plan.decide(whole(3), &case.config);
        assert_eq!(case.issue(4, 0), "");
        case.plan.decide(Difficulty::MAX, &case.config);
        assert!(case.issue(5, 0).contains("[1000000000000]"), "the pool's maximum");
    }

    #[test]
    fn a_resumed_session_keeps_the_terms_of_its_jobs_and_is_told_its_difficulty_again() {
        let mut past = Case::new();
        past.plan.subscribe(7);
        past.plan.suggest(whole(2048), &past.config);
        past.issue(10, 0);
        past.plan.decide(whole(64), &past.config);
        past.issue(11, 0);
        let again = |suggestion: Option<u64>, past: Plan| {
            let mut case = Case::new();
            case.plan.configure_mask(0x00ff_e000, POOL);
            if let Some(value) = suggestion {
                case.plan.suggest(whole(value), &case.config);
            }
            case.plan.resume(past, &case.config);
            case
        };
        let mut case = again(Some(2048), past.plan);
        assert!(case.issue(11, 0).ends_with("\"params\":[64]}\n"), "a repeated suggestion is no news");
        let terms =
            [10, 11, 12].map(|job| (case.difficulty(job), case.plan.terms(job).mask, case.plan.terms(job).extranonce1));
        let expected = [("2048", 0, 7), ("64", 0x00ff_e000, 7), ("64", 0x00ff_e000, 7)];
        assert_eq!(terms, expected.map(|(difficulty, mask, one)| (difficulty.to_owned(), mask, one)));
        let mut case = again(Some(256), case.plan);
        assert!(case.issue(12, 0).contains("[256]"), "a new one is");
        assert_eq!((case.difficulty(10), case.difficulty(11)), ("2048".to_owned(), "64".to_owned()));
    }

    #[test]
    fn a_silent_session_is_made_easier_until_it_is_heard() {
        let mut case = Case::new();
        let mut seen = Vec::new();
        for job in 1..6 {
            seen.push(case.issue(job, 0));
            case.now += 30;
        }
        let text = seen.concat();
        for expected in ["[1024]", "[0.5]", "[0.000244140625]", "[0.0001220703125]"] {
            assert!(text.contains(expected), "{expected} in {text}");
        }
        assert_eq!(case.issue(6, 0), "", "not below 2^-13");
        let mut heard = Case::new();
        heard.issue(1, 0);
        heard.plan.hear();
        heard.now += 3600;
        assert_eq!(heard.issue(2, 0), "", "vardiff knows it from here on");
    }

    #[test]
    fn a_mask_holds_from_the_newest_job_on_and_the_pool_may_change_it() {
        let mut case = Case::new();
        case.issue(1, 0);
        case.issue(2, 0);
        assert_eq!(case.plan.configure_mask(0x00ff_f001, POOL), 0x00ff_e000);
        assert_eq!((case.plan.terms(1).mask, case.plan.terms(2).mask), (0, 0x00ff_e000));
        let mut out = Vec::new();
        case.plan.issue(3, 0x000f_0000, 0, EventTime::default(), &case.config, &mut out);
        assert!(String::from_utf8(out).unwrap().contains("mining.set_version_mask\",\"params\":[\"000f0000\"]"));
        assert_eq!(case.plan.terms(3).mask, 0x000f_0000);
    }
}
