//! Times as clients see them.

use jiff::{SignedDuration, Timestamp, civil::DateTime, tz::Offset};
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

/// A time of RFC 3339, down to its millisecond. Only what the RFC allows, and all of it: the library's parser takes a space for
/// the `T`, a zone in brackets, and more, and refuses the last day of the year 9999 and more than nine digits of fraction.
pub(super) fn rfc3339(text: &str) -> Option<Timestamp> {
    let (date_time, rest) = (text.get(..19)?, text.get(19..)?);
    let (fraction, zone) = rest.split_at(rest.find(['Z', 'z', '+', '-'])?);
    if !is_like(date_time, "0000-00-00T00:00:00") {
        return None;
    }
    let millis: i64 = match fraction.strip_prefix('.') {
        Some(digits) if !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit()) => {
            format!("{digits:0<3}")[..3].parse().ok()?
        }
        None if fraction.is_empty() => 0,
        _ => return None,
    };
    let date_time: DateTime = date_time.parse().ok()?;
    let time = offset(zone)?.to_timestamp(date_time).unwrap_or(match date_time.year() {
        ..2000 => Timestamp::MIN,
        2000.. => Timestamp::MAX,
    });
    Some(time.checked_add(SignedDuration::from_millis(millis)).unwrap_or(time))
}

/// From UTC: `Z`, or hours and minutes.
fn offset(text: &str) -> Option<Offset> {
    if is_like(text, "Z") {
        return Some(Offset::UTC);
    }
    if !is_like(text, "+00:00") && !is_like(text, "-00:00") {
        return None;
    }
    let (hours, minutes): (i32, i32) = (text[1..3].parse().ok()?, text[4..].parse().ok()?);
    let seconds = hours * 3_600 + minutes * 60;
    let is_in_range = hours < 24 && minutes < 60;
    Offset::from_seconds(if text.starts_with('-') { -seconds } else { seconds }).ok().filter(|_| is_in_range)
}

/// Whether a text has digits where the shape has zeros, and the same letters otherwise.
fn is_like(text: &str, shape: &str) -> bool {
    text.len() == shape.len()
        && text.bytes().zip(shape.bytes()).all(|(byte, shape)| match shape {
            b'0' => byte.is_ascii_digit(),
            shape => byte.eq_ignore_ascii_case(&shape),
        })
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

    #[test]
    fn times_are_those_of_rfc_3339() {
        for (text, unix_ms) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2026-01-31T09:00:00.120Z", 1_769_850_000_120),
            ("2026-01-31t09:00:00.12z", 1_769_850_000_120),
            ("2026-01-31T16:00:00.120999999+07:00", 1_769_850_000_120),
            ("2026-01-31T09:00:00-00:00", 1_769_850_000_000),
            ("2026-01-31T09:00:00.1234567890123456789012345Z", 1_769_850_000_123),
            ("2016-12-31T23:59:60Z", 1_483_228_799_000), // a leap second
        ] {
            assert_eq!(rfc3339(text).unwrap().as_millisecond(), unix_ms, "{text}");
        }
        for bad in [
            "",
            "2026-01-31",
            "2026-01-31T09:00:00",
            "2026-01-31 09:00:00Z",
            "2026-01-31T09:00:00 07:00",
            "2026-01-31T09:00Z",
            "2026-01-31T09:00:00.Z",
            "2026-01-31T09:00:00,5Z",
            "2026-01-31T09:00:00+07",
            "2026-01-31T09:00:00+0700",
            "2026-01-31T09:00:00Z[UTC]",
            "2026-02-30T09:00:00Z",
            "2026-01-31T25:00:00Z",
            "2026-01-31T09:00:00+99:99",
            "+002026-01-31T09:00:00Z",
            "20260131T090000Z",
            "1769850000",
            "now",
            "٢٠٢٦-01-31T09:00:00Z",
            "🕘",
        ] {
            assert!(rfc3339(bad).is_none(), "{bad}");
        }
    }
}
