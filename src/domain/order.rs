//! An order: its quantity, status and changes.

use jiff::Timestamp;

use crate::domain::{
    ids::{OrderId, ProductId},
    inventory::{BooksDoNotBalance, Inventories},
    lines::Lines,
    names::{Buyer, PaymentReference},
    rejection::Rejection,
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
    /// What is known of its payment, if it was paid.
    pub payment: Option<Payment>,
    /// How far it has come, with what belongs to that stage.
    pub state: OrderState,
}

/// What is known of a payment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Payment {
    /// The shop's name for it.
    pub reference: Option<PaymentReference>,
    /// When the lane decided it. Not known of orders that an earlier release stored.
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

    /// When its reservation ends, if it was ever reserved.
    pub fn expires_at(&self) -> Option<Timestamp> {
        match self.state {
            OrderState::Accepted { expires_at, .. } => Some(expires_at),
            OrderState::Rejected(_) => None,
        }
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

    /// Changes the status of a reservation and moves the pieces of all its lines, or nothing. Returns whether anything changed:
    /// all other statuses are final, and an expiry before its time has no effect.
    pub fn change(
        &mut self,
        change: Change,
        inventories: &mut Inventories,
        at: Timestamp,
    ) -> Result<bool, CannotChange> {
        let OrderState::Accepted { status: OrderStatus::Reserved, expires_at } = self.state else {
            return Ok(false);
        };
        if change == Change::Expire && expires_at > at {
            return Ok(false);
        }
        let lines = self.lines.as_ref().ok_or(CannotChange::LinesNotKnown)?;
        // First all lines are tried: a row that somebody changed by hand must not leave an order changed in part.
        let mut moved = Vec::with_capacity(lines.as_slice().len());
        for line in lines.as_slice() {
            let mut inventory =
                *inventories.get(&line.product_id).ok_or(CannotChange::NoInventory(line.product_id))?;
            match change {
                Change::Pay => inventory.pay(line.total)?,
                Change::Cancel | Change::Expire => inventory.release(line.total)?,
            }
            moved.push((line.product_id, inventory));
        }
        inventories.extend(moved);
        self.state = OrderState::Accepted { status: change.leads_to(), expires_at };
        Ok(true)
    }
}

/// Why a reservation cannot be changed: somebody changed the database by hand, or it is a bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CannotChange {
    #[error(transparent)]
    Books(#[from] BooksDoNotBalance),
    #[error("product {0} has no inventory, though it has orders")]
    NoInventory(ProductId),
    #[error("it is reserved, but has no lines")]
    LinesNotKnown,
}

/// A change of a reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    /// The buyer paid.
    Pay,
    /// The buyer cancels.
    Cancel,
    /// The reservation has expired; no effect before its time.
    Expire,
}

impl Change {
    pub const ALL: [Self; 3] = [Self::Pay, Self::Cancel, Self::Expire];

    /// As written in messages and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pay => "pay",
            Self::Cancel => "cancel",
            Self::Expire => "expire",
        }
    }

    /// The reverse of [`Self::as_str`].
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|change| change.as_str() == word)
    }

    /// The status of a reserved order after the change.
    pub const fn leads_to(self) -> OrderStatus {
        match self {
            Self::Pay => OrderStatus::Paid,
            Self::Cancel => OrderStatus::Cancelled,
            Self::Expire => OrderStatus::Expired,
        }
    }
}

serde_as_word!(OrderStatus, "a status of an order");
serde_as_word!(Change, "a change of an order");

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
        for change in Change::ALL {
            let json = format!("\"{}\"", change.as_str());
            assert_eq!(serde_json::to_string(&change).unwrap(), json);
            assert_eq!(serde_json::from_str::<Change>(&json).unwrap(), change);
        }
        for word in ["pending", "Reserved", "pay", ""] {
            assert_eq!(OrderStatus::from_word(word), None, "{word}");
        }
        assert!(serde_json::from_str::<OrderStatus>("\"pending\"").is_err());
        assert!(serde_json::from_str::<Change>("\"paid\"").is_err());
    }
}
