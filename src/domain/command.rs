//! What waits in a lane: new orders, and changes of stored orders. Every command on an order takes its product's lane, so that
//! all of them are decided in turn.

use std::iter;

use jiff::Timestamp;

use crate::domain::{
    ids::{CommandId, IdempotencyKey, OrderId, ProductId},
    lines::Lines,
    names::Buyer,
    order::{Change, Order},
    origin::Origin,
};

/// A new order, or a change of a stored one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Reserve pieces.
    Place(NewOrder),
    /// Change the status of a stored order.
    Change(ChangeOrder),
}

/// A request to change the status of a stored order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeOrder {
    /// The id of this request; its verdict names it.
    pub id: CommandId,
    pub order_id: OrderId,
    /// The product of the order's first line, which determines the lane.
    pub product_id: ProductId,
    /// The products of its other lines.
    pub other_products: Box<[ProductId]>,
    pub change: Change,
    /// Whether a client waits for the verdict.
    pub reply: ReplyMode,
    pub origin: Origin,
}

/// Whether a client waits for the verdict on a command. This decides whether the rejection of an order is stored: that of a
/// detached order is, so that its client finds it; any other is only sent. No clock is involved: an API that stops waiting
/// submits the command again, [detached](Command::detached).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyMode {
    /// A client waits, until this time.
    Until(Timestamp),
    /// No client waits. It has the URL at which it finds the verdict.
    Detached,
}

impl Command {
    pub fn id(&self) -> CommandId {
        match self {
            Self::Place(order) => order.id.into(),
            Self::Change(change) => change.id,
        }
    }

    /// The order that it places or changes.
    pub fn order_id(&self) -> OrderId {
        match self {
            Self::Place(order) => order.id,
            Self::Change(change) => change.order_id,
        }
    }

    /// The idempotency key of a new order.
    pub fn key(&self) -> Option<&IdempotencyKey> {
        match self {
            Self::Place(order) => order.key.as_ref(),
            Self::Change(_) => None,
        }
    }

    /// The product whose lane it takes.
    pub fn product_id(&self) -> ProductId {
        match self {
            Self::Place(order) => order.lines.first().product_id,
            Self::Change(change) => change.product_id,
        }
    }

    /// The products of all lines of its order, that of the lane first.
    pub fn products(&self) -> impl Iterator<Item = ProductId> {
        let (of_order, of_change) = match self {
            Self::Place(order) => (Some(order.lines.products()), None),
            Self::Change(change) => (None, Some(change.products())),
        };
        of_order.into_iter().flatten().chain(of_change.into_iter().flatten())
    }

    /// Whether a client waits for the verdict.
    pub fn reply(&self) -> ReplyMode {
        match self {
            Self::Place(order) => order.reply,
            Self::Change(change) => change.reply,
        }
    }

    /// The request that led to it.
    pub fn origin(&self) -> &Origin {
        match self {
            Self::Place(order) => &order.origin,
            Self::Change(change) => &change.origin,
        }
    }

    pub fn origin_mut(&mut self) -> &mut Origin {
        match self {
            Self::Place(order) => &mut order.origin,
            Self::Change(change) => &mut change.origin,
        }
    }

    /// What it does to its order, in a word.
    pub fn what(&self) -> &'static str {
        match self {
            Self::Place(_) => "place",
            Self::Change(change) => change.change.kind().as_str(),
        }
    }

    /// The same command, detached.
    pub fn detached(mut self) -> Self {
        match &mut self {
            Self::Place(order) => order.reply = ReplyMode::Detached,
            Self::Change(change) => change.reply = ReplyMode::Detached,
        }
        self
    }

    /// Whether a client asked for it about a stored order, of which it may hold pieces.
    pub fn is_asked_change(&self) -> bool {
        matches!(self, Self::Change(change) if change.change != Change::Expire)
    }

    /// Whether no client waits for the verdict.
    pub fn is_detached(&self) -> bool {
        self.reply() == ReplyMode::Detached
    }
}

impl ChangeOrder {
    /// A change of this stored order. `None`: the order has no lines yet, and so no lane.
    pub fn of(
        order: &Order,
        id: CommandId,
        change: Change,
        reply: ReplyMode,
        origin: Origin,
    ) -> Option<Self> {
        let lines = order.lines.as_ref()?;
        let others = lines.others().iter().map(|line| line.product_id);
        Some(Self {
            id,
            order_id: order.id,
            product_id: lines.first().product_id,
            other_products: others.collect(),
            change,
            reply,
            origin,
        })
    }

    /// The products of all lines of the order, that of the lane first.
    pub fn products(&self) -> impl Iterator<Item = ProductId> {
        iter::once(self.product_id).chain(self.other_products.iter().copied())
    }

    /// Whether the order is the one that it names, with the same products.
    pub fn is_about(&self, order: &Order) -> bool {
        order.lines.as_ref().is_some_and(|lines| lines.products().eq(self.products()))
    }
}

impl From<NewOrder> for Command {
    fn from(order: NewOrder) -> Self {
        Self::Place(order)
    }
}

impl From<ChangeOrder> for Command {
    fn from(change: ChangeOrder) -> Self {
        Self::Change(change)
    }
}

/// An order that is not decided yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewOrder {
    /// Also says when the order was created.
    pub id: OrderId,
    pub lines: Lines,
    /// Who orders, if the shop says it.
    pub buyer: Option<Buyer>,
    /// Whether the client waits for the verdict.
    pub reply: ReplyMode,
    pub key: Option<IdempotencyKey>,
    pub origin: Origin,
}

impl NewOrder {
    /// Whether no client waits for the verdict.
    pub fn is_detached(&self) -> bool {
        self.reply == ReplyMode::Detached
    }
}
