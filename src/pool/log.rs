//! The log, wherever the file says it is.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use sluice_log::{
    EmbeddedLog, EmbeddedOptions, FluvioLog, FluvioOptions, KafkaLog, KafkaOptions, LogError, LogFollower, LogMetrics,
    MixedLog, SharedLog, read_only,
};
use sluice_topology::LogConfig;
use sluice_topology::spec::{FluvioConfig, KafkaConfig};

/// A log that is open to be written.
#[derive(Clone)]
pub(crate) enum OpenLog {
    /// Of this machine, by this process alone.
    Embedded(Arc<EmbeddedLog>),
    /// On brokers, by any number of processes.
    Kafka(Arc<KafkaLog>),
    /// On SPUs of Fluvio, by any number of processes.
    Fluvio(Arc<FluvioLog>),
    /// In several places: the main one first.
    Mixed(Arc<MixedLog>, Vec<OpenLog>),
}

impl OpenLog {
    /// Opens it; begins it where there is none.
    ///
    /// # Errors
    /// If it is damaged or in use, or no broker answers.
    pub(crate) async fn open(config: &LogConfig) -> anyhow::Result<Self> {
        config.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
        Self::begin(config, None).await
    }

    /// Opens it to go on with the log `uuid`, which is somewhere else; begins it under that identity where there is none.
    ///
    /// # Errors
    /// As [`OpenLog::open`], and if it has another identity.
    pub(crate) async fn open_as(config: &LogConfig, uuid: [u8; 16]) -> anyhow::Result<Self> {
        Self::begin(config, Some(uuid)).await
    }

    async fn begin(config: &LogConfig, uuid: Option<[u8; 16]>) -> anyhow::Result<Self> {
        match config {
            LogConfig::Mixed { main, .. } => Self::with_named(Self::begin_one(main, uuid).await?, config).await,
            config => Self::begin_one(config, uuid).await,
        }
    }

    async fn begin_one(config: &LogConfig, uuid: Option<[u8; 16]>) -> anyhow::Result<Self> {
        Ok(match config {
            LogConfig::Embedded { dir } => {
                let made = std::fs::create_dir_all(dir);
                made.with_context(|| format!("cannot create the log's directory {}", dir.display()))?;
                Self::open_embedded(EmbeddedOptions { uuid, ..EmbeddedOptions::new(dir) }).await?
            }
            LogConfig::Kafka(kafka) => Self::Kafka(KafkaLog::open(KafkaOptions { uuid, ..options(kafka)? }).await?),
            LogConfig::Fluvio(fluvio) => {
                Self::Fluvio(FluvioLog::open(FluvioOptions { uuid, ..on_fluvio(fluvio) }).await?)
            }
            LogConfig::Mixed { .. } => bail!("a log in several places cannot be a part of another one"),
        })
    }

    /// The main log with the others that `config` names: these go on with its identity, or begin under it.
    async fn with_named(main: Self, config: &LogConfig) -> anyhow::Result<Self> {
        let LogConfig::Mixed { named, topics, .. } = config else { return Ok(main) };
        let uuid = main.shared().uuid();
        let (mut all, mut others) = (vec![main.clone()], BTreeMap::new());
        for (name, config) in named {
            let other = Self::begin_one(config, Some(uuid)).await.with_context(|| format!("log {name}"))?;
            others.insert(name.clone(), other.shared());
            all.push(other);
        }
        Ok(Self::Mixed(MixedLog::new(main.shared(), others, topics.clone())?, all))
    }

    /// Opens it, if there is one.
    ///
    /// # Errors
    /// As [`OpenLog::open`].
    pub(crate) async fn find(config: &LogConfig) -> anyhow::Result<Option<Self>> {
        let LogConfig::Mixed { main, .. } = config else { return Self::find_one(config).await };
        match Self::find_one(main).await? {
            Some(main) => Self::with_named(main, config).await.map(Some),
            None => Ok(None),
        }
    }

    async fn find_one(config: &LogConfig) -> anyhow::Result<Option<Self>> {
        Ok(match config {
            LogConfig::Embedded { dir } if is_there(dir) => Some(Self::open_embedded(EmbeddedOptions::new(dir)).await?),
            LogConfig::Embedded { .. } | LogConfig::Mixed { .. } => None,
            LogConfig::Kafka(kafka) => KafkaLog::find(options(kafka)?).await?.map(Self::Kafka),
            LogConfig::Fluvio(fluvio) => FluvioLog::find(on_fluvio(fluvio)).await?.map(Self::Fluvio),
        })
    }

    /// Opens the log of a pool that does not run; nothing in it grows too old while it is open. Whether a pool runs on
    /// brokers cannot be told: who asks says so.
    ///
    /// # Errors
    /// If there is none, which a command must not make, or if a process has it open.
    pub(crate) async fn open_to_change(config: &LogConfig) -> anyhow::Result<Self> {
        let found = match config {
            LogConfig::Embedded { dir } if is_there(dir) => {
                let never = Duration::from_secs(u64::from(u32::MAX));
                let options = EmbeddedOptions { retention_interval: never, ..EmbeddedOptions::new(dir) };
                Some(Self::open_embedded(options).await?)
            }
            config => Self::find(config).await?,
        };
        found.with_context(|| format!("there is no log {config}; has this topology run here?"))
    }

    async fn open_embedded(options: EmbeddedOptions) -> anyhow::Result<Self> {
        Ok(Self::Embedded(tokio::task::spawn_blocking(|| EmbeddedLog::open(options)).await??))
    }

    /// As everyone but its owner sees it.
    pub(crate) fn shared(&self) -> SharedLog {
        match self {
            Self::Embedded(log) => log.clone(),
            Self::Kafka(log) => log.clone(),
            Self::Fluvio(log) => log.clone(),
            Self::Mixed(log, _) => log.clone(),
        }
    }

    /// What it has counted.
    pub(crate) fn metrics(&self) -> LogMetrics {
        match self {
            Self::Embedded(log) => log.metrics(),
            Self::Kafka(log) => log.metrics(),
            Self::Fluvio(log) => log.metrics(),
            Self::Mixed(_, all) => all.iter().map(Self::metrics).fold(LogMetrics::default(), LogMetrics::plus),
        }
    }

    /// Ends it; what was appended becomes durable first.
    ///
    /// # Errors
    /// If that fails, or takes too long on brokers.
    pub(crate) fn close(&self) -> Result<(), LogError> {
        match self {
            Self::Embedded(log) => log.close(),
            Self::Kafka(log) => log.close(),
            Self::Fluvio(log) => log.close(),
            Self::Mixed(_, all) => all.iter().map(Self::close).fold(Ok(()), Result::and),
        }
    }
}

/// Whether there is an embedded log in this directory.
pub(crate) fn is_there(dir: &Path) -> bool {
    dir.join("CURRENT").exists()
}

/// The log to be read only, beside whoever writes it, if there is one.
///
/// # Errors
/// If it cannot be read.
pub(crate) async fn find_to_read(config: &LogConfig) -> anyhow::Result<Option<SharedLog>> {
    let LogConfig::Mixed { main, named, topics } = config else { return find_one_to_read(config).await };
    let Some(main) = find_one_to_read(main).await? else { return Ok(None) };
    let mut others = BTreeMap::new();
    for (name, config) in named {
        let other = find_one_to_read(config).await?;
        others.insert(name.clone(), other.with_context(|| format!("log {name}: {}", cannot_read(config)))?);
    }
    Ok(Some(MixedLog::new(main, others, topics.clone())?))
}

async fn find_one_to_read(config: &LogConfig) -> anyhow::Result<Option<SharedLog>> {
    let failed = || cannot_read(config);
    Ok(match config {
        LogConfig::Embedded { dir } if is_there(dir) => Some(LogFollower::open(dir).with_context(failed)?),
        LogConfig::Embedded { .. } | LogConfig::Mixed { .. } => None,
        LogConfig::Kafka(kafka) => {
            KafkaLog::find(options(kafka)?).await.with_context(failed)?.map(|log| read_only(log))
        }
        LogConfig::Fluvio(fluvio) => {
            FluvioLog::find(on_fluvio(fluvio)).await.with_context(failed)?.map(|log| read_only(log))
        }
    })
}

/// The same, where there must be one.
///
/// # Errors
/// If there is none, or it cannot be read.
pub(crate) async fn open_to_read(config: &LogConfig) -> anyhow::Result<SharedLog> {
    find_to_read(config).await?.with_context(|| cannot_read(config))
}

fn cannot_read(config: &LogConfig) -> String {
    format!("cannot read the log {config}; has this topology run here?")
}

/// Waits for `what`, in a thread that no event loop runs on.
///
/// # Errors
/// If there can be no event loop, or `what` fails.
pub(crate) fn wait_for<T>(what: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(what)
}

/// As the log's client takes it.
fn on_fluvio(fluvio: &FluvioConfig) -> FluvioOptions {
    let FluvioConfig { endpoint, prefix, replication } = fluvio.clone();
    FluvioOptions { prefix, replication, ..FluvioOptions::new(endpoint) }
}

/// The same for Kafka.
fn options(kafka: &KafkaConfig) -> anyhow::Result<KafkaOptions> {
    let mut properties = Vec::new();
    let mut set = |name: &str, value: String| properties.push((name.to_owned(), value));
    let protocol = match (&kafka.tls, &kafka.sasl) {
        (None, None) => "plaintext",
        (Some(_), None) => "ssl",
        (None, Some(_)) => "sasl_plaintext",
        (Some(_), Some(_)) => "sasl_ssl",
    };
    set("security.protocol", protocol.into());
    if let Some(tls) = &kafka.tls {
        if let Some(ca) = &tls.ca {
            set("ssl.ca.location", ca.display().to_string());
        }
        if let Some((certificate, key)) = &tls.own {
            set("ssl.certificate.location", certificate.display().to_string());
            set("ssl.key.location", key.display().to_string());
        }
    }
    if let Some(sasl) = &kafka.sasl {
        set("sasl.mechanism", sasl.mechanism.into());
        set("sasl.username", sasl.user.clone());
        set("sasl.password", sasl.password.reveal().context("`sasl_password` of `log`")?);
    }
    let KafkaConfig { brokers, prefix, replication, min_insync, .. } = kafka.clone();
    Ok(KafkaOptions { brokers, prefix, replication, min_insync, properties, uuid: None })
}
