//! The section `log`: where topics are stored.

use std::fmt;
use std::path::PathBuf;

use super::fields::{Fields, Located, Reader};
use super::secret::Secret;
use super::source::Span;
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
        SettingType::Word(&["embedded", "kafka"]),
        Some("embedded"),
        "Which log: in a directory of this machine, or on brokers of Kafka or Redpanda.",
    ),
    setting("dir", SettingType::Text, Some("./data/log"), "Directory of an embedded log."),
    setting("brokers", SettingType::Addresses, Some(""), "Kafka: `host:port` of some brokers; they name the others."),
    setting("prefix", SettingType::Text, Some(""), "Kafka: what names of topics begin with there, as `pool1.`."),
    setting("replication", SettingType::Integer(1, 100), Some("3"), "Kafka: copies of each partition."),
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

/// Reads the section; `None` where it has a problem.
pub(super) fn read(fields: &mut Fields<'_>, reader: &mut Reader<'_>) -> Option<LogConfig> {
    let given = LOG.iter().find(|spec| spec.name != "kind" && spec.name != "dir" && fields.get(spec.name).is_some());
    let located = reader.settings(fields, LOG);
    let span = fields.span;
    let settings = &located.settings;
    let kind = settings.get("kind").map(|_| settings.text("kind").to_owned());
    match (kind?.as_str(), given) {
        ("embedded", Some(given)) => {
            let message = format!("`{}` is of a log on Kafka, and this one is embedded", given.name);
            let hint = "write `kind: kafka`, or remove it";
            reader.problems.add("setting.unused", located.span(given.name, span), message, hint);
            None
        }
        ("embedded", None) => {
            Some(LogConfig::Embedded { dir: settings.get("dir").map(|_| settings.text("dir"))?.into() })
        }
        _ => {
            let given = ["brokers", "sasl_password"].map(|name| fields.get(name).is_some());
            kafka(&located, span, given, reader).map(LogConfig::Kafka)
        }
    }
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
