-- rejection_reason: why an order was rejected, in the word that clients read. Before, a rejected order without rejected_available
-- stood for a reused idempotency key, which leaves no room for a third reason.
-- SQLite adds no column whose check existing rows fail, and no default that reads other columns: the table is made again.
CREATE TABLE new_orders (
    id                 BLOB    PRIMARY KEY CHECK (length(id) = 16),
    product_id         INTEGER NOT NULL REFERENCES products (id),
    total              INTEGER NOT NULL CHECK (total >= 1),
    status             TEXT    NOT NULL CHECK (status IN ('reserved', 'paid', 'cancelled', 'expired', 'rejected')),
    expires_at         INTEGER CHECK ((status = 'rejected') = (expires_at IS NULL)),
    rejected_available INTEGER CHECK (
        (COALESCE(rejection_reason, '') = 'insufficient_stock') = (rejected_available IS NOT NULL)
    ),
    rejection_reason   TEXT    CHECK (rejection_reason IN ('insufficient_stock', 'idempotency_key_reused'))
                               CHECK ((status = 'rejected') = (rejection_reason IS NOT NULL))
) STRICT, WITHOUT ROWID;

INSERT INTO new_orders
SELECT id, product_id, total, status, expires_at, rejected_available,
    CASE WHEN status = 'rejected'
        THEN iif(rejected_available IS NULL, 'idempotency_key_reused', 'insufficient_stock')
    END
FROM orders;

DROP TABLE orders;

ALTER TABLE new_orders RENAME TO orders;

CREATE INDEX orders_of_product ON orders (product_id, id);

-- Reservations by the time at which they end, for the sweep.
CREATE INDEX orders_due ON orders (expires_at) WHERE status = 'reserved';

-- An older antre inserts rejections without a reason, which the checks refuse: it must not use this file. One process has the
-- file, so no older one runs beside this one.
UPDATE schema_compatibility SET min_version = 6;
