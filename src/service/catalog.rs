//! Products and their stock.

use std::sync::Arc;

use crate::{
    domain::{
        ids::ProductId,
        inventory::{Inventory, Stock, StockBelowReserved},
        product::{Product, ProductName},
    },
    service::{dispatcher::Dispatcher, sold_out::SoldOutCache},
    store::{Catalog, Page, Recount, StoreError},
    telemetry::LogLimiter,
};

/// Why the stock was not set. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum RecountError {
    #[error("there is no product {0}")]
    ProductNotFound(ProductId),
    #[error("{} pieces are reserved", .0.reserved)]
    BelowReserved(StockBelowReserved),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What the seller does with products, and what anybody reads of them.
pub struct CatalogService {
    store: Arc<dyn Catalog>,
    dispatcher: Arc<Dispatcher>,
    lanes_not_opened: LogLimiter,
}

impl CatalogService {
    pub fn new(store: Arc<dyn Catalog>, dispatcher: Arc<Dispatcher>) -> Self {
        Self { store, dispatcher, lanes_not_opened: LogLimiter::default() }
    }

    /// Creates a product without stock, and opens its lane: long before its first order, which then finds a worker there. If
    /// the lane cannot be opened, the first order opens it, and workers look for new products every few seconds.
    pub async fn create(&self, name: ProductName) -> Result<Product, StoreError> {
        let product = self.store.create_product(name).await?;
        if let Err(error) = self.dispatcher.open_lane(product.id).await
            && let Some(suppressed) = self.lanes_not_opened.due()
        {
            tracing::warn!(product_id = product.id.get(), %error, suppressed, "the lane will be opened by its first order");
        }
        Ok(product)
    }

    /// Up to `limit` products in id order, beginning behind `after`.
    pub async fn products(
        &self,
        after: Option<ProductId>,
        limit: u32,
    ) -> Result<Page<Product, ProductId>, StoreError> {
        self.store.products(after, limit).await
    }

    pub async fn product(&self, id: ProductId) -> Result<Option<Product>, StoreError> {
        self.store.product(id).await
    }

    pub async fn inventory(&self, id: ProductId) -> Result<Option<(Product, Inventory)>, StoreError> {
        self.store.inventory(id).await
    }

    /// Sets the stored stock to what the seller counted. Returns when every API takes orders of the pieces.
    pub async fn recount(&self, id: ProductId, stock: Stock) -> Result<(Product, Inventory), RecountError> {
        match self.store.recount(id, stock).await? {
            Recount::Done(product, inventory) => {
                SoldOutCache::outlast_leases().await;
                Ok((product, inventory))
            }
            Recount::NoSuchProduct => Err(RecountError::ProductNotFound(id)),
            Recount::BelowReserved(below) => Err(RecountError::BelowReserved(below)),
        }
    }
}
