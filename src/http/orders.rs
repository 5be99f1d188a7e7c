//! Orders.

use std::sync::LazyLock;

use axum::{
    extract::State,
    http::{HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer};

use super::{
    api::Api,
    body::{Field, Fields, JsonBody, NoBody, PartsAndBody},
    envelope::{ApiError, Reason, mark_replayed, page, success},
    origin::RequestOrigin,
    preferences::{IdempotencyKeyHeader, Preferences},
    query::{ListQuery, OrderPath},
};
use crate::{
    domain::{
        ids::{OrderId, ProductId},
        order::{Change, Order, OrderStatus, Quantity},
        origin::Origin,
        rejection::Rejection,
    },
    service::ordering::{Call, OrderChange, OrderLookup, Placement, StatusFilter},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OrderRequest {
    product_id: ProductId,
    total: Quantity,
}

impl Fields for OrderRequest {
    const FIELDS: &'static [Field] = &[
        ("product_id", Reason::InvalidProductId, ProductId::EXPECTED),
        ("total", Reason::InvalidTotal, Quantity::EXPECTED),
    ];
}

/// `POST /api/orders`
pub(super) async fn place(
    State(api): State<Api>,
    preferences: Preferences,
    RequestOrigin(origin): RequestOrigin,
    PartsAndBody(IdempotencyKeyHeader(key), JsonBody(order)): PartsAndBody<
        IdempotencyKeyHeader,
        JsonBody<OrderRequest>,
    >,
) -> Response {
    let wait = preferences.wait();
    let answer = match api.orders.place(order.product_id, order.total, key, Call { wait, origin }).await {
        Ok(Placement::Accepted { order, replayed }) => {
            let answer = (location(order.id), success(StatusCode::CREATED, OrderView::from(order)));
            if replayed { mark_replayed(answer.into_response()) } else { answer.into_response() }
        }
        Ok(Placement::Pending(id)) => {
            (location(id), success(StatusCode::ACCEPTED, OrderView::pending(id))).into_response()
        }
        Err(error) => ApiError::from(error).into_response(),
    };
    preferences.applied(api.orders.waiting_time(wait), answer)
}

fn location(id: OrderId) -> [(HeaderName, String); 1] {
    [(header::LOCATION, format!("/api/orders/{id}"))]
}

/// `POST /api/orders/{orderId}/payment`
pub(super) async fn pay(
    State(api): State<Api>,
    preferences: Preferences,
    RequestOrigin(origin): RequestOrigin,
    PartsAndBody(OrderPath(id), NoBody): PartsAndBody<OrderPath, NoBody>,
) -> Response {
    change(&api, id, Change::Pay, preferences, origin).await
}

/// `POST /api/orders/{orderId}/cancellation`
pub(super) async fn cancel(
    State(api): State<Api>,
    preferences: Preferences,
    RequestOrigin(origin): RequestOrigin,
    PartsAndBody(OrderPath(id), NoBody): PartsAndBody<OrderPath, NoBody>,
) -> Response {
    change(&api, id, Change::Cancel, preferences, origin).await
}

async fn change(
    api: &Api,
    id: OrderId,
    change: Change,
    preferences: Preferences,
    origin: Origin,
) -> Response {
    let wait = preferences.wait();
    let answer = match api.orders.change(id, change, Call { wait, origin }).await {
        Ok(OrderChange::Done(order)) => success(StatusCode::OK, OrderView::from(order)),
        Ok(OrderChange::Pending(order)) => {
            (location(id), success(StatusCode::ACCEPTED, OrderView::from(order))).into_response()
        }
        Err(error) => ApiError::from(error).into_response(),
    };
    preferences.applied(api.orders.waiting_time(wait), answer)
}

/// `GET /api/orders/{orderId}`
pub(super) async fn show(State(api): State<Api>, OrderPath(id): OrderPath) -> Result<Response, ApiError> {
    match api.orders.status(id).await? {
        Some(OrderLookup::Stored(order)) => Ok(success(StatusCode::OK, OrderView::from(order))),
        Some(OrderLookup::Pending(id)) => Ok(success(StatusCode::OK, OrderView::pending(id))),
        None => Err(ApiError::order_not_found(id)),
    }
}

/// `GET /api/orders`
pub(super) async fn list(State(api): State<Api>, query: ListQuery) -> Result<Response, ApiError> {
    let query = query.only(&["product_id", "status", "limit", "after"])?;
    let product_id =
        query.get("product_id", Reason::InvalidProductId, ProductId::EXPECTED, |text| text.parse().ok())?;
    let status = query.get("status", Reason::InvalidStatus, &STATUS_WORDS, status_filter)?;
    let after = query.get("after", Reason::InvalidAfter, "the id of an order", |text| text.parse().ok())?;
    let limit = query.limit()?;
    let found = api.orders.list(product_id, status, after, limit).await?;
    let views = found.rows.into_iter().map(OrderView::from).collect();
    Ok(page(views, found.next, |after| query.next("/api/orders", after)))
}

/// What the parameter `status` must be.
static STATUS_WORDS: LazyLock<String> = LazyLock::new(|| {
    let words: Vec<_> =
        [OrderStatus::PENDING].into_iter().chain(OrderStatus::ALL.map(OrderStatus::as_str)).collect();
    format!("one of {}", words.join(", "))
});

fn status_filter(word: &str) -> Option<StatusFilter> {
    match word {
        OrderStatus::PENDING => Some(StatusFilter::Pending),
        word => OrderStatus::from_word(word).map(StatusFilter::Stored),
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
        Self { id, status: OrderStatus::PENDING, known: None }
    }
}

impl From<Order> for OrderView {
    fn from(order: Order) -> Self {
        let known = Known {
            product_id: order.product_id,
            total: order.total,
            created_at: Time(order.id.created_at()),
            expires_at: order.expires_at().map(Time),
            reason: order.rejection().map(|rejection| rejection.reason().as_str()),
            available_stock: order.rejection().and_then(Rejection::available),
        };
        Self { id: order.id, status: order.status().as_str(), known: Some(known) }
    }
}

/// A time as clients see it: RFC 3339 in UTC with three digits of fraction, always, so that times sort as text.
pub(super) struct Time(pub(super) Timestamp);

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
