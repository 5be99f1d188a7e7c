-- archived_at: since when the product is archived, in Unix milliseconds; NULL while it is sold. It stands beside the stock, because
-- orders are decided under the lock of this row. The column is added at once, whatever the size of the table.
-- A worker of an earlier release does not look at it, and would go on selling an archived product; min_version of the same release
-- keeps earlier programs from starting on these tables.
ALTER TABLE inventories ADD COLUMN archived_at BIGINT NULL;
