//! Transactions that wait, all of them made up, all of them well-formed. Their signatures are not.

use std::collections::{HashMap, HashSet};

use bitcoin::absolute::LockTime;
use bitcoin::hashes::Hash;
use bitcoin::script::{Builder, PushBytesBuf};
use bitcoin::transaction::Version;
use bitcoin::{
    Amount, Block, OutPoint, PubkeyHash, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Txid, WPubkeyHash, Witness,
};
use sluice_mining::double_sha256;

use super::coins::{Coins, output_sum, supply};

/// A waiting transaction.
pub(super) struct Waiting {
    pub(super) transaction: Transaction,
    pub(super) txid: Txid,
    pub(super) fee: Amount,
    /// Cost of its signature operations (BIP141).
    pub(super) sigops: usize,
}

/// Waiting transactions, each behind those it spends from.
#[derive(Default)]
pub(super) struct Mempool {
    waiting: Vec<Waiting>,
    next_serial: u64,
    /// Grows with every change.
    pub(super) updates: u64,
}

impl Mempool {
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Waiting> {
        self.waiting.iter()
    }

    /// Makes up one more transaction; its id.
    pub(super) fn grow(&mut self, coins: &Coins, height: u32) -> Option<Txid> {
        self.next_serial = self.next_serial.max(coins.next_serial());
        let serial = self.next_serial;
        self.next_serial += 1;
        let parent = self.unspent_child_of(serial);
        let transaction = make_up(serial, parent);
        let txid = transaction.compute_txid();
        self.add(transaction, coins, height).then_some(txid)
    }

    /// Every seventh transaction spends an output of the newest one that has one left.
    fn unspent_child_of(&self, serial: u64) -> Option<(OutPoint, Amount)> {
        let newest = self.waiting.last().filter(|_| serial % 7 == 3)?;
        let spendable = newest.transaction.output.first().filter(|output| output.script_pubkey.is_p2wpkh())?;
        Some((OutPoint { txid: newest.txid, vout: 0 }, spendable.value))
    }

    /// Adds a transaction whose inputs exist, in the chain or here.
    fn add(&mut self, transaction: Transaction, coins: &Coins, height: u32) -> bool {
        let outputs = |tx: &Waiting| {
            let outputs = tx.transaction.output.iter().cloned();
            (0_u32..).zip(outputs).map(|(vout, output)| (OutPoint { txid: tx.txid, vout }, output)).collect::<Vec<_>>()
        };
        let parents: HashSet<Txid> = transaction.input.iter().map(|input| input.previous_output.txid).collect();
        let here = self.waiting.iter().filter(|tx| parents.contains(&tx.txid)).flat_map(outputs);
        let here: HashMap<OutPoint, TxOut> = here.collect();
        let spent = |outpoint: &OutPoint| here.get(outpoint).cloned().or(coins.look_up(outpoint, height + 1).ok());
        let inputs = transaction.input.iter().map(|input| spent(&input.previous_output).map(|output| output.value));
        let sum = inputs.collect::<Option<Vec<_>>>().map(|values| values.into_iter().sum::<Amount>());
        let fee = sum.zip(output_sum(&transaction).ok()).and_then(|(sum, paid)| sum.checked_sub(paid));
        let Some(fee) = fee else { return false };
        let (txid, sigops) = (transaction.compute_txid(), transaction.total_sigop_cost(spent));
        self.waiting.push(Waiting { transaction, txid, fee, sigops });
        self.updates += 1;
        true
    }

    /// After a change of the best chain: what left it waits again, what came into it or contradicts it goes.
    pub(super) fn follow<'a>(&mut self, left: impl Iterator<Item = &'a Block>, coins: &Coins, height: u32) {
        let again = left.flat_map(|block| block.txdata.iter().skip(1).cloned());
        let before = std::mem::take(&mut self.waiting);
        let mut seen = HashSet::new();
        for transaction in again.chain(before.into_iter().map(|waiting| waiting.transaction)) {
            if seen.insert(transaction.compute_txid()) {
                self.add(transaction, coins, height);
            }
        }
        self.updates += 1;
    }
}

/// The transaction with this serial number: of several shapes, with a fee of its own, always the same.
fn make_up(serial: u64, parent: Option<(OutPoint, Amount)>) -> Transaction {
    let seed = double_sha256(&serial.to_le_bytes());
    let fee = 500 + u64::from(u16::from_le_bytes([seed[0], seed[1]])) / 4;
    let (previous_output, value) = match parent {
        Some((outpoint, amount)) => (outpoint, amount.to_sat()),
        None => {
            let value = 100_000 + u64::from(u32::from_le_bytes([seed[2], seed[3], seed[4], 0]));
            (supply(value, serial), value)
        }
    };
    let segwit = parent.is_some() || !serial.is_multiple_of(3);
    let (signature, key) = (push(&seed, 71), push(&seed, 33));
    let (script_sig, witness) = if segwit {
        (ScriptBuf::new(), Witness::from_slice(&[signature.as_bytes(), key.as_bytes()]))
    } else {
        (Builder::new().push_slice(&signature).push_slice(&key).into_script(), Witness::new())
    };
    let pay = |part: u64, number: u8| {
        let hash = [&seed[..19], &[number]].concat();
        let script_pubkey = if segwit {
            WPubkeyHash::from_slice(&hash).map(|hash| ScriptBuf::new_p2wpkh(&hash))
        } else {
            PubkeyHash::from_slice(&hash).map(|hash| ScriptBuf::new_p2pkh(&hash))
        };
        TxOut { value: Amount::from_sat(part), script_pubkey: script_pubkey.unwrap_or_default() }
    };
    let rest = value.saturating_sub(fee);
    Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: vec![TxIn { previous_output, script_sig, sequence: Sequence::ENABLE_RBF_NO_LOCKTIME, witness }],
        output: vec![pay(rest - rest / 3, 0), pay(rest / 3, 1)],
    }
}

/// Bytes of the size of a signature or a key.
fn push(seed: &[u8; 32], length: usize) -> PushBytesBuf {
    let bytes: Vec<u8> = seed.iter().copied().cycle().take(length).collect();
    PushBytesBuf::try_from(bytes).unwrap_or_default()
}
