-- id: a UUIDv7, so rows arrive in key order; it also says when the order was created.
-- expires_at: Unix milliseconds; an order that was never reserved has none.
-- rejected_available: what was available when the order was rejected; only a rejected order has it.
-- No foreign key: an order is inserted only under the lock of its inventory, which has one.
CREATE TABLE orders (
    id                 BINARY(16)  NOT NULL,
    product_id         BIGINT      NOT NULL,
    total              INT         NOT NULL,
    status             VARCHAR(10) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    expires_at         BIGINT      NULL,
    rejected_available INT         NULL,
    PRIMARY KEY (id),
    KEY orders_of_product (product_id, id),
    CONSTRAINT total_is_positive CHECK (total >= 1),
    CONSTRAINT status_is_known CHECK (status IN ('reserved', 'paid', 'cancelled', 'expired', 'rejected')),
    CONSTRAINT reserved_ones_expire CHECK ((status = 'rejected') = (expires_at IS NULL)),
    CONSTRAINT rejected_ones_say_why CHECK ((status = 'rejected') = (rejected_available IS NOT NULL))
) ENGINE = InnoDB;
