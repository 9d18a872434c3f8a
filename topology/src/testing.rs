//! Kinds for tests, wired like the real ones, and a topology of them.

use sluice_proto::RecordKind::{
    BlockOutcome, Candidate, DifficultyTarget, Job, SliceEnd, SolvedBlock, Submission, Tally, TemplateChunk, Tick,
    Verdict,
};

use crate::kind::{
    InputSpec, Keyed, Kind, OutputSpec, Parallel, Registry, Role, SettingSpec, SettingType, StateTable, TableKind,
};
use crate::operator::{BroadcastTable, BuildContext, Operator, OperatorError};
use crate::spec::{Environment, FileText};
use crate::{Graph, Report, load};
use sluice_proto::RecordKind;

/// A topology of the test kinds without a mistake.
pub(crate) const GOOD: &str = r#"version: 1
bitcoin:
  network: regtest
  payout: bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080
  nodes: [ { rpc: http://127.0.0.1:18443, auth: ${RPC_AUTH}, zmq: tcp://127.0.0.1:28332 } ]
topics:
  mining.jobs:        { retention: 60d }
  mining.templates:   { retention: 60d }
  share.submissions:  { partitions: 8, retention: 30d }
  share.checked:      { direct: true }
  share.judged:       { direct: true }
  share.valid:        { partitions: 8, archive: true }
  share.tallies:      { partitions: 4 }
  block.candidates:   { retention: 30d }
  block.solved:
  block.outcomes:     {}
  difficulty.targets: { partitions: 8, retention: 2d }
tables:
  jobs:      { from: mining.jobs, kind: job_table, keep: 10m }
  templates: { from: mining.templates, kind: template_table }
operators:
  stratumd:   { kind: gateway, id: 1, listen: [ "0.0.0.0:3333" ], jobs: mining.jobs, targets: difficulty.targets,
                shares: share.submissions, candidates: block.candidates }
  jobmanager: { kind: jobmanager, jobs: mining.jobs, templates: mining.templates }
  verify:     { kind: verify, in: share.submissions, tables: [jobs], out: share.checked }
  dedupe:     { kind: dedupe, in: share.checked, out: share.judged, valid: share.valid }
  vardiff:    { kind: vardiff, in: share.judged, out: difficulty.targets }
  tally:      { kind: tally, in: share.judged, out: share.tallies }
  assemble:   { kind: assemble, in: block.candidates, tables: [templates], out: block.solved }
  submit:     { kind: submit, in: block.solved, jobs: mining.jobs, out: block.outcomes }
  ledger:     { kind: ledger, tallies: share.tallies, outcomes: block.outcomes }
  stats:      { kind: stats, in: share.tallies }
"#;

/// `GOOD` with each `from` replaced by its `to`.
pub(crate) fn changed(changes: &[(&str, &str)]) -> String {
    changes.iter().fold(GOOD.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "{from} is not in the topology");
        text.replacen(from, to, 1)
    })
}

/// Loads `text` as `topology.yaml`.
pub(crate) fn load_text(text: &str) -> Result<Graph, Report> {
    let env = Environment::new([("RPC_AUTH", "pool:hunter2"), ("EMPTY", "")]);
    load(&FileText::new("topology.yaml", text), &registry(), &env)
}

/// The graph of `text`.
pub(crate) fn graph(text: &str) -> Graph {
    match load_text(text) {
        Ok(graph) => graph,
        Err(report) => unreachable!("{report}"),
    }
}

/// The problems of `text`, each as `LINE:COLUMN RULE`.
pub(crate) fn problems(text: &str) -> Vec<String> {
    let Err(report) = load_text(text) else { return Vec::new() };
    let shown = report.problems().iter().map(|problem| {
        assert!(!problem.hint.is_empty() && !problem.message.is_empty());
        let at = report.position(problem);
        format!("{}:{} {}", at.line, at.column, problem.code)
    });
    shown.collect()
}

/// The test kinds.
pub(crate) fn registry() -> Registry {
    Registry {
        kinds: vec![&ASSEMBLE, &DEDUPE, &GATEWAY, &JOBMANAGER, &LEDGER, &STATS, &SUBMIT, &TALLY, &VARDIFF, &VERIFY],
        tables: vec![&JOB_TABLE, &TEMPLATE_TABLE],
    }
}

fn no_operator(_: &BuildContext<'_>) -> Result<Box<dyn Operator>, OperatorError> {
    Err(OperatorError::Bug("test kinds only have a shape".to_owned()))
}

fn no_table(_: &BuildContext<'_>) -> Result<Box<dyn BroadcastTable>, OperatorError> {
    Err(OperatorError::Bug("test kinds only have a shape".to_owned()))
}

const fn input(name: &'static str, accepts: &'static [RecordKind]) -> InputSpec {
    InputSpec { name, accepts, optional: false, priority: false }
}

const fn output(name: &'static str, writes: &'static [RecordKind], keyed: Keyed) -> OutputSpec {
    OutputSpec { name, writes, optional: false, keyed }
}

const fn optional(mut spec: OutputSpec) -> OutputSpec {
    spec.optional = true;
    spec
}

const fn setting(name: &'static str, ty: SettingType, default: Option<&'static str>) -> SettingSpec {
    SettingSpec { name, ty, default, doc: "For tests." }
}

const fn operator(
    name: &'static str,
    inputs: &'static [InputSpec],
    outputs: &'static [OutputSpec],
    parallel: Parallel,
) -> Kind {
    Kind {
        name,
        summary: "An operator for tests.",
        inputs,
        outputs,
        lookups: &[],
        settings: &[],
        state: &[],
        parallel,
        role: Role::Operator(no_operator),
    }
}

static DOOR: &[SettingSpec] = &[
    setting("listen", SettingType::Address, None),
    setting("cert", SettingType::Text, Some("")),
    setting("trusted", SettingType::Networks, Some("")),
];
static GATEWAY: Kind = Kind {
    settings: &[
        setting("id", SettingType::Integer(0, 255), Some("0")),
        setting("listen", SettingType::Addresses, Some("0.0.0.0:3333")),
        setting("ack", SettingType::Word(&["durable"]), Some("durable")),
        setting("token", SettingType::Secret, Some("")),
        setting("cache", SettingType::Cache, Some("")),
        setting("doors", SettingType::Entries(DOOR), Some("")),
    ],
    role: Role::Service,
    ..operator(
        "gateway",
        &[
            input("jobs", &[Job]),
            InputSpec { name: "targets", accepts: &[DifficultyTarget], optional: true, priority: false },
        ],
        &[
            output("shares", &[Submission, Tick], Keyed::Session),
            optional(output("candidates", &[Candidate], Keyed::Single)),
        ],
        Parallel::Single,
    )
};
static JOBMANAGER: Kind = Kind {
    settings: &[setting("keep", SettingType::Duration, Some("10m"))],
    role: Role::Service,
    ..operator(
        "jobmanager",
        &[],
        &[output("jobs", &[Job], Keyed::Single), output("templates", &[TemplateChunk], Keyed::Single)],
        Parallel::Single,
    )
};
static VERIFY: Kind = Kind {
    lookups: &["job_table"],
    ..operator(
        "verify",
        &[input("in", &[Submission, Tick])],
        &[output("out", &[Verdict, Tick], Keyed::Session)],
        Parallel::PerPartition,
    )
};
static DEDUPE: Kind = Kind {
    state: &[StateTable::grouped("seen", 8)],
    ..operator(
        "dedupe",
        &[input("in", &[Verdict, Tick])],
        &[
            output("out", &[Verdict, Tick], Keyed::Session),
            optional(output("valid", &[Verdict], Keyed::Session)),
            optional(output("rejected", &[Verdict], Keyed::Session)),
        ],
        Parallel::PerPartition,
    )
};
static VARDIFF: Kind = Kind {
    settings: &[setting("target", SettingType::Decimal, Some("18"))],
    ..operator(
        "vardiff",
        &[
            input("in", &[Verdict, Tick]),
            InputSpec { name: "also", accepts: &[Verdict, Tick, Tally, SliceEnd], optional: true, priority: false },
        ],
        &[output("out", &[DifficultyTarget], Keyed::Session)],
        Parallel::PerPartition,
    )
};
static TALLY: Kind = operator(
    "tally",
    &[input("in", &[Verdict, Tick])],
    &[output("out", &[Tally, SliceEnd], Keyed::Account)],
    Parallel::PerPartition,
);
static ASSEMBLE: Kind = Kind {
    lookups: &["template_table"],
    ..operator(
        "assemble",
        &[InputSpec { name: "in", accepts: &[Candidate], optional: false, priority: true }],
        &[output("out", &[SolvedBlock], Keyed::Single)],
        Parallel::Single,
    )
};
static SUBMIT: Kind = operator(
    "submit",
    &[InputSpec { name: "in", accepts: &[SolvedBlock], optional: false, priority: true }, input("jobs", &[Job])],
    &[output("out", &[BlockOutcome], Keyed::BlockHash)],
    Parallel::Single,
);
static LEDGER: Kind = operator(
    "ledger",
    &[input("tallies", &[Tally, SliceEnd]), input("outcomes", &[BlockOutcome])],
    &[],
    Parallel::Single,
);
static STATS: Kind = operator("stats", &[input("in", &[Tally, SliceEnd])], &[], Parallel::Single);
static JOB_TABLE: TableKind = TableKind {
    name: "job_table",
    summary: "Jobs for tests.",
    accepts: &[Job],
    settings: &[setting("keep", SettingType::Duration, Some("10m"))],
    build: no_table,
};
static TEMPLATE_TABLE: TableKind = TableKind {
    name: "template_table",
    summary: "Templates for tests.",
    accepts: &[TemplateChunk],
    settings: &[],
    build: no_table,
};

/// The share processor shared out among two instances.
pub(crate) fn shared_out(first: &str, second: &str) -> String {
    let chain = |suffix: &str, partitions: &str| {
        format!(
            "  verify{suffix}: {{ kind: verify, partitions: {partitions}, in: share.submissions, tables: [jobs], out: share.checked{suffix} }}
  dedupe{suffix}: {{ kind: dedupe, in: share.checked{suffix}, out: share.judged{suffix}, valid: share.valid }}
  vardiff{suffix}: {{ kind: vardiff, in: share.judged{suffix}, out: difficulty.targets }}
  tally{suffix}: {{ kind: tally, in: share.judged{suffix}, out: share.tallies }}\n"
        )
    };
    let start = GOOD.find("  verify: ").unwrap_or(0);
    let end = GOOD.find("  assemble: ").unwrap_or(0);
    let text = format!("{}{}{}{}", &GOOD[..start], chain("-a", first), chain("-b", second), &GOOD[end..]);
    let direct = |name: &str| format!("  {name}-a: {{ direct: true }}\n  {name}-b: {{ direct: true }}\n");
    text.replace("  share.checked:      { direct: true }\n", &direct("share.checked"))
        .replace("  share.judged:       { direct: true }\n", &direct("share.judged"))
}
