//! Inputs made of others: what a fuzzer does without looking into the program, the same ones for the same seed.

use std::collections::BTreeSet;

/// Longest input.
const LONGEST: usize = 16 << 10;
/// Changes of one input, at most.
const CHANGES: u64 = 8;
/// Inputs that are gone on from, besides the seeds.
const KEPT: usize = 512;
/// One in so many inputs is kept.
const KEEP: u64 = 64;

/// Makes inputs.
pub(crate) struct Mutator {
    state: u64,
    /// The seeds, and behind them what has been kept.
    pool: Vec<Vec<u8>>,
    seeds: usize,
    /// Words of the seeds, and what parsers look for.
    words: Vec<Vec<u8>>,
    input: Vec<u8>,
}

impl Mutator {
    /// Inputs made of `seeds`, of which there is at least one.
    pub(crate) fn new(seed: u64, seeds: Vec<Vec<u8>>) -> Self {
        assert!(!seeds.is_empty());
        let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
        let found = seeds.iter().flat_map(|seed| seed.split(|byte| !is_word(byte))).filter(|word| !word.is_empty());
        let common: [&[u8]; 16] = [
            b"\n",
            b"\r\n",
            b"\0",
            b"\"",
            b"\\u0000",
            b"{",
            b"}",
            b"[",
            b"]",
            b",",
            b":",
            b"null",
            b"-1",
            b"1e999",
            b"18446744073709551616",
            b"\xff",
        ];
        let words: BTreeSet<Vec<u8>> = found.chain(common).map(<[u8]>::to_vec).collect();
        Self { state: seed, seeds: seeds.len(), pool: seeds, words: words.into_iter().collect(), input: Vec::new() }
    }

    /// The next input.
    pub(crate) fn next_input(&mut self) -> &[u8] {
        let from = self.below(self.pool.len());
        self.input.clone_from(&self.pool[from]);
        for _ in 0..=self.random() % CHANGES {
            self.change();
            self.input.truncate(LONGEST);
        }
        if self.random().is_multiple_of(KEEP) {
            let input = self.input.clone();
            if self.pool.len() < self.seeds + KEPT {
                self.pool.push(input);
            } else {
                let at = self.seeds + self.below(KEPT);
                self.pool[at] = input;
            }
        }
        &self.input
    }

    /// SplitMix64.
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, 0 where that is 0.
    fn below(&mut self, end: usize) -> usize {
        (self.random() % (end as u64).max(1)) as usize
    }

    /// A stretch of the input, mostly a short one.
    fn stretch(&mut self) -> std::ops::Range<usize> {
        let start = self.below(self.input.len() + 1);
        let longest = if self.random().is_multiple_of(4) { self.input.len() } else { 16 };
        start..start + self.below(longest.min(self.input.len() - start) + 1)
    }

    fn change(&mut self) {
        let (at, byte) = (self.below(self.input.len()), self.random() as u8);
        let place = self.below(self.input.len() + 1);
        match self.random() % 9 {
            0 if !self.input.is_empty() => self.input[at] ^= 1 << (byte % 8),
            1 if !self.input.is_empty() => self.input[at] = byte,
            2 => self.input.insert(place, byte),
            3 => {
                let gone = self.stretch();
                self.input.drain(gone);
            }
            4 => {
                let again = self.stretch();
                let again = self.input[again].to_vec();
                self.input.splice(place..place, again);
            }
            5 | 6 => {
                let word = self.below(self.words.len());
                let over = if byte.is_multiple_of(2) { self.stretch() } else { place..place };
                self.input.splice(over, self.words[word].iter().copied());
            }
            7 => {
                // The end of another input, behind the beginning of this one.
                let other = self.below(self.pool.len());
                let from = self.below(self.pool[other].len() + 1);
                self.input.truncate(place);
                self.input.extend_from_slice(&self.pool[other][from..]);
            }
            _ => self.input.truncate(if byte.is_multiple_of(8) { place } else { LONGEST }),
        }
    }
}
