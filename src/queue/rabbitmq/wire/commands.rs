//! A command, as it stands in a message to a lane.

use std::{fmt, sync::Arc};

use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer};

use super::{for_logs::ForLogs, undecodable::Undecodable};
use crate::domain::{
    command::{ChangeOrder, Command, NewOrder, ReplyMode},
    ids::{CommandId, IdempotencyKey, OrderId, ProductId},
    lines::Lines,
    names::{Buyer, PaymentReference},
    order::{Change, ChangeKind, Quantity},
    origin::{Origin, RequestId, TraceContext},
};

/// A new order, or a change of a stored one: then it names the `change` and the `order_id`. `product_id` is the product of the
/// lane. An order of one line has a `total`, one of several the `lines`: an earlier release can decode it no more, rather than
/// taking it for its first line.
#[derive(Serialize)]
pub(super) struct CommandFields<'a> {
    id: CommandId,
    product_id: ProductId,
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<Quantity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lines: Option<&'a Lines>,
    #[serde(skip_serializing_if = "Option::is_none")]
    buyer: Option<&'a Buyer>,
    /// Of a change: the products of the other lines of its order.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    other_products: &'a [ProductId],
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotency_key: Option<&'a IdempotencyKey>,
    #[serde(skip_serializing_if = "Option::is_none")]
    change: Option<ChangeKind>,
    #[serde(skip_serializing_if = "Option::is_none")]
    order_id: Option<OrderId>,
    /// Of a payment.
    #[serde(skip_serializing_if = "Option::is_none")]
    payment_reference: Option<&'a PaymentReference>,
    /// Of a return.
    #[serde(skip_serializing_if = "Option::is_none")]
    restock: Option<bool>,
    /// Of a detached one, when it was created: earlier releases take that for detached.
    #[serde(with = "jiff::fmt::serde::timestamp::millisecond::required")]
    answer_by: Timestamp,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    detached: bool,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_text")]
    request_id: Option<&'a RequestId>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_text")]
    traceparent: Option<&'a TraceContext>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tracestate: Option<&'a str>,
}

fn as_text<T: fmt::Display, S: Serializer>(value: &Option<&T>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}

/// The same, as it arrives.
#[derive(Deserialize)]
pub(super) struct ReceivedCommand {
    id: CommandId,
    product_id: ProductId,
    total: Option<Quantity>,
    lines: Option<Lines>,
    buyer: Option<Buyer>,
    #[serde(default)]
    other_products: Box<[ProductId]>,
    idempotency_key: Option<IdempotencyKey>,
    change: Option<ChangeKind>,
    order_id: Option<OrderId>,
    payment_reference: Option<PaymentReference>,
    #[serde(default)]
    restock: bool,
    #[serde(with = "jiff::fmt::serde::timestamp::millisecond::required")]
    answer_by: Timestamp,
    #[serde(default)]
    detached: bool,
    #[serde(default)]
    request_id: ForLogs<RequestId>,
    #[serde(default)]
    traceparent: ForLogs<TraceContext>,
    #[serde(default)]
    tracestate: ForLogs<String>,
}

impl ReceivedCommand {
    /// An earlier release does not say `detached`: it sends a deadline that is over from birth.
    fn reply(&self) -> ReplyMode {
        match self.detached || self.answer_by <= self.id.as_order().created_at() {
            true => ReplyMode::Detached,
            false => ReplyMode::Until(self.answer_by),
        }
    }
}

impl<'a> From<&'a Command> for CommandFields<'a> {
    fn from(command: &'a Command) -> Self {
        let (id, detached) = (command.id(), command.is_detached());
        let answer_by = match command.reply() {
            ReplyMode::Until(answer_by) => answer_by,
            ReplyMode::Detached => id.as_order().created_at(),
        };
        let Origin { request_id, trace } = command.origin();
        let fields = Self {
            id,
            product_id: command.product_id(),
            total: None,
            lines: None,
            buyer: None,
            other_products: &[],
            idempotency_key: None,
            change: None,
            order_id: None,
            payment_reference: None,
            restock: None,
            answer_by,
            detached,
            request_id: request_id.as_ref(),
            traceparent: trace.as_deref(),
            tracestate: trace.as_deref().and_then(TraceContext::state),
        };
        match command {
            Command::Place(NewOrder { lines, buyer, key, .. }) => {
                let total = lines.only().map(|line| line.total);
                let (lines, buyer) = (total.is_none().then_some(lines), buyer.as_ref());
                Self { total, lines, buyer, idempotency_key: key.as_ref(), ..fields }
            }
            Command::Change(ChangeOrder { change, order_id, other_products, .. }) => {
                let fields =
                    Self { change: Some(change.kind()), order_id: Some(*order_id), other_products, ..fields };
                match change {
                    Change::Pay { reference } => Self { payment_reference: reference.as_ref(), ..fields },
                    Change::Return { restock } => Self { restock: Some(*restock), ..fields },
                    Change::Cancel | Change::Expire | Change::Extend => fields,
                }
            }
        }
    }
}

impl TryFrom<ReceivedCommand> for Command {
    type Error = Undecodable;

    fn try_from(given: ReceivedCommand) -> Result<Self, Undecodable> {
        let reply = given.reply();
        let ReceivedCommand { id, product_id, total, lines, buyer, other_products, .. } = given;
        let trace = given.traceparent.0.map(|trace| trace.with_state(given.tracestate.0.as_deref()));
        let origin = Origin { request_id: given.request_id.0, trace: trace.map(Arc::new) };
        let lines = total.map(|total| Lines::one(product_id, total)).xor(lines);
        match (lines, given.change, given.order_id) {
            (Some(lines), None, None) if lines.first().product_id == product_id => {
                let (id, key) = (id.as_order(), given.idempotency_key);
                Ok(Self::Place(NewOrder { id, lines, buyer, reply, key, origin }))
            }
            (None, Some(change), Some(order_id)) => Ok(Self::Change(ChangeOrder {
                id,
                order_id,
                product_id,
                other_products,
                change: match change {
                    ChangeKind::Pay => Change::Pay { reference: given.payment_reference },
                    ChangeKind::Cancel => Change::Cancel,
                    ChangeKind::Expire => Change::Expire,
                    ChangeKind::Extend => Change::Extend,
                    ChangeKind::Return => Change::Return { restock: given.restock },
                },
                reply,
                origin,
            })),
            _ => Err(Undecodable(format!(
                "{id} must have a total, or lines that begin with its product_id, or a change and an order_id"
            ))),
        }
    }
}
