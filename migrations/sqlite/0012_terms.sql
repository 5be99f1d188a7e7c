-- The terms of sale of a product, beside its stock, because a batch reads both in one transaction.
-- opens_at, closes_at: Unix milliseconds. hold_seconds: how long a reservation holds, instead of RESERVATION_TTL.
-- NULL: no such rule.
ALTER TABLE inventories ADD COLUMN selling       INTEGER NOT NULL DEFAULT 1 CHECK (selling IN (0, 1));
ALTER TABLE inventories ADD COLUMN opens_at      INTEGER;
ALTER TABLE inventories ADD COLUMN closes_at     INTEGER CHECK (closes_at > opens_at);
ALTER TABLE inventories ADD COLUMN max_per_order INTEGER CHECK (max_per_order >= 1);
ALTER TABLE inventories ADD COLUMN max_per_buyer INTEGER CHECK (max_per_buyer >= 1);
ALTER TABLE inventories ADD COLUMN hold_seconds  INTEGER CHECK (hold_seconds >= 1);

-- An older antre would sell what is paused, and before its opening: it must not use this file.
UPDATE schema_compatibility SET min_version = 12;
