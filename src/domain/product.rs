//! [`Product`], its name, and a new one.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::domain::{
    ids::ProductId,
    inventory::Stock,
    sku::Sku,
    text::{is_readable, trimmed},
};

/// A product's name: 1 to 100 characters after trimming. At least one is visible, and none changes the direction of the text
/// around the name.
///
/// Of a stored name only the length is checked: see [`ProductName::stored`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct ProductName(String);

impl ProductName {
    /// In characters (Unicode scalar values).
    pub const MAX_LENGTH: usize = 100;
    /// What a name looks like, for error messages.
    pub const EXPECTED: &str = "a text of 1 to 100 characters, blanks around it not counted, with something visible in \
                                it and without NUL and marks that change the direction of text";

    /// A name that an earlier release, with other rules, may have stored.
    pub fn stored(text: String) -> Result<Self, InvalidProductName> {
        trimmed(&text, Self::MAX_LENGTH).map(|name| Self(name.to_owned())).ok_or(InvalidProductName)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The text is not a valid name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a product's name is {}", ProductName::EXPECTED)]
pub struct InvalidProductName;

impl TryFrom<String> for ProductName {
    type Error = InvalidProductName;

    fn try_from(text: String) -> Result<Self, InvalidProductName> {
        let name = Self::stored(text)?;
        is_readable(&name.0).then_some(name).ok_or(InvalidProductName)
    }
}

/// What is sold. Has one [`crate::domain::inventory::Inventory`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Product {
    pub id: ProductId,
    pub name: ProductName,
    pub sku: Option<Sku>,
    /// Since when it is archived: nobody can order it any more. `None` while it is sold.
    pub archived_at: Option<Timestamp>,
}

/// Whether a product that exists can be ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProductState {
    Live,
    Archived,
}

/// A product that the seller wants to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewProduct {
    pub name: ProductName,
    pub sku: Option<Sku>,
    /// What is in stock from the beginning.
    pub stock: Stock,
}

/// What the seller wants to change of a product. `None` leaves it as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProductChange {
    pub name: Option<ProductName>,
    /// `Some(None)` removes the SKU.
    pub sku: Option<Option<Sku>>,
}

impl ProductChange {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.name.is_none() && self.sku.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_trimmed_and_counted_in_characters() {
        let name = |text: &str| ProductName::try_from(text.to_owned());
        assert_eq!(name("  Kaos Polos\n").unwrap().as_str(), "Kaos Polos");
        assert!(name(&"é".repeat(100)).is_ok());
        assert!(name(&"é".repeat(101)).is_err());
        assert!(name(" \t\u{3000}").is_err());
    }

    #[test]
    fn a_name_has_a_visible_character() {
        let name = |text: &str| ProductName::try_from(text.to_owned());
        for good in [
            "x",
            "7",
            "!",
            "👕",
            "e\u{301}",
            "\u{feff}mark",
            "👩\u{200d}👧",
            "می\u{200c}خواهم",
            "\u{e000}",
            "\u{10ffff}",
        ] {
            assert!(name(good).is_ok(), "{good:?}");
        }
        for bad in [
            "\u{200b}",
            "\u{200b}\u{200c}\u{200d}\u{feff}\u{2060}",
            "\u{ad}",
            "\u{7}\u{1b}",
            "\u{301}\u{302}",
            "\u{20dd}",
            "\u{3164}",
            "\u{115f}\u{1160}",
            "\u{ffa0}",
            "\u{2800}\u{2800}",
            "\u{180e}",
            "\u{fe0f}",
            "\u{e0041}\u{e007f}",
            "\u{200b} \u{a0}\u{200b}",
        ] {
            assert!(name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_name_has_no_direction_marks() {
        let marks = "\0\u{61c}\u{200e}\u{200f}\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\u{2066}\u{2067}\u{2068}\u{2069}";
        for mark in marks.chars() {
            let text = format!("Kaos {mark}Polos");
            assert!(ProductName::try_from(text.clone()).is_err(), "{mark:?}");
            assert_eq!(
                ProductName::stored(text.clone()).unwrap().as_str(),
                text,
                "a stored name can be read"
            );
        }
        assert!(ProductName::stored("\u{200b}".to_owned()).is_ok());
        assert!(ProductName::stored(" ".to_owned()).is_err());
    }
}
