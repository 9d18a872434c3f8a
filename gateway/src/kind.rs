//! The gateway as the topology knows it.

use sluice_proto::RecordKind;
use sluice_topology::{InputSpec, Keyed, Kind, OutputSpec, Parallel, Role, SettingSpec, SettingType};

/// The service as the topology knows it.
pub static KIND: Kind = Kind {
    name: "gateway",
    summary: "speaks Stratum V1 with miners: jobs out, shares in",
    inputs: &[
        InputSpec { name: "jobs", accepts: &[RecordKind::Job], optional: false, priority: false },
        InputSpec { name: "targets", accepts: &[RecordKind::DifficultyTarget], optional: true, priority: false },
    ],
    outputs: &[
        OutputSpec {
            name: "shares",
            // The cut is put there by `sluice rescale`, while no gateway runs.
            writes: &[RecordKind::Submission, RecordKind::Tick, RecordKind::Cut],
            optional: false,
            keyed: Keyed::Session,
        },
        OutputSpec { name: "candidates", writes: &[RecordKind::Candidate], optional: false, keyed: Keyed::Single },
    ],
    lookups: &[],
    settings: SETTINGS,
    state: &[],
    parallel: Parallel::Single,
    role: Role::Service,
};

const fn setting(name: &'static str, ty: SettingType, default: &'static str, doc: &'static str) -> SettingSpec {
    SettingSpec { name, ty, default: Some(default), doc }
}

const SETTINGS: &[SettingSpec] = &[
    setting(
        "id",
        SettingType::Integer(0, 255),
        "0",
        "number of this gateway, unique in the topology: the first byte of every extranonce1",
    ),
    setting("listen", SettingType::Addresses, "0.0.0.0:3333", "where miners connect; port 0 lets the system choose"),
    setting(
        "listeners",
        SettingType::Entries(LISTENER),
        "",
        "more places where miners connect, each with settings of its own; `listen: []` leaves these alone",
    ),
    setting(
        "ack",
        SettingType::Word(&["durable"]),
        "durable",
        "when a share is answered: once it is durable in the log",
    ),
    setting(
        "difficulty",
        SettingType::Decimal,
        "1024",
        "first difficulty of a session that suggests none, rounded down to one that is given out: a whole number, below 1 one of 4 steps to each power of two",
    ),
    setting(
        "min_difficulty",
        SettingType::Decimal,
        "0.0000001",
        "lowest difficulty to give out, whatever miner or vardiff ask for",
    ),
    setting("max_difficulty", SettingType::Decimal, "1000000000000", "highest difficulty to give out"),
    setting(
        "nicehash_min_difficulty",
        SettingType::Decimal,
        "500000",
        "lowest difficulty to give out to NiceHash, known by its user agent: it refuses pools that give less",
    ),
    setting(
        "workers",
        SettingType::Integer(0, 64),
        "0",
        "threads that serve miners; 0 means one per core. Never more than the topic of shares has partitions",
    ),
    setting(
        "tick",
        SettingType::Duration,
        "1s",
        "how often each partition of the topic of shares is told the time, so that windows close without shares",
    ),
    setting(
        "line_limit",
        SettingType::Size,
        "8KiB",
        "longest line a miner may send, from 512 bytes to 1 MiB; a longer one ends the connection",
    ),
    setting("max_connections", SettingType::Integer(1, 1_000_000), "100000", "connections at once; more are refused"),
    setting(
        "output_limit",
        SettingType::Size,
        "64KiB",
        "bytes kept for a miner that does not read; beyond them it is disconnected",
    ),
    setting(
        "in_flight",
        SettingType::Integer(1, 100_000),
        "128",
        "unanswered shares of a session beyond which the gateway stops reading from it",
    ),
    setting(
        "handshake_timeout",
        SettingType::Duration,
        "10s",
        "time for a PROXY header and TLS, from connecting on; 0s is no limit",
    ),
    setting(
        "login_timeout",
        SettingType::Duration,
        "60s",
        "time until a miner must have subscribed and authorized a user; 0s is no limit",
    ),
    setting(
        "idle_timeout",
        SettingType::Duration,
        "10m",
        "silence after which a session is ended; vardiff asks for a share every few seconds. 0s is no limit",
    ),
    setting(
        "keepalive",
        SettingType::Duration,
        "60s",
        "silence after which the system asks whether the peer is still there; 60 s later it is gone. 0s is never",
    ),
    setting(
        "unlimited",
        SettingType::Networks,
        "[127.0.0.0/8, ::1]",
        "addresses that the limits of addresses do not hold for, and that are never banned",
    ),
    setting(
        "address_connections",
        SettingType::Integer(0, 1_000_000),
        "10000",
        "connections of one address (IPv6: of one /64) at once: a farm may share one. 0 is no limit",
    ),
    setting(
        "address_connects",
        SettingType::Integer(0, 1_000_000),
        "6000",
        "connects of one address per minute, which may come all at once, as after a power cut. 0 is no limit",
    ),
    setting(
        "address_messages",
        SettingType::Integer(0, 100_000_000),
        "10000",
        "messages of one address per second, those of 10 s at once; beyond them it is read from more slowly. 0 is no limit",
    ),
    setting("ban", SettingType::Duration, "10m", "how long a banned address may not connect; 0s bans nobody"),
    setting(
        "ban_percent",
        SettingType::Integer(1, 100),
        "95",
        "an address is banned when this many percent of its shares are invalid (stale ones do not count, lines that are no \
         request do): one bad miner among a farm's good ones does not get there",
    ),
    setting(
        "ban_count",
        SettingType::Integer(1, 100_000_000),
        "1000",
        "and when there were this many invalid ones within ban_window; an honest miner sends about 20 shares a minute",
    ),
    setting("ban_window", SettingType::Duration, "1m", "see ban_count"),
    setting(
        "cache",
        SettingType::Cache,
        "",
        "where gateways share what they know of addresses (connects, bans) and of sessions (difficulties), and where the newest \
         job stands; nothing waits for it",
    ),
    setting(
        "drain",
        SettingType::Duration,
        "0s",
        "at SIGTERM, how long miners are given to connect elsewhere (client.reconnect) while their shares are still taken; \
         0s is for one gateway alone, whose miners can only come back to it",
    ),
    setting(
        "drain_to",
        SettingType::Address,
        "",
        "where draining miners are sent; without it to the address they know, which a load balancer may give to another \
         gateway. Some firmware follows to the same host only",
    ),
];

const LISTENER: &[SettingSpec] = &[
    SettingSpec { name: "listen", ty: SettingType::Address, default: None, doc: "where miners connect" },
    setting("name", SettingType::Text, "", "name in logs and metrics; the address where there is none"),
    setting("tls_cert", SettingType::Text, "", "PEM file of the certificate chain: the listener speaks TLS"),
    setting(
        "tls_key",
        SettingType::Text,
        "",
        "PEM file of its key. Both are read again when they change, and at SIGHUP; connections go on",
    ),
    setting(
        "proxy_from",
        SettingType::Networks,
        "",
        "load balancers: their connections begin with a PROXY header, version 1 or 2, which says where the miner is",
    ),
    setting(
        "proxy_others",
        SettingType::Word(&["refuse", "direct"]),
        "refuse",
        "with proxy_from, connections from elsewhere are refused, or served as who they are",
    ),
    setting("difficulty", SettingType::Decimal, "", "first difficulty, instead of the gateway's"),
    setting("min_difficulty", SettingType::Decimal, "", "lowest difficulty, instead of the gateway's"),
    setting("max_difficulty", SettingType::Decimal, "", "highest difficulty, instead of the gateway's"),
    setting("max_connections", SettingType::Integer(1, 1_000_000), "", "connections at once, of the gateway's"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_has_a_default_and_is_documented() {
        for setting in KIND.settings {
            assert!(setting.default.is_some() && !setting.doc.is_empty(), "{}", setting.name);
        }
    }
}
