//! Numbers and times as people read them.

use std::{fmt, time::Duration};

use jiff::{Timestamp, tz::TimeZone};

use crate::digits::thousands;

/// What stands where a figure is not known.
pub(super) const UNKNOWN: &str = "–";

/// A count with its digits in groups: `12,345`.
pub(super) struct Count(pub(super) u64);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&thousands(self.0))
    }
}

/// So many a second. Below ten with one digit of fraction, because most products sell slowly most of the time.
pub(super) struct Rate(pub(super) f64);

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = if self.0.is_finite() { self.0.max(0.0) } else { 0.0 };
        match rate {
            rate if rate < 0.05 => f.write_str("0"),
            rate if rate < 9.95 => write!(f, "{rate:.1}"),
            rate => Count(rate.round() as u64).fmt(f),
        }
    }
}

/// A duration with two or three digits that count: `0.4 ms`, `38 ms`, `1.2 s`, `4 min 5 s`, `3 h 10 min`, `2 d 4 h`.
pub(super) struct Span(pub(super) Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_secs_f64() * 1000.0;
        let seconds = self.0.as_secs();
        let parts = |f: &mut fmt::Formatter<'_>, big: u64, unit, small: u64, small_unit| match small {
            0 => write!(f, "{big} {unit}"),
            small => write!(f, "{big} {unit} {small} {small_unit}"),
        };
        match seconds {
            _ if ms < 9.95 => write!(f, "{ms:.1} ms"),
            _ if ms < 999.5 => write!(f, "{ms:.0} ms"),
            _ if ms < 9_950.0 => write!(f, "{:.1} s", ms / 1000.0),
            0..60 => write!(f, "{seconds} s"),
            60..3_600 => parts(f, seconds / 60, "min", seconds % 60, "s"),
            3_600..86_400 => parts(f, seconds / 3_600, "h", seconds % 3_600 / 60, "min"),
            _ => parts(f, seconds / 86_400, "d", seconds % 86_400 / 3_600, "h"),
        }
    }
}

/// An age in whole seconds: it is rendered once a second.
pub(super) struct Age(pub(super) Duration);

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_secs() {
            seconds @ 0..60 => write!(f, "{seconds} s"),
            seconds => Span(Duration::from_secs(seconds)).fmt(f),
        }
    }
}

/// How long ago that was; zero for what a clock that is ahead says.
pub(super) fn since(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or_default()
}

/// The time of the day in UTC.
pub(super) fn clock(time: Timestamp) -> String {
    time.to_zoned(TimeZone::UTC).strftime("%H:%M:%S").to_string()
}

/// Date and time in UTC.
pub(super) fn moment(time: Timestamp) -> String {
    time.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d %H:%M:%S.%3f UTC").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        for (count, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (12_345_678, "12,345,678")] {
            assert_eq!(Count(count).to_string(), text);
        }
        for (rate, text) in
            [(0.0, "0"), (-1.0, "0"), (f64::NAN, "0"), (0.25, "0.2"), (9.96, "10"), (1_234.4, "1,234")]
        {
            assert_eq!(Rate(rate).to_string(), text);
        }
        for (ms, text) in [
            (0, "0.0 ms"),
            (4, "4.0 ms"),
            (38, "38 ms"),
            (999, "999 ms"),
            (1_234, "1.2 s"),
            (59_900, "59 s"),
            (60_000, "1 min"),
            (245_000, "4 min 5 s"),
            (11_400_000, "3 h 10 min"),
            (187_200_000, "2 d 4 h"),
        ] {
            assert_eq!(Span(Duration::from_millis(ms)).to_string(), text);
        }
        assert_eq!(Age(Duration::from_millis(1_900)).to_string(), "1 s");
        assert_eq!(Age(Duration::from_secs(61)).to_string(), "1 min 1 s");
    }

    #[test]
    fn times_are_in_utc() {
        let time = Timestamp::from_millisecond(1_769_850_000_123).unwrap();
        assert_eq!(clock(time), "09:00:00");
        assert_eq!(moment(time), "2026-01-31 09:00:00.123 UTC");
        assert_eq!(since(time, time - Duration::from_secs(1)), Duration::ZERO);
    }
}
