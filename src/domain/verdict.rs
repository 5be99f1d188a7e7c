//! What a lane decides on one command.

use jiff::Timestamp;

use crate::domain::{
    order::{Order, OrderStatus},
    rejection::Rejection,
};

/// What the lane decided on one command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its pieces are reserved, committed in the database, until this time.
    Reserved {
        /// When the reservation ends unless it is paid.
        expires_at: Timestamp,
    },
    /// Nothing was reserved.
    Rejected(Rejection),
    /// Nothing was reserved, because an order of this idempotency key, product and total is on record: this one.
    AlreadyPlaced(Order),
    /// The answer to a change: how far the order has come now, by this change or by an earlier one.
    Status(OrderStatus),
    /// The answer to a change of an order that is not on record.
    OrderNotFound,
    /// It cannot be decided, because what stands in the database cannot be. The worker's log says why.
    Undecidable,
}
