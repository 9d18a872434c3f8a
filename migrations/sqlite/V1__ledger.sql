-- The ledger (DESIGN 9). Satoshis are INTEGER, scores are 16-byte big-endian BLOBs (2^64 = one expected block),
-- hashes are in internal byte order, times are nanoseconds since the Unix epoch.
-- The twin for PostgreSQL is ../postgres/V1__ledger.sql; change both.

-- Single values: slice_ms, partitions, tally_partitions, pruned_below, prune_checked; and the log's UUID.
CREATE TABLE facts (
    name   TEXT NOT NULL PRIMARY KEY,
    number INTEGER,
    bytes  BLOB
) STRICT;

-- How far each topic partition is in the ledger: written in the transaction that writes what was read.
CREATE TABLE positions (
    topic       TEXT NOT NULL,
    "partition" INTEGER NOT NULL,
    next        INTEGER NOT NULL CHECK (next >= 0),
    PRIMARY KEY (topic, "partition")
) STRICT;

-- Accounts of miners. Number 0 is the pool itself.
CREATE TABLE miners (
    id   INTEGER NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
) STRICT;
INSERT INTO miners (id, name) VALUES (0, '');

-- Rules of rewards, for blocks found in from_slice or later. Windows under a rule never reach below floor_slice.
CREATE TABLE rules (
    version     INTEGER NOT NULL PRIMARY KEY,
    scheme      TEXT NOT NULL,
    "window"    INTEGER NOT NULL CHECK ("window" >= 0),
    fee_bps     INTEGER NOT NULL CHECK (fee_bps BETWEEN 0 AND 10000),
    from_slice  INTEGER NOT NULL CHECK (from_slice >= 0),
    floor_slice INTEGER NOT NULL CHECK (floor_slice >= 0)
) STRICT;

-- Accepted work by slice of event time and account, over all partitions of the shares.
CREATE TABLE slices (
    slice INTEGER NOT NULL,
    miner INTEGER NOT NULL REFERENCES miners (id),
    score BLOB NOT NULL CHECK (length(score) = 16),
    PRIMARY KEY (slice, miner)
) STRICT, WITHOUT ROWID;

-- Sum of each slice.
CREATE TABLE slice_totals (
    slice INTEGER NOT NULL PRIMARY KEY,
    score BLOB NOT NULL CHECK (length(score) = 16)
) STRICT;

-- The newest slice whose end each partition of the tallies has shown for each partition of the shares.
CREATE TABLE closed (
    tally_partition INTEGER NOT NULL,
    "partition"     INTEGER NOT NULL,
    slice           INTEGER NOT NULL,
    PRIMARY KEY (tally_partition, "partition")
) STRICT;

CREATE TABLE blocks (
    hash          BLOB NOT NULL PRIMARY KEY CHECK (length(hash) = 32),
    height        INTEGER NOT NULL CHECK (height >= 0),
    value         INTEGER NOT NULL CHECK (value BETWEEN 0 AND 2100000000000000),
    nbits         INTEGER NOT NULL,
    finder        TEXT NOT NULL,
    worker        TEXT NOT NULL,
    found_ns      INTEGER NOT NULL,
    chain         TEXT NOT NULL CHECK (chain IN ('accepted', 'refused', 'inactive', 'confirmed', 'orphaned')),
    chain_ns      INTEGER NOT NULL,
    confirmations INTEGER NOT NULL,
    answers       TEXT NOT NULL,
    credit        TEXT NOT NULL CHECK (credit IN ('waiting', 'pending', 'available', 'reversed')),
    -- How the reward was shared out; NULL while credit = 'waiting'.
    rules         INTEGER REFERENCES rules (version),
    fee           INTEGER CHECK (fee BETWEEN 0 AND value),
    window_from   INTEGER,
    window_to     INTEGER,
    window_score  BLOB CHECK (length(window_score) = 16),
    -- The slice window_from counts edge_taken / edge_total; NULL where it counts whole.
    edge_taken    BLOB CHECK (length(edge_taken) = 16),
    edge_total    BLOB CHECK (length(edge_total) = 16),
    CHECK ((credit = 'waiting') = (rules IS NULL)),
    CHECK (credit <> 'available' OR chain = 'confirmed'),
    CHECK (credit <> 'reversed' OR chain = 'orphaned')
) STRICT;
CREATE INDEX blocks_by_time ON blocks (found_ns, hash);
CREATE INDEX blocks_open ON blocks (found_ns) WHERE credit IN ('waiting', 'pending');

-- What each account got of a block.
CREATE TABLE credits (
    block  BLOB NOT NULL REFERENCES blocks (hash),
    miner  INTEGER NOT NULL REFERENCES miners (id),
    score  BLOB NOT NULL CHECK (length(score) = 16),
    amount INTEGER NOT NULL CHECK (amount BETWEEN 0 AND 2100000000000000),
    PRIMARY KEY (block, miner)
) STRICT, WITHOUT ROWID;
CREATE INDEX credits_by_miner ON credits (miner, block);

-- Double entry. Balances are kept in the transaction that moves the money and cannot be negative.
CREATE TABLE accounts (
    kind    TEXT NOT NULL CHECK (kind IN ('coinbase_immature', 'coinbase_mature',
                                          'miner_pending', 'miner_available', 'fee_pending', 'fee_available')),
    owner   INTEGER NOT NULL REFERENCES miners (id),
    debits  INTEGER NOT NULL CHECK (debits >= 0),
    credits INTEGER NOT NULL CHECK (credits >= 0),
    PRIMARY KEY (kind, owner),
    CHECK (CASE WHEN kind IN ('coinbase_immature', 'coinbase_mature') THEN debits >= credits ELSE credits >= debits END),
    CHECK ((kind IN ('miner_pending', 'miner_available')) = (owner <> 0))
) STRICT;

CREATE TABLE entries (
    id      INTEGER NOT NULL PRIMARY KEY,
    key     TEXT NOT NULL UNIQUE,
    kind    TEXT NOT NULL CHECK (kind IN ('credit', 'mature', 'reverse')),
    block   BLOB NOT NULL REFERENCES blocks (hash),
    time_ns INTEGER NOT NULL,
    UNIQUE (block, kind)
) STRICT;

CREATE TABLE transfers (
    entry        INTEGER NOT NULL REFERENCES entries (id),
    leg          INTEGER NOT NULL,
    debit_kind   TEXT NOT NULL,
    debit_owner  INTEGER NOT NULL,
    credit_kind  TEXT NOT NULL,
    credit_owner INTEGER NOT NULL,
    amount       INTEGER NOT NULL CHECK (amount BETWEEN 1 AND 2100000000000000),
    PRIMARY KEY (entry, leg),
    FOREIGN KEY (debit_kind, debit_owner) REFERENCES accounts (kind, owner),
    FOREIGN KEY (credit_kind, credit_owner) REFERENCES accounts (kind, owner),
    CHECK (debit_kind <> credit_kind OR debit_owner <> credit_owner)
) STRICT, WITHOUT ROWID;

-- What was posted stays.
CREATE TRIGGER entries_stay_as_they_are BEFORE UPDATE ON entries
BEGIN SELECT RAISE(ABORT, 'entries are never changed'); END;
CREATE TRIGGER entries_stay BEFORE DELETE ON entries
BEGIN SELECT RAISE(ABORT, 'entries are never removed'); END;
CREATE TRIGGER transfers_stay_as_they_are BEFORE UPDATE ON transfers
BEGIN SELECT RAISE(ABORT, 'transfers are never changed'); END;
CREATE TRIGGER transfers_stay BEFORE DELETE ON transfers
BEGIN SELECT RAISE(ABORT, 'transfers are never removed'); END;
