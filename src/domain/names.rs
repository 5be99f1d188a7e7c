//! Names that the shop gives: of a buyer, and of a payment.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Defines a short text of visible ASCII characters.
macro_rules! visible_ascii {
    ($(#[$doc:meta])* $name:ident, $max:literal, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// In characters.
            pub const MAX_LENGTH: usize = $max;
            /// What it looks like, for error messages.
            pub const EXPECTED: &str = $expected;

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                let is_valid = (1..=Self::MAX_LENGTH).contains(&text.len())
                    && text.bytes().all(|byte| byte.is_ascii_graphic());
                if is_valid { Ok(Self(text.into())) } else { Err(format!("it must be {}", Self::EXPECTED)) }
            }
        }
    };
}

visible_ascii!(
    /// The shop's own name for a buyer. Opaque: antre only compares it.
    Buyer,
    128,
    "a text of 1 to 128 visible ASCII characters, without blanks"
);

visible_ascii!(
    /// The shop's own name for a payment, for example the payment provider's id.
    PaymentReference,
    128,
    "a text of 1 to 128 visible ASCII characters, without blanks"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_visible_ascii_characters_only() {
        let buyer = |text: &str| Buyer::try_from(text.to_owned());
        for good in ["b", "buyer-17", "~!\"'\\;,", &"9".repeat(128)] {
            assert_eq!(buyer(good).unwrap().as_str(), good);
        }
        for bad in ["", " ", "a b", "é", "a\0", "\u{7f}", &"9".repeat(129)] {
            assert!(buyer(bad).is_err(), "{bad:?}");
        }
    }
}
