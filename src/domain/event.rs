//! Events for the shop's other services.

use crate::domain::order::{Order, Payment};

/// Something that the shop's other services should know of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub kind: EventKind,
    pub order: Order,
}

/// What an event tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// The order was placed, or its status changed. The event has the order with its new status.
    Order,
    /// A payment came too late: its order is expired, and gets no pieces. The event has the order with the reference of this
    /// payment, whose money must go back.
    PaymentTooLate,
}

impl Event {
    pub fn of_order(order: Order) -> Self {
        Self { kind: EventKind::Order, order }
    }

    /// Of an expired order and a payment that gets nothing.
    pub fn payment_too_late(order: Order, payment: Payment) -> Self {
        Self { kind: EventKind::PaymentTooLate, order: Order { payment: Some(payment), ..order } }
    }

    /// What it is about, and what became of that: the first two words of its routing key.
    pub fn topic(&self) -> [&'static str; 2] {
        match self.kind {
            EventKind::Order => ["order", self.order.status().as_str()],
            EventKind::PaymentTooLate => ["payment", "too_late"],
        }
    }
}
