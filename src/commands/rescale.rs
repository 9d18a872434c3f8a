//! `sluice rescale`: another number of partitions for the shares, on a stopped pool (docs/adr/0018).

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use sluice_log::{Partition, SharedLog};
use sluice_mining::JobTable;
use sluice_proto::{Body, EventTime};
use sluice_state::StateEnv;
use sluice_topology::runtime::rescale::{Place, Progress, Since, TaskDone, pending, rescale};
use sluice_topology::runtime::{RuntimeOptions, TopicReader};
use sluice_topology::spec::parse_duration;
use sluice_topology::{Externals, Graph, Topic};

use crate::cli::{Common, FileArgs};
use crate::pool::log::OpenLog;
use crate::{logging, pool, topology_file};

/// `sluice rescale`.
#[derive(Args)]
#[command(after_help = "\
Stop the pool, write the new number and the next generation into the file, run this, and start the pool:

  topics:
    share.submissions: { partitions: 4 }                      before
    share.submissions: { partitions: 8, generation: 2 }       after

The tasks of the old partitions count to the end what is there; the history is copied to the new partitions, so that no
share is accepted twice. Interrupted, it is simply run again; until it is complete, `sluice run` refuses to start. The
old partitions stay in the log for as long as their retention says.")]
pub(crate) struct RescaleArgs {
    /// The topology, with the new number of partitions and generation.
    #[command(flatten)]
    pub(crate) file: FileArgs,
    /// Copy this much of the history only, such as 1d: at least what belongs to jobs that miners may still cite is
    /// copied in any case. All that is there if left out.
    #[arg(long, value_name = "DURATION", value_parser = parse_since)]
    pub(crate) since: Option<Duration>,
}

fn parse_since(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| format!("`{text}` is no length of time, such as 90m, 12h or 7d"))
}

/// Runs it.
pub(crate) fn run(args: &RescaleArgs, common: &Common) -> anyhow::Result<ExitCode> {
    logging::start(common)?;
    let graph = topology_file::load(&args.file)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build()?;
    runtime.block_on(change(&graph, args.since)).map(|()| ExitCode::SUCCESS)
}

async fn change(graph: &Graph, since: Option<Duration>) -> anyhow::Result<()> {
    let log = OpenLog::open_to_change(&graph.config.log).await.context("stop the pool first, if it runs")?;
    let shared = log.shared();
    let topics = pending(graph, &shared).await?;
    if topics.is_empty() {
        println!("nothing to do: the log has the generations that the file asks for");
    }
    let since = match since {
        Some(length) => Some(Since { length, needed: oldest_citable(graph, &shared).await? }),
        None => None,
    };
    let place = Place {
        log: shared,
        env: StateEnv::on_disk(&graph.config.state.dir, pool::memory(&graph.config))?,
        externals: Arc::new(Externals::default()),
        options: RuntimeOptions::default(),
    };
    for topic in topics {
        rescale(graph, topic, since, &place, &mut |step| show(topic, &step)).await?;
    }
    log.close()?;
    Ok(())
}

/// When the oldest job was made that miners may still cite: a header of it must not be accepted again.
async fn oldest_citable(graph: &Graph, log: &SharedLog) -> anyhow::Result<EventTime> {
    let mut oldest = EventTime::from_nanos(u64::MAX);
    for table in graph.tables.iter().filter(|table| table.kind.name == "job_table") {
        let place = Partition::new(Arc::clone(&table.topic), 0);
        let end = log.bounds(&place).await?.next;
        let mut reader = TopicReader::from_oldest(log.clone(), place).await?;
        let mut jobs = JobTable::new();
        while reader.position() < end {
            for (offset, envelope) in reader.next_batch(Duration::ZERO).await? {
                let time = envelope.event_time();
                if let Some(Body::Job(job)) = envelope.body {
                    jobs.apply(offset, time, job).with_context(|| format!("{} offset {offset}", table.topic))?;
                }
            }
        }
        let live = jobs.get(jobs.live_from(jobs.applied()));
        oldest = oldest.min(live.map_or(oldest, |job| job.issued()));
    }
    Ok(oldest)
}

fn show(topic: &Topic, step: &Progress) {
    match step {
        Progress::Begun(change) => println!(
            "{}: generation {} with {} partitions, in place of {} partitions; newest record of {}",
            change.topic,
            change.generation,
            change.partitions,
            change.old_partitions,
            EventTime::from_nanos(change.cut_ns)
        ),
        Progress::Cut => println!("cut: the old partitions have ended"),
        Progress::Closed(tasks) => show_tasks("closed", tasks),
        Progress::Copied(copied) => {
            let partitions: Vec<String> = copied.partitions.iter().map(ToString::to_string).collect();
            println!(
                "copied: {} records to {}, {} older ones left out; in each partition: {} ({} stood there)",
                copied.records,
                topic.name,
                copied.older,
                partitions.join(" "),
                copied.stood
            );
        }
        Progress::Warmed(tasks) => show_tasks("warmed", tasks),
        Progress::Done => println!("done: {} has {} partitions", topic.base(), topic.partitions),
    }
}

fn show_tasks(what: &str, tasks: &[TaskDone]) {
    for task in tasks {
        println!("{what}: {} read {} records, wrote {}", task.task, task.processed, task.appended);
        for (table, digest) in &task.digests {
            println!("  {table} {digest}");
        }
    }
}
