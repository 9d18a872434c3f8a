//! How rewards are shared out.

use std::fmt;

use sluice_mining::Sats;

use crate::error::{LedgerError, Result};

/// Largest PPLNS window, in expected blocks.
pub const MAX_WINDOW: u32 = 1000;

/// The rules a block's reward is shared out by. Each change is stored as a new version, valid for blocks found from
/// the next slice on; a credit names its version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Who gets what is left after the fee.
    pub scheme: Scheme,
    /// The pool's fee.
    pub fee: BasisPoints,
}

/// A version of the rules, as a ledger has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleVersion {
    /// Its number, from 1.
    pub version: u32,
    /// The rules.
    pub rules: Rules,
    /// Valid for blocks found in this slice or later.
    pub from_slice: u64,
    /// Windows never reach below this slice: what was gone when the rules came into force stays out of their windows,
    /// so that a longer window does not depend on when old slices were removed.
    pub floor: u64,
}

/// A reward scheme.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Pay per last N shares: by score in the last `window` expected blocks, up to and with the block's slice.
    Pplns {
        /// Length of the window in expected blocks, 1 to [`MAX_WINDOW`].
        window: u32,
    },
    /// The finder takes all.
    Solo,
}

impl Scheme {
    /// Name as in settings and in the database.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pplns { .. } => "pplns",
            Self::Solo => "solo",
        }
    }

    /// Expected blocks in the window; 0 where the scheme has none.
    pub const fn window(self) -> u32 {
        match self {
            Self::Pplns { window } => window,
            Self::Solo => 0,
        }
    }

    /// The scheme of this name.
    ///
    /// # Errors
    /// If there is no such scheme, or its window is not 1 to [`MAX_WINDOW`].
    pub fn new(name: &str, window: u64) -> Result<Self> {
        match (name, u32::try_from(window)) {
            ("solo", _) => Ok(Self::Solo),
            ("pplns", Ok(window)) if (1..=MAX_WINDOW).contains(&window) => Ok(Self::Pplns { window }),
            ("pplns", _) => Err(LedgerError::Inconsistent(format!(
                "a PPLNS window is 1 to {MAX_WINDOW} expected blocks, not {window}"
            ))),
            _ => Err(LedgerError::Inconsistent(format!("no reward scheme is called '{name}'; use pplns or solo"))),
        }
    }
}

/// Hundredths of a percent, 0 to 10000.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct BasisPoints(u32);

impl BasisPoints {
    /// All of it.
    pub const WHOLE: u32 = 10_000;

    /// This many hundredths of a percent; `None` above 10000.
    pub fn new(value: u64) -> Option<Self> {
        u32::try_from(value).ok().filter(|value| *value <= Self::WHOLE).map(Self)
    }

    /// Hundredths of a percent.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// floor(amount * points / 10000): computed once per reward, never more than the amount.
    pub fn of(self, amount: Sats) -> Sats {
        let part = u128::from(amount.get()) * u128::from(self.0) / u128::from(Self::WHOLE);
        u64::try_from(part).ok().and_then(Sats::new).unwrap_or(amount)
    }
}

impl fmt::Display for BasisPoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02} %", self.0 / 100, self.0 % 100)
    }
}
