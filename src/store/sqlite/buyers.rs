//! Statements on what buyers hold, and on which orders are theirs.

/// Those of these holders that hold anything: `[[product_id, "<buyer>"], …]`.
pub(super) const HOLDINGS: &str = "SELECT product_id, buyer, pieces FROM json_each(?) AS batch
     CROSS JOIN holdings ON product_id = batch.value ->> 0 AND buyer = batch.value ->> 1";

pub(super) const MORE_HELD: &str = "INSERT INTO holdings (product_id, buyer, pieces)
     SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?) WHERE true
     ON CONFLICT (product_id, buyer) DO UPDATE SET pieces = pieces + excluded.pieces;";

/// A row that somebody deleted by hand keeps no order from being cancelled. Who holds nothing has no row: the index finds these
/// rows only.
pub(super) const LESS_HELD: &str = "UPDATE holdings SET pieces = max(pieces - (batch.value ->> 2), 0)
     FROM json_each(?) AS batch WHERE product_id = batch.value ->> 0 AND buyer = batch.value ->> 1;
     DELETE FROM holdings INDEXED BY empty_holdings WHERE pieces = 0;";

pub(super) const FORGET_HOLDINGS: &str =
    "DELETE FROM holdings WHERE product_id IN (SELECT value FROM json_each(?));";

pub(super) const COUNT_HOLDINGS: &str = "INSERT INTO holdings (product_id, buyer, pieces)
     WITH batch AS MATERIALIZED (SELECT value AS id FROM json_each(?))
     SELECT product_id, buyer, SUM(total)
     FROM (
         SELECT product_id, buyer, total
         FROM batch CROSS JOIN orders INDEXED BY orders_of_product ON product_id = batch.id
         WHERE buyer IS NOT NULL AND status IN ('reserved', 'paid')
         UNION ALL
         SELECT basket_lines.product_id, buyer, basket_lines.total
         FROM batch
         CROSS JOIN basket_lines ON basket_lines.product_id = batch.id
         CROSS JOIN orders ON orders.id = order_id
         WHERE buyer IS NOT NULL AND status IN ('reserved', 'paid')
     )
     GROUP BY product_id, buyer;";

/// A row that is left of an order which somebody deleted by hand stops no other one.
pub(super) const INSERT_BUYERS: &str = "INSERT INTO orders_of_buyers (buyer, order_id)
     SELECT value ->> 0, unhex(value ->> 1) FROM json_each(?) WHERE true
     ON CONFLICT (buyer, order_id) DO NOTHING;";

/// Before the orders are.
pub(super) const DELETE_BUYERS: &str = "DELETE FROM orders_of_buyers WHERE (buyer, order_id) IN (
         SELECT buyer, orders.id FROM json_each(?) AS batch CROSS JOIN orders ON orders.id = unhex(batch.value)
         WHERE buyer IS NOT NULL
     )";

/// The products with a limit for each buyer of which these orders hold pieces, ascending.
pub(super) const LIMITED_PRODUCTS: &str = "WITH found AS MATERIALIZED (
         SELECT orders.id AS order_id, product_id FROM json_each(?) AS batch CROSS JOIN orders ON orders.id = unhex(batch.value)
         WHERE buyer IS NOT NULL AND status IN ('reserved', 'paid')
     )
     SELECT inventories.product_id FROM inventories
     WHERE max_per_buyer IS NOT NULL AND product_id IN (
         SELECT product_id FROM found
         UNION ALL
         SELECT basket_lines.product_id
         FROM found CROSS JOIN basket_lines INDEXED BY lines_of_order ON basket_lines.order_id = found.order_id
     )
     ORDER BY product_id";
