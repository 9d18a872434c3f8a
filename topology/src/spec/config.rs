//! The parts of a topology file that are not wiring: log, state, Bitcoin, ledger, HTTP, limits.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use sluice_mining::{AddressError, Chain, payout_script};

use super::Spanned;
use super::caches::{self, CacheConfig};
use super::fields::{Fields, Located, Reader};
use super::log::{self, LogConfig};
use super::node::{Node, Value};
use super::secret::Secret;
use super::source::Span;
use crate::kind::{SettingSpec, SettingType};
use crate::settings::SettingValue;

/// Everything in the file besides topics, tables and operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where topics are stored.
    pub log: LogConfig,
    /// Where tasks keep their state.
    pub state: State,
    /// The chain, the nodes and what the pool's blocks pay to.
    pub bitcoin: Bitcoin,
    /// Where balances are kept, and how rewards are shared.
    pub ledger: Ledger,
    /// What gateways share beside the log, by name.
    pub caches: BTreeMap<String, CacheConfig>,
    /// The process's HTTP endpoint.
    pub http: Http,
    /// What the pool is meant to survive.
    pub limits: Limits,
}

/// State of tasks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Directory that holds one state per task; a relative one starts at the working directory.
    pub dir: PathBuf,
    /// Bytes for the caches and write buffers of all tasks together.
    pub memory: u64,
    /// Checkpoints of each task.
    pub checkpoints: Checkpoints,
}

/// When checkpoints are made and how many are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoints {
    /// Time between two of a task, and so the largest age of the newest one; zero where none are made but by command.
    pub every: Duration,
    /// How many of a task are kept.
    pub keep: usize,
}

/// The Bitcoin side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitcoin {
    /// The chain.
    pub network: Chain,
    /// Nodes, in order of preference; at least one, with different names.
    pub nodes: Vec<BitcoinNode>,
    /// Address that coinbases pay to, valid on `network`.
    pub payout: String,
    /// Text in the coinbases that tells whose block it is.
    pub tag: String,
}

/// A Bitcoin node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitcoinNode {
    /// Name in logs, metrics and records.
    pub name: String,
    /// `http://HOST:PORT` of its RPC, without credentials.
    pub rpc: String,
    /// `USER:PASSWORD` of its RPC.
    pub auth: Secret,
    /// Its ZMQ endpoint (hashblock and sequence), if it has one.
    pub zmq: Option<String>,
}

/// The ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ledger {
    /// `sqlite:PATH` or `postgres://...`; may hold a password.
    pub url: Secret,
    /// How rewards are shared.
    pub scheme: RewardScheme,
    /// The pool's fee in hundredths of a percent, 0 to 10000.
    pub fee_bps: u32,
    /// Confirmations after which a block's credits can be paid out.
    pub maturity: u32,
}

/// How rewards are shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RewardScheme {
    /// By the work of the last shares, as many as make `window` blocks on average.
    Pplns {
        /// Expected blocks in the window.
        window: u32,
    },
    /// All to the one who found the block.
    Solo,
}

/// The process's HTTP endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http {
    /// `host:port` of health, metrics and API.
    pub listen: String,
}

/// What the pool is meant to survive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest time a task may be down and still find its input in the log.
    pub outage: Duration,
}

/// What the checks of the wiring ask of the sections, each by itself: a mistake in one must not hide others.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    /// `state.checkpoints.every`.
    pub checkpoint: Option<Duration>,
    /// `limits.outage`.
    pub outage: Option<Duration>,
    /// `http.listen`; at the top of the file where the default holds.
    pub listen: Option<Spanned<String>>,
    /// Names of caches.
    pub caches: Vec<String>,
    /// Names of logs besides the main one.
    pub logs: Vec<String>,
    /// Where they are, unless one has a problem.
    pub named_logs: Option<BTreeMap<String, LogConfig>>,
}

const fn setting(name: &'static str, ty: SettingType, default: Option<&'static str>, doc: &'static str) -> SettingSpec {
    SettingSpec { name, ty, default, doc }
}

const STATE: &[SettingSpec] = &[
    setting("dir", SettingType::Text, Some("./data/state"), "Directory of the tasks' state."),
    setting(
        "memory",
        SettingType::Size,
        Some("256MiB"),
        "Memory for the caches and write buffers of all tasks together.",
    ),
];
const CHECKPOINTS: &[SettingSpec] = &[
    setting(
        "every",
        SettingType::Duration,
        Some("10m"),
        "Time between checkpoints of a task's state; `0s`: only those made by command.",
    ),
    setting("keep", SettingType::Integer(1, 1_000), Some("3"), "Checkpoints of a task that are kept, the newest ones."),
];
const BITCOIN: &[SettingSpec] = &[
    setting(
        "network",
        SettingType::Word(&["main", "test", "testnet4", "signet", "regtest"]),
        None,
        "Chain the pool mines on.",
    ),
    setting("payout", SettingType::Text, None, "Address that the pool's blocks pay to."),
    setting("tag", SettingType::Text, Some("/Sluice/"), "Text in the coinbases, at most 32 bytes."),
];
const NODE: &[SettingSpec] = &[
    setting(
        "name",
        SettingType::Text,
        Some(""),
        "Name in logs and metrics; `node1`, `node2` and so on where left out.",
    ),
    setting("rpc", SettingType::Text, None, "`http://HOST:PORT` of the node's RPC."),
    setting("auth", SettingType::Secret, None, "`USER:PASSWORD` of the RPC, or the node's cookie file."),
    setting(
        "zmq",
        SettingType::Text,
        Some(""),
        "`tcp://HOST:PORT` where the node publishes `hashblock` and `sequence`.",
    ),
];
/// Settings of a topic.
pub(crate) const TOPIC_SETTINGS: &[SettingSpec] = &[
    setting("partitions", SettingType::Integer(1, 1024), Some(""), "Number of partitions; 1 where left out."),
    setting(
        "generation",
        SettingType::Integer(1, 1_000_000),
        Some("1"),
        "Grows by one with each change of the number of partitions, which `sluice rescale` then makes.",
    ),
    setting("retention", SettingType::Duration, Some(""), "For how long records are kept; for ever where left out."),
    setting("retention_bytes", SettingType::Size, Some(""), "Bytes kept per partition; no bound where left out."),
    setting("direct", SettingType::Flag, Some("false"), "Handed over inside a task, never stored."),
    setting("log", SettingType::Text, Some(""), "Which of `logs` stores it; the main `log` where left out."),
    setting(
        "archive",
        SettingType::Flag,
        Some("false"),
        "Kept for readers outside this file: nothing here need read it.",
    ),
];
const LEDGER: &[SettingSpec] = &[
    setting("scheme", SettingType::Word(&["pplns", "solo"]), Some("pplns"), "How rewards are shared."),
    setting("window", SettingType::Integer(1, 1_000), Some("2"), "PPLNS window, in expected blocks."),
    setting("fee_bps", SettingType::Integer(0, 10_000), Some("0"), "The pool's fee in hundredths of a percent."),
    setting("maturity", SettingType::Integer(1, 100_000), Some("100"), "Confirmations until credits can be paid out."),
];
const HTTP: &[SettingSpec] =
    &[setting("listen", SettingType::Address, Some("127.0.0.1:8080"), "Where health, metrics and API are served.")];
const LIMITS: &[SettingSpec] = &[setting(
    "outage",
    SettingType::Duration,
    Some("24h"),
    "Longest time a task may be down and still find its input in the log.",
)];

/// The ledger's URL where the file has none.
const LEDGER_URL: &str = "sqlite:./data/ledger.db";

/// The sections of the file with their settings, for the reference. `ledger.url` and the `url` of a cache are not
/// among them: they are secrets only where they hold a password.
pub fn top_level_reference() -> [(&'static str, &'static [SettingSpec]); 11] {
    [
        ("log", log::LOG),
        ("logs.NAME", log::LOG),
        ("state", STATE),
        ("state.checkpoints", CHECKPOINTS),
        ("bitcoin", BITCOIN),
        ("bitcoin.nodes[]", NODE),
        ("topics.NAME", TOPIC_SETTINGS),
        ("ledger", LEDGER),
        ("caches.NAME", caches::CACHE),
        ("http", HTTP),
        ("limits", LIMITS),
    ]
}

/// The sections, read from the file's top level; `None` where one of them has a problem.
pub(crate) fn read<'n>(top: &mut Fields<'n>, reader: &mut Reader<'_>) -> (Option<Config>, Facts) {
    let log = log(top, reader);
    let (state, checkpoints) = state(top, reader);
    let bitcoin = bitcoin(top, reader);
    let ledger = ledger(top, reader);
    let http = section(top, "http", HTTP, reader);
    let limits = section(top, "limits", LIMITS, reader);
    let (names, caches) = caches::read(top, reader);
    let (logs, named_logs) = log::read_named(top, log.as_ref(), reader);
    if let (Some(bitcoin), Some(ledger)) = (&bitcoin, &ledger) {
        maturity(&bitcoin.value, ledger, reader);
    }
    let duration = |section: &Option<Section>, name: &str| match section.as_ref()?.located.settings.get(name) {
        Some(SettingValue::Duration(value)) => Some(*value),
        _ => None,
    };
    let listen = http.as_ref().and_then(|http| {
        http.located.settings.get("listen")?;
        Some(Spanned::new(http.located.settings.text("listen").to_owned(), http.located.span("listen", http.span)))
    });
    let (checkpoint, outage) = (duration(&checkpoints, "every"), duration(&limits, "outage"));
    let facts = Facts { checkpoint, outage, listen, caches: names, logs, named_logs };
    let config = assemble((log, caches), (state, checkpoints), bitcoin, ledger, http, limits);
    (config, facts)
}

/// A coinbase cannot be spent before it has 100 confirmations: credits must not be payable earlier on the main chain.
fn maturity(bitcoin: &Bitcoin, ledger: &Spanned<Ledger>, reader: &mut Reader<'_>) {
    let given = ledger.value.maturity;
    if bitcoin.network == Chain::Main && given < 100 {
        let message = format!("coinbases cannot be spent after {given} confirmations, but after 100");
        reader.problems.add("ledger.maturity", ledger.span, message, "set `maturity: 100` or more");
    }
}

/// The section `log`.
fn log<'n>(top: &mut Fields<'n>, reader: &mut Reader<'_>) -> Option<LogConfig> {
    let mut fields = section_fields(top, "log", reader)?;
    let log = log::read(&mut fields, reader);
    fields.finish(reader);
    log
}

fn assemble(
    (log, caches): (Option<LogConfig>, Option<BTreeMap<String, CacheConfig>>),
    (state, checkpoints): (Option<Section>, Option<Section>),
    bitcoin: Option<Spanned<Bitcoin>>,
    ledger: Option<Spanned<Ledger>>,
    http: Option<Section>,
    limits: Option<Section>,
) -> Option<Config> {
    let state = state?.located.settings;
    let checkpoints = checkpoints?.located.settings;
    Some(Config {
        log: log?,
        state: State {
            dir: state.text("dir").into(),
            memory: state.integer("memory"),
            checkpoints: Checkpoints {
                every: checkpoints.duration("every"),
                keep: usize::try_from(checkpoints.integer("keep")).unwrap_or(usize::MAX),
            },
        },
        bitcoin: bitcoin?.value,
        ledger: ledger?.value,
        caches: caches?,
        http: Http { listen: http?.located.settings.text("listen").to_owned() },
        limits: Limits { outage: limits?.located.settings.duration("outage") },
    })
}

/// The section `state` and the one in it.
fn state<'n>(top: &mut Fields<'n>, reader: &mut Reader<'_>) -> (Option<Section>, Option<Section>) {
    let Some(mut fields) = section_fields(top, "state", reader) else { return (None, None) };
    let located = reader.settings(&mut fields, STATE);
    let span = fields.span;
    let checkpoints = section(&mut fields, "checkpoints", CHECKPOINTS, reader);
    fields.finish(reader);
    (Some(Section { located, span }), checkpoints)
}

struct Section {
    located: Located,
    span: Span,
}

fn section<'n>(
    top: &mut Fields<'n>,
    name: &'n str,
    specs: &'static [SettingSpec],
    reader: &mut Reader<'_>,
) -> Option<Section> {
    let mut fields = section_fields(top, name, reader)?;
    let located = reader.settings(&mut fields, specs);
    let span = fields.span;
    fields.finish(reader);
    Some(Section { located, span })
}

fn section_fields<'n>(top: &mut Fields<'n>, name: &'n str, reader: &mut Reader<'_>) -> Option<Fields<'n>> {
    match top.get(name) {
        Some(node) => Fields::of(node, format!("`{name}`"), reader),
        None => Fields::of(&EMPTY, format!("`{name}`"), reader).map(|fields| fields.at(top.span)),
    }
}

static EMPTY: Node = Node { span: Span::new(0, 0), value: Value::Null };

fn bitcoin<'n>(top: &mut Fields<'n>, reader: &mut Reader<'_>) -> Option<Spanned<Bitcoin>> {
    let mut fields = section_fields(top, "bitcoin", reader)?;
    let located = reader.settings(&mut fields, BITCOIN);
    let payout_span = located.span("payout", fields.span);
    let nodes = nodes(&mut fields, reader);
    let tag_span = located.span("tag", fields.span);
    fields.finish(reader);
    let text = |name: &str| located.settings.text(name).to_owned();
    if text("tag").len() > 32 || text("tag").chars().any(char::is_control) {
        let message = "`tag` of `bitcoin` is longer than 32 bytes, or has control characters";
        reader.problems.add("setting.type", tag_span, message, "a coinbase has no room for more: shorten it");
    }
    let network = text("network").parse().ok();
    let payout = located.settings.get("payout").map(|_| text("payout"));
    let paid = payout_is_valid(network, payout.as_deref(), payout_span, reader);
    let bitcoin = Bitcoin { network: network?, nodes: nodes?, payout: payout?, tag: text("tag") };
    paid.then(|| Spanned::new(bitcoin, payout_span))
}

/// Whether the payout address, if there is one, is one of the chain.
fn payout_is_valid(network: Option<Chain>, payout: Option<&str>, span: Span, reader: &mut Reader<'_>) -> bool {
    let (Some(network), Some(payout)) = (network, payout) else { return true };
    let shown = reader.shown(span, payout);
    let (message, hint) = match payout_script(network, payout) {
        Ok(_) => return true,
        Err(AddressError::OtherChain(_)) => (
            format!("`payout`, `{shown}`, is an address of another chain than `{network}`"),
            format!("give an address of `{network}`, or correct `network`"),
        ),
        Err(AddressError::Malformed(_)) => (
            format!("`payout` cannot be `{shown}`: that is no Bitcoin address"),
            "give the address that the pool's blocks shall pay to; copy it whole".to_owned(),
        ),
    };
    reader.problems.add("bitcoin.payout", span, message, hint);
    false
}

fn nodes<'n>(bitcoin: &mut Fields<'n>, reader: &mut Reader<'_>) -> Option<Vec<BitcoinNode>> {
    let hint = "add `nodes: [ { rpc: http://HOST:PORT, auth: ${BITCOIN_RPC_AUTH} } ]`";
    let items = match bitcoin.get("nodes") {
        Some(Node { value: Value::List(items), .. }) if !items.is_empty() => items,
        Some(node) => {
            let message = format!("`nodes` of `bitcoin` must be a list of at least one node, not {}", node.shape());
            reader.problems.add("type", node.span, message, hint);
            return None;
        }
        None => {
            bitcoin.lacks("nodes", "setting.missing", "`bitcoin` lacks `nodes`".to_owned(), hint.to_owned());
            return None;
        }
    };
    let mut nodes: Vec<Option<Spanned<BitcoinNode>>> = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let node = node(item, index + 1, reader);
        if let Some(node) = &node
            && let Some(first) = nodes.iter().flatten().find(|other| other.value.name == node.value.name)
        {
            let message = "two nodes have the same name";
            let problem = reader.problems.add("name.duplicate", node.span, message, "give each node its own `name`");
            problem.note(first.span, "the other one");
        }
        nodes.push(node);
    }
    nodes.into_iter().map(|node| node.map(|node| node.value)).collect()
}

fn node(item: &Node, number: usize, reader: &mut Reader<'_>) -> Option<Spanned<BitcoinNode>> {
    let mut fields = Fields::of(item, format!("node {number} of `bitcoin`"), reader)?;
    let located = reader.settings(&mut fields, NODE);
    let span = fields.span;
    fields.finish(reader);
    let text = |name: &str| Some(located.settings.text(name).to_owned()).filter(|text| !text.is_empty());
    let rpc = text("rpc").filter(|rpc| rpc_is_valid(rpc, located.span("rpc", span), reader));
    let zmq = text("zmq");
    if let Some(zmq) = &zmq
        && !["tcp://", "ipc://"].iter().any(|scheme| zmq.starts_with(scheme))
    {
        let at = located.span("zmq", span);
        let message = format!("`{}` is no ZMQ endpoint", reader.shown(at, zmq));
        reader.problems.add("setting.type", at, message, "write `tcp://HOST:PORT`");
    }
    let name = text("name").unwrap_or_else(|| format!("node{number}"));
    let auth = located.settings.secret("auth")?.clone();
    Some(Spanned::new(BitcoinNode { name, rpc: rpc?, auth, zmq }, span))
}

fn rpc_is_valid(rpc: &str, span: Span, reader: &mut Reader<'_>) -> bool {
    let Some(rest) = rpc.strip_prefix("http://") else {
        let message = format!("`{}` is no RPC address", without_credentials(reader.shown(span, rpc)));
        reader.problems.add("setting.type", span, message, "write `http://HOST:PORT`");
        return false;
    };
    if rest.split('/').next().is_some_and(|authority| authority.contains('@')) {
        let hint = "remove it; put `USER:PASSWORD` into a variable and write `auth: ${VARIABLE}`";
        reader.problems.add("secret.inline", span, "the RPC address holds a password", hint);
        return false;
    }
    let authority = rest.split('/').next().unwrap_or_default();
    let valid = if authority.contains(':') {
        super::HostPort::parse(authority).is_some_and(|at| at.port != 0)
    } else {
        !authority.is_empty()
    };
    if !valid {
        let message = format!("`{}` is no RPC address", reader.shown(span, rpc));
        reader.problems.add("setting.type", span, message, "write `http://HOST:PORT`");
    }
    valid
}

fn without_credentials(url: &str) -> &str {
    url.rsplit_once('@').map_or(url, |(_, rest)| rest)
}

fn ledger<'n>(top: &mut Fields<'n>, reader: &mut Reader<'_>) -> Option<Spanned<Ledger>> {
    let mut fields = section_fields(top, "ledger", reader)?;
    let url = match fields.get("url") {
        Some(node) => ledger_url(node, reader),
        None => Some(Secret::from_parts(vec![super::secret::Part::Fixed(LEDGER_URL.to_owned())])),
    };
    let located = reader.settings(&mut fields, LEDGER);
    let maturity_span = located.span("maturity", fields.span);
    fields.finish(reader);
    let number = |name: &str| {
        located.settings.get(name)?;
        u32::try_from(located.settings.integer(name)).ok()
    };
    let scheme = match located.settings.text("scheme") {
        "solo" => RewardScheme::Solo,
        _ => RewardScheme::Pplns { window: number("window")? },
    };
    let ledger = Ledger { url: url?, scheme, fee_bps: number("fee_bps")?, maturity: number("maturity")? };
    Some(Spanned::new(ledger, maturity_span))
}

fn ledger_url(node: &Node, reader: &mut Reader<'_>) -> Option<Secret> {
    let url = reader.maybe_secret(node, "`url` of `ledger`")?;
    let fixed = url.fixed_text();
    let password =
        fixed.split_once("://").and_then(|(_, rest)| rest.split_once('@')).and_then(|(user, _)| user.split_once(':'));
    let in_query = fixed.split_once("password=").map(|(_, rest)| rest);
    if password
        .map(|(_, password)| password)
        .or(in_query)
        .is_some_and(|text| !text.is_empty() && !text.starts_with('*'))
    {
        let hint =
            "take the password, or the whole URL, from a variable: `url: ${LEDGER_URL}`; and change the password";
        reader.problems.add("secret.inline", node.span, "the ledger's URL holds a password", hint);
        return None;
    }
    let valid = |url: &str| {
        let schemes = ["postgres://", "postgresql://"];
        url.strip_prefix("sqlite:").is_some_and(|path| !path.is_empty()) || schemes.iter().any(|it| url.starts_with(it))
    };
    if url.known_now().is_some_and(|known| !valid(&known)) {
        let hint = "write `sqlite:PATH`, or `postgres://USER@HOST/DATABASE` with the password from a variable";
        reader.problems.add("setting.type", node.span, "`url` of `ledger` names no database that is known", hint);
        return None;
    }
    Some(url)
}
