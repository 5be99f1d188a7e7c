//! Orders.

use std::time::Duration;

use axum::{
    extract::State,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer};

use super::{
    Api,
    body::{Fields, HeadAndBody, JsonBody, NoBody},
    envelope::{ApiError, Reason, page, success},
    preferences::{GivenKey, Preferences},
    query::{ListQuery, OrderPath},
};
use crate::{
    domain::{
        ids::{IdempotencyKey, OrderId, ProductId},
        order::{Change, Order, OrderStatus, Quantity},
        rejection::Rejection,
    },
    service::ordering::{Changed, Placed},
    store::{OrderPage, Page},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OrderRequest {
    product_id: ProductId,
    total: Quantity,
}

impl Fields for OrderRequest {
    const FIELDS: &'static [(&'static str, Reason, &'static str)] = &[
        ("product_id", Reason::InvalidProductId, ProductId::EXPECTED),
        ("total", Reason::InvalidTotal, Quantity::EXPECTED),
    ];
}

/// `POST /api/orders`
pub(super) async fn place(
    State(api): State<Api>,
    preferences: Preferences,
    HeadAndBody(GivenKey(key), JsonBody(order)): HeadAndBody<GivenKey, JsonBody<OrderRequest>>,
) -> Response {
    let wait = preferences.wait();
    let answer = placed(&api, order, key, wait).await;
    preferences.applied(api.ordering.waiting_time(wait), answer)
}

async fn placed(
    api: &Api,
    OrderRequest { product_id, total }: OrderRequest,
    key: Option<IdempotencyKey>,
    wait: Option<Duration>,
) -> Result<Response, ApiError> {
    match api.ordering.place(product_id, total, key, wait).await? {
        Placed::Accepted { order, replayed } => {
            let answer = (location(order.id), success(StatusCode::CREATED, OrderView::from(order)));
            Ok(mark(replayed, answer.into_response()))
        }
        Placed::Pending(id) => {
            Ok((location(id), success(StatusCode::ACCEPTED, OrderView::pending(id))).into_response())
        }
        Placed::Rejected { rejection, replayed } => {
            Ok(mark(replayed, ApiError::rejected(rejection, product_id).into_response()))
        }
        Placed::NotReserved(order) => Ok(mark(true, not_reserved(order.status()).into_response())),
        Placed::Refused(refusal) => Err(refusal.into()),
        Placed::Undecidable => Err(undecidable()),
    }
}

const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

fn undecidable() -> ApiError {
    ApiError::internal("it cannot be decided: the worker's log says which row of the database is wrong")
}

/// Says of an answer whether it is a stored one, to a repeated `Idempotency-Key`.
fn mark(replayed: bool, mut answer: Response) -> Response {
    if replayed {
        answer.headers_mut().insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
    }
    answer
}

/// The order of a repeated key holds no pieces any more: 201 would promise them.
fn not_reserved(status: OrderStatus) -> ApiError {
    let message = format!(
        "the order of this Idempotency-Key is {}: it holds no pieces any more, and nothing was reserved now; place a new \
         order with a new key",
        status.as_str()
    );
    ApiError::conflict(Reason::OrderNotReserved, status.as_str(), message)
}

fn location(id: OrderId) -> [(HeaderName, String); 1] {
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
    preferences.applied(api.ordering.waiting_time(wait), answer)
}

async fn changed(
    api: &Api,
    id: OrderId,
    change: Change,
    wait: Option<Duration>,
) -> Result<Response, ApiError> {
    // Asked before the database: what is decided in between is found there.
    let may_be_pending = api.ordering.may_be_pending(id);
    let Some(order) = api.loader.find(id).await? else {
        return Err(if may_be_pending { still_pending() } else { ApiError::order_not_found(id) });
    };
    match api.ordering.change(order, change, wait).await {
        Changed::Now(order) if order.status() == change.leads_to() => {
            Ok(success(StatusCode::OK, OrderView::from(order)))
        }
        Changed::Now(order) => Err(too_late(order.status())),
        Changed::Pending => {
            Ok((location(id), success(StatusCode::ACCEPTED, OrderView::from(order))).into_response())
        }
        Changed::Refused(refusal) => Err(refusal.into()),
        Changed::NotFound => Err(ApiError::order_not_found(id)),
        Changed::Undecidable => Err(undecidable()),
    }
}

fn still_pending() -> ApiError {
    let message = "the order is not decided yet, so nothing is reserved; try again once it is";
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
    let may_be_pending = api.ordering.may_be_pending(id);
    match api.loader.find(id).await? {
        Some(order) => Ok(success(StatusCode::OK, OrderView::from(order))),
        None if may_be_pending => Ok(success(StatusCode::OK, OrderView::pending(id))),
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
    let read = |status| api.store.orders(OrderPage { product_id, status, after, limit });
    let found = match status {
        Some(Status::Pending) => Page::empty(), // what is in line is not on record
        Some(Status::StoredOrders(status)) => read(Some(status)).await?,
        None => read(None).await?,
    };
    let views = found.rows.into_iter().map(OrderView::from).collect();
    Ok(page(views, found.next, |after| query.next("/api/orders", after)))
}

/// A status as clients name it.
enum Status {
    Pending,
    StoredOrders(OrderStatus),
}

impl Status {
    const PENDING: &str = "pending";

    fn from_word(word: &str) -> Option<Self> {
        if word == Self::PENDING {
            Some(Self::Pending)
        } else {
            OrderStatus::from_word(word).map(Self::StoredOrders)
        }
    }
}

/// An order as clients see it: one shape, whatever its status. What is not known of a pending order is absent.
#[derive(Serialize)]
struct OrderView {
    id: OrderId,
    status: &'static str,
    #[serde(flatten)]
    known: Option<Known>,
}

/// What is known of an order once it is decided.
#[derive(Serialize)]
struct Known {
    product_id: ProductId,
    total: Quantity,
    created_at: Time,
    expires_at: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    available_stock: Option<u32>,
}

impl OrderView {
    fn pending(id: OrderId) -> Self {
        Self { id, status: Status::PENDING, known: None }
    }
}

impl From<Order> for OrderView {
    fn from(order: Order) -> Self {
        let known = Known {
            product_id: order.product_id,
            total: order.total,
            created_at: Time(order.id.created_at()),
            expires_at: order.expires_at().map(Time),
            reason: order.rejection().map(Rejection::reason),
            available_stock: order.rejection().and_then(Rejection::available),
        };
        Self { id: order.id, status: order.status().as_str(), known: Some(known) }
    }
}

/// A time as clients see it: RFC 3339 in UTC with three digits of fraction, always, so that times sort as text.
struct Time(Timestamp);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:.3}", self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_always_has_three_digits_of_fraction() {
        for (millis, text) in [
            (1_769_850_000_000, "2026-01-31T09:00:00.000Z"),
            (1_769_850_000_100, "2026-01-31T09:00:00.100Z"),
            (1_769_850_000_120, "2026-01-31T09:00:00.120Z"),
            (1_769_850_000_123, "2026-01-31T09:00:00.123Z"),
            (0, "1970-01-01T00:00:00.000Z"),
        ] {
            let time = Time(Timestamp::from_millisecond(millis).unwrap());
            assert_eq!(serde_json::to_value(time).unwrap(), text);
        }
    }
}
