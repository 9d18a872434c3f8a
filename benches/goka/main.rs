//! `dedupe` and `vardiff` over Kafka: Sluice beside Goka (lovoo/goka, Go), on the same broker, with the same shares, the same rules
//! and state on disk (RocksDB, LevelDB). What a record costs; and what is left of the outputs when the process is killed in the
//! middle, held against a model in memory.
//!
//! `cargo bench -p sluice --bench goka` measures both, `-- NAME...` those that are named (`sluice`, `sluice-all`, `goka`); without Go
//! it says so and measures Sluice alone. `SHARES` sets how many shares there are (1,000,000), `RUNS` how often each engine works them
//! off (3), `KILLS` how often it is killed in one more run, evenly over its outputs (1); `OPERATORS=1` prints what Sluice's operators
//! take by their own account. No figure fails it; outputs of Sluice that are not the truth do. What the figures are stands in
//! docs/BENCHMARKS.md.

#![allow(missing_docs)]

mod broker;
mod goka;
mod input;
mod outputs;
mod process;
mod sluice;
mod truth;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use broker::{Broker, SharedKafkaLog};
use input::Share;
use outputs::{Errors, Outputs};
use process::{Engine, Usage};
use sluice::Leaves;
use truth::Truth;

/// Partitions of every topic.
const PARTITIONS: u32 = 4;
const SESSIONS: u64 = 4_000;
/// Of a hundred shares so many repeat an earlier one of their session.
const DUPLICATE_PERCENT: u64 = 3;
/// The topic that both engines read.
const CHECKED: &str = "share.checked";
/// What a row of the table has.
const COLUMNS: [&str; 10] = [
    "engine",
    "records",
    "us of CPU a record",
    "records/s",
    "MiB resident",
    "lost",
    "falsely rejected",
    "falsely accepted",
    "doubled",
    "decisions missing, wrong",
];
/// Microseconds of CPU a record that Sluice may take.
const BUDGET_US: f64 = 2.5;
/// How many times less than Goka it is to take.
const BUDGET_RATIO: f64 = 7.0;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if args.first().is_some_and(|first| first == sluice::CHILD) {
        return sluice::child(&args[1..]);
    }
    let program = goka::build()?;
    let mut ways = vec![Way::Sluice(Leaves::Rejected), Way::Sluice(Leaves::All)];
    match &program {
        Some(program) => ways.push(Way::Goka(program)),
        None => println!("There is no `go` on the PATH: Sluice is measured alone."),
    }
    if let Some(unknown) = args.iter().find(|arg| ways.iter().all(|way| way.name() != **arg)) {
        bail!("there is no engine {unknown}: {}", ways.iter().map(|way| way.name()).collect::<Vec<_>>().join(", "));
    }
    ways.retain(|way| args.is_empty() || args.iter().any(|arg| arg == way.name()));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let bench = Bench::new(number("SHARES", 1_000_000)?)?;
    runtime.block_on(bench.run(&ways, number("RUNS", 3)?, number("KILLS", 1)?))
}

fn number(variable: &str, default: u64) -> Result<u64> {
    let set = std::env::var(variable).map_or(Ok(default), |text| text.parse());
    set.with_context(|| format!("{variable} is a whole number"))
}

/// An engine, in one of its ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way<'a> {
    Sluice(Leaves),
    Goka(&'a Path),
}

impl Way<'_> {
    /// As an argument, and in names of topics.
    fn name(self) -> &'static str {
        match self {
            Self::Sluice(Leaves::Rejected) => "sluice",
            Self::Sluice(Leaves::All) => "sluice-all",
            Self::Goka(_) => "goka",
        }
    }

    /// For people.
    fn shown(self) -> &'static str {
        match self {
            Self::Sluice(Leaves::Rejected) => "Sluice, rejects and decisions leave",
            Self::Sluice(Leaves::All) => "Sluice, a verdict a record",
            Self::Goka(_) => "Goka, a verdict a record",
        }
    }

    /// What leaves it.
    fn leaves(self) -> Leaves {
        match self {
            Self::Sluice(leaves) => leaves,
            Self::Goka(_) => Leaves::All,
        }
    }
}

/// What one run shows.
struct Run {
    errors: Errors,
    repeated: u64,
    /// None of a run that was killed in the middle.
    usage: Option<Usage>,
}

struct Bench {
    broker: Broker,
    shares: Vec<Share>,
    truth: Truth,
    dir: tempfile::TempDir,
}

/// Where a run has its topics and its state.
struct Place {
    /// Names of topics begin with it.
    name: String,
    state: PathBuf,
    log: SharedKafkaLog,
}

impl Bench {
    fn new(count: u64) -> Result<Self> {
        let shares = input::shares(count);
        let truth = Truth::of(&shares);
        let dir = tempfile::Builder::new().prefix("sluice-goka-").tempdir().context("a directory for states")?;
        println!(
            "{count} shares of {SESSIONS} sessions in {PARTITIONS} partitions, {} of them duplicates; {} decisions",
            truth.duplicates(),
            truth.decided()
        );
        Ok(Self { broker: Broker::start()?, shares, truth, dir })
    }

    async fn run(&self, ways: &[Way<'_>], runs: u64, kills: u64) -> Result<()> {
        println!("\n| {} |", COLUMNS.join(" | "));
        println!("|{}", "---|".repeat(COLUMNS.len()));
        let (mut costs, mut wrong) = (vec![Vec::new(); ways.len()], Vec::new());
        for number in 0..runs {
            for (way, costs) in ways.iter().zip(&mut costs) {
                let run = self.measure(*way, number).await.with_context(|| way.shown())?;
                costs.extend(run.usage.map(|usage| self.each(usage)));
                wrong.extend(self.row(*way, &run));
            }
        }
        for way in ways.iter().filter(|_| kills > 0) {
            let run = self.kill(*way, kills).await.with_context(|| format!("{}, killed", way.shown()))?;
            wrong.extend(self.row(*way, &run));
        }
        summary(ways, &mut costs);
        ensure!(wrong.is_empty(), "outputs of Sluice are not the truth: {}", wrong.join("; "));
        Ok(())
    }

    /// Microseconds of CPU a record.
    fn each(&self, usage: Usage) -> f64 {
        usage.cpu.as_secs_f64() * 1e6 / self.shares.len() as f64
    }

    /// Prints a run; what is wrong with it, if it is one of Sluice.
    fn row(&self, way: Way<'_>, run: &Run) -> Option<String> {
        let (count, errors) = (self.shares.len(), run.errors);
        let usage = match run.usage {
            Some(usage) => format!(
                "{count} | {:.2} | {:.0} | {}",
                self.each(usage),
                count as f64 / usage.wall.as_secs_f64(),
                usage.resident >> 20
            ),
            None => format!("{count}, killed | | | "),
        };
        let lost = errors.lost.map_or_else(|| "none leave".to_owned(), |lost| lost.to_string());
        let Errors { falsely_rejected, falsely_accepted, doubled, decisions: (missing, extra), .. } = errors;
        println!(
            "| {} | {usage} | {lost} | {falsely_rejected} | {falsely_accepted} | {doubled} | {missing}, {extra} |",
            way.shown()
        );
        if run.repeated > 0 {
            eprintln!("{}: readers dropped {} repeated records", way.shown(), run.repeated);
        }
        (matches!(way, Way::Sluice(_)) && !errors.none()).then(|| format!("{}: {errors:?}", way.shown()))
    }

    /// From an empty state to the end of the shares.
    async fn measure(&self, way: Way<'_>, number: u64) -> Result<Run> {
        let place = self.place(way, &format!("run{number}")).await?;
        let usage = Engine::start(self.command(way, &place)?)?.finish()?;
        self.judge(way, &place, Some(usage)).await
    }

    /// The same, killed each time that a further part of the outputs is there, and started again on what is left.
    async fn kill(&self, way: Way<'_>, kills: u64) -> Result<Run> {
        let place = self.place(way, "killed").await?;
        let (topic, expected) = match way {
            Way::Sluice(_) => (format!("{}.share.rejected", place.name), self.truth.duplicates()),
            Way::Goka(_) => (goka::verdicts(&place.name), self.shares.len() as u64),
        };
        for kill in 1..=kills {
            let part = i64::try_from(expected * kill / (kills + 1))?;
            let reached = || Ok(self.broker.ends(&topic)?.iter().sum::<i64>() >= part);
            Engine::start(self.command(way, &place)?)?.kill_when(reached)?;
        }
        Engine::start(self.command(way, &place)?)?.finish()?;
        self.judge(way, &place, None).await
    }

    /// Makes and fills the topics of a run.
    async fn place(&self, way: Way<'_>, run: &str) -> Result<Place> {
        let name = format!("{}-{run}", way.name());
        let log = self.broker.log(&name).await?;
        let topics = sluice::graph(way.leaves())?.plan(&[])?.topics;
        sluice_log::Log::create_topics(&*log, &topics).await?;
        input::fill(&log, &self.shares).await?;
        if matches!(way, Way::Goka(_)) {
            goka::create_topics(&self.broker, &name).await?;
            let copied = input::fill_keyed(&self.broker, &log, &goka::input(&name)).await?;
            ensure!(copied == self.shares.len() as u64, "Goka's input has {copied} shares");
        }
        Ok(Place { state: self.dir.path().join(&name), name, log })
    }

    fn command(&self, way: Way<'_>, place: &Place) -> Result<std::process::Command> {
        let broker = self.broker.address();
        match way {
            Way::Sluice(leaves) => sluice::command(&broker, &place.name, &place.state, leaves),
            Way::Goka(program) => Ok(goka::command(program, &broker, &place.name, &place.state)),
        }
    }

    /// Reads the outputs, and removes everything that the run has left.
    async fn judge(&self, way: Way<'_>, place: &Place, usage: Option<Usage>) -> Result<Run> {
        let outputs = match way {
            Way::Sluice(leaves) => Outputs::of_sluice(&place.log, leaves).await?,
            Way::Goka(_) => {
                let (verdicts, decisions) = (goka::verdicts(&place.name), goka::decisions(&place.name));
                Outputs::of_goka(&self.broker, &verdicts, &decisions)?
            }
        };
        place.log.close()?;
        self.broker.clear(&place.name).await?;
        std::fs::remove_dir_all(&place.state).context("removing a state")?;
        Ok(Run { errors: outputs.compare(&self.truth, way.leaves()), repeated: outputs.repeated, usage })
    }
}

/// The middle of what was measured, and how it stands to the budget.
fn summary(ways: &[Way<'_>], costs: &mut [Vec<f64>]) {
    costs.iter_mut().for_each(|costs| costs.sort_by(f64::total_cmp));
    let middle = |at: usize| costs[at].get(costs[at].len() / 2).copied();
    let goka = ways.iter().position(|way| matches!(way, Way::Goka(_))).and_then(middle);
    println!();
    for (at, way) in ways.iter().enumerate().filter(|(_, way)| matches!(way, Way::Sluice(_))) {
        let Some(cost) = middle(at) else { continue };
        let of_budget = cost / BUDGET_US * 100.0;
        print!("{}: {cost:.2} us a record, {of_budget:.0} % of the budget of {BUDGET_US} us", way.shown());
        match goka {
            Some(goka) => println!("; Goka takes {:.1} times as much (at least {BUDGET_RATIO:.0})", goka / cost),
            None => println!(),
        }
    }
}
