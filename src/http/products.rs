//! Products and their inventories.

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};

use super::{
    api::Api,
    body::{Field, Fields, JsonBody, PartsAndBody},
    envelope::{ApiError, Reason, page, success},
    query::{ListQuery, ProductPath},
};
use crate::domain::{
    ids::ProductId,
    inventory::{Inventory, Stock},
    product::{Product, ProductName},
    sku::Sku,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProductRequest {
    name: ProductName,
    sku: Option<Sku>,
}

impl Fields for ProductRequest {
    const FIELDS: &'static [Field] = &[("name", Reason::InvalidName, ProductName::EXPECTED)];
    const OPTIONAL: &'static [Field] = &[("sku", Reason::InvalidSku, Sku::EXPECTED)];
}

/// `POST /api/products`
pub(super) async fn create(
    State(api): State<Api>,
    JsonBody(ProductRequest { name, sku }): JsonBody<ProductRequest>,
) -> Result<Response, ApiError> {
    let product = api.catalog.create(name, sku).await?;
    let location = [(header::LOCATION, format!("/api/products/{}", product.id))];
    Ok((location, success(StatusCode::CREATED, product)).into_response())
}

/// `GET /api/products`
pub(super) async fn list(State(api): State<Api>, query: ListQuery) -> Result<Response, ApiError> {
    let query = query.only(&["limit", "after", "sku"])?;
    let after = query.get("after", Reason::InvalidAfter, ProductId::EXPECTED, |text| text.parse().ok())?;
    let limit = query.limit()?;
    let sku = query.get("sku", Reason::InvalidSku, Sku::EXPECTED, |text| text.to_owned().try_into().ok())?;
    let found = match sku {
        Some(sku) => api.catalog.products_with_sku(sku, after).await?,
        None => api.catalog.products(after, limit).await?,
    };
    Ok(page(found.rows, found.next, |after| query.next("/api/products", after)))
}

/// `GET /api/products/{productId}`
pub(super) async fn show(State(api): State<Api>, ProductPath(id): ProductPath) -> Result<Response, ApiError> {
    let product = api.catalog.product(id).await?.ok_or_else(|| ApiError::product_not_found(id))?;
    Ok(success(StatusCode::OK, product))
}

#[derive(Serialize)]
struct InventoryView {
    product_id: ProductId,
    product_name: ProductName,
    stored_stock: u32,
    available_stock: u32,
    reserved_stock: u32,
}

impl From<(Product, Inventory)> for InventoryView {
    fn from((product, inventory): (Product, Inventory)) -> Self {
        Self {
            product_id: product.id,
            product_name: product.name,
            stored_stock: inventory.stored(),
            available_stock: inventory.available(),
            reserved_stock: inventory.reserved(),
        }
    }
}

/// `GET /api/products/{productId}/inventory`
pub(super) async fn inventory(
    State(api): State<Api>,
    ProductPath(id): ProductPath,
) -> Result<Response, ApiError> {
    let found = api.catalog.inventory(id).await?.ok_or_else(|| ApiError::product_not_found(id))?;
    Ok(success(StatusCode::OK, InventoryView::from(found)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct InventoryRequest {
    stock: Stock,
    expected_stock: Option<Stock>,
}

impl Fields for InventoryRequest {
    const FIELDS: &'static [Field] = &[("stock", Reason::InvalidStock, Stock::EXPECTED)];
    const OPTIONAL: &'static [Field] = &[("expected_stock", Reason::InvalidStock, Stock::EXPECTED)];
}

/// `PUT /api/products/{productId}/inventory`
pub(super) async fn recount(
    State(api): State<Api>,
    PartsAndBody(ProductPath(id), JsonBody(count)): PartsAndBody<ProductPath, JsonBody<InventoryRequest>>,
) -> Result<Response, ApiError> {
    let counted = api.catalog.recount(id, count.stock, count.expected_stock).await?;
    Ok(success(StatusCode::OK, InventoryView::from(counted)))
}
