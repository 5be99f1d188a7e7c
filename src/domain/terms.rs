//! [`Terms`]: the seller's rules for the sale of one product.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::domain::{
    ids::ProductId, lines::Line, quantity::Quantity, rejection::Rejection, time::from_millis,
};

/// The rules for the sale of one product. By default it is on sale at any time, and without limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// `false`: the sale is paused.
    pub selling: bool,
    pub period: SalePeriod,
    /// Pieces that one order may ask for.
    pub max_per_order: Option<Quantity>,
    /// Pieces that one buyer may hold. Below `max_per_order`, it is the limit that counts; that is no contradiction.
    pub max_per_buyer: Option<Quantity>,
    /// How long a reservation holds. `None`: as long as the worker's setting says.
    pub hold: Option<Hold>,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            selling: true,
            period: SalePeriod::ALWAYS,
            max_per_order: None,
            max_per_buyer: None,
            hold: None,
        }
    }
}

impl Terms {
    /// Whether they restrict nothing.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Why every order of the product is refused at this time, whatever it asks for.
    pub fn closed(&self, product_id: ProductId, at: Timestamp) -> Option<Rejection> {
        let SalePeriod { opens_at, closes_at } = self.period;
        if !self.selling {
            return Some(Rejection::SalePaused { product_id });
        }
        if let Some(opens_at) = opens_at.filter(|opens_at| at < *opens_at) {
            return Some(Rejection::SaleNotOpen { product_id, opens_at });
        }
        closes_at.filter(|closes_at| *closes_at <= at).map(|_| Rejection::SaleClosed { product_id })
    }

    /// Whether an order with this line of the product may be accepted at this time.
    pub fn check(&self, Line { product_id, total }: Line, at: Timestamp) -> Result<(), Rejection> {
        if let Some(rejection) = self.closed(product_id, at) {
            return Err(rejection);
        }
        match self.max_per_order {
            Some(limit) if total > limit => Err(Rejection::LimitPerOrder { product_id, limit: limit.get() }),
            _ => Ok(()),
        }
    }
}

/// The terms of those products of a batch that have other terms than the default.
pub type SpecialTerms = BTreeMap<ProductId, Terms>;

/// When a product is on sale: from `opens_at`, until just before `closes_at`. In whole milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SalePeriod {
    opens_at: Option<Timestamp>,
    closes_at: Option<Timestamp>,
}

/// The sale would close before it opens, or at that moment: nobody could ever order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the sale would close before it opens, or at the same moment")]
pub struct NeverOpen;

impl SalePeriod {
    pub const ALWAYS: Self = Self { opens_at: None, closes_at: None };

    /// Fractions of a millisecond are cut off.
    pub fn new(opens_at: Option<Timestamp>, closes_at: Option<Timestamp>) -> Result<Self, NeverOpen> {
        let whole = |at: Timestamp| from_millis(at.as_millisecond());
        let (opens_at, closes_at) = (opens_at.map(whole), closes_at.map(whole));
        match (opens_at, closes_at) {
            (Some(opens_at), Some(closes_at)) if closes_at <= opens_at => Err(NeverOpen),
            _ => Ok(Self { opens_at, closes_at }),
        }
    }

    /// `None`: it is open from the beginning.
    pub fn opens_at(self) -> Option<Timestamp> {
        self.opens_at
    }

    /// `None`: it never closes.
    pub fn closes_at(self) -> Option<Timestamp> {
        self.closes_at
    }
}

/// How long a reservation holds: 1 second to [`Hold::MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32")]
pub struct Hold(u32);

impl Hold {
    /// 365 days, in seconds. The setting for all products has the same maximum.
    pub const MAX: u32 = 365 * 24 * 3_600;
    /// What it looks like, for error messages.
    pub const EXPECTED: &str = "an integer from 1 to 31536000";

    /// `None` when the number is out of range.
    pub const fn new(seconds: u32) -> Option<Self> {
        if seconds >= 1 && seconds <= Self::MAX { Some(Self(seconds)) } else { None }
    }

    pub const fn seconds(self) -> u32 {
        self.0
    }

    /// When a reservation that begins then ends.
    pub fn ends_at(self, begin: Timestamp) -> Timestamp {
        begin.saturating_add(SignedDuration::from_secs(self.0.into())).unwrap_or(Timestamp::MAX)
    }
}

impl TryFrom<u32> for Hold {
    type Error = String;

    fn try_from(seconds: u32) -> Result<Self, String> {
        Self::new(seconds).ok_or_else(|| format!("a hold is {}", Self::EXPECTED))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sale_opens_before_it_closes() {
        let period = |opens_at: Option<i64>, closes_at: Option<i64>| {
            SalePeriod::new(opens_at.map(from_millis), closes_at.map(from_millis))
        };
        for (opens_at, closes_at) in [(None, None), (Some(5), None), (None, Some(5)), (Some(4), Some(5))] {
            let period = period(opens_at, closes_at).unwrap();
            assert_eq!(period.opens_at(), opens_at.map(from_millis));
            assert_eq!(period.closes_at(), closes_at.map(from_millis));
        }
        for (opens_at, closes_at) in [(5, 5), (6, 5), (i64::MAX, i64::MIN)] {
            assert_eq!(period(Some(opens_at), Some(closes_at)), Err(NeverOpen), "{opens_at} {closes_at}");
        }
        let micros = |micros| Some(Timestamp::from_microsecond(micros).unwrap());
        assert_eq!(SalePeriod::new(micros(5_001), micros(5_999)), Err(NeverOpen), "of one millisecond");
        assert_eq!(SalePeriod::new(micros(5_999), None).unwrap().opens_at(), Some(from_millis(5)));
    }

    #[test]
    fn a_line_is_refused_for_the_first_rule_that_it_breaks() {
        let product_id = ProductId::new(7).unwrap();
        let period = |opens_at: i64, closes_at: i64| {
            SalePeriod::new(Some(from_millis(opens_at)), Some(from_millis(closes_at))).unwrap()
        };
        let (paused, not_open) = (
            Rejection::SalePaused { product_id },
            Rejection::SaleNotOpen { product_id, opens_at: from_millis(5) },
        );
        let (closed, limited) =
            (Rejection::SaleClosed { product_id }, Rejection::LimitPerOrder { product_id, limit: 2 });
        let terms = Terms { period: period(5, 8), max_per_order: Quantity::new(2), ..Terms::default() };
        for (selling, at, pieces, expected) in [
            (false, 4, 3, Err(paused)),
            (false, 6, 1, Err(paused)),
            (true, 4, 3, Err(not_open)),
            (true, 5, 3, Err(limited)),
            (true, 5, 2, Ok(())),
            (true, 7, 1, Ok(())),
            (true, 8, 3, Err(closed)),
            (true, i64::MAX, 1, Err(closed)),
        ] {
            let (terms, at) = (Terms { selling, ..terms }, from_millis(at));
            let line = Line { product_id, total: Quantity::new(pieces).unwrap() };
            assert_eq!(terms.check(line, at), expected, "{selling} {at} {pieces}");
            let of_every_order = expected.err().filter(|rejection| *rejection != limited);
            assert_eq!(terms.closed(product_id, at), of_every_order, "{selling} {at}");
        }
        let line = Line { product_id, total: Quantity::new(Quantity::MAX).unwrap() };
        assert_eq!(Terms::default().check(line, from_millis(0)), Ok(()));
    }

    #[test]
    fn a_hold_is_a_second_to_a_year() {
        for (seconds, is_hold) in [(0, false), (1, true), (Hold::MAX, true), (Hold::MAX + 1, false)] {
            assert_eq!(Hold::new(seconds).map(Hold::seconds), is_hold.then_some(seconds));
        }
        let hold = Hold::new(90).unwrap();
        assert_eq!(hold.ends_at(from_millis(1_500)), from_millis(91_500));
        assert_eq!(hold.ends_at(Timestamp::MAX), Timestamp::MAX);
    }

    #[test]
    fn only_the_default_restricts_nothing() {
        assert!(Terms::default().is_default());
        let paused = Terms { selling: false, ..Terms::default() };
        let limited = Terms { max_per_buyer: Quantity::new(1), ..Terms::default() };
        assert!(!paused.is_default() && !limited.is_default());
    }
}
