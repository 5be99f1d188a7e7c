//! What the operator decides about reservations and payments.

use std::time::Duration;

/// What the operator decides about reservations and payments. All workers should agree on it: each decides by its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// How long a reservation lives unless it is paid.
    pub reservation_ttl: Duration,
    /// How long after its creation an order may be reserved, with all its extensions.
    pub max_hold: Duration,
    pub late_payment: LatePayment,
}

/// What becomes of a payment whose reservation has expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LatePayment {
    /// It gets the pieces, if all of them are still available.
    Accept,
    /// It never gets any.
    Refuse,
}

impl Rules {
    pub const MAX_HOLD: Duration = Duration::from_secs(24 * 3600);

    /// The defaults, but for how long a reservation lives.
    pub const fn of_ttl(reservation_ttl: Duration) -> Self {
        Self { reservation_ttl, max_hold: Self::MAX_HOLD, late_payment: LatePayment::Accept }
    }
}
