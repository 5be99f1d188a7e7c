//! How long final orders are kept.

use std::{fmt, str::FromStr, time::Duration};

use humantime::{format_duration, parse_duration};

use crate::store::retention::MIN_AGE;

/// `RETENTION`: after how long workers delete final orders. `None`: they delete none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention(pub Option<Duration>);

impl FromStr for Retention {
    type Err = String;

    /// An empty variable, or `off`, keeps all orders.
    fn from_str(text: &str) -> Result<Self, String> {
        if ["", "off"].contains(&text.trim()) { Ok(Self(None)) } else { age(text).map(|age| Self(Some(age))) }
    }
}

impl fmt::Display for Retention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(age) => format_duration(age).fmt(f),
            None => f.write_str("off"),
        }
    }
}

/// An age of orders that may be deleted.
pub fn age(text: &str) -> Result<Duration, String> {
    match parse_duration(text) {
        Ok(age) if age >= MIN_AGE => Ok(age),
        Ok(_) => Err(format!(
            "it must be at least {}: until then, clients may ask for the order or repeat it",
            format_duration(MIN_AGE)
        )),
        Err(error) => Err(format!("{error}; write it like 30d or 90d")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_kept_for_a_day_at_least() {
        assert_eq!(age("1d"), Ok(MIN_AGE));
        assert_eq!(age("24h"), Ok(MIN_AGE));
        assert!(age("23h").unwrap_err().contains("at least 1day"));
        assert!(age("90").unwrap_err().contains("90d"));
        assert!(age("-1d").is_err());
        assert_eq!("90d".parse(), Ok(Retention(Some(90 * MIN_AGE))));
        for off in ["", " ", "off"] {
            assert_eq!(off.parse(), Ok(Retention(None)));
        }
    }
}
