//! What becomes of an order or a change, as its client learns it.

use crate::{
    domain::{
        ids::OrderId,
        order::{Change, ChangeKind, Order, OrderStatus},
        rejection::Rejection,
    },
    monitor::metrics::{ChangeAnswer, OrderAnswer},
    queue::Refusal,
    store::StoreError,
};

/// An order that was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// The pieces are reserved or paid, committed in the database. `replayed`: the order was placed earlier, under the same
    /// idempotency key.
    Accepted { order: Order, replayed: bool },
    /// No verdict by the deadline. It will be stored under this id.
    Pending(OrderId),
}

/// Why an order was not placed. Nothing was reserved.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The lane decided so. `replayed`: it did earlier, under the same idempotency key.
    #[error("rejected: {rejection:?}")]
    Rejected { rejection: Rejection, replayed: bool },
    /// The order of this idempotency key was placed earlier, and holds no pieces any more.
    #[error("the order of this key is {}", .0.status().as_str())]
    NotReserved(Box<Order>),
    /// It was not queued: sending it again is safe.
    #[error("refused: {0:?}")]
    Refused(Refusal),
    /// The worker's log says which row of the database is corrupt.
    #[error("undecidable")]
    Undecidable,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A change that was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OrderChange {
    /// The order has the status that the change leads to: by this change, or by an earlier one.
    Done(Order),
    /// No verdict by the deadline. This is the order as it was before.
    Pending(Order),
}

/// Why an order was not changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    #[error("there is no order {0}")]
    NotFound(OrderId),
    /// The order may be in its lane: it holds no pieces yet.
    #[error("the order is not decided yet")]
    NotDecided,
    /// The order's status does not allow the change.
    #[error("the order is {}", .1.as_str())]
    Conflict(ChangeKind, OrderStatus),
    /// It was paid, and not with the reference of this payment.
    #[error("the order was paid with another reference")]
    PaidOtherwise(Box<Order>),
    /// With the pieces that come back there would be more than a stock can be.
    #[error("the pieces do not fit into the stock")]
    StockTooLarge,
    /// It was not queued: sending it again is safe.
    #[error("refused: {0:?}")]
    Refused(Refusal),
    /// The worker's log says which row of the database is corrupt.
    #[error("undecidable")]
    Undecidable,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The answer to a change whose order is this one then, by this change or by an earlier one.
pub(super) fn changed(change: &Change, order: Order) -> Result<OrderChange, ChangeError> {
    let (kind, status) = (change.kind(), order.status());
    match change {
        // Of a payment without a name nobody can tell whether it was another one.
        Change::Pay { reference: Some(given) }
            if status == OrderStatus::Paid && order.payment_reference() != Some(given) =>
        {
            Err(ChangeError::PaidOtherwise(Box::new(order)))
        }
        _ if status == kind.leads_to() => Ok(OrderChange::Done(order)),
        // Nothing else keeps a paid order from being returned.
        Change::Return { restock: true } if status == OrderStatus::Paid => Err(ChangeError::StockTooLarge),
        _ => Err(ChangeError::Conflict(kind, status)),
    }
}

/// What is known of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OrderLookup {
    Stored(Order),
    /// It is not stored, and may be in its lane.
    Pending(OrderId),
}

/// Why nothing is said of an order.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    #[error("too many clients wait for verdicts")]
    TooManyWait,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The answer to an order, as operators count it.
pub(super) fn order_answer(answer: &Result<Placement, PlaceError>) -> OrderAnswer {
    match answer {
        Ok(Placement::Accepted { replayed: false, .. }) => OrderAnswer::Accepted,
        Ok(Placement::Accepted { replayed: true, .. }) => OrderAnswer::Replayed,
        Ok(Placement::Pending(_)) => OrderAnswer::Pending,
        Err(PlaceError::Rejected { rejection, .. }) => OrderAnswer::Rejected(rejection.reason()),
        Err(PlaceError::NotReserved(_)) => OrderAnswer::NotReserved,
        Err(PlaceError::Refused(refusal)) => OrderAnswer::Refused(*refusal),
        Err(PlaceError::Undecidable) => OrderAnswer::Undecidable,
        Err(PlaceError::Store(_)) => OrderAnswer::Failed,
    }
}

/// The same for a change.
pub(super) fn change_answer(answer: &Result<OrderChange, ChangeError>) -> ChangeAnswer {
    match answer {
        Ok(OrderChange::Done(_)) => ChangeAnswer::Done,
        Ok(OrderChange::Pending(_)) => ChangeAnswer::Pending,
        Err(ChangeError::NotFound(_)) => ChangeAnswer::NotFound,
        Err(ChangeError::NotDecided) => ChangeAnswer::NotDecided,
        Err(ChangeError::Conflict(..) | ChangeError::PaidOtherwise(_) | ChangeError::StockTooLarge) => {
            ChangeAnswer::Conflict
        }
        Err(ChangeError::Refused(_)) => ChangeAnswer::Refused,
        Err(ChangeError::Undecidable) => ChangeAnswer::Undecidable,
        Err(ChangeError::Store(_)) => ChangeAnswer::Failed,
    }
}
