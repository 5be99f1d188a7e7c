//! Why an order is refused. [`RejectionReason::row`] is the one table of the reasons: a new one is one row there, one variant
//! of [`Rejection`], and a value in the contract and in the databases' checks. `tests/it/api/one_rule.rs` holds that all agree.

/// Why nothing was reserved, with what belongs to the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// Fewer pieces were available than the order asks for. Never a partial fill.
    InsufficientStock {
        /// Pieces that were available when it was decided.
        available: u32,
    },
    ProductNotFound,
    /// The idempotency key belongs to an order of another product or total.
    KeyReused,
}

/// Why nothing was reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectionReason {
    InsufficientStock,
    ProductNotFound,
    KeyReused,
}

/// What follows from a reason.
struct Row {
    /// In answers, messages and the database.
    word: &'static str,
    http_status: u16,
    /// Whether an order that is rejected for it is stored when no client waits for the verdict. One of a product that does not
    /// exist cannot be.
    is_stored: bool,
    /// Whether the rejection says how many pieces were available.
    has_available_stock: bool,
}

impl RejectionReason {
    pub const ALL: [Self; 3] = [Self::InsufficientStock, Self::ProductNotFound, Self::KeyReused];

    const fn row(self) -> Row {
        match self {
            Self::InsufficientStock => Row {
                word: "insufficient_stock",
                http_status: 400,
                is_stored: true,
                has_available_stock: true,
            },
            Self::ProductNotFound => Row {
                word: "product_not_found",
                http_status: 404,
                is_stored: false,
                has_available_stock: false,
            },
            Self::KeyReused => Row {
                word: "idempotency_key_reused",
                http_status: 422,
                is_stored: true,
                has_available_stock: false,
            },
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

    /// Whether the rejection says how many pieces were available.
    pub const fn has_available_stock(self) -> bool {
        self.row().has_available_stock
    }

    /// The rejection for this reason; `None` when the available stock is missing, or does not belong to it.
    pub fn with(self, available_stock: Option<u32>) -> Option<Rejection> {
        if available_stock.is_some() != self.has_available_stock() {
            return None;
        }
        Some(match self {
            Self::InsufficientStock => Rejection::InsufficientStock { available: available_stock? },
            Self::ProductNotFound => Rejection::ProductNotFound,
            Self::KeyReused => Rejection::KeyReused,
        })
    }
}

impl Rejection {
    pub const fn reason(self) -> RejectionReason {
        match self {
            Self::InsufficientStock { .. } => RejectionReason::InsufficientStock,
            Self::ProductNotFound => RejectionReason::ProductNotFound,
            Self::KeyReused => RejectionReason::KeyReused,
        }
    }

    /// How many pieces were available, when there were too few.
    pub const fn available(self) -> Option<u32> {
        match self {
            Self::InsufficientStock { available } => Some(available),
            Self::ProductNotFound | Self::KeyReused => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_one_word_and_one_rejection() {
        for reason in RejectionReason::ALL {
            assert_eq!(RejectionReason::from_word(reason.as_str()), Some(reason));
            let rejections = [reason.with(None), reason.with(Some(3))];
            let [rejection] = rejections.into_iter().flatten().collect::<Vec<_>>()[..] else {
                panic!("{reason:?}")
            };
            assert_eq!(rejection.reason(), reason);
            assert_eq!(rejection.available(), reason.has_available_stock().then_some(3));
        }
        assert_eq!(RejectionReason::from_word("reserved"), None);
    }
}
