//! The calls of a simulated node, with Bitcoin Core's names, results, error codes and messages.

use std::time::{Duration, Instant};

use bitcoin::{Block, BlockHash};
use serde_json::{Value, json};
use sluice_mining::{Chain as Network, Target};

use super::chain::{Chain, Entry, Fate};
use super::faults::Refusal;
use super::http::Answer;
use super::state::{Shared, State, unix_time};
use super::{Origin, template, validate};

/// How long `getblocktemplate` waits for more transactions where nothing else changes, as in Bitcoin Core.
const LONGPOLL: Duration = Duration::from_secs(60);

/// An error of a call.
struct Failure(i32, String);

type Outcome = Result<Value, Failure>;

fn failure<T>(code: i32, message: impl Into<String>) -> Result<T, Failure> {
    Err(Failure(code, message.into()))
}

/// Answers one request or a batch of them.
pub(super) fn answer(shared: &Shared, body: &[u8]) -> Answer {
    match serde_json::from_slice::<Value>(body) {
        Ok(Value::Array(calls)) => {
            let mut answers = Vec::new();
            for call in &calls {
                match answer_one(shared, call) {
                    Ok((_, answer)) => answers.push(answer),
                    Err(refused) => return refused,
                }
            }
            Answer::Respond(200, Value::Array(answers).to_string().into_bytes())
        }
        Ok(call) => match answer_one(shared, &call) {
            Ok((status, answer)) => Answer::Respond(status, answer.to_string().into_bytes()),
            Err(refused) => refused,
        },
        Err(_) => {
            let error = json!({ "result": null, "error": { "code": -32700, "message": "Parse error" }, "id": null });
            Answer::Respond(500, error.to_string().into_bytes())
        }
    }
}

/// Status and answer of a call, or what takes their place where the call is refused without an answer.
fn answer_one(shared: &Shared, call: &Value) -> Result<(u16, Value), Answer> {
    let id = call.get("id").cloned().unwrap_or(Value::Null);
    let second_version = call.get("jsonrpc").and_then(Value::as_str) == Some("2.0");
    let method = call.get("method").and_then(Value::as_str).unwrap_or_default();
    let params = call.get("params").cloned().unwrap_or(Value::Null);
    shared.count(method);
    let outcome = if shared.stop.wait(shared.faults.pause_before(method)) {
        return Err(Answer::Close);
    } else {
        match shared.faults.refusal_of(method) {
            Some(Refusal::Close) => return Err(Answer::Close),
            Some(Refusal::Http(status)) => return Err(Answer::Respond(status, Vec::new())),
            Some(Refusal::Error(code, message)) => failure(code, message),
            None => call_method(shared, method, &params),
        }
    };
    Ok(match (outcome, second_version) {
        (Ok(result), true) => (200, json!({ "jsonrpc": "2.0", "result": result, "id": id })),
        (Ok(result), false) => (200, json!({ "result": result, "error": null, "id": id })),
        (Err(Failure(code, message)), true) => {
            (200, json!({ "jsonrpc": "2.0", "error": { "code": code, "message": message }, "id": id }))
        }
        (Err(Failure(code, message)), false) => {
            let status = if code == -32601 { 404 } else { 500 };
            (status, json!({ "result": null, "error": { "code": code, "message": message }, "id": id }))
        }
    })
}

fn call_method(shared: &Shared, method: &str, params: &Value) -> Outcome {
    let argument = |place: usize, name: &str| match params {
        Value::Array(list) => list.get(place).filter(|value| !value.is_null()),
        Value::Object(named) => named.get(name).filter(|value| !value.is_null()),
        _ => None,
    };
    match method {
        "getblocktemplate" => get_block_template(shared, argument(0, "template_request")),
        "submitblock" => submit_block(shared, argument(0, "hexdata")),
        "preciousblock" => {
            let hash = hash_argument(argument(0, "blockhash"), "blockhash")?;
            match shared.prefer(&hash) {
                Ok(true) => Ok(Value::Null),
                Ok(false) => failure(-5, "Block not found"),
                Err(error) => failure(-1, format!("{error:#}")),
            }
        }
        "getbestblockhash" => Ok(json!(shared.state.lock().chain.tip().to_string())),
        "getblockcount" => Ok(json!(shared.state.lock().chain.height())),
        "getblockhash" => {
            let height = argument(0, "height").and_then(Value::as_i64);
            let Some(height) = height else {
                return failure(-3, "JSON value of type null is not of expected type number");
            };
            let hash = u32::try_from(height).ok().and_then(|height| shared.state.lock().chain.at(height));
            hash.map_or_else(|| failure(-8, "Block height out of range"), |hash| Ok(json!(hash.to_string())))
        }
        "getblockheader" => {
            let hash = hash_argument(argument(0, "blockhash"), "blockhash")?;
            let state = shared.state.lock();
            let Some(entry) = state.chain.get(&hash) else { return failure(-5, "Block not found") };
            if argument(1, "verbose") == Some(&json!(false)) {
                return Ok(json!(bitcoin::consensus::encode::serialize_hex(&entry.block.header)));
            }
            Ok(header(&state.chain, entry))
        }
        "getblock" => {
            let hash = hash_argument(argument(0, "blockhash"), "blockhash")?;
            let state = shared.state.lock();
            let Some(entry) = state.chain.get(&hash) else { return failure(-5, "Block not found") };
            if [Some(&json!(0)), Some(&json!(false))].contains(&argument(1, "verbosity")) {
                return Ok(json!(hex::encode(validate::bytes(&entry.block))));
            }
            let mut block = header(&state.chain, entry);
            let ids: Vec<String> = entry.block.txdata.iter().map(|tx| tx.compute_txid().to_string()).collect();
            block["tx"] = json!(ids);
            block["size"] = json!(entry.block.total_size());
            block["weight"] = json!(entry.block.weight().to_wu());
            Ok(block)
        }
        "getblockchaininfo" => Ok(blockchain_info(&shared.state.lock())),
        "uptime" => Ok(json!(shared.since.elapsed().as_secs())),
        "getnetworkinfo" => Ok(network_info()),
        "getmempoolinfo" => Ok(mempool_info(&shared.state.lock())),
        "getrawmempool" => {
            let state = shared.state.lock();
            Ok(state.mempool.iter().map(|waiting| json!(waiting.txid.to_string())).collect())
        }
        _ => failure(-32601, "Method not found"),
    }
}

fn hash_argument(argument: Option<&Value>, name: &str) -> Result<BlockHash, Failure> {
    let text = argument.and_then(Value::as_str).unwrap_or_default();
    if text.len() != 64 {
        return failure(-8, format!("{name} must be of length 64 (not {}, for '{text}')", text.len()));
    }
    text.parse().or_else(|_| failure(-8, format!("{name} must be hexadecimal string (not '{text}')")))
}

fn get_block_template(shared: &Shared, request: Option<&Value>) -> Outcome {
    let field = |name: &str| request.and_then(|request| request.get(name));
    if field("mode").and_then(Value::as_str).is_some_and(|mode| mode != "template") {
        return failure(-8, "Invalid mode");
    }
    let rules: Vec<&str> =
        field("rules").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    let network = shared.state.lock().chain.network();
    if network == Network::Signet && !rules.contains(&"signet") {
        return failure(
            -8,
            "getblocktemplate must be called with the signet rule set (call with {\"rules\": [\"segwit\", \"signet\"]})",
        );
    }
    if !rules.contains(&"segwit") {
        return failure(
            -8,
            "getblocktemplate must be called with the segwit rule set (call with {\"rules\": [\"segwit\"]})",
        );
    }
    let mut state = shared.state.lock();
    if let Some(known) = field("longpollid").and_then(Value::as_str) {
        let deadline = Instant::now() + LONGPOLL;
        // A new tip ends the wait at once, other transactions only after a while.
        while known.starts_with(&state.chain.tip().to_string()) {
            if shared.stop.is_set() {
                return failure(-9, "Shutting down");
            }
            let other = known != template::longpoll_id(&state.chain, &state.mempool);
            let late = shared.changed.wait_until(&mut state, deadline).timed_out();
            if late && other {
                break;
            } else if late {
                shared.changed.wait_for(&mut state, Duration::from_secs(10));
            }
        }
    }
    let now = shared.faults.stopped_clock().unwrap_or_else(unix_time);
    Ok(template::template(&state.chain, &state.mempool, now))
}

fn submit_block(shared: &Shared, data: Option<&Value>) -> Outcome {
    let bytes = data.and_then(Value::as_str).and_then(|data| hex::decode(data).ok());
    let block = bytes.and_then(|bytes| bitcoin::consensus::deserialize::<Block>(&bytes).ok());
    let Some(mut block) = block else { return failure(-22, "Block decode failed") };
    if let Some(reason) = shared.faults.block_refusal() {
        return Ok(json!(reason));
    }
    validate::complete(&mut block);
    match shared.accept(block, Origin::Submitted) {
        Ok(Fate::Tip) => Ok(Value::Null),
        Ok(Fate::Duplicate) => Ok(json!("duplicate")),
        Ok(Fate::Side) => Ok(json!("inconclusive")),
        Ok(Fate::Invalid(reason)) => Ok(json!(reason)),
        Err(error) => failure(-1, format!("{error:#}")),
    }
}

/// The result of `getblockheader`.
fn header(chain: &Chain, entry: &Entry) -> Value {
    let header = &entry.block.header;
    let hash = header.block_hash();
    let active = chain.is_active(&hash);
    let confirmations = if active { i64::from(chain.height() - entry.height) + 1 } else { -1 };
    let mut shown = json!({
        "hash": hash.to_string(),
        "confirmations": confirmations,
        "height": entry.height,
        "version": header.version.to_consensus(),
        "versionHex": format!("{:08x}", header.version.to_consensus()),
        "merkleroot": header.merkle_root.to_string(),
        "time": header.time,
        "mediantime": entry.median_time,
        "nonce": header.nonce,
        "bits": format!("{:08x}", header.bits.to_consensus()),
        "difficulty": difficulty(header.bits.to_consensus()),
        "chainwork": format!("{:064x}", chain.work(entry.height)),
        "nTx": entry.block.txdata.len(),
    });
    if entry.height > 0 {
        shown["previousblockhash"] = json!(header.prev_blockhash.to_string());
    }
    if active && let Some(next) = chain.at(entry.height + 1) {
        shown["nextblockhash"] = json!(next.to_string());
    }
    shown
}

/// Difficulty as Bitcoin Core shows it: a float, for people.
fn difficulty(nbits: u32) -> f64 {
    let one = Target::from_compact(0x1d00_ffff).map_or(0, |target| target.work().get());
    Target::from_compact(nbits).map_or(0.0, |target| target.work().get() as f64 / one as f64)
}

fn blockchain_info(state: &State) -> Value {
    let chain = &state.chain;
    let tip = chain.tip();
    let time = chain.get(&tip).map_or(0, |entry| entry.block.header.time);
    json!({
        "chain": chain.network().as_str(),
        "blocks": chain.height(),
        "headers": chain.height(),
        "bestblockhash": tip.to_string(),
        "bits": format!("{:08x}", chain.nbits()),
        "difficulty": difficulty(chain.nbits()),
        "time": time,
        "mediantime": chain.median_time(&tip),
        "verificationprogress": 1,
        "initialblockdownload": false,
        "chainwork": format!("{:064x}", chain.work(chain.height())),
        "size_on_disk": 0,
        "pruned": false,
        "warnings": [],
    })
}

fn network_info() -> Value {
    json!({
        "version": 299_900,
        "subversion": "/Satoshi:29.99.0(simulated)/",
        "protocolversion": 70016,
        "localservices": "0000000000000c09",
        "localservicesnames": ["NETWORK", "WITNESS", "NETWORK_LIMITED", "P2P_V2"],
        "localrelay": true,
        "timeoffset": 0,
        "networkactive": true,
        "connections": 8,
        "connections_in": 0,
        "connections_out": 8,
        "networks": [],
        "relayfee": 0.00001,
        "incrementalfee": 0.00001,
        "localaddresses": [],
        "warnings": [],
    })
}

fn mempool_info(state: &State) -> Value {
    let bytes: usize = state.mempool.iter().map(|waiting| waiting.transaction.vsize()).sum();
    let fees: bitcoin::Amount = state.mempool.iter().map(|waiting| waiting.fee).sum();
    json!({
        "loaded": true,
        "size": state.mempool.len(),
        "bytes": bytes,
        "usage": bytes,
        "total_fee": fees.to_btc(),
        "maxmempool": 300_000_000,
        "mempoolminfee": 0.00001,
        "minrelaytxfee": 0.00001,
        "incrementalrelayfee": 0.00001,
        "unbroadcastcount": 0,
        "fullrbf": true,
    })
}
