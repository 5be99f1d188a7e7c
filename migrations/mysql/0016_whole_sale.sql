-- lines: of an order of several products, all lines as JSON, [[product, total], …]; product_id and total are those of the first line.
-- NULL for the others. So an order is read from its row, and an order of one product costs what it cost before.
-- product_id and total are NULL of an order that was cancelled while it was in its lane, until its turn.
-- buyer: the shop's own name for the buyer.
-- payment_reference, paid_at (Unix milliseconds): of its payment; orders that were paid before have none.
-- rejection_details: what belongs to the reason, as JSON; rejected_available stays beside it for earlier releases.
-- The reasons and the status `returned` are new, and a check cannot be changed in place: this copies the table. Orders wait as long.
ALTER TABLE orders
    MODIFY product_id BIGINT NULL,
    MODIFY total INT NULL,
    ADD COLUMN `lines` VARCHAR(2000) CHARACTER SET ascii COLLATE ascii_bin NULL,
    ADD COLUMN buyer VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NULL,
    ADD COLUMN payment_reference VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NULL,
    ADD COLUMN paid_at BIGINT NULL,
    ADD COLUMN rejection_details VARCHAR(255) CHARACTER SET ascii COLLATE ascii_bin NULL,
    ADD CONSTRAINT lines_are_known CHECK ((product_id IS NULL) = (total IS NULL) AND (product_id IS NOT NULL OR status = 'cancelled')),
    DROP CONSTRAINT status_is_known,
    ADD CONSTRAINT status_is_known CHECK (
        status IN ('reserved', 'paid', 'cancelled', 'expired', 'returned', 'rejected')
    ),
    DROP CONSTRAINT rejection_reason_is_known,
    ADD CONSTRAINT rejection_reason_is_known CHECK (rejection_reason IN (
        'insufficient_stock', 'product_not_found', 'idempotency_key_reused', 'sale_paused', 'sale_not_open', 'sale_closed',
        'limit_per_order', 'limit_per_buyer', 'buyer_required'
    ));
