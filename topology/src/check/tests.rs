//! Every check, one mistake at a time and ten at once.

use proptest::prelude::*;

use crate::kind::Parallel;
use crate::runtime::plan::{Destination, PortRef};
use crate::testing::{GOOD, changed, graph, load_text, problems, shared_out};

/// Checks that the good topology with these changes has exactly these problems: the rule, and a piece of the changed
/// text with `^` in front of the place.
#[track_caller]
fn expect(changes: &[(&str, &str)], expected: &[(&str, &str)]) {
    expect_of(&changed(changes), expected);
}

/// The same of a whole text.
#[track_caller]
fn expect_of(text: &str, expected: &[(&str, &str)]) {
    let expected: Vec<String> =
        expected.iter().map(|(code, place)| format!("{} {code}", position(text, place))).collect();
    let report = load_text(text).err().map(|report| report.plain()).unwrap_or_default();
    assert_eq!(problems(text), expected, "\n{report}");
}

/// `LINE:COLUMN` of the `^` in `place`, whose rest is in `text`.
#[track_caller]
fn position(text: &str, place: &str) -> String {
    let at = text.find(&place.replace('^', "")).and_then(|start| Some(start + place.find('^')?));
    let Some(at) = at else { unreachable!("{place} is not in\n{text}") };
    let before = &text[..at];
    let column = before.len() - before.rfind('\n').map_or(0, |end| end + 1) + 1;
    format!("{}:{column}", before.matches('\n').count() + 1)
}

/// The problems of the good topology with these changes.
fn after(changes: &[(&str, &str)]) -> Vec<String> {
    problems(&changed(changes))
}

#[test]
fn a_topology_without_mistakes_is_accepted() {
    let graph = graph(GOOD);
    let names: Vec<&str> = graph.groups.iter().map(|group| group.name.as_str()).collect();
    assert_eq!(names, ["verify", "assemble", "submit", "ledger", "stats"]);
    assert_eq!(graph.services().map(|node| node.name.as_str()).collect::<Vec<_>>(), ["stratumd", "jobmanager"]);
    assert_eq!(graph.groups[0].partitions, (0..8).collect::<Vec<_>>());
    assert_eq!(
        graph.members(&graph.groups[0]).map(|node| node.name.as_str()).collect::<Vec<_>>(),
        ["verify", "dedupe", "vardiff", "tally"]
    );
    assert_eq!(graph.topic("share.judged").map(|topic| topic.partitions), Some(8));
    assert_eq!(
        graph.node("stratumd").and_then(|node| node.output("shares")).map(|it| &**it),
        Some("share.submissions")
    );
}

#[test]
fn a_generation_has_its_own_names() {
    let at = |partitions: u32, generation: u32| {
        let shares = format!("share.submissions:  {{ partitions: {partitions}, generation: {generation},");
        graph(&changed(&[("share.submissions:  { partitions: 8,", &shares)]))
    };
    let (before, after) = (graph(GOOD), at(3, 2));
    let topic = after.topic("share.submissions.g2").unwrap_or_else(|| unreachable!());
    assert_eq!((topic.base(), topic.partitions, topic.generation), ("share.submissions", 3, 2));
    assert_eq!((&*topic.at(1), &*topic.at(3)), ("share.submissions", "share.submissions.g3"));
    assert_eq!(after.topic("share.judged").map(|topic| topic.partitions), Some(3), "direct topics follow");
    let gateway = after.node("stratumd").and_then(|node| node.output("shares"));
    assert_eq!(gateway.map(|topic| &**topic), Some("share.submissions.g2"));
    let plan = |graph: &crate::Graph| graph.plan(&[]).unwrap_or_else(|_| unreachable!("all names are known")).tasks;
    let tasks = plan(&after);
    let names: Vec<&str> = tasks.iter().map(|task| task.name.as_str()).collect();
    assert_eq!(names[..4], ["verify@2.0", "verify@2.1", "verify@2.2", "assemble"]);
    assert_eq!((tasks[2].inputs[0].generation, tasks[2].inputs[0].partitions), (2, 3));
    // The tasks of another generation are those that a file of that generation has.
    let same = |tasks: &[crate::runtime::TaskSpec], others: &[crate::runtime::TaskSpec]| {
        let told = |tasks: &[crate::runtime::TaskSpec]| -> Vec<_> {
            tasks
                .iter()
                .map(|it| (it.name.clone(), it.partition, it.partitions, it.inputs.clone(), it.wiring()))
                .collect()
        };
        assert_eq!(told(tasks), told(others));
    };
    let told = |generation, partitions| after.tasks_at(topic, generation, partitions).unwrap_or_default();
    same(&told(1, 8), &plan(&before)[..8]);
    same(&told(2, 3), &tasks[..3]);
    same(&told(3, 5), &plan(&at(5, 3))[..5]);
}

#[test]
fn generations_are_of_what_sources_write() {
    let direct = [("share.judged:       { direct: true }", "share.judged:       { direct: true, generation: 2 }")];
    expect(&direct, &[("generation.direct", "generation: ^2")]);
    for topic in ["share.valid:        { ", "share.tallies:      { ", "mining.jobs:        { "] {
        let given = format!("{topic}generation: 2, ");
        expect(&[(topic, &given)], &[("generation.kind", &format!("{topic}generation: ^2, "))]);
    }
    expect(
        &[
            ("share.submissions:  { ", "share.submissions:  { generation: 2, "),
            ("share.checked:      { direct: true }", "share.checked:      { partitions: 8 }"),
        ],
        &[("generation.stored", "tables: [jobs], out: ^share.checked")],
    );
    expect(
        &[
            ("share.submissions:  { ", "share.submissions:  { generation: 2, "),
            ("  block.outcomes:", "  share.submissions.g2: { archive: true }\n  block.outcomes:"),
            ("shares: share.submissions,", "shares: [ share.submissions, share.submissions.g2 ],"),
        ],
        &[("generation.name", "  ^share.submissions.g2: {")],
    );
}

/// Acceptance criterion of the topology: ten different mistakes are ten errors, each with its place.
#[test]
fn ten_mistakes_in_one_file_are_ten_errors_with_line_and_column() {
    let text = changed(&[
        ("auth: ${RPC_AUTH}", "auth: pool:hunter2"),
        ("retention: 60d }\n  mining.templates", "retenton: 60d }\n  mining.templates"),
        ("partitions: 8, retention: 30d", "partitions: eight, retention: 30d"),
        ("share.judged:       { direct: true }", "share.judged:       { direct: true, retention: 1h }"),
        ("partitions: 8, retention: 2d", "partitions: 8, retention: 2 days"),
        ("keep: 10m", "keep: 5m"),
        ("in: share.checked, out", "in: share.chekced, out"),
        ("kind: assemble, in: block.candidates, tables: [templates]", "kind: assemble, in: block.candidates"),
        ("in: block.solved, jobs: mining.jobs", "in: share.submissions, jobs: mining.jobs"),
        ("stats:      { kind: stats", "stats:      { kind: statistics"),
    ]);
    let report = load_text(&text).err().map(|report| report.plain()).unwrap_or_default();
    let expected = [
        "5:49 secret.inline",
        "7:25 key.unknown",
        "9:37 setting.type",
        "11:50 direct.retention",
        "17:51 setting.type",
        "19:58 retention.keep",
        "26:35 topic.unknown",
        "29:3 table.missing",
        "30:35 port.record_type",
        "32:23 kind.unknown",
    ];
    assert_eq!(problems(&text), expected, "{report}");
    assert!(!report.contains("hunter2"), "the report shows the secret");
}

#[test]
fn syntax_and_shape() {
    assert_eq!(problems(""), ["1:1 yaml.empty"]);
    assert_eq!(problems("# nothing\n"), ["1:1 yaml.empty"]);
    assert_eq!(problems("- a\n"), ["1:1 type"]);
    assert_eq!(problems("version: 1\n  bad: [\n").len(), 1);
    expect(&[("version: 1", "version: 2")], &[("version", "version: ^2")]);
    expect(&[("version: 1\n", "")], &[("setting.missing", "^bitcoin:")]);
    assert!(after(&[("topics:", "topiks:")]).contains(&"6:1 key.unknown".to_owned()));
    expect(&[("[jobs]", "{ jobs: x }")], &[("table.missing", "^verify:"), ("type", "tables: ^{ jobs")]);
    expect(
        &[("block.solved:\n", "block.solved: 5\n")],
        &[
            ("type", "block.solved: ^5"),
            ("topic.unknown", "out: ^block.solved"),
            ("topic.unknown", "in: ^block.solved"),
        ],
    );
    expect(
        &[("  share.valid:", "  'share valid':"), (", valid: share.valid", "")],
        &[("name.invalid", "^'share valid'"), ("topic.unused", "^'share valid'")],
    );
    expect(&[("  tally:", "  tally.a:")], &[("name.invalid", "^tally.a")]);
}

#[test]
fn unknown_keys_and_kinds_name_the_nearest() {
    let hint = |changes: &[(&str, &str)]| {
        let report = load_text(&changed(changes)).err();
        report.map(|report| report.problems()[0].hint.clone()).unwrap_or_default()
    };
    assert!(hint(&[("kind: dedupe", "kind: dedup")]).contains("`dedupe`"));
    assert!(hint(&[("kind: job_table", "kind: jobtable")]).contains("`job_table`"));
    assert!(hint(&[("keep: 10m", "kep: 10m")]).contains("`keep`"));
    assert!(hint(&[("tables: [jobs]", "tables: [job]")]).contains("`jobs`"));
    assert!(hint(&[("network: regtest", "network: regtset")]).contains("`regtest`"));
    assert!(hint(&[("id: 1", "idd: 1")]).contains("`id`"));
    // A port that is misspelt is one mistake: neither the port nor its topic is reported as missing.
    expect(&[("shares: share.submissions", "share: share.submissions")], &[("key.unknown", "^share: share.sub")]);
    expect(&[("kind: verify, ", "")], &[("kind.missing", "^verify:")]);
}

#[test]
fn ports_and_topics() {
    expect(&[("in: block.candidates", "in: share.tallies")], &[("port.record_type", "assemble, in: ^share.tallies")]);
    expect(&[("from: mining.jobs", "from: mining.templates")], &[("port.record_type", "jobs:      { from: ^mining")]);
    expect(&[(", out: share.tallies", "")], &[("port.missing", "^tally:")]);
    expect(&[("stats, in: share.tallies", "stats, in: block.outcomes")], &[("port.record_type", "stats, in: ^block")]);
    expect(&[("block.solved:\n", "block.solved:\n  spare:\n")], &[("topic.unused", "^spare:")]);
    expect(&[(", archive: true", "")], &[("topic.unread", "^share.valid:")]);
    expect(&[(", candidates: block.candidates", "")], &[("topic.unwritten", "^block.candidates:")]);
    expect(&[(", valid: share.valid", "")], &[("topic.unused", "^share.valid:")]);
    expect(&[("valid: share.valid", "valid: share.valid, rejected: share.valid")], &[]);
    expect(
        &[("valid: share.valid", "valid: [share.valid, share.valid]")],
        &[("topic.doubled", "valid, ^share.valid]")],
    );
    expect(
        &[("  assemble: ", "  tally2: { kind: tally, in: share.judged, out: share.tallies }\n  assemble: ")],
        &[("topic.doubled", "tally, in: share.judged, out: ^share.tallies }\n  assemble")],
    );
    expect(
        &[("vardiff, in: share.judged", "vardiff, in: share.judged, also: share.judged")],
        &[("topic.doubled", "also: ^share")],
    );
    expect(
        &[("mining.jobs:        { ", "mining.jobs:        { partitions: 2, ")],
        &[("topic.broadcast", "partitions: ^2")],
    );
    expect(
        &[("in: share.judged, out: share.tallies", "in: '${RPC_AUTH}', out: share.tallies")],
        &[("variable.name", "in: ^'${RPC_AUTH}'")],
    );
}

#[test]
fn several_gateways_write_one_topic() {
    let with = |gateway: &str| format!("{gateway}\n  jobmanager: {{");
    let gateway =
        "  backup: { kind: gateway, id: 2, listen: '0.0.0.0:3334', jobs: mining.jobs, shares: share.submissions }";
    expect(&[("  jobmanager: {", &with(gateway))], &[]);
    let same_id = with(&gateway.replace("id: 2", "id: 1"));
    expect(&[("  jobmanager: {", &same_id)], &[("id.duplicate", "backup: { kind: gateway, id: ^1")]);
    let same_port = with(&gateway.replace("0.0.0.0:3334", "127.0.0.1:3333"));
    expect(&[("  jobmanager: {", &same_port)], &[("listen.clash", "listen: ^'127.0.0.1:3333'")]);
    expect(&[("0.0.0.0:3333", "0.0.0.0:8080")], &[("listen.clash", "listen: [ ^\"0.0.0.0:8080")]);
    let doors = |doors: &str| with(&gateway.replace("id: 2", &format!("id: 2, doors: {doors}")));
    let two = doors("[ { listen: '0.0.0.0:1' }, { listen: '0.0.0.0:2', cert: a, trusted: [ 10.0.0.0/8, '::1' ] } ]");
    expect(&[("  jobmanager: {", &two)], &[]);
    for (wrong, code, place) in [
        ("{ listen: '0.0.0.0:1' }", "type", "doors: ^{"),
        ("[ 1 ]", "type", "doors: [ ^1"),
        ("[ { cert: a } ]", "setting.missing", "doors: [ ^{"),
        ("[ { listen: '0.0.0.0:1', crt: a } ]", "key.unknown", "'0.0.0.0:1', ^crt"),
        ("[ { listen: '0.0.0.0:1', trusted: [ 10.0.0.0/8, 10.0.0.0/99 ] } ]", "setting.type", "10.0.0.0/8, ^10.0"),
        ("[ { listen: '0.0.0.0:1' }, { listen: '1.1.1.1:1' } ]", "listen.clash", "listen: ^'1.1.1.1:1'"),
    ] {
        expect(&[("  jobmanager: {", &doors(wrong))], &[(code, place)]);
    }
}

#[test]
fn tables_are_named_known_and_used() {
    expect(&[("tables: [jobs], ", "")], &[("table.missing", "^verify:")]);
    expect(&[("tables: [jobs]", "tables: [jobs, templates]")], &[("table.kind", "[jobs, ^templates]")]);
    let two = ("tables:\n", "tables:\n  more: { from: mining.jobs, kind: job_table }\n");
    expect(&[two], &[("table.unused", "^more:")]);
    expect(&[two, ("tables: [jobs]", "tables: [jobs, more]")], &[("table.doubled", "[jobs, ^more]")]);
    expect(&[("tables: [jobs]", "tables: [jbos]")], &[("table.unknown", "tables: [^jbos]")]);
}

#[test]
fn direct_topics_stay_within_a_task() {
    let checked = |to: &str| changed(&[("share.checked:      { direct: true }", &format!("share.checked: {to}"))]);
    expect_of(&checked("{ direct: true, retention_bytes: 1MB }"), &[("direct.retention", "retention_bytes: ^1MB")]);
    expect_of(&checked("{ direct: true, partitions: 4 }"), &[("copartition.count", "direct: true, partitions: ^4")]);
    expect_of(&checked("{ direct: true, partitions: 8 }"), &[]);
    expect(&[("{ partitions: 8, retention: 30d }", "{ direct: true }")], &[("direct.service", "shares: ^share")]);
    expect(
        &[("share.tallies:      { partitions: 4 }", "share.tallies:      { direct: true }")],
        &[
            ("copartition.direct", "tally, in: share.judged, out: ^share.tallies"),
            ("direct.parallel", "tallies: ^share.tallies"),
            ("direct.parallel", "stats, in: ^share.tallies"),
        ],
    );
    expect(
        &[("mining.jobs:        { retention: 60d }", "mining.jobs:        { direct: true }")],
        &[
            ("direct.table", "jobs:      { from: ^mining.jobs"),
            ("direct.service", "\"0.0.0.0:3333\" ], jobs: ^mining.jobs"),
            ("direct.service", "jobmanager, jobs: ^mining.jobs"),
        ],
    );
}

#[test]
fn inputs_of_a_task_are_cut_alike() {
    let also = "vardiff, in: share.judged, also: share.valid";
    let rest = [("vardiff, in: share.judged", also), ("partitions: 8, archive: true", "partitions: 4, retention: 30d")];
    // What is read also becomes an input of the task that writes it: a circle, unless the task is split.
    let split = ("share.judged:       { direct: true }", "share.judged:       { partitions: 8, retention: 30d }");
    expect(&[rest[0], rest[1], split], &[("copartition.count", "also: ^share.valid")]);
    let eight = (rest[1].0, "partitions: 8, retention: 30d");
    expect(&[rest[0], eight, split], &[]);
    let tallies = ("vardiff, in: share.judged", "vardiff, in: share.judged, also: share.tallies");
    let by_account = ("share.tallies:      { partitions: 4", "share.tallies:      { partitions: 8");
    expect(&[tallies, by_account, split], &[("copartition.key", "also: ^share.tallies")]);
}

#[test]
fn operators_do_not_feed_each_other_in_a_circle() {
    let kept = ("partitions: 8, archive: true", "partitions: 8, retention: 30d");
    expect(
        &[kept, ("kind: dedupe, in: share.checked", "kind: dedupe, in: [share.checked, share.valid]")],
        &[("cycle", "in: [share.checked, ^share.valid]")],
    );
    let again = "  again: { kind: dedupe, in: share.valid, out: share.again }\n  tally: ";
    let more = "  share.again: { partitions: 8, retention: 30d }\n  share.tallies:";
    let back = ("kind: dedupe, in: share.checked", "kind: dedupe, in: [share.checked, share.again]");
    expect(
        &[kept, back, ("  share.tallies:", more), ("  tally: ", again)],
        &[("cycle", "in: [share.checked, ^share.again]")],
    );
    // Here only the tasks do: vardiff is fused with dedupe, but reads what follows from it by the log.
    let back = ("vardiff, in: share.judged", "vardiff, in: share.judged, also: share.again");
    expect(&[kept, back, ("  share.tallies:", more), ("  tally: ", again)], &[("cycle.tasks", "^verify:")]);
}

#[test]
fn each_partition_has_one_owner() {
    let graph = graph(&shared_out("0-3", "4-7"));
    let groups: Vec<_> = graph.groups.iter().map(|group| (group.name.as_str(), group.partitions.len())).collect();
    assert_eq!(groups, [("verify-a", 4), ("verify-b", 4), ("assemble", 1), ("submit", 1), ("ledger", 1), ("stats", 1)]);
    assert_eq!(graph.groups[1].task_name(5), "verify-b.5");
    expect_of(&shared_out("0-3", "5-7"), &[("partitions.unassigned", "partitions: ^0-3")]);
    expect_of(&shared_out("0-4", "4-7"), &[("partitions.twice", "partitions: ^4-7")]);
    expect_of(&shared_out("0-3", "4-8"), &[("partitions.range", "partitions: ^4-8")]);
    expect_of(&shared_out("0-3", "7-4"), &[("setting.type", "partitions: ^7-4")]);
    expect(
        &[("{ kind: verify,", "{ kind: verify, partitions: 0-6,")],
        &[("partitions.unassigned", "partitions: ^0-6")],
    );
    let fused = [
        ("{ kind: verify,", "{ kind: verify, partitions: 0-7,"),
        ("{ kind: dedupe,", "{ kind: dedupe, partitions: 0-6,"),
    ];
    expect(&fused, &[("partitions.fused", "partitions: ^0-6")]);
    expect(&[("{ kind: stats,", "{ kind: stats, partitions: 0-6,")], &[("key.unknown", "^partitions: 0-6")]);
}

/// The good topology with an operator, a fused one, a service and a table renamed.
const RENAMED: [(&str, &str); 6] = [
    ("  verify:     { kind: verify,", "  check:      { kind: verify, was: verify,"),
    ("  tally:      { kind: tally,", "  count:      { kind: tally, was: tally,"),
    ("  ledger:     { kind: ledger,", "  payoutd:    { kind: ledger, was: ledger,"),
    ("  stratumd:   { kind: gateway,", "  door:       { kind: gateway, was: stratumd,"),
    ("  jobs:      { from: mining.jobs,", "  work:      { was: jobs, from: mining.jobs,"),
    ("tables: [jobs]", "tables: [work]"),
];

#[test]
fn what_is_renamed_goes_on_under_its_identity() {
    let (before, after) = (graph(GOOD), graph(&changed(&RENAMED)));
    let stored = |graph: &crate::Graph| {
        let plan = graph.plan(&[]).unwrap_or_else(|error| unreachable!("{error}"));
        let tables = |task: &crate::runtime::TaskSpec| {
            crate::runtime::state_tables(task).into_iter().map(|table| table.name).collect::<Vec<_>>()
        };
        let of_task = |task: &crate::runtime::TaskSpec| (task.name.clone(), task.wiring(), tables(task));
        let services = graph.services().map(|node| node.identity.clone());
        (plan.tasks.iter().map(of_task).collect::<Vec<_>>(), services.collect::<Vec<_>>())
    };
    assert_eq!(stored(&before), stored(&after), "states, producers and epochs stay");
    assert_eq!(after.groups[0].name, "check");
    assert_eq!((after.groups[0].task_name(2), after.groups[0].task_shown(2)), ("verify.2".into(), "check.2".into()));
    let plan = after.plan(&["payoutd".to_owned()]).unwrap_or_else(|error| unreachable!("{error}"));
    let task = &plan.tasks[0];
    assert_eq!(
        (task.name.as_str(), task.shown.as_str(), task.operators[0].shown.as_str()),
        ("ledger", "payoutd", "payoutd")
    );
    assert!(after.plan(&["ledger".to_owned()]).is_err(), "people use the new name");
}

#[test]
fn an_identity_has_one_owner() {
    let was = |changes: &[(&str, &str)], expected: &[(&str, &str)]| {
        let mut all = RENAMED.to_vec();
        all.extend(changes);
        expect_of(&changed(&all), expected);
    };
    was(&[("{ kind: stats,", "{ kind: stats, was: assemble,")], &[("was.taken", "was: ^assemble")]);
    was(&[("{ kind: stats,", "{ kind: stats, was: stats,")], &[("was.same", "was: ^stats")]);
    was(&[("{ kind: stats,", "{ kind: stats, was: ledger,")], &[("was.twice", "kind: stats, was: ^ledger")]);
    was(&[("{ kind: stats,", "{ kind: stats, was: a.b,")], &[("name.invalid", "was: ^a.b")]);
    was(&[("{ kind: stats,", "{ kind: stats, was: [],")], &[("type", "was: ^[]")]);
    was(&[("was: jobs", "was: templates")], &[("was.taken", "was: ^templates")]);
}

#[test]
fn p1_what_the_runtime_writes_has_names_of_its_own() {
    // (A name with a dot is a mistake for an operator anyway.)
    let topic = ("block.outcomes:", "sluice.redriven: {}\n  block.outcomes:");
    let found = after(&[topic]);
    assert!(found.iter().any(|problem| problem.ends_with(" name.reserved")), "{found:?}");
}

#[test]
fn what_may_be_needed_again_is_kept() {
    let short = ("retention: 30d }\n  share.checked", "retention: 12h }\n  share.checked");
    expect(&[short], &[("retention.outage", "retention: ^12h")]);
    expect(
        &[("version: 1", "version: 1\nlimits: { outage: 29d }\nstate: { checkpoints: { every: 25h } }")],
        &[
            ("retention.outage", "partitions: 8, retention: ^30d"),
            ("retention.outage", "block.candidates:   { retention: ^30d"),
        ],
    );
    expect(
        &[("mining.jobs:        { retention: 60d }", "mining.jobs:        { retention: 30d }")],
        &[("retention.table", "mining.jobs:        { retention: ^30d")],
    );
    expect(
        &[("partitions: 8, retention: 30d", "partitions: 8")],
        &[("retention.table", "mining.jobs:        { retention: ^60d")],
    );
    expect(&[("{ kind: jobmanager,", "{ kind: jobmanager, keep: 15m,")], &[("retention.keep", "keep: ^10m }")]);
}

#[test]
fn secrets_come_from_outside_and_are_never_shown() {
    let shown = |changes: &[(&str, &str)]| {
        let report = load_text(&changed(changes)).err();
        report.map(|report| format!("{report}\n{report:?}")).unwrap_or_default()
    };
    for (auth, code) in [
        ("pool:hunter2", "secret.inline"),
        ("${UNSET}", "variable.unset"),
        ("${UNSET:-pool:hunter2}", "secret.inline"),
        ("${EMPTY}", "secret.empty"),
        ("${RPC-AUTH}", "variable.syntax"),
    ] {
        let text = shown(&[("${RPC_AUTH}", auth)]);
        assert!(text.contains(code) && !text.contains("hunter2"), "{auth}: {text}");
    }
    expect(&[("${RPC_AUTH}", "${file:/run/secrets/rpc}")], &[]);
    expect(&[("http://127", "http://pool:hunter2@127")], &[("secret.inline", "rpc: ^http://pool")]);
    assert!(!shown(&[("http://127", "http://pool:hunter2@127")]).contains("hunter2"));
    expect(&[("id: 1", "id: 1, token: abc")], &[("secret.inline", "token: ^abc")]);
    // A secret variable in the wrong place is not shown either.
    for place in ["regtest", "http://127.0.0.1:18443", "tcp://127.0.0.1:28332", "mining.jobs,", "60d", "8,", "10m"] {
        let text = shown(&[(place, "${RPC_AUTH} ")]);
        assert!(!text.contains("hunter2"), "{place}: {text}");
    }
    let graph = graph(GOOD);
    assert!(!format!("{:?}", graph.config).contains("hunter2"));
    assert_eq!(graph.config.bitcoin.nodes[0].auth.reveal().ok().as_deref(), Some("pool:hunter2"));
}

#[test]
fn the_ledgers_url_holds_no_password() {
    let with = |url: &str| changed(&[("version: 1", &format!("version: 1\nledger: {{ url: {url} }}"))]);
    expect_of(&with("\"postgres://pool:hunter2@db/sluice\""), &[("secret.inline", "url: ^\"postgres")]);
    expect_of(&with("\"postgres://db/sluice?password=hunter2\""), &[("secret.inline", "url: ^\"postgres")]);
    expect_of(&with("\"postgres://pool:${RPC_AUTH}@db/sluice\""), &[]);
    expect_of(&with("postgres://pool@db/sluice"), &[]);
    expect_of(&with("sqlite:./pool.db"), &[]);
    expect_of(&with("mysql://pool@db/sluice"), &[("setting.type", "url: ^mysql")]);
}

#[test]
fn sections_are_checked() {
    expect(
        &[("  nodes: [ {", "  nodes: [ {}, {")],
        &[("setting.missing", "nodes: [ ^{}"), ("setting.missing", "nodes: [ ^{}")],
    );
    expect(&[("rpc: http://127.0.0.1:18443", "rpc: 127.0.0.1:18443")], &[("setting.type", "rpc: ^127")]);
    expect(&[("zmq: tcp://", "zmq: udp://")], &[("setting.type", "zmq: ^udp")]);
    expect(&[("  payout: bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080\n", "")], &[("setting.missing", "^network:")]);
    let payout = "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080";
    expect(&[(payout, "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt081")], &[("bitcoin.payout", "payout: ^bcrt1")]);
    expect(&[(payout, "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4")], &[("bitcoin.payout", "payout: ^bc1")]);
    let main = [("network: regtest", "network: main"), (payout, "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4")];
    expect(&main, &[]);
    let early = ("version: 1", "version: 1\nledger: { maturity: 99 }");
    expect(&[main[0], main[1], early], &[("ledger.maturity", "maturity: ^99")]);
    let with = |text: &str| changed(&[("version: 1", &format!("version: 1\n{text}"))]);
    expect_of(&with("log: { kind: kafka }"), &[("setting.missing", "log: ^{ kind: kafka")]);
    expect_of(&with("log: { kind: kafka, brokers: [ 'a:9092' ] }"), &[]);
    expect_of(&with("log: { kind: kafka, brokers: [ a ] }"), &[("setting.type", "brokers: [ ^a")]);
    let kafka = |more: &str| with(&format!("log: {{ kind: kafka, brokers: [ 'a:9092' ], {more} }}"));
    expect_of(&kafka("replication: 2, min_insync: 3"), &[("setting.type", "min_insync: ^3")]);
    expect_of(&kafka("tls: true, tls_key: k"), &[("setting.missing", "tls_key: ^k")]);
    expect_of(&kafka("tls_ca: ca.pem"), &[("setting.unused", "tls_ca: ^ca")]);
    expect_of(&kafka("sasl: plain, sasl_user: u"), &[("setting.missing", "sasl: ^plain")]);
    expect_of(&kafka("sasl: plain, sasl_user: u, sasl_password: p"), &[("secret.inline", "sasl_password: ^p")]);
    expect_of(&with("log: { dir: ./log, prefix: x. }"), &[("setting.unused", "prefix: ^x.")]);
    expect_of(&kafka("endpoint: 'a:9003'"), &[("setting.unused", "endpoint: ^'a:9003")]);
    expect_of(&with("log: { kind: fluvio }"), &[("setting.missing", "log: ^{ kind: fluvio")]);
    expect_of(&with("log: { kind: fluvio, endpoint: 'a:9003' }"), &[]);
    expect_of(&with("log: { kind: fluvio, endpoint: 'a:9003', prefix: pool1-, replication: 1 }"), &[]);
    expect_of(&with("log: { kind: fluvio, endpoint: '' }"), &[("setting.type", "log: ^{ kind: fluvio")]);
    expect_of(&with("log: { kind: fluvio, endpoint: a }"), &[("setting.type", "endpoint: ^a")]);
    let fluvio = |more: &str| with(&format!("log: {{ kind: fluvio, endpoint: 'a:9003', {more} }}"));
    expect_of(&fluvio("prefix: pool1."), &[("setting.type", "prefix: ^pool1.")]);
    expect_of(&fluvio("min_insync: 2"), &[("setting.unused", "min_insync: ^2")]);
    expect_of(&fluvio("brokers: [ 'a:9092' ]"), &[("setting.unused", "brokers: [ ^'a:9092'")]);
    expect_of(&with("ledger: { fee_bps: 10001 }"), &[("setting.type", "fee_bps: ^10001")]);
    expect_of(&with("http: { listen: 8080 }"), &[("setting.type", "listen: ^8080")]);
    expect_of(&with("state: { memory: lots }"), &[("setting.type", "memory: ^lots")]);
    let long = "tag: 'a tag that is much too long for a coinbase'\n  nodes: [";
    expect(&[("nodes: [", long)], &[("setting.type", "tag: ^'a tag")]);
}

#[test]
fn names_with_equal_hashes_are_refused() {
    // These two have the same 32-bit FNV-1a hash.
    let text = changed(&[
        ("share.valid: ", "costarring: "),
        ("valid: share.valid", "valid: [costarring, liquid]"),
        ("block.solved:\n", "block.solved:\n  liquid: { archive: true }\n"),
    ]);
    expect_of(&text, &[("name.collision", "^liquid: {")]);
}

#[test]
fn stored_edges_split_the_task() {
    let stored = changed(&[("share.checked:      { direct: true }", "share.checked:      { partitions: 8 }")]);
    let graph = graph(&stored);
    let groups: Vec<&str> = graph.groups.iter().map(|group| group.name.as_str()).collect();
    assert_eq!(groups, ["verify", "dedupe", "assemble", "submit", "ledger", "stats"]);
    let plan = graph.plan(&[]).unwrap_or_else(|_| unreachable!("all names are known"));
    assert_eq!(plan.tasks.len(), 8 + 8 + 4);
    assert_eq!(plan.tasks.iter().filter(|task| task.name == "dedupe.7").count(), 1);
}

#[test]
fn the_plan_names_every_wire() {
    let graph = graph(GOOD);
    let plan = graph.plan(&[]).unwrap_or_else(|_| unreachable!("all names are known"));
    assert_eq!(plan.topics.len(), 9);
    assert_eq!(plan.tasks.len(), 8 + 4);
    let task = &plan.tasks[3];
    assert_eq!((task.name.as_str(), task.partition, task.partitions), ("verify.3", 3, 8));
    assert_eq!(task.inputs.len(), 1);
    assert_eq!((&*task.inputs[0].topic, task.inputs[0].partition), ("share.submissions", 3));
    assert_eq!(task.inputs[0].to, [PortRef { operator: 0, port: "in" }]);
    assert_eq!(task.tables.iter().map(|table| table.name.as_str()).collect::<Vec<_>>(), ["jobs"]);
    assert_eq!(task.operators[0].outputs[0].to, [Destination::Direct(PortRef { operator: 1, port: "in" })]);
    assert_eq!(
        task.operators[1].outputs[0].to,
        [
            Destination::Direct(PortRef { operator: 2, port: "in" }),
            Destination::Direct(PortRef { operator: 3, port: "in" }),
        ]
    );
    assert_eq!(task.operators[3].outputs[0].to, [Destination::Topic { topic: "share.tallies".into(), partitions: 4 }]);
    let ledger = plan.tasks.iter().find(|task| task.name == "ledger");
    let inputs = ledger.map(|task| task.inputs.iter().map(|it| (&*it.topic, it.partition)).collect::<Vec<_>>());
    assert_eq!(
        inputs.unwrap_or_default(),
        [("share.tallies", 0), ("share.tallies", 1), ("share.tallies", 2), ("share.tallies", 3), ("block.outcomes", 0)]
    );
    let submit = plan.tasks.iter().find(|task| task.name == "submit");
    assert_eq!(
        submit.map(|task| task.inputs.iter().map(|it| it.priority).collect::<Vec<_>>()),
        Some(vec![true, false])
    );
}

#[test]
fn a_process_may_run_a_part() {
    let graph = graph(GOOD);
    let only = ["dedupe".to_owned(), "stratumd".to_owned()];
    let plan = graph.plan(&only).unwrap_or_else(|_| unreachable!("all names are known"));
    assert!(plan.tasks.iter().all(|task| task.name.starts_with("verify.")));
    let topics: Vec<&str> = plan.topics.iter().map(|topic| topic.name.as_str()).collect();
    assert_eq!(
        topics,
        ["block.candidates", "difficulty.targets", "mining.jobs", "share.submissions", "share.tallies", "share.valid"]
    );
    assert_eq!(graph.services_of(&only).count(), 1);
    let unknown = graph.plan(&["nobody".to_owned()]).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(unknown.contains("nobody") && unknown.contains("dedupe"), "{unknown}");
}

#[test]
fn the_command_line_overrides_the_file() {
    use crate::spec::{Environment, FileText, Override};
    let set = |path: &str, value: &str| {
        let setting = Override { path: path.to_owned(), value: value.to_owned() };
        let env = Environment::new([("RPC_AUTH", "a:b")]).with_override(setting);
        crate::load(&FileText::new("topology.yaml", GOOD), &crate::testing::registry(), &env)
    };
    assert_eq!(set("ledger.fee_bps", "150").ok().map(|graph| graph.config.ledger.fee_bps), Some(150));
    let partitions = set("topics.share.tallies.partitions", "16").ok();
    assert_eq!(partitions.and_then(|graph| graph.topic("share.tallies").map(|it| it.partitions)), Some(16));
    let listen = set("operators.stratumd.listen", "['127.0.0.1:1', '127.0.0.1:2']").ok();
    let listen = listen.and_then(|graph| graph.node("stratumd").map(|it| it.settings.list("listen").to_vec()));
    assert_eq!(listen, Some(vec!["127.0.0.1:1".to_owned(), "127.0.0.1:2".to_owned()]));
    for (path, value) in [("version.x", "1"), ("", "1"), ("ledger.scheme", "[")] {
        let report = set(path, value).err();
        assert!(report.is_some_and(|report| report.problems().iter().any(|it| it.code == "override")), "{path}");
    }
    assert!(set("ledger.schem", "solo").is_err());
}

/// Pieces of topologies, for files that are half right.
fn line() -> impl Strategy<Value = String> {
    let lines: Vec<String> = GOOD.lines().map(str::to_owned).collect();
    prop::sample::select(lines)
}

/// One of a few changes to the good topology.
fn mutation() -> impl Strategy<Value = (usize, usize, String)> {
    let word = prop::sample::select(vec![
        "share.submissions",
        "share.checked",
        "share.judged",
        "share.valid",
        "share.tallies",
        "block.solved",
        "mining.jobs",
        "direct: true",
        "partitions: 3",
        "partitions: 0-3",
        "retention: 1h",
        "kind: dedupe",
        "jobs",
        "in",
        "out",
        "[",
        "}",
        "${RPC_AUTH}",
        "${",
        ":",
        "*a",
        "&a x",
        "5m",
        "\u{1f600}",
    ]);
    (0..GOOD.len(), 0..40_usize, word.prop_map(str::to_owned))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn arbitrary_text_never_panics(text in "(\\PC|\n){0,200}") {
        let _ = problems(&text);
    }

    #[test]
    fn shuffled_lines_never_panic(lines in prop::collection::vec(line(), 0..40)) {
        let _ = problems(&lines.join("\n"));
    }

    /// Whatever is accepted can be run: operators in topological order, each partition read by one task, each direct
    /// edge inside a task and forwards.
    #[test]
    fn what_is_accepted_can_run(changes in prop::collection::vec(mutation(), 0..3)) {
        let mut text = GOOD.to_owned();
        for (start, len, word) in changes {
            let start = (0..=start.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
            let end = (start..=(start + len).min(text.len())).rev().find(|&at| text.is_char_boundary(at));
            text.replace_range(start..end.unwrap_or(start), &word);
        }
        match load_text(&text) {
            Err(report) => {
                prop_assert!(!report.problems().is_empty());
                prop_assert!(!report.plain().contains("hunter2"));
                prop_assert!(!report.fancy(false, 100).contains("hunter2"));
            }
            Ok(graph) => {
                let place = |name: &str| graph.nodes.iter().position(|node| node.name == name);
                for node in graph.nodes.iter().filter(|node| !node.is_service()) {
                    for other in graph.nodes.iter().filter(|other| !other.is_service()) {
                        let feeds = node.outputs.iter().any(|out| other.inputs.iter().any(|it| it.topic == out.topic));
                        prop_assert!(!feeds || place(&node.name) < place(&other.name));
                    }
                }
                for group in &graph.groups {
                    prop_assert!(group.parallel == Parallel::PerPartition || group.partitions == [0]);
                }
                let plan = graph.plan(&[]).unwrap_or_else(|_| unreachable!("all names are known"));
                for task in &plan.tasks {
                    for (at, operator) in task.operators.iter().enumerate() {
                        for to in operator.outputs.iter().flat_map(|wire| &wire.to) {
                            if let Destination::Direct(port) = to {
                                prop_assert!(port.operator > at && port.operator < task.operators.len());
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn topics_name_logs_that_are_there() {
    let with = |logs: &str, topic: &str| {
        let change =
            [("topics:", format!("{logs}\ntopics:")), ("share.tallies:      { partitions: 4 }", topic.to_owned())];
        changed(&change.each_ref().map(|(from, to)| (*from, to.as_str())))
    };
    let (warm, tallies) =
        ("logs: { warm: { kind: kafka, brokers: [ 'a:9092' ] } }", "share.tallies: { partitions: 4, log: warm }");
    let config = graph(&with(warm, tallies)).config;
    let crate::LogConfig::Mixed { topics, named, .. } = &config.log else { unreachable!("{}", config.log) };
    assert_eq!((topics.len(), topics["share.tallies"].as_str()), (1, "warm"));
    assert_eq!(config.log.to_string(), "in ./data/log, warm on a:9092");
    assert!(named.contains_key("warm"));
    let wrong = "share.tallies: { partitions: 4, log: wram }";
    expect_of(&with(warm, wrong), &[("log.unknown", "log: ^wram")]);
    let direct = warm.to_owned() + "\n#";
    let direct = with(&direct, tallies)
        .replace("share.checked:      { direct: true }", "share.checked: { direct: true, log: warm }");
    expect_of(&direct, &[("setting.unused", "log: ^warm }\n  share.judged")]);
    expect_of(&with("logs: { warm: { dir: ./data/log } }", tallies), &[("log.twice", "^warm: { dir")]);
    expect_of(&with("logs: { warm: { kind: kafka } }", tallies), &[("setting.missing", "^warm: { kind")]);
}

#[test]
fn gateways_name_caches_that_are_there() {
    let with = |caches: &str, name: &str| {
        let change = [("topics:", format!("{caches}\ntopics:")), ("id: 1,", format!("id: 1, cache: {name},"))];
        changed(&change.each_ref().map(|(from, to)| (*from, to.as_str())))
    };
    let redis = "caches: { shared: { kind: redis, url: 'redis://HOST:6379' } }";
    expect_of(&with(redis, "shared"), &[]);
    expect_of(&with("caches: { shared: { kind: memory } }", "shared"), &[]);
    expect_of(&with(redis, "shred"), &[("cache.unknown", "cache: ^shred")]);
    expect_of(&with("caches: { shared: { kind: redis } }", "shared"), &[("setting.missing", "^shared: { kind")]);
    let inline = "caches: { shared: { kind: redis, url: 'redis://:secret@HOST' } }";
    expect_of(&with(inline, "shared"), &[("secret.inline", "url: ^'redis")]);
    let tls = "caches: { shared: { kind: redis, url: 'rediss://HOST' } }";
    expect_of(&with(tls, "shared"), &[("setting.type", "url: ^'rediss")]);
    let unused = "caches: { shared: { kind: memory, url: 'redis://HOST' } }";
    expect_of(&with(unused, "shared"), &[("setting.unused", "url: ^'redis")]);
}
