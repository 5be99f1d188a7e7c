-- The seller's ledger: every change of a product's stored pieces. The sum of stock_change is the stored_stock of its inventory.
-- moved_at: Unix milliseconds. order_count: how many orders a sale or return is of. stored_stock: after it.
-- Written under the lock of the inventory, so that seq is in the order of the changes of one product. No foreign key: see orders.
-- The stock that is there begins each ledger. This reads the inventories once; sales wait as long.
CREATE TABLE movements (
    seq          BIGINT      NOT NULL AUTO_INCREMENT,
    product_id   BIGINT      NOT NULL,
    moved_at     BIGINT      NOT NULL,
    kind         VARCHAR(10) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    stock_change BIGINT      NOT NULL,
    order_count  INT         NOT NULL,
    stored_stock BIGINT      NOT NULL,
    reason       VARCHAR(100) NULL,
    PRIMARY KEY (seq),
    KEY movements_of_product (product_id, seq),
    CONSTRAINT movement_kind_is_known CHECK (kind IN ('recount', 'adjustment', 'sale', 'return')),
    CONSTRAINT movement_changes_stock CHECK (stock_change <> 0),
    CONSTRAINT movement_order_count_not_negative CHECK (order_count >= 0),
    CONSTRAINT movement_stored_stock_not_negative CHECK (stored_stock >= 0)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin
SELECT product_id, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(3)) DIV 1000 AS moved_at, 'recount' AS kind,
    stored_stock AS stock_change, 0 AS order_count, stored_stock, 'opening balance' AS reason
FROM inventories WHERE stored_stock <> 0 ORDER BY product_id;
