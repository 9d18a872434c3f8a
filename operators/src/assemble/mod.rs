//! `assemble`: candidate and template to a full block, checked before it is sent on (DESIGN 6, invariant B1).

#[cfg(test)]
mod tests;

use sluice_mining::{block, header_hash, wire};
use sluice_proto::v1::{Candidate, SolvedBlock};
use sluice_proto::{Body, EventTime, Offset, RecordKind};
use sluice_topology::{
    BuildContext, Context, Input, InputSpec, Key, Keyed, Kind, Operator, OperatorError, OutputSpec, Parallel, Role,
};

use crate::tables::template_table::TemplateTable;

/// What the topology knows of it.
pub static KIND: Kind = Kind {
    name: "assemble",
    summary: "makes blocks of candidates and their templates",
    inputs: &[InputSpec { name: "in", accepts: &[RecordKind::Candidate], optional: false, priority: true }],
    outputs: &[OutputSpec {
        name: "out",
        writes: &[RecordKind::SolvedBlock],
        optional: false,
        keyed: Keyed::BlockHash,
    }],
    lookups: &["template_table"],
    settings: &[],
    state: &[],
    parallel: Parallel::PerPartition,
    role: Role::Operator(build),
};

fn build(_: &BuildContext<'_>) -> Result<Box<dyn Operator>, OperatorError> {
    Ok(Box::new(Assemble))
}

struct Assemble;

impl Operator for Assemble {
    fn process(&mut self, input: &Input<'_>, cx: &mut Context<'_>) -> Result<(), OperatorError> {
        let Body::Candidate(candidate) = &**input.record else {
            return Err(crate::unexpected("assemble", input));
        };
        let time = input.event_time;
        match solve(candidate, time, cx.lookup::<TemplateTable>("template_table")?) {
            Ok(solved) => cx.emit("out", Key::Bytes(solved.hash.clone()), time, Body::SolvedBlock(solved)),
            // The record stays in its topic: nothing is lost, but no node would take this block.
            Err(cause) => tracing::error!(
                height = candidate.height,
                job = %wire::job_id(candidate.job_id),
                topic = %input.source.topic, partition = input.source.partition, offset = %input.source.offset,
                cause, "a candidate cannot be made a block"
            ),
        }
        Ok(())
    }

    fn requires(&self, record: &Body) -> Option<(&'static str, Offset)> {
        match record {
            Body::Candidate(candidate) => Some(("template_table", Offset::new(candidate.template_clock))),
            _ => None,
        }
    }
}

fn solve(candidate: &Candidate, found: EventTime, templates: &TemplateTable) -> Result<SolvedBlock, String> {
    let header: &[u8; 80] =
        candidate.header[..].try_into().map_err(|_| format!("a header of {} bytes", candidate.header.len()))?;
    let transactions = match candidate.template_id {
        0 => Vec::new(),
        id => templates.transactions(id).ok_or_else(|| format!("template {id:x} is not known"))?,
    };
    let block = block::assemble(header, &candidate.coinbase, candidate.segwit, &transactions)
        .map_err(|error| error.to_string())?;
    Ok(SolvedBlock {
        hash: header_hash(header).to_vec().into(),
        block: block.into(),
        height: candidate.height,
        coinbase_value: candidate.coinbase_value,
        nbits: candidate.nbits,
        account: candidate.account.clone(),
        worker: candidate.worker.clone(),
        found_ns: found.nanos(),
    })
}
