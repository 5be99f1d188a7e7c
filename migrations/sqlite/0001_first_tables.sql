CREATE TABLE products (
    id   INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT    NOT NULL
) STRICT;

-- version: counts the changes, so that news of them can be put in order.
-- Behind the row lock and the types of the program stand these checks: even a wrong program cannot oversell.
CREATE TABLE inventories (
    product_id      INTEGER PRIMARY KEY REFERENCES products (id),
    stored_stock    INTEGER NOT NULL DEFAULT 0,
    available_stock INTEGER NOT NULL DEFAULT 0 CHECK (available_stock >= 0),
    reserved_stock  INTEGER NOT NULL DEFAULT 0 CHECK (reserved_stock >= 0),
    version         INTEGER NOT NULL DEFAULT 0,
    CHECK (stored_stock = available_stock + reserved_stock)
) STRICT;

-- id: a UUIDv7, so rows arrive in key order; it also says when the order was created.
-- expires_at: Unix milliseconds; an order that was never reserved has none.
-- rejected_available: what was available when the order was rejected; only a rejected order has it.
CREATE TABLE orders (
    id                 BLOB    PRIMARY KEY CHECK (length(id) = 16),
    product_id         INTEGER NOT NULL REFERENCES products (id),
    total              INTEGER NOT NULL CHECK (total >= 1),
    status             TEXT    NOT NULL CHECK (status IN ('reserved', 'paid', 'cancelled', 'expired', 'rejected')),
    expires_at         INTEGER CHECK ((status = 'rejected') = (expires_at IS NULL)),
    rejected_available INTEGER CHECK ((status = 'rejected') = (rejected_available IS NOT NULL))
) STRICT, WITHOUT ROWID;

CREATE INDEX orders_of_product ON orders (product_id, id);
