//! A connection to PostgreSQL: connects when needed, runs transactions, tells passing errors from lasting ones.

use std::collections::HashMap;
use std::error::Error as _;
use std::future::Future;
use std::time::Duration;

use futures::future::try_join_all;
use futures::{StreamExt, pin_mut};
use tokio::runtime::{Builder, Runtime};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, NoTls, Statement};

use super::values::read_row;
use crate::error::{LedgerError, Result};
use crate::sql::{Row, Sql, Value, Work};

mod embedded {
    #![allow(missing_docs, clippy::unwrap_used)]
    refinery::embed_migrations!("../migrations/postgres");
}

/// How long an attempt to connect may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long the server may work on one statement before it gives up (`statement_timeout`).
const STATEMENT: Duration = Duration::from_secs(60);
/// How long the client waits for an answer before it takes the connection for dead.
const ANSWER: Duration = Duration::from_secs(75);
/// Statements sent ahead of their answers.
const AHEAD: usize = 512;
/// Key of the lock that keeps two programs from migrating at a time (any number, always the same).
const MIGRATION_LOCK: &str = "5784411206";

/// What a transaction may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Read,
    Write,
}

/// A connection that comes back.
pub(super) struct Session {
    config: Config,
    runtime: Option<Runtime>,
    link: Option<Link>,
}

/// An established connection with its prepared statements.
struct Link {
    client: Client,
    statements: HashMap<&'static str, Statement>,
}

impl Session {
    pub(super) fn new(mut config: Config) -> Result<Self> {
        if config.get_application_name().is_none() {
            config.application_name("sluice ledger");
        }
        config.connect_timeout(CONNECT).keepalives_idle(Duration::from_secs(10));
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| LedgerError::Database(format!("cannot start the client: {error}")))?;
        Ok(Self { config, runtime: Some(runtime), link: None })
    }

    /// Forgets the connection; the next transaction makes a new one.
    pub(super) fn disconnect(&mut self) {
        self.link = None;
    }

    /// Creates or migrates the tables.
    pub(super) fn migrate(&mut self) -> Result<()> {
        let (runtime, link) = self.connected()?;
        wait(runtime, link.client.batch_execute(&format!("SELECT pg_advisory_lock({MIGRATION_LOCK})")))?;
        let migrated = runtime.block_on(embedded::migrations::runner().run_async(&mut link.client));
        let migrated = migrated.map_err(|error| match error.source() {
            Some(source) if link.client.is_closed() => LedgerError::Unavailable(source.to_string()),
            _ => LedgerError::Database(format!("cannot migrate the tables: {error}")),
        });
        wait(runtime, link.client.batch_execute(&format!("SELECT pg_advisory_unlock({MIGRATION_LOCK})")))?;
        migrated.map(|_| ())
    }

    /// Runs `work` in a transaction. After an error it is rolled back, except where the commit itself was under way
    /// when the connection broke: then nobody knows.
    pub(super) fn transaction(&mut self, mode: Mode, work: Work<'_>) -> Result<()> {
        let (runtime, link) = self.connected()?;
        let begin = match mode {
            Mode::Read => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
            Mode::Write => "BEGIN ISOLATION LEVEL SERIALIZABLE",
        };
        wait(runtime, link.client.batch_execute(begin))?;
        let done = work(&mut Statements { runtime, link });
        if let Err(error) = done {
            if wait(runtime, link.client.batch_execute("ROLLBACK")).is_err() {
                self.link = None;
            }
            return Err(error);
        }
        wait(runtime, link.client.batch_execute("COMMIT"))
    }

    fn connected(&mut self) -> Result<(&Runtime, &mut Link)> {
        let Some(runtime) = self.runtime.as_ref() else {
            return Err(LedgerError::Inconsistent("the client has ended".into()));
        };
        if self.link.as_ref().is_some_and(|link| link.client.is_closed()) {
            self.link = None;
        }
        let link = match self.link.take() {
            Some(link) => link,
            None => connect(runtime, &self.config)?,
        };
        Ok((runtime, self.link.insert(link)))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.link = None;
        // Dropping a runtime may block, which is not allowed where the store is dropped by an asynchronous task.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn connect(runtime: &Runtime, config: &Config) -> Result<Link> {
    let (client, connection) = wait(runtime, config.connect(NoTls))?;
    runtime.spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to the ledger's database ended");
        }
    });
    let setup = format!("SET statement_timeout = {}; SET client_min_messages = warning", STATEMENT.as_millis());
    wait(runtime, client.batch_execute(&setup))?;
    Ok(Link { client, statements: HashMap::new() })
}

/// Waits for an answer, for [`ANSWER`] at most.
fn wait<R>(
    runtime: &Runtime,
    answer: impl Future<Output = std::result::Result<R, tokio_postgres::Error>>,
) -> Result<R> {
    runtime.block_on(async {
        match tokio::time::timeout(ANSWER, answer).await {
            Ok(answer) => answer.map_err(classify),
            Err(_) => Err(LedgerError::Unavailable(format!("no answer for {} s", ANSWER.as_secs()))),
        }
    })
}

/// Whether waiting helps, repeating helps, or nothing does.
fn classify(error: tokio_postgres::Error) -> LedgerError {
    let text = match error.as_db_error() {
        Some(cause) => format!("{} ({})", cause.message(), cause.code().code()),
        None => error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}")),
    };
    let Some(state) = error.code() else {
        let broken = error.is_closed() || error.source().is_some_and(|source| source.is::<std::io::Error>());
        return if broken { LedgerError::Unavailable(text) } else { LedgerError::Database(text) };
    };
    if *state == SqlState::T_R_SERIALIZATION_FAILURE || *state == SqlState::T_R_DEADLOCK_DETECTED {
        return LedgerError::Conflict(text);
    }
    // 08: connection. 53: out of resources. 57: operator's intervention (shut down, starting up, statement timeout).
    // 58: the server's I/O. 55P03: lock not available. 25006: a standby, for instance during a failover.
    let code = state.code();
    let passing = ["08", "53", "57", "58"].iter().any(|class| code.starts_with(class));
    if passing || *state == SqlState::LOCK_NOT_AVAILABLE || *state == SqlState::READ_ONLY_SQL_TRANSACTION {
        LedgerError::Unavailable(text)
    } else {
        LedgerError::Database(text)
    }
}

struct Statements<'a> {
    runtime: &'a Runtime,
    link: &'a mut Link,
}

impl Statements<'_> {
    fn prepared(&mut self, sql: &'static str) -> Result<Statement> {
        if let Some(statement) = self.link.statements.get(sql) {
            return Ok(statement.clone());
        }
        let statement = wait(self.runtime, self.link.client.prepare(sql))?;
        self.link.statements.insert(sql, statement.clone());
        Ok(statement)
    }
}

fn params(values: &[Value]) -> Vec<&(dyn ToSql + Sync)> {
    values.iter().map(|value| value as &(dyn ToSql + Sync)).collect()
}

impl Sql for Statements<'_> {
    fn execute(&mut self, sql: &'static str, values: &[Value]) -> Result<u64> {
        let statement = self.prepared(sql)?;
        wait(self.runtime, self.link.client.execute(&statement, &params(values)))
    }

    fn execute_many(&mut self, sql: &'static str, rows: &[Vec<Value>]) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let statement = self.prepared(sql)?;
        let client = &self.link.client;
        for chunk in rows.chunks(AHEAD) {
            let all = chunk.iter().map(|row| {
                let statement = &statement;
                async move { client.execute(statement, &params(row)).await }
            });
            wait(self.runtime, try_join_all(all))?;
        }
        Ok(())
    }

    fn query_each(
        &mut self,
        sql: &'static str,
        values: &[Value],
        visit: &mut dyn FnMut(&Row) -> Result<()>,
    ) -> Result<()> {
        let statement = self.prepared(sql)?;
        let rows = wait(self.runtime, self.link.client.query_raw(&statement, values))?;
        pin_mut!(rows);
        while let Some(row) = wait(self.runtime, async { rows.next().await.transpose() })? {
            visit(&read_row(&row).map_err(classify)?)?;
        }
        Ok(())
    }

    fn query_many(&mut self, sql: &'static str, rows: &[Vec<Value>]) -> Result<Vec<Option<Row>>> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let statement = self.prepared(sql)?;
        let mut answers = Vec::with_capacity(rows.len());
        for chunk in rows.chunks(AHEAD) {
            let client = &self.link.client;
            let all = chunk.iter().map(|row| {
                let statement = &statement;
                async move { client.query(statement, &params(row)).await }
            });
            for found in wait(self.runtime, try_join_all(all))? {
                answers.push(found.first().map(read_row).transpose().map_err(classify)?);
            }
        }
        Ok(answers)
    }
}
