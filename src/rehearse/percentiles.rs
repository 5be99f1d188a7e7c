//! Latencies, summed up.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// In milliseconds, each within 0.1 % of the latency that was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// How many latencies these are.
    pub count: u64,
    /// Half of them were not longer.
    pub p50_ms: f64,
    /// 90 % were not longer.
    pub p90_ms: f64,
    /// 95 % were not longer.
    pub p95_ms: f64,
    /// 99 % were not longer.
    pub p99_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

impl Percentiles {
    /// Of these latencies; all 0 if there are none.
    pub fn of(latencies: impl IntoIterator<Item = Duration>) -> Self {
        let Ok(mut histogram) = Histogram::<u64>::new(3) else { return Self::default() };
        histogram.auto(true);
        for latency in latencies {
            // Cannot fail: it grows.
            let _ = histogram.record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
        }
        if histogram.is_empty() {
            return Self::default();
        }
        let ms = |microseconds: u64| microseconds as f64 / 1000.0;
        let at = |share| ms(histogram.value_at_quantile(share));
        Self {
            count: histogram.len(),
            p50_ms: at(0.5),
            p90_ms: at(0.9),
            p95_ms: at(0.95),
            p99_ms: at(0.99),
            max_ms: ms(histogram.max()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_latency_that_so_many_do_not_exceed() {
        let all = Percentiles::of((1..=1_000).map(Duration::from_millis));
        assert_eq!(all.count, 1_000);
        for (found, expected) in [
            (all.p50_ms, 500.0),
            (all.p90_ms, 900.0),
            (all.p95_ms, 950.0),
            (all.p99_ms, 990.0),
            (all.max_ms, 1_000.0),
        ] {
            assert!((found - expected).abs() <= expected / 1_000.0, "{found} {expected}");
        }
    }

    #[test]
    fn one_slow_answer_of_a_hundred_is_the_maximum_and_not_the_median() {
        let slow = Duration::from_secs(30);
        let all = Percentiles::of((0..99).map(|_| Duration::from_millis(2)).chain([slow]));
        assert!(all.p50_ms < 2.01 && all.p99_ms < 2.01, "{all:?}");
        assert!(all.max_ms >= 30_000.0 && all.max_ms < 30_030.0, "{all:?}");
    }

    #[test]
    fn no_latency_at_all_is_no_panic() {
        assert_eq!(Percentiles::of([]), Percentiles::default());
    }
}
