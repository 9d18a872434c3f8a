//! What is fuzzed: one function per parser, called with any bytes. A panic is a finding.
//!
//! The same functions run under libFuzzer (`fuzz_targets/`) and, over the corpus, in `cargo test` (`tests/corpus`).

mod stratum;

use sluice_mining::block::{self, BlockError};
use sluice_mining::template::{JobParams, Template, build_job};
use sluice_mining::{Chain, Difficulty, JobTable, PreparedJob};
use sluice_operators::tables::template_table::TemplateTable;
use sluice_proto::v1::{Coordinates, Envelope, Submission, TemplateChunk};
use sluice_proto::{Body, EventTime, Offset, decode, encode};
use sluice_topology::draw::{Format, draw};
use sluice_topology::{BroadcastTable, Environment, FileText, Graph, Registry, Report, load};

pub use stratum::{line_reader, play, proxy_header, request, session};

/// A target, as a function of any bytes.
pub type Target = fn(&[u8]);

/// Every target under the name of its corpus folder and of its file in `fuzz_targets/`.
pub const ALL: [(&str, Target); 9] = [
    ("difficulty", difficulty),
    ("getblocktemplate", getblocktemplate),
    ("line_reader", line_reader),
    ("proxy_header", proxy_header),
    ("record", record),
    ("request", request),
    ("session", session),
    ("template_body", template_body),
    ("topology", topology),
];

/// A record of any topic: what is read is written back the same, and nothing that takes it panics.
pub fn record(data: &[u8]) {
    let Ok(envelope) = decode(data.to_vec().into()) else { return };
    let again = decode(encode(&envelope)).expect("what was encoded can be read");
    assert_eq!(again, envelope);
    serde_json::to_string(&envelope).expect("every record can be shown");
    match &envelope.body {
        Some(Body::Job(job)) => {
            let mut table = JobTable::new();
            if table.apply(Offset::new(1), envelope.event_time(), job.clone()).is_ok() {
                let share = Submission { job_id: job.job_id, job_clock: 1, ..Submission::default() };
                assert!(table.judge(&share, envelope.event_time()).hash.is_some());
            }
        }
        Some(Body::Submission(submission)) => {
            let judgement = JobTable::new();
            assert!(!judgement.judge(submission, envelope.event_time()).is_block);
        }
        Some(Body::TemplateChunk(_)) => {
            let _ = TemplateTable::default().apply(Offset::new(1), &envelope);
        }
        _ => (),
    }
}

/// The transactions of a template, as `mining.templates` carries them in one piece.
pub fn template_body(data: &[u8]) {
    let Ok(compressed) = zstd::bulk::compress(data, 1) else { return };
    let chunk = TemplateChunk { template_id: 1, index: 0, count: 1, full: true, data: compressed.into() };
    let body = Body::TemplateChunk(chunk);
    let envelope = Envelope::new(EventTime::from_nanos(1), Coordinates::default(), body);
    let mut table = TemplateTable::default();
    if table.apply(Offset::new(1), &envelope).is_ok() {
        assert!(table.transactions(1).is_some(), "a template that was taken is there");
    }
}

/// A node's template: what is taken can be mined on, and its blocks are sound.
pub fn getblocktemplate(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(template) = Template::from_gbt(text) else { return };
    let params = JobParams {
        job_id: 1,
        template_id: 1,
        template_clock: 1,
        payout: bitcoin::ScriptBuf::from_bytes(vec![0x51]),
        tag: b"/sluice/",
        source_tag: [1; 8],
        version_mask: 0x1fff_e000,
        stale_grace_ms: 0,
        keep_ms: 0,
        clean: true,
        chain: Chain::Main,
    };
    let job = build_job(&template, &params).expect("a template that was read has a job");
    let prepared = PreparedJob::new(Offset::new(1), EventTime::default(), job.clone()).expect("a job of ours is sound");
    let header = prepared.header(&Submission::default());
    match block::assemble(&header, &block::coinbase_bytes(&job, 0, 0), job.segwit, &template.transactions) {
        Ok(bytes) => {
            if let Ok(block) = bitcoin::consensus::deserialize::<bitcoin::Block>(&bytes) {
                assert!(block.check_merkle_root());
            }
        }
        Err(error) => assert!(matches!(error, BlockError::Weight(_)), "{error}"),
    }
}

/// A difficulty as miners and people write it.
pub fn difficulty(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Some(difficulty) = Difficulty::parse_wire(text) else { return };
    assert!((Difficulty::MIN..=Difficulty::MAX).contains(&difficulty));
    assert_eq!(difficulty.floor_to_allowed(), difficulty);
    assert_eq!(Difficulty::parse_wire(&difficulty.to_string()), Some(difficulty), "it prints exactly");
    assert_eq!(Difficulty::of_target(difficulty.to_target()), difficulty);
}

/// A topology file: it has a graph that can be drawn, or problems with a place in the file; no secret is ever shown.
pub fn topology(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let shown = match checked(text) {
        Ok(graph) => [Format::Mermaid, Format::Dot, Format::Svg].map(|format| draw(&graph, format)).concat(),
        Err(report) => {
            assert!(!report.problems().is_empty());
            for problem in report.problems() {
                let at = report.position(problem);
                assert!(at.line >= 1 && at.column >= 1 && at.line <= text.matches('\n').count() + 1);
                assert!(!problem.message.is_empty() && !problem.hint.is_empty());
            }
            report.plain() + &report.fancy(false, 100)
        }
    };
    assert!(!shown.contains(SECRET) || text.contains(SECRET));
}

const SECRET: &str = "hunter2-hunter2";

/// Checks a topology with all kinds that the binary has, in an environment with a secret.
pub fn checked(text: &str) -> Result<Graph, Report> {
    let mut kinds = sluice_operators::KINDS.to_vec();
    kinds.extend([&sluice_api::KIND, &sluice_gateway::KIND, &sluice_jobmanager::KIND]);
    kinds.sort_by_key(|kind| kind.name);
    let registry = Registry { kinds, tables: sluice_operators::TABLES.to_vec() };
    let env = Environment::new([("BITCOIN_RPC_AUTH", SECRET), ("POOL_ADDRESS", "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa")]);
    load(&FileText::new("topology.yaml", text), &registry, &env)
}
