-- version: counts the changes, so that news of them can be put in order.
-- Behind the row lock and the types of the program stand these checks: even a wrong program cannot oversell.
CREATE TABLE inventories (
    product_id      BIGINT NOT NULL,
    stored_stock    BIGINT NOT NULL DEFAULT 0,
    available_stock BIGINT NOT NULL DEFAULT 0,
    reserved_stock  BIGINT NOT NULL DEFAULT 0,
    version         BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (product_id),
    CONSTRAINT inventories_product FOREIGN KEY (product_id) REFERENCES products (id),
    CONSTRAINT available_stock_never_negative CHECK (available_stock >= 0),
    CONSTRAINT reserved_stock_never_negative CHECK (reserved_stock >= 0),
    CONSTRAINT stock_adds_up CHECK (stored_stock = available_stock + reserved_stock)
) ENGINE = InnoDB;
