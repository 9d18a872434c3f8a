-- Shares that change their number of partitions (docs/adr/0018): what is closed, by generation of the shares.
-- The twin for PostgreSQL is ../postgres/V3__generations.sql; change both.

-- How many partitions each generation of the shares has.
CREATE TABLE generations (
    generation INTEGER NOT NULL PRIMARY KEY CHECK (generation > 0),
    partitions INTEGER NOT NULL CHECK (partitions > 0)
) STRICT;
INSERT INTO generations (generation, partitions) SELECT 1, number FROM facts WHERE name = 'partitions';
DELETE FROM facts WHERE name = 'partitions';

-- The newest slice whose end each partition of the tallies has shown for each partition of each generation of the
-- shares; ended = 1 where none follows.
ALTER TABLE closed RENAME TO closed_before;
CREATE TABLE closed (
    tally_partition INTEGER NOT NULL,
    generation      INTEGER NOT NULL,
    "partition"     INTEGER NOT NULL,
    slice           INTEGER NOT NULL,
    ended           INTEGER NOT NULL CHECK (ended IN (0, 1)),
    PRIMARY KEY (tally_partition, generation, "partition")
) STRICT;
INSERT INTO closed (tally_partition, generation, "partition", slice, ended)
    SELECT tally_partition, 1, "partition", slice, 0 FROM closed_before;
DROP TABLE closed_before;
