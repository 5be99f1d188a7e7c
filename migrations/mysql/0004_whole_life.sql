-- idempotency_key: what the client calls its order; unique, so that asking again cannot order twice.
-- orders_due: reservations by the time at which they end, for the sweep.
-- rejected_available: NULL as well for an order that was rejected because its idempotency key belongs to another one.
ALTER TABLE orders
    ADD COLUMN idempotency_key VARCHAR(255) CHARACTER SET ascii COLLATE ascii_bin NULL,
    ADD UNIQUE KEY orders_of_key (idempotency_key),
    ADD KEY orders_due (status, expires_at),
    DROP CONSTRAINT rejected_ones_say_why,
    ADD CONSTRAINT only_rejected_ones_say_why CHECK (status = 'rejected' OR rejected_available IS NULL);
