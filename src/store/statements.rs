//! Statements whose text is the same in both databases, and what their rows say.

use std::{collections::HashMap, time::Duration};

use sqlx::{Database, Encode, QueryBuilder, Type};
use uuid::Uuid;

use super::{
    error::StoreError,
    page::Page,
    ports::ProductLane,
    rows::{DetailsRow, InventoryRow, ProductRow, id_column, product_id, readable},
    terms,
};
use crate::domain::{
    ids::{OrderId, ProductId},
    inventory::Inventory,
    product::{Product, ProductChange, ProductState},
    sku::Sku,
    terms::Terms,
};

/// Parameter: id. Rows are [`ProductRow`]s.
pub(super) const PRODUCT: &str = "SELECT id, name, sku, archived_at
    FROM products LEFT JOIN inventories ON product_id = id WHERE id = ?";

/// Parameters: the id behind which it begins, whether archived, how many. Rows are [`ProductRow`]s.
pub(super) const PRODUCTS: &str = "SELECT id, name, sku, archived_at
    FROM products LEFT JOIN inventories ON product_id = id
    WHERE id > ? AND (archived_at IS NOT NULL) = ? ORDER BY id LIMIT ?";

pub(super) const PRODUCT_IDS: &str = "SELECT id FROM products ORDER BY id";

/// All products, with the time since each was archived by the database's clock, an expression.
macro_rules! product_lanes {
    ($($now:tt)+) => {
        concat!(
            "SELECT id, ",
            $($now)+,
            " - archived_at FROM products LEFT JOIN inventories ON product_id = id"
        )
    };
}
pub(super) use product_lanes;

/// Parameter: id. Rows are [`InventoryRow`]s.
pub(super) const INVENTORY: &str =
    "SELECT id, name, sku, archived_at, stored_stock, available_stock, reserved_stock
    FROM products JOIN inventories ON product_id = id WHERE id = ?";

/// Parameter: product. Rows for [`details_found`].
pub(super) const DETAILS: &str =
    "SELECT id, name, sku, archived_at, stored_stock, available_stock, reserved_stock,
        selling, opens_at, closes_at, max_per_order, max_per_buyer, hold_seconds
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

/// Parameters: the id behind which it begins, how many. Rows are [`InventoryRow`]s.
pub(super) const INVENTORIES: &str =
    "SELECT id, name, sku, archived_at, stored_stock, available_stock, reserved_stock
    FROM products JOIN inventories ON product_id = id
    WHERE id > ? AND archived_at IS NULL ORDER BY id LIMIT ?";

pub(super) const INSTALLATION_ID: &str = "SELECT id FROM installation";

/// Sets what the seller changes; `None`: nothing.
pub(super) fn update_product<DB>(id: ProductId, change: ProductChange) -> Option<QueryBuilder<'static, DB>>
where
    DB: Database,
    i64: Encode<'static, DB> + Type<DB>,
    String: Encode<'static, DB> + Type<DB>,
    Option<String>: Encode<'static, DB> + Type<DB>,
{
    if change.is_empty() {
        return None;
    }
    let ProductChange { name, sku } = change;
    let mut query = QueryBuilder::new("UPDATE products SET ");
    let mut columns = query.separated(", ");
    if let Some(name) = name {
        columns.push("name = ").push_bind_unseparated(name.as_str().to_owned());
    }
    if let Some(sku) = sku {
        columns.push("sku = ").push_bind_unseparated(sku.as_ref().map(Sku::as_str).map(str::to_owned));
    }
    query.push(" WHERE id = ").push_bind(id_column(id));
    Some(query)
}

pub(super) fn product_found(rows: Vec<ProductRow>) -> Result<Option<Product>, StoreError> {
    rows.into_iter().next().map(Product::try_from).transpose()
}

pub(super) fn inventory_found(rows: Vec<InventoryRow>) -> Result<Option<(Product, Inventory)>, StoreError> {
    let Some(InventoryRow { product, stock }) = rows.into_iter().next() else { return Ok(None) };
    Ok(Some((product.try_into()?, stock.try_into()?)))
}

pub(super) fn details_found(
    rows: Vec<DetailsRow>,
) -> Result<Option<(Product, Inventory, Terms)>, StoreError> {
    let Some(DetailsRow { inventory, terms }) = rows.into_iter().next() else { return Ok(None) };
    let found = inventory_found(vec![inventory])?.zip(terms::found(vec![terms.into()])?);
    Ok(found.map(|((product, inventory), terms)| (product, inventory, terms)))
}

pub(super) fn products(rows: Vec<ProductRow>) -> Result<Vec<Product>, StoreError> {
    rows.into_iter().map(Product::try_from).collect()
}

/// Of rows of `id, archived_for` in milliseconds.
pub(super) fn lanes_of_products(rows: Vec<(i64, Option<i64>)>) -> Vec<ProductLane> {
    let lane = |(id, archived_for): (i64, Option<i64>)| {
        // A clock that was set back counts as no time.
        let archived_for =
            archived_for.map(|ms| Duration::from_millis(u64::try_from(ms).unwrap_or_default()));
        Ok(ProductLane { product_id: product_id(id)?, archived_for })
    };
    readable(rows.into_iter().map(lane))
}

/// Of rows of `id, whether archived`.
pub(super) fn product_states(rows: Vec<(i64, bool)>) -> Result<HashMap<ProductId, ProductState>, StoreError> {
    let state = |is_archived| if is_archived { ProductState::Archived } else { ProductState::Live };
    rows.into_iter().map(|(id, is_archived)| Ok((product_id(id)?, state(is_archived)))).collect()
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
