//! What the tests of this crate share: a block made by `sluice-mining` from a node's template.

use bitcoin::hashes::Hash;
use bitcoin::{Block, ScriptBuf};
use serde_json::{Value, json};
use sluice_mining::Chain;
use sluice_mining::block::BlockTx;
use sluice_mining::template::{JobParams, Template, build_job};
use sluice_proto::v1::Job;
use sluice_testkit::rpc::{Rpc, RpcError};
use sluice_testkit::work::{Work, solve_block};

/// What the pool of these tests is paid to.
pub fn payout() -> ScriptBuf {
    ScriptBuf::new_p2wpkh(&bitcoin::WPubkeyHash::from_byte_array([0x77; 20]))
}

/// The node's template.
pub fn template(rpc: &Rpc, chain: Chain) -> Template {
    let rules = if chain == Chain::Signet { json!(["segwit", "signet"]) } else { json!(["segwit"]) };
    let template = rpc.call("getblocktemplate", &json!([{ "rules": rules }])).unwrap();
    Template::from_gbt(&template.to_string()).unwrap()
}

/// A job of a template, as the jobmanager makes it. `number` makes its coinbase unique.
pub fn job(template: &Template, chain: Chain, number: u64) -> Job {
    let params = JobParams {
        job_id: number,
        template_id: 1,
        template_clock: 1,
        payout: payout(),
        tag: b"/sluice test/",
        source_tag: number.to_be_bytes(),
        version_mask: 0x1fff_e000,
        stale_grace_ms: 0,
        keep_ms: 60_000,
        clean: true,
        chain,
    };
    build_job(template, &params).unwrap()
}

/// Mines a job and puts the block together.
pub fn solve(job: &Job, transactions: &[BlockTx]) -> Vec<u8> {
    solve_block(job, 0x0100_000a, transactions).unwrap()
}

/// A block made from the node's template of the moment.
pub fn block_of(rpc: &Rpc, chain: Chain, number: u64) -> (Template, Block) {
    let template = template(rpc, chain);
    let block = solve(&job(&template, chain, number), &template.transactions);
    (template, bitcoin::consensus::deserialize(&block).unwrap())
}

/// Submits a block: null if it is taken, else the node's reason.
pub fn submit(rpc: &Rpc, block: &Block) -> Value {
    rpc.call("submitblock", &json!([bitcoin::consensus::encode::serialize_hex(block)])).unwrap()
}

/// Solves a header again after the block was changed; its merkle root is made right if `merkle` is set.
pub fn mine_again(block: &mut Block, merkle: bool) {
    if merkle {
        block.header.merkle_root = block.compute_merkle_root().unwrap();
    }
    let target = sluice_mining::Target::from_compact(block.header.bits.to_consensus()).unwrap();
    let work = Work::new(bitcoin::consensus::serialize(&block.header).try_into().unwrap());
    block.header.nonce = work.search(target, 0, 1 << 32).unwrap().0;
}

/// Code and message of a refused call.
pub fn refusal(rpc: &Rpc, method: &str, params: Value) -> (i64, String) {
    let error = rpc.call(method, &params).unwrap_err();
    let error = error.downcast_ref::<RpcError>().unwrap();
    (error.code, error.message.clone())
}
