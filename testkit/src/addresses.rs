//! Payout addresses of the demo and of tests, by number. Nobody has their keys.

use anyhow::Result;
use bitcoin::hashes::Hash;
use bitcoin::{Address, Network, ScriptBuf, WPubkeyHash};

/// Script of address number `number`: a witness key hash of 20 bytes of this value.
pub fn script(number: u8) -> ScriptBuf {
    ScriptBuf::new_p2wpkh(&WPubkeyHash::from_byte_array([number; 20]))
}

/// Address number `number` on a network.
///
/// # Errors
/// Never for the networks there are.
pub fn address(network: Network, number: u8) -> Result<String> {
    Ok(Address::from_script(&script(number), network)?.to_string())
}
