//! [`Sku`]: the seller's own name for a product.

use serde::{Deserialize, Serialize};

/// A stock keeping unit: 1 to [`Sku::MAX_LENGTH`] visible ASCII characters. No two products have the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Sku(String);

impl Sku {
    /// In characters.
    pub const MAX_LENGTH: usize = 64;
    /// What a SKU looks like, for error messages.
    pub const EXPECTED: &str = "a text of 1 to 64 visible ASCII characters, without blanks";

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The text is no SKU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a SKU is {}", Sku::EXPECTED)]
pub struct InvalidSku;

impl TryFrom<String> for Sku {
    type Error = InvalidSku;

    fn try_from(text: String) -> Result<Self, InvalidSku> {
        let is_sku =
            (1..=Self::MAX_LENGTH).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        is_sku.then_some(Self(text)).ok_or(InvalidSku)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sku_has_visible_ascii_characters_only() {
        let sku = |text: &str| Sku::try_from(text.to_owned());
        for good in ["A", "KAOS-01/m", "~!\"'\\;,", &"9".repeat(64)] {
            assert_eq!(sku(good).unwrap().as_str(), good);
        }
        for bad in ["", " ", "a b", " a", "a\n", "é", "a\0", "\u{7f}", &"9".repeat(65)] {
            assert_eq!(sku(bad), Err(InvalidSku), "{bad:?}");
        }
    }
}
