-- archived_at: since when the product is archived, in Unix milliseconds; NULL while it is sold. It stands beside the stock, because
-- orders are decided under the lock of this row.
ALTER TABLE inventories ADD COLUMN archived_at INTEGER;

-- An older antre does not look at it and would reserve pieces of an archived product.
UPDATE schema_compatibility SET min_version = 10;
