//! The command line of `sluice replay`.

use std::path::PathBuf;

use clap::Args;
use sluice_proto::EventTime;

use crate::cli::FileArgs;

/// `sluice replay`.
#[derive(Args)]
#[command(after_help = "\
Examples:
  sluice replay --verify                         everything again, compared with the log, the states and the ledger
  sluice replay --verify --only verify.3         one task
  sluice replay --only stats --to ./stats-again  the state of an operator, into a directory
  sluice replay --only verify.0 --until 5000     its state as of an offset of its input
  sluice replay --in-place                       new states for a pool that is stopped
  sluice replay --verify --from-log old.yaml     moves the log of old.yaml to where topology.yaml has it, and compares

It reads the log beside a running pool, except with --in-place. Code 1: something differs, or could not be replayed.")]
pub(crate) struct ReplayArgs {
    /// The topology.
    #[command(flatten)]
    pub(crate) file: FileArgs,
    /// First bring the log of this topology file, whose pool must not run, into the log of the topology: every record at the same
    /// offset. The log must be new, or one that this was interrupted on. States and ledger then go on with it; the old log stays as
    /// it is, and no pool may run on it again.
    #[arg(long, value_name = "FILE")]
    pub(crate) from_log: Option<PathBuf>,
    /// Only these operators (with those fused with them) or tasks, such as `verify` or `verify.3`.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) only: Vec<String>,
    /// Make the states in this directory and keep them; otherwise they go to a temporary one.
    #[arg(long, value_name = "DIR", conflicts_with = "in_place")]
    pub(crate) to: Option<PathBuf>,
    /// Go on from the newest checkpoint (`latest`), or from one in a directory that checkpoints were copied to, instead of
    /// beginning with the first record.
    #[arg(long, value_name = "DIR|latest")]
    pub(crate) from_checkpoint: Option<PathBuf>,
    /// Stop before this offset of the input, or behind this time: seconds since 1970 with a fraction, as `sluice tap`
    /// shows them.
    #[arg(long, value_name = "OFFSET|TIME", value_parser = parse_until)]
    pub(crate) until: Option<UntilArg>,
    /// Replace the states of the pool, which must not run. The old ones are there until all new ones are.
    #[arg(long, conflicts_with = "until")]
    pub(crate) in_place: bool,
    /// Compare what is made with what is recorded: outputs with their topics, states with the pool's, the ledger with one
    /// that is made of the topics.
    #[arg(long)]
    pub(crate) verify: bool,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Where a replay ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UntilArg {
    /// Before this offset of each input.
    Offset(u64),
    /// Behind this event time.
    Time(EventTime),
}

fn parse_until(text: &str) -> Result<UntilArg, String> {
    let wrong = || format!("`{text}` is neither an offset nor a time such as 1764000000.5");
    let Some((seconds, fraction)) = text.split_once('.') else {
        return text.parse().map(UntilArg::Offset).map_err(|_| wrong());
    };
    let digits = fraction.len();
    if digits > 9 || !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(wrong());
    }
    let seconds: u64 = seconds.parse().map_err(|_| wrong())?;
    let nanos: u64 = format!("{fraction:0<9}").parse().map_err(|_| wrong())?;
    let nanos = seconds.checked_mul(1_000_000_000).and_then(|seconds| seconds.checked_add(nanos)).ok_or_else(wrong)?;
    Ok(UntilArg::Time(EventTime::from_nanos(nanos)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_and_times_are_read() {
        assert_eq!(parse_until("42"), Ok(UntilArg::Offset(42)));
        assert_eq!(parse_until("1.5"), Ok(UntilArg::Time(EventTime::from_nanos(1_500_000_000))));
        assert_eq!(parse_until("1.000000001"), Ok(UntilArg::Time(EventTime::from_nanos(1_000_000_001))));
        for wrong in ["", "x", "-1", "1.x", "1.0000000001", "99999999999.0"] {
            assert!(parse_until(wrong).is_err(), "{wrong}");
        }
    }
}
