//! The seller's ledger: every change of a product's stored pieces, with its reason. The sum of a product's movements is its
//! `stored_stock`.

use std::{collections::BTreeMap, fmt, str::FromStr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::domain::{
    ids::{IdempotencyKey, ProductId},
    inventory::{Inventories, Inventory, StockChange},
    quantity::Quantity,
    text::{is_readable, trimmed},
};

/// Why a product's stored pieces changed. In the order in which the movements of one batch are written: pieces come back
/// before they are sold again, so that no stored stock on the way is negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MovementKind {
    /// The seller counted.
    Recount,
    /// The seller added or removed pieces.
    Adjustment,
    /// Paid orders came back.
    Return,
    /// Orders were paid: their pieces left the stock.
    Sale,
}

impl MovementKind {
    pub const ALL: [Self; 4] = [Self::Recount, Self::Adjustment, Self::Return, Self::Sale];

    /// As written in answers and the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Recount => "recount",
            Self::Adjustment => "adjustment",
            Self::Return => "return",
            Self::Sale => "sale",
        }
    }

    /// The reverse of [`Self::as_str`].
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }
}

/// One change of a product's stored pieces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Movement {
    pub product_id: ProductId,
    /// By the database's clock.
    pub at: Timestamp,
    pub kind: MovementKind,
    /// In pieces, never 0: what left the stock is negative.
    pub change: i64,
    /// How many orders it is of; 0 for what the seller did.
    pub orders: u32,
    /// Stored pieces after it.
    pub stored_stock: i64,
    pub reason: Option<MovementReason>,
}

impl Movement {
    /// The seller counted; `None` when the stored pieces are as many as before.
    pub fn recount(
        product_id: ProductId,
        at: Timestamp,
        before: Inventory,
        after: Inventory,
    ) -> Option<Self> {
        let stored_stock = i64::from(after.stored());
        let change = stored_stock - i64::from(before.stored());
        let kind = MovementKind::Recount;
        (change != 0).then_some(Self { product_id, at, kind, change, orders: 0, stored_stock, reason: None })
    }

    /// A product begins with these pieces; `None` without any.
    pub fn opening(product_id: ProductId, at: Timestamp, inventory: Inventory) -> Option<Self> {
        let opening = Self::recount(product_id, at, Inventory::EMPTY, inventory)?;
        Some(Self { reason: Some(MovementReason(MovementReason::OPENING_BALANCE.to_owned())), ..opening })
    }

    /// The seller added or removed pieces.
    pub fn adjustment(
        product_id: ProductId,
        at: Timestamp,
        adjustment: &Adjustment,
        after: Inventory,
    ) -> Self {
        Self {
            product_id,
            at,
            kind: MovementKind::Adjustment,
            change: adjustment.change.get(),
            orders: 0,
            stored_stock: after.stored().into(),
            reason: adjustment.reason.clone(),
        }
    }

    /// Whether this adjustment of this product is what caused it.
    pub fn is_of(&self, product_id: ProductId, adjustment: &Adjustment) -> bool {
        let Adjustment { change, reason, .. } = adjustment;
        (self.product_id, self.change, &self.reason) == (product_id, change.get(), reason)
    }
}

/// A stored movement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerEntry {
    pub seq: MovementSeq,
    pub movement: Movement,
}

/// A movement's number. A later movement of the same product has a greater one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct MovementSeq(u64);

impl MovementSeq {
    /// What a number looks like, for error messages.
    pub const EXPECTED: &str = "the seq of a movement";

    /// `None` when the number is out of range.
    pub fn new(number: u64) -> Option<Self> {
        ProductId::new(number).map(|_| Self(number)) // the same range, for the same reason
    }

    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for MovementSeq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The text is not the number of a movement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not {}", MovementSeq::EXPECTED)]
pub struct InvalidMovementSeq;

impl FromStr for MovementSeq {
    type Err = InvalidMovementSeq;

    /// Spelled like a product id.
    fn from_str(text: &str) -> Result<Self, InvalidMovementSeq> {
        text.parse().map(|number: ProductId| Self(number.get())).map_err(|_| InvalidMovementSeq)
    }
}

/// The seller's own words for a movement: 1 to 100 characters after trimming. At least one is visible, and none changes the
/// direction of the text around it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct MovementReason(String);

impl MovementReason {
    /// In characters (Unicode scalar values).
    pub const MAX_LENGTH: usize = 100;
    /// What a reason looks like, for error messages.
    pub const EXPECTED: &str = "a text of 1 to 100 characters, blanks around it not counted, with something visible in \
                                it and without NUL and marks that change the direction of text";

    /// Of the pieces with which a product begins.
    pub const OPENING_BALANCE: &str = "opening balance";

    /// A reason as the database has it. Of a stored one only the length is checked.
    pub fn stored(text: &str) -> Option<Self> {
        trimmed(text, Self::MAX_LENGTH).map(|reason| Self(reason.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for MovementReason {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let reason = Self::stored(&text).filter(|reason| is_readable(&reason.0));
        reason.ok_or_else(|| format!("a reason is {}", Self::EXPECTED))
    }
}

/// A change of stock that the seller asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adjustment {
    pub change: StockChange,
    pub reason: Option<MovementReason>,
    /// The client's own name for it: it has one effect, however often it is sent.
    pub key: Option<IdempotencyKey>,
}

/// The movements of a batch, as they add up: one for each product and kind.
#[derive(Debug, Default)]
pub struct BatchMovements(BTreeMap<(ProductId, MovementKind), Sum>);

/// Orders of one product, and their pieces.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    pieces: i64,
    orders: u32,
}

impl BatchMovements {
    /// So many pieces of an order were paid, and left the stock.
    pub fn sold(&mut self, product_id: ProductId, pieces: Quantity) {
        self.add(product_id, MovementKind::Sale, -i64::from(pieces.get()));
    }

    /// So many pieces of an order came back into the stock.
    pub fn returned(&mut self, product_id: ProductId, pieces: Quantity) {
        self.add(product_id, MovementKind::Return, i64::from(pieces.get()));
    }

    fn add(&mut self, product_id: ProductId, kind: MovementKind, change: i64) {
        let sum = self.0.entry((product_id, kind)).or_default();
        sum.pieces += change;
        sum.orders += 1;
    }

    /// Of a batch after which the inventories are these. In the order of products.
    pub fn finish(self, after: &Inventories, at: Timestamp) -> Vec<Movement> {
        let mut movements: Vec<Movement> = Vec::with_capacity(self.0.len());
        // From the last one of each product, after which its stored pieces are known, to the first.
        for ((product_id, kind), Sum { pieces: change, orders }) in self.0.into_iter().rev() {
            let stored_stock = match movements.last().filter(|later| later.product_id == product_id) {
                Some(later) => later.stored_stock - later.change,
                None => after.get(&product_id).map_or(0, |inventory| i64::from(inventory.stored())),
            };
            movements.push(Movement { product_id, at, kind, change, orders, stored_stock, reason: None });
        }
        movements.reverse();
        movements
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::inventory::Stock;

    #[test]
    fn the_movements_of_a_batch_are_sums_that_lead_to_its_inventories() {
        let id = |number| ProductId::new(number).unwrap();
        let pieces = |pieces| Quantity::new(pieces).unwrap();
        let mut batch = BatchMovements::default();
        for (product, sold) in [(2, 3), (1, 5), (2, 4)] {
            batch.sold(id(product), pieces(sold));
        }
        batch.returned(id(2), pieces(6));
        let after = [(id(1), Inventory::of(Stock::new(10).unwrap())), (id(2), Inventory::EMPTY)].into();
        let found = batch.finish(&after, Timestamp::UNIX_EPOCH);
        let found: Vec<_> = found
            .iter()
            .map(|one| (one.product_id.get(), one.kind.as_str(), one.change, one.orders, one.stored_stock))
            .collect();
        assert_eq!(found, [(1, "sale", -5, 1, 10), (2, "return", 6, 1, 7), (2, "sale", -7, 2, 0)]);
    }

    #[test]
    fn a_reason_is_a_text_that_a_person_can_read() {
        let reason = |text: &str| MovementReason::try_from(text.to_owned());
        assert_eq!(reason("  damaged in transport ").unwrap().as_str(), "damaged in transport");
        assert!(reason(&"é".repeat(100)).is_ok());
        for bad in ["", " \t", "\u{200b}", "a\u{202e}b", "a\0", &"é".repeat(101)] {
            assert!(reason(bad).is_err(), "{bad:?}");
        }
        assert!(reason(MovementReason::OPENING_BALANCE).is_ok());
    }

    #[test]
    fn a_seq_has_one_spelling() {
        assert_eq!("17".parse(), Ok(MovementSeq(17)));
        for bad in ["", "0", "017", "-1", "1.0", "9007199254740992"] {
            assert_eq!(bad.parse::<MovementSeq>(), Err(InvalidMovementSeq), "{bad:?}");
        }
    }
}
