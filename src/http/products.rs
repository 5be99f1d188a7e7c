//! Products and their inventories.

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Deserializer, Serialize};

use super::{
    api::Api,
    body::{Field, Fields, JsonBody, NoBody, PartsAndBody},
    envelope::{ApiError, Reason, page, success},
    query::{ListQuery, ProductPath},
    terms::TermsView,
    time::Time,
};
use crate::domain::{
    ids::ProductId,
    inventory::{Inventory, Stock},
    product::{Product, ProductChange, ProductName},
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

/// A product as clients see it.
#[derive(Serialize)]
struct ProductView {
    id: ProductId,
    name: ProductName,
    #[serde(skip_serializing_if = "Option::is_none")]
    sku: Option<Sku>,
    #[serde(skip_serializing_if = "Option::is_none")]
    archived_at: Option<Time>,
}

impl From<Product> for ProductView {
    fn from(Product { id, name, sku, archived_at }: Product) -> Self {
        Self { id, name, sku, archived_at: archived_at.map(Time) }
    }
}

/// The pieces of a product.
#[derive(Serialize)]
struct StockView {
    stored_stock: u32,
    available_stock: u32,
    reserved_stock: u32,
}

impl From<Inventory> for StockView {
    fn from(inventory: Inventory) -> Self {
        Self {
            stored_stock: inventory.stored(),
            available_stock: inventory.available(),
            reserved_stock: inventory.reserved(),
        }
    }
}

/// All of a product, as of one moment.
#[derive(Serialize)]
struct ProductDetails {
    #[serde(flatten)]
    product: ProductView,
    inventory: StockView,
    terms: TermsView,
}

/// `POST /api/products`
pub(super) async fn create(
    State(api): State<Api>,
    JsonBody(ProductRequest { name, sku }): JsonBody<ProductRequest>,
) -> Result<Response, ApiError> {
    let product = api.catalog.create(name, sku).await?;
    let location = [(header::LOCATION, format!("/api/products/{}", product.id))];
    Ok((location, success(StatusCode::CREATED, ProductView::from(product))).into_response())
}

/// `GET /api/products`
pub(super) async fn list(State(api): State<Api>, query: ListQuery) -> Result<Response, ApiError> {
    let query = query.only(&["limit", "after", "sku", "archived"])?;
    let after = query.get("after", Reason::InvalidAfter, ProductId::EXPECTED, |text| text.parse().ok())?;
    let limit = query.limit()?;
    let sku = query.get("sku", Reason::InvalidSku, Sku::EXPECTED, |text| text.to_owned().try_into().ok())?;
    let archived = query.get("archived", Reason::InvalidQuery, "true or false", |text| text.parse().ok())?;
    let archived = archived.unwrap_or(false);
    let found = match sku {
        Some(sku) => api.catalog.products_with_sku(sku, archived, after).await?,
        None => api.catalog.products(archived, after, limit).await?,
    };
    let rows: Vec<_> = found.rows.into_iter().map(ProductView::from).collect();
    Ok(page(rows, found.next, |after| query.next("/api/products", after)))
}

/// `GET /api/products/{productId}`
pub(super) async fn show(State(api): State<Api>, ProductPath(id): ProductPath) -> Result<Response, ApiError> {
    let found = api.catalog.details(id).await?.ok_or_else(|| ApiError::product_not_found(id))?;
    let (product, inventory, terms) = found;
    let (product, inventory, terms) = (product.into(), inventory.into(), terms.into());
    Ok(success(StatusCode::OK, ProductDetails { product, inventory, terms }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProductChangeRequest {
    #[serde(default, deserialize_with = "given")]
    name: Option<ProductName>,
    #[serde(default, deserialize_with = "given")]
    sku: Option<Option<Sku>>,
}

/// A field that is there, with the value null too.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

impl Fields for ProductChangeRequest {
    const FIELDS: &'static [Field] = &[];
    const OPTIONAL: &'static [Field] = &[
        ("name", Reason::InvalidName, ProductName::EXPECTED),
        ("sku", Reason::InvalidSku, "null, or a text of 1 to 64 visible ASCII characters, without blanks"),
    ];
}

/// `PATCH /api/products/{productId}`
pub(super) async fn update(
    State(api): State<Api>,
    PartsAndBody(ProductPath(id), JsonBody(ProductChangeRequest { name, sku })): PartsAndBody<
        ProductPath,
        JsonBody<ProductChangeRequest>,
    >,
) -> Result<Response, ApiError> {
    let change = ProductChange { name, sku };
    if change.is_empty() {
        let message = "the body says nothing to change; the fields are: name, sku";
        return Err(ApiError::new(Reason::InvalidBody, message));
    }
    Ok(success(StatusCode::OK, ProductView::from(api.catalog.update(id, change).await?)))
}

/// `DELETE /api/products/{productId}`
pub(super) async fn archive(
    State(api): State<Api>,
    PartsAndBody(ProductPath(id), NoBody): PartsAndBody<ProductPath, NoBody>,
) -> Result<Response, ApiError> {
    Ok(success(StatusCode::OK, ProductView::from(api.catalog.archive(id).await?)))
}

#[derive(Serialize)]
struct InventoryView {
    product_id: ProductId,
    product_name: ProductName,
    #[serde(flatten)]
    stock: StockView,
}

impl From<(Product, Inventory)> for InventoryView {
    fn from((product, inventory): (Product, Inventory)) -> Self {
        Self { product_id: product.id, product_name: product.name, stock: inventory.into() }
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
