//! `sluice swarm`: load on a pool, and what it makes of it.

use std::net::{SocketAddr, ToSocketAddrs};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use sluice_testkit::swarm::{Load, Phase, Plan, run as swarm};

use crate::cli::SwarmArgs;

/// Runs it: code 1 if the pool answered what the swarm did not expect.
pub(crate) fn run(args: &SwarmArgs) -> anyhow::Result<ExitCode> {
    let plan = plan(args)?;
    let outcome = swarm(&plan, |phase| {
        match phase {
            Phase::Ready => eprintln!("connected"),
            Phase::Begin => eprintln!("measuring for {} s", args.duration),
            Phase::End => {}
        }
        Ok(())
    })?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&outcome)?);
    } else {
        print!("{outcome}");
    }
    Ok(if outcome.mismatches == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn plan(args: &SwarmArgs) -> anyhow::Result<Plan> {
    let target = target(&args.target, args.allow_remote)?;
    let seconds = |value: f64, name: &str| {
        Duration::try_from_secs_f64(value).with_context(|| format!("--{name} {value} is no time in seconds"))
    };
    let load = match args.rate {
        _ if args.idle => Load::Idle,
        Some(rate) => Load::Open { rate, poisson: !args.even },
        None => Load::Closed(args.in_flight),
    };
    Ok(Plan {
        connections: args.connections,
        load,
        duration: seconds(args.duration, "duration")?,
        shares: args.shares,
        warm_up: if args.idle { Duration::ZERO } else { seconds(args.warm_up, "warm-up")? },
        threads: args.threads,
        password: args.password.clone(),
        connect_rate: args.storm,
        duplicates: args.duplicates,
        stales: args.stales,
        lows: args.lows,
        slow_readers: args.slow_readers,
        stock: args.stock,
        version_rolling: !args.no_version_rolling,
        blocks: args.blocks,
        record: args.record.clone(),
        seed: args.seed,
        ..Plan::new(target, args.user.as_str())
    })
}

/// The pool's address. One that is not this machine's own may belong to somebody who does not want to be flooded.
fn target(text: &str, allow_remote: bool) -> anyhow::Result<SocketAddr> {
    let mut found = text.to_socket_addrs().with_context(|| format!("--target {text} is no HOST:PORT"))?;
    let Some(target) = found.next() else { bail!("--target {text} has no address") };
    if !target.ip().is_loopback() && !allow_remote {
        bail!(
            "{target} is not on this machine. A swarm is an attack on a pool that did not ask for it: with the permission \
             of its operator, give --allow-remote"
        );
    }
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_loopback_is_put_under_load_unasked() {
        assert!(target("127.0.0.1:3333", false).is_ok());
        assert!(target("[::1]:3333", false).is_ok());
        let refused = target("192.0.2.1:3333", false).map_err(|error| error.to_string());
        assert!(refused.is_err_and(|refused| refused.contains("--allow-remote")));
        assert!(target("192.0.2.1:3333", true).is_ok());
        assert!(target("nonsense", true).is_err());
    }
}
