//! Products and their stock.

use std::sync::Arc;

use crate::{
    domain::{
        ids::ProductId,
        inventory::{InvalidAdjustment, Inventory, Stock, StockBelowReserved},
        movement::{Adjustment, LedgerEntry, MovementSeq},
        product::{NewProduct, Product, ProductChange, ProductName},
        sku::Sku,
        terms::Terms,
    },
    service::{dispatcher::Dispatcher, order_gate::OrderGate},
    store::{Adjusted, Archival, Catalog, Creation, Ledger, Page, Recount, StoreError, Update},
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
    #[error("{stored} pieces are stored, not as many as expected")]
    StockChanged { stored: u32 },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why the stock was not changed by a difference.
#[derive(Debug, thiserror::Error)]
pub enum AdjustError {
    #[error("there is no product {0}")]
    ProductNotFound(ProductId),
    #[error("product {0} is archived")]
    Archived(ProductId),
    #[error("the stock cannot change by so many pieces: {0:?}")]
    Invalid(InvalidAdjustment),
    #[error("the key belongs to another adjustment")]
    KeyReused,
    /// Whether the stock was changed is not known.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// An adjustment that is committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdjustmentDone {
    pub entry: LedgerEntry,
    /// It was committed before, under the same key, and nothing has changed now.
    pub is_replayed: bool,
}

/// What the seller does with products, and what anybody reads of them.
pub struct CatalogService {
    store: Arc<dyn Catalog>,
    ledger: Arc<dyn Ledger>,
    dispatcher: Arc<Dispatcher>,
    lanes_not_opened: LogLimiter,
}

impl CatalogService {
    pub fn new(store: Arc<dyn Catalog>, ledger: Arc<dyn Ledger>, dispatcher: Arc<Dispatcher>) -> Self {
        Self { store, ledger, dispatcher, lanes_not_opened: LogLimiter::default() }
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

    /// A product, its pieces and its terms of sale, as of one moment; `None`: there is no such product.
    pub async fn details(&self, id: ProductId) -> Result<Option<(Product, Inventory, Terms)>, StoreError> {
        self.store.details(id).await
    }

    /// Sets the stored stock to what the seller counted, if it is `expected` now. Returns when every API takes orders of the pieces.
    pub async fn recount(
        &self,
        id: ProductId,
        stock: Stock,
        expected: Option<Stock>,
    ) -> Result<(Product, Inventory), RecountError> {
        match self.ledger.recount_if(id, stock, expected).await? {
            Recount::Done(product, inventory) => {
                self.dispatcher.activity().recount(id, inventory);
                OrderGate::outlast_leases().await;
                Ok((product, inventory))
            }
            Recount::NoSuchProduct => Err(RecountError::ProductNotFound(id)),
            Recount::Archived => Err(RecountError::Archived(id)),
            Recount::BelowReserved(below) => Err(RecountError::BelowReserved(below)),
            Recount::StockChanged { stored } => Err(RecountError::StockChanged { stored }),
        }
    }

    /// The terms of sale; `None`: there is no such product.
    pub async fn terms(&self, id: ProductId) -> Result<Option<Terms>, StoreError> {
        self.store.terms(id).await
    }

    /// Sets all terms of sale, and returns whether there is such a product. Returns when every API takes the orders that they
    /// allow. What they forbid, no lane has reserved since the commit.
    pub async fn set_terms(&self, id: ProductId, terms: Terms) -> Result<bool, StoreError> {
        let is_product = self.store.set_terms(id, terms).await?;
        if is_product && terms.selling {
            OrderGate::outlast_leases().await;
        }
        Ok(is_product)
    }

    /// Changes the stored stock by a difference. Returns when every API takes orders of pieces that were added, also where another
    /// request with the same key added them: its API may have died in between.
    pub async fn adjust(
        &self,
        id: ProductId,
        adjustment: &Adjustment,
    ) -> Result<AdjustmentDone, AdjustError> {
        let (entry, is_replayed) = match self.ledger.adjust(id, adjustment).await? {
            Adjusted::Done(entry, inventory) => {
                self.dispatcher.activity().recount(id, inventory);
                (entry, false)
            }
            Adjusted::Before(entry) => (entry, true),
            Adjusted::KeyReused => return Err(AdjustError::KeyReused),
            Adjusted::NoSuchProduct => return Err(AdjustError::ProductNotFound(id)),
            Adjusted::Archived => return Err(AdjustError::Archived(id)),
            Adjusted::Invalid(invalid) => return Err(AdjustError::Invalid(invalid)),
        };
        if adjustment.change.adds_pieces() {
            OrderGate::outlast_leases().await;
        }
        Ok(AdjustmentDone { entry, is_replayed })
    }

    /// Up to `limit` movements of a product, the newest first, beginning behind `after`. `None`: there is no such product.
    pub async fn movements(
        &self,
        id: ProductId,
        after: Option<MovementSeq>,
        limit: u32,
    ) -> Result<Option<Page<LedgerEntry, MovementSeq>>, StoreError> {
        let page = self.ledger.movements(id, after, limit).await?;
        let exists = !page.rows.is_empty() || self.store.product(id).await?.is_some();
        Ok(exists.then_some(page))
    }
}
