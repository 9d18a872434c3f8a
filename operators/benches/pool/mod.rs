//! What the benches of the share processor have in common: a topology, its jobs, and shares mined for them.

use std::time::Duration;

use sluice_mining::{PreparedJob, header_hash};
use sluice_operators::{KINDS, TABLES};
use sluice_proto::RecordKind;
use sluice_proto::v1::{Job, Submission};
use sluice_topology::{
    Environment, FileText, Graph, InputSpec, Keyed, Kind, OutputSpec, Parallel, Registry, Role, load,
};

use crate::records;

const TOPOLOGY: &str = "version: 1
bitcoin: { network: regtest, payout: bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080, nodes: [ { rpc: 'http://127.0.0.1:18443', auth: '${RPC_AUTH}' } ] }
topics:
  mining.jobs: {}
  share.submissions: { partitions: 1 }
  share.checked: { direct: true }
  share.judged: { direct: true }
  share.rejected: { archive: true }
  share.tallies: { archive: true }
  difficulty.targets: {}
tables:
  jobs: { from: mining.jobs, kind: job_table }
operators:
  pool: { kind: pool, jobs: mining.jobs, shares: share.submissions, targets: difficulty.targets }
  verify: { kind: verify, in: share.submissions, tables: [jobs], out: share.checked }
  dedupe: { kind: dedupe, in: share.checked, out: share.judged, rejected: share.rejected }
  vardiff: { kind: vardiff, in: share.judged, out: difficulty.targets }
  tally: { kind: tally, in: share.judged, out: share.tallies }
";

static POOL: Kind = Kind {
    name: "pool",
    summary: "Gateway and jobmanager of the bench.",
    inputs: &[InputSpec {
        name: "targets",
        accepts: &[RecordKind::DifficultyTarget],
        optional: false,
        priority: false,
    }],
    outputs: &[
        OutputSpec { name: "jobs", writes: &[RecordKind::Job], optional: false, keyed: Keyed::Single },
        OutputSpec {
            name: "shares",
            writes: &[RecordKind::Submission, RecordKind::Tick],
            optional: false,
            keyed: Keyed::Session,
        },
    ],
    lookups: &[],
    settings: &[],
    state: &[],
    parallel: Parallel::Single,
    role: Role::Service,
};

/// The topology with this many partitions.
pub fn graph(partitions: u32) -> Graph {
    let mut kinds: Vec<&'static Kind> = KINDS.iter().copied().chain([&POOL]).collect();
    kinds.sort_by_key(|kind| kind.name);
    let registry = Registry { kinds, tables: TABLES.to_vec() };
    let environment = Environment::new([("RPC_AUTH", "user:password")]);
    let text = TOPOLOGY.replace("{ partitions: 1 }", &format!("{{ partitions: {partitions} }}"));
    load(&FileText::new("topology.yaml", &text), &registry, &environment).unwrap_or_else(|report| panic!("{report}"))
}

/// A job with a coinbase of 250 bytes and 12 levels of the merkle tree.
pub fn job(id: u64) -> Job {
    Job {
        coinbase1: [&[1; 92][..], &id.to_be_bytes()].concat().into(),
        coinbase2: vec![2; 138].into(),
        merkle_branch: (0..12).map(|level| vec![level; 32].into()).collect(),
        nbits: 0x1702_5a2c,
        ..records::job(id, 1)
    }
}

/// The share with a nonce that meets the smallest difficulty.
pub fn mined(job: &PreparedJob, mut share: Submission) -> Submission {
    let mut header = job.header(&share);
    loop {
        header[76..80].copy_from_slice(&share.nonce.to_le_bytes());
        let hash = header_hash(&header);
        // The target of the smallest difficulty: 8 bits of zeros, and one value below the next 16 of ones.
        if hash[31] == 0 && hash[29..31] != [0xff, 0xff] {
            return share;
        }
        share.nonce += 1;
    }
}

/// CPU time of the whole process, in ticks of 10 ms: task, log, and what RocksDB does beside them.
pub fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    let ticks = |at: usize| fields[at].parse::<u64>().unwrap();
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}
