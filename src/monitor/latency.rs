//! Times, counted in classes: small enough to be kept for thousands of products and sent every second, and added up over
//! processes without a loss, which percentiles cannot be.

use std::{
    ops::AddAssign,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// The first classes are multiples of this, in microseconds.
const SHORTEST_US: u64 = 16;
/// Each doubling of the time is this many classes: a percentile is at most a quarter too long.
const CLASSES_PER_DOUBLING: usize = 4;
/// Up to 67 s; longer times are in the last class.
const CLASSES: usize = 22 * CLASSES_PER_DOUBLING;

/// The class of a time.
fn class_of(time: Duration) -> usize {
    let units = u64::try_from(time.as_micros()).unwrap_or(u64::MAX) / SHORTEST_US;
    let Some(doublings) = units.checked_ilog2() else { return 0 };
    // The two bits below the highest one.
    let part = if doublings >= 2 { units >> (doublings - 2) } else { units << (2 - doublings) } & 3;
    (doublings as usize * CLASSES_PER_DOUBLING + part as usize).min(CLASSES - 1)
}

/// Where the class ends, in milliseconds.
fn end_ms(class: usize) -> f64 {
    let doubling = (1_u64 << (class / CLASSES_PER_DOUBLING)) as f64;
    let parts =
        (CLASSES_PER_DOUBLING + class % CLASSES_PER_DOUBLING + 1) as f64 / CLASSES_PER_DOUBLING as f64;
    doubling * parts * SHORTEST_US as f64 / 1_000.0
}

/// Counts times from many tasks at once.
#[derive(Debug)]
pub struct LatencyRecorder([AtomicU32; CLASSES]);

impl Default for LatencyRecorder {
    fn default() -> Self {
        Self([const { AtomicU32::new(0) }; CLASSES])
    }
}

impl LatencyRecorder {
    pub fn record(&self, time: Duration) {
        self.0[class_of(time)].fetch_add(1, Relaxed);
    }

    /// What was recorded since the last call.
    pub fn take(&self) -> Latencies {
        let classes = self.0.iter().enumerate().filter(|(_, count)| count.load(Relaxed) > 0);
        Latencies(classes.map(|(class, count)| (class as u8, count.swap(0, Relaxed))).collect())
    }
}

/// How many times were in which class; classes without one are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latencies(Vec<(u8, u32)>);

impl Latencies {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Times of several processes or seconds, added up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LatencySum([u32; CLASSES]);

impl Default for LatencySum {
    fn default() -> Self {
        Self([0; CLASSES])
    }
}

impl AddAssign<&Latencies> for LatencySum {
    fn add_assign(&mut self, more: &Latencies) {
        for (class, count) in &more.0 {
            // A process of another release may have other classes.
            if let Some(sum) = self.0.get_mut(usize::from(*class)) {
                *sum = sum.saturating_add(*count);
            }
        }
    }
}

impl AddAssign<&LatencySum> for LatencySum {
    fn add_assign(&mut self, more: &Self) {
        self.0.iter_mut().zip(more.0).for_each(|(sum, count)| *sum = sum.saturating_add(count));
    }
}

impl LatencySum {
    /// `None` without any time.
    pub fn percentiles(&self) -> Option<Percentiles> {
        let all: u64 = self.0.iter().copied().map(u64::from).sum();
        if all == 0 {
            return None;
        }
        let percentile = |percent: u64| {
            let rank = (all * percent).div_ceil(100).max(1);
            let mut below = 0;
            let class = self.0.iter().position(|count| {
                below += u64::from(*count);
                below >= rank
            });
            end_ms(class.unwrap_or(CLASSES - 1))
        };
        Some(Percentiles { p50_ms: percentile(50), p95_ms: percentile(95), p99_ms: percentile(99) })
    }
}

/// Half, 95 % and 99 % of the times are not longer than these, in milliseconds; each at most a quarter too long.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Percentiles {
    pub p50_ms: f64,
    pub p95_ms: f64,
    pub p99_ms: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_is_in_a_class_that_ends_at_most_a_quarter_behind_it() {
        let mut last = 0;
        for us in (64..70_000_000).step_by(997) {
            let class = class_of(Duration::from_micros(us));
            assert!(class >= last, "{us}");
            last = class;
            if class < CLASSES - 1 {
                let (ms, end) = (us as f64 / 1_000.0, end_ms(class));
                assert!(ms <= end && end <= ms * 1.26, "{ms} {end}");
            }
        }
        assert_eq!(last, CLASSES - 1);
        assert_eq!(class_of(Duration::ZERO), 0);
        assert_eq!(class_of(Duration::MAX), CLASSES - 1);
    }

    #[test]
    fn percentiles_are_of_all_that_was_added_up() {
        let (recorder, mut sum) = (LatencyRecorder::default(), LatencySum::default());
        assert_eq!(sum.percentiles(), None);
        (0..94).for_each(|_| recorder.record(Duration::from_millis(1)));
        sum += &recorder.take();
        assert!(recorder.take().is_empty());
        (0..5).for_each(|_| recorder.record(Duration::from_millis(100)));
        recorder.record(Duration::from_secs(3));
        sum += &recorder.take();
        let found = sum.percentiles().unwrap();
        assert!((1.0..1.26).contains(&found.p50_ms), "{found:?}");
        assert!((100.0..126.0).contains(&found.p95_ms), "{found:?}");
        assert!((100.0..126.0).contains(&found.p99_ms), "{found:?}");
        recorder.record(Duration::from_secs(3));
        sum += &recorder.take();
        assert!((3_000.0..3_800.0).contains(&sum.percentiles().unwrap().p99_ms));
    }
}
