//! Statements on what buyers hold, and on which orders are theirs.

/// Those of these holders that hold anything: `[[product_id, "<buyer>"], …]`. Without a lock: a holding changes only under the lock of
/// its inventory.
pub(super) const HOLDINGS: &str = "SELECT holdings.product_id, holdings.buyer, pieces
     FROM JSON_TABLE(?, '$[*]' COLUMNS (
         product_id BIGINT PATH '$[0]', buyer VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin PATH '$[1]'
     )) AS batch
     STRAIGHT_JOIN holdings FORCE INDEX (PRIMARY) USING (product_id, buyer)";

pub(super) const MORE_HELD: &str = "INSERT INTO holdings (product_id, buyer, pieces)
     SELECT batch.product_id, batch.buyer, more
     FROM JSON_TABLE(?, '$[*]' COLUMNS (
         product_id BIGINT PATH '$[0]', buyer VARCHAR(128) PATH '$[1]', more BIGINT PATH '$[2]'
     )) AS batch
     ON DUPLICATE KEY UPDATE pieces = pieces + more";

/// A row that somebody deleted by hand keeps no order from being cancelled.
pub(super) const LESS_HELD: &str = "UPDATE JSON_TABLE(?, '$[*]' COLUMNS (
         product_id BIGINT PATH '$[0]', buyer VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin PATH '$[1]',
         less BIGINT PATH '$[2]'
     )) AS batch
     STRAIGHT_JOIN holdings FORCE INDEX (PRIMARY)
         ON holdings.product_id = batch.product_id AND holdings.buyer = batch.buyer
     SET pieces = GREATEST(pieces - less, 0)";

/// After [`LESS_HELD`], with the same list.
pub(super) const DELETE_EMPTY_HOLDINGS: &str = "DELETE holdings
     FROM JSON_TABLE(?, '$[*]' COLUMNS (
         product_id BIGINT PATH '$[0]', buyer VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin PATH '$[1]'
     )) AS batch
     STRAIGHT_JOIN holdings FORCE INDEX (PRIMARY)
         ON holdings.product_id = batch.product_id AND holdings.buyer = batch.buyer
     WHERE pieces = 0";

pub(super) const FORGET_HOLDINGS: &str = "DELETE holdings
     FROM JSON_TABLE(?, '$[*]' COLUMNS (id BIGINT PATH '$')) AS batch
     STRAIGHT_JOIN holdings FORCE INDEX (PRIMARY) ON product_id = batch.id";

/// Orders change only under the lock of their inventories, but a final one may be deleted: none of them is, until the commit.
pub(super) const COUNT_HOLDINGS: &str = "INSERT INTO holdings (product_id, buyer, pieces)
     WITH batch AS (SELECT id FROM JSON_TABLE(?, '$[*]' COLUMNS (id BIGINT PATH '$')) AS list)
     SELECT product_id, buyer, SUM(total)
     FROM (
         (SELECT orders.product_id, buyer, total
          FROM batch
          STRAIGHT_JOIN orders FORCE INDEX (orders_of_product) ON orders.product_id = batch.id
          WHERE buyer IS NOT NULL AND status IN ('reserved', 'paid') FOR SHARE OF orders)
         UNION ALL
         (SELECT basket_lines.product_id, buyer, basket_lines.total
          FROM batch
          STRAIGHT_JOIN basket_lines FORCE INDEX (PRIMARY) ON basket_lines.product_id = batch.id
          STRAIGHT_JOIN orders FORCE INDEX (PRIMARY) ON orders.id = order_id
          WHERE buyer IS NOT NULL AND status IN ('reserved', 'paid') FOR SHARE OF orders)
     ) AS held
     GROUP BY product_id, buyer";

/// A row that is left of an order which somebody deleted by hand stops no other one.
pub(super) const INSERT_BUYERS: &str = "INSERT INTO orders_of_buyers (buyer, order_id)
     SELECT buyer, UNHEX(id)
     FROM JSON_TABLE(?, '$[*]' COLUMNS (buyer VARCHAR(128) PATH '$[0]', id CHAR(32) PATH '$[1]')) AS batch
     ON DUPLICATE KEY UPDATE order_id = order_id";

/// Before the orders are.
pub(super) const DELETE_BUYERS: &str = "DELETE orders_of_buyers
     FROM JSON_TABLE(?, '$[*]' COLUMNS (id CHAR(32) PATH '$')) AS batch
     STRAIGHT_JOIN orders FORCE INDEX (PRIMARY) ON orders.id = UNHEX(batch.id)
     STRAIGHT_JOIN orders_of_buyers FORCE INDEX (PRIMARY)
         ON orders_of_buyers.buyer = orders.buyer AND order_id = orders.id";

/// The products with a limit for each buyer of which these orders hold pieces, ascending.
pub(super) const LIMITED_PRODUCTS: &str = "WITH found AS (
         SELECT orders.id, product_id
         FROM JSON_TABLE(?, '$[*]' COLUMNS (id CHAR(32) PATH '$')) AS batch
         STRAIGHT_JOIN orders FORCE INDEX (PRIMARY) ON orders.id = UNHEX(batch.id)
         WHERE buyer IS NOT NULL AND status IN ('reserved', 'paid')
     )
     SELECT DISTINCT inventories.product_id
     FROM (
         SELECT product_id FROM found
         UNION ALL
         SELECT basket_lines.product_id
         FROM found STRAIGHT_JOIN basket_lines FORCE INDEX (lines_of_order) ON order_id = found.id
     ) AS products
     STRAIGHT_JOIN inventories FORCE INDEX (PRIMARY) ON inventories.product_id = products.product_id
     WHERE max_per_buyer IS NOT NULL
     ORDER BY inventories.product_id";
