-- Shares that change their number of partitions (docs/adr/0018): what is closed, by generation of the shares.
-- The twin for SQLite is ../sqlite/V3__generations.sql; change both.

-- How many partitions each generation of the shares has.
CREATE TABLE generations (
    generation BIGINT NOT NULL PRIMARY KEY CHECK (generation > 0),
    partitions BIGINT NOT NULL CHECK (partitions > 0)
);
INSERT INTO generations (generation, partitions) SELECT 1, number FROM facts WHERE name = 'partitions';
DELETE FROM facts WHERE name = 'partitions';

-- The newest slice whose end each partition of the tallies has shown for each partition of each generation of the
-- shares; ended = 1 where none follows.
ALTER TABLE closed DROP CONSTRAINT closed_pkey;
ALTER TABLE closed ADD COLUMN generation BIGINT NOT NULL DEFAULT 1;
ALTER TABLE closed ADD COLUMN ended BIGINT NOT NULL DEFAULT 0 CHECK (ended IN (0, 1));
ALTER TABLE closed ADD PRIMARY KEY (tally_partition, generation, "partition");
