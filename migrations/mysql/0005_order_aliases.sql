-- Ids that were given out for an order that is on record under another one: its client asked again with the same
-- idempotency key, and did not wait for the answer.
CREATE TABLE order_aliases (
    id       BINARY(16) NOT NULL,
    order_id BINARY(16) NOT NULL,
    PRIMARY KEY (id)
) ENGINE = InnoDB;
