//! Statements whose text is the same in both databases, and what their rows say.

use super::{
    error::StoreError,
    rows::{TextColumn, id_column, product, product_id},
};
use crate::domain::{ids::ProductId, inventory::Inventory, product::Product};

/// Parameter: id. Rows for [`product_found`].
pub(super) const PRODUCT: &str = "SELECT name FROM products WHERE id = ?";

/// Parameters: the id behind which it begins, how many.
pub(super) const PRODUCTS: &str = "SELECT id, name FROM products WHERE id > ? ORDER BY id LIMIT ?";

pub(super) const PRODUCT_IDS: &str = "SELECT id FROM products ORDER BY id";

/// Parameter: id. Rows for [`inventory_found`].
pub(super) const INVENTORY: &str = "SELECT name, stored_stock, available_stock, reserved_stock
    FROM products JOIN inventories ON product_id = id WHERE id = ?";

pub(super) const INSTALLATION_ID: &str = "SELECT id FROM installation";

pub(super) fn product_found(id: ProductId, rows: Vec<(TextColumn,)>) -> Result<Option<Product>, StoreError> {
    rows.into_iter().next().map(|(name,)| product(id_column(id), name)).transpose()
}

pub(super) fn inventory_found(
    id: ProductId,
    rows: Vec<(TextColumn, i64, i64, i64)>,
) -> Result<Option<(Product, Inventory)>, StoreError> {
    let Some((name, stored, available, reserved)) = rows.into_iter().next() else { return Ok(None) };
    let inventory = Inventory::from_columns(stored, available, reserved)?;
    Ok(Some((product(id_column(id), name)?, inventory)))
}

pub(super) fn product_ids(rows: Vec<(i64,)>) -> Result<Vec<ProductId>, StoreError> {
    rows.into_iter().map(|(id,)| product_id(id)).collect()
}
