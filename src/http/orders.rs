//! Orders.

use axum::{
    extract::State,
    http::{HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};

use super::{
    api::Api,
    body::{Field, Fields, JsonBody, NoBody, OptionalBody, PartsAndBody, missing},
    envelope::{ApiError, RETRY_AFTER, Reason, mark_replayed, success},
    origin::RequestOrigin,
    preferences::{IdempotencyKeyHeader, Preferences, delta_seconds},
    query::{ListQuery, OrderPath},
    time::Time,
};
use crate::{
    domain::{
        ids::{OrderId, ProductId},
        lines::{Line, Lines},
        names::{Buyer, PaymentReference},
        order::{Change, Order, OrderStatus, Quantity},
        origin::Origin,
        rejection::Rejection,
    },
    service::ordering::{Call, OrderChange, OrderLookup, Placement, Request},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OrderRequest {
    product_id: Option<ProductId>,
    total: Option<Quantity>,
    lines: Option<Vec<LineRequest>>,
    buyer: Option<Buyer>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LineRequest {
    product_id: ProductId,
    total: Quantity,
}

const PRODUCT_ID: Field = ("product_id", Reason::InvalidProductId, ProductId::EXPECTED);
const TOTAL: Field = ("total", Reason::InvalidTotal, Quantity::EXPECTED);

impl Fields for OrderRequest {
    const FIELDS: &'static [Field] = &[];
    const OPTIONAL: &'static [Field] = &[
        PRODUCT_ID,
        TOTAL,
        ("lines", Reason::InvalidLines, Lines::EXPECTED),
        ("buyer", Reason::InvalidBuyer, Buyer::EXPECTED),
    ];
}

impl OrderRequest {
    /// The lines of the order: of `lines`, or of `product_id` and `total`.
    fn lines(
        product_id: Option<ProductId>,
        total: Option<Quantity>,
        lines: Option<Vec<LineRequest>>,
    ) -> Result<Lines, ApiError> {
        // Some generated clients send an empty list for one that was not set.
        let lines = lines.filter(|lines| !lines.is_empty() || (product_id, total) == (None, None));
        match (product_id, total, lines) {
            (Some(product_id), Some(total), None) => Ok(Lines::one(product_id, total)),
            (None, None, Some(lines)) => {
                let lines =
                    lines.into_iter().map(|LineRequest { product_id, total }| Line { product_id, total });
                Lines::try_from(lines.collect::<Vec<_>>()).map_err(ApiError::from)
            }
            (_, _, Some(_)) => Err(ApiError::field(
                Reason::InvalidLines,
                "lines",
                "an order has either product_id and total, or lines",
            )),
            (None, _, None) => Err(missing(PRODUCT_ID)),
            (Some(_), None, None) => Err(missing(TOTAL)),
        }
    }
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
    let OrderRequest { product_id, total, lines, buyer } = order;
    let lines = match OrderRequest::lines(product_id, total, lines) {
        Ok(lines) => lines,
        Err(error) => return error.into_response(),
    };
    let answer = match api.orders.place(Request { lines, buyer, key }, Call { wait, origin }).await {
        Ok(Placement::Accepted { order, replayed }) => {
            let answer = (location(order.id), success(StatusCode::CREATED, OrderView::from(order)));
            if replayed { mark_replayed(answer.into_response()) } else { answer.into_response() }
        }
        Ok(Placement::Pending(id)) => accepted(id, OrderView::pending(id)),
        Err(error) => ApiError::from(error).into_response(),
    };
    preferences.applied(api.orders.waiting_time(wait), answer)
}

fn location(id: OrderId) -> [(HeaderName, String); 1] {
    [(header::LOCATION, format!("/api/orders/{id}"))]
}

/// 202: no verdict yet. It will be at `Location`.
fn accepted(id: OrderId, order: OrderView) -> Response {
    let retry_after = [(header::RETRY_AFTER, RETRY_AFTER)];
    (location(id), retry_after, success(StatusCode::ACCEPTED, order)).into_response()
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PaymentRequest {
    reference: Option<PaymentReference>,
}

impl Fields for PaymentRequest {
    const FIELDS: &'static [Field] = &[];
    const OPTIONAL: &'static [Field] = &[("reference", Reason::InvalidReference, PaymentReference::EXPECTED)];
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReturnRequest {
    restock: bool,
}

impl Fields for ReturnRequest {
    const FIELDS: &'static [Field] = &[("restock", Reason::InvalidRestock, "true or false")];
}

/// `POST /api/orders/{orderId}/payment`
pub(super) async fn pay(
    State(api): State<Api>,
    preferences: Preferences,
    RequestOrigin(origin): RequestOrigin,
    PartsAndBody(OrderPath(id), OptionalBody(payment)): PartsAndBody<OrderPath, OptionalBody<PaymentRequest>>,
) -> Response {
    change(&api, id, Change::Pay { reference: payment.reference }, preferences, origin).await
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

/// `POST /api/orders/{orderId}/extension`
pub(super) async fn extend(
    State(api): State<Api>,
    preferences: Preferences,
    RequestOrigin(origin): RequestOrigin,
    PartsAndBody(OrderPath(id), NoBody): PartsAndBody<OrderPath, NoBody>,
) -> Response {
    change(&api, id, Change::Extend, preferences, origin).await
}

/// `POST /api/orders/{orderId}/return`
pub(super) async fn take_back(
    State(api): State<Api>,
    preferences: Preferences,
    RequestOrigin(origin): RequestOrigin,
    PartsAndBody(OrderPath(id), JsonBody(request)): PartsAndBody<OrderPath, JsonBody<ReturnRequest>>,
) -> Response {
    let ReturnRequest { restock } = request;
    change(&api, id, Change::Return { restock }, preferences, origin).await
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
        Ok(OrderChange::Pending(order)) => accepted(id, OrderView::from(order)),
        Err(error) => ApiError::from(error).into_response(),
    };
    preferences.applied(api.orders.waiting_time(wait), answer)
}

/// `GET /api/orders/{orderId}`
pub(super) async fn show(
    State(api): State<Api>,
    OrderPath(id): OrderPath,
    query: ListQuery,
) -> Result<Response, ApiError> {
    let query = query.only(&["wait"])?;
    let wait = query.get("wait", Reason::InvalidWait, "a whole number of seconds", delta_seconds)?;
    match api.orders.status_when_decided(id, wait.unwrap_or_default()).await? {
        Some(OrderLookup::Stored(order)) => Ok(success(StatusCode::OK, OrderView::from(order))),
        Some(OrderLookup::Pending(id)) => Ok(success(StatusCode::OK, OrderView::pending(id))),
        None => Err(ApiError::order_not_found(id)),
    }
}

/// An order as clients see it: one shape, whatever its status. What is not known of a pending order is absent.
#[derive(Serialize)]
pub(super) struct OrderView {
    id: OrderId,
    status: &'static str,
    #[serde(flatten)]
    known: Option<Known>,
}

/// What is known of an order once it is decided.
#[derive(Serialize)]
struct Known {
    #[serde(skip_serializing_if = "Option::is_none")]
    lines: Option<Lines>,
    /// Of an order of one line.
    #[serde(skip_serializing_if = "Option::is_none")]
    product_id: Option<ProductId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<Quantity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    buyer: Option<Buyer>,
    created_at: Time,
    expires_at: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    paid_at: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payment_reference: Option<PaymentReference>,
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
        let (id, status) = (order.id, order.status().as_str());
        // Of one that was given up before its turn, nothing was ever reserved.
        let expires_at = order.expires_at().filter(|_| !order.was_given_up());
        let rejection = order.rejection();
        let only = order.lines.as_ref().and_then(Lines::only);
        let payment = order.payment.unwrap_or_default();
        let known = Known {
            lines: order.lines,
            product_id: only.map(|line| line.product_id),
            total: only.map(|line| line.total),
            buyer: order.buyer,
            created_at: Time(id.created_at()),
            expires_at: expires_at.map(Time),
            paid_at: payment.paid_at.map(Time),
            payment_reference: payment.reference,
            reason: rejection.map(|rejection| rejection.reason().as_str()),
            available_stock: rejection.and_then(Rejection::available),
        };
        Self { id, status, known: Some(known) }
    }
}
