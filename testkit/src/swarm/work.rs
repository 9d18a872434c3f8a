//! Jobs as the generator mines them, and shares found ahead of time.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use sluice_mining::wire::word;
use sluice_mining::{Difficulty, Target, Work};

use super::lines::SubmitLine;
use crate::miner::units::big_endian;
use crate::stratum::{Notify, Subscription};

/// Hashes of a share, at most, on average: minutes of a core. A swarm is for shares that cost next to nothing.
const HARDEST: u128 = 1 << 32;
/// Nonces tried before another extranonce2 is taken.
const NONCES: u64 = 1 << 20;

/// A share that has been found and waits to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) extranonce2: u64,
    pub(super) nonce: u32,
}

/// What kind of hash is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// One that meets the share's target.
    Share,
    /// One that does not.
    TooLow,
}

/// A job on one connection: what shares of it are made of.
pub(super) struct Mining {
    pub(super) job: Arc<Notify>,
    pub(super) line: SubmitLine,
    subscription: Subscription,
    version: u32,
    pub(super) version_bits: Option<String>,
    target: Target,
    /// Hashes that meet it are blocks; `None` where they may be sent.
    spared: Option<Target>,
    next_extranonce2: u64,
}

/// Who mines, and how.
pub(super) struct Miner<'a> {
    pub(super) user: &'a str,
    pub(super) subscription: &'a Subscription,
    /// Version bits that the pool grants.
    pub(super) mask: Option<u32>,
    pub(super) difficulty: Difficulty,
    /// Whether shares may be blocks.
    pub(super) blocks: bool,
    /// Where extranonce2 begins.
    pub(super) first_extranonce2: u64,
}

impl Mining {
    /// Prepares a job.
    ///
    /// # Errors
    /// If no share could be told from a block, and blocks are not to be sent; if shares are too hard to be found.
    pub(super) fn new(job: Arc<Notify>, miner: &Miner<'_>) -> Result<Self> {
        let target = miner.difficulty.to_target();
        let network = Target::from_compact(job.nbits).context("nbits of the job")?;
        if !miner.blocks && target.work() >= network.work() {
            bail!(
                "every share of difficulty {} would be a block of this network: lower the pool's difficulty, or allow \
                 blocks",
                miner.difficulty
            );
        }
        if target.work() > Work::new(HARDEST) {
            bail!(
                "a share of difficulty {} takes more than 2^32 hashes: lower the pool's difficulty for the swarm, or let it \
                 idle",
                miner.difficulty
            );
        }
        // Bits as a miner that rolls versions would have them: some of those granted.
        let bits = miner.mask.map(|mask| mask & 0x0aaa_a000);
        let version_bits = bits.map(word);
        let size = miner.subscription.extranonce2_size;
        let line = SubmitLine::new(miner.user, &job.job, size, &word(job.ntime), version_bits.as_deref());
        Ok(Self {
            version: job.version & !miner.mask.unwrap_or(0) | bits.unwrap_or(0),
            line,
            subscription: miner.subscription.clone(),
            version_bits,
            target,
            spared: (!miner.blocks).then_some(network),
            next_extranonce2: miner.first_extranonce2,
            job,
        })
    }

    /// Where the extranonces that were not tried begin.
    pub(super) fn next_extranonce2(&self) -> u64 {
        self.next_extranonce2
    }

    /// The next share: each has an extranonce2 of its own, as shares of fast miners have.
    pub(super) fn find(&mut self, wanted: Wanted) -> Share {
        loop {
            let extranonce2 = self.next_extranonce2;
            let size = self.subscription.extranonce2_size;
            self.next_extranonce2 = extranonce2.wrapping_add(1) & u64::MAX >> (64 - 8 * size.min(8));
            let sent = big_endian(extranonce2, size);
            let work = self.job.work(&self.subscription.extranonce1, &sent, self.job.ntime, self.version);
            // Where extranonce2 is short it comes again: with other nonces.
            let first = (extranonce2 as u32).wrapping_mul(0x9e37_79b9);
            let found = (0..NONCES).map(|count| first.wrapping_add(count as u32)).find(|nonce| {
                let hash = work.hash(*nonce);
                match wanted {
                    Wanted::Share => {
                        self.target.is_met_by(&hash) && !self.spared.is_some_and(|block| block.is_met_by(&hash))
                    }
                    Wanted::TooLow => !self.target.is_met_by(&hash),
                }
            });
            if let Some(nonce) = found {
                return Share { extranonce2, nonce };
            }
        }
    }

    /// The line of a share for a job that the pool does not have (any more).
    pub(super) fn stale_line(&self, user: &str, job: &str) -> SubmitLine {
        let size = self.subscription.extranonce2_size;
        SubmitLine::new(user, job, size, &word(self.job.ntime), self.version_bits.as_deref())
    }

    /// A share as it is recorded: what it takes to find it again in the pool's books.
    pub(super) fn describe(&self, user: &str, share: Share) -> String {
        format!(
            "{} {} {:0width$x} {} {} {} {user}",
            self.job.job,
            hex::encode(&self.subscription.extranonce1),
            share.extranonce2,
            word(self.job.ntime),
            word(share.nonce),
            self.version_bits.as_deref().unwrap_or("-"),
            width = 2 * self.subscription.extranonce2_size.min(8),
        )
    }
}
