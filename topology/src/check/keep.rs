//! Retention: what may be needed again must still be there.

use std::time::Duration;

use super::wiring::{Wiring, duration};
use crate::spec::{Problems, format_duration};

pub(crate) fn check(wiring: &Wiring<'_>, problems: &mut Problems) {
    outage(wiring, problems);
    for table in 0..wiring.decl.tables.len() {
        kept_jobs(wiring, table, problems);
    }
    for operator in 0..wiring.decl.operators.len() {
        replayable(wiring, operator, problems);
    }
}

/// A task restored from its newest checkpoint after the longest outage must find its input.
fn outage(wiring: &Wiring<'_>, problems: &mut Problems) {
    let facts = &wiring.decl.facts;
    let (Some(checkpoint), Some(outage)) = (facts.checkpoint, facts.outage) else { return };
    let needed = checkpoint.saturating_add(outage);
    for (topic, ends) in wiring.topics().filter(|(topic, _)| !topic.direct()) {
        let by_operator = ends.readers.iter().any(|end| !wiring.is_service(end.operator));
        let Some(kept) = topic.retention().filter(|kept| *kept < needed) else { continue };
        if by_operator || !ends.feeds.is_empty() {
            let message = format!(
                "`{}` is kept for {}, but a task restored after an outage may need the last {}",
                topic.name.value,
                format_duration(kept),
                format_duration(needed)
            );
            let hint = format!(
                "keep it for at least {}: `state.checkpoints.every` ({}) plus `limits.outage` ({}), or lower those",
                format_duration(needed),
                format_duration(checkpoint),
                format_duration(outage)
            );
            problems.add("retention.outage", topic.span("retention"), message, hint);
        }
    }
}

/// A table keeps entries at least as long as the service that writes them lets them be cited.
fn kept_jobs(wiring: &Wiring<'_>, index: usize, problems: &mut Problems) {
    let table = &wiring.decl.tables[index];
    let Some(kept) = table.keep() else { return };
    let Some(ends) = wiring.uses.iter().find(|ends| ends.feeds.contains(&index)) else { return };
    for writer in &ends.writers {
        let operator = wiring.operator(writer.operator);
        let Some(cited) = duration(&operator.located.settings, "keep").filter(|cited| kept < *cited) else { continue };
        let message = format!(
            "table `{}` keeps entries for {}, but those of `{}` may be cited for {}",
            table.name.value,
            format_duration(kept),
            operator.name.value,
            format_duration(cited)
        );
        let hint = format!("set `keep` of the table to at least {}", format_duration(cited));
        let problem = problems.add("retention.keep", table.located.span("keep", table.name.span), message, hint);
        problem.note(operator.located.span("keep", operator.name.span), "cited for this long");
    }
}

/// A topic that tables are made from goes back at least as far as what is judged with them, or a replay would fail.
fn replayable(wiring: &Wiring<'_>, operator: usize, problems: &mut Problems) {
    for reference in &wiring.operator(operator).tables {
        let Some(table) = wiring.table(&reference.value) else { continue };
        let Some(source) = wiring.uses.iter().position(|ends| ends.feeds.contains(&table)) else { continue };
        let from = &wiring.decl.topics[source];
        let Some(kept) = from.retention() else { continue };
        let extra = wiring.decl.tables[table].keep().unwrap_or(Duration::ZERO);
        for input in wiring.stored_upstream(operator) {
            if input == source || !wiring.fits(input) {
                continue;
            }
            let input = &wiring.decl.topics[input];
            let needed = input.retention().map(|age| age.saturating_add(extra));
            if needed.is_some_and(|needed| needed <= kept) {
                continue;
            }
            let shown = |age: Option<Duration>| age.map_or("ever".to_owned(), format_duration);
            let message = format!(
                "`{}` is kept for {}, but `{}`, which is judged with table `{}`, for {}: a replay would lack entries",
                from.name.value,
                format_duration(kept),
                input.name.value,
                reference.value,
                shown(input.retention())
            );
            let hint = match needed {
                Some(needed) => format!("keep `{}` for at least {}", from.name.value, format_duration(needed)),
                None => format!("remove its `retention`, or give `{}` one", input.name.value),
            };
            let problem = problems.add("retention.table", from.span("retention"), message, hint);
            problem.note(input.span("retention"), format!("kept for {}", shown(input.retention())));
        }
    }
}
