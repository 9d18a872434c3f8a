//! How long a task that was told to stop may take.

use std::time::Duration;

use tokio::sync::watch;

use crate::operator::OperatorError;
use crate::runtime::error::TaskError;

/// How long a batch may still take once the task was told to stop: within the 5 s that the process has.
const DRAIN: Duration = Duration::from_secs(3);

/// An operator's wait was ended: well if the task is told to stop, a failure if it is not, within [`DRAIN`].
pub(super) async fn interrupted(
    operator: &str,
    cause: String,
    stop: &mut watch::Receiver<bool>,
) -> Result<(), TaskError> {
    if tokio::time::timeout(DRAIN, stop.wait_for(|stop| *stop)).await.is_ok() {
        tracing::warn!(operator, cause, "stopped in the middle of a batch, which is repeated at the next start");
        return Ok(());
    }
    Err(TaskError::Flush { operator: operator.to_owned(), error: OperatorError::Interrupted(cause) })
}

/// Returns when the task was told to stop [`DRAIN`] ago; at once for one that is not the `owner` of its outputs then: it
/// may be waiting for who is.
pub(super) async fn drain_over(stop: &mut watch::Receiver<bool>, owner: &watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
    let owns = *owner.borrow();
    tokio::time::sleep(if owns { DRAIN } else { Duration::ZERO }).await;
}
