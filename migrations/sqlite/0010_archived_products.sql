-- archived_at: since when the product is archived, in Unix milliseconds; NULL while it is sold. It stands beside the stock, because
-- orders are decided under the lock of this row.
ALTER TABLE inventories ADD COLUMN archived_at INTEGER;
