//! The ledger in PostgreSQL: serialisable transactions, repeated when the server asks for it; a server that is down is
//! waited for.
//!
//! The client is asynchronous and the ledger is not: each transaction runs on a thread of its own, which drives the
//! connection's runtime. So the store works from any thread, also from one that belongs to a runtime.

mod numeric;
mod session;
mod values;

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::backoff::{Backoff, Interrupt};
use crate::error::{LedgerError, Result};
use crate::sql::{Database, Ledger, Work};
use crate::store::LedgerStore;
use session::{Mode, Session};

/// Opens the ledger in the PostgreSQL database at `url` (a libpq connection string or URL), and migrates it. A server
/// that does not answer is waited for up to `wait`.
///
/// # Errors
/// If the address is not understood, the server refuses, does not answer in time, or the tables were written by a
/// newer program. No error shows the password.
pub fn open_postgres(url: &str, wait: Duration) -> Result<Arc<dyn LedgerStore>> {
    let config: tokio_postgres::Config =
        url.parse().map_err(|_| LedgerError::Url("not a connection string that PostgreSQL understands".into()))?;
    let interrupt = Arc::new(Interrupt::default());
    let mut writer = Session::new(config.clone())?;
    migrate(&mut writer, wait)?;
    let database = PgDatabase { writer: Mutex::new(writer), reader: Mutex::new(Session::new(config)?), interrupt };
    Ok(Arc::new(Ledger(database)))
}

fn migrate(session: &mut Session, wait: Duration) -> Result<()> {
    let (start, mut backoff) = (Instant::now(), Backoff::default());
    loop {
        match on_own_thread(|| session.migrate()) {
            Err(LedgerError::Unavailable(cause)) if start.elapsed() < wait => {
                tracing::warn!(cause, "the ledger waits for its database");
                session.disconnect();
                std::thread::sleep(backoff.next());
            }
            done => return done,
        }
    }
}

struct PgDatabase {
    writer: Mutex<Session>,
    reader: Mutex<Session>,
    interrupt: Arc<Interrupt>,
}

impl Database for PgDatabase {
    fn write(&self, work: Work<'_>) -> Result<()> {
        let mut guard = self.writer.lock();
        let session: &mut Session = &mut guard;
        let mut backoff = Backoff::default();
        loop {
            match on_own_thread(|| session.transaction(Mode::Write, work)) {
                // The connection is gone, or its state unknown. If the commit was under way it may have happened: the
                // repeated work finds its positions stored and changes nothing.
                Err(LedgerError::Unavailable(cause)) => {
                    session.disconnect();
                    if backoff.attempts() % 10 == 0 {
                        tracing::warn!(cause, attempts = backoff.attempts(), "the ledger waits for its database");
                    }
                    if self.interrupt.wait(backoff.next()) {
                        return Err(LedgerError::Interrupted);
                    }
                }
                Err(LedgerError::Conflict(cause)) => {
                    tracing::debug!(cause, "the ledger repeats a transaction");
                    if self.interrupt.wait(backoff.next()) {
                        return Err(LedgerError::Interrupted);
                    }
                }
                done => {
                    if backoff.attempts() > 0 {
                        tracing::info!(attempts = backoff.attempts(), "the ledger's database answers again");
                    }
                    return done;
                }
            }
        }
    }

    fn read(&self, work: Work<'_>) -> Result<()> {
        let mut guard = self.reader.lock();
        let session: &mut Session = &mut guard;
        // A second attempt: the connection may have gone while it was idle.
        for attempt in 0..2 {
            match on_own_thread(|| session.transaction(Mode::Read, work)) {
                Err(LedgerError::Unavailable(cause)) => {
                    session.disconnect();
                    if attempt == 1 {
                        return Err(LedgerError::Unavailable(cause));
                    }
                }
                done => return done,
            }
        }
        Ok(())
    }

    fn interrupt(&self) {
        self.interrupt.set();
    }
}

/// Runs `work` where blocking on a runtime is allowed.
fn on_own_thread<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| match scope.spawn(work).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
