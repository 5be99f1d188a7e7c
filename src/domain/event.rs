//! Events for the shop's other services.

use crate::domain::order::Order;

/// An order was placed, or its status changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The order with its new status.
    pub order: Order,
}
