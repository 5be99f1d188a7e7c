-- What buyers hold of products with a limit for each buyer: the pieces that they have reserved or paid. Rows of a product change only
-- under the lock of its inventory. A product without a limit has no rows.
CREATE TABLE holdings (
    product_id BIGINT       NOT NULL,
    buyer      VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    pieces     BIGINT       NOT NULL,
    PRIMARY KEY (product_id, buyer),
    CONSTRAINT pieces_are_not_negative CHECK (pieces >= 0)
) ENGINE = InnoDB;
