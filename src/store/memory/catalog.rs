//! Products in memory.

use std::{
    collections::HashMap,
    ops::Bound::{Excluded, Unbounded},
    time::Duration,
};

use async_trait::async_trait;

use super::{MemoryStore, one_more_than};
use crate::domain::{
    holdings::{self},
    ids::ProductId,
    inventory::Inventory,
    movement::Movement,
    product::{NewProduct, Product, ProductChange, ProductState},
    rejection::Rejection,
    sku::Sku,
    terms::Terms,
    time::from_millis,
};
use crate::store::{
    error::StoreError,
    page::Page,
    ports::{Archival, Catalog, Creation, ProductLane, Update},
    terms,
};

#[async_trait]
impl Catalog for MemoryStore {
    async fn create(&self, NewProduct { name, sku, stock }: NewProduct) -> Result<Creation, StoreError> {
        let mut data = self.data()?;
        if let Some(taken) = data.product_of_sku(sku.as_ref()) {
            return Ok(Creation::SkuTaken(taken.id));
        }
        let last = data.products.last_key_value().map_or(0, |(id, _)| id.get());
        let id = ProductId::new(last + 1);
        let id = id.ok_or_else(|| StoreError::Refused("there is no id left for a product".to_owned()))?;
        let (product, inventory) = (Product { id, name, sku, archived_at: None }, Inventory::of(stock));
        if let Some(opening) = Movement::opening(id, self.now(), inventory) {
            data.record(opening)?;
        }
        data.products.insert(id, (product.clone(), inventory));
        Ok(Creation::Done(product))
    }

    async fn product(&self, id: ProductId) -> Result<Option<Product>, StoreError> {
        Ok(self.data()?.products.get(&id).map(|(product, _)| product.clone()))
    }

    async fn update(&self, id: ProductId, change: ProductChange) -> Result<Update, StoreError> {
        let ProductChange { name, sku } = change;
        let mut data = self.data()?;
        let wanted = sku.as_ref().and_then(Option::as_ref);
        let taken = data.product_of_sku(wanted).map(|product| product.id).filter(|by| *by != id);
        let Some((product, _)) = data.products.get_mut(&id) else { return Ok(Update::NoSuchProduct) };
        if let Some(by) = taken {
            return Ok(Update::SkuTaken(by));
        }
        product.name = name.unwrap_or_else(|| product.name.clone());
        product.sku = sku.unwrap_or_else(|| product.sku.clone());
        Ok(Update::Done(product.clone()))
    }

    async fn archive(&self, id: ProductId) -> Result<Archival, StoreError> {
        let mut data = self.data()?;
        let Some((product, inventory)) = data.products.get_mut(&id) else {
            return Ok(Archival::NoSuchProduct);
        };
        if product.archived_at.is_none() && inventory.reserved() > 0 {
            return Ok(Archival::HasReservations(inventory.reserved()));
        }
        product.archived_at.get_or_insert(from_millis(self.now().as_millisecond()));
        Ok(Archival::Done(product.clone()))
    }

    async fn products(
        &self,
        archived: bool,
        after: Option<ProductId>,
        limit: u32,
    ) -> Result<Page<Product, ProductId>, StoreError> {
        let data = self.data()?;
        let behind = data.products.range((after.map_or(Unbounded, Excluded), Unbounded));
        let rows = behind.map(|(_, (product, _))| product);
        let rows = rows.filter(|product| product.archived_at.is_some() == archived);
        let rows = rows.take(one_more_than(limit)).cloned().collect();
        Ok(Page::cut(rows, limit, None, |product| product.id))
    }

    async fn products_by_sku(&self, skus: &[Sku]) -> Result<Vec<Product>, StoreError> {
        let data = self.data()?;
        Ok(skus.iter().filter_map(|sku| data.product_of_sku(Some(sku))).cloned().collect())
    }

    async fn product_ids(&self) -> Result<Vec<ProductId>, StoreError> {
        Ok(self.data()?.products.keys().copied().collect())
    }

    async fn product_lanes(&self) -> Result<Vec<ProductLane>, StoreError> {
        let now = self.now();
        let lane = |(product, _): &(Product, Inventory)| {
            let archived_for = product.archived_at.map(|at| now.duration_since(at).unsigned_abs());
            ProductLane { product_id: product.id, archived_for }
        };
        Ok(self.data()?.products.values().map(lane).collect())
    }

    async fn states(&self, ids: &[ProductId]) -> Result<HashMap<ProductId, ProductState>, StoreError> {
        let data = self.data()?;
        let state = |id: &ProductId| {
            let (product, _) = data.products.get(id)?;
            let state = product.archived_at.map_or(ProductState::Live, |_| ProductState::Archived);
            Some((*id, state))
        };
        Ok(ids.iter().filter_map(state).collect())
    }

    async fn closed_to_orders(
        &self,
        ids: &[ProductId],
        opening_margin: Duration,
    ) -> Result<Vec<(ProductId, Rejection)>, StoreError> {
        let (now, data) = (self.now(), self.data()?);
        let closed = |id: &ProductId| {
            let (_, inventory) =
                data.products.get(id).filter(|(product, _)| product.archived_at.is_none())?;
            let terms = data.terms.get(id).copied().unwrap_or_default();
            let rejection = terms::closed(*id, inventory.available().into(), &terms, now, opening_margin)?;
            Some((*id, rejection))
        };
        Ok(ids.iter().filter_map(closed).collect())
    }

    async fn inventory(&self, id: ProductId) -> Result<Option<(Product, Inventory)>, StoreError> {
        Ok(self.data()?.products.get(&id).cloned())
    }

    async fn details(&self, id: ProductId) -> Result<Option<(Product, Inventory, Terms)>, StoreError> {
        let data = self.data()?;
        let terms = data.terms.get(&id).copied().unwrap_or_default();
        Ok(data.products.get(&id).cloned().map(|(product, inventory)| (product, inventory, terms)))
    }

    async fn inventories(
        &self,
        after: Option<ProductId>,
        limit: u32,
    ) -> Result<Page<(Product, Option<Inventory>), ProductId>, StoreError> {
        let data = self.data()?;
        let behind = data.products.range((after.map_or(Unbounded, Excluded), Unbounded));
        let rows = behind.filter(|(_, (product, _))| product.archived_at.is_none());
        let rows = rows.map(|(_, (product, inventory))| (product.clone(), Some(*inventory)));
        let rows = rows.take(one_more_than(limit)).collect();
        Ok(Page::cut(rows, limit, None, |(product, _)| product.id))
    }

    async fn terms(&self, id: ProductId) -> Result<Option<Terms>, StoreError> {
        let data = self.data()?;
        Ok(data.products.get(&id).map(|_| data.terms.get(&id).copied().unwrap_or_default()))
    }

    async fn set_terms(&self, id: ProductId, terms: Terms) -> Result<bool, StoreError> {
        let mut data = self.data()?;
        if !data.products.contains_key(&id) {
            return Ok(false);
        }
        let before = data.terms.remove(&id);
        data.terms.extend((!terms.is_default()).then_some((id, terms)));
        if before.and_then(|terms| terms.max_per_buyer).is_some() != terms.max_per_buyer.is_some() {
            data.holdings.retain(|(product_id, _), _| *product_id != id);
            let limited = |product_id| product_id == id && terms.max_per_buyer.is_some();
            let counted = holdings::held_by(data.orders.values(), limited);
            data.holdings.extend(counted);
        }
        Ok(true)
    }
}
