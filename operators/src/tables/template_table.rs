//! `template_table`: the transactions of templates, from `mining.templates`.
//!
//! A full template begins an era; later ones of the era carry only what is new. The transactions of the last
//! `ERAS` eras are kept, so that a block found on the tip before the last still finds its transactions.

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
        self.eras.iter().rev().find_map(|era| {
            let ids = era.templates.get(&template_id)?;
            ids.iter().map(|id| era.transactions.get(id).cloned()).collect()
        })
    }

    fn take(&mut self, offset: Offset, chunk: &TemplateChunk) -> Result<(), OperatorError> {
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

    fn as_any(&self) -> &dyn Any {
        self
    }
}
