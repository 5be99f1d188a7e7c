-- What buyers hold of products with a limit for each buyer: the pieces that they have reserved or paid. A product without a limit
-- has no rows.
CREATE TABLE holdings (
    product_id INTEGER NOT NULL,
    buyer      TEXT    NOT NULL,
    pieces     INTEGER NOT NULL CHECK (pieces >= 0),
    PRIMARY KEY (product_id, buyer)
) STRICT, WITHOUT ROWID;

-- Rows on their way out, within one transaction.
CREATE INDEX empty_holdings ON holdings (product_id, buyer) WHERE pieces = 0;

-- The stored orders of each buyer. An index of orders would be paid by orders without a buyer as well.
CREATE TABLE orders_of_buyers (
    buyer    TEXT NOT NULL,
    order_id BLOB NOT NULL CHECK (length(order_id) = 16),
    PRIMARY KEY (buyer, order_id)
) STRICT, WITHOUT ROWID;

-- An older antre would sell beyond the limit of a buyer.
UPDATE schema_compatibility SET min_version = 13;
