-- lines: of an order of several products, all lines as JSON, [[product, total], …]; product_id and total are those of the first line.
-- product_id and total are NULL of an order that was cancelled while it was in its lane, until its turn.
-- buyer: the shop's own name for the buyer.
-- payment_reference, paid_at (Unix milliseconds): of its payment; orders that were paid before have none.
-- rejection_details: what belongs to the reason, as JSON.
-- SQLite changes no check of a table: it is made again.
CREATE TABLE new_orders (
    id                 BLOB    PRIMARY KEY CHECK (length(id) = 16),
    product_id         INTEGER REFERENCES products (id),
    total              INTEGER CHECK (total >= 1),
    status             TEXT    NOT NULL CHECK (
        status IN ('reserved', 'paid', 'cancelled', 'expired', 'returned', 'rejected')
    ),
    expires_at         INTEGER CHECK ((status = 'rejected') = (expires_at IS NULL)),
    rejected_available INTEGER CHECK (
        (COALESCE(rejection_reason, '') = 'insufficient_stock') = (rejected_available IS NOT NULL)
    ),
    rejection_reason   TEXT    CHECK (rejection_reason IN (
        'insufficient_stock', 'product_not_found', 'idempotency_key_reused', 'sale_paused', 'sale_not_open', 'sale_closed',
        'limit_per_order', 'limit_per_buyer', 'buyer_required'
    )) CHECK ((status = 'rejected') = (rejection_reason IS NOT NULL)),
    lines              TEXT,
    buyer              TEXT,
    payment_reference  TEXT,
    paid_at            INTEGER,
    rejection_details  TEXT,
    CHECK ((product_id IS NULL) = (total IS NULL) AND (product_id IS NOT NULL OR status = 'cancelled'))
) STRICT, WITHOUT ROWID;

INSERT INTO new_orders (id, product_id, total, status, expires_at, rejected_available, rejection_reason)
SELECT id, product_id, total, status, expires_at, rejected_available, rejection_reason FROM orders;

DROP TABLE orders;

ALTER TABLE new_orders RENAME TO orders;

CREATE INDEX orders_of_product ON orders (product_id, id);

-- Reservations by the time at which they end, for the sweep.
CREATE INDEX orders_due ON orders (expires_at) WHERE status = 'reserved';

-- The lines of orders of several products behind their first one, by product: what a list and the audit of a product need. What
-- the order says is in its own row.
CREATE TABLE basket_lines (
    product_id INTEGER NOT NULL,
    order_id   BLOB    NOT NULL CHECK (length(order_id) = 16),
    total      INTEGER NOT NULL CHECK (total >= 1),
    PRIMARY KEY (product_id, order_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX lines_of_order ON basket_lines (order_id);

-- An older antre would not read an order of several products, and would sell against the terms of a product.
UPDATE schema_compatibility SET min_version = 9;
