//! The store contract: where products, inventories and orders are kept, and the one place that decides.
//!
//! Two adapters, [`sqlite`] and [`mysql`], stand behind it; `tests/it/store_contract.rs` is what both must pass.
//! The transaction itself is written once, in [`transaction`]; an adapter brings the statements.

mod lists;
mod migrations;
pub mod mysql;
mod mysql_url;
mod open_error;
pub mod sqlite;
mod transaction;

pub use lists::Page;
pub use migrations::{Schema, Usable};
pub use open_error::OpenError;

use std::{collections::HashMap, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::time::timeout;
use uuid::Uuid;

use crate::{
    batch::Event,
    command::Command,
    inventory::{BooksDoNotBalance, Inventory, Stock, StockBelowReserved},
    order::{
        IdempotencyKey, Order, OrderId, OrderState, OrderStatus, Quantity, Rejection, Verdict, from_millis,
    },
    product::{Product, ProductId, ProductName},
};

/// What a database must be able to do. Every method may be called from many tasks at once.
#[async_trait]
pub trait Store: Send + Sync {
    /// A new product with an inventory of zeros.
    async fn create_product(&self, name: ProductName) -> Result<Product, StoreError>;

    /// The product, if there is one.
    async fn product(&self, id: ProductId) -> Result<Option<Product>, StoreError>;

    /// Up to `limit` products in id order, beginning behind `after`.
    async fn products(
        &self,
        after: Option<ProductId>,
        limit: u32,
    ) -> Result<Page<Product, ProductId>, StoreError>;

    /// Those of these products that exist.
    async fn existing(&self, ids: &[ProductId]) -> Result<Vec<ProductId>, StoreError>;

    /// Those of these products of which nothing is left. Sees all that was committed before it was called.
    async fn sold_out(&self, ids: &[ProductId]) -> Result<Vec<ProductId>, StoreError>;

    /// The ids of all products, ascending: a lane each.
    async fn product_ids(&self) -> Result<Vec<ProductId>, StoreError>;

    /// The product and its pieces, if there is such a product.
    async fn inventory(&self, id: ProductId) -> Result<Option<(Product, Inventory)>, StoreError>;

    /// Sets what is stored to what the seller counted. Takes the inventory row's lock. `None`: no such product.
    async fn recount(
        &self,
        id: ProductId,
        stock: Stock,
    ) -> Result<Option<Result<(Product, Inventory), StockBelowReserved>>, StoreError>;

    /// The order on record, if there is one.
    async fn order(&self, id: OrderId) -> Result<Option<Order>, StoreError> {
        Ok(self.orders_by_id(&[id]).await?.remove(&id))
    }

    /// Those of these orders that are on record, by the id that was asked for: an order that was placed twice under
    /// one idempotency key may have two.
    async fn orders_by_id(&self, ids: &[OrderId]) -> Result<HashMap<OrderId, Order>, StoreError>;

    /// Those orders on record that their clients call so.
    async fn orders_by_key(
        &self,
        keys: &[IdempotencyKey],
    ) -> Result<HashMap<IdempotencyKey, Order>, StoreError>;

    /// Up to `limit` reservations whose time is over, the longest overdue first.
    async fn due(&self, at: Timestamp, limit: u32) -> Result<Vec<Order>, StoreError>;

    /// Stored orders in id order, which is the order of their creation. Examines a bounded number of orders, so that a
    /// page may be short though there are more.
    async fn orders(&self, page: OrderPage) -> Result<Page<Order, OrderId>, StoreError>;

    /// Decides a batch in one transaction. When it returns, what it says is committed. An order that is on record
    /// already gets the verdict on record.
    ///
    /// After an error nothing is known: the transaction may or may not be committed. Calling it again with the
    /// same commands is right in either case.
    async fn decide(&self, commands: &[Command], reservation_ttl: Duration) -> Result<Decided, StoreError>;

    /// Which database this is: a random id that its migrations made, the same for every process that opens it.
    async fn installation_id(&self) -> Result<Uuid, StoreError>;

    /// Whether the database answers.
    async fn ping(&self) -> Result<(), StoreError>;

    /// Closes the connections once they are idle.
    async fn close(&self);
}

/// What became of a batch, committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    /// One for each command, at the same index.
    pub verdicts: Vec<Verdict>,
    /// What became of orders, in the order in which it did.
    pub events: Vec<Event>,
}

/// Which orders [`Store::orders`] lists.
#[derive(Clone, Copy, Debug)]
pub struct OrderPage {
    /// Only those of this product.
    pub product_id: Option<ProductId>,
    /// Only those that have come this far.
    pub status: Option<OrderStatus>,
    /// Only those behind this one.
    pub after: Option<OrderId>,
    /// How many at most.
    pub limit: u32,
}

/// How long whoever asks for something to be read waits for it.
const READ_TIMEOUT: Duration = Duration::from_secs(3);

/// Reads, but not for ever: a server that is stopped in the middle of a statement keeps the connection and says nothing.
pub async fn in_time<T>(read: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    within(READ_TIMEOUT, read).await
}

/// The same for who cannot wait so long.
pub async fn within<T>(
    limit: Duration,
    read: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let silent = || StoreError::Away(format!("the database is silent for {limit:?} now"));
    timeout(limit, read).await.unwrap_or_else(|_| Err(silent()))
}

/// Why the database did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It may work when it is tried again: no connection, a deadlock, a lock not had in time.
    #[error("the database does not answer: {0}")]
    Unavailable(#[source] sqlx::Error),
    /// Batches of several lanes fight for the same idempotency keys.
    #[error("others put the same idempotency keys on record again and again")]
    Contended,
    /// It may work when it is tried again, and this text says why it did not: of a read that many wait for, or that did
    /// not end in time.
    #[error("{0}")]
    Away(String),
    /// It may work when it is tried again: others list so much that there was no turn for this list in time.
    #[error("too many lists are read at the same time")]
    TooManyLists,
    /// Trying again will not help.
    #[error("the database refuses: {0}")]
    Refused(#[source] sqlx::Error),
    /// What stands in the database cannot be.
    #[error(transparent)]
    BooksDoNotBalance(#[from] BooksDoNotBalance),
    /// What stands in the database cannot be.
    #[error("the database holds what it must not: {0}")]
    Corrupt(String),
}

impl StoreError {
    /// Whether trying again may help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Contended | Self::Away(_) | Self::TooManyLists)
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        use sqlx::Error as E;
        match &error {
            E::Io(_) | E::Tls(_) | E::Protocol(_) | E::PoolTimedOut | E::PoolClosed | E::WorkerCrashed => {
                Self::Unavailable(error)
            }
            E::Database(database) if is_passing(database.as_ref()) => Self::Unavailable(error),
            _ => Self::Refused(error),
        }
    }
}

/// Errors of the database that pass.
fn is_passing(error: &dyn sqlx::error::DatabaseError) -> bool {
    if let Some(mysql) = error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>() {
        // Too many connections; shutting down; lock wait timeout; deadlock; read-only (a failover); killed;
        // longer than it may take; closed for idleness.
        return matches!(mysql.number(), 1040 | 1053 | 1205 | 1213 | 1290 | 1317 | 1836 | 1927 | 3024 | 4031);
    }
    // SQLITE_BUSY, SQLITE_LOCKED, SQLITE_INTERRUPT, SQLITE_IOERR, SQLITE_FULL and their extended codes: a disk may be cleaned up.
    let code = error.code().and_then(|code| code.parse::<u32>().ok());
    code.is_some_and(|code| matches!(code & 0xff, 5 | 6 | 9 | 10 | 13))
}

/// A text column. sqlx 0.8 hands MySQL's `…_bin` texts out as bytes, which `String` does not take.
struct Text(String);

impl sqlx::Type<sqlx::MySql> for Text {
    fn type_info() -> sqlx::mysql::MySqlTypeInfo {
        <String as sqlx::Type<sqlx::MySql>>::type_info()
    }

    fn compatible(column: &sqlx::mysql::MySqlTypeInfo) -> bool {
        <String as sqlx::Type<sqlx::MySql>>::compatible(column)
            || <Vec<u8> as sqlx::Type<sqlx::MySql>>::compatible(column)
    }
}

impl sqlx::Type<sqlx::Sqlite> for Text {
    fn type_info() -> sqlx::sqlite::SqliteTypeInfo {
        <String as sqlx::Type<sqlx::Sqlite>>::type_info()
    }
}

impl<'row, D: sqlx::Database> sqlx::Decode<'row, D> for Text
where
    String: sqlx::Decode<'row, D>,
{
    fn decode(value: D::ValueRef<'row>) -> Result<Self, sqlx::error::BoxDynError> {
        String::decode(value).map(Self)
    }
}

/// An order's columns as both databases hand them out.
#[derive(sqlx::FromRow)]
struct OrderRow {
    id: Uuid,
    product_id: i64,
    total: i64,
    status: Text,
    expires_at: Option<i64>,
    rejected_available: Option<i64>,
}

impl TryFrom<OrderRow> for Order {
    type Error = StoreError;

    fn try_from(row: OrderRow) -> Result<Self, StoreError> {
        let corrupt = || StoreError::Corrupt(format!("an order that cannot be, {}", row.id));
        let status = OrderStatus::from_word(&row.status.0).ok_or_else(corrupt)?;
        let state = match (status, row.expires_at, row.rejected_available) {
            (OrderStatus::Rejected, None, Some(available)) => {
                let available = u32::try_from(available).map_err(|_| corrupt())?;
                OrderState::Rejected(Rejection::InsufficientStock { available })
            }
            (OrderStatus::Rejected, None, None) => OrderState::Rejected(Rejection::KeyReused),
            (OrderStatus::Rejected, ..) | (_, None, _) => return Err(corrupt()),
            (status, Some(expires_at), _) => {
                OrderState::Accepted { status, expires_at: from_millis(expires_at) }
            }
        };
        let total = u32::try_from(row.total).ok().and_then(Quantity::new).ok_or_else(corrupt)?;
        Ok(Self { id: row.id.into(), product_id: product_id(row.product_id)?, total, state })
    }
}

/// An order and what its client calls it.
#[derive(sqlx::FromRow)]
struct KeyedRow {
    idempotency_key: Text,
    #[sqlx(flatten)]
    order: OrderRow,
}

impl TryFrom<KeyedRow> for (IdempotencyKey, Order) {
    type Error = StoreError;

    fn try_from(row: KeyedRow) -> Result<Self, StoreError> {
        let order = Order::try_from(row.order)?;
        let corrupt =
            |_| StoreError::Corrupt(format!("an idempotency key that is none, of order {}", order.id));
        Ok((IdempotencyKey::try_from(row.idempotency_key.0).map_err(corrupt)?, order))
    }
}

/// An order and the id that was asked for.
#[derive(sqlx::FromRow)]
struct FoundRow {
    asked: Text,
    #[sqlx(flatten)]
    order: OrderRow,
}

impl TryFrom<FoundRow> for (OrderId, Order) {
    type Error = StoreError;

    fn try_from(row: FoundRow) -> Result<Self, StoreError> {
        let corrupt = |_| StoreError::Corrupt(format!("an id that is none, {}", row.asked.0));
        let asked = Uuid::try_parse(&row.asked.0).map_err(corrupt)?;
        Ok((asked.into(), Order::try_from(row.order)?))
    }
}

const INSTALLATION_ID: &str = "SELECT id FROM installation";

fn installation_id(row: Option<Uuid>) -> Result<Uuid, StoreError> {
    row.ok_or_else(|| {
        let what_to_do = "put it back from a backup, or insert one with a random id of 16 bytes";
        StoreError::Corrupt(format!("nothing in the table installation, {what_to_do}"))
    })
}

fn product_id(column: i64) -> Result<ProductId, StoreError> {
    u64::try_from(column)
        .ok()
        .and_then(ProductId::new)
        .ok_or_else(|| StoreError::Corrupt(format!("the product id {column}")))
}

fn product(id: i64, Text(name): Text) -> Result<Product, StoreError> {
    let name = ProductName::try_from(name)
        .map_err(|_| StoreError::Corrupt(format!("a name that is none, of product {id}")))?;
    Ok(Product { id: product_id(id)?, name })
}

/// A product id as the databases want it.
fn column(id: ProductId) -> i64 {
    id.get().cast_signed() // at most 2^53 − 1
}
