-- Who writes the ledger: the highest epoch of each task that has (docs/adr/0014). Its row is taken by each transaction.
-- The twin for SQLite is ../sqlite/V2__owners.sql; change both.
CREATE TABLE owners (
    task  TEXT NOT NULL PRIMARY KEY,
    epoch BIGINT NOT NULL CHECK (epoch >= 0)
);
