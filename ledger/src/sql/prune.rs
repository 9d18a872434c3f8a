//! Removes slices that no window can reach any more, so that the stored work stays bounded by the window.

use super::facts::{Closed, Facts};
use super::work::walk;
use super::{Sql, Value};
use crate::batch::{Applied, LedgerBatch};
use crate::error::Result;
use crate::score::Score;

/// How much event time passes between two looks, milliseconds.
const EVERY_MS: u64 = 3_600_000;

/// Looks, once an hour of event time, for slices that may go.
///
/// Kept is the whole window that ends `keep` before the newest slice closed everywhere, or at the oldest block whose
/// credits are not final yet, whichever is earlier, and all that is newer. So outcomes may be late by `keep`, and a
/// block can be recomputed until it is mature. Should a block need more than that, its credit stops with
/// [`crate::LedgerError::Pruned`] and nothing is shared out wrongly. Where the window is not full nothing is removed.
pub(super) fn prune(
    sql: &mut dyn Sql,
    facts: &mut Facts,
    closed: &Closed,
    batch: &LedgerBatch,
    applied: &mut Applied,
) -> Result<()> {
    let (Some(slice_ms), Some(through)) = (facts.slice_ms, closed.through(facts)) else { return Ok(()) };
    let every = (EVERY_MS / slice_ms).max(1);
    if through < facts.prune_checked.saturating_add(every) {
        return Ok(());
    }
    facts.prune_checked = through;
    let keep = u64::try_from(batch.keep.as_millis()).unwrap_or(u64::MAX) / slice_ms;
    let mut end = through.saturating_sub(keep);
    let oldest = sql.query_first(
        "SELECT found_ns FROM blocks WHERE credit IN ('waiting', 'pending') AND chain <> 'refused' \
         ORDER BY found_ns LIMIT 1",
        &[],
    )?;
    if let Some(oldest) = oldest {
        end = end.min(facts.slice_of(oldest.u64(0)?).unwrap_or(0));
    }
    let length = Score::blocks(batch.rules.scheme.window());
    let (window, full) = walk(sql, end, facts.pruned_below, length)?;
    if !full || window.from <= facts.pruned_below {
        return Ok(());
    }
    let below = [Value::int(window.from)?];
    sql.execute("DELETE FROM slices WHERE slice < $1", &below)?;
    applied.pruned = sql.execute("DELETE FROM slice_totals WHERE slice < $1", &below)?;
    facts.pruned_below = window.from;
    tracing::info!(slices = applied.pruned, below = window.from, "removed slices that no window reaches any more");
    Ok(())
}
