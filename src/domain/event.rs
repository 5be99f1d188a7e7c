//! What the shop's other services hear.

use crate::domain::order::Order;

/// Something became of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The order, at the stage that it came to.
    pub order: Order,
}
