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
