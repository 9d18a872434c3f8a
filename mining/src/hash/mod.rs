//! Double SHA-256, block by block.
//!
//! Judging a share is hashing and little else (DESIGN 10), so the messages are laid out in blocks here, with their
//! padding, and handed to the compression function at once: the buffering of a general hasher costs half as much again.

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)] // only to call what a CPU feature guards, and to see a register as its words
mod lanes;

use sha2::block_api::compress256;

use crate::merkle::root_from_branch;

type Block = [u8; 64];
type State = [u32; 8];

/// SHA-256 before the first block (FIPS 180-4, 5.3.3).
const INITIAL: State =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];
/// The second block of a message of 64 bytes: nothing but padding.
const PADDING_OF_64: Block = padded([0; 64], 0, 64);

/// SHA-256 of SHA-256 of `data`.
pub fn double_sha256(data: &[u8]) -> [u8; 32] {
    Message::new(data, &[], 0).double_hash(&[])
}

/// Hash of two hashes side by side: a node of a merkle tree.
pub(crate) fn pair(left: &[u8; 32], right: &[u8; 32]) -> [u8; 32] {
    let mut both = [0; 64];
    both[..32].copy_from_slice(left);
    both[32..].copy_from_slice(right);
    let mut state = INITIAL;
    compress256(&mut state, &[both, PADDING_OF_64]);
    second(state)
}

/// Hash of a block header.
pub fn header_hash(header: &[u8; 80]) -> [u8; 32] {
    let mut state = INITIAL;
    compress256(&mut state, &header_blocks(header));
    second(state)
}

fn header_blocks(header: &[u8; 80]) -> [Block; 2] {
    let (mut first, mut last) = ([0; 64], [0; 64]);
    first.copy_from_slice(&header[..64]);
    last[..16].copy_from_slice(&header[64..]);
    [first, padded(last, 16, 80)]
}

/// How many shares are best hashed together.
pub(crate) const TOGETHER: usize = 16;
/// From how many shares on that is worth it, where the CPU can: they take the time of so many one after the other.
#[cfg(target_arch = "x86_64")]
const WORTHWHILE: usize = 6;

/// What is the same in the headers of all shares of a job.
pub(crate) struct Given<'a> {
    pub(crate) coinbase: &'a Message,
    pub(crate) branch: &'a [[u8; 32]],
    pub(crate) prev_hash: &'a [u8; 32],
    pub(crate) nbits: u32,
}

/// What a share puts into its header.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Chosen {
    /// What fills the gap in the coinbase.
    pub(crate) filling: [u8; 12],
    pub(crate) version: u32,
    pub(crate) ntime: u32,
    pub(crate) nonce: u32,
}

impl Given<'_> {
    /// The header of a share.
    pub(crate) fn header(&self, chosen: &Chosen) -> [u8; 80] {
        let mut header = [0_u8; 80];
        header[0..4].copy_from_slice(&chosen.version.to_le_bytes());
        header[4..36].copy_from_slice(self.prev_hash);
        header[36..68].copy_from_slice(&root_from_branch(self.coinbase.double_hash(&chosen.filling), self.branch));
        header[68..72].copy_from_slice(&chosen.ntime.to_le_bytes());
        header[72..76].copy_from_slice(&self.nbits.to_le_bytes());
        header[76..80].copy_from_slice(&chosen.nonce.to_le_bytes());
        header
    }
}

/// Hashes of the headers of shares, at most [`TOGETHER`] of them, in order.
pub(crate) fn hash_shares(given: &Given<'_>, shares: &[Chosen], mut hashed: impl FnMut([u8; 32])) {
    #[cfg(target_arch = "x86_64")]
    if (WORTHWHILE..=lanes::LANES).contains(&shares.len())
        && let Some(all) = lanes::hash(given, shares)
    {
        all.into_iter().take(shares.len()).for_each(hashed);
        return;
    }
    shares.iter().for_each(|share| hashed(header_hash(&given.header(share))));
}

/// A message with a gap: hashed up to the gap, padded behind it. Filling the gap and hashing the rest is all that is
/// left to do for each share of a job.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    /// The whole blocks before the gap, hashed.
    state: State,
    /// The rest, padded, with zeros in the gap.
    rest: Vec<Block>,
    /// Where in the rest the gap begins, below 64.
    gap: usize,
}

impl Message {
    /// The message `before`, a gap of `gap` bytes (at most 64), `after`.
    pub(crate) fn new(before: &[u8], after: &[u8], gap: usize) -> Self {
        let mut state = INITIAL;
        let (whole, tail) = before.as_chunks::<64>();
        compress256(&mut state, whole);
        let mut message = [tail, &vec![0; gap], after].concat();
        let length = before.len() + gap + after.len();
        message.push(0x80);
        message.resize((message.len() + 8).next_multiple_of(64) - 8, 0);
        message.extend_from_slice(&(length as u64 * 8).to_be_bytes());
        Self { state, rest: message.as_chunks().0.to_vec(), gap: tail.len() }
    }

    /// Double SHA-256 of the message with `filling` in its gap.
    pub(crate) fn double_hash(&self, filling: &[u8]) -> [u8; 32] {
        let (head, count) = (self.filled(filling), self.rest.len().min(2));
        let mut state = self.state;
        compress256(&mut state, &head[..count]);
        compress256(&mut state, &self.rest[count..]);
        second(state)
    }

    /// The first two blocks of the rest (the second may be none): the gap begins in the first and ends in the second at
    /// the latest.
    fn filled(&self, filling: &[u8]) -> [Block; 2] {
        let (mut head, count) = ([[0; 64]; 2], self.rest.len().min(2));
        head[..count].copy_from_slice(&self.rest[..count]);
        head.as_flattened_mut()[self.gap..self.gap + filling.len()].copy_from_slice(filling);
        head
    }
}

/// The last block of a message of `length` bytes, of which the block holds `used`, at most 55.
const fn padded(mut block: Block, used: usize, length: u64) -> Block {
    block[used] = 0x80;
    let bits = (length * 8).to_be_bytes();
    let mut i = 0;
    while i < bits.len() {
        block[56 + i] = bits[i];
        i += 1;
    }
    block
}

/// SHA-256 of the hash whose state this is.
fn second(first: State) -> [u8; 32] {
    let mut block = [0; 64];
    block[..32].copy_from_slice(&bytes(first));
    let mut state = INITIAL;
    compress256(&mut state, &[padded(block, 32, 32)]);
    bytes(state)
}

fn bytes(state: State) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (to, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(state) {
        *to = word.to_be_bytes();
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sha2::{Digest, Sha256};

    fn plain(data: &[u8]) -> [u8; 32] {
        Sha256::digest(Sha256::digest(data)).into()
    }

    #[test]
    fn every_length_around_the_blocks_is_padded_right() {
        for length in 0..300 {
            let data: Vec<u8> = (0..length).map(|n| n as u8).collect();
            assert_eq!(double_sha256(&data), plain(&data), "{length} bytes");
        }
    }

    /// Every place of the gap in its block, and every length behind it.
    #[test]
    fn the_gap_may_lie_anywhere() {
        for (before, after) in (0..130).flat_map(|before| (0..70).map(move |after| (before, after))) {
            let (before, after) = (vec![1; before], vec![3; after]);
            let message = Message::new(&before, &after, 12);
            let whole = [&before[..], &[2; 12], &after].concat();
            assert_eq!(message.double_hash(&[2; 12]), plain(&whole), "{} and {} bytes", before.len(), after.len());
        }
    }

    /// What shares together must give: each alone, by a general hasher.
    fn one_by_one(before: &[u8], after: &[u8], branch: &[[u8; 32]], shares: &[Chosen]) -> Vec<[u8; 32]> {
        let hash = |share: &Chosen| {
            let root = plain(&[before, &share.filling, after].concat());
            let root = branch.iter().fold(root, |node, sibling| plain(&[node, *sibling].concat()));
            let [version, ntime, nbits, nonce] = [share.version, share.ntime, NBITS, share.nonce].map(u32::to_le_bytes);
            plain(&[&version[..], &PREV_HASH, &root, &ntime, &nbits, &nonce].concat())
        };
        shares.iter().map(hash).collect()
    }

    const NBITS: u32 = 0x1702_5a2c;
    const PREV_HASH: [u8; 32] = *b"abcdefghijklmnopqrstuvwxyz012345";

    fn together(before: &[u8], after: &[u8], branch: &[[u8; 32]], shares: &[Chosen]) -> Vec<[u8; 32]> {
        let (mut all, message) = (Vec::new(), Message::new(before, after, 12));
        let given = Given { coinbase: &message, branch, prev_hash: &PREV_HASH, nbits: NBITS };
        hash_shares(&given, shares, |hash| all.push(hash));
        all
    }

    fn chosen((filling, [version, ntime, nonce]): ([u8; 12], [u32; 3])) -> Chosen {
        Chosen { filling, version, ntime, nonce }
    }

    /// Every place of the gap in its block, one block and many behind it, and every number of shares.
    #[test]
    fn shares_together_are_hashed_as_each_alone() {
        let fillings = (0..16).map(|n: usize| std::array::from_fn(|i| (n * 17 + i) as u8));
        let shares: Vec<_> = fillings.zip(1..).map(|(filling, n)| chosen((filling, [n, n << 16, n << 24]))).collect();
        let branch = [[4; 32], [5; 32]];
        for (before, after) in (0..66).flat_map(|before| [0, 20, 43, 44, 130].map(|after| (before, after))) {
            let (before, after) = (vec![1; before], vec![3; after]);
            let alone = one_by_one(&before, &after, &branch, &shares);
            assert_eq!(together(&before, &after, &branch, &shares), alone, "{} bytes before the gap", before.len());
        }
        for count in 0..=16 {
            let alone = one_by_one(&[1; 70], &[3; 70], &branch, &shares[..count]);
            assert_eq!(together(&[1; 70], &[3; 70], &branch, &shares[..count]), alone, "{count} shares");
        }
    }

    proptest! {
        #[test]
        fn any_shares_together_are_hashed_as_each_alone(
            before in prop::collection::vec(any::<u8>(), 0..400),
            after in prop::collection::vec(any::<u8>(), 0..400),
            shares in prop::collection::vec(any::<([u8; 12], [u32; 3])>().prop_map(chosen), 0..=16),
            branch in prop::collection::vec(any::<[u8; 32]>(), 0..14),
        ) {
            let alone = one_by_one(&before, &after, &branch, &shares);
            prop_assert_eq!(together(&before, &after, &branch, &shares), alone);
        }

        #[test]
        fn hashes_are_those_of_a_general_hasher(
            before in prop::collection::vec(any::<u8>(), 0..400),
            after in prop::collection::vec(any::<u8>(), 0..400),
            filling: [u8; 12],
            left: [u8; 32],
            right: [u8; 32],
        ) {
            let whole = [&before[..], &filling, &after].concat();
            prop_assert_eq!(Message::new(&before, &after, 12).double_hash(&filling), plain(&whole));
            prop_assert_eq!(pair(&left, &right), plain(&[left, right].concat()));
            let header: [u8; 80] = std::array::from_fn(|i| left[i % 32] ^ right[(i + 7) % 32]);
            prop_assert_eq!(header_hash(&header), plain(&header));
        }
    }
}
