//! An order: its lines, its status, and what can become of it. [`super::life`] says how.

use jiff::Timestamp;

use crate::domain::{
    ids::{OrderId, ProductId},
    lines::Lines,
    names::{Buyer, PaymentReference},
    rejection::Rejection,
    time::from_millis,
    word::serde_as_word,
};

pub use crate::domain::quantity::Quantity;

/// The status of a stored order. `pending`, the status before the verdict, is not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderStatus {
    /// Its pieces are set aside for the buyer.
    Reserved,
    /// Paid; the pieces left the stock.
    Paid,
    /// The buyer gave it up; its pieces are available again.
    Cancelled,
    /// Not paid in time; its pieces are available again.
    Expired,
    /// It was paid, and came back.
    Returned,
    /// Nothing was ever reserved.
    Rejected,
}

impl OrderStatus {
    /// What the API calls an order that is not decided yet. No stored order has this status.
    pub const PENDING: &'static str = "pending";

    /// All of them, in the order in which an order can have them.
    pub const ALL: [Self; 6] =
        [Self::Reserved, Self::Paid, Self::Cancelled, Self::Expired, Self::Returned, Self::Rejected];

    /// As written in answers, messages and the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reserved => "reserved",
            Self::Paid => "paid",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::Returned => "returned",
            Self::Rejected => "rejected",
        }
    }

    /// Whether an order with this status holds no pieces that could come back: a paid one may be returned, but need not.
    pub const fn is_final(self) -> bool {
        !matches!(self, Self::Reserved)
    }

    /// Whether the buyer of an order with this status has its pieces, reserved or paid.
    pub const fn holds_pieces(self) -> bool {
        matches!(self, Self::Reserved | Self::Paid)
    }

    /// The reverse of [`Self::as_str`].
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == word)
    }
}

/// A stored order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Its name, which also says when it was created.
    pub id: OrderId,
    /// What was ordered. `None`: it was cancelled before its turn in the lane, and is not known until then.
    pub lines: Option<Lines>,
    /// Who ordered, if the shop said it.
    pub buyer: Option<Buyer>,
    /// What is known of its payment, if one came. Of an expired order: it came too late, and the money must go back.
    pub payment: Option<Payment>,
    /// How far it has come, with what belongs to that stage.
    pub state: OrderState,
}

/// What is known of a payment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Payment {
    /// The shop's name for it.
    pub reference: Option<PaymentReference>,
    /// When the lane decided it, also when it came too late: then the order is expired. Not known of orders that an earlier
    /// release stored.
    pub paid_at: Option<Timestamp>,
}

/// The status of a stored order, with the data of that status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderState {
    /// Its pieces were reserved once.
    Accepted {
        /// The current status; never [`OrderStatus::Rejected`].
        status: OrderStatus,
        /// When the reservation ends, or would have ended.
        expires_at: Timestamp,
    },
    /// Rejected while it was detached.
    Rejected(Rejection),
}

impl Order {
    pub fn status(&self) -> OrderStatus {
        match self.state {
            OrderState::Accepted { status, .. } => status,
            OrderState::Rejected(_) => OrderStatus::Rejected,
        }
    }

    /// Whether the buyer has pieces by it now: reserved or paid ones.
    pub fn holds_pieces(&self) -> bool {
        self.status().holds_pieces()
    }

    /// When its reservation ends, if it was ever reserved.
    pub fn expires_at(&self) -> Option<Timestamp> {
        match self.state {
            OrderState::Accepted { expires_at, .. } => Some(expires_at),
            OrderState::Rejected(_) => None,
        }
    }

    /// The name of its payment.
    pub fn payment_reference(&self) -> Option<&PaymentReference> {
        self.payment.as_ref()?.reference.as_ref()
    }

    /// Why it was rejected, if it was.
    pub fn rejection(&self) -> Option<Rejection> {
        match self.state {
            OrderState::Accepted { .. } => None,
            OrderState::Rejected(rejection) => Some(rejection),
        }
    }

    /// The product in whose lane it is decided, if that is known.
    pub fn lane(&self) -> Option<ProductId> {
        self.lines.as_ref().map(|lines| lines.first().product_id)
    }

    /// Whether a line of it is of this product.
    pub fn has_product(&self, product_id: ProductId) -> bool {
        self.lines.as_ref().is_some_and(|lines| lines.products().any(|id| id == product_id))
    }

    /// Whether the order is of these lines and this buyer. An idempotency key may repeat only such an order.
    pub fn is_for(&self, lines: &Lines, buyer: Option<&Buyer>) -> bool {
        self.lines.as_ref() == Some(lines) && self.buyer.as_ref() == buyer
    }

    /// The same order with another status. A rejected order stays rejected.
    pub fn with_status(self, status: OrderStatus) -> Self {
        let state = match self.state {
            OrderState::Accepted { expires_at, .. } => OrderState::Accepted { status, expires_at },
            rejected => rejected,
        };
        Self { state, ..self }
    }

    /// Whether it was cancelled before its turn in the lane, so that it never had any pieces: [`Order::given_up`].
    pub fn was_given_up(&self) -> bool {
        let ends_before_it_begins = |end: Timestamp| end < self.id.created_at();
        self.status() == OrderStatus::Cancelled && self.expires_at().is_some_and(ends_before_it_begins)
    }

    /// An order that is cancelled before its turn in the lane. What tells it from others is that its reservation ends 1 ms before
    /// the order was created: no real one does.
    pub fn given_up(id: OrderId) -> Self {
        let expires_at = from_millis(id.created_at().as_millisecond() - 1);
        let state = OrderState::Accepted { status: OrderStatus::Cancelled, expires_at };
        Self { id, lines: None, buyer: None, payment: None, state }
    }
}

/// A change of a stored order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    /// The buyer paid.
    Pay {
        /// The shop's name for the payment.
        reference: Option<PaymentReference>,
    },
    /// The buyer cancels.
    Cancel,
    /// The reservation has expired; no effect before its time.
    Expire,
    /// The reservation shall hold for longer.
    Extend,
    /// The paid order came back.
    Return {
        /// Whether its pieces can be sold again.
        restock: bool,
    },
}

/// What a change does, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChangeKind {
    Pay,
    Cancel,
    Expire,
    Extend,
    Return,
}

impl Change {
    pub const fn kind(&self) -> ChangeKind {
        match self {
            Self::Pay { .. } => ChangeKind::Pay,
            Self::Cancel => ChangeKind::Cancel,
            Self::Expire => ChangeKind::Expire,
            Self::Extend => ChangeKind::Extend,
            Self::Return { .. } => ChangeKind::Return,
        }
    }
}

impl ChangeKind {
    pub const ALL: [Self; 5] = [Self::Pay, Self::Cancel, Self::Expire, Self::Extend, Self::Return];

    /// As written in messages and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pay => "pay",
            Self::Cancel => "cancel",
            Self::Expire => "expire",
            Self::Extend => "extend",
            Self::Return => "return",
        }
    }

    /// The reverse of [`Self::as_str`].
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|change| change.as_str() == word)
    }

    /// The status of an order after the change.
    pub const fn leads_to(self) -> OrderStatus {
        match self {
            Self::Pay => OrderStatus::Paid,
            Self::Cancel => OrderStatus::Cancelled,
            Self::Expire => OrderStatus::Expired,
            Self::Extend => OrderStatus::Reserved,
            Self::Return => OrderStatus::Returned,
        }
    }

    /// Whether it may change an order of this status: only the lane can tell. An order of any other status stays as it is.
    pub const fn may_change(self, status: OrderStatus) -> bool {
        match status {
            OrderStatus::Reserved => !matches!(self, Self::Return),
            // A payment that comes too late.
            OrderStatus::Expired => matches!(self, Self::Pay),
            OrderStatus::Paid => matches!(self, Self::Return),
            OrderStatus::Cancelled | OrderStatus::Returned | OrderStatus::Rejected => false,
        }
    }
}

serde_as_word!(OrderStatus, "a status of an order");
serde_as_word!(ChangeKind, "a change of an order");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_and_changes_are_the_same_words_everywhere() {
        for status in OrderStatus::ALL {
            let json = format!("\"{}\"", status.as_str());
            assert_eq!(serde_json::to_string(&status).unwrap(), json);
            assert_eq!(serde_json::from_str::<OrderStatus>(&json).unwrap(), status);
            assert_ne!(status.as_str(), OrderStatus::PENDING);
        }
        for change in ChangeKind::ALL {
            let json = format!("\"{}\"", change.as_str());
            assert_eq!(serde_json::to_string(&change).unwrap(), json);
            assert_eq!(serde_json::from_str::<ChangeKind>(&json).unwrap(), change);
        }
        for word in ["pending", "Reserved", "pay", ""] {
            assert_eq!(OrderStatus::from_word(word), None, "{word}");
        }
        assert!(serde_json::from_str::<OrderStatus>("\"pending\"").is_err());
        assert!(serde_json::from_str::<ChangeKind>("\"paid\"").is_err());
    }
}
