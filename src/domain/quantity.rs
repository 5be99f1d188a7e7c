//! How many pieces an order asks for.

use serde::{Deserialize, Serialize};

/// How many pieces an order asks for: 1 to [`Quantity::MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32")]
pub struct Quantity(u32);

impl Quantity {
    /// 2^31 − 1, so that every client's and database's 32-bit integer holds it.
    pub const MAX: u32 = i32::MAX as u32;
    /// What a quantity looks like, for error messages.
    pub const EXPECTED: &str = "an integer from 1 to 2147483647";

    /// `None` when the number is out of range.
    pub const fn new(pieces: u32) -> Option<Self> {
        if pieces >= 1 && pieces <= Self::MAX { Some(Self(pieces)) } else { None }
    }

    /// The number of pieces.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for Quantity {
    type Error = String;

    fn try_from(pieces: u32) -> Result<Self, String> {
        Self::new(pieces).ok_or_else(|| format!("a quantity is {}", Self::EXPECTED))
    }
}
