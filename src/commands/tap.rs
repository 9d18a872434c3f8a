//! `sluice tap`: the records of a topic, also of a running pool: the log is read beside its writer.

use std::io::{BufWriter, ErrorKind, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use sluice_log::{Log, Partition, Record, TopicInfo};
use sluice_proto::v1::Envelope;
use sluice_proto::{Offset, RecordKind, decode};

use crate::cli::{Common, From, TapArgs};
use crate::pool::log::{open_to_read, wait_for};
use crate::{logging, topology_file};

/// Bytes of one read.
const READ_BYTES: usize = 256 << 10;
/// How long a partition is waited for before the others are looked at.
const WAIT: Duration = Duration::from_millis(100);

/// Runs it.
pub(crate) fn run(args: &TapArgs, common: &Common) -> anyhow::Result<ExitCode> {
    logging::start(common)?;
    let graph = topology_file::load(&args.file)?;
    let tapped = wait_for(async { tap(args, open_to_read(&graph.config.log).await?.as_ref()).await });
    match tapped {
        // Whoever read our output has had enough.
        Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
        other => other.map(|()| ExitCode::SUCCESS),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

async fn tap(args: &TapArgs, log: &dyn Log) -> anyhow::Result<()> {
    let mut places = places(args, log).await?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        let mut found = false;
        // With one partition the log wakes us; with several, each is looked at in turn.
        let wait = if places.len() == 1 && !args.stop { WAIT * 10 } else { Duration::ZERO };
        for (partition, next) in &mut places {
            let records = log.read(partition, *next, READ_BYTES, wait).await?;
            for record in records.into_iter().take(usize::try_from(left).unwrap_or(usize::MAX)) {
                *next = record.offset.next();
                show(&mut out, partition, &record, args.json)?;
                left -= 1;
                found = true;
            }
        }
        out.flush()?;
        if !found {
            if args.stop {
                return Ok(());
            }
            tokio::time::sleep(WAIT).await;
        }
    }
    Ok(())
}

/// The partitions to read, and from where.
async fn places(args: &TapArgs, log: &dyn Log) -> anyhow::Result<Vec<(Partition, Offset)>> {
    let topics = log.topics().await?;
    let Some(topic) = topics.iter().find(|topic| *topic.name == *args.topic) else {
        let known: Vec<&str> = topics.iter().map(|topic| &*topic.name).collect();
        bail!("the log has no topic {}; it has {}", args.topic, known.join(", "));
    };
    let chosen: Vec<Partition> =
        topic.all().filter(|one| args.partition.is_none_or(|only| only == one.number)).collect();
    if chosen.is_empty() {
        bail!("{} has partitions 0 to {}", topic.name, last_partition(topic));
    }
    let mut places = Vec::with_capacity(chosen.len());
    for partition in chosen {
        let bounds = log.bounds(&partition).await?;
        let next = match args.from {
            From::Earliest if bounds.start <= Offset::new(1) => Offset::ZERO,
            From::Earliest => bounds.start,
            From::Latest => bounds.next,
            From::Offset(offset) => Offset::new(offset),
        };
        places.push((partition, next));
    }
    Ok(places)
}

fn last_partition(topic: &TopicInfo) -> u32 {
    topic.partitions.saturating_sub(1)
}

fn show(out: &mut impl Write, partition: &Partition, record: &Record, json: bool) -> anyhow::Result<()> {
    match decode(record.value.clone()) {
        Ok(envelope) if json => {
            let record = serde_json::json!({
                "topic": &*partition.topic,
                "partition": partition.number,
                "offset": record.offset.get(),
                "record": envelope,
            });
            writeln!(out, "{record}")?;
        }
        Ok(envelope) => writeln!(out, "{partition} {}  {}", record.offset, line(&envelope)?)?,
        // Shown, not hidden: a record that cannot be read stops the tasks that read it.
        Err(error) if json => {
            let record = serde_json::json!({
                "topic": &*partition.topic,
                "partition": partition.number,
                "offset": record.offset.get(),
                "error": error.to_string(),
                "bytes": hex::encode(&record.value),
            });
            writeln!(out, "{record}")?;
        }
        Err(error) => writeln!(out, "{partition} {}  unreadable: {error}", record.offset)?,
    }
    Ok(())
}

/// Event time, kind and fields of a record; long byte strings are cut.
fn line(envelope: &Envelope) -> anyhow::Result<String> {
    let kind = envelope.body.as_ref().map_or("nothing", |body| RecordKind::of(body).name());
    let mut value = serde_json::to_value(&envelope.body)?;
    let fields = value.as_object_mut().and_then(|body| body.values_mut().next());
    let fields = match fields {
        Some(serde_json::Value::Object(fields)) => {
            fields.iter().map(|(name, value)| format!("{name}={}", short(value)))
        }
        _ => return Ok(format!("{} {kind}", envelope.event_time())),
    };
    Ok(format!("{} {kind} {}", envelope.event_time(), fields.collect::<Vec<_>>().join(" ")))
}

fn short(value: &serde_json::Value) -> String {
    /// Characters of a value that a line shows: a hash fits.
    const SHOWN: usize = 64;
    let text = match value {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
