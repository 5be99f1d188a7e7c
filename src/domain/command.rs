//! What stands in a lane: new orders, and changes of orders on record. Every move of an order travels its product's
//! lane, so that all of them are decided in turn.

use jiff::Timestamp;

use crate::domain::{
    ids::{CommandId, IdempotencyKey, OrderId, ProductId},
    order::{Change, Quantity},
};

/// What somebody asks for: a new order, or a change of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Reserve pieces.
    Place(NewOrder),
    /// Take an order further.
    Change(ChangeOrder),
}

/// An order on record is to go further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangeOrder {
    /// The name of this request, for its verdict.
    pub id: CommandId,
    /// Which order.
    pub order_id: OrderId,
    /// Its product, and with it the lane.
    pub product_id: ProductId,
    /// What is to become of it.
    pub change: Change,
    /// Whether a client waits for the verdict.
    pub reply: ReplyMode,
}

/// Whether a client waits for the verdict on a command. It decides what a lane stores: the rejection of a command for which
/// nobody waits is stored, so that its client finds it; any other is only sent. No clock plays a part in that: an API that
/// stops waiting submits the command again, [detached](Command::detached).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyMode {
    /// A client waits, until this time.
    Until(Timestamp),
    /// The client has left, with the URL at which the verdict will be.
    Detached,
}

impl Command {
    /// Its name.
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

    /// Whose lane it stands in.
    pub fn product_id(&self) -> ProductId {
        match self {
            Self::Place(order) => order.product_id,
            Self::Change(change) => change.product_id,
        }
    }

    /// Whether a client waits for the verdict.
    pub fn reply(&self) -> ReplyMode {
        match self {
            Self::Place(order) => order.reply,
            Self::Change(change) => change.reply,
        }
    }

    /// The same command, for whose verdict nobody waits.
    pub fn detached(mut self) -> Self {
        match &mut self {
            Self::Place(order) => order.reply = ReplyMode::Detached,
            Self::Change(change) => change.reply = ReplyMode::Detached,
        }
        self
    }

    /// Whether nobody waits for the verdict.
    pub fn is_detached(&self) -> bool {
        self.reply() == ReplyMode::Detached
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

/// An order on its way to its verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewOrder {
    /// Its name, which also says when it was created.
    pub id: OrderId,
    /// What is ordered.
    pub product_id: ProductId,
    /// How many pieces.
    pub total: Quantity,
    /// Whether the client waits for the verdict.
    pub reply: ReplyMode,
    /// What the client calls it.
    pub key: Option<IdempotencyKey>,
}

impl NewOrder {
    /// Whether no client waits for the verdict.
    pub fn is_detached(&self) -> bool {
        self.reply == ReplyMode::Detached
    }
}
