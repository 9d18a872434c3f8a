//! What the demo shows: drawn anew each second where the output is a terminal, a few plain lines where it is not.

use std::io::{IsTerminal, Write, stdout};

use crossterm::cursor::{Hide, MoveTo, Show};
use crossterm::queue;
use crossterm::style::Print;
use crossterm::terminal::{Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, size};
use sluice_api::views::{Block, Pool};
use sluice_ledger::Balance;

/// Everything one picture shows.
pub(super) struct Snapshot {
    /// What the demo runs on.
    pub(super) node: String,
    /// Address of the API.
    pub(super) api: String,
    /// Address for miners.
    pub(super) stratum: String,
    /// The pool's numbers; what failed where there are none.
    pub(super) pool: Result<Pool, String>,
    /// The newest blocks.
    pub(super) blocks: Vec<Block>,
    /// Balances by account.
    pub(super) balances: Vec<(String, Balance)>,
    /// Tasks and the records they are behind.
    pub(super) lag: Vec<(String, u64)>,
    /// Now, milliseconds since the Unix epoch.
    pub(super) now_ms: u64,
}

/// The picture as lines.
pub(super) fn lines(shown: &Snapshot) -> Vec<String> {
    let mut out = vec![
        format!("Sluice demo on {}   (Ctrl-C stops it; started again it goes on)", shown.node),
        format!("API {}/api/v1/pool   miners stratum+tcp://{}", shown.api, shown.stratum),
        String::new(),
    ];
    match &shown.pool {
        Ok(pool) => pool_lines(pool, shown.now_ms, &mut out),
        Err(error) => out.push(format!("no numbers yet: {error}")),
    }
    out.push(String::new());
    out.push("BLOCKS           height  status      reward        found by                 ago".to_owned());
    for block in &shown.blocks {
        let hash = block.hash.get(48..).unwrap_or(&block.hash);
        out.push(format!(
            "{hash:16} {:7}  {:10} {:>13}  {:22} {:>5} s",
            block.height,
            status(block),
            bitcoins(block.reward_sats),
            name(&block.account, &block.worker),
            shown.now_ms.saturating_sub(block.found_ms) / 1000,
        ));
    }
    out.push(String::new());
    out.push("BALANCES                                                pending      available".to_owned());
    for (account, balance) in &shown.balances {
        out.push(format!(
            "{account:48} {:>14} {:>14}",
            bitcoins(balance.pending.get()),
            bitcoins(balance.available.get())
        ));
    }
    out.push(String::new());
    let lag: Vec<String> = shown.lag.iter().map(|(task, records)| format!("{task} {records}")).collect();
    out.push(format!("LAG (records)  {}", lag.join("  ")));
    out
}

fn pool_lines(pool: &Pool, now_ms: u64, out: &mut Vec<String>) {
    let rejected: u64 = pool.shares.rejected.iter().map(|reason| reason.shares).sum();
    out.push(format!(
        "height {}   pool {}   shares {} accepted, {rejected} rejected   blocks {} pending, {} confirmed, {} orphaned",
        pool.height,
        hashes(pool.hashrate.m1),
        pool.shares.accepted,
        pool.blocks.pending,
        pool.blocks.confirmed,
        pool.blocks.orphaned,
    ));
    out.push(String::new());
    out.push("WORKERS                  hash rate (1 min)   (10 min)      shares   last share".to_owned());
    let mut workers: Vec<_> = pool.workers.iter().collect();
    workers.sort_by(|a, b| (&a.account, &a.worker).cmp(&(&b.account, &b.worker)));
    for worker in workers {
        out.push(format!(
            "{:24} {:>17} {:>10} {:>11} {:>10} s",
            name(&worker.account, &worker.worker),
            hashes(worker.hashrate.m1),
            hashes(worker.hashrate.m10),
            worker.shares.accepted,
            now_ms.saturating_sub(worker.last_share_ms) / 1000,
        ));
    }
}

/// One line for outputs that are no terminal.
pub(super) fn plain(shown: &Snapshot) -> String {
    let lag: u64 = shown.lag.iter().map(|(_, records)| records).sum();
    let owed: u64 = shown.balances.iter().map(|(_, balance)| balance.pending.get() + balance.available.get()).sum();
    match &shown.pool {
        Ok(pool) => format!(
            "height {} pool {} shares {} blocks {} owed {} lag {lag} api {}",
            pool.height,
            hashes(pool.hashrate.m1),
            pool.shares.accepted,
            pool.blocks.pending + pool.blocks.confirmed,
            bitcoins(owed),
            shown.api,
        ),
        Err(error) => format!("no numbers yet: {error}"),
    }
}

fn status(block: &Block) -> &str {
    if block.status == "accepted" && block.credited { "credited" } else { &block.status }
}

/// The end of an account's name, which tells accounts apart, and the worker.
fn name(account: &str, worker: &str) -> String {
    let end = account.len().saturating_sub(6);
    format!("..{}.{worker}", account.get(end..).unwrap_or(account))
}

/// Satoshis as bitcoins, exactly.
fn bitcoins(sats: u64) -> String {
    format!("{}.{:08}", sats / 100_000_000, sats % 100_000_000)
}

fn hashes(per_second: f64) -> String {
    const UNITS: [&str; 7] = ["H/s", "kH/s", "MH/s", "GH/s", "TH/s", "PH/s", "EH/s"];
    let mut value = per_second;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Where pictures go.
pub(super) enum Screen {
    /// A terminal, whose other screen is used.
    Live,
    /// Anything else.
    Plain {
        /// Pictures since the start.
        count: u64,
    },
}

impl Screen {
    /// A screen on stdout; plain where asked for or where stdout is no terminal.
    pub(super) fn open(plain: bool) -> std::io::Result<Self> {
        if plain || !stdout().is_terminal() {
            return Ok(Self::Plain { count: 0 });
        }
        let mut out = stdout();
        queue!(out, EnterAlternateScreen, Hide)?;
        out.flush()?;
        Ok(Self::Live)
    }

    /// Whether log lines would spoil it.
    pub(super) fn is_live(&self) -> bool {
        matches!(self, Self::Live)
    }

    /// Shows a picture.
    pub(super) fn show(&mut self, shown: &Snapshot) -> std::io::Result<()> {
        let mut out = stdout();
        match self {
            Self::Plain { count } => {
                // Every fifth second is enough for a log.
                if count.is_multiple_of(5) {
                    writeln!(out, "{}", plain(shown))?;
                }
                *count += 1;
            }
            Self::Live => {
                let (width, height) = size().unwrap_or((100, 40));
                for (row, line) in lines(shown).iter().take(usize::from(height)).enumerate() {
                    let line: String = line.chars().take(usize::from(width)).collect();
                    let row = u16::try_from(row).unwrap_or(u16::MAX);
                    queue!(out, MoveTo(0, row), Clear(ClearType::CurrentLine), Print(line))?;
                }
                queue!(out, Clear(ClearType::FromCursorDown))?;
            }
        }
        out.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.is_live() {
            let mut out = stdout();
            let restored = queue!(out, Show, LeaveAlternateScreen).and_then(|()| out.flush());
            if let Err(error) = restored {
                tracing::warn!(%error, "the terminal could not be restored");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_exact_and_rates_readable() {
        assert_eq!(bitcoins(5_000_000_001), "50.00000001");
        assert_eq!(bitcoins(7), "0.00000007");
        assert_eq!(hashes(0.0), "0.0 H/s");
        assert_eq!(hashes(1_500_000.0), "1.5 MH/s");
        assert_eq!(hashes(2e21), "2000.0 EH/s");
        assert_eq!(name("bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080", "fast"), "..ygt080.fast");
    }
}
