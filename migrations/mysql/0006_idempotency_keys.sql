-- What clients call their orders; unique, so that asking again cannot order twice. A table of its own: most orders of a flood
-- have no key, and a unique index over their NULLs would cost each of them a tenth of its insertion.
CREATE TABLE idempotency_keys (
    idempotency_key VARCHAR(255) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    order_id        BINARY(16) NOT NULL,
    PRIMARY KEY (idempotency_key)
) ENGINE = InnoDB;
