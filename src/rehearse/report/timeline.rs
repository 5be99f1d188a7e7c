//! What happened when: samples in buckets of equal width.

use std::time::Duration;

use super::super::{
    journal::{Kind, Sample},
    percentiles::Percentiles,
};

/// The most buckets that a chart has.
const BUCKETS: u64 = 60;
/// Widths that people read easily, in milliseconds.
const WIDTHS: [u64; 16] = [
    10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 30_000, 60_000, 120_000, 300_000, 600_000,
];

pub(super) struct Timeline {
    width: Duration,
    pub(super) buckets: Vec<Bucket>,
}

#[derive(Default)]
pub(super) struct Bucket {
    /// By [`Kind`], in its order; of orders that ended in this bucket.
    ended: [u64; 5],
    /// Of buyers that were due in this bucket.
    pub(super) latency: Percentiles,
}

impl Bucket {
    pub(super) fn ended(&self, kind: Kind) -> u64 {
        self.ended[kind as usize]
    }
}

impl Timeline {
    /// At least one bucket, and each as wide as it takes for all to fit.
    pub(super) fn of(samples: &[Sample]) -> Self {
        let last = samples.iter().map(|sample| sample.ended.max(sample.due)).max().unwrap_or_default();
        let last_ms = u64::try_from(last.as_millis()).unwrap_or(u64::MAX);
        let fits = |width: &&u64| last_ms / **width < BUCKETS;
        let width_ms = WIDTHS.iter().find(fits).copied().unwrap_or(last_ms / BUCKETS + 1);
        let width = Duration::from_millis(width_ms);
        let index = |time: Duration| (time.as_nanos() / width.as_nanos()) as usize;
        let mut buckets: Vec<Bucket> = (0..=index(last)).map(|_| Bucket::default()).collect();
        let mut latencies: Vec<Vec<Duration>> = vec![Vec::new(); buckets.len()];
        for sample in samples {
            buckets[index(sample.ended)].ended[sample.kind as usize] += 1;
            latencies[index(sample.due)].extend(sample.latency());
        }
        for (bucket, latencies) in buckets.iter_mut().zip(latencies) {
            bucket.latency = Percentiles::of(latencies);
        }
        Self { width, buckets }
    }

    pub(super) fn width_ms(&self) -> f64 {
        self.width.as_secs_f64() * 1000.0
    }

    /// From the start to the end of the last bucket.
    pub(super) fn seconds(&self) -> f64 {
        self.width.as_secs_f64() * self.buckets.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(due_ms: u64, ended_ms: u64, kind: Kind) -> Sample {
        Sample { due: Duration::from_millis(due_ms), ended: Duration::from_millis(ended_ms), kind }
    }

    #[test]
    fn a_buyer_counts_where_it_was_due_and_where_it_ended() {
        let timeline = Timeline::of(&[
            sample(0, 5, Kind::Accepted),
            sample(1, 2_950, Kind::Refused),
            sample(2_000, 2_010, Kind::Failed),
        ]);
        assert_eq!((timeline.width_ms(), timeline.buckets.len()), (50.0, 60));
        assert_eq!(timeline.buckets[0].ended(Kind::Accepted), 1);
        assert_eq!(timeline.buckets[59].ended(Kind::Refused), 1);
        assert_eq!(timeline.buckets[40].ended(Kind::Failed), 1);
        assert_eq!(timeline.buckets[0].latency.count, 2);
        assert!(timeline.buckets[0].latency.max_ms > 2_900.0);
        assert_eq!(timeline.buckets[40].latency.count, 0);
    }

    #[test]
    fn any_length_fits() {
        for seconds in [0, 1, 59, 600, 3_600, 86_400, 10_000_000] {
            let timeline = Timeline::of(&[sample(0, seconds * 1_000, Kind::Refused)]);
            assert!((1..=60).contains(&timeline.buckets.len()), "{seconds}: {}", timeline.buckets.len());
        }
        assert_eq!(Timeline::of(&[]).buckets.len(), 1);
    }
}
