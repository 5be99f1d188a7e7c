-- What clients call their adjustments of stock; unique, so that asking again cannot move pieces twice. Not the keys of orders.
CREATE TABLE adjustment_keys (
    idempotency_key VARCHAR(255) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    seq             BIGINT NOT NULL,
    PRIMARY KEY (idempotency_key),
    CONSTRAINT adjustment_of_key FOREIGN KEY (seq) REFERENCES movements (seq)
) ENGINE = InnoDB;
