-- SQLite changes no check of a table: it is made anew.
-- rejected_available: what was available when the order was rejected; NULL when it was rejected because its idempotency
-- key belongs to another order.
CREATE TABLE new_orders (
    id                 BLOB    PRIMARY KEY CHECK (length(id) = 16),
    product_id         INTEGER NOT NULL REFERENCES products (id),
    total              INTEGER NOT NULL CHECK (total >= 1),
    status             TEXT    NOT NULL CHECK (status IN ('reserved', 'paid', 'cancelled', 'expired', 'rejected')),
    expires_at         INTEGER CHECK ((status = 'rejected') = (expires_at IS NULL)),
    rejected_available INTEGER CHECK (status = 'rejected' OR rejected_available IS NULL)
) STRICT, WITHOUT ROWID;

INSERT INTO new_orders
SELECT id, product_id, total, status, expires_at, rejected_available FROM orders;

DROP TABLE orders;

ALTER TABLE new_orders RENAME TO orders;

CREATE INDEX orders_of_product ON orders (product_id, id);

-- Reservations by the time at which they end, for the sweep.
CREATE INDEX orders_due ON orders (expires_at) WHERE status = 'reserved';

-- Ids that were given out for an order that is on record under another one: its client asked again with the same
-- idempotency key, and did not wait for the answer.
CREATE TABLE order_aliases (
    id       BLOB PRIMARY KEY CHECK (length(id) = 16),
    order_id BLOB NOT NULL CHECK (length(order_id) = 16)
) STRICT, WITHOUT ROWID;

-- What clients call their orders; unique, so that asking again cannot order twice.
CREATE TABLE idempotency_keys (
    idempotency_key TEXT PRIMARY KEY,
    order_id        BLOB NOT NULL CHECK (length(order_id) = 16)
) STRICT, WITHOUT ROWID;
