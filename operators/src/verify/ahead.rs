//! Shares that come, hashed many at once (docs/adr/0021).

use std::collections::VecDeque;

use sluice_mining::{Extranonce, Hashed, JobTable};
use sluice_proto::Share;

/// How many shares are looked through for those of one job: more than are hashed at once, since jobs are mixed for a
/// while after each new one.
const WINDOW: usize = 256;

/// Shares that are remembered, at most: many reads of a task. What came first is forgotten, and hashed when its turn comes.
const MOST: usize = 65_536;

/// What the hash of a share depends on besides its job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    job_id: u64,
    extranonce: Extranonce,
    ntime: u32,
    nonce: u32,
    version: (bool, u32, u32),
}

impl Key {
    fn of(share: &Share<'_>) -> Self {
        Self {
            job_id: share.job_id,
            extranonce: Extranonce::of(*share),
            ntime: share.ntime,
            nonce: share.nonce,
            version: (share.has_version_bits, share.version_bits, share.version_mask),
        }
    }

    /// A share with this hash.
    fn share(self) -> Share<'static> {
        let Self { job_id, extranonce, ntime, nonce, version: (has_version_bits, version_bits, version_mask) } = self;
        Share {
            job_id,
            extranonce1: extranonce.one,
            extranonce2: extranonce.two,
            ntime,
            nonce,
            version_bits,
            has_version_bits,
            version_mask,
            ..Share::default()
        }
    }
}

/// Shares that will be judged, in order. All that is here is what hashing each when its turn comes would give, too: it
/// depends on the share and on the job with the id it cites, which never changes.
#[derive(Default)]
pub(super) struct Ahead {
    shares: VecDeque<(Key, Option<Hashed>)>,
    /// Those that are hashed together, and their places; kept for their memory.
    together: Vec<Share<'static>>,
    places: Vec<usize>,
}

impl Ahead {
    /// `share` will come, behind those before.
    pub(super) fn push(&mut self, share: &Share<'_>) {
        if self.shares.len() == MOST {
            self.shares.pop_front();
        }
        self.shares.push_back((Key::of(share), None));
    }

    /// Header and hash of a share whose turn has come; `None` if it was not foreseen or its job is not known.
    pub(super) fn take(&mut self, share: &Share<'_>, jobs: &JobTable) -> Option<Hashed> {
        let key = Key::of(share);
        // What is before it did not come here after all.
        while self.shares.front().is_some_and(|(first, _)| *first != key) {
            self.shares.pop_front();
        }
        if self.shares.front()?.1.is_none() {
            self.hash_first(share.job_id, jobs);
        }
        self.shares.pop_front()?.1
    }

    /// Hashes the next shares of the job.
    fn hash_first(&mut self, job_id: u64, jobs: &JobTable) {
        let Some(job) = jobs.get(job_id) else { return };
        let Self { shares, together, places } = self;
        together.clear();
        places.clear();
        let of_job = shares.iter().take(WINDOW).enumerate();
        for (place, (key, _)) in of_job.filter(|(_, (key, hashed))| key.job_id == job_id && hashed.is_none()) {
            places.push(place);
            together.push(key.share());
        }
        let mut places = places.iter();
        job.hash_all(together, |hashed| {
            if let Some(place) = places.next() {
                shares[*place].1 = Some(hashed);
            }
        });
    }
}
