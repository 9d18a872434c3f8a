//! Double SHA-256.

use sha2::{Digest, Sha256};

/// SHA-256 of SHA-256 of `data`.
pub fn double_sha256(data: &[u8]) -> [u8; 32] {
    finish(Sha256::new().chain_update(data))
}

/// Second half of a double SHA-256 whose first is `first`.
pub(crate) fn finish(first: Sha256) -> [u8; 32] {
    Sha256::digest(first.finalize()).into()
}

/// Hash of two hashes side by side: a node of a merkle tree.
pub(crate) fn pair(left: &[u8; 32], right: &[u8; 32]) -> [u8; 32] {
    let mut both = [0_u8; 64];
    both[..32].copy_from_slice(left);
    both[32..].copy_from_slice(right);
    double_sha256(&both)
}

/// Hash of a block header.
pub fn header_hash(header: &[u8; 80]) -> [u8; 32] {
    double_sha256(header)
}
