-- An older program would take an order of several products for one it cannot read, and would sell against the terms of a product.
UPDATE schema_compatibility SET min_version = 18;
