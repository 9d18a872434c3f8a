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
            writes: &[RecordKind::Submission, RecordKind::Tick],
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
