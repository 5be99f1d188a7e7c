-- sku: the seller's own name for a product, visible ASCII characters.
ALTER TABLE products ADD COLUMN sku TEXT CHECK (length(sku) BETWEEN 1 AND 64);

CREATE UNIQUE INDEX products_sku ON products (sku);
