//! Double entry: every movement of money is a list of transfers from one account to another, so that the sum over all
//! accounts is zero by construction (invariant M1). Pure.

use std::fmt;

use sluice_mining::Sats;
use sluice_proto::EventTime;

use crate::error::{LedgerError, Result};
use crate::schemes::Reward;

/// What an account is for. Those of the pool have no owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AccountKind {
    /// Asset: coinbases that can't be spent yet.
    CoinbaseImmature,
    /// Asset: coinbases that can be spent.
    CoinbaseMature,
    /// Owed to a miner once its block is mature.
    MinerPending,
    /// Owed to a miner.
    MinerAvailable,
    /// The pool's fees of blocks that are not mature.
    FeePending,
    /// The pool's fees.
    FeeAvailable,
}

impl AccountKind {
    /// All kinds.
    pub const ALL: [Self; 6] = [
        Self::CoinbaseImmature,
        Self::CoinbaseMature,
        Self::MinerPending,
        Self::MinerAvailable,
        Self::FeePending,
        Self::FeeAvailable,
    ];

    /// Name as in the database.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CoinbaseImmature => "coinbase_immature",
            Self::CoinbaseMature => "coinbase_mature",
            Self::MinerPending => "miner_pending",
            Self::MinerAvailable => "miner_available",
            Self::FeePending => "fee_pending",
            Self::FeeAvailable => "fee_available",
        }
    }

    /// Debits raise its balance (an asset); otherwise credits do.
    pub const fn is_asset(self) -> bool {
        matches!(self, Self::CoinbaseImmature | Self::CoinbaseMature)
    }
}

/// An account of the ledger.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Account {
    /// What it is for.
    pub kind: AccountKind,
    /// The miner it belongs to; empty for the pool's own.
    pub owner: String,
}

impl Account {
    fn pool(kind: AccountKind) -> Self {
        Self { kind, owner: String::new() }
    }

    fn of(kind: AccountKind, owner: &str) -> Self {
        Self { kind, owner: owner.to_owned() }
    }
}

/// Moves an amount from one account to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Is debited.
    pub debit: Account,
    /// Is credited.
    pub credit: Account,
    /// How much; more than 0.
    pub amount: Sats,
}

/// Why money moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EntryKind {
    /// A block's reward is shared out.
    Credit,
    /// A block is mature.
    Mature,
    /// A block is orphaned.
    Reverse,
}

impl EntryKind {
    /// Name as in the database.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Credit => "credit",
            Self::Mature => "mature",
            Self::Reverse => "reverse",
        }
    }
}

impl fmt::Display for EntryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Transfers that belong together, posted once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Why.
    pub kind: EntryKind,
    /// Hash of the block, internal order.
    pub block: [u8; 32],
    /// When it happened: for a credit, when the block was found; else the event time of the outcome.
    pub time: EventTime,
    /// The transfers.
    pub transfers: Vec<Transfer>,
}

impl Entry {
    /// Idempotency key: the database takes each key once.
    pub fn key(&self) -> String {
        format!("{}:{}", self.kind, hex::encode(self.block))
    }

    /// Sum of what is debited from (or, with the same result, credited to) all accounts.
    pub fn total(&self) -> Option<Sats> {
        self.transfers.iter().try_fold(Sats::ZERO, |sum, transfer| sum.checked_add(transfer.amount))
    }
}

/// Shares a reward out: pending for the miners and the pool.
///
/// # Errors
/// If the parts do not sum to the value.
pub fn credit(block: [u8; 32], time: EventTime, reward: &Reward) -> Result<Entry> {
    reward.check()?;
    let asset = Account::pool(AccountKind::CoinbaseImmature);
    let fee = (Account::pool(AccountKind::FeePending), reward.fee);
    let parts = reward.parts.iter().map(|part| (Account::of(AccountKind::MinerPending, &part.account), part.amount));
    let transfers = std::iter::once(fee)
        .chain(parts)
        .filter(|(_, amount)| *amount != Sats::ZERO)
        .map(|(credit, amount)| Transfer { debit: asset.clone(), credit, amount })
        .collect();
    let entry = Entry { kind: EntryKind::Credit, block, time, transfers };
    match entry.total() {
        Some(total) if total == reward.value => Ok(entry),
        _ => Err(LedgerError::Inconsistent(format!("the entry {} does not sum to {}", entry.key(), reward.value))),
    }
}

/// Takes back all that [`credit`] posted, by the mirrored transfers.
pub fn reverse(block: [u8; 32], time: EventTime, credited: &[Transfer]) -> Entry {
    let mirrored = credited.iter().map(|transfer| Transfer {
        debit: transfer.credit.clone(),
        credit: transfer.debit.clone(),
        amount: transfer.amount,
    });
    Entry { kind: EntryKind::Reverse, block, time, transfers: mirrored.collect() }
}

/// Moves all that [`credit`] posted from pending to available, and the coinbase from immature to mature.
///
/// # Errors
/// If `credited` are no transfers of a credit.
pub fn mature(block: [u8; 32], time: EventTime, credited: &[Transfer]) -> Result<Entry> {
    let mut transfers = Vec::with_capacity(credited.len() + 1);
    let mut value = Sats::ZERO;
    for transfer in credited {
        let kind = match transfer.credit.kind {
            AccountKind::MinerPending => AccountKind::MinerAvailable,
            AccountKind::FeePending => AccountKind::FeeAvailable,
            other => {
                return Err(LedgerError::Inconsistent(format!("a credit to the account {}", other.name())));
            }
        };
        value = value.checked_add(transfer.amount).ok_or(LedgerError::Overflow("a reward"))?;
        let available = Account { kind, owner: transfer.credit.owner.clone() };
        transfers.push(Transfer { debit: transfer.credit.clone(), credit: available, amount: transfer.amount });
    }
    if value != Sats::ZERO {
        let (debit, credit) = (AccountKind::CoinbaseMature, AccountKind::CoinbaseImmature);
        transfers.push(Transfer { debit: Account::pool(debit), credit: Account::pool(credit), amount: value });
    }
    Ok(Entry { kind: EntryKind::Mature, block, time, transfers })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::rules::BasisPoints;
    use crate::schemes::pplns;
    use proptest::prelude::*;
    use ruint::aliases::U256;
    use std::collections::BTreeMap;

    fn reward(value: u64, fee: u64, weights: &[u64]) -> Reward {
        let weights = weights.iter().enumerate().map(|(i, w)| (format!("m{i}"), U256::from(*w))).collect();
        pplns(Sats::new(value).unwrap(), BasisPoints::new(fee).unwrap(), weights, "finder").unwrap()
    }

    /// Credits less debits of each account.
    fn balances(entries: &[Entry]) -> BTreeMap<Account, i64> {
        let mut balances = BTreeMap::new();
        for transfer in entries.iter().flat_map(|entry| &entry.transfers) {
            let amount = transfer.amount.get() as i64;
            *balances.entry(transfer.debit.clone()).or_default() -= amount;
            *balances.entry(transfer.credit.clone()).or_default() += amount;
        }
        balances
    }

    proptest! {
        /// M1: a credit moves exactly the reward, maturity exactly that again, and a reversal leaves nothing.
        #[test]
        fn entries_move_the_reward(value in 0..=2_100_000_000_000_000_u64, fee in 0..=10_000_u64,
                                   weights in proptest::collection::vec(any::<u64>(), 0..20)) {
            let reward = reward(value, fee, &weights);
            let (hash, time) = ([7; 32], EventTime::from_nanos(1));
            let credit = credit(hash, time, &reward).unwrap();
            prop_assert!(credit.transfers.iter().all(|t| t.amount.get() > 0 && t.debit != t.credit));
            let reversed = balances(&[credit.clone(), reverse(hash, time, &credit.transfers)]);
            prop_assert!(reversed.values().all(|balance| *balance == 0));
            let matured = balances(&[credit.clone(), mature(hash, time, &credit.transfers).unwrap()]);
            for (account, balance) in &matured {
                match account.kind {
                    AccountKind::CoinbaseMature => prop_assert_eq!(*balance, -(value as i64)),
                    AccountKind::MinerAvailable | AccountKind::FeeAvailable => prop_assert!(*balance > 0),
                    _ => prop_assert_eq!(*balance, 0),
                }
            }
            prop_assert_eq!(matured.values().sum::<i64>(), 0);
        }
    }

    #[test]
    fn parts_that_do_not_sum_are_refused() {
        let mut reward = reward(1000, 0, &[1, 2]);
        reward.parts[0].amount = Sats::new(1).unwrap();
        assert!(matches!(credit([0; 32], EventTime::from_nanos(0), &reward), Err(LedgerError::Inconsistent(_))));
    }
}
