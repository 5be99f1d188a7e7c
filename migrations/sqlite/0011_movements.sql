-- The seller's ledger: every change of a product's stored pieces. The sum of stock_change is the stored_stock of its inventory.
-- moved_at: Unix milliseconds. order_count: how many orders a sale or return is of. stored_stock: after it.
CREATE TABLE movements (
    seq          INTEGER PRIMARY KEY AUTOINCREMENT,
    product_id   INTEGER NOT NULL REFERENCES products (id),
    moved_at     INTEGER NOT NULL,
    kind         TEXT    NOT NULL CHECK (kind IN ('recount', 'adjustment', 'sale', 'return')),
    stock_change INTEGER NOT NULL CHECK (stock_change <> 0),
    order_count  INTEGER NOT NULL CHECK (order_count >= 0),
    stored_stock INTEGER NOT NULL CHECK (stored_stock >= 0),
    reason       TEXT    CHECK (length(reason) BETWEEN 1 AND 100)
) STRICT;

CREATE INDEX movements_of_product ON movements (product_id, seq);

-- What clients call their adjustments of stock; unique, so that asking again cannot move pieces twice. Not the keys of orders.
CREATE TABLE adjustment_keys (
    idempotency_key TEXT PRIMARY KEY,
    seq             INTEGER NOT NULL REFERENCES movements (seq)
) STRICT, WITHOUT ROWID;

-- The stock that is there begins each ledger.
INSERT INTO movements (product_id, moved_at, kind, stock_change, order_count, stored_stock, reason)
SELECT product_id, CAST(round(unixepoch('subsec') * 1000) AS INTEGER), 'recount', stored_stock, 0, stored_stock, 'opening balance'
FROM inventories WHERE stored_stock <> 0 ORDER BY product_id;
