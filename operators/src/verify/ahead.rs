//! Shares that come, hashed many at once (docs/adr/0021).

use std::collections::VecDeque;

use sluice_mining::{JobTable, Rolled};
use sluice_proto::Share;

/// How many shares are looked through for those of one job: more than are hashed at once, since jobs are mixed for a
/// while after each new one.
const WINDOW: usize = 256;

/// Shares that are remembered, at most: many reads of a task. What came first is forgotten, and hashed when its turn comes.
const MOST: usize = 65_536;

/// A share that is likely to come.
struct Foreseen {
    job_id: u64,
    rolled: Rolled,
    hash: Option<[u8; 32]>,
}

/// Shares that will be judged, in order. All that is here is what hashing each when its turn comes would give, too: it
/// depends on the share and on the job with the id it cites, which never changes.
#[derive(Default)]
pub(super) struct Ahead {
    shares: VecDeque<Foreseen>,
    /// Those that are hashed together, and their places; kept for their memory.
    together: Vec<Rolled>,
    places: Vec<usize>,
}

impl Ahead {
    /// `share` will come, behind those before.
    pub(super) fn push(&mut self, share: &Share<'_>) {
        if self.shares.len() == MOST {
            self.shares.pop_front();
        }
        self.shares.push_back(Foreseen { job_id: share.job_id, rolled: Rolled::of(*share), hash: None });
    }

    /// Hash of a share whose turn has come; `None` if it was not foreseen or its job is not known.
    pub(super) fn take(&mut self, share: &Share<'_>, jobs: &JobTable) -> Option<[u8; 32]> {
        let rolled = Rolled::of(*share);
        // What is before it did not come here after all.
        while self.shares.front().is_some_and(|first| first.job_id != share.job_id || first.rolled != rolled) {
            self.shares.pop_front();
        }
        if self.shares.front()?.hash.is_none() {
            self.hash_first(share.job_id, jobs);
        }
        self.shares.pop_front()?.hash
    }

    /// Hashes the next shares of the job.
    fn hash_first(&mut self, job_id: u64, jobs: &JobTable) {
        let Some(job) = jobs.get(job_id) else { return };
        let Self { shares, together, places } = self;
        together.clear();
        places.clear();
        let next = shares.iter().take(WINDOW).enumerate();
        for (place, share) in next.filter(|(_, share)| share.job_id == job_id && share.hash.is_none()) {
            places.push(place);
            together.push(share.rolled);
        }
        let mut places = places.iter();
        job.hash_all(together, |hash| {
            if let Some(place) = places.next() {
                shares[*place].hash = Some(hash);
            }
        });
    }
}
