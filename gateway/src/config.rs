//! Settings of a gateway.

use std::time::Duration;

use ipnet::IpNet;
use sluice_mining::{Chain, Difficulty};
use sluice_topology::{Settings, network};

use crate::{GatewayError, LimitConfig, ListenerConfig, TlsFiles};

/// Settings of a gateway. [`GatewayConfig::new`] has the defaults of [`crate::KIND`].
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// Name in the topology.
    pub name: String,
    /// Number of the gateway, unique in the topology: the first byte of every extranonce1 and session id.
    pub id: u8,
    /// Where to listen, `HOST:PORT`; port 0 lets the system choose.
    pub listen: Vec<String>,
    /// Listeners with settings of their own.
    pub listeners: Vec<ListenerConfig>,
    /// The chain that payout addresses and jobs must be of.
    pub chain: Chain,
    /// First difficulty of a session that suggests none.
    pub difficulty: Difficulty,
    /// Lowest difficulty to give out.
    pub min_difficulty: Difficulty,
    /// Highest difficulty to give out.
    pub max_difficulty: Difficulty,
    /// Lowest difficulty to give out to NiceHash, which refuses pools that give less.
    pub nicehash_min_difficulty: Difficulty,
    /// Threads that serve miners; 0 means one per core.
    pub workers: usize,
    /// How often each partition of the topic of shares is told the time.
    pub tick: Duration,
    /// Longest line a miner may send, in bytes without its end.
    pub line_limit: usize,
    /// Connections at once.
    pub max_connections: usize,
    /// Bytes kept for a miner that does not read.
    pub output_limit: usize,
    /// Unanswered shares of a session beyond which it is not read from.
    pub in_flight: usize,
    /// Limits of each address.
    pub limits: LimitConfig,
    /// From connecting to a PROXY header and TLS; zero is no limit.
    pub handshake_timeout: Duration,
    /// From connecting to a subscription and an authorized user; zero is no limit.
    pub login_timeout: Duration,
    /// Silence of a session; zero is no limit.
    pub idle_timeout: Duration,
    /// Silence after which the system asks whether the peer is still there; zero is never.
    pub keepalive: Duration,
    /// How long miners are given to go elsewhere before a stop; zero is no time.
    pub drain: Duration,
    /// Where they are sent, `HOST:PORT`; to the address they know where there is none.
    pub drain_to: Option<String>,
}

impl GatewayConfig {
    /// The defaults, for a gateway of this name on `chain`.
    pub fn new(name: &str, chain: Chain) -> Self {
        Self {
            name: name.to_owned(),
            id: 0,
            listen: vec!["0.0.0.0:3333".to_owned()],
            listeners: Vec::new(),
            chain,
            difficulty: Difficulty::from_integer(1024).unwrap_or(Difficulty::ONE),
            min_difficulty: Difficulty::MIN,
            max_difficulty: Difficulty::from_integer(1_000_000_000_000).unwrap_or(Difficulty::MAX),
            nicehash_min_difficulty: Difficulty::from_integer(500_000).unwrap_or(Difficulty::ONE),
            workers: 0,
            tick: Duration::from_secs(1),
            line_limit: 8 << 10,
            max_connections: 100_000,
            output_limit: 64 << 10,
            in_flight: 128,
            limits: LimitConfig::default(),
            handshake_timeout: Duration::from_secs(10),
            login_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(600),
            keepalive: Duration::from_secs(60),
            drain: Duration::ZERO,
            drain_to: None,
        }
    }

    /// The settings of the gateway `name` in the topology.
    ///
    /// # Errors
    /// [`GatewayError::Setting`] if one is out of its range.
    pub fn from_settings(name: &str, settings: &Settings, chain: Chain) -> Result<Self, GatewayError> {
        let wrong = |problem: String| GatewayError::Setting { name: name.to_owned(), problem };
        let difficulty = |key: &str| {
            let text = settings.text(key);
            Difficulty::parse_wire(text).ok_or_else(|| wrong(format!("{key} must be a number above 0, not {text:?}")))
        };
        let size = |key: &str| {
            usize::try_from(settings.integer(key)).map_err(|_| wrong(format!("{key} is too large for this machine")))
        };
        let id = settings.integer("id");
        Self {
            name: name.to_owned(),
            id: u8::try_from(id).map_err(|_| wrong(format!("id must be from 0 to 255, not {id}")))?,
            listen: settings.list("listen").to_vec(),
            listeners: listeners(settings).map_err(wrong)?,
            chain,
            difficulty: difficulty("difficulty")?,
            min_difficulty: difficulty("min_difficulty")?,
            max_difficulty: difficulty("max_difficulty")?,
            nicehash_min_difficulty: difficulty("nicehash_min_difficulty")?,
            workers: size("workers")?,
            tick: settings.duration("tick"),
            line_limit: size("line_limit")?,
            max_connections: size("max_connections")?,
            output_limit: size("output_limit")?,
            in_flight: size("in_flight")?,
            limits: limits(settings).map_err(wrong)?,
            handshake_timeout: settings.duration("handshake_timeout"),
            login_timeout: settings.duration("login_timeout"),
            idle_timeout: settings.duration("idle_timeout"),
            keepalive: settings.duration("keepalive"),
            drain: settings.duration("drain"),
            drain_to: Some(settings.text("drain_to").to_owned()).filter(|to| !to.is_empty()),
        }
        .checked()
    }

    /// The settings, if they fit together.
    pub(crate) fn checked(self) -> Result<Self, GatewayError> {
        let problem = if self.min_difficulty > self.max_difficulty {
            "min_difficulty is above max_difficulty: exchange them"
        } else if self.difficulty < self.min_difficulty || self.difficulty > self.max_difficulty {
            "difficulty must lie between min_difficulty and max_difficulty"
        } else if self.listen.is_empty() && self.listeners.is_empty() {
            "neither listen nor listeners names an address: give at least one"
        } else if self.tick < Duration::from_millis(10) {
            "tick must be at least 10ms"
        } else if !(512..=1 << 20).contains(&self.line_limit) {
            "line_limit must be from 512 bytes to 1 MiB"
        } else if self.output_limit < 16 << 10 {
            "output_limit must be at least 16 KiB: a job has to fit in"
        } else if self.in_flight == 0 || self.max_connections == 0 {
            "in_flight and max_connections must be at least 1"
        } else if !self.keepalive.is_zero() && self.keepalive < Duration::from_secs(1) {
            "keepalive must be at least 1s, or 0s for none"
        } else if let Some(listener) = self.listeners.iter().find(|listener| {
            let of = listener.session_config(&self);
            of.min_difficulty > of.difficulty || of.difficulty > of.max_difficulty
        }) {
            &format!("the difficulty of {} must lie between its min_difficulty and max_difficulty", listener.listen)
        } else {
            return Ok(self);
        };
        Err(GatewayError::Setting { name: self.name, problem: problem.to_owned() })
    }

    /// All listeners, those of `listen` first.
    pub(crate) fn doors(&self) -> Vec<ListenerConfig> {
        let plain = self.listen.iter().map(|address| ListenerConfig::plain(address));
        plain.chain(self.listeners.iter().cloned()).collect()
    }

    /// `difficulty` within the pool's range, rounded down to one that may be given out. The range may be unchecked yet.
    pub(crate) fn clamp(&self, difficulty: Difficulty) -> Difficulty {
        difficulty.floor_to_allowed().min(self.max_difficulty).max(self.min_difficulty)
    }
}

fn listeners(settings: &Settings) -> Result<Vec<ListenerConfig>, String> {
    settings.entries("listeners").iter().map(listener).collect()
}

fn listener(settings: &Settings) -> Result<ListenerConfig, String> {
    let listen = settings.text("listen");
    let difficulty = |key: &str| match settings.text(key) {
        "" => Ok(None),
        text => match Difficulty::parse_wire(text) {
            Some(difficulty) => Ok(Some(difficulty)),
            None => Err(format!("{key} of {listen} must be a number above 0, not {text:?}")),
        },
    };
    let tls = match (settings.text("tls_cert"), settings.text("tls_key")) {
        ("", "") => None,
        (cert, key) if !cert.is_empty() && !key.is_empty() => Some(TlsFiles { cert: cert.into(), key: key.into() }),
        _ => return Err(format!("{listen} must have both tls_cert and tls_key, or none of them")),
    };
    Ok(ListenerConfig {
        name: settings.text("name").to_owned(),
        listen: listen.to_owned(),
        tls,
        proxy_from: networks(settings, "proxy_from")?,
        proxy_others: settings.text("proxy_others") == "direct",
        difficulty: difficulty("difficulty")?,
        min_difficulty: difficulty("min_difficulty")?,
        max_difficulty: difficulty("max_difficulty")?,
        max_connections: usize::try_from(settings.integer("max_connections")).ok().filter(|most| *most > 0),
    })
}

fn networks(settings: &Settings, key: &str) -> Result<Vec<IpNet>, String> {
    let read = |text: &String| network(text).ok_or_else(|| format!("{key} must list networks, and {text:?} is none"));
    settings.list(key).iter().map(read).collect()
}

fn limits(settings: &Settings) -> Result<LimitConfig, String> {
    Ok(LimitConfig {
        unlimited: networks(settings, "unlimited")?,
        connections: settings.integer("address_connections"),
        connects: settings.integer("address_connects"),
        messages: settings.integer("address_messages"),
        ban: settings.duration("ban"),
        ban_percent: settings.integer("ban_percent"),
        ban_count: settings.integer("ban_count"),
        ban_window: settings.duration("ban_window"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_topology::{SettingType, SettingValue};

    /// What the topology makes of the defaults, with `changes` on top.
    fn settings(changes: &[(&str, SettingValue)]) -> Settings {
        let of = |ty, text: &str| match ty {
            SettingType::Integer(..) => SettingValue::Integer(text.parse().unwrap()),
            SettingType::Size => SettingValue::Integer(text.strip_suffix("KiB").unwrap().parse::<u64>().unwrap() << 10),
            SettingType::Duration => {
                let (number, each) =
                    text.strip_suffix('s').map_or_else(|| (text.trim_end_matches('m'), 60), |it| (it, 1));
                SettingValue::Duration(Duration::from_secs(number.parse::<u64>().unwrap() * each))
            }
            SettingType::Networks => {
                SettingValue::List(text.trim_matches(['[', ']']).split(", ").map(ToOwned::to_owned).collect())
            }
            SettingType::Entries(_) => SettingValue::Entries(Vec::new()),
            SettingType::Addresses => SettingValue::List(vec![text.to_owned()]),
            _ => SettingValue::Text(text.to_owned()),
        };
        let defaults = crate::KIND.settings.iter().map(|s| (s.name.to_owned(), of(s.ty, s.default.unwrap())));
        let changes = changes.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        Settings::new(defaults.chain(changes))
    }

    #[test]
    fn the_defaults_of_the_kind_are_those_of_new() {
        let from = GatewayConfig::from_settings("stratumd", &settings(&[]), Chain::Regtest).unwrap();
        assert_eq!(format!("{from:?}"), format!("{:?}", GatewayConfig::new("stratumd", Chain::Regtest)));
    }

    #[test]
    fn settings_out_of_range_are_refused_with_what_to_do() {
        let text = |text: &str| SettingValue::Text(text.to_owned());
        for (changes, word) in [
            (vec![("min_difficulty", text("2048"))], "difficulty must lie between"),
            (vec![("min_difficulty", text("5")), ("max_difficulty", text("4"))], "exchange"),
            (vec![("difficulty", text("0"))], "above 0"),
            (vec![("listen", SettingValue::List(Vec::new()))], "at least one"),
            (vec![("tick", SettingValue::Duration(Duration::ZERO))], "10ms"),
            (vec![("line_limit", SettingValue::Integer(10))], "512"),
            (vec![("output_limit", SettingValue::Integer(10))], "16 KiB"),
            (vec![("in_flight", SettingValue::Integer(0))], "at least 1"),
            (vec![("id", SettingValue::Integer(256))], "255"),
        ] {
            let error = GatewayConfig::from_settings("g", &settings(&changes), Chain::Main).unwrap_err().to_string();
            assert!(error.starts_with("g: ") && error.contains(word), "{error}");
        }
    }
}
