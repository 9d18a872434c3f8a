//! Unspent outputs of the best chain, and what connecting a block changed.

use std::collections::{HashMap, HashSet};

use bitcoin::hashes::Hash;
use bitcoin::{Amount, Block, OutPoint, ScriptBuf, Transaction, TxOut, Txid};

/// Blocks before a coinbase may be spent.
pub(super) const MATURITY: u32 = 100;
/// Marks an outpoint that never was an output: where the money of simulated transactions comes from.
const SUPPLY: &[u8; 16] = b"sluice-simulated";

/// An outpoint worth `value` satoshis that exists without a transaction. `serial` makes it unique.
pub(super) fn supply(value: u64, serial: u64) -> OutPoint {
    let mut id = [0_u8; 32];
    id[..8].copy_from_slice(&value.to_le_bytes());
    id[8..16].copy_from_slice(&serial.to_le_bytes());
    id[16..].copy_from_slice(SUPPLY);
    OutPoint { txid: Txid::from_byte_array(id), vout: 0 }
}

/// Serial and value of an outpoint that [`supply`] made.
pub(super) fn supplied(outpoint: &OutPoint) -> Option<(u64, Amount)> {
    let id = outpoint.txid.to_byte_array();
    if &id[16..] != SUPPLY || outpoint.vout != 0 {
        return None;
    }
    let number = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes).unwrap_or_default();
    Some((number(&id[8..16]), Amount::from_sat(number(&id[..8]))))
}

/// An output that can be spent.
#[derive(Clone, Debug)]
struct Coin {
    output: TxOut,
    /// Height of its block, where that block's first transaction made it.
    coinbase: Option<u32>,
}

enum Change {
    Created(OutPoint),
    Spent(OutPoint, Coin),
    Supplied(OutPoint),
}

/// What to undo when a block is disconnected.
pub(super) struct Undo(Vec<Change>);

/// Unspent outputs.
#[derive(Default)]
pub(super) struct Coins {
    unspent: HashMap<OutPoint, Coin>,
    supplied: HashSet<OutPoint>,
    /// Above every serial that was ever spent.
    next_serial: u64,
}

impl Coins {
    /// Spends and makes what the block's transactions say; also gives the sum of their fees.
    ///
    /// # Errors
    /// If an input is missing, spent or too young, or outputs exceed inputs: the reason as Bitcoin Core has it. Then
    /// nothing has changed.
    pub(super) fn connect(&mut self, block: &Block, height: u32) -> Result<(Undo, Amount), &'static str> {
        let mut undo = Undo(Vec::new());
        let mut fees = Amount::ZERO;
        for (number, transaction) in block.txdata.iter().enumerate() {
            let fee = if number == 0 { Ok(Amount::ZERO) } else { self.spend(transaction, height, &mut undo) };
            match fee.and_then(|fee| fees.checked_add(fee).ok_or("bad-txns-accumulated-fee-outofrange")) {
                Ok(sum) => fees = sum,
                Err(reason) => {
                    self.disconnect(undo);
                    return Err(reason);
                }
            }
            self.create(transaction, (number == 0).then_some(height), &mut undo);
        }
        Ok((undo, fees))
    }

    /// Takes a block's changes back.
    pub(super) fn disconnect(&mut self, undo: Undo) {
        for change in undo.0.into_iter().rev() {
            match change {
                Change::Created(outpoint) => drop(self.unspent.remove(&outpoint)),
                Change::Spent(outpoint, coin) => drop(self.unspent.insert(outpoint, coin)),
                Change::Supplied(outpoint) => drop(self.supplied.remove(&outpoint)),
            }
        }
    }

    /// The output behind an input in a block at `height`, unless it is missing, spent or too young.
    ///
    /// # Errors
    /// The reason as Bitcoin Core has it.
    pub(super) fn look_up(&self, outpoint: &OutPoint, height: u32) -> Result<TxOut, &'static str> {
        if let Some((_, value)) = supplied(outpoint) {
            let free = !self.supplied.contains(outpoint);
            return if free { Ok(TxOut { value, script_pubkey: ScriptBuf::new() }) } else { Err(MISSING) };
        }
        let coin = self.unspent.get(outpoint).ok_or(MISSING)?;
        match coin.coinbase {
            Some(made) if height < made.saturating_add(MATURITY) => Err("bad-txns-premature-spend-of-coinbase"),
            _ => Ok(coin.output.clone()),
        }
    }

    /// A serial that no connected block has spent.
    pub(super) fn next_serial(&self) -> u64 {
        self.next_serial
    }

    fn spend(&mut self, transaction: &Transaction, height: u32, undo: &mut Undo) -> Result<Amount, &'static str> {
        let mut sum = Amount::ZERO;
        for input in &transaction.input {
            let outpoint = input.previous_output;
            let output = self.look_up(&outpoint, height)?;
            sum = sum.checked_add(output.value).ok_or("bad-txns-inputvalues-outofrange")?;
            if let Some((serial, _)) = supplied(&outpoint) {
                self.supplied.insert(outpoint);
                self.next_serial = self.next_serial.max(serial.saturating_add(1));
                undo.0.push(Change::Supplied(outpoint));
            } else if let Some(coin) = self.unspent.remove(&outpoint) {
                undo.0.push(Change::Spent(outpoint, coin));
            }
        }
        sum.checked_sub(output_sum(transaction)?).ok_or("bad-txns-in-belowout")
    }

    fn create(&mut self, transaction: &Transaction, coinbase: Option<u32>, undo: &mut Undo) {
        let txid = transaction.compute_txid();
        for (vout, output) in (0_u32..).zip(&transaction.output) {
            if output.script_pubkey.is_op_return() {
                continue;
            }
            let outpoint = OutPoint { txid, vout };
            self.unspent.insert(outpoint, Coin { output: output.clone(), coinbase });
            undo.0.push(Change::Created(outpoint));
        }
    }
}

const MISSING: &str = "bad-txns-inputs-missingorspent";

/// Sum of a transaction's outputs.
///
/// # Errors
/// If it is above all money there is.
pub(super) fn output_sum(transaction: &Transaction) -> Result<Amount, &'static str> {
    transaction.output.iter().try_fold(Amount::ZERO, |sum, output| {
        let sum = sum.checked_add(output.value).ok_or("bad-txns-txouttotal-toolarge")?;
        if sum <= Amount::MAX_MONEY { Ok(sum) } else { Err("bad-txns-txouttotal-toolarge") }
    })
}
