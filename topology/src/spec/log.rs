//! The section `log`: where topics are stored.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use super::declare::entries;
use super::fields::{Fields, Located, Reader};
use super::secret::Secret;
use super::source::Span;
use super::value::HostPort;
use crate::kind::{SettingSpec, SettingType};

/// Where topics are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogConfig {
    /// In a directory of this machine, written by one process.
    Embedded {
        /// The directory; a relative one starts at the working directory.
        dir: PathBuf,
    },
    /// On brokers of Kafka or Redpanda.
    Kafka(KafkaConfig),
    /// On SPUs of Fluvio.
    Fluvio(FluvioConfig),
    /// In several places.
    Mixed {
        /// Where a topic is that names no other log.
        main: Box<LogConfig>,
        /// The others, by name.
        named: BTreeMap<String, LogConfig>,
        /// Name of another log by topic.
        topics: BTreeMap<String, String>,
    },
}

impl LogConfig {
    /// What is no mistake, but to be known before anyone relies on the log.
    pub fn warnings(&self) -> Vec<String> {
        let fluvio = match self {
            Self::Fluvio(fluvio) => fluvio,
            Self::Mixed { main, named, .. } => {
                let mut all: Vec<String> = main.warnings();
                all.extend(named.values().flat_map(Self::warnings));
                all.dedup();
                return all;
            }
            Self::Embedded { .. } | Self::Kafka(_) => return Vec::new(),
        };
        let mut warnings = vec![
            "log: Fluvio acknowledges what its SPUs have written, and none of them syncs it to a disk: what was acknowledged \
             is lost where all that hold a copy lose power at once. It knows no idempotent producer: what was sent again is \
             there twice, and dropped by its coordinates where it is read"
                .to_owned(),
        ];
        if fluvio.replication < 2 {
            warnings.push(
                "log: with `replication: 1` on Fluvio, one machine that loses power takes shares with it that were \
                 acknowledged (invariant S1): let it be 2 or more, on machines that do not fail together"
                    .to_owned(),
            );
        }
        warnings
    }
}

/// Shown where a person is to know which log is meant.
impl fmt::Display for LogConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded { dir } => write!(f, "in {}", dir.display()),
            Self::Kafka(kafka) => {
                write!(f, "on {}", kafka.brokers.join(", "))?;
                if kafka.prefix.is_empty() { Ok(()) } else { write!(f, " (prefix {})", kafka.prefix) }
            }
            Self::Fluvio(fluvio) => {
                write!(f, "on Fluvio at {}", fluvio.endpoint)?;
                if fluvio.prefix.is_empty() { Ok(()) } else { write!(f, " (prefix {})", fluvio.prefix) }
            }
            Self::Mixed { main, named, .. } => {
                write!(f, "{main}")?;
                named.iter().try_for_each(|(name, log)| write!(f, ", {name} {log}"))
            }
        }
    }
}

/// Brokers of Kafka or Redpanda.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KafkaConfig {
    /// `host:port` of some of the brokers, at least one.
    pub brokers: Vec<String>,
    /// What names of topics begin with on the brokers.
    pub prefix: String,
    /// Copies of each partition.
    pub replication: u16,
    /// How many of them must have a record for it to be durable; at most `replication`.
    pub min_insync: u16,
    /// How connections are protected, if they are.
    pub tls: Option<Tls>,
    /// How the program says who it is, if it does.
    pub sasl: Option<Sasl>,
}

/// A cluster of Fluvio.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FluvioConfig {
    /// `host:port` of the controller (SC), for clients.
    pub endpoint: String,
    /// What names of topics begin with on the cluster.
    pub prefix: String,
    /// Copies of each partition, all of which must have written a record.
    pub replication: u16,
}

/// TLS to the brokers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Certificates of the authorities that are trusted; the system's where there is none.
    pub ca: Option<PathBuf>,
    /// The program's own certificate and its key, where brokers ask for one.
    pub own: Option<(PathBuf, PathBuf)>,
}

/// A name and a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sasl {
    /// As Kafka names it, for instance `SCRAM-SHA-512`.
    pub mechanism: &'static str,
    /// The name.
    pub user: String,
    /// The password.
    pub password: Secret,
}

const fn setting(name: &'static str, ty: SettingType, default: Option<&'static str>, doc: &'static str) -> SettingSpec {
    SettingSpec { name, ty, default, doc }
}

/// `sasl` in the file, and the mechanism's name.
const MECHANISMS: [(&str, &str); 3] =
    [("plain", "PLAIN"), ("scram-sha-256", "SCRAM-SHA-256"), ("scram-sha-512", "SCRAM-SHA-512")];

pub(super) const LOG: &[SettingSpec] = &[
    setting(
        "kind",
        SettingType::Word(&["embedded", "kafka", "fluvio"]),
        Some("embedded"),
        "Which log: in a directory of this machine, on brokers of Kafka or Redpanda, or on SPUs of Fluvio. What Fluvio \
         acknowledges is written by all copies, and synced to a disk by none: S1 needs `replication` of 2 or more there.",
    ),
    setting("dir", SettingType::Text, Some("./data/log"), "Directory of an embedded log."),
    setting("brokers", SettingType::Addresses, Some(""), "Kafka: `host:port` of some brokers; they name the others."),
    setting(
        "endpoint",
        SettingType::Text,
        Some(""),
        "Fluvio: `host:port` of the controller (SC) for clients; it names the SPUs.",
    ),
    setting(
        "prefix",
        SettingType::Text,
        Some(""),
        "Kafka, Fluvio: what names of topics begin with there, as `pool1.` or, on Fluvio, `pool1-`.",
    ),
    setting(
        "replication",
        SettingType::Integer(1, 100),
        Some("3"),
        "Kafka, Fluvio: copies of each partition. On Fluvio all of them must have written a record.",
    ),
    setting(
        "min_insync",
        SettingType::Integer(1, 100),
        Some("2"),
        "Kafka: how many of the copies must have a record for it to be durable.",
    ),
    setting("tls", SettingType::Flag, Some("false"), "Kafka: connections are encrypted."),
    setting(
        "tls_ca",
        SettingType::Text,
        Some(""),
        "Kafka: file of the authorities that are trusted; the system's if none.",
    ),
    setting(
        "tls_certificate",
        SettingType::Text,
        Some(""),
        "Kafka: file of the program's own certificate, if it has one.",
    ),
    setting("tls_key", SettingType::Text, Some(""), "Kafka: file of that certificate's key."),
    setting(
        "sasl",
        SettingType::Word(&["none", "plain", "scram-sha-256", "scram-sha-512"]),
        Some("none"),
        "Kafka: how the program says who it is.",
    ),
    setting("sasl_user", SettingType::Text, Some(""), "Kafka: its name."),
    setting("sasl_password", SettingType::Secret, Some(""), "Kafka: its password."),
];

/// Settings of logs on brokers, and the kinds that have them. `dir` has a default, and does no harm there.
const OF_BROKERS: [(&str, &[&str]); 11] = [
    ("brokers", &["kafka"]),
    ("endpoint", &["fluvio"]),
    ("prefix", &["kafka", "fluvio"]),
    ("replication", &["kafka", "fluvio"]),
    ("min_insync", &["kafka"]),
    ("tls", &["kafka"]),
    ("tls_ca", &["kafka"]),
    ("tls_certificate", &["kafka"]),
    ("tls_key", &["kafka"]),
    ("sasl", &["kafka"]),
    ("sasl_user", &["kafka"]),
];
/// It is a secret, which is given where it is named at all.
const PASSWORD: (&str, &[&str]) = ("sasl_password", &["kafka"]);

/// A kind as messages call it.
fn called(kind: &str) -> &'static str {
    match kind {
        "kafka" => "on Kafka",
        "fluvio" => "on Fluvio",
        _ => "embedded",
    }
}

/// Reads the section `logs`: names of all, and their places; `None` where one has a problem.
pub(super) fn read_named<'n>(
    top: &mut Fields<'n>,
    main: Option<&LogConfig>,
    reader: &mut Reader<'_>,
) -> (Vec<String>, Option<BTreeMap<String, LogConfig>>) {
    let (mut names, mut all) = (Vec::new(), Some(BTreeMap::new()));
    for entry in entries(top, "logs", false, reader) {
        let name = entry.key.value.clone();
        let fields = Fields::of(&entry.value, format!("log `{name}`"), reader);
        let log = fields.and_then(|fields| {
            let mut fields = fields.at(entry.key.span);
            let log = read(&mut fields, reader);
            fields.finish(reader);
            log
        });
        if let Some(log) = &log
            && (Some(log) == main || all.iter().flat_map(BTreeMap::values).any(|other| other == log))
        {
            let message = format!("log `{name}` is in the same place as another one: {log}");
            let hint = "give it a directory, a prefix or a cluster of its own";
            reader.problems.add("log.twice", entry.key.span, message, hint);
            all = None;
        }
        all = all.zip(log).map(|(mut all, log)| {
            all.insert(name.clone(), log);
            all
        });
        names.push(name);
    }
    (names, all)
}

/// Reads the section; `None` where it has a problem.
pub(super) fn read(fields: &mut Fields<'_>, reader: &mut Reader<'_>) -> Option<LogConfig> {
    let given: Vec<_> =
        OF_BROKERS.iter().chain([&PASSWORD]).filter(|(name, _)| fields.get(name).is_some()).copied().collect();
    let has = |name: &str| given.iter().any(|(given, _)| *given == name);
    let located = reader.settings(fields, LOG);
    let span = fields.span;
    let settings = &located.settings;
    let kind = settings.get("kind").map(|_| settings.text("kind").to_owned())?;
    if let Some((name, kinds)) = given.iter().find(|(_, kinds)| !kinds.contains(&kind.as_str())) {
        let of: Vec<_> = kinds.iter().map(|kind| called(kind)).collect();
        let message = format!("`{name}` is of a log {}, and this one is {}", of.join(" or "), called(&kind));
        let hint = match kind.as_str() {
            "embedded" => format!("write `kind: {}`, or remove it", kinds.join("` or `kind: ")),
            "fluvio" if *name == "min_insync" => "remove it: on Fluvio all copies must have a record".to_owned(),
            _ => "remove it".to_owned(),
        };
        reader.problems.add("setting.unused", located.span(name, span), message, hint);
        return None;
    }
    match kind.as_str() {
        "embedded" => Some(LogConfig::Embedded { dir: settings.get("dir").map(|_| settings.text("dir"))?.into() }),
        "fluvio" => fluvio(&located, span, has("endpoint"), reader).map(LogConfig::Fluvio),
        _ => kafka(&located, span, ["brokers", "sasl_password"].map(has), reader).map(LogConfig::Kafka),
    }
}

fn fluvio(located: &Located, span: Span, has_endpoint: bool, reader: &mut Reader<'_>) -> Option<FluvioConfig> {
    let settings = &located.settings;
    // What could not be read has been told.
    settings.get("replication")?;
    let (endpoint, prefix) = (settings.text("endpoint"), settings.text("prefix"));
    let before = reader.problems.len();
    if !has_endpoint {
        let hint = "add `endpoint: \"HOST:9003\"`";
        reader.problems.add("setting.missing", span, "`log` on Fluvio lacks `endpoint`", hint);
    } else if HostPort::parse(endpoint).is_none_or(|at| at.port == 0) {
        let message = format!("`endpoint` is `HOST:PORT`, not {endpoint:?}");
        let hint = "write the controller's address for clients, as `\"fluvio1:9003\"`";
        reader.problems.add("setting.type", located.span("endpoint", span), message, hint);
    }
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if prefix.len() > 20 || prefix.starts_with('-') || !prefix.chars().all(legal) {
        let message = format!("{prefix:?} cannot begin the names of topics on Fluvio");
        let hint = "use lower-case letters, digits and `-`, at most 20 of them and no `-` first";
        reader.problems.add("setting.type", located.span("prefix", span), message, hint);
    }
    (reader.problems.len() == before).then(|| FluvioConfig {
        endpoint: endpoint.to_owned(),
        prefix: prefix.to_owned(),
        replication: u16::try_from(settings.integer("replication")).unwrap_or(u16::MAX),
    })
}

fn kafka(
    located: &Located,
    span: Span,
    [has_brokers, has_password]: [bool; 2],
    reader: &mut Reader<'_>,
) -> Option<KafkaConfig> {
    let settings = &located.settings;
    // What could not be read has been told.
    ["replication", "min_insync", "tls", "sasl"].iter().try_for_each(|name| settings.get(name).map(drop))?;
    let file = |name: &str| Some(settings.text(name)).filter(|text| !text.is_empty()).map(PathBuf::from);
    let number = |name: &str| u16::try_from(settings.integer(name)).unwrap_or(u16::MAX);
    let (replication, min_insync) = (number("replication"), number("min_insync"));
    let mut faults: Vec<(&str, Span, String, &str)> = Vec::new();
    let at = |name: &str| located.span(name, span);
    if !has_brokers {
        let message = "`log` on Kafka lacks `brokers`".to_owned();
        faults.push(("setting.missing", span, message, "add `brokers: [ \"HOST:9092\" ]`"));
    }
    if min_insync > replication {
        let message = format!("`min_insync` is {min_insync}, and there are {replication} copies (`replication`)");
        faults.push((
            "setting.type",
            at("min_insync"),
            message,
            "nothing would ever be durable: let it be one less than `replication`",
        ));
    }
    let (certificate, key) = (file("tls_certificate"), file("tls_key"));
    if certificate.is_some() != key.is_some() {
        let message = "`tls_certificate` and `tls_key` belong together".to_owned();
        faults.push(("setting.missing", at("tls_key"), message, "give both, or none"));
    }
    let tls = settings.flag("tls");
    if let Some(name) = ["tls_ca", "tls_certificate", "tls_key"].into_iter().find(|name| !tls && file(name).is_some()) {
        faults.push(("setting.unused", at(name), format!("`{name}` without `tls`"), "add `tls: true`"));
    }
    let mechanism = MECHANISMS.iter().find(|(word, _)| *word == settings.text("sasl")).map(|(_, name)| *name);
    if mechanism.is_some() && (settings.text("sasl_user").is_empty() || !has_password) {
        let hint = "add both, the password from a variable: `sasl_password: ${KAFKA_PASSWORD}`";
        faults.push(("setting.missing", at("sasl"), "`sasl` needs `sasl_user` and `sasl_password`".to_owned(), hint));
    }
    let sound = faults.is_empty();
    for (code, span, message, hint) in faults {
        reader.problems.add(code, span, message, hint);
    }
    let sasl = match mechanism {
        Some(mechanism) => {
            let password = settings.secret("sasl_password").cloned()?;
            Some(Sasl { mechanism, user: settings.text("sasl_user").to_owned(), password })
        }
        None => None,
    };
    let brokers = settings.list("brokers").to_vec();
    (sound && !brokers.is_empty()).then(|| KafkaConfig {
        brokers,
        prefix: settings.text("prefix").to_owned(),
        replication,
        min_insync,
        tls: tls.then(|| Tls { ca: file("tls_ca"), own: certificate.zip(key) }),
        sasl,
    })
}
