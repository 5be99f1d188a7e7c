//! Rows as both databases return them, and the handling of corrupt ones, which somebody changed by hand. A corrupt row stops no
//! other order: a read of many rows leaves it out and reports it, and a read by its id is an error.

use uuid::Uuid;

use super::error::StoreError;
use crate::{
    domain::time::from_millis,
    domain::{
        ids::{IdempotencyKey, OrderId, ProductId},
        inventory::{BooksDoNotBalance, Inventory},
        order::{Order, OrderState, OrderStatus, Quantity},
        product::{Product, ProductName},
        rejection::RejectionReason,
        sku::Sku,
    },
    telemetry::is_first_report,
};

/// A text column. sqlx 0.8 returns MySQL's `…_bin` texts as bytes, which `String` does not take.
pub(super) struct TextColumn(pub(super) String);

impl sqlx::Type<sqlx::MySql> for TextColumn {
    fn type_info() -> sqlx::mysql::MySqlTypeInfo {
        <String as sqlx::Type<sqlx::MySql>>::type_info()
    }

    fn compatible(column: &sqlx::mysql::MySqlTypeInfo) -> bool {
        <String as sqlx::Type<sqlx::MySql>>::compatible(column)
            || <Vec<u8> as sqlx::Type<sqlx::MySql>>::compatible(column)
    }
}

impl sqlx::Type<sqlx::Sqlite> for TextColumn {
    fn type_info() -> sqlx::sqlite::SqliteTypeInfo {
        <String as sqlx::Type<sqlx::Sqlite>>::type_info()
    }
}

impl<'row, D: sqlx::Database> sqlx::Decode<'row, D> for TextColumn
where
    String: sqlx::Decode<'row, D>,
{
    fn decode(value: D::ValueRef<'row>) -> Result<Self, sqlx::error::BoxDynError> {
        String::decode(value).map(Self)
    }
}

/// An order's columns.
#[derive(sqlx::FromRow)]
pub(super) struct OrderRow {
    pub(super) id: Uuid,
    product_id: i64,
    total: i64,
    status: TextColumn,
    pub(super) expires_at: Option<i64>,
    rejected_available: Option<i64>,
    rejection_reason: Option<TextColumn>,
}

/// An order, or the id of a corrupt one and the error.
pub(super) type ReadOrder = Result<Order, (OrderId, StoreError)>;

impl OrderRow {
    pub(super) fn read(self) -> ReadOrder {
        let id = self.id.into();
        Order::try_from(self).map_err(|error| (id, error))
    }
}

impl TryFrom<OrderRow> for Order {
    type Error = StoreError;

    fn try_from(row: OrderRow) -> Result<Self, StoreError> {
        let corrupt = |what: &str| StoreError::Corrupt(format!("the order {} has {what}", row.id));
        let status = OrderStatus::from_word(&row.status.0).ok_or_else(|| corrupt("no such status"))?;
        let state = match (status, row.expires_at) {
            (OrderStatus::Rejected, None) => {
                let reason = row.rejection_reason.ok_or_else(|| corrupt("no rejection_reason"))?;
                let reason = RejectionReason::from_word(&reason.0).filter(|reason| reason.is_stored());
                let reason = reason.ok_or_else(|| corrupt("an unknown rejection_reason"))?;
                let available = row.rejected_available.map(u32::try_from).transpose();
                let available = available.map_err(|_| corrupt("an invalid rejected_available"))?;
                let rejection = reason.with(available);
                OrderState::Rejected(rejection.ok_or_else(|| {
                    corrupt("a rejected_available that does not agree with its rejection_reason")
                })?)
            }
            (OrderStatus::Rejected, Some(_)) => return Err(corrupt("an expires_at though it was rejected")),
            (_, None) => return Err(corrupt("no expires_at")),
            (status, Some(expires_at)) => {
                OrderState::Accepted { status, expires_at: from_millis(expires_at) }
            }
        };
        let total = u32::try_from(row.total).ok().and_then(Quantity::new);
        let total = total.ok_or_else(|| corrupt("an invalid total"))?;
        let product_id = product_id(row.product_id).map_err(|_| corrupt("an invalid product id"))?;
        Ok(Self { id: row.id.into(), product_id, total, state })
    }
}

/// An order and its idempotency key.
#[derive(sqlx::FromRow)]
pub(super) struct KeyedRow {
    idempotency_key: TextColumn,
    #[sqlx(flatten)]
    order: OrderRow,
}

impl TryFrom<KeyedRow> for (IdempotencyKey, Order) {
    type Error = StoreError;

    fn try_from(row: KeyedRow) -> Result<Self, StoreError> {
        let order = Order::try_from(row.order)?;
        Ok((key(row.idempotency_key, order.id)?, order))
    }
}

impl KeyedRow {
    /// The key also of a corrupt order.
    pub(super) fn read(self) -> Result<(IdempotencyKey, ReadOrder), StoreError> {
        Ok((key(self.idempotency_key, self.order.id.into())?, self.order.read()))
    }
}

/// A key and the id of its order.
#[derive(sqlx::FromRow)]
pub(super) struct KeyRow {
    idempotency_key: TextColumn,
    order_id: Uuid,
}

impl TryFrom<KeyRow> for (IdempotencyKey, OrderId) {
    type Error = StoreError;

    fn try_from(row: KeyRow) -> Result<Self, StoreError> {
        let order_id = row.order_id.into();
        Ok((key(row.idempotency_key, order_id)?, order_id))
    }
}

fn key(TextColumn(key): TextColumn, order_id: OrderId) -> Result<IdempotencyKey, StoreError> {
    let corrupt = |_| StoreError::Corrupt(format!("an invalid idempotency key, of order {order_id}"));
    IdempotencyKey::try_from(key).map_err(corrupt)
}

/// An order and the id with which it was requested.
#[derive(sqlx::FromRow)]
pub(super) struct FoundRow {
    asked: TextColumn,
    #[sqlx(flatten)]
    order: OrderRow,
}

impl TryFrom<FoundRow> for (OrderId, Order) {
    type Error = StoreError;

    fn try_from(row: FoundRow) -> Result<Self, StoreError> {
        let corrupt = |_| StoreError::Corrupt(format!("an invalid order id, {}", row.asked.0));
        let asked = Uuid::try_parse(&row.asked.0).map_err(corrupt)?;
        Ok((asked.into(), Order::try_from(row.order)?))
    }
}

pub(super) fn installation_id(row: Option<Uuid>) -> Result<Uuid, StoreError> {
    row.ok_or_else(|| {
        let what_to_do = "put it back from a backup, or insert one with a random id of 16 bytes";
        StoreError::Corrupt(format!("nothing in the table installation, {what_to_do}"))
    })
}

pub(super) fn product_id(column: i64) -> Result<ProductId, StoreError> {
    u64::try_from(column)
        .ok()
        .and_then(ProductId::new)
        .ok_or_else(|| StoreError::Corrupt(format!("the product id {column}")))
}

/// A product's columns.
#[derive(sqlx::FromRow)]
pub(super) struct ProductRow {
    pub(super) id: i64,
    name: TextColumn,
    sku: Option<TextColumn>,
    archived_at: Option<i64>,
}

impl TryFrom<ProductRow> for Product {
    type Error = StoreError;

    fn try_from(row: ProductRow) -> Result<Self, StoreError> {
        let ProductRow { id, name: TextColumn(name), sku, archived_at } = row;
        let name = ProductName::stored(name)
            .map_err(|_| StoreError::Corrupt(format!("an invalid name, of product {id}")))?;
        let sku = sku
            .map(|TextColumn(sku)| Sku::try_from(sku))
            .transpose()
            .map_err(|_| StoreError::Corrupt(format!("an invalid SKU, of product {id}")))?;
        Ok(Self { id: product_id(id)?, name, sku, archived_at: archived_at.map(from_millis) })
    }
}

/// A product and its pieces.
#[derive(sqlx::FromRow)]
pub(super) struct InventoryRow {
    #[sqlx(flatten)]
    pub(super) product: ProductRow,
    #[sqlx(flatten)]
    pub(super) stock: StockRow,
}

/// The pieces of a product.
#[derive(sqlx::FromRow)]
pub(super) struct StockRow {
    stored_stock: i64,
    available_stock: i64,
    reserved_stock: i64,
}

impl TryFrom<StockRow> for Inventory {
    type Error = BooksDoNotBalance;

    fn try_from(row: StockRow) -> Result<Self, BooksDoNotBalance> {
        Self::from_columns(row.stored_stock, row.available_stock, row.reserved_stock)
    }
}

/// One row of `inventories`, locked.
#[derive(sqlx::FromRow)]
pub(super) struct LockedRow {
    pub(super) product_id: i64,
    #[sqlx(flatten)]
    pub(super) stock: StockRow,
    pub(super) archived_at: Option<i64>,
    /// The database's clock, in Unix milliseconds.
    pub(super) now_ms: i64,
}

/// A product id as the value of a column.
pub(super) fn id_column(id: ProductId) -> i64 {
    id.get().cast_signed() // at most 2^53 − 1
}

/// The valid rows. The corrupt ones are reported, each once.
pub(super) fn readable<T>(rows: impl IntoIterator<Item = Result<T, StoreError>>) -> Vec<T> {
    rows.into_iter().filter_map(|row| row.inspect_err(report).ok()).collect()
}

fn report(error: &StoreError) {
    if is_first_report(&error.to_string()) {
        tracing::error!(%error, "a row is left out: somebody changed it by hand; correct it or delete it");
    }
}
