//! A judgement for people: a short table, reasons below it.

use std::fmt;

use super::{Judgement, Replay, TaskStanding, TopicStanding};

/// One line of the table, and what is to be said about it.
struct Line {
    name: String,
    standing: &'static str,
    detail: String,
    reason: Option<String>,
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sections = [
            ("TASKS", self.tasks.iter().map(|task| self::task(&task.name, &task.standing)).collect::<Vec<_>>()),
            ("TOPICS", self.topics.iter().map(|topic| self::topic(&topic.name, &topic.standing)).collect()),
        ];
        let lines = || sections.iter().flat_map(|(_, lines)| lines);
        let width = lines().map(|line| line.name.len()).max().unwrap_or(0);
        for (title, lines) in sections.iter().filter(|(_, lines)| !lines.is_empty()) {
            writeln!(f, "{title}")?;
            for line in lines {
                let text = format!("  {:width$}  {:10}  {}", line.name, line.standing, line.detail);
                writeln!(f, "{}", text.trim_end())?;
            }
        }
        for line in lines() {
            if let Some(reason) = &line.reason {
                write!(f, "\n{} ({}): {reason}\n", line.name, line.standing)?;
            }
        }
        if let Some(unfinished) = &self.unfinished {
            write!(f, "\nrefused: {unfinished}\n")?;
        }
        for orphan in &self.orphans {
            write!(f, "\n{} (orphaned): {}\n", orphan.path, orphan.what)?;
        }
        Ok(())
    }
}

fn task(name: &str, standing: &TaskStanding) -> Line {
    let line = |standing, detail, reason| Line { name: name.to_owned(), standing, detail, reason };
    match standing {
        TaskStanding::New { replay } => line("new", self::replay(replay), None),
        TaskStanding::Kept { behind } => line("kept", self::behind(*behind), None),
        TaskStanding::Upgraded { behind, tables } => {
            let tables = tables.iter().map(|(table, from, to)| format!("{table} from version {from} to {to}"));
            let tables = tables.collect::<Vec<_>>().join(", ");
            line(
                "upgraded",
                self::behind(*behind),
                Some(format!("{tables}; an earlier program cannot read it afterwards")),
            )
        }
        TaskStanding::Restored { checkpoint, replay } => {
            line("restored", format!("from checkpoint {checkpoint}, {}", self::replay(replay)), None)
        }
        TaskStanding::Rebuilt { why, checkpoint, replay } => {
            let from = checkpoint.map_or_else(|| "the topics".to_owned(), |number| format!("checkpoint {number}"));
            let reason = format!(
                "{why}. `sluice run --rebuild` sets its state aside and makes it again from {from}; or go back to what made it"
            );
            line("rebuilt", self::replay(replay), Some(reason))
        }
        TaskStanding::Refused { why } => line("refused", String::new(), Some(why.clone())),
    }
}

fn behind(records: u64) -> String {
    if records == 0 { String::new() } else { format!("{records} records to read") }
}

fn replay(replay: &Replay) -> String {
    let Replay { records, rate } = replay;
    match (records, rate, replay.seconds()) {
        (0, _, _) => String::new(),
        (_, Some(rate), Some(seconds)) => format!("{records} records to read, about {seconds} s at {rate} a second"),
        _ => format!("{records} records to read, at a rate that was never measured"),
    }
}

fn topic(name: &str, standing: &TopicStanding) -> Line {
    let line = |standing, detail: String, reason| Line { name: name.to_owned(), standing, detail, reason };
    match standing {
        TopicStanding::New => line("new", String::new(), None),
        TopicStanding::Kept => line("kept", String::new(), None),
        TopicStanding::RetentionChanged { was, now } => line("changed", format!("kept {now}, was {was}"), None),
        TopicStanding::PartitionsChanged { was, now } => {
            let reason = format!(
                "it has {was} partitions, the file says {now}. Partitions never change in place: go back to {was}, or give the \
                 topic its next `generation:` and run `sluice rescale`"
            );
            line("refused", String::new(), Some(reason))
        }
        TopicStanding::Earlier => line("earlier", "what came before its present generation".to_owned(), None),
        TopicStanding::Orphaned => {
            line("orphaned", "the file does not have it; its records stay as long as it keeps them".to_owned(), None)
        }
    }
}
