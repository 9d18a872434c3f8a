//! `template_table`: the transactions of templates, from `mining.templates`.
//!
//! A full template begins an era; later ones of the era carry only what is new. The transactions of the last
//! `ERAS` eras are kept, so that a block found on the tip before the last still finds its transactions at once. What an
//! older candidate cites is recalled from the topic: no candidate goes without its block because it had to wait.

use std::any::Any;
use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::Bytes;
use prost::Message;
use sluice_mining::block::BlockTx;
use sluice_proto::v1::{Envelope, TemplateBody, TemplateChunk};
use sluice_proto::{Body, Offset, RecordKind};
use sluice_topology::{BroadcastTable, BuildContext, OperatorError, TableKind};

/// How many eras (tips) are kept.
const ERAS: usize = 4;
/// Largest size of a template's transactions, decompressed; a block has at most 4 MB.
const MAX_BODY: usize = 64 << 20;

/// What the topology knows of it.
pub static KIND: TableKind = TableKind {
    name: "template_table",
    summary: "transactions of templates",
    accepts: &[RecordKind::TemplateChunk],
    settings: &[],
    build: |_: &BuildContext<'_>| Ok(Box::new(TemplateTable::default())),
};

/// The table.
#[derive(Default)]
pub struct TemplateTable {
    eras: VecDeque<Era>,
    applied: Offset,
    partial: Option<Partial>,
    recalled: Option<Recalled>,
}

/// An era that had been forgotten, as far as a candidate needs it.
struct Recalled {
    era: Era,
    to: Offset,
}

struct Era {
    /// Offset of the full template's first chunk.
    from: Offset,
    transactions: HashMap<[u8; 32], BlockTx>,
    /// Ids with witness, in block order, by template id.
    templates: BTreeMap<u64, Vec<[u8; 32]>>,
}

/// A template whose chunks have not all come.
struct Partial {
    from: Offset,
    first: TemplateChunk,
    data: Vec<u8>,
    chunks: u32,
}

impl TemplateTable {
    /// The transactions of a template in block order; `None` if it is not known (any more).
    pub fn transactions(&self, template_id: u64) -> Option<Vec<BlockTx>> {
        let recalled = self.recalled.iter().map(|recalled| &recalled.era);
        self.eras.iter().rev().chain(recalled).find_map(|era| {
            let ids = era.templates.get(&template_id)?;
            ids.iter().map(|id| era.transactions.get(id).cloned()).collect()
        })
    }

    fn take(&mut self, offset: Offset, chunk: &TemplateChunk) -> Result<(), OperatorError> {
        if self.eras.is_empty() && self.partial.is_none() && !begins_era(chunk) {
            // The log has trimmed the beginning of its era.
            tracing::debug!(%offset, template = chunk.template_id, "a chunk whose beginning is not there any more");
            return Ok(());
        }
        let wrong = |what: &str| {
            OperatorError::Record(format!("template {:x}, chunk {}: {what}", chunk.template_id, chunk.index))
        };
        let partial = match self.partial.take() {
            Some(mut partial) if chunk.index != 0 => {
                if partial.first.template_id != chunk.template_id || partial.chunks != chunk.index {
                    return Err(wrong("not the next chunk of the template begun before"));
                }
                partial.data.extend_from_slice(&chunk.data);
                partial.chunks += 1;
                partial
            }
            // A jobmanager that stopped between two chunks leaves a torso; its next start begins a full template.
            _ if chunk.index == 0 => {
                Partial { from: offset, first: chunk.clone(), data: chunk.data.to_vec(), chunks: 1 }
            }
            _ => return Err(wrong("its template's beginning is missing")),
        };
        if partial.chunks < chunk.count {
            self.partial = Some(partial);
            return Ok(());
        }
        let body = zstd::bulk::decompress(&partial.data, MAX_BODY).map_err(|error| wrong(&error.to_string()))?;
        let body = TemplateBody::decode(Bytes::from(body)).map_err(|error| wrong(&error.to_string()))?;
        self.add(partial.from, &partial.first, &body).map_err(|what| wrong(&what))
    }

    fn add(&mut self, from: Offset, chunk: &TemplateChunk, body: &TemplateBody) -> Result<(), String> {
        if chunk.full {
            self.eras.push_back(Era { from, transactions: HashMap::new(), templates: BTreeMap::new() });
            while self.eras.len() > ERAS {
                self.eras.pop_front();
            }
        }
        let era = self.eras.back_mut().ok_or("no full template came before it")?;
        for data in &body.new_transactions {
            let transaction = BlockTx::parse(data.clone()).map_err(|error| error.to_string())?;
            era.transactions.insert(transaction.wtxid, transaction);
        }
        let (ids, []) = body.wtxids.as_chunks::<32>() else {
            return Err(format!("{} bytes of transaction ids", body.wtxids.len()));
        };
        if let Some(missing) = ids.iter().find(|id| !era.transactions.contains_key(*id)) {
            return Err(format!("transaction {} was never sent", sluice_mining::wire::display_hash(missing)));
        }
        era.templates.insert(chunk.template_id, ids.to_vec());
        Ok(())
    }
}

impl BroadcastTable for TemplateTable {
    fn apply(&mut self, offset: Offset, record: &Envelope) -> Result<(), OperatorError> {
        let Some(Body::TemplateChunk(chunk)) = &record.body else {
            return Err(OperatorError::Record(format!("offset {offset} of template_table's topic is no template")));
        };
        self.applied = offset;
        self.take(offset, chunk)
    }

    fn keep_from(&self) -> Offset {
        self.eras.front().map_or(self.applied, |era| era.from)
    }

    fn has_forgotten(&self, offset: Offset) -> bool {
        // 0 is what a block without transactions cites.
        let recalled = self.recalled.as_ref().is_some_and(|Recalled { era, to }| (era.from..=*to).contains(&offset));
        offset > Offset::ZERO && offset < self.keep_from() && !recalled
    }

    fn recall(&mut self, offset: Offset, records: &[(Offset, Envelope)]) -> Result<bool, OperatorError> {
        let begins = |(_, record): &(Offset, Envelope)| match &record.body {
            Some(Body::TemplateChunk(chunk)) => begins_era(chunk),
            _ => false,
        };
        // A full template that a stop cut off is followed by another one before anything cites it.
        let Some(first) = records.iter().rposition(begins) else { return Ok(false) };
        let mut again = Self::default();
        for (at, record) in &records[first..] {
            again.apply(*at, record)?;
        }
        self.recalled = again.eras.pop_back().map(|era| Recalled { era, to: offset });
        Ok(true)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn begins_era(chunk: &TemplateChunk) -> bool {
    chunk.full && chunk.index == 0
}
