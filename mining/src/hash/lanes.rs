//! SHA-256 of sixteen messages side by side: a word of each of them in one register of 512 bits.
//!
//! One compression waits for itself at every step, so a CPU that does one share after the other is idle most of the
//! time, even with the SHA instructions. Sixteen shares of a job have the same shape, block by block, and take 40 %
//! of the time of sixteen one after the other (docs/adr/0021). Where the CPU has no AVX-512 nothing here is called.

use std::arch::x86_64::{
    __m512i, _mm512_add_epi32, _mm512_ror_epi32, _mm512_set1_epi32, _mm512_srli_epi32, _mm512_ternarylogic_epi32,
};

use super::{Block, Chosen, Given, INITIAL, Message, PADDING_OF_64};

/// Messages at once.
pub(super) const LANES: usize = 16;

/// A word of each message.
type Word = __m512i;
/// A block of each message.
type Blocks = [Word; 16];
/// A hash of each message, as its words.
type States = [Word; 8];

/// The constants of SHA-256 (FIPS 180-4, 4.2.2).
#[rustfmt::skip]
const K: [u32; 64] = [
    0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5, 0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5,
    0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3, 0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174,
    0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc, 0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da,
    0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7, 0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967,
    0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13, 0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85,
    0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3, 0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070,
    0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5, 0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3,
    0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208, 0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2,
];
/// [`K`] with the schedule of the block that ends every message of 64 bytes: nothing of it depends on the message.
const PADDING_OF_64_AND_K: [u32; 64] = schedule_and_k(&PADDING_OF_64);

const fn schedule_and_k(block: &Block) -> [u32; 64] {
    let (mut w, mut i) = ([0_u32; 64], 0);
    while i < 64 {
        w[i] = if i < 16 {
            u32::from_be_bytes([block[4 * i], block[4 * i + 1], block[4 * i + 2], block[4 * i + 3]])
        } else {
            let (x, y) = (w[i - 15], w[i - 2]);
            let s0 = x.rotate_right(7) ^ x.rotate_right(18) ^ (x >> 3);
            let s1 = y.rotate_right(17) ^ y.rotate_right(19) ^ (y >> 10);
            w[i - 16].wrapping_add(s0).wrapping_add(w[i - 7]).wrapping_add(s1)
        };
        i += 1;
    }
    i = 0;
    while i < 64 {
        w[i] = w[i].wrapping_add(K[i]);
        i += 1;
    }
    w
}

/// Hashes of the headers of `shares`, at most one for each lane; lanes beyond them do the last one's work again. `None`
/// where the CPU has not the instructions.
pub(super) fn hash(given: &Given<'_>, shares: &[Chosen]) -> Option<[[u8; 32]; LANES]> {
    if !std::is_x86_feature_detected!("avx512f") {
        return None;
    }
    let last = shares.len().checked_sub(1)?;
    let shares = std::array::from_fn(|lane| &shares[lane.min(last)]);
    // SAFETY: the CPU has the instructions.
    Some(unsafe { header_hashes(given, &shares) })
}

/// Headers need not be put together and taken apart: the words of a root are those of the header (version, previous
/// hash, root, time, bits, nonce).
#[target_feature(enable = "avx512f")]
fn header_hashes(given: &Given<'_>, shares: &[&Chosen; LANES]) -> [[u8; 32]; LANES] {
    let root = roots(given.coinbase, given.branch, shares);
    let little_endian = |field: fn(&Chosen) -> u32| lanes(&shares.map(|share| field(share).swap_bytes()));
    let mut first = [little_endian(|share| share.version); 16];
    for (to, word) in first[1..9].iter_mut().zip(given.prev_hash.as_chunks::<4>().0) {
        *to = splat(u32::from_be_bytes(*word));
    }
    first[9..].copy_from_slice(&root[..7]);
    let mut last = splat_all(&words(&super::padded([0; 64], 16, 80)));
    let [ntime, nonce] = [little_endian(|share| share.ntime), little_endian(|share| share.nonce)];
    last[..4].copy_from_slice(&[root[7], ntime, splat(given.nbits.swap_bytes()), nonce]);
    let mut states = splat_all(&INITIAL);
    compress(&mut states, &first);
    compress(&mut states, &last);
    bytes(&second(&states))
}

/// Merkle roots: those of `branch` above the double hash of `coinbase` with each of the fillings.
#[target_feature(enable = "avx512f")]
fn roots(coinbase: &Message, branch: &[[u8; 32]], shares: &[&Chosen; LANES]) -> States {
    let head = coinbase.filled(&[]);
    let mut blocks = [splat_all(&words(&head[0])), splat_all(&words(&head[1]))];
    // The gap lies in four words, of which the first is one of the first block.
    let (word, byte) = (coinbase.gap / 4, coinbase.gap % 4);
    let mut window = [0; 16];
    window.copy_from_slice(&head.as_flattened()[4 * word..][..16]);
    let mut filled = [[0; LANES]; 4];
    for (lane, share) in shares.iter().enumerate() {
        window[byte..byte + share.filling.len()].copy_from_slice(&share.filling);
        for (to, word) in filled.iter_mut().zip(window.as_chunks::<4>().0) {
            to[lane] = u32::from_be_bytes(*word);
        }
    }
    for (to, filled) in blocks.as_flattened_mut()[word..].iter_mut().zip(&filled) {
        *to = lanes(filled);
    }
    let mut states = splat_all(&coinbase.state);
    for block in &blocks[..coinbase.rest.len().min(2)] {
        compress(&mut states, block);
    }
    for block in coinbase.rest.iter().skip(2) {
        compress(&mut states, &splat_all(&words(block)));
    }
    let mut node = second(&states);
    for sibling in branch {
        node = pair(&node, sibling);
    }
    node
}

/// Nodes of merkle trees: `left` and the same right side for all.
#[target_feature(enable = "avx512f")]
fn pair(left: &States, right: &[u8; 32]) -> States {
    let mut block = [splat(0); 16];
    block[..8].copy_from_slice(left);
    for (to, word) in block[8..].iter_mut().zip(right.as_chunks::<4>().0) {
        *to = splat(u32::from_be_bytes(*word));
    }
    let mut states = splat_all(&INITIAL);
    compress(&mut states, &block);
    compress_known(&mut states, &PADDING_OF_64_AND_K);
    second(&states)
}

/// SHA-256 of the hashes whose states these are.
#[target_feature(enable = "avx512f")]
fn second(first: &States) -> States {
    let mut block = splat_all(&words(&super::padded([0; 64], 32, 32)));
    block[..8].copy_from_slice(first);
    let mut states = splat_all(&INITIAL);
    compress(&mut states, &block);
    states
}

/// The body sixteen times, with `$i` from 0 to 15 known to the compiler: words stay in registers.
macro_rules! sixteen {
    ($i:ident, $body:block) => {
        sixteen!(@ $i, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $i:ident, $body:block, $($n:literal)+) => {
        $({ const $i: usize = $n; $body })+
    };
}

/// The compression function (FIPS 180-4, 6.2.2) on a block of each message.
#[target_feature(enable = "avx512f")]
#[inline(never)]
fn compress(states: &mut States, block: &Blocks) {
    let (mut s, mut w) = (*states, *block);
    let (first, others) = K.split_at(16);
    sixteen!(I, { round(&mut s, add(w[I], splat(first[I]))) });
    for k in others.as_chunks::<16>().0 {
        sixteen!(I, {
            let (x, y) = (w[(I + 1) % 16], w[(I + 14) % 16]);
            let s0 = xor(ror::<7>(x), ror::<18>(x), _mm512_srli_epi32::<3>(x));
            let s1 = xor(ror::<17>(y), ror::<19>(y), _mm512_srli_epi32::<10>(y));
            w[I] = add(add(w[I], s0), add(w[(I + 9) % 16], s1));
            round(&mut s, add(w[I], splat(k[I])));
        });
    }
    add_to(states, &s);
}

/// The compression function on a block that is the same in all messages, with its schedule known.
#[target_feature(enable = "avx512f")]
#[inline(never)]
fn compress_known(states: &mut States, schedule_and_k: &[u32; 64]) {
    let mut s = *states;
    for words in schedule_and_k.as_chunks::<16>().0 {
        sixteen!(I, { round(&mut s, splat(words[I])) });
    }
    add_to(states, &s);
}

#[target_feature(enable = "avx512f")]
fn add_to(states: &mut States, s: &States) {
    for (to, word) in states.iter_mut().zip(s) {
        *to = add(*to, *word);
    }
}

#[target_feature(enable = "avx512f")]
fn round(s: &mut States, word_and_k: Word) {
    let [a, b, c, d, e, f, g, h] = *s;
    let choice = _mm512_ternarylogic_epi32::<0b1100_1010>(e, f, g);
    let majority = _mm512_ternarylogic_epi32::<0b1110_1000>(a, b, c);
    let one = add(add(h, word_and_k), add(xor(ror::<6>(e), ror::<11>(e), ror::<25>(e)), choice));
    let two = add(xor(ror::<2>(a), ror::<13>(a), ror::<22>(a)), majority);
    *s = [add(one, two), a, b, c, add(d, one), e, f, g];
}

#[target_feature(enable = "avx512f")]
fn add(a: Word, b: Word) -> Word {
    _mm512_add_epi32(a, b)
}

#[target_feature(enable = "avx512f")]
fn ror<const BY: i32>(a: Word) -> Word {
    _mm512_ror_epi32::<BY>(a)
}

#[target_feature(enable = "avx512f")]
fn xor(a: Word, b: Word, c: Word) -> Word {
    _mm512_ternarylogic_epi32::<0b1001_0110>(a, b, c)
}

/// The same word in all messages.
#[target_feature(enable = "avx512f")]
fn splat(word: u32) -> Word {
    _mm512_set1_epi32(word.cast_signed())
}

#[target_feature(enable = "avx512f")]
fn splat_all<const N: usize>(words: &[u32; N]) -> [Word; N] {
    let mut all = [splat(0); N];
    for (to, word) in all.iter_mut().zip(words) {
        *to = splat(*word);
    }
    all
}

fn words(block: &Block) -> [u32; 16] {
    std::array::from_fn(|i| u32::from_be_bytes([block[4 * i], block[4 * i + 1], block[4 * i + 2], block[4 * i + 3]]))
}

/// A word of each message.
#[target_feature(enable = "avx512f")]
fn lanes(words: &[u32; LANES]) -> Word {
    // SAFETY: both are 64 bytes, of which every value is valid.
    unsafe { std::mem::transmute::<[u32; LANES], Word>(*words) }
}

/// Hashes in bytes, one of each message.
fn bytes(states: &States) -> [[u8; 32]; LANES] {
    let mut all = [[0; 32]; LANES];
    for (number, word) in states.iter().enumerate() {
        // SAFETY: both are 64 bytes, of which every value is valid.
        let words = unsafe { std::mem::transmute::<Word, [u32; LANES]>(*word) };
        for (bytes, word) in all.iter_mut().zip(words) {
            bytes[4 * number..4 * number + 4].copy_from_slice(&word.to_be_bytes());
        }
    }
    all
}
