//! Why nothing was reserved.

/// Why nothing was reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// Fewer pieces were available than the order asks for. Never a partial fill.
    InsufficientStock {
        /// Pieces that were available when it was decided.
        available: u32,
    },
    /// There is no such product.
    ProductNotFound,
    /// The idempotency key belongs to an order of another product or total.
    KeyReused,
}

impl Rejection {
    /// The stable word for it, in answers and in messages.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::InsufficientStock { .. } => "insufficient_stock",
            Self::ProductNotFound => "product_not_found",
            Self::KeyReused => "idempotency_key_reused",
        }
    }

    /// How many pieces were available, when there were too few.
    pub fn available(self) -> Option<u32> {
        match self {
            Self::InsufficientStock { available } => Some(available),
            Self::ProductNotFound | Self::KeyReused => None,
        }
    }
}
