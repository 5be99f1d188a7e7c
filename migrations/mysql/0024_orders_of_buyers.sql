-- The stored orders of each buyer. An index of orders would be paid by orders without a buyer as well.
CREATE TABLE orders_of_buyers (
    buyer    VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    order_id BINARY(16)   NOT NULL,
    PRIMARY KEY (buyer, order_id)
) ENGINE = InnoDB;
