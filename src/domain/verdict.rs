//! What a lane decides on one command.

use jiff::Timestamp;

use crate::domain::{
    order::{Order, OrderState, OrderStatus},
    rejection::Rejection,
};

/// What the lane decided on one command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The pieces are reserved, committed in the database.
    Reserved {
        /// When the reservation ends unless it is paid.
        expires_at: Timestamp,
    },
    /// Nothing was reserved.
    Rejected(Rejection),
    /// Nothing was reserved, because an order with this idempotency key, lines and buyer is stored: this one. Or the order itself
    /// was cancelled before its turn.
    AlreadyPlaced(Order),
    /// The verdict on a change: the order as it is now, by this change or by an earlier one.
    Current(Order),
    /// The verdict on a change of an order that is not stored.
    OrderNotFound,
    /// It cannot be decided, because of invalid data in the database. The worker's log says what is wrong.
    Undecidable,
}

impl Verdict {
    /// The verdict with which this order was stored: an order that is redelivered gets it again.
    pub fn on_stored(order: &Order) -> Self {
        match order.state {
            OrderState::Accepted { expires_at, .. } => Self::Reserved { expires_at },
            OrderState::Rejected(rejection) => Self::Rejected(rejection),
        }
    }

    /// A word for it, for logs: the reason of a rejection, the status of the order that was to be changed.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Reserved { .. } => OrderStatus::Reserved.as_str(),
            Self::Rejected(rejection) => rejection.reason().as_str(),
            Self::AlreadyPlaced(_) => "already_placed",
            Self::Current(order) => order.status().as_str(),
            Self::OrderNotFound => "order_not_found",
            Self::Undecidable => "undecidable",
        }
    }

    /// The order of a verdict on a change.
    pub fn current(&self) -> Option<&Order> {
        match self {
            Self::Current(order) => Some(order),
            _ => None,
        }
    }
}
