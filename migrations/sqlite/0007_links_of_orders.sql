-- The keys and aliases of an order, for pruning: without these indexes, each step of it would read all keys. Both are in the order
-- of the orders' ids, so that an insertion appends to them.
CREATE INDEX keys_of_order ON idempotency_keys (order_id);
CREATE INDEX aliases_of_order ON order_aliases (order_id);
