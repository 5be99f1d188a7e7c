//! The words of an order, which everything else uses.

use jiff::Timestamp;

use crate::domain::{
    ids::{OrderId, ProductId},
    inventory::{BooksDoNotBalance, Inventory},
    rejection::Rejection,
    word::serde_as_word,
};

pub use crate::domain::quantity::Quantity;

/// How far an order has come. `pending`, the stage before its verdict, is not stored.
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

    /// All of them, in the order of a life.
    pub const ALL: [Self; 5] = [Self::Reserved, Self::Paid, Self::Cancelled, Self::Expired, Self::Rejected];

    /// The word for it, in answers, messages and the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reserved => "reserved",
            Self::Paid => "paid",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::Rejected => "rejected",
        }
    }

    /// The status of that word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == word)
    }
}

/// An order on record.
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

/// How far an order on record has come, with what belongs to that stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderState {
    /// Its pieces were reserved once.
    Accepted {
        /// What became of it since; never [`OrderStatus::Rejected`].
        status: OrderStatus,
        /// When the reservation ends, or would have ended.
        expires_at: Timestamp,
    },
    /// Rejected after its buyer had stopped waiting.
    Rejected(Rejection),
}

impl Order {
    /// How far it has come.
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

    /// Whether it is of this product and total: what an idempotency key stands for.
    pub fn is_for(&self, product_id: ProductId, total: Quantity) -> bool {
        (self.product_id, self.total) == (product_id, total)
    }

    /// The same order at another stage. One that was rejected stays so.
    pub fn with_status(self, status: OrderStatus) -> Self {
        let state = match self.state {
            OrderState::Accepted { expires_at, .. } => OrderState::Accepted { status, expires_at },
            rejected => rejected,
        };
        Self { state, ..self }
    }

    /// Takes a reservation further, and its pieces with it. All other stages are final: nothing happens, as with an
    /// expiry before its time. Whether anything changed is what it returns.
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

/// What can become of a reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    /// The buyer paid.
    Pay,
    /// The buyer gives it up.
    Cancel,
    /// Its time is over, if it is.
    Expire,
}

impl Change {
    pub const ALL: [Self; 3] = [Self::Pay, Self::Cancel, Self::Expire];

    /// The word for it, in messages and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pay => "pay",
            Self::Cancel => "cancel",
            Self::Expire => "expire",
        }
    }

    /// The change of that word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|change| change.as_str() == word)
    }

    /// What the order is afterwards, if the change is possible.
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
