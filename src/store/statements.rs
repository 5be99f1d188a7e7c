//! Statements whose text is the same in both databases, and what their rows say.

use uuid::Uuid;

use super::{
    error::StoreError,
    page::Page,
    rows::{ProductRow, TextColumn, id_column, product, product_id},
};
use crate::domain::{
    ids::{OrderId, ProductId},
    inventory::Inventory,
    product::Product,
};

/// Parameter: id. Rows for [`product_found`].
pub(super) const PRODUCT: &str = "SELECT name, sku FROM products WHERE id = ?";

/// Parameters: the id behind which it begins, how many.
pub(super) const PRODUCTS: &str = "SELECT id, name, sku FROM products WHERE id > ? ORDER BY id LIMIT ?";

pub(super) const PRODUCT_IDS: &str = "SELECT id FROM products ORDER BY id";

/// Parameter: id. Rows for [`inventory_found`].
pub(super) const INVENTORY: &str = "SELECT name, sku, stored_stock, available_stock, reserved_stock
    FROM products JOIN inventories ON product_id = id WHERE id = ?";

/// The reservations that are due by the database's clock, an expression. Parameters: the time behind which it begins, twice, the id
/// of that time behind which it begins, how many.
macro_rules! due {
    ($($now:tt)+) => {
        concat!(
            "SELECT * FROM orders
             WHERE status = 'reserved' AND expires_at <= ",
            $($now)+,
            " AND expires_at >= ? AND (expires_at > ? OR id > ?)
             ORDER BY expires_at, id LIMIT ?"
        )
    };
}
pub(super) use due;

/// Whether an order never changes again.
macro_rules! is_final {
    () => {
        "status IN ('paid', 'cancelled', 'expired', 'returned', 'rejected')"
    };
}
pub(super) use is_final;

/// Parameters: id, when its reservation ended. NULL is said, so that the default of the column, which serves earlier releases, does not
/// count.
pub(super) const GIVE_UP: &str =
    "INSERT INTO orders (id, status, expires_at, rejection_reason) VALUES (?, 'cancelled', ?, NULL)";

/// Parameters: product, stored, available.
pub(super) const INSERT_INVENTORY: &str =
    "INSERT INTO inventories (product_id, stored_stock, available_stock) VALUES (?, ?, ?)";

/// The movement of the pieces with which a product begins, at the time of the expression. Parameters: product, stored, stored again.
macro_rules! insert_opening {
    ($($now:tt)+) => {
        concat!(
            "INSERT INTO movements (product_id, moved_at, kind, stock_change, order_count, stored_stock, reason)
             VALUES (?, ",
            $($now)+,
            ", 'recount', ?, 0, ?, 'opening balance')"
        )
    };
}
pub(super) use insert_opening;

/// Parameters: the id behind which it begins, how many.
pub(super) const INVENTORIES: &str = "SELECT id, name, sku, stored_stock, available_stock, reserved_stock
    FROM products JOIN inventories ON product_id = id WHERE id > ? ORDER BY id LIMIT ?";

pub(super) const INSTALLATION_ID: &str = "SELECT id FROM installation";

pub(super) fn product_found(
    id: ProductId,
    rows: Vec<(TextColumn, Option<TextColumn>)>,
) -> Result<Option<Product>, StoreError> {
    rows.into_iter().next().map(|(name, sku)| product(id_column(id), name, sku)).transpose()
}

pub(super) fn inventory_found(
    id: ProductId,
    rows: Vec<(TextColumn, Option<TextColumn>, i64, i64, i64)>,
) -> Result<Option<(Product, Inventory)>, StoreError> {
    let Some((name, sku, stored, available, reserved)) = rows.into_iter().next() else { return Ok(None) };
    let inventory = Inventory::from_columns(stored, available, reserved)?;
    Ok(Some((product(id_column(id), name, sku)?, inventory)))
}

/// Of rows of `id, name, sku`.
pub(super) fn products(rows: Vec<ProductRow>) -> Result<Vec<Product>, StoreError> {
    rows.into_iter().map(|(id, name, sku)| product(id, name, sku)).collect()
}

pub(super) fn product_ids(rows: Vec<(i64,)>) -> Result<Vec<ProductId>, StoreError> {
    rows.into_iter().map(|(id,)| product_id(id)).collect()
}

/// Of rows of `id, is_final`, which are `limit` if there may be more.
pub(super) fn page_of_final_orders(rows: Vec<(Uuid, bool)>, limit: u32) -> Page<OrderId, OrderId> {
    let last = rows.last().map(|(id, _)| (*id).into());
    let next = last.filter(|_| rows.len() >= limit as usize);
    Page { rows: rows.into_iter().filter(|(_, is_final)| *is_final).map(|(id, _)| id.into()).collect(), next }
}

#[cfg(test)]
mod tests {
    use crate::domain::order::OrderStatus;

    #[test]
    fn the_statements_and_the_domain_agree_on_what_is_final() {
        for status in OrderStatus::ALL {
            assert_eq!(is_final!().contains(&format!("'{}'", status.as_str())), status.is_final());
        }
    }
}
