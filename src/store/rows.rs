//! Rows as both databases return them, and the handling of corrupt ones, which somebody changed by hand. A corrupt row stops no
//! other order: a read of many rows leaves it out and reports it, and a read by its id is an error.

use uuid::Uuid;

use super::{error::StoreError, json::json};
use crate::{
    domain::time::from_millis,
    domain::{
        ids::{IdempotencyKey, OrderId, ProductId},
        inventory::{BooksDoNotBalance, Inventory},
        lines::{Line, Lines},
        names::{Buyer, PaymentReference},
        order::{Order, OrderState, OrderStatus, Payment, Quantity},
        product::{Product, ProductName},
        rejection::{Rejection, RejectionDetails, RejectionReason},
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
    product_id: Option<i64>,
    total: Option<i64>,
    status: TextColumn,
    pub(super) expires_at: Option<i64>,
    rejected_available: Option<i64>,
    rejection_reason: Option<TextColumn>,
    /// Of an order of several products: `[[product, total], …]`.
    lines: Option<TextColumn>,
    buyer: Option<TextColumn>,
    payment_reference: Option<TextColumn>,
    paid_at: Option<i64>,
    rejection_details: Option<TextColumn>,
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
        let id = row.id;
        let corrupt = |what: &str| StoreError::Corrupt(format!("the order {id} has {what}"));
        let status = OrderStatus::from_word(&row.status.0).ok_or_else(|| corrupt("no such status"))?;
        let lines = row.lines().map_err(corrupt)?;
        let state = match (status, row.expires_at) {
            (OrderStatus::Rejected, None) => OrderState::Rejected(row.rejection(&lines).map_err(corrupt)?),
            (OrderStatus::Rejected, Some(_)) => return Err(corrupt("an expires_at though it was rejected")),
            (_, None) => return Err(corrupt("no expires_at")),
            (status, Some(expires_at)) => {
                OrderState::Accepted { status, expires_at: from_millis(expires_at) }
            }
        };
        let buyer = row.buyer.map(|TextColumn(buyer)| Buyer::try_from(buyer)).transpose();
        let reference =
            row.payment_reference.map(|TextColumn(text)| PaymentReference::try_from(text)).transpose();
        let payment = Payment {
            reference: reference.map_err(|_| corrupt("an invalid payment_reference"))?,
            paid_at: row.paid_at.map(from_millis),
        };
        Ok(Self {
            id: id.into(),
            lines,
            buyer: buyer.map_err(|_| corrupt("an invalid buyer"))?,
            payment: (payment != Payment::default()).then_some(payment),
            state,
        })
    }
}

impl OrderRow {
    /// What is wrong, if they are invalid.
    fn lines(&self) -> Result<Option<Lines>, &'static str> {
        let (product, total) = match (self.product_id, self.total) {
            (None, None) => return Ok(None),
            (Some(product), Some(total)) => (product, total),
            _ => return Err("a product without a total, or a total without a product"),
        };
        let product_id = product_id(product).map_err(|_| "an invalid product id")?;
        let total = u32::try_from(total).ok().and_then(Quantity::new).ok_or("an invalid total")?;
        let Some(TextColumn(lines)) = &self.lines else { return Ok(Some(Lines::one(product_id, total))) };
        let lines: Vec<(ProductId, Quantity)> = serde_json::from_str(lines).map_err(|_| "invalid lines")?;
        let lines: Vec<_> = lines.into_iter().map(|(product_id, total)| Line { product_id, total }).collect();
        let lines = Lines::try_from(lines).map_err(|_| "invalid lines")?;
        let agrees = lines.first() == Line { product_id, total };
        if agrees { Ok(Some(lines)) } else { Err("lines that do not begin with its product_id and total") }
    }

    /// What is wrong, if it is invalid.
    fn rejection(&self, lines: &Option<Lines>) -> Result<Rejection, &'static str> {
        let reason = self.rejection_reason.as_ref().ok_or("no rejection_reason")?;
        let reason = RejectionReason::from_word(&reason.0).filter(|reason| reason.is_stored());
        let reason = reason.ok_or("an unknown rejection_reason")?;
        let details = self.rejection_details.as_ref().map(|TextColumn(json)| serde_json::from_str(json));
        let details: RejectionDetails =
            details.transpose().map_err(|_| "invalid rejection_details")?.unwrap_or_default();
        let available = self.rejected_available.map(u32::try_from).transpose();
        let available = available.map_err(|_| "an invalid rejected_available")?;
        // Earlier releases stored no details: their orders were of one product.
        let product_id = details.product_id.or(lines.as_ref().map(|lines| lines.first().product_id));
        let details = RejectionDetails { product_id, available_stock: available, ..details };
        let rejection =
            reason.with(details).ok_or("rejection_details that do not agree with its rejection_reason")?;
        match rejection.available() == available {
            true => Ok(rejection),
            false => Err("a rejected_available that does not agree with its rejection_reason"),
        }
    }
}

/// The lines of an order of several products, as they are stored in its row.
pub(super) fn stored_lines(lines: &Lines) -> Option<String> {
    let pairs = || lines.as_slice().iter().map(|line| (line.product_id, line.total)).collect::<Vec<_>>();
    lines.only().is_none().then(|| json(&pairs()))
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

/// The terms of sale of a product.
#[derive(sqlx::FromRow)]
pub(super) struct TermsColumns {
    pub(super) selling: bool,
    pub(super) opens_at: Option<i64>,
    pub(super) closes_at: Option<i64>,
    pub(super) max_per_order: Option<i64>,
    pub(super) max_per_buyer: Option<i64>,
    pub(super) hold_seconds: Option<i64>,
}

/// A product, its pieces and its terms of sale.
#[derive(sqlx::FromRow)]
pub(super) struct DetailsRow {
    #[sqlx(flatten)]
    pub(super) inventory: InventoryRow,
    #[sqlx(flatten)]
    pub(super) terms: TermsColumns,
}

/// One row of `inventories`, locked.
#[derive(sqlx::FromRow)]
pub(super) struct LockedRow {
    pub(super) product_id: i64,
    #[sqlx(flatten)]
    pub(super) stock: StockRow,
    pub(super) archived_at: Option<i64>,
    #[sqlx(flatten)]
    pub(super) terms: TermsColumns,
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
