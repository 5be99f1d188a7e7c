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

/// Whole seconds until a sale opens, as `Retry-After` says it. At least one, and no more than an hour: the seller may change the
/// opening. A hint by the clock of this process; the database's decides.
pub(super) fn seconds_until(opens_at: Timestamp, now: Timestamp) -> u64 {
    const MAX: u64 = 3_600;
    let millis = opens_at.duration_since(now).as_millis();
    u64::try_from(millis).map_or(1, |millis| millis.div_ceil(1_000).clamp(1, MAX))
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

    #[test]
    fn a_client_waits_for_the_opening_but_no_longer_than_an_hour() {
        let at = |millis| Timestamp::from_millisecond(millis).unwrap();
        for (opens_at, now, seconds) in [
            (10_000, 0, 10),
            (10_001, 0, 11),
            (10_000, 9_999, 1),
            (10_000, 10_000, 1),
            (10_000, 99_999, 1),
            (3_600_000, 0, 3_600),
            (253_402_128_000_000, 0, 3_600),
        ] {
            assert_eq!(seconds_until(at(opens_at), at(now)), seconds, "{opens_at} {now}");
        }
    }
}
