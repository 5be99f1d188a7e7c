//! A time limit on reads.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::time::timeout;
use uuid::Uuid;

use super::{
    error::StoreError,
    page::{Due, OrderPage, Page},
    ports::{
        Adjusted, Archival, Catalog, Creation, GivenUp, Installation, Ledger, Orders, ProductLane, Recount,
        Update,
    },
};
use crate::domain::{
    ids::{IdempotencyKey, OrderId, ProductId},
    inventory::{Inventory, Stock},
    lane_set::LaneSet,
    movement::{Adjustment, LedgerEntry, MovementSeq},
    order::Order,
    product::{NewProduct, Product, ProductChange, ProductState},
    rejection::Rejection,
    sku::Sku,
    terms::Terms,
};

/// A store whose reads end within a limit of their own: as [`StoreError::Unavailable`], whatever the database does. A server
/// that stands still keeps its connections and answers nothing.
///
/// Writes ([`Catalog::create`], [`Catalog::update`], [`Catalog::archive`], [`Catalog::set_terms`], [`Ledger::recount_if`],
/// [`Ledger::adjust`], [`Orders::give_up`]) have the limits of their transactions only: a caller that gives
/// one up does not know what became of it.
pub struct TimeLimited<S: ?Sized> {
    store: Arc<S>,
    limit: Duration,
}

impl<S: ?Sized> TimeLimited<S> {
    pub fn new(store: Arc<S>, limit: Duration) -> Self {
        Self { store, limit }
    }

    async fn read<T>(&self, read: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let limit = self.limit;
        let silent = || StoreError::Unavailable(format!("the database is silent for {limit:?} now"));
        timeout(limit, read).await.unwrap_or_else(|_| Err(silent()))
    }
}

#[async_trait]
impl<S: Catalog + ?Sized> Catalog for TimeLimited<S> {
    async fn create(&self, new: NewProduct) -> Result<Creation, StoreError> {
        self.store.create(new).await
    }

    async fn product(&self, id: ProductId) -> Result<Option<Product>, StoreError> {
        self.read(self.store.product(id)).await
    }

    async fn update(&self, id: ProductId, change: ProductChange) -> Result<Update, StoreError> {
        self.store.update(id, change).await
    }

    async fn archive(&self, id: ProductId) -> Result<Archival, StoreError> {
        self.store.archive(id).await
    }

    async fn products(
        &self,
        archived: bool,
        after: Option<ProductId>,
        limit: u32,
    ) -> Result<Page<Product, ProductId>, StoreError> {
        self.read(self.store.products(archived, after, limit)).await
    }

    async fn products_by_sku(&self, skus: &[Sku]) -> Result<Vec<Product>, StoreError> {
        self.read(self.store.products_by_sku(skus)).await
    }

    async fn product_ids(&self) -> Result<Vec<ProductId>, StoreError> {
        self.read(self.store.product_ids()).await
    }

    async fn product_lanes(&self) -> Result<Vec<ProductLane>, StoreError> {
        self.read(self.store.product_lanes()).await
    }

    async fn states(&self, ids: &[ProductId]) -> Result<HashMap<ProductId, ProductState>, StoreError> {
        self.read(self.store.states(ids)).await
    }

    async fn closed_to_orders(
        &self,
        ids: &[ProductId],
        opening_margin: Duration,
    ) -> Result<Vec<(ProductId, Rejection)>, StoreError> {
        self.read(self.store.closed_to_orders(ids, opening_margin)).await
    }

    async fn inventory(&self, id: ProductId) -> Result<Option<(Product, Inventory)>, StoreError> {
        self.read(self.store.inventory(id)).await
    }

    async fn details(&self, id: ProductId) -> Result<Option<(Product, Inventory, Terms)>, StoreError> {
        self.read(self.store.details(id)).await
    }

    async fn inventories(
        &self,
        after: Option<ProductId>,
        limit: u32,
    ) -> Result<Page<(Product, Option<Inventory>), ProductId>, StoreError> {
        self.read(self.store.inventories(after, limit)).await
    }

    async fn terms(&self, id: ProductId) -> Result<Option<Terms>, StoreError> {
        self.read(self.store.terms(id)).await
    }

    async fn set_terms(&self, id: ProductId, terms: Terms) -> Result<bool, StoreError> {
        self.store.set_terms(id, terms).await
    }
}

#[async_trait]
impl<S: Ledger + ?Sized> Ledger for TimeLimited<S> {
    async fn recount_if(
        &self,
        id: ProductId,
        stock: Stock,
        expected: Option<Stock>,
    ) -> Result<Recount, StoreError> {
        self.store.recount_if(id, stock, expected).await
    }

    async fn adjust(&self, id: ProductId, adjustment: &Adjustment) -> Result<Adjusted, StoreError> {
        self.store.adjust(id, adjustment).await
    }

    async fn movements(
        &self,
        id: ProductId,
        after: Option<MovementSeq>,
        limit: u32,
    ) -> Result<Page<LedgerEntry, MovementSeq>, StoreError> {
        self.read(self.store.movements(id, after, limit)).await
    }
}

#[async_trait]
impl<S: Orders + ?Sized> Orders for TimeLimited<S> {
    async fn orders_by_id(&self, ids: &[OrderId]) -> Result<HashMap<OrderId, Order>, StoreError> {
        self.read(self.store.orders_by_id(ids)).await
    }

    async fn orders_by_key(
        &self,
        keys: &[IdempotencyKey],
    ) -> Result<HashMap<IdempotencyKey, Order>, StoreError> {
        self.read(self.store.orders_by_key(keys)).await
    }

    async fn orders(&self, page: OrderPage) -> Result<Page<Order, OrderId>, StoreError> {
        self.read(self.store.orders(page)).await
    }

    async fn give_up(&self, id: OrderId) -> Result<GivenUp, StoreError> {
        self.store.give_up(id).await
    }

    async fn due(&self, after: Option<Due>, limit: u32) -> Result<Page<Order, Due>, StoreError> {
        self.read(self.store.due(after, limit)).await
    }
}

#[async_trait]
impl<S: Installation + ?Sized> Installation for TimeLimited<S> {
    async fn installation_id(&self) -> Result<Uuid, StoreError> {
        self.read(self.store.installation_id()).await
    }

    async fn use_lanes(&self, lanes: &LaneSet) -> Result<(), StoreError> {
        self.read(self.store.use_lanes(lanes)).await
    }

    async fn lanes_in_use(&self) -> Result<Vec<LaneSet>, StoreError> {
        self.read(self.store.lanes_in_use()).await
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::time::Instant;

    use super::*;

    /// A database that stands still.
    struct Silent;

    #[async_trait]
    impl Orders for Silent {
        async fn orders_by_id(&self, _: &[OrderId]) -> Result<HashMap<OrderId, Order>, StoreError> {
            pending().await
        }

        async fn orders_by_key(
            &self,
            _: &[IdempotencyKey],
        ) -> Result<HashMap<IdempotencyKey, Order>, StoreError> {
            pending().await
        }

        async fn orders(&self, _: OrderPage) -> Result<Page<Order, OrderId>, StoreError> {
            pending().await
        }

        async fn give_up(&self, _: OrderId) -> Result<GivenUp, StoreError> {
            pending().await
        }

        async fn due(&self, _: Option<Due>, _: u32) -> Result<Page<Order, Due>, StoreError> {
            pending().await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_of_a_silent_database_ends_at_the_limit_and_may_be_tried_again() {
        let began = Instant::now();
        let store = TimeLimited::new(Arc::new(Silent), Duration::from_millis(250));
        let error = store.due(None, 1).await.unwrap_err();
        assert!(error.is_transient() && error.to_string().contains("250ms"), "{error}");
        assert!(store.order(Uuid::nil().into()).await.is_err());
        assert_eq!(began.elapsed(), Duration::from_millis(500));
    }
}
