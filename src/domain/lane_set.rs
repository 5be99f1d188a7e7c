//! Which lanes a process uses: the settings `QUEUE_PREFIX` and `LANES`.

use std::{fmt, num::NonZeroU32, str::FromStr};

use crate::domain::ids::ProductId;

/// A lane within its set: the product's id, or its remainder.
pub type LaneNumber = u64;

/// The lane of the archived products, where each other product has its own.
const ARCHIVED: LaneNumber = 0;

/// The lanes that a process uses. Processes with different sets do not meet in the queue, so each stores its set in the
/// database, and workers serve all sets that were used lately.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LaneSet {
    /// The prefix of every queue and exchange name; may be empty.
    pub prefix: String,
    pub mode: LaneMode,
}

impl LaneSet {
    /// What a lane is called, in the broker and in the log.
    pub fn name_of(&self, number: LaneNumber) -> String {
        let prefix = &self.prefix;
        match self.mode {
            LaneMode::Product if number == ARCHIVED => format!("{prefix}orders.archived"),
            LaneMode::Product => format!("{prefix}orders.product.{number}"),
            LaneMode::Hash(_) => format!("{prefix}orders.lane.{number}"),
        }
    }

    /// The lane that all archived products share. `None`: products share their lanes anyhow.
    pub fn archived(&self) -> Option<LaneNumber> {
        (self.mode == LaneMode::Product).then_some(ARCHIVED)
    }

    /// The product that has this lane alone.
    pub fn product_of(&self, number: LaneNumber) -> Option<ProductId> {
        // No product has the number of the archived ones.
        self.archived().and_then(|_| ProductId::new(number))
    }

    /// The lane of a product's commands.
    pub fn number_of(&self, product_id: ProductId) -> LaneNumber {
        match self.mode {
            LaneMode::Product => product_id.get(),
            LaneMode::Hash(lanes) => product_id.get() % u64::from(lanes.get()),
        }
    }
}

impl fmt::Display for LaneSet {
    /// As the settings are written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QUEUE_PREFIX={} LANES={}", self.prefix, self.mode)
    }
}

/// How commands are spread over lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LaneMode {
    /// A lane for each product.
    Product,
    /// This number of lanes. Products whose ids have the same remainder share one. For catalogues of more than some 5,000 live
    /// products, where a queue for each product is too much for a broker.
    Hash(NonZeroU32),
}

impl LaneMode {
    /// The most lanes that make sense in [`LaneMode::Hash`].
    pub const MAX_LANES: u32 = 1024;
}

impl fmt::Display for LaneMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Product => f.write_str("product"),
            Self::Hash(lanes) => write!(f, "hash:{lanes}"),
        }
    }
}

impl FromStr for LaneMode {
    type Err = String;

    /// `product` or `hash:N`.
    fn from_str(text: &str) -> Result<Self, String> {
        let lanes = match text.split_once(':') {
            None if text == "product" => return Ok(Self::Product),
            Some(("hash", lanes)) => {
                lanes.parse().ok().filter(|lanes: &NonZeroU32| lanes.get() <= Self::MAX_LANES)
            }
            _ => None,
        };
        lanes
            .map(Self::Hash)
            .ok_or_else(|| format!("it must be product, or hash:N with N from 1 to {}", Self::MAX_LANES))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archived_products_share_a_lane_where_each_other_one_has_its_own() {
        let set = |mode: &str| LaneSet { prefix: "shop.".to_owned(), mode: mode.parse().unwrap() };
        let product = ProductId::new(7).unwrap();
        let own = set("product");
        let archived = own.archived().unwrap();
        assert_eq!(own.name_of(archived), "shop.orders.archived");
        assert_eq!((own.product_of(7), own.product_of(archived)), (Some(product), None));
        let hashed = set("hash:7");
        assert_eq!((hashed.archived(), hashed.product_of(7)), (None, None));
        assert_eq!(hashed.name_of(hashed.number_of(product)), "shop.orders.lane.0");
    }

    #[test]
    fn lanes_are_product_or_hash() {
        assert_eq!("product".parse(), Ok(LaneMode::Product));
        assert_eq!("hash:16".parse(), Ok(LaneMode::Hash(NonZeroU32::new(16).unwrap())));
        for good in ["product", "hash:16"] {
            assert_eq!(good.parse::<LaneMode>().unwrap().to_string(), good);
        }
        for bad in ["", "Product", "hash", "hash:", "hash:0", "hash:-1", "hash:1025", "hash:1:2", "product:1"]
        {
            assert!(bad.parse::<LaneMode>().is_err(), "{bad:?}");
        }
    }
}
