//! A stored order, in verdicts and events.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::undecodable::Undecodable;
use crate::domain::{
    ids::{OrderId, ProductId},
    lines::Lines,
    names::{Buyer, PaymentReference},
    order::{Order, OrderState, OrderStatus, Payment, Quantity},
    rejection::{Rejection, RejectionDetails, RejectionReason},
    time::from_millis,
};

/// A stored order, in verdicts and events. One of one line has a `product_id` and a `total`, one of several its `lines`.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct OrderFields {
    order_id: OrderId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    product_id: Option<ProductId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    total: Option<Quantity>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lines: Option<Lines>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    buyer: Option<Buyer>,
    status: OrderStatus,
    /// Unix milliseconds; a rejected order has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<i64>,
    /// Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    paid_at: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payment_reference: Option<PaymentReference>,
    /// Of a rejected order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rejection: Option<Box<RejectionFields>>,
    /// Of a rejected order, as earlier releases send it: they know two reasons, and only one of them has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    available_stock: Option<u32>,
}

/// Why an order was rejected.
#[derive(Clone, Serialize, Deserialize)]
struct RejectionFields {
    reason: Box<str>,
    #[serde(flatten)]
    details: RejectionDetails,
}

impl From<Order> for OrderFields {
    fn from(order: Order) -> Self {
        let (status, expires_at) = (order.status(), order.expires_at().map(Timestamp::as_millisecond));
        let rejection = order.rejection().map(|rejection| {
            Box::new(RejectionFields {
                reason: rejection.reason().as_str().into(),
                details: rejection.details(),
            })
        });
        let available_stock = rejection.as_ref().and_then(|rejection| rejection.details.available_stock);
        let Order { id: order_id, lines, buyer, payment, .. } = order;
        let only = lines.as_ref().and_then(Lines::only);
        let Payment { reference: payment_reference, paid_at } = payment.unwrap_or_default();
        Self {
            order_id,
            product_id: only.map(|line| line.product_id),
            total: only.map(|line| line.total),
            lines: lines.filter(|_| only.is_none()),
            buyer,
            status,
            expires_at,
            paid_at: paid_at.map(Timestamp::as_millisecond),
            payment_reference,
            rejection,
            available_stock,
        }
    }
}

impl TryFrom<OrderFields> for Order {
    type Error = Undecodable;

    fn try_from(one: OrderFields) -> Result<Self, Undecodable> {
        let lines = match (one.product_id, one.total) {
            (Some(product_id), Some(total)) => Some(Lines::one(product_id, total)),
            _ => one.lines,
        };
        let state = match (one.expires_at, one.rejection) {
            (Some(expires_at), _) => {
                OrderState::Accepted { status: one.status, expires_at: from_millis(expires_at) }
            }
            (None, Some(rejection)) => {
                let reason = RejectionReason::from_word(&rejection.reason);
                let rejection = reason.and_then(|reason| reason.with(rejection.details));
                let incomplete =
                    || Undecodable(format!("the order {} was rejected, but not for what", one.order_id));
                OrderState::Rejected(rejection.ok_or_else(incomplete)?)
            }
            (None, None) => {
                let product_id = lines.as_ref().map(|lines| lines.first().product_id);
                let details = RejectionDetails {
                    product_id,
                    available_stock: one.available_stock,
                    ..Default::default()
                };
                let too_few = RejectionReason::InsufficientStock.with(details);
                OrderState::Rejected(too_few.unwrap_or(Rejection::KeyReused))
            }
        };
        let payment = Payment { reference: one.payment_reference, paid_at: one.paid_at.map(from_millis) };
        let payment = (payment != Payment::default()).then_some(payment);
        Ok(Self { id: one.order_id, lines, buyer: one.buyer, payment, state })
    }
}
