//! An order: its quantity, status and changes.

use jiff::Timestamp;

use crate::domain::{
    ids::{OrderId, ProductId},
    inventory::{BooksDoNotBalance, Inventory},
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
    /// Nothing was ever reserved.
    Rejected,
}

impl OrderStatus {
    /// What the API calls an order that is not decided yet. No stored order has this status.
    pub const PENDING: &'static str = "pending";

    /// All of them, in the order in which an order can have them.
    pub const ALL: [Self; 5] = [Self::Reserved, Self::Paid, Self::Cancelled, Self::Expired, Self::Rejected];

    /// As written in answers, messages and the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reserved => "reserved",
            Self::Paid => "paid",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::Rejected => "rejected",
        }
    }

    /// Whether an order with this status never changes again.
    pub const fn is_final(self) -> bool {
        !matches!(self, Self::Reserved)
    }

    /// The reverse of [`Self::as_str`].
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == word)
    }
}

/// A stored order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// Its name, which also says when it was created.
    pub id: OrderId,
    /// What was ordered.
    pub product_id: ProductId,
    /// How many pieces.
    pub total: Quantity,
    /// How far it has come, with what belongs to that stage.
    pub state: OrderState,
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

    /// Whether the order is of this product and total. An idempotency key may repeat only such an order.
    pub fn is_for(&self, product_id: ProductId, total: Quantity) -> bool {
        (self.product_id, self.total) == (product_id, total)
    }

    /// The same order with another status. A rejected order stays rejected.
    pub fn with_status(self, status: OrderStatus) -> Self {
        let state = match self.state {
            OrderState::Accepted { expires_at, .. } => OrderState::Accepted { status, expires_at },
            rejected => rejected,
        };
        Self { state, ..self }
    }

    /// Changes the status of a reservation and moves its pieces. Returns whether anything changed: all other statuses are final,
    /// and an expiry before its time has no effect.
    pub fn change(
        &mut self,
        change: Change,
        inventory: &mut Inventory,
        at: Timestamp,
    ) -> Result<bool, BooksDoNotBalance> {
        let OrderState::Accepted { status: OrderStatus::Reserved, expires_at } = self.state else {
            return Ok(false);
        };
        match change {
            Change::Pay => inventory.pay(self.total)?,
            Change::Expire if expires_at > at => return Ok(false),
            Change::Cancel | Change::Expire => inventory.release(self.total)?,
        }
        *self = self.with_status(change.leads_to());
        Ok(true)
    }
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
