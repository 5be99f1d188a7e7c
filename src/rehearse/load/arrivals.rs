//! When buyers arrive: a schedule that is fixed before the first one does.

use std::time::Duration;

/// How many buyers arrive, and when each of them does. Offsets count from the start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arrivals {
    count: u64,
    /// `None`: all at once.
    per_second: Option<f64>,
    ramp_seconds: f64,
}

impl Arrivals {
    /// `count` buyers, all due at the start.
    pub fn at_once(count: u64) -> Self {
        Self { count, per_second: None, ramp_seconds: 0.0 }
    }

    /// `count` buyers, evenly `per_second`. During `ramp` the rate climbs from 0 to that in a straight line.
    pub fn at_rate(count: u64, per_second: f64, ramp: Duration) -> Self {
        Self { count, per_second: Some(per_second), ramp_seconds: ramp.as_secs_f64() }
    }

    /// How many arrive.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// When the buyer of this number (from 0) is due.
    pub fn due(&self, number: u64) -> Duration {
        let Some(per_second) = self.per_second else { return Duration::ZERO };
        let number = number as f64;
        // Up to time t of the ramp, per_second * t² / (2 * ramp) buyers have arrived: half of what the full rate brings.
        let seconds = if number < per_second * self.ramp_seconds / 2.0 {
            (2.0 * self.ramp_seconds * number / per_second).sqrt()
        } else {
            self.ramp_seconds / 2.0 + number / per_second
        };
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }

    /// When the last one is due.
    pub fn last(&self) -> Duration {
        self.due(self.count.saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(arrivals: &Arrivals, number: u64) -> f64 {
        (arrivals.due(number).as_secs_f64() * 1000.0).round() / 1000.0
    }

    #[test]
    fn an_even_rate_is_evenly_spaced() {
        let arrivals = Arrivals::at_rate(3_000, 1_000.0, Duration::ZERO);
        assert_eq!(seconds(&arrivals, 0), 0.0);
        assert_eq!(seconds(&arrivals, 1), 0.001);
        assert_eq!(seconds(&arrivals, 2_999), 2.999);
        assert_eq!(arrivals.last(), arrivals.due(2_999));
    }

    #[test]
    fn a_ramp_reaches_the_rate_and_then_keeps_it() {
        // 10 s up to 100 a second bring 500 buyers.
        let arrivals = Arrivals::at_rate(1_000, 100.0, Duration::from_secs(10));
        assert_eq!(seconds(&arrivals, 0), 0.0);
        assert_eq!(seconds(&arrivals, 125), 5.0); // half the time, a quarter of them
        assert_eq!(seconds(&arrivals, 500), 10.0);
        assert_eq!(seconds(&arrivals, 600), 11.0);
        for number in 1..1_000 {
            assert!(arrivals.due(number) >= arrivals.due(number - 1), "{number}");
        }
    }

    #[test]
    fn all_at_once_is_at_the_start() {
        let arrivals = Arrivals::at_once(5);
        assert_eq!((arrivals.count(), arrivals.last()), (5, Duration::ZERO));
    }

    #[test]
    fn a_rate_that_never_brings_them_is_no_panic() {
        let arrivals = Arrivals::at_rate(1_000_000, f64::MIN_POSITIVE, Duration::ZERO);
        assert_eq!(arrivals.last(), Duration::MAX);
    }
}
