//! The one place that maps the errors of operations to answers.

use super::envelope::{ApiError, Reason};
use crate::{
    domain::{
        lines::{InvalidLines, Lines},
        order::{Order, OrderStatus},
    },
    service::{
        catalog::{ArchiveError, CreateError, RecountError, UpdateError},
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
            ChangeError::Conflict(status) => conflict(status),
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
            RecountError::Store(error) => error.into(),
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

/// An order that is not reserved any more never changes again.
fn conflict(status: OrderStatus) -> ApiError {
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
        OrderStatus::Returned => {
            (Reason::OrderNotReserved, "the order was returned; nothing was changed, place a new one")
        }
        OrderStatus::Rejected => {
            (Reason::OrderNotReserved, "the order was rejected: nothing was ever reserved; place a new one")
        }
        OrderStatus::Reserved => (Reason::OrderNotReserved, "the order did not change; try again"),
    };
    ApiError::conflict(reason, status.as_str(), message)
}
