//! Orders.

use std::time::Duration;

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    Api,
    body::{Fields, HeadAndBody, JsonBody, NoBody},
    envelope::{ApiError, Reason, success},
    preferences::{GivenKey, Preferences},
    query::{ListQuery, OrderPath},
};
use crate::{
    command::Change,
    order::{IdempotencyKey, Order, OrderId, OrderStatus, Quantity, Rejection},
    placement::{Changed, Placed},
    product::ProductId,
    store::{OrderPage, in_time},
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
    preferences: Preferences,
    HeadAndBody(GivenKey(key), JsonBody(order)): HeadAndBody<GivenKey, JsonBody<PlaceOrder>>,
) -> Response {
    let wait = preferences.wait();
    let answer = placed(&api, order, key, wait).await;
    preferences.applied(api.placement.waiting_time(wait), answer)
}

async fn placed(
    api: &Api,
    PlaceOrder { product_id, total }: PlaceOrder,
    key: Option<IdempotencyKey>,
    wait: Option<Duration>,
) -> Result<Response, ApiError> {
    match api.placement.place(product_id, total, key, wait).await? {
        Placed::Accepted(order) => {
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

/// `POST /api/orders/{orderId}/payment`
pub(super) async fn pay(
    State(api): State<Api>,
    preferences: Preferences,
    HeadAndBody(OrderPath(id), NoBody): HeadAndBody<OrderPath, NoBody>,
) -> Response {
    change(&api, id, Change::Pay, preferences).await
}

/// `POST /api/orders/{orderId}/cancellation`
pub(super) async fn cancel(
    State(api): State<Api>,
    preferences: Preferences,
    HeadAndBody(OrderPath(id), NoBody): HeadAndBody<OrderPath, NoBody>,
) -> Response {
    change(&api, id, Change::Cancel, preferences).await
}

async fn change(api: &Api, id: OrderId, change: Change, preferences: Preferences) -> Response {
    let wait = preferences.wait();
    let answer = changed(api, id, change, wait).await;
    preferences.applied(api.placement.waiting_time(wait), answer)
}

async fn changed(
    api: &Api,
    id: OrderId,
    change: Change,
    wait: Option<Duration>,
) -> Result<Response, ApiError> {
    // Asked before the database: what is decided in between is found there.
    let may_be_pending = api.placement.may_be_pending(id);
    let Some(order) = api.lookup.find(id).await? else {
        return Err(if may_be_pending { still_pending() } else { ApiError::order_not_found(id) });
    };
    match api.placement.change(order, change, wait).await {
        Changed::Now(order) if order.status() == change.leads_to() => {
            Ok(success(StatusCode::OK, OrderView::from(order)))
        }
        Changed::Now(order) => Err(too_late(order.status())),
        Changed::Pending => {
            Ok((location(id), success(StatusCode::ACCEPTED, OrderView::from(order))).into_response())
        }
        Changed::Refused(refusal) => Err(refusal.into()),
        Changed::NotFound => Err(ApiError::order_not_found(id)),
    }
}

fn still_pending() -> ApiError {
    let message = "the order is still in line, nothing is reserved yet; try again when it is";
    ApiError::conflict(Reason::OrderNotReserved, Status::PENDING, message)
}

/// Why a change is not possible: an order that is not reserved any more never changes again.
fn too_late(status: OrderStatus) -> ApiError {
    let (reason, message) = match status {
        OrderStatus::Paid => (Reason::OrderAlreadyPaid, "the order is paid already; nothing was changed"),
        OrderStatus::Cancelled => {
            (Reason::OrderNotReserved, "the order was cancelled; nothing was changed, place a new one")
        }
        OrderStatus::Expired => (
            Reason::OrderNotReserved,
            "the reservation has expired and its pieces are available to others; nothing was changed, place a new \
             order",
        ),
        OrderStatus::Rejected => {
            (Reason::OrderNotReserved, "the order was rejected: nothing was ever reserved; place a new one")
        }
        OrderStatus::Reserved => (Reason::OrderNotReserved, "the order did not change; try again"),
    };
    ApiError::conflict(reason, status.as_str(), message)
}

/// `GET /api/orders/{orderId}`
pub(super) async fn show(State(api): State<Api>, OrderPath(id): OrderPath) -> Result<Response, ApiError> {
    // Asked before the database: what is decided in between is found there.
    let may_be_pending = api.placement.may_be_pending(id);
    match api.lookup.find(id).await? {
        Some(order) => Ok(success(StatusCode::OK, OrderView::from(order))),
        None if may_be_pending => Ok(success(StatusCode::OK, PendingView::from(id))),
        None => Err(ApiError::order_not_found(id)),
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
    let page = |status| in_time(api.store.orders(OrderPage { product_id, status, after, limit: limit + 1 }));
    let mut orders = match status {
        Some(Status::Pending) => Vec::new(), // what is in line is not on record
        Some(Status::OnRecord(status)) => page(Some(status)).await?,
        None => page(None).await?,
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
        Self {
            id: order.id,
            product_id: order.product_id,
            total: order.total,
            status: order.status().as_str(),
            created_at: order.id.created_at(),
            expires_at: order.expires_at(),
            reason: order.rejection().map(Rejection::reason),
            available_stock: order.rejection().and_then(Rejection::available),
        }
    }
}
