//! The store contract: where products, inventories and orders are kept, and the one place that decides.
//!
//! Two adapters, [`sqlite`] and [`mysql`], stand behind it; `tests/it/ports/store_contract.rs` is what both must pass.
//! The transaction itself is written once, in [`transaction`]; an adapter brings the statements.

mod error;
mod lane_sets;
mod lists;
mod migrations;
pub mod mysql;
mod mysql_url;
mod open_error;
mod rows;
pub mod sqlite;
mod transaction;

pub use error::StoreError;
pub use lists::Page;
pub use migrations::{Schema, Usable};
pub use open_error::OpenError;

use std::{collections::HashMap, time::Duration};

use async_trait::async_trait;
use tokio::time::timeout;
use uuid::Uuid;

use crate::domain::{
    command::Command,
    decide::Undecidable,
    event::Event,
    ids::{IdempotencyKey, OrderId, ProductId},
    inventory::{Inventory, Stock, StockBelowReserved},
    lane_set::LaneSet,
    order::{Order, OrderStatus},
    product::{Product, ProductName},
    verdict::Verdict,
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

    /// Up to `limit` reservations whose time is over by the database's clock, the longest overdue first, beginning behind
    /// `after`.
    async fn due(&self, after: Option<Due>, limit: u32) -> Result<Page<Order, Due>, StoreError>;

    /// Stored orders in id order, which is the order of their creation. Examines a bounded number of orders, so that a
    /// page may be short though there are more.
    async fn orders(&self, page: OrderPage) -> Result<Page<Order, OrderId>, StoreError>;

    /// Decides a batch in one transaction. When it returns, what it says is committed. An order that is on record
    /// already gets the verdict on record.
    ///
    /// All times come from the database's clock. A command that cannot be decided is alone with that:
    /// [`Verdict::Undecidable`].
    ///
    /// After an error, which always passes, nothing is known: the transaction may or may not be committed. Calling it again
    /// with the same commands is right in either case.
    async fn decide(&self, commands: &[Command], reservation_ttl: Duration) -> Result<Decided, StoreError>;

    /// Which database this is: a random id that its migrations made, the same for every process that opens it.
    async fn installation_id(&self) -> Result<Uuid, StoreError>;

    /// Remembers that a process uses these lanes now, by the database's clock.
    async fn use_lanes(&self, lanes: &LaneSet) -> Result<(), StoreError> {
        let _ = lanes; // the lanes of the embedded mode are its process's own
        Ok(())
    }

    /// The lanes that processes used within the last two hours: no order stands in a lane for longer.
    async fn lanes_in_use(&self) -> Result<Vec<LaneSet>, StoreError> {
        Ok(Vec::new())
    }

    /// Those of these products whose inventory nobody else keeps locked now.
    async fn unlocked(&self, ids: &[ProductId]) -> Result<Vec<ProductId>, StoreError>;

    /// Whether the database would decide a batch now. Takes the way of one, up to where it would write.
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
    /// Why commands were not decided, ascending.
    pub undecidable: Vec<Undecidable>,
}

/// A reservation whose time is over, as a place in the list of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// Unix milliseconds.
    pub expires_at: i64,
    /// Among those of the same time.
    pub id: OrderId,
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

/// How long whoever asks for something to be read waits for it, together with others.
const READ_TIMEOUT: Duration = Duration::from_secs(3);

/// Each call of a store ends in time. This is for those who wait for the reads of others besides.
pub async fn in_time<T>(read: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    within(READ_TIMEOUT, read).await
}

/// The same for who cannot wait so long.
pub async fn within<T>(
    limit: Duration,
    read: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let silent = || StoreError::Unavailable(format!("the database is silent for {limit:?} now"));
    timeout(limit, read).await.unwrap_or_else(|_| Err(silent()))
}
