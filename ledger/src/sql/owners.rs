//! Who writes the ledger: the highest epoch of its task (docs/adr/0014).

use super::{Sql, Value};
use crate::batch::BatchOwner;
use crate::error::{LedgerError, Result};

/// Takes the row of the owner's task until the transaction ends: of two owners at once, one waits for the other, and the
/// one of the lower epoch is refused once the higher one has written.
///
/// # Errors
/// [`LedgerError::Replaced`] if an owner of a higher epoch has written.
pub(super) fn hold(sql: &mut dyn Sql, owner: &BatchOwner) -> Result<()> {
    let task = || Value::text(&owner.task);
    let held = sql.execute(
        "INSERT INTO owners (task, epoch) VALUES ($1, $2) \
         ON CONFLICT (task) DO UPDATE SET epoch = excluded.epoch WHERE owners.epoch <= excluded.epoch",
        &[task(), owner.epoch.get().into()],
    )?;
    if held > 0 {
        return Ok(());
    }
    let row = sql.query_first("SELECT epoch FROM owners WHERE task = $1", &[task()])?;
    let by = row.map_or(Ok(0), |row| row.u64(0))?;
    Err(LedgerError::Replaced { task: owner.task.clone(), own: owner.epoch, by })
}
