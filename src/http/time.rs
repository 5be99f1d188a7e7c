//! Times as clients see them.

use jiff::Timestamp;
use serde::{Serialize, Serializer};

/// A time: RFC 3339 in UTC with three digits of fraction, always, so that times sort as text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Time(pub(super) Timestamp);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:.3}", self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_always_has_three_digits_of_fraction() {
        for (millis, text) in [
            (1_769_850_000_000, "2026-01-31T09:00:00.000Z"),
            (1_769_850_000_100, "2026-01-31T09:00:00.100Z"),
            (1_769_850_000_120, "2026-01-31T09:00:00.120Z"),
            (1_769_850_000_123, "2026-01-31T09:00:00.123Z"),
            (0, "1970-01-01T00:00:00.000Z"),
        ] {
            let time = Time(Timestamp::from_millisecond(millis).unwrap());
            assert_eq!(serde_json::to_value(time).unwrap(), text);
        }
    }
}
