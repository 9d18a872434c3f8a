//! Chains and payout addresses.

use std::fmt;
use std::str::FromStr;

use bitcoin::{Address, Network, ScriptBuf};

/// A chain of Bitcoin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Chain {
    /// The main chain.
    Main,
    /// Test network 3.
    Test,
    /// Test network 4 (BIP94).
    Testnet4,
    /// A signet, the default one or a private one (BIP325).
    Signet,
    /// A local test chain.
    Regtest,
}

impl Chain {
    /// Name as Bitcoin Core and the topology have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Test => "test",
            Self::Testnet4 => "testnet4",
            Self::Signet => "signet",
            Self::Regtest => "regtest",
        }
    }

    /// Blocks between halvings of the subsidy.
    pub const fn halving_interval(self) -> u32 {
        match self {
            Self::Regtest => 150,
            _ => 210_000,
        }
    }

    /// Whether a block at `height` has the target of the one before it, whatever their times. Test networks allow
    /// blocks of minimal difficulty, so there it is never sure; elsewhere it changes every 2016 blocks.
    pub const fn keeps_target_at(self, height: u32) -> bool {
        match self {
            Self::Regtest => true,
            Self::Main | Self::Signet => !height.is_multiple_of(2016),
            Self::Test | Self::Testnet4 => false,
        }
    }

    /// Whether every block needs a witness commitment. One without witnesses needs none (BIP141), except on a signet,
    /// whose signature is looked for there (BIP325).
    pub const fn always_commits(self) -> bool {
        matches!(self, Self::Signet)
    }

    fn network(self) -> Network {
        match self {
            Self::Main => Network::Bitcoin,
            Self::Test => Network::Testnet,
            Self::Testnet4 => Network::Testnet4,
            Self::Signet => Network::Signet,
            Self::Regtest => Network::Regtest,
        }
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name that is no chain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no chain: main, test, testnet4, signet or regtest")]
pub struct UnknownChain(String);

impl FromStr for Chain {
    type Err = UnknownChain;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        [Self::Main, Self::Test, Self::Testnet4, Self::Signet, Self::Regtest]
            .into_iter()
            .find(|chain| chain.as_str() == name)
            .ok_or_else(|| UnknownChain(name.to_owned()))
    }
}

/// Why a text is no payout address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// No address at all.
    #[error("not a Bitcoin address: {0}")]
    Malformed(String),
    /// An address of another chain.
    #[error("the address is not of the chain {0}")]
    OtherChain(Chain),
}

/// The output script that pays `address` on `chain`.
///
/// # Errors
/// If it is no address, or one of another chain.
pub fn payout_script(chain: Chain, address: &str) -> Result<ScriptBuf, AddressError> {
    let parsed = Address::from_str(address).map_err(|error| AddressError::Malformed(error.to_string()))?;
    match parsed.require_network(chain.network()) {
        Ok(address) => Ok(address.script_pubkey()),
        Err(_) => Err(AddressError::OtherChain(chain)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked_against_the_chain() {
        let main = "bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdq";
        let legacy = "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa";
        let regtest = "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080";
        assert_eq!(payout_script(Chain::Main, main).unwrap().len(), 22);
        assert_eq!(payout_script(Chain::Main, legacy).unwrap().len(), 25);
        assert_eq!(payout_script(Chain::Regtest, regtest).unwrap().len(), 22);
        assert_eq!(payout_script(Chain::Regtest, main), Err(AddressError::OtherChain(Chain::Regtest)));
        assert_eq!(payout_script(Chain::Main, regtest), Err(AddressError::OtherChain(Chain::Main)));
        assert!(matches!(payout_script(Chain::Main, "bc1qworker"), Err(AddressError::Malformed(_))));
        assert!(matches!(payout_script(Chain::Main, ""), Err(AddressError::Malformed(_))));
    }

    #[test]
    fn names_round_trip() {
        for name in ["main", "test", "testnet4", "signet", "regtest"] {
            assert_eq!(name.parse::<Chain>().unwrap().as_str(), name);
        }
        assert!("bitcoin".parse::<Chain>().is_err());
    }
}
