//! Why an order is refused. [`RejectionReason::row`] is the one table of the reasons: a new one is one row there, one variant
//! of [`Rejection`], and a value in the contract and in the databases' checks. `tests/it/api/one_rule.rs` holds that all agree.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::domain::ids::ProductId;

/// Why nothing was reserved, with what belongs to the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// Fewer pieces were available than a line asks for. Never a partial fill.
    InsufficientStock {
        product_id: ProductId,
        /// Pieces that were available when it was decided.
        available: u32,
    },
    ProductNotFound {
        product_id: ProductId,
    },
    /// The idempotency key belongs to an order of other lines or of another buyer.
    KeyReused,
    /// The seller has stopped the sale of a product for now.
    SalePaused {
        product_id: ProductId,
    },
    /// The sale of a product has not begun, by the database's clock.
    SaleNotOpen {
        product_id: ProductId,
        opens_at: Timestamp,
    },
    /// The sale of a product is over, by the database's clock.
    SaleClosed {
        product_id: ProductId,
    },
    /// A line asks for more pieces than one order may have.
    LimitPerOrder {
        product_id: ProductId,
        /// Pieces of the product in one order.
        limit: u32,
    },
    /// The buyer would hold more pieces than one buyer may have.
    LimitPerBuyer {
        product_id: ProductId,
        /// Pieces of the product of one buyer.
        limit: u32,
        /// Pieces that the buyer has reserved or paid.
        held: u32,
    },
    /// A product has a limit for each buyer, and the order does not say who buys.
    BuyerRequired {
        product_id: ProductId,
    },
}

/// Why nothing was reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectionReason {
    InsufficientStock,
    ProductNotFound,
    KeyReused,
    SalePaused,
    SaleNotOpen,
    SaleClosed,
    LimitPerOrder,
    LimitPerBuyer,
    BuyerRequired,
}

/// What belongs to a reason, as it is stored and sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectionDetails {
    /// The product that the order was refused for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub product_id: Option<ProductId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available_stock: Option<u32>,
    /// Unix milliseconds.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "jiff::fmt::serde::timestamp::millisecond::optional"
    )]
    pub opens_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<u32>,
}

/// What follows from a reason.
struct Row {
    /// In answers, messages and the database.
    word: &'static str,
    http_status: u16,
    /// Whether an order that is rejected for it is stored when no client waits for the verdict. One whose first product does not
    /// even exist cannot be.
    is_stored: bool,
}

impl Row {
    /// A 400, which is stored when no client waits for it.
    const fn refused(word: &'static str) -> Self {
        Self { word, http_status: 400, is_stored: true }
    }
}

impl RejectionReason {
    pub const ALL: [Self; 9] = [
        Self::InsufficientStock,
        Self::ProductNotFound,
        Self::KeyReused,
        Self::SalePaused,
        Self::SaleNotOpen,
        Self::SaleClosed,
        Self::LimitPerOrder,
        Self::LimitPerBuyer,
        Self::BuyerRequired,
    ];

    /// Those for which every order of a product is refused, whatever it asks for, as long as nothing opens it.
    pub const CLOSED: [Self; 4] =
        [Self::InsufficientStock, Self::SalePaused, Self::SaleNotOpen, Self::SaleClosed];

    const fn row(self) -> Row {
        match self {
            Self::InsufficientStock => Row::refused("insufficient_stock"),
            Self::ProductNotFound => Row { word: "product_not_found", http_status: 404, is_stored: true },
            Self::KeyReused => Row { word: "idempotency_key_reused", http_status: 422, is_stored: true },
            Self::SalePaused => Row::refused("sale_paused"),
            Self::SaleNotOpen => Row::refused("sale_not_open"),
            Self::SaleClosed => Row::refused("sale_closed"),
            Self::LimitPerOrder => Row::refused("limit_per_order"),
            Self::LimitPerBuyer => Row::refused("limit_per_buyer"),
            Self::BuyerRequired => Row::refused("buyer_required"),
        }
    }

    /// The stable word for it, in answers, messages and the database.
    pub const fn as_str(self) -> &'static str {
        self.row().word
    }

    /// The reason of that word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == word)
    }

    /// The HTTP status of an answer with it.
    pub const fn http_status(self) -> u16 {
        self.row().http_status
    }

    /// Whether an order that is rejected for it is stored when no client waits for the verdict.
    pub const fn is_stored(self) -> bool {
        self.row().is_stored
    }

    /// The rejection for this reason; `None` when something that belongs to it is missing.
    pub fn with(self, details: RejectionDetails) -> Option<Rejection> {
        if self == Self::KeyReused {
            return Some(Rejection::KeyReused);
        }
        let RejectionDetails { product_id, available_stock, opens_at, limit, held } = details;
        let product_id = product_id?;
        Some(match self {
            Self::InsufficientStock => {
                Rejection::InsufficientStock { product_id, available: available_stock? }
            }
            Self::ProductNotFound => Rejection::ProductNotFound { product_id },
            Self::KeyReused => Rejection::KeyReused,
            Self::SalePaused => Rejection::SalePaused { product_id },
            Self::SaleNotOpen => Rejection::SaleNotOpen { product_id, opens_at: opens_at? },
            Self::SaleClosed => Rejection::SaleClosed { product_id },
            Self::LimitPerOrder => Rejection::LimitPerOrder { product_id, limit: limit? },
            Self::LimitPerBuyer => Rejection::LimitPerBuyer { product_id, limit: limit?, held: held? },
            Self::BuyerRequired => Rejection::BuyerRequired { product_id },
        })
    }
}

impl Rejection {
    pub const fn reason(self) -> RejectionReason {
        match self {
            Self::InsufficientStock { .. } => RejectionReason::InsufficientStock,
            Self::ProductNotFound { .. } => RejectionReason::ProductNotFound,
            Self::KeyReused => RejectionReason::KeyReused,
            Self::SalePaused { .. } => RejectionReason::SalePaused,
            Self::SaleNotOpen { .. } => RejectionReason::SaleNotOpen,
            Self::SaleClosed { .. } => RejectionReason::SaleClosed,
            Self::LimitPerOrder { .. } => RejectionReason::LimitPerOrder,
            Self::LimitPerBuyer { .. } => RejectionReason::LimitPerBuyer,
            Self::BuyerRequired { .. } => RejectionReason::BuyerRequired,
        }
    }

    /// What belongs to the reason.
    pub fn details(self) -> RejectionDetails {
        let none = RejectionDetails::default();
        match self {
            Self::KeyReused => none,
            Self::InsufficientStock { product_id, available } => {
                RejectionDetails { product_id: Some(product_id), available_stock: Some(available), ..none }
            }
            Self::ProductNotFound { product_id }
            | Self::SalePaused { product_id }
            | Self::SaleClosed { product_id }
            | Self::BuyerRequired { product_id } => RejectionDetails { product_id: Some(product_id), ..none },
            Self::SaleNotOpen { product_id, opens_at } => {
                RejectionDetails { product_id: Some(product_id), opens_at: Some(opens_at), ..none }
            }
            Self::LimitPerOrder { product_id, limit } => {
                RejectionDetails { product_id: Some(product_id), limit: Some(limit), ..none }
            }
            Self::LimitPerBuyer { product_id, limit, held } => RejectionDetails {
                product_id: Some(product_id),
                limit: Some(limit),
                held: Some(held),
                ..none
            },
        }
    }

    /// How many pieces were available, when there were too few.
    pub const fn available(self) -> Option<u32> {
        match self {
            Self::InsufficientStock { available, .. } => Some(available),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_one_word_and_one_rejection() {
        let all = RejectionDetails {
            product_id: ProductId::new(7),
            available_stock: Some(3),
            opens_at: Some(Timestamp::from_millisecond(1_765_000_000_123).unwrap()),
            limit: Some(2),
            held: Some(1),
        };
        for reason in RejectionReason::ALL {
            assert_eq!(RejectionReason::from_word(reason.as_str()), Some(reason));
            let rejection = reason.with(all).unwrap();
            assert_eq!(rejection.reason(), reason);
            let details = rejection.details();
            assert_eq!(reason.with(details), Some(rejection), "nothing is lost");
            let json = serde_json::to_string(&details).unwrap();
            assert_eq!(serde_json::from_str::<RejectionDetails>(&json).unwrap(), details, "{json}");
            let without = reason.with(RejectionDetails::default());
            assert_eq!(without.is_some(), reason == RejectionReason::KeyReused);
        }
        assert_eq!(RejectionReason::from_word("reserved"), None);
    }
}
