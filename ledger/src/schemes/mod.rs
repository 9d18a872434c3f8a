//! Reward schemes: from a reward and the work in its window to amounts. Pure, in integers (invariant M1).

mod pplns;
mod solo;

pub use pplns::pplns;
pub use solo::solo;

use ruint::aliases::U256;
use sluice_mining::Sats;

use crate::error::{LedgerError, Result};

/// A reward, shared out: fee and parts sum to the value exactly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reward {
    /// What the block's coinbase pays: subsidy and fees of its transactions.
    pub value: Sats,
    /// The pool's fee.
    pub fee: Sats,
    /// What miners get, in order of account.
    pub parts: Vec<Part>,
}

/// What one account gets of a reward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Account.
    pub account: String,
    /// Its weight in the window; 0 where a part is not by weight.
    pub weight: U256,
    /// What it gets.
    pub amount: Sats,
}

impl Reward {
    /// Checks that fee and parts sum to the value.
    ///
    /// # Errors
    /// If they do not: a mistake in the program that must not reach the ledger.
    pub fn check(&self) -> Result<()> {
        let parts = self.parts.iter().try_fold(self.fee, |sum, part| sum.checked_add(part.amount));
        if parts == Some(self.value) {
            return Ok(());
        }
        Err(LedgerError::Inconsistent(format!("parts and fee of a reward of {} do not sum to it", self.value)))
    }
}
