//! How the fields of a job look on the Stratum V1 wire.

use sluice_proto::v1::Job;

/// Previous block hash as `mining.notify` has it: each 4-byte word swapped, in hex.
pub fn prev_hash(hash: &[u8]) -> String {
    let swapped: Vec<u8> = hash.chunks(4).flat_map(|word| word.iter().rev().copied()).collect();
    hex::encode(swapped)
}

/// Reads what [`prev_hash`] writes; `None` if it is not 32 bytes of hex.
pub fn parse_prev_hash(text: &str) -> Option<[u8; 32]> {
    let bytes: [u8; 32] = hex::decode(text).ok()?.try_into().ok()?;
    let mut hash = [0; 32];
    for (to, from) in hash.chunks_mut(4).zip(bytes.chunks(4)) {
        to.iter_mut().zip(from.iter().rev()).for_each(|(to, from)| *to = *from);
    }
    Some(hash)
}

/// An integer field (version, nbits, ntime, nonce): 8 hex digits, most significant first.
pub fn word(value: u32) -> String {
    format!("{value:08x}")
}

/// Job id: lower-case hex without leading zeros.
pub fn job_id(id: u64) -> String {
    format!("{id:x}")
}

/// A hash as block explorers show it: most significant byte first.
pub fn display_hash(hash: &[u8]) -> String {
    hex::encode(hash.iter().rev().copied().collect::<Vec<u8>>())
}

/// Reads what [`display_hash`] writes.
pub fn parse_display_hash(text: &str) -> Option<[u8; 32]> {
    let mut bytes: [u8; 32] = hex::decode(text).ok()?.try_into().ok()?;
    bytes.reverse();
    Some(bytes)
}

/// The parameters of `mining.notify` for a job, as a JSON array, with this `clean_jobs` flag.
pub fn notify_params(job: &Job, clean: bool) -> String {
    let branch: Vec<String> = job.merkle_branch.iter().map(|hash| format!("\"{}\"", hex::encode(hash))).collect();
    format!(
        "[\"{}\",\"{}\",\"{}\",\"{}\",[{}],\"{}\",\"{}\",\"{}\",{clean}]",
        job_id(job.job_id),
        prev_hash(&job.prev_hash),
        hex::encode(&job.coinbase1),
        hex::encode(&job.coinbase2),
        branch.join(","),
        word(job.version),
        word(job.nbits),
        word(job.ntime),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Block 100,000's parent, as explorers show it and as a pool would send it.
    #[test]
    fn trap_12_prevhash_is_swapped_per_word() {
        let shown = "000000000002d01c1fccc21636b607dfd930d31d01c3a62104612a1719011250";
        let hash = parse_display_hash(shown).unwrap();
        assert_eq!(display_hash(&hash), shown);
        let wire = prev_hash(&hash);
        assert_eq!(wire, "1901125004612a1701c3a621d930d31d36b607df1fccc2160002d01c00000000");
        assert_eq!(parse_prev_hash(&wire), Some(hash));
        assert_eq!(parse_prev_hash("00"), None);
    }
}
