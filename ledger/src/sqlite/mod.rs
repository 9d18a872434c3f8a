//! The ledger in an SQLite file: WAL, `synchronous=FULL`, one writer, readers beside it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{CachedStatement, Connection, ErrorCode, ToSql, TransactionBehavior, params_from_iter};

use crate::backoff::{Backoff, Interrupt};
use crate::error::{LedgerError, Result};
use crate::sql::{Database, Ledger, Row, Sql, Value, Work};
use crate::store::LedgerStore;

mod embedded {
    #![allow(missing_docs, clippy::unwrap_used)]
    refinery::embed_migrations!("../migrations/sqlite");
}

/// How long SQLite itself waits for a lock, before the wait is logged and goes on.
const BUSY: Duration = Duration::from_secs(1);

/// Opens or creates the ledger in the file `path`, and migrates it.
///
/// # Errors
/// If the file cannot be opened or written, is no ledger, or was written by a newer program.
pub fn open_sqlite(path: &Path) -> Result<Arc<dyn LedgerStore>> {
    let mut writer = connect(path)?;
    writer.pragma_update(None, "journal_mode", "WAL").map_err(|error| at(path, error))?;
    embedded::migrations::runner()
        .run(&mut writer)
        .map_err(|error| LedgerError::Database(format!("{}: cannot migrate the tables: {error}", path.display())))?;
    let reader = connect(path)?;
    reader.pragma_update(None, "query_only", true).map_err(|error| at(path, error))?;
    let database =
        SqliteDatabase { writer: Mutex::new(writer), reader: Mutex::new(reader), interrupt: Interrupt::default() };
    Ok(Arc::new(Ledger(database)))
}

fn connect(path: &Path) -> Result<Connection> {
    let setup = || {
        let connection = Connection::open(path)?;
        connection.busy_timeout(BUSY)?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        connection.set_prepared_statement_cache_capacity(64);
        Ok(connection)
    };
    setup().map_err(|error| at(path, error))
}

fn at(path: &Path, error: rusqlite::Error) -> LedgerError {
    LedgerError::Database(format!("{}: {error}", path.display()))
}

fn classify(error: rusqlite::Error) -> LedgerError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => LedgerError::Unavailable(error.to_string()),
        _ => LedgerError::Database(error.to_string()),
    }
}

struct SqliteDatabase {
    writer: Mutex<Connection>,
    reader: Mutex<Connection>,
    interrupt: Interrupt,
}

impl Database for SqliteDatabase {
    fn write(&self, work: Work<'_>) -> Result<()> {
        let mut backoff = Backoff::default();
        loop {
            match transaction(&mut self.writer.lock(), TransactionBehavior::Immediate, work) {
                Err(LedgerError::Unavailable(cause)) => {
                    tracing::warn!(cause, attempts = backoff.attempts(), "the ledger waits for its database");
                    if self.interrupt.wait(backoff.next()) {
                        return Err(LedgerError::Interrupted);
                    }
                }
                done => return done,
            }
        }
    }

    fn read(&self, work: Work<'_>) -> Result<()> {
        transaction(&mut self.reader.lock(), TransactionBehavior::Deferred, work)
    }

    fn interrupt(&self) {
        self.interrupt.set();
    }
}

/// Runs `work` in a transaction, which is rolled back unless all went well.
fn transaction(connection: &mut Connection, behavior: TransactionBehavior, work: Work<'_>) -> Result<()> {
    let transaction = connection.transaction_with_behavior(behavior).map_err(classify)?;
    work(&mut Statements(&transaction))?;
    transaction.commit().map_err(classify)
}

struct Statements<'a>(&'a Connection);

impl Statements<'_> {
    fn prepare(&self, sql: &str) -> Result<CachedStatement<'_>> {
        // `$1` is a named parameter to SQLite, `?1` a numbered one.
        self.0.prepare_cached(&sql.replace('$', "?")).map_err(classify)
    }
}

fn read_row(row: &rusqlite::Row<'_>, columns: usize) -> rusqlite::Result<Row> {
    let value = |column| {
        Ok(match row.get_ref(column)? {
            ValueRef::Null => Value::Null,
            ValueRef::Integer(value) => Value::Int(value),
            ValueRef::Blob(bytes) => Value::Bytes(bytes.to_vec()),
            ValueRef::Text(text) => Value::Text(String::from_utf8_lossy(text).into_owned()),
            // No column holds one; as text it fails where it is read as anything else.
            ValueRef::Real(value) => Value::Text(value.to_string()),
        })
    };
    (0..columns).map(value).collect::<rusqlite::Result<_>>().map(Row)
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self {
            Self::Null => ToSqlOutput::Borrowed(ValueRef::Null),
            Self::Int(value) => ToSqlOutput::Borrowed(ValueRef::Integer(*value)),
            Self::Text(text) => ToSqlOutput::Borrowed(ValueRef::Text(text.as_bytes())),
            Self::Bytes(bytes) => ToSqlOutput::Borrowed(ValueRef::Blob(bytes)),
            Self::Wide(value) => ToSqlOutput::Owned(value.to_be_bytes().to_vec().into()),
        })
    }
}

impl Sql for Statements<'_> {
    fn execute(&mut self, sql: &'static str, params: &[Value]) -> Result<u64> {
        let changed = self.prepare(sql)?.execute(params_from_iter(params)).map_err(classify)?;
        Ok(changed as u64)
    }

    fn execute_many(&mut self, sql: &'static str, rows: &[Vec<Value>]) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let mut statement = self.prepare(sql)?;
        for row in rows {
            statement.execute(params_from_iter(row)).map_err(classify)?;
        }
        Ok(())
    }

    fn query_each(
        &mut self,
        sql: &'static str,
        params: &[Value],
        visit: &mut dyn FnMut(&Row) -> Result<()>,
    ) -> Result<()> {
        let mut statement = self.prepare(sql)?;
        let columns = statement.column_count();
        let mut rows = statement.query(params_from_iter(params)).map_err(classify)?;
        while let Some(row) = rows.next().map_err(classify)? {
            visit(&read_row(row, columns).map_err(classify)?)?;
        }
        Ok(())
    }

    fn query_many(&mut self, sql: &'static str, rows: &[Vec<Value>]) -> Result<Vec<Option<Row>>> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let mut statement = self.prepare(sql)?;
        let columns = statement.column_count();
        let mut answers = Vec::with_capacity(rows.len());
        for row in rows {
            let mut found = statement.query(params_from_iter(row)).map_err(classify)?;
            let first = found.next().map_err(classify)?;
            answers.push(first.map(|row| read_row(row, columns)).transpose().map_err(classify)?);
        }
        Ok(answers)
    }
}
