//! A fresh ledger on a back end.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sluice_ledger::{LedgerStore, open_postgres, open_sqlite};
use sluice_testkit::postgres::Postgres;
use tempfile::TempDir;

/// A ledger, and a way around it to its database.
pub struct Fixture {
    pub store: Arc<dyn LedgerStore>,
    place: Place,
}

enum Place {
    Sqlite(TempDir),
    Postgres(Arc<Postgres>, String),
}

impl Fixture {
    pub fn sqlite() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = open_sqlite(&dir.path().join("ledger.db")).unwrap();
        Self { store, place: Place::Sqlite(dir) }
    }

    pub fn postgres() -> Self {
        let server = Postgres::shared().unwrap();
        let url = server.create_database().unwrap();
        let store = open_postgres(&url, Duration::from_secs(10)).unwrap();
        Self { store, place: Place::Postgres(server, url) }
    }

    /// A fresh ledger on the same back end.
    pub fn another(&self) -> Self {
        match &self.place {
            Place::Sqlite(_) => Self::sqlite(),
            Place::Postgres(..) => Self::postgres(),
        }
    }

    /// A second handle on the same ledger, as another process has it.
    pub fn again(&self) -> Arc<dyn LedgerStore> {
        match &self.place {
            Place::Sqlite(dir) => open_sqlite(&dir.path().join("ledger.db")).unwrap(),
            Place::Postgres(_, url) => open_postgres(url, Duration::from_secs(10)).unwrap(),
        }
    }

    /// Takes the tables back to what they were before generations of the shares, as a program of that time left them.
    pub fn downgrade(&self) {
        let facts =
            "INSERT INTO facts (name, number) SELECT 'partitions', partitions FROM generations WHERE generation = 1;
                     DROP TABLE generations;";
        let closed = match &self.place {
            Place::Sqlite(_) => {
                r#"ALTER TABLE closed RENAME TO newer;
                   CREATE TABLE closed (
                       tally_partition INTEGER NOT NULL, "partition" INTEGER NOT NULL, slice INTEGER NOT NULL,
                       PRIMARY KEY (tally_partition, "partition")
                   ) STRICT;
                   INSERT INTO closed SELECT tally_partition, "partition", slice FROM newer;
                   DROP TABLE newer;"#
            }
            Place::Postgres(..) => {
                r#"ALTER TABLE closed DROP CONSTRAINT closed_pkey;
                   ALTER TABLE closed DROP COLUMN generation, DROP COLUMN ended;
                   ALTER TABLE closed ADD PRIMARY KEY (tally_partition, "partition");"#
            }
        };
        let migrations = "DELETE FROM refinery_schema_history WHERE name = 'generations';";
        self.sql(&[facts, closed, migrations].concat()).unwrap();
    }

    /// Runs statements past the ledger.
    pub fn sql(&self, statements: &str) -> Result<(), String> {
        match &self.place {
            Place::Sqlite(dir) => sqlite(&dir.path().join("ledger.db"), statements),
            Place::Postgres(server, url) => {
                let database = url.rsplit('/').next().unwrap();
                server.sql(database, statements).map(|_| ()).map_err(|error| error.to_string())
            }
        }
    }
}

fn sqlite(path: &Path, statements: &str) -> Result<(), String> {
    let connection = rusqlite::Connection::open(path).unwrap();
    connection.pragma_update(None, "foreign_keys", true).unwrap();
    connection.execute_batch(statements).map_err(|error| error.to_string())
}
