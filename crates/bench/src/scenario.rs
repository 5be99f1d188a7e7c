//! The loads that all variants meet.

use std::{fmt, str::FromStr, time::Duration};

use clap::ValueEnum;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::variant::Variant;

/// More payments a second than any variant makes, as measured.
const PAYMENTS_PER_SECOND: f64 = 45_000.0;

/// Connections of an open loop: more than are needed unless the server stalls.
pub(crate) const OPEN_CONNECTIONS: usize = 256;

/// What buyers do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Scenario {
    /// All want one product, with plenty in stock
    Hot,
    /// 100 products, evenly
    #[value(name = "products-100")]
    Products100,
    /// 1,000 products, evenly
    #[value(name = "products-1000")]
    Products1000,
    /// All want one product, with none in stock
    SoldOut,
    /// Orders of one product, reserved before, are paid
    Pay,
    /// One product, orders at a fixed rate
    Open,
    /// One product, one order at a time, nothing else going on
    Lone,
}

impl Scenario {
    pub(crate) fn products(self) -> u64 {
        match self {
            Self::Products100 => 100,
            Self::Products1000 => 1_000,
            _ => 1,
        }
    }

    fn is_spread(self) -> bool {
        self.products() > 1
    }

    /// The scenario whose best size of the pool is used: that of the same product and stock.
    pub(crate) fn tuned_as(self) -> Self {
        match self {
            Self::Pay | Self::Open | Self::Lone => Self::Hot,
            other => other,
        }
    }

    /// The number of reserved orders that a run of this length finds, to be paid.
    pub(crate) fn payments(self, duration: Duration) -> u64 {
        match self {
            Self::Pay => (PAYMENTS_PER_SECOND * duration.as_secs_f64()) as u64,
            _ => 0,
        }
    }
}

/// The id of a reserved order. The number comes first, so that rows are inserted in the order of their keys.
pub(crate) fn reserved_order_id(number: u64) -> String {
    format!("{number:08x}-0000-7000-8000-000000000000")
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.to_possible_value().as_ref().map_or("", |value| value.get_name()))
    }
}

impl Serialize for Scenario {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Scenario {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_str(&String::deserialize(deserializer)?, false).map_err(D::Error::custom)
    }
}

/// When orders are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Pace {
    /// Each connection sends its next order when the last is answered.
    Closed,
    /// Orders are due at this rate, answered or not.
    Open { per_second: f64 },
    /// As closed, after a pause.
    Pausing { milliseconds: u64 },
}

impl FromStr for Pace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = match text.split_once(':') {
            None if text == "closed" => Some(Self::Closed),
            Some(("open", rate)) => rate.parse().ok().map(|per_second| Self::Open { per_second }),
            Some(("pausing", pause)) => pause.parse().ok().map(|milliseconds| Self::Pausing { milliseconds }),
            _ => None,
        };
        parsed.ok_or_else(|| format!("no pace: {text}"))
    }
}

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("closed"),
            Self::Open { per_second } => write!(f, "open:{per_second}"),
            Self::Pausing { milliseconds } => write!(f, "pausing:{milliseconds}"),
        }
    }
}

/// One comparison: all variants meet the same load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cell {
    pub(crate) scenario: Scenario,
    pub(crate) connections: usize,
    pub(crate) pace: Pace,
}

impl Cell {
    /// Whether the comparison means anything for this variant.
    pub(crate) fn is_for(self, variant: Variant) -> bool {
        match (self.scenario, variant) {
            // Only antre has payments.
            (Scenario::Pay, variant) => {
                matches!(variant, Variant::Antre | Variant::AntreEmbedded) || variant.is_baseline()
            }
            // With one product there is one lane, whatever it is called.
            (scenario, Variant::AntreHash16) => scenario.is_spread(),
            // The longest statements, which suffer most where encryption breaks them into several packets.
            (scenario, Variant::AntrePlain) => scenario == Scenario::Hot,
            // Most events, and the most expensive ones, are those of a hot product.
            (scenario, Variant::AntreNoEvents) => scenario == Scenario::Hot,
            // The cost of keys where most orders meet, and where the sold-out cache does not answer them.
            (scenario, Variant::AntreKeys) => matches!(scenario, Scenario::Hot | Scenario::SoldOut),
            _ => true,
        }
    }

    /// At 1,024 connections, direct variants do what they did at 256: only the best is measured again, except for the hot
    /// product. And the embedded mode does not depend on the number of products.
    pub(crate) fn says_nothing_new(self, variant: Variant, best_direct: Option<Variant>) -> bool {
        let many = self.connections > OPEN_CONNECTIONS && self.scenario != Scenario::Hot;
        let beaten = variant.is_direct() && best_direct.is_some_and(|best| best != variant);
        (many && beaten) || (variant.is_embedded() && self.scenario.is_spread())
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.scenario {
            Scenario::Hot | Scenario::Open => "one hot product",
            Scenario::Products100 => "100 products evenly",
            Scenario::Products1000 => "1,000 products evenly",
            Scenario::SoldOut => "one product, sold out",
            Scenario::Pay => "payments of one product",
            Scenario::Lone => "a lone order at a time, idle system",
        };
        match self.pace {
            Pace::Closed => write!(f, "{what}, closed loop, {} connections", self.connections),
            Pace::Open { per_second } => {
                write!(f, "{what}, open loop, {per_second} orders/s due, {} connections", self.connections)
            }
            Pace::Pausing { milliseconds } => write!(f, "{what}, {milliseconds} ms apart"),
        }
    }
}
