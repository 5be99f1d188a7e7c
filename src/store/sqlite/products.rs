//! Changes a product.

use super::SqliteStore;
use crate::{
    domain::{ids::ProductId, product::ProductChange},
    store::{
        error::StoreError,
        ports::{Catalog, Update},
        rows::id_column,
        sqlx_error::is_duplicate,
        statements::{PRODUCT, product_found, update_product},
        transaction::Begin,
    },
};

impl SqliteStore {
    /// See [`Catalog::update`].
    pub(super) async fn update_product(
        &self,
        id: ProductId,
        change: ProductChange,
    ) -> Result<Update, StoreError> {
        let mut transaction = self.begin().await?;
        transaction.execute(sqlx::query("BEGIN IMMEDIATE")).await?;
        let sku = change.sku.clone().flatten();
        if let Some(mut update) = update_product(id, change)
            && let Err(error) = transaction.execute(update.build()).await
        {
            drop(transaction);
            let Some(sku) = sku.filter(|_| is_duplicate(&error)) else { return Err(error.into()) };
            let taken = self.products_by_sku(&[sku]).await?;
            return taken.first().map(|product| Update::SkuTaken(product.id)).ok_or_else(|| error.into());
        }
        let rows = transaction.fetch_all(sqlx::query_as(PRODUCT).bind(id_column(id))).await?;
        transaction.execute(sqlx::query("COMMIT")).await?;
        transaction.end();
        Ok(product_found(rows)?.map_or(Update::NoSuchProduct, Update::Done))
    }
}
