//! The envelope of every JSON answer, and the one place that maps errors to statuses.

use std::{borrow::Cow, fmt::Display};

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use serde::Serialize;

pub(super) use super::reason::Reason;
use super::{
    readiness::Readiness,
    time::{Time, seconds_until},
};
use crate::{
    domain::{
        ids::{OrderId, ProductId},
        inventory::{Stock, StockAboveMaximum, StockBelowReserved},
        rejection::{Rejection, RejectionReason},
    },
    queue::Refusal,
    store::StoreError,
};

#[derive(Serialize)]
struct Envelope<'a, T> {
    code: u16,
    status: &'a str,
    data: T,
}

/// A page of a list.
#[derive(Serialize)]
struct Page<T, C> {
    code: u16,
    status: &'static str,
    data: Vec<T>,
    next: Option<C>,
}

/// A 200 answer with a page of a list. `next` is what `after` takes for the page behind it: in the body as well as in
/// `Link`, because clients that are generated do not show headers.
pub(super) fn page<C: Serialize + Display>(
    data: Vec<impl Serialize>,
    next: Option<C>,
    link: impl FnOnce(&C) -> String,
) -> Response {
    let link = next.as_ref().map(|next| [(header::LINK, link(next))]);
    let status = StatusCode::OK;
    let body = json(status, &Page { code: status.as_u16(), status: "OK", data, next });
    (link, body).into_response()
}

/// A 2xx answer.
pub(super) fn success(status: StatusCode, data: impl Serialize) -> Response {
    json(status, &Envelope { code: status.as_u16(), status: "OK", data })
}

fn json(status: StatusCode, body: &impl Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(bytes) => {
            let mut response = Response::new(Body::from(bytes));
            *response.status_mut() = status;
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
        }
        Err(error) => {
            tracing::error!(%error, "an answer did not serialize");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// Seconds after which a 503 is worth another try, and a 202 a look at the order.
pub(super) const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// An error as it is answered: what is wrong and what to do.
#[derive(Debug, Serialize)]
pub(super) struct ApiError {
    reason: Reason,
    message: Cow<'static, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<Box<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    product_id: Option<ProductId>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    stock: Option<StockDetail>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    terms: Option<Box<RefusedByTerms>>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    order: Option<Box<OrderDetail>>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    readiness: Option<Box<Readiness>>,
    /// Whether this is the stored answer to a repeated `Idempotency-Key`.
    #[serde(skip)]
    replayed: bool,
    /// For the log only.
    #[serde(skip)]
    cause: Option<Box<str>>,
}

/// What has become of the order that an error is about.
#[derive(Debug, Serialize)]
struct OrderDetail {
    order_status: &'static str,
    /// Of the payment that counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    payment_reference: Option<Box<str>>,
}

/// The pieces that an error is about: a field with one of these names.
#[derive(Clone, Copy, Debug, Serialize)]
enum StockDetail {
    #[serde(rename = "available_stock")]
    Available(u32),
    #[serde(rename = "reserved_stock")]
    Reserved(u32),
    #[serde(rename = "stored_stock")]
    Stored(u32),
}

/// What belongs to an order that the terms of sale refuse.
#[derive(Debug, Serialize)]
struct RefusedByTerms {
    #[serde(skip_serializing_if = "Option::is_none")]
    opens_at: Option<Time>,
    /// Pieces of the product.
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    held: Option<u32>,
}

const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// Marks the stored answer to a repeated `Idempotency-Key`.
pub(super) fn mark_replayed(mut answer: Response) -> Response {
    answer.headers_mut().insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
    answer
}

/// What the log says about an answer with an error.
#[derive(Clone)]
pub(super) struct ErrorReport {
    pub(super) reason: Reason,
    pub(super) cause: Option<Box<str>>,
}

/// A status as the envelope spells it.
fn words(status: StatusCode) -> String {
    status.canonical_reason().unwrap_or_default().to_uppercase()
}

impl ApiError {
    /// `message` is for a person.
    pub(super) fn new(reason: Reason, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            reason,
            message: message.into(),
            field: None,
            product_id: None,
            stock: None,
            terms: None,
            order: None,
            readiness: None,
            replayed: false,
            cause: None,
        }
    }

    /// The word for what is wrong.
    pub(super) fn reason(&self) -> &'static str {
        self.reason.as_str()
    }

    /// What is wrong, for a person.
    pub(super) fn message(&self) -> &str {
        &self.message
    }

    /// For an answer that does not pass the router: its status and its body.
    pub(super) fn to_json(&self) -> (StatusCode, Vec<u8>) {
        let status = self.reason.status();
        (status, serde_json::to_vec(&self.envelope(&words(status))).unwrap_or_default())
    }

    fn envelope<'a>(&'a self, status: &'a str) -> Envelope<'a, &'a Self> {
        Envelope { code: self.reason.status().as_u16(), status, data: self }
    }

    /// A field of the body or a parameter of the URL that is not what it must be.
    pub(super) fn field(
        reason: Reason,
        field: impl Into<Box<str>>,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { field: Some(field.into()), ..Self::new(reason, message) }
    }

    pub(super) fn of_product(self, product_id: ProductId) -> Self {
        Self { product_id: Some(product_id), ..self }
    }

    /// A bug. What it is goes to the log, not to the client.
    pub(super) fn internal(cause: impl Display) -> Self {
        let message = "something is wrong on our side; the log tells more under this x-request-id";
        Self { cause: Some(cause.to_string().into()), ..Self::new(Reason::InternalError, message) }
    }

    /// A part of the request that did not arrive within its time.
    pub(super) fn late(part: &str) -> Self {
        Self::new(
            Reason::RequestTimeout,
            format!("the {part} of the request did not arrive in time; nothing was done, send it again"),
        )
    }

    pub(super) fn route_not_found(path: &str) -> Self {
        Self::new(Reason::RouteNotFound, format!("there is nothing at {path}; see /apispec.json"))
    }

    pub(super) fn product_not_found(id: ProductId) -> Self {
        let reason = Reason::Rejected(RejectionReason::ProductNotFound);
        Self::new(reason, format!("there is no product {id}"))
    }

    pub(super) fn order_not_found(id: OrderId) -> Self {
        Self::new(Reason::OrderNotFound, format!("there is no order {id}"))
    }

    /// What the order has become does not allow it any more (or not yet).
    pub(super) fn conflict(
        reason: Reason,
        status: &'static str,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        let order = OrderDetail { order_status: status, payment_reference: None };
        Self { order: Some(Box::new(order)), ..Self::new(reason, message) }
    }

    /// A conflict with a payment that the shop called so.
    pub(super) fn of_payment(mut self, reference: Option<&str>) -> Self {
        if let Some(order) = &mut self.order {
            order.payment_reference = reference.map(Into::into);
        }
        self
    }

    pub(super) fn replayed(self, replayed: bool) -> Self {
        Self { replayed, ..self }
    }

    pub(super) fn not_ready(readiness: Readiness) -> Self {
        let message = match readiness.stands_still {
            true => "orders wait and none is decided; lanes says where, and since when",
            false => "not everything needed answers",
        };
        Self { readiness: Some(Box::new(readiness)), ..Self::new(Reason::NotReady, message) }
    }

    pub(super) fn rejected(rejection: Rejection) -> Self {
        let details = rejection.details();
        let of = details.product_id.map_or(String::new(), |id| format!(" of product {id}"));
        let message: Cow<'static, str> = match rejection {
            Rejection::ProductNotFound { product_id } => {
                format!("there is no product {product_id} to order: it does not exist, or it is archived")
                    .into()
            }
            Rejection::InsufficientStock { available, .. } => insufficient_stock(available, &of),
            Rejection::KeyReused => {
                "this Idempotency-Key belongs to an order of other products, totals or buyer; nothing was \
                                     reserved, use a new key for a new order"
                    .into()
            }
            Rejection::SalePaused { .. } => {
                format!("the sale{of} is paused by the seller; nothing was reserved, try again later").into()
            }
            Rejection::SaleNotOpen { opens_at, .. } => {
                format!("the sale{of} opens at {opens_at:.3}; nothing was reserved, order again then").into()
            }
            Rejection::SaleClosed { .. } => format!("the sale{of} is over; nothing was reserved").into(),
            Rejection::LimitPerOrder { limit, .. } => {
                format!("one order may have {} at most{of}; nothing was reserved", pieces(limit)).into()
            }
            Rejection::LimitPerBuyer { limit, held, .. } => {
                let limit = pieces(limit);
                format!(
                    "one buyer may have {limit} at most{of}, and this one has {held}; nothing was reserved"
                )
                .into()
            }
            Rejection::BuyerRequired { .. } => {
                format!("there is a limit for each buyer{of}; send the order with a buyer").into()
            }
        };
        let (opens_at, limit, held) = (details.opens_at.map(Time), details.limit, details.held);
        let has_terms = opens_at.is_some() || limit.is_some();
        Self {
            product_id: details.product_id,
            stock: details.available_stock.map(StockDetail::Available),
            terms: has_terms.then(|| Box::new(RefusedByTerms { opens_at, limit, held })),
            ..Self::new(Reason::Rejected(rejection.reason()), message)
        }
    }
}

fn insufficient_stock(available: u32, of: &str) -> Cow<'static, str> {
    match available {
        0 => format!("no piece{of} is available any more; nothing was reserved").into(),
        1 => format!("only 1 piece{of} is available; nothing was reserved").into(),
        n => format!("only {n} pieces{of} are available; nothing was reserved").into(),
    }
}

/// `1 piece`, `2 pieces`.
fn pieces(count: u32) -> String {
    match count {
        1 => "1 piece".to_owned(),
        n => format!("{n} pieces"),
    }
}

/// `1 piece is`, `2 pieces are`.
fn pieces_are(count: u32) -> String {
    let verb = if count == 1 { "is" } else { "are" };
    format!("{} {verb}", pieces(count))
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::LaneFull => Self::new(
                Reason::LaneFull,
                "too many orders are queued for this product; this one was not taken, send it again later",
            ),
            Refusal::Overloaded => Self::new(
                Reason::Overloaded,
                "too many requests wait for an answer at this server, whatever their product; this one was not taken, \
                 send it again later",
            ),
            Refusal::OtherInstallation => Self::new(
                Reason::QueueUnavailable,
                "orders go to workers of another installation, which shares this QUEUE_PREFIX; this one was not taken. Its \
                 operator must give each installation its own",
            ),
            Refusal::QueueUnavailable => Self::new(
                Reason::QueueUnavailable,
                "orders cannot be queued now; this one was not taken, send it again later",
            ),
        }
    }
}

impl ApiError {
    /// Another product has the SKU.
    pub(super) fn sku_taken(by: ProductId) -> Self {
        let message = format!("product {by} has this sku; nothing was created or changed");
        Self { product_id: Some(by), ..Self::new(Reason::SkuTaken, message) }
    }
}

impl ApiError {
    pub(super) fn product_has_reservations(pieces: u32) -> Self {
        let message = format!(
            "{} reserved by buyers; nothing was changed. Archive the product once its reservations are paid, cancelled or \
             expired",
            pieces_are(pieces)
        );
        Self {
            stock: Some(StockDetail::Reserved(pieces)),
            ..Self::new(Reason::ProductHasReservations, message)
        }
    }

    pub(super) fn product_archived(id: ProductId) -> Self {
        let message = format!("product {id} is archived: it is not sold any more, and nothing was changed");
        Self::new(Reason::ProductArchived, message)
    }
}

impl From<StockBelowReserved> for ApiError {
    fn from(below: StockBelowReserved) -> Self {
        let message = format!(
            "{} reserved by buyers: the stock cannot be less; nothing was changed",
            pieces_are(below.reserved)
        );
        Self {
            stock: Some(StockDetail::Reserved(below.reserved)),
            ..Self::new(Reason::StockBelowReserved, message)
        }
    }
}

impl ApiError {
    /// Not what the seller expected, but this many pieces are stored.
    pub(super) fn stock_changed(stored: u32) -> Self {
        let message = format!(
            "{} stored, not as many as expected_stock: something moved in between; nothing was changed, read the inventory \
             and count again",
            pieces_are(stored)
        );
        Self { stock: Some(StockDetail::Stored(stored)), ..Self::new(Reason::StockChanged, message) }
    }

    /// The key of an adjustment belongs to another one.
    pub(super) fn adjustment_key_reused() -> Self {
        Self::new(
            Reason::Rejected(RejectionReason::KeyReused),
            "this Idempotency-Key belongs to an adjustment of another product, change or reason; nothing was changed, use a \
             new key for a new adjustment",
        )
    }

    /// Whether the stock was adjusted is not known.
    pub(super) fn adjustment_unknown(error: StoreError) -> Self {
        let message = "the database does not answer now, and whether the stock was changed is not known: send it again with \
                       the same Idempotency-Key, or look at the movements first";
        match Self::from(error) {
            error if matches!(error.reason, Reason::DatabaseUnavailable) => {
                Self { message: message.into(), ..error }
            }
            error => error,
        }
    }
}

impl From<StockAboveMaximum> for ApiError {
    fn from(above: StockAboveMaximum) -> Self {
        let message = format!(
            "{} stored: with this change it would be more than {}; nothing was changed",
            pieces_are(above.stored),
            Stock::MAX
        );
        Self {
            stock: Some(StockDetail::Stored(above.stored)),
            ..Self::new(Reason::StockAboveMaximum, message)
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        if !error.is_transient() {
            return Self::internal(error);
        }
        if matches!(error, StoreError::TooManyLists) {
            let message = "too many lists are read at the same time; read this one again later";
            return Self::new(Reason::Overloaded, message);
        }
        let message = "the database does not answer now; try again later";
        Self { cause: Some(error.to_string().into()), ..Self::new(Reason::DatabaseUnavailable, message) }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.reason.status();
        let mut response = json(status, &self.envelope(&words(status)));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        if let Some(Time(opens_at)) = self.terms.as_ref().and_then(|terms| terms.opens_at) {
            let seconds = seconds_until(opens_at, Timestamp::now());
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        if status == StatusCode::REQUEST_TIMEOUT {
            // What may still come of the body is no request.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response.extensions_mut().insert(ErrorReport { reason: self.reason, cause: self.cause });
        if self.replayed { mark_replayed(response) } else { response }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_piece_is_one_piece() {
        let reserved = |reserved| ApiError::from(StockBelowReserved { reserved }).message;
        assert_eq!(
            reserved(1),
            "1 piece is reserved by buyers: the stock cannot be less; nothing was changed"
        );
        assert_eq!(
            reserved(12),
            "12 pieces are reserved by buyers: the stock cannot be less; nothing was changed"
        );
        let short = |available| insufficient_stock(available, " of product 7");
        assert_eq!(short(0), "no piece of product 7 is available any more; nothing was reserved");
        assert_eq!(short(1), "only 1 piece of product 7 is available; nothing was reserved");
        assert_eq!(short(88), "only 88 pieces of product 7 are available; nothing was reserved");
    }
}
