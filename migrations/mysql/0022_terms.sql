-- The terms of sale of a product, beside its stock, because a batch reads both under one lock.
-- opens_at, closes_at: Unix milliseconds. hold_seconds: how long a reservation holds, instead of RESERVATION_TTL.
-- NULL: no such rule. Without checks: they would copy the table, and this is instant. The program reads no invalid terms.
ALTER TABLE inventories
    ADD COLUMN selling       BOOLEAN NOT NULL DEFAULT TRUE,
    ADD COLUMN opens_at      BIGINT  NULL,
    ADD COLUMN closes_at     BIGINT  NULL,
    ADD COLUMN max_per_order INT     NULL,
    ADD COLUMN max_per_buyer INT     NULL,
    ADD COLUMN hold_seconds  INT     NULL,
    ALGORITHM = INSTANT;
