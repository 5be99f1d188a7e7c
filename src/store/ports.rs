//! The ports: what a database must be able to do, by role. A caller names the role that it needs, and [`Store`] is all of
//! them. Every method may be called from many tasks at once.
//!
//! Every method fails with a [`StoreError`], which says whether trying again may help.

use std::{collections::HashMap, ops::AddAssign, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use uuid::Uuid;

use super::{
    error::StoreError,
    page::{Due, OrderPage, Page},
};
use crate::domain::{
    command::Command,
    decide::BatchResult,
    ids::{IdempotencyKey, OrderId, ProductId},
    inventory::{InvalidAdjustment, Inventory, Stock, StockBelowReserved},
    lane_set::LaneSet,
    movement::{Adjustment, LedgerEntry, MovementSeq},
    order::Order,
    product::{NewProduct, Product, ProductChange, ProductName, ProductState},
    rejection::Rejection,
    rules::Rules,
    sku::Sku,
    terms::Terms,
};

/// The products, and what the seller has of each.
#[async_trait]
pub trait Catalog: Send + Sync {
    /// Creates a product with its inventory, unless another one has its SKU.
    async fn create(&self, new: NewProduct) -> Result<Creation, StoreError>;

    /// Creates a product without a SKU, with an inventory of zeros.
    async fn create_product(&self, name: ProductName) -> Result<Product, StoreError> {
        match self.create(NewProduct { name, sku: None, stock: Stock::ZERO }).await? {
            Creation::Done(product) => Ok(product),
            Creation::SkuTaken(id) => {
                Err(StoreError::Corrupt(format!("product {id} has the SKU of one that has none")))
            }
        }
    }

    async fn product(&self, id: ProductId) -> Result<Option<Product>, StoreError>;

    /// Changes the name or the SKU of a product, archived or not, unless another one has the SKU.
    async fn update(&self, id: ProductId, change: ProductChange) -> Result<Update, StoreError>;

    /// Archives a product of which nothing is reserved, by the database's clock. Takes the lock of the inventory, like a batch, so
    /// that nothing is reserved afterwards. A product that is archived already stays as it is.
    async fn archive(&self, id: ProductId) -> Result<Archival, StoreError>;

    /// Up to `limit` products that are archived, or up to `limit` that are not, in id order, beginning behind `after`.
    async fn products(
        &self,
        archived: bool,
        after: Option<ProductId>,
        limit: u32,
    ) -> Result<Page<Product, ProductId>, StoreError>;

    /// Those of these products that exist, in any order.
    async fn products_by_sku(&self, skus: &[Sku]) -> Result<Vec<Product>, StoreError>;

    /// The ids of all products, archived ones too, ascending.
    async fn product_ids(&self) -> Result<Vec<ProductId>, StoreError>;

    /// All products as workers need to know them, in any order.
    async fn product_lanes(&self) -> Result<Vec<ProductLane>, StoreError>;

    /// Those of these products that exist.
    async fn states(&self, ids: &[ProductId]) -> Result<HashMap<ProductId, ProductState>, StoreError>;

    /// Those of these products, which are not archived, of which every order is refused now, and why, in any order. A sale that
    /// opens within `opening_margin`, by the clock of the database, is left out. Sees all that was committed before the call.
    async fn closed_to_orders(
        &self,
        ids: &[ProductId],
        opening_margin: Duration,
    ) -> Result<Vec<(ProductId, Rejection)>, StoreError>;

    async fn inventory(&self, id: ProductId) -> Result<Option<(Product, Inventory)>, StoreError>;

    /// The same, and the terms of sale, as of one moment.
    async fn details(&self, id: ProductId) -> Result<Option<(Product, Inventory, Terms)>, StoreError>;

    /// Up to `limit` products that are not archived with their inventories, in id order, beginning behind `after`. `None`: the
    /// inventory is invalid.
    async fn inventories(
        &self,
        after: Option<ProductId>,
        limit: u32,
    ) -> Result<Page<(Product, Option<Inventory>), ProductId>, StoreError>;

    /// The terms of sale; `None`: there is no such product.
    async fn terms(&self, id: ProductId) -> Result<Option<Terms>, StoreError>;

    /// Sets all terms of sale, and returns whether there is such a product. Takes the lock of the inventory, like a batch: they
    /// count from the commit on.
    async fn set_terms(&self, id: ProductId, terms: Terms) -> Result<bool, StoreError>;
}

/// What the seller does with the stock of a product, and the ledger of all that was done. Every change of stored pieces is one
/// movement, in the same transaction. Takes the lock of the inventory, like a batch.
#[async_trait]
pub trait Ledger: Send + Sync {
    /// Sets `stored_stock` to what the seller counted, unless the product is archived.
    async fn recount(&self, id: ProductId, stock: Stock) -> Result<Recount, StoreError> {
        self.recount_if(id, stock, None).await
    }

    /// Sets `stored_stock` to what the seller counted, if it is `expected` now. Records a movement if it changes.
    async fn recount_if(
        &self,
        id: ProductId,
        stock: Stock,
        expected: Option<Stock>,
    ) -> Result<Recount, StoreError>;

    /// Changes `stored_stock` by a difference, once for each key, unless the product is archived. Without a key, an error leaves open whether it is committed.
    async fn adjust(&self, id: ProductId, adjustment: &Adjustment) -> Result<Adjusted, StoreError>;

    /// Up to `limit` movements of a product, the newest first, beginning behind `after`. None for a product that does not exist.
    async fn movements(
        &self,
        id: ProductId,
        after: Option<MovementSeq>,
        limit: u32,
    ) -> Result<Page<LedgerEntry, MovementSeq>, StoreError>;
}

/// What became of [`Catalog::create`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Creation {
    Done(Product),
    /// The product that has the SKU. Nothing has changed.
    SkuTaken(ProductId),
}

/// What became of [`Catalog::update`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// The product as it is now.
    Done(Product),
    NoSuchProduct,
    /// The product that has the SKU. Nothing has changed.
    SkuTaken(ProductId),
}

/// What became of [`Catalog::archive`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Archival {
    /// The product as it is now, archived by this call or earlier.
    Done(Product),
    NoSuchProduct,
    /// So many pieces are reserved. Nothing has changed.
    HasReservations(u32),
}

/// A product, and for how long it has been archived, by the database's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProductLane {
    pub product_id: ProductId,
    /// `None`: it is not.
    pub archived_for: Option<Duration>,
}

/// What became of [`Ledger::recount_if`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recount {
    Done(Product, Inventory),
    NoSuchProduct,
    /// Nobody sells it any more. Nothing has changed.
    Archived,
    /// Nothing has changed.
    BelowReserved(StockBelowReserved),
    /// Not what was expected, but this many pieces are stored. Nothing has changed.
    StockChanged {
        stored: u32,
    },
}

impl Recount {
    pub fn done(self) -> Option<(Product, Inventory)> {
        match self {
            Self::Done(product, inventory) => Some((product, inventory)),
            Self::NoSuchProduct | Self::Archived | Self::BelowReserved(_) | Self::StockChanged { .. } => None,
        }
    }
}

/// What became of [`Ledger::adjust`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Adjusted {
    /// The movement, and the inventory after it.
    Done(LedgerEntry, Inventory),
    /// The movement that was recorded under this key before. Nothing has changed now.
    Before(LedgerEntry),
    /// The key belongs to another adjustment. Nothing has changed.
    KeyReused,
    NoSuchProduct,
    /// Nobody sells it any more. Nothing has changed.
    Archived,
    /// Nothing has changed.
    Invalid(InvalidAdjustment),
}

/// The stored orders, to read.
#[async_trait]
pub trait Orders: Send + Sync {
    async fn order(&self, id: OrderId) -> Result<Option<Order>, StoreError> {
        Ok(self.orders_by_id(&[id]).await?.remove(&id))
    }

    /// Those of these orders that are stored, by the id that was asked for. An order that was sent twice under one
    /// idempotency key may have two ids; it is found under both.
    async fn orders_by_id(&self, ids: &[OrderId]) -> Result<HashMap<OrderId, Order>, StoreError>;

    /// The stored orders with these idempotency keys.
    async fn orders_by_key(
        &self,
        keys: &[IdempotencyKey],
    ) -> Result<HashMap<IdempotencyKey, Order>, StoreError>;

    /// Stored orders in id order, which is the order of their creation. Examines a bounded number of orders, so that a page
    /// may be short though there are more.
    async fn orders(&self, page: OrderPage) -> Result<Page<Order, OrderId>, StoreError>;

    /// Cancels an order that is not stored and may be in its lane: stores it as [`Order::given_up`]. When its turn comes, nothing is
    /// reserved for it. Whichever is first counts, this or the lane's decision.
    async fn give_up(&self, id: OrderId) -> Result<GivenUp, StoreError>;

    /// Up to `limit` reservations that are due by the database's clock, the longest overdue first, beginning behind `after`.
    async fn due(&self, after: Option<Due>, limit: u32) -> Result<Page<Order, Due>, StoreError>;
}

/// What became of [`Orders::give_up`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GivenUp {
    /// The order as it is stored now.
    Done(Order),
    /// It was decided, or given up, before. Nothing has changed.
    Stored(Order),
}

/// The order whose id is stored already.
pub(super) async fn given_up_too_late(store: &dyn Orders, id: OrderId) -> Result<GivenUp, StoreError> {
    let pruned = || StoreError::Contended(format!("the order {id} is stored, and then it is not"));
    store.order(id).await?.map(GivenUp::Stored).ok_or_else(pruned)
}

/// The decisions.
#[async_trait]
pub trait Decider: Send + Sync {
    /// Decides a batch in one transaction. When it returns, the result is committed. An order that is already stored gets the
    /// stored verdict.
    ///
    /// All times come from the database's clock. A command that cannot be decided gets the verdict
    /// [`Undecidable`](crate::domain::verdict::Verdict::Undecidable), and all others theirs.
    ///
    /// Every error is transient, and leaves open whether the transaction is committed. Calling it again with the same
    /// commands is right in either case.
    async fn decide(&self, commands: &[Command], rules: Rules) -> Result<BatchResult, StoreError>;

    /// Those of these products whose inventories no other transaction has locked now.
    async fn unlocked(&self, ids: &[ProductId]) -> Result<Vec<ProductId>, StoreError>;
}

/// What [`retention`](super::retention) needs to delete orders that are final and old.
#[async_trait]
pub trait Retention: Send + Sync {
    /// The time now, by the database's clock.
    async fn now(&self) -> Result<Timestamp, StoreError>;

    /// Examines up to `limit` orders in id order, behind `after` and before `end`, and returns those that are final. The next page
    /// begins behind the last one examined.
    async fn final_orders(
        &self,
        after: Option<OrderId>,
        end: OrderId,
        limit: u32,
    ) -> Result<Page<OrderId, OrderId>, StoreError>;

    /// Deletes those of these orders that are final, with their idempotency keys and aliases, in one transaction.
    async fn delete_orders(&self, ids: &[OrderId]) -> Result<Deleted, StoreError>;
}

/// Rows that [`Retention::delete_orders`] deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deleted {
    pub orders: u64,
    pub idempotency_keys: u64,
    pub aliases: u64,
}

impl AddAssign for Deleted {
    fn add_assign(&mut self, more: Self) {
        self.orders += more.orders;
        self.idempotency_keys += more.idempotency_keys;
        self.aliases += more.aliases;
    }
}

/// Which database this is, and which lanes its processes use.
#[async_trait]
pub trait Installation: Send + Sync {
    /// A random id that the migrations generated, the same for every process that opens this database.
    async fn installation_id(&self) -> Result<Uuid, StoreError>;

    /// Stores that a process uses these lanes now, by the database's clock.
    async fn use_lanes(&self, lanes: &LaneSet) -> Result<(), StoreError>;

    /// The lanes that processes used within the last two hours: no command waits in a lane for longer.
    async fn lanes_in_use(&self) -> Result<Vec<LaneSet>, StoreError>;
}

/// Readiness.
#[async_trait]
pub trait Health: Send + Sync {
    /// Whether the database would decide a batch now. Goes the way of a batch, up to the first write.
    async fn ping(&self) -> Result<(), StoreError>;
}

/// All roles: what a process opens, and closes.
#[async_trait]
pub trait Store: Catalog + Ledger + Orders + Decider + Retention + Installation + Health {
    /// Closes the connections once they are idle.
    async fn close(&self);
}
