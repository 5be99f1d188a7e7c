-- The lines of orders of several products behind their first one, by product: what a list and the audit of a product need. What
-- the order says is in its own row.
CREATE TABLE basket_lines (
    product_id BIGINT     NOT NULL,
    order_id   BINARY(16) NOT NULL,
    total      INT        NOT NULL,
    PRIMARY KEY (product_id, order_id),
    KEY lines_of_order (order_id),
    CONSTRAINT total_of_line_is_positive CHECK (total >= 1)
) ENGINE = InnoDB;
