-- sku: the seller's own name for a product, visible ASCII characters. Most databases have few products; sales go on meanwhile.
ALTER TABLE products
    ADD COLUMN sku VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NULL,
    ADD UNIQUE KEY products_sku (sku);
