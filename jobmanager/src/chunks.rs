//! Templates in pieces (DESIGN 2): compressed, below 900 KB each, without transactions that were sent before.

use std::collections::HashSet;

use bytes::Bytes;
use prost::Message;
use sluice_mining::template::Template;
use sluice_proto::v1::TemplateChunk;

/// Largest piece, bytes.
const CHUNK: usize = 900_000;
/// zstd's level: transactions hardly compress, so little effort is spent.
const LEVEL: i32 = 1;

/// What has been sent since the last full template.
#[derive(Default)]
pub(crate) struct Sent {
    /// Tip of the last full template.
    tip: Option<[u8; 32]>,
    known: HashSet<[u8; 32]>,
    /// Ids of the last template, its id, and the offset of its last chunk.
    last: Option<(Vec<[u8; 32]>, u64, u64)>,
}

impl Sent {
    /// Id and last offset of a template with exactly these transactions, if it was the last one sent.
    pub(crate) fn same(&self, template: &Template) -> Option<(u64, u64)> {
        let (ids, id, clock) = self.last.as_ref()?;
        let same =
            self.tip == Some(template.prev_hash) && ids.iter().eq(template.transactions.iter().map(|tx| &tx.wtxid));
        same.then_some((*id, *clock))
    }

    /// The pieces of a template.
    ///
    /// # Errors
    /// If it cannot be compressed.
    pub(crate) fn chunks(&self, template_id: u64, template: &Template) -> Result<Vec<TemplateChunk>, std::io::Error> {
        let full = self.tip != Some(template.prev_hash);
        let body = template.body(|id| !full && self.known.contains(id)).encode_to_vec();
        let data = Bytes::from(zstd::bulk::compress(&body, LEVEL)?);
        let count = u32::try_from(data.len().div_ceil(CHUNK)).unwrap_or(u32::MAX);
        let piece = |index: u32| {
            let from = index as usize * CHUNK;
            let data = data.slice(from..data.len().min(from + CHUNK));
            TemplateChunk { template_id, index, count, full, data }
        };
        Ok((0..count).map(piece).collect())
    }

    /// Notes that a template has been sent and is durable up to the offset `clock`.
    pub(crate) fn note(&mut self, template_id: u64, clock: u64, template: &Template) {
        if self.tip != Some(template.prev_hash) {
            self.known.clear();
            self.tip = Some(template.prev_hash);
        }
        let ids: Vec<[u8; 32]> = template.transactions.iter().map(|tx| tx.wtxid).collect();
        self.known.extend(&ids);
        self.last = Some((ids, template_id, clock));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::absolute::LockTime;
    use bitcoin::hashes::Hash;
    use bitcoin::transaction::Version;
    use bitcoin::{Amount, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Txid, Witness};
    use sluice_mining::Sats;
    use sluice_mining::block::BlockTx;
    use sluice_proto::v1::TemplateBody;

    /// A transaction of about `size` bytes that do not compress.
    fn transaction(number: u32, size: usize) -> BlockTx {
        let mut bytes = Vec::with_capacity(size + 32);
        let mut hash = sluice_mining::double_sha256(&number.to_le_bytes());
        while bytes.len() < size {
            bytes.extend_from_slice(&hash);
            hash = sluice_mining::double_sha256(&hash);
        }
        let transaction = Transaction {
            version: Version::TWO,
            lock_time: LockTime::ZERO,
            input: vec![TxIn {
                previous_output: OutPoint { txid: Txid::from_byte_array([1; 32]), vout: number },
                script_sig: ScriptBuf::new(),
                sequence: Sequence::MAX,
                witness: Witness::from_slice(&[bytes]),
            }],
            output: vec![TxOut { value: Amount::ZERO, script_pubkey: ScriptBuf::new() }],
        };
        BlockTx::parse(bitcoin::consensus::serialize(&transaction).into()).unwrap()
    }

    fn template(tip: u8, transactions: Vec<BlockTx>) -> Template {
        Template {
            height: 1,
            prev_hash: [tip; 32],
            version: 0x2000_0000,
            nbits: 0x207f_ffff,
            cur_time: 0,
            min_time: 0,
            coinbase_value: Sats::ZERO,
            commitment: None,
            transactions,
        }
    }

    fn body(chunks: &[TemplateChunk]) -> TemplateBody {
        let data: Vec<u8> = chunks.iter().flat_map(|chunk| chunk.data.to_vec()).collect();
        TemplateBody::decode(&zstd::bulk::decompress(&data, 64 << 20).unwrap()[..]).unwrap()
    }

    #[test]
    fn a_large_template_is_cut_into_pieces_of_a_bounded_size() {
        let template = template(1, (0..9).map(|number| transaction(number, 390_000)).collect());
        let chunks = Sent::default().chunks(7, &template).unwrap();
        assert_eq!(chunks.len(), 4, "3.5 MB of what does not compress");
        for (number, chunk) in (0..).zip(&chunks) {
            assert_eq!((chunk.template_id, chunk.index, chunk.count, chunk.full), (7, number, 4, true));
            assert!(chunk.data.len() <= CHUNK && (!chunk.data.is_empty()));
        }
        let data: Vec<_> = template.transactions.iter().map(|tx| tx.data.clone()).collect();
        assert_eq!(body(&chunks).new_transactions, data);
    }

    #[test]
    fn what_was_sent_on_a_tip_is_not_sent_again_until_the_next_tip() {
        let [a, b, c] = [1, 2, 3].map(|number| transaction(number, 100));
        let mut sent = Sent::default();
        let first = template(1, vec![a.clone(), b.clone()]);
        assert_eq!(sent.same(&first), None);
        sent.note(10, 100, &first);
        assert_eq!(sent.same(&first), Some((10, 100)));
        let second = template(1, vec![c.clone(), a.clone()]);
        assert_eq!(sent.same(&second), None);
        let chunks = sent.chunks(11, &second).unwrap();
        assert!(!chunks[0].full);
        assert_eq!(body(&chunks).new_transactions, std::slice::from_ref(&c.data));
        assert_eq!(body(&chunks).wtxids, [c.wtxid, a.wtxid].concat());
        sent.note(11, 101, &second);
        // Left out once and back again: it was sent.
        let third = sent.chunks(12, &template(1, vec![b.clone()])).unwrap();
        assert!(body(&third).new_transactions.is_empty());
        assert_eq!(sent.same(&template(2, vec![c.clone(), a.clone()])), None, "another tip");
        let next = sent.chunks(13, &template(2, vec![a.clone()])).unwrap();
        assert!(next[0].full);
        assert_eq!(body(&next).new_transactions, [a.data]);
    }
}
