//! The one place that maps the errors of operations to answers.

use super::envelope::{ApiError, Reason};
use crate::{
    domain::{
        inventory::{InvalidAdjustment, Stock},
        lines::{InvalidLines, Lines},
        names::PaymentReference,
        order::{ChangeKind, Order, OrderStatus},
    },
    service::{
        catalog::{AdjustError, ArchiveError, CreateError, RecountError, UpdateError},
        ordering::{ChangeError, LookupError, PlaceError},
    },
};

impl From<InvalidLines> for ApiError {
    fn from(invalid: InvalidLines) -> Self {
        match invalid {
            InvalidLines::Count => {
                Self::field(Reason::InvalidLines, "lines", format!("lines must be {}", Lines::EXPECTED))
            }
            InvalidLines::Duplicate(product_id) => {
                Self::field(Reason::DuplicateProduct, "lines", invalid.to_string()).of_product(product_id)
            }
        }
    }
}

impl From<PlaceError> for ApiError {
    fn from(error: PlaceError) -> Self {
        match error {
            PlaceError::Rejected { rejection, replayed } => Self::rejected(rejection).replayed(replayed),
            PlaceError::NotReserved(order) => not_reserved(&order).replayed(true),
            PlaceError::Refused(refusal) => refusal.into(),
            PlaceError::Undecidable => undecidable(),
            PlaceError::Store(error) => error.into(),
        }
    }
}

impl From<ChangeError> for ApiError {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::NotFound(id) => Self::order_not_found(id),
            ChangeError::NotDecided => Self::conflict(
                Reason::OrderNotReserved,
                OrderStatus::PENDING,
                "the order is not decided yet, so nothing is reserved; try again once it is",
            ),
            ChangeError::Conflict(change, status) => conflict(change, status),
            ChangeError::PaidOtherwise(order) => paid_otherwise(&order),
            ChangeError::StockTooLarge => stock_too_large(),
            ChangeError::Refused(refusal) => refusal.into(),
            ChangeError::Undecidable => undecidable(),
            ChangeError::Store(error) => error.into(),
        }
    }
}

impl From<LookupError> for ApiError {
    fn from(error: LookupError) -> Self {
        match error {
            LookupError::TooManyWait => Self::new(
                Reason::Overloaded,
                "too many requests wait for verdicts at this server; read the order again later, or without wait",
            ),
            LookupError::Store(error) => error.into(),
        }
    }
}

impl From<CreateError> for ApiError {
    fn from(error: CreateError) -> Self {
        match error {
            CreateError::SkuTaken(by) => Self::sku_taken(by),
            CreateError::Store(error) => error.into(),
        }
    }
}

impl From<UpdateError> for ApiError {
    fn from(error: UpdateError) -> Self {
        match error {
            UpdateError::ProductNotFound(id) => Self::product_not_found(id),
            UpdateError::SkuTaken(by) => Self::sku_taken(by),
            UpdateError::Store(error) => error.into(),
        }
    }
}

impl From<ArchiveError> for ApiError {
    fn from(error: ArchiveError) -> Self {
        match error {
            ArchiveError::ProductNotFound(id) => Self::product_not_found(id),
            ArchiveError::HasReservations(pieces) => Self::product_has_reservations(pieces),
            ArchiveError::Store(error) => error.into(),
        }
    }
}

impl From<RecountError> for ApiError {
    fn from(error: RecountError) -> Self {
        match error {
            RecountError::ProductNotFound(id) => Self::product_not_found(id),
            RecountError::Archived(id) => Self::product_archived(id),
            RecountError::BelowReserved(below) => below.into(),
            RecountError::StockChanged { stored } => Self::stock_changed(stored),
            RecountError::Store(error) => error.into(),
        }
    }
}

impl From<AdjustError> for ApiError {
    fn from(error: AdjustError) -> Self {
        match error {
            AdjustError::ProductNotFound(id) => Self::product_not_found(id),
            AdjustError::Archived(id) => Self::product_archived(id),
            AdjustError::Invalid(InvalidAdjustment::BelowReserved(below)) => below.into(),
            AdjustError::Invalid(InvalidAdjustment::AboveMaximum(above)) => above.into(),
            AdjustError::KeyReused => Self::adjustment_key_reused(),
            AdjustError::Store(error) => Self::adjustment_unknown(error),
        }
    }
}

fn undecidable() -> ApiError {
    ApiError::internal("it cannot be decided: the worker's log says which row of the database is wrong")
}

/// The order of a repeated key holds no pieces any more: 201 would promise them.
fn not_reserved(order: &Order) -> ApiError {
    let status = order.status().as_str();
    let message = format!(
        "the order of this Idempotency-Key is {status}: it holds no pieces any more, and nothing was reserved now; place a \
         new order with a new key"
    );
    ApiError::conflict(Reason::OrderNotReserved, status, message)
}

/// The status of an order does not allow the change.
fn conflict(change: ChangeKind, status: OrderStatus) -> ApiError {
    use OrderStatus::{Cancelled, Expired, Paid, Rejected, Reserved, Returned};
    let (reason, message) = match (change, status) {
        (ChangeKind::Pay, Expired) => (
            Reason::OrderExpired,
            "the reservation has expired, and this payment came too late for its pieces; pay the money back",
        ),
        (ChangeKind::Return, Reserved) => (
            Reason::OrderNotPaid,
            "the order is not paid: it can be cancelled, not returned; nothing was changed",
        ),
        (ChangeKind::Return, _) => (Reason::OrderNotPaid, "the order is not paid; nothing was changed"),
        (_, Paid) => (Reason::OrderAlreadyPaid, "the order is paid already; nothing was changed"),
        (_, Cancelled) => {
            (Reason::OrderNotReserved, "the order was cancelled; nothing was changed, place a new one")
        }
        (_, Expired) => (
            Reason::OrderNotReserved,
            "the reservation has expired and its pieces are available to others; nothing was changed, place a new \
             order",
        ),
        (_, Returned) => (
            Reason::OrderNotReserved,
            "the order was paid and came back; nothing was changed, place a new one",
        ),
        (_, Rejected) => {
            (Reason::OrderNotReserved, "the order was rejected: nothing was ever reserved; place a new one")
        }
        (_, Reserved) => (Reason::OrderNotReserved, "the order did not change; try again"),
    };
    ApiError::conflict(reason, status.as_str(), message)
}

/// A double charge, most likely.
fn paid_otherwise(order: &Order) -> ApiError {
    let reference = order.payment_reference().map(PaymentReference::as_str);
    let by =
        reference.map_or("a payment without a reference".to_owned(), |text| format!("the payment {text}"));
    let message = format!("the order was paid by {by}; if this is another payment, pay its money back");
    ApiError::conflict(Reason::PaidWithAnotherReference, order.status().as_str(), message)
        .of_payment(reference)
}

fn stock_too_large() -> ApiError {
    ApiError::conflict(
        Reason::StockTooLarge,
        OrderStatus::Paid.as_str(),
        format!(
            "with the pieces of this order there would be more than {} in stock; nothing was changed, return it without \
             restock, or lower the stock",
            Stock::MAX
        ),
    )
}
