-- archived_at: since when the product is archived, in Unix milliseconds; NULL while it is sold. It stands beside the stock, because
-- orders are decided under the lock of this row. The column is added at once, whatever the size of the table.
-- An older worker does not look at it and would reserve pieces of an archived product: no older program may start on these tables.
UPDATE schema_compatibility SET min_version = 19;
ALTER TABLE inventories ADD COLUMN archived_at BIGINT NULL;
