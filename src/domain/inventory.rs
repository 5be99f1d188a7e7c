//! The pieces of one product, and all changes to them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::domain::{ids::ProductId, quantity::Quantity};

/// The inventories of a batch, by product.
pub type Inventories = BTreeMap<ProductId, Inventory>;

/// How many pieces the seller counted in the warehouse: 0 to [`Stock::MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32")]
pub struct Stock(u32);

impl Stock {
    /// 2^31 − 1, so that every client's and database's 32-bit integer holds it.
    pub const MAX: u32 = i32::MAX as u32;
    pub const ZERO: Self = Self(0);
    /// What a stock looks like, for error messages.
    pub const EXPECTED: &str = "an integer from 0 to 2147483647";

    /// `None` when the number is out of range.
    pub const fn new(pieces: u32) -> Option<Self> {
        if pieces <= Self::MAX { Some(Self(pieces)) } else { None }
    }

    pub const fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for Stock {
    type Error = String;

    fn try_from(pieces: u32) -> Result<Self, String> {
        Self::new(pieces).ok_or_else(|| format!("a stock is {}", Self::EXPECTED))
    }
}

/// By how many pieces the seller changes the stock: not 0, and from −[`Stock::MAX`] to [`Stock::MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "i64")]
pub struct StockChange(i64);

impl StockChange {
    /// What a change looks like, for error messages.
    pub const EXPECTED: &str = "an integer from -2147483647 to 2147483647, but not 0";

    /// `None` when the number is 0 or out of range.
    pub const fn new(pieces: i64) -> Option<Self> {
        if pieces != 0 && pieces.unsigned_abs() <= Stock::MAX as u64 { Some(Self(pieces)) } else { None }
    }

    pub const fn get(self) -> i64 {
        self.0
    }

    /// Whether more pieces are available after it.
    pub const fn adds_pieces(self) -> bool {
        self.0 > 0
    }
}

impl TryFrom<i64> for StockChange {
    type Error = String;

    fn try_from(pieces: i64) -> Result<Self, String> {
        Self::new(pieces).ok_or_else(|| format!("a change of stock is {}", Self::EXPECTED))
    }
}

/// The pieces of one product: those that may still be ordered, and those that are ordered but not yet paid. The stored
/// pieces are their sum. It is computed, so it always agrees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inventory {
    available: u32,
    reserved: u32,
}

/// Fewer pieces are available than the order asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InsufficientStock {
    /// Pieces that may still be ordered.
    pub available: u32,
}

/// With the pieces that come back there would be more than [`Stock::MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StockTooLarge;

/// The seller would have fewer pieces than buyers have reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StockBelowReserved {
    /// Pieces that are ordered and not yet paid.
    pub reserved: u32,
}

/// The seller would have more than [`Stock::MAX`] pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StockAboveMaximum {
    /// Pieces in the warehouse now.
    pub stored: u32,
}

/// Why the stock cannot change by so many pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidAdjustment {
    BelowReserved(StockBelowReserved),
    AboveMaximum(StockAboveMaximum),
}

/// The numbers of an inventory do not add up, or a change releases more than is reserved. No input causes this: either
/// somebody changed the database by hand, or it is a bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the books do not balance: {stored} stored, {available} available, {reserved} reserved")]
pub struct BooksDoNotBalance {
    /// Pieces in the warehouse.
    pub stored: i64,
    /// Pieces that may still be ordered.
    pub available: i64,
    /// Pieces that are ordered and not yet paid.
    pub reserved: i64,
}

impl Inventory {
    /// The inventory of a new product.
    pub const EMPTY: Self = Self { available: 0, reserved: 0 };

    /// With nothing reserved.
    pub const fn of(stock: Stock) -> Self {
        Self { available: stock.0, reserved: 0 }
    }

    /// From the columns of a database.
    pub fn from_columns(stored: i64, available: i64, reserved: i64) -> Result<Self, BooksDoNotBalance> {
        let wrong = BooksDoNotBalance { stored, available, reserved };
        if stored != available.saturating_add(reserved) || stored > i64::from(Stock::MAX) {
            return Err(wrong);
        }
        match (u32::try_from(available), u32::try_from(reserved)) {
            (Ok(available), Ok(reserved)) => Ok(Self { available, reserved }),
            _ => Err(wrong),
        }
    }

    /// Pieces in the warehouse.
    pub const fn stored(self) -> u32 {
        self.available + self.reserved
    }

    /// Pieces that may still be ordered.
    pub const fn available(self) -> u32 {
        self.available
    }

    /// Pieces that are ordered and not yet paid.
    pub const fn reserved(self) -> u32 {
        self.reserved
    }

    /// Reserves all pieces of an order, or none.
    pub fn reserve(&mut self, total: Quantity) -> Result<(), InsufficientStock> {
        let Some(available) = self.available.checked_sub(total.get()) else {
            return Err(InsufficientStock { available: self.available });
        };
        self.available = available;
        self.reserved += total.get();
        Ok(())
    }

    /// Reserved pieces are paid and leave the warehouse.
    pub fn pay(&mut self, total: Quantity) -> Result<(), BooksDoNotBalance> {
        self.reserved = self.take_back(total)?;
        Ok(())
    }

    /// Reserved pieces become available again.
    pub fn release(&mut self, total: Quantity) -> Result<(), BooksDoNotBalance> {
        self.reserved = self.take_back(total)?;
        self.available += total.get();
        Ok(())
    }

    /// Available pieces are paid at once and leave the warehouse, all of an order or none.
    pub fn sell(&mut self, total: Quantity) -> Result<(), InsufficientStock> {
        let available = self.available.checked_sub(total.get());
        self.available = available.ok_or(InsufficientStock { available: self.available })?;
        Ok(())
    }

    /// Pieces that were paid come back and are available again.
    pub fn put_back(&mut self, total: Quantity) -> Result<(), StockTooLarge> {
        if total.get() > Stock::MAX - self.stored() {
            return Err(StockTooLarge);
        }
        self.available += total.get();
        Ok(())
    }

    /// Sets the stored pieces to what the seller counted. All that are not reserved are available.
    pub fn recount(&mut self, stock: Stock) -> Result<(), StockBelowReserved> {
        let Some(available) = stock.get().checked_sub(self.reserved) else {
            return Err(StockBelowReserved { reserved: self.reserved });
        };
        self.available = available;
        Ok(())
    }

    /// Changes the stored pieces by a difference; those that are available change with them.
    pub fn adjust(&mut self, change: StockChange) -> Result<(), InvalidAdjustment> {
        let stored = i64::from(self.stored()) + change.get();
        match u32::try_from(stored).ok().and_then(Stock::new) {
            Some(stored) => self.recount(stored).map_err(InvalidAdjustment::BelowReserved),
            None if change.adds_pieces() => {
                Err(InvalidAdjustment::AboveMaximum(StockAboveMaximum { stored: self.stored() }))
            }
            None => Err(InvalidAdjustment::BelowReserved(StockBelowReserved { reserved: self.reserved })),
        }
    }

    fn take_back(self, total: Quantity) -> Result<u32, BooksDoNotBalance> {
        self.reserved.checked_sub(total.get()).ok_or(BooksDoNotBalance {
            stored: self.stored().into(),
            available: self.available.into(),
            reserved: i64::from(self.reserved) - i64::from(total.get()),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Move {
        Reserve(u32),
        Pay(u32),
        Release(u32),
        Recount(u32),
        Sell(u32),
        PutBack(u32),
        Adjust(i64),
    }

    fn moves() -> impl Strategy<Value = Move> {
        // Small and huge numbers: the small ones meet, the huge ones would overflow.
        let pieces = prop_oneof![3 => 1_u32..20, 1 => 1_u32..=Quantity::MAX];
        prop_oneof![
            pieces.clone().prop_map(Move::Reserve),
            pieces.clone().prop_map(Move::Pay),
            pieces.clone().prop_map(Move::Release),
            pieces.clone().prop_map(Move::Recount),
            pieces.clone().prop_map(Move::Sell),
            pieces.clone().prop_map(Move::PutBack),
            (pieces, any::<bool>()).prop_map(|(pieces, more)| {
                Move::Adjust(if more { i64::from(pieces) } else { -i64::from(pieces) })
            }),
        ]
    }

    proptest! {
        /// A move does exactly what it says or nothing at all, and the numbers never leave their range.
        #[test]
        fn every_move_keeps_the_books(all in proptest::collection::vec(moves(), 0..60)) {
            let mut inventory = Inventory::EMPTY;
            for one in all {
                let before = inventory;
                let (a, r) = (i64::from(before.available()), i64::from(before.reserved()));
                let (done, wanted) = match one {
                    Move::Reserve(n) => (inventory.reserve(Quantity::new(n).unwrap()).is_ok(), (a - i64::from(n), r + i64::from(n))),
                    Move::Pay(n) => (inventory.pay(Quantity::new(n).unwrap()).is_ok(), (a, r - i64::from(n))),
                    Move::Release(n) => (inventory.release(Quantity::new(n).unwrap()).is_ok(), (a + i64::from(n), r - i64::from(n))),
                    Move::Recount(n) => (inventory.recount(Stock::new(n).unwrap()).is_ok(), (i64::from(n) - r, r)),
                    Move::Sell(n) => (inventory.sell(Quantity::new(n).unwrap()).is_ok(), (a - i64::from(n), r)),
                    Move::PutBack(n) => (inventory.put_back(Quantity::new(n).unwrap()).is_ok(), (a + i64::from(n), r)),
                    Move::Adjust(n) => (inventory.adjust(StockChange::new(n).unwrap()).is_ok(), (a + n, r)),
                };
                let possible = wanted.0 >= 0 && wanted.1 >= 0 && wanted.0 + wanted.1 <= i64::from(Stock::MAX);
                prop_assert_eq!(done, possible);
                let now = (i64::from(inventory.available()), i64::from(inventory.reserved()));
                prop_assert_eq!(now, if possible { wanted } else { (a, r) });
                prop_assert_eq!(i64::from(inventory.stored()), now.0 + now.1);
                prop_assert!(inventory.stored() <= Stock::MAX);
            }
        }
    }

    #[test]
    fn an_adjustment_that_is_not_possible_says_why() {
        let mut inventory = Inventory::of(Stock(10));
        inventory.reserve(Quantity::new(4).unwrap()).unwrap();
        let adjusted = |change| inventory.clone().adjust(StockChange::new(change).unwrap());
        let below = Err(InvalidAdjustment::BelowReserved(StockBelowReserved { reserved: 4 }));
        let above = Err(InvalidAdjustment::AboveMaximum(StockAboveMaximum { stored: 10 }));
        let max = i64::from(Stock::MAX);
        for (change, expected) in [
            (-6, Ok(())),
            (-7, below),
            (-11, below),
            (-max, below),
            (max - 10, Ok(())),
            (max - 9, above),
            (max, above),
        ] {
            assert_eq!(adjusted(change), expected, "{change}");
        }
        for change in [0, max + 1, -max - 1, i64::MIN, i64::MAX] {
            assert_eq!(StockChange::new(change), None);
        }
    }

    #[test]
    fn columns_that_do_not_add_up_are_refused() {
        assert!(Inventory::from_columns(100, 40, 60).is_ok());
        for (stored, available, reserved) in
            [(100, 50, 60), (0, -1, 1), (-1, 0, -1), (1 << 31, 1 << 31, 0), (i64::MAX, i64::MAX, 1)]
        {
            assert!(
                Inventory::from_columns(stored, available, reserved).is_err(),
                "{stored} {available} {reserved}"
            );
        }
    }
}
