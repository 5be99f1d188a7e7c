//! Products and their stock.

use std::sync::Arc;

use crate::{
    domain::{
        ids::ProductId,
        inventory::{Inventory, Stock, StockBelowReserved},
        product::{NewProduct, Product, ProductChange, ProductName},
        sku::Sku,
    },
    service::{dispatcher::Dispatcher, sold_out::SoldOutCache},
    store::{Archival, Catalog, Creation, Page, Recount, StoreError, Update},
    telemetry::LogLimiter,
};

/// Why the product was not created.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    #[error("product {0} has this SKU")]
    SkuTaken(ProductId),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why the product was not changed.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    #[error("there is no product {0}")]
    ProductNotFound(ProductId),
    #[error("product {0} has this SKU")]
    SkuTaken(ProductId),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why the product was not archived.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("there is no product {0}")]
    ProductNotFound(ProductId),
    #[error("{0} pieces are reserved")]
    HasReservations(u32),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why the stock was not set. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum RecountError {
    #[error("there is no product {0}")]
    ProductNotFound(ProductId),
    #[error("product {0} is archived")]
    Archived(ProductId),
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
    pub async fn create(&self, name: ProductName, sku: Option<Sku>) -> Result<Product, CreateError> {
        let product = match self.store.create(NewProduct { name, sku, stock: Stock::ZERO }).await? {
            Creation::Done(product) => product,
            Creation::SkuTaken(by) => return Err(CreateError::SkuTaken(by)),
        };
        if let Err(error) = self.dispatcher.open_lane(product.id).await
            && let Some(suppressed) = self.lanes_not_opened.due()
        {
            tracing::warn!(product_id = product.id.get(), %error, suppressed, "the lane will be opened by its first order");
        }
        Ok(product)
    }

    /// Changes the name or the SKU of a product, archived or not.
    pub async fn update(&self, id: ProductId, change: ProductChange) -> Result<Product, UpdateError> {
        match self.store.update(id, change).await? {
            Update::Done(product) => Ok(product),
            Update::NoSuchProduct => Err(UpdateError::ProductNotFound(id)),
            Update::SkuTaken(by) => Err(UpdateError::SkuTaken(by)),
        }
    }

    /// Archives a product of which nothing is reserved: nobody orders it any more.
    pub async fn archive(&self, id: ProductId) -> Result<Product, ArchiveError> {
        match self.store.archive(id).await? {
            Archival::Done(product) => {
                self.dispatcher.products().archived(id);
                Ok(product)
            }
            Archival::NoSuchProduct => Err(ArchiveError::ProductNotFound(id)),
            Archival::HasReservations(pieces) => Err(ArchiveError::HasReservations(pieces)),
        }
    }

    /// Up to `limit` products that are archived, or that are not, in id order, beginning behind `after`.
    pub async fn products(
        &self,
        archived: bool,
        after: Option<ProductId>,
        limit: u32,
    ) -> Result<Page<Product, ProductId>, StoreError> {
        self.store.products(archived, after, limit).await
    }

    /// The product with this SKU, if there is such a one behind `after`, as the only page of a list.
    pub async fn products_with_sku(
        &self,
        sku: Sku,
        archived: bool,
        after: Option<ProductId>,
    ) -> Result<Page<Product, ProductId>, StoreError> {
        let mut rows = self.store.products_by_sku(&[sku]).await?;
        rows.retain(|product| product.archived_at.is_some() == archived);
        rows.retain(|product| after.is_none_or(|after| product.id > after));
        Ok(Page { rows, next: None })
    }

    pub async fn inventory(&self, id: ProductId) -> Result<Option<(Product, Inventory)>, StoreError> {
        self.store.inventory(id).await
    }

    /// Sets the stored stock to what the seller counted. Returns when every API takes orders of the pieces.
    pub async fn recount(&self, id: ProductId, stock: Stock) -> Result<(Product, Inventory), RecountError> {
        match self.store.recount(id, stock).await? {
            Recount::Done(product, inventory) => {
                self.dispatcher.activity().recount(id, inventory);
                SoldOutCache::outlast_leases().await;
                Ok((product, inventory))
            }
            Recount::NoSuchProduct => Err(RecountError::ProductNotFound(id)),
            Recount::Archived => Err(RecountError::Archived(id)),
            Recount::BelowReserved(below) => Err(RecountError::BelowReserved(below)),
        }
    }
}
