-- The keys and aliases of an order, for pruning: without these indexes, each step of it would read all keys. Both are in the order
-- of the orders' ids, so that an insertion appends to them. Sales go on while they are built.
ALTER TABLE idempotency_keys ADD KEY keys_of_order (order_id);
ALTER TABLE order_aliases ADD KEY aliases_of_order (order_id);
