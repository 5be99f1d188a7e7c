//! What is sold: [`Product`], known by its [`ProductId`], called by its [`ProductName`].

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A product's number, from 1 to [`ProductId::MAX`]. The database hands it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64")]
pub struct ProductId(u64);

impl ProductId {
    /// 2^53 − 1: the largest integer that every JSON client reads exactly (RFC 8259, section 6).
    pub const MAX: u64 = (1 << 53) - 1;
    /// What a product id looks like, for error messages.
    pub const EXPECTED: &str = "an integer from 1 to 9007199254740991";

    /// `None` when the number is out of range.
    pub const fn new(number: u64) -> Option<Self> {
        if number >= 1 && number <= Self::MAX { Some(Self(number)) } else { None }
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ProductId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The text or number is not a product id; the message says what one looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a product id is {}", ProductId::EXPECTED)]
pub struct InvalidProductId;

impl TryFrom<u64> for ProductId {
    type Error = InvalidProductId;

    fn try_from(number: u64) -> Result<Self, InvalidProductId> {
        Self::new(number).ok_or(InvalidProductId)
    }
}

impl FromStr for ProductId {
    type Err = InvalidProductId;

    /// Decimal digits only: no sign, no blanks, no zeros in front. An id has one spelling in URLs.
    fn from_str(text: &str) -> Result<Self, InvalidProductId> {
        if text.starts_with('0') || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(InvalidProductId);
        }
        text.parse().ok().and_then(Self::new).ok_or(InvalidProductId)
    }
}

/// A product's name: 1 to 100 characters after trimming.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct ProductName(String);

impl ProductName {
    /// In characters (Unicode scalar values).
    pub const MAX_LENGTH: usize = 100;
    /// What a name looks like, for error messages.
    pub const EXPECTED: &str = "a text of 1 to 100 characters, blanks around it not counted";

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The text is empty or too long for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a product's name is {}", ProductName::EXPECTED)]
pub struct InvalidProductName;

impl TryFrom<String> for ProductName {
    type Error = InvalidProductName;

    fn try_from(text: String) -> Result<Self, InvalidProductName> {
        let trimmed = text.trim();
        match trimmed.chars().take(Self::MAX_LENGTH + 1).count() {
            1..=Self::MAX_LENGTH => Ok(Self(trimmed.to_owned())),
            _ => Err(InvalidProductName),
        }
    }
}

/// What is sold. Has one [`crate::inventory::Inventory`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Product {
    /// Its number.
    pub id: ProductId,
    /// What people call it.
    pub name: ProductName,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_digits_in_range() {
        assert_eq!("17".parse(), Ok(ProductId(17)));
        assert_eq!("9007199254740991".parse(), Ok(ProductId(ProductId::MAX)));
        for bad in [
            "",
            "0",
            "017",
            "-1",
            "+1",
            " 1",
            "1.0",
            "1e3",
            "abc",
            "9007199254740992",
            "99999999999999999999",
        ] {
            assert_eq!(bad.parse::<ProductId>(), Err(InvalidProductId), "{bad:?}");
        }
    }

    #[test]
    fn a_name_is_trimmed_and_counted_in_characters() {
        let name = |text: &str| ProductName::try_from(text.to_owned());
        assert_eq!(name("  Kaos Polos\n").unwrap().as_str(), "Kaos Polos");
        assert!(name(&"é".repeat(100)).is_ok());
        assert!(name(&"é".repeat(101)).is_err());
        assert!(name(" \t\u{3000}").is_err());
    }
}
