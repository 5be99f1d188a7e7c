//! Orders.

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    Api,
    body::{Fields, JsonBody},
    envelope::{ApiError, Reason, success},
    query::{ListQuery, OrderPath},
};
use crate::{
    order::{Order, OrderId, OrderState, OrderStatus, Quantity, Rejection},
    placement::Placed,
    product::ProductId,
    store::OrderPage,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PlaceOrder {
    product_id: ProductId,
    total: Quantity,
}

impl Fields for PlaceOrder {
    const FIELDS: &'static [(&'static str, Reason, &'static str)] = &[
        ("product_id", Reason::InvalidProductId, ProductId::EXPECTED),
        ("total", Reason::InvalidTotal, Quantity::EXPECTED),
    ];
}

/// `POST /api/orders`
pub(super) async fn place(
    State(api): State<Api>,
    JsonBody(PlaceOrder { product_id, total }): JsonBody<PlaceOrder>,
) -> Result<Response, ApiError> {
    match api.placement.place(product_id, total).await? {
        Placed::Reserved(order) => {
            Ok((location(order.id), success(StatusCode::CREATED, OrderView::from(order))).into_response())
        }
        Placed::Pending(id) => {
            Ok((location(id), success(StatusCode::ACCEPTED, PendingView::from(id))).into_response())
        }
        Placed::Rejected(rejection) => Err(ApiError::rejected(rejection, product_id)),
        Placed::Refused(refusal) => Err(refusal.into()),
    }
}

fn location(id: OrderId) -> [(header::HeaderName, String); 1] {
    [(header::LOCATION, format!("/api/orders/{id}"))]
}

/// `GET /api/orders/{orderId}`
pub(super) async fn show(State(api): State<Api>, OrderPath(id): OrderPath) -> Result<Response, ApiError> {
    // Asked before the database: what is decided in between is found there.
    let may_be_pending = api.placement.may_be_pending(id);
    match api.store.order(id).await? {
        Some(order) => Ok(success(StatusCode::OK, OrderView::from(order))),
        None if may_be_pending => Ok(success(StatusCode::OK, PendingView::from(id))),
        None => Err(ApiError::new(Reason::OrderNotFound, format!("there is no order {id}"))),
    }
}

/// `GET /api/orders`
pub(super) async fn list(State(api): State<Api>, query: ListQuery) -> Result<Response, ApiError> {
    let query = query.only(&["product_id", "status", "limit", "after"])?;
    let product_id =
        query.get("product_id", Reason::InvalidProductId, ProductId::EXPECTED, |text| text.parse().ok())?;
    let status = query.get(
        "status",
        Reason::InvalidStatus,
        "one of pending, reserved, paid, cancelled, expired, rejected",
        Status::from_word,
    )?;
    let after = query.get("after", Reason::InvalidAfter, "the id of an order", |text| text.parse().ok())?;
    let limit = query.limit()?;
    let mut orders = match status {
        Some(Status::Pending) => Vec::new(), // what is in line is not on record
        Some(Status::OnRecord(status)) => {
            api.store.orders(OrderPage { product_id, status: Some(status), after, limit: limit + 1 }).await?
        }
        None => api.store.orders(OrderPage { product_id, status: None, after, limit: limit + 1 }).await?,
    };
    let more = orders.len() > limit as usize;
    orders.truncate(limit as usize);
    let next = orders.last().filter(|_| more).map(|last| query.next("/api/orders", last.id));
    let views: Vec<_> = orders.into_iter().map(OrderView::from).collect();
    Ok((next.map(|next| [(header::LINK, next)]), success(StatusCode::OK, views)).into_response())
}

/// A status as clients name it.
enum Status {
    Pending,
    OnRecord(OrderStatus),
}

impl Status {
    const PENDING: &str = "pending";

    fn from_word(word: &str) -> Option<Self> {
        if word == Self::PENDING {
            Some(Self::Pending)
        } else {
            OrderStatus::from_word(word).map(Self::OnRecord)
        }
    }
}

#[derive(Serialize)]
struct PendingView {
    id: OrderId,
    status: &'static str,
}

impl From<OrderId> for PendingView {
    fn from(id: OrderId) -> Self {
        Self { id, status: Status::PENDING }
    }
}

#[derive(Serialize)]
struct OrderView {
    id: OrderId,
    product_id: ProductId,
    total: Quantity,
    status: &'static str,
    created_at: Timestamp,
    expires_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    available_stock: Option<u32>,
}

impl From<Order> for OrderView {
    fn from(order: Order) -> Self {
        let (expires_at, available_stock) = match order.state {
            OrderState::Accepted { expires_at, .. } => (Some(expires_at), None),
            OrderState::Rejected { available } => (None, Some(available)),
        };
        Self {
            id: order.id,
            product_id: order.product_id,
            total: order.total,
            status: order.status().as_str(),
            created_at: order.id.created_at(),
            expires_at,
            reason: available_stock.map(|available| Rejection::InsufficientStock { available }.reason()),
            available_stock,
        }
    }
}
