-- rejection_reason: why an order was rejected, in the word that clients read. Before, a rejected order without rejected_available
-- stood for a reused idempotency key, which leaves no room for a third reason.
-- Its default is an expression for two sorts of rows: those that are stored already, and those that workers of an earlier release
-- insert without the column while they run beside newer ones. So min_version stays as it is.
-- This copies the table. Orders wait as long.
ALTER TABLE orders
    ADD COLUMN rejection_reason VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NULL DEFAULT (
        CASE WHEN status = 'rejected'
            THEN IF(rejected_available IS NULL, 'idempotency_key_reused', 'insufficient_stock')
        END
    ),
    ADD CONSTRAINT rejected_ones_have_a_reason CHECK ((status = 'rejected') = (rejection_reason IS NOT NULL)),
    ADD CONSTRAINT rejection_reason_is_known CHECK (rejection_reason IN ('insufficient_stock', 'idempotency_key_reused')),
    ADD CONSTRAINT rejected_available_has_its_reason CHECK (
        (COALESCE(rejection_reason, '') = 'insufficient_stock') = (rejected_available IS NOT NULL)
    );
