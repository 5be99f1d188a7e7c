-- orders_due: reservations by the time at which they end, for the sweep.
-- rejected_available: NULL as well for an order that was rejected because its idempotency key belongs to another one.
ALTER TABLE orders
    ADD KEY orders_due (status, expires_at),
    DROP CONSTRAINT rejected_ones_say_why,
    ADD CONSTRAINT only_rejected_ones_say_why CHECK (status = 'rejected' OR rejected_available IS NULL);
