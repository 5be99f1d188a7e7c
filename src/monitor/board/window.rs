//! Sums over the last seconds, whose memory is bounded and small: there is one of each for every product.

use std::collections::VecDeque;

use super::super::latency::{Latencies, LatencySum, Percentiles};

/// Over how many whole seconds a rate is.
const RATE_SECONDS: u64 = 5;
/// How many slots the latencies are kept for: a minute.
const LATENCY_SLOTS: u64 = 6;
/// How many seconds a slot has.
pub(super) const SLOT_SECONDS: u64 = 10;

/// Orders a second, over the last whole seconds. A second is a number that ascends.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RateWindow([Second; RATE_SECONDS as usize + 1]);

#[derive(Clone, Copy, Debug, Default)]
struct Second {
    second: u64,
    accepted: u64,
    refused: u64,
}

impl RateWindow {
    pub(super) fn add(&mut self, second: u64, accepted: u64, refused: u64) {
        let entry = &mut self.0[(second % (RATE_SECONDS + 1)) as usize];
        if entry.second != second {
            *entry = Second { second, ..Second::default() };
        }
        entry.accepted += accepted;
        entry.refused += refused;
    }

    /// Accepted and refused. `second` is not over and does not count.
    pub(super) fn per_second(&self, second: u64) -> (f64, f64) {
        let from = second.saturating_sub(RATE_SECONDS);
        let last = self.0.iter().filter(|entry| (from..second).contains(&entry.second));
        let (accepted, refused) =
            last.fold((0, 0), |(accepted, refused), one| (accepted + one.accepted, refused + one.refused));
        (accepted as f64 / RATE_SECONDS as f64, refused as f64 / RATE_SECONDS as f64)
    }
}

/// Latencies of the last minute, in slots of ten seconds. Empty ones have no memory.
#[derive(Clone, Debug, Default)]
pub(super) struct LatencyWindow(VecDeque<(u64, LatencySum)>);

impl LatencyWindow {
    pub(super) fn add(&mut self, second: u64, more: &Latencies) {
        if more.is_empty() {
            return;
        }
        let slot = second / SLOT_SECONDS;
        self.0.retain(|(of, _)| of + LATENCY_SLOTS > slot);
        if self.0.back().is_none_or(|(of, _)| *of != slot) {
            self.0.push_back((slot, LatencySum::default()));
        }
        if let Some((_, sum)) = self.0.back_mut() {
            *sum += more;
        }
    }

    pub(super) fn percentiles(&self, second: u64) -> Option<Percentiles> {
        let slot = second / SLOT_SECONDS;
        let mut sum = LatencySum::default();
        self.0.iter().filter(|(of, _)| of + LATENCY_SLOTS > slot).for_each(|(_, one)| sum += one);
        sum.percentiles()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::monitor::latency::LatencyRecorder;

    #[test]
    fn a_rate_is_of_the_last_whole_seconds() {
        let mut rate = RateWindow::default();
        for second in 100..107 {
            rate.add(second, 10, 1);
            rate.add(second, 10, 0);
        }
        assert_eq!(rate.per_second(106), (20.0, 1.0));
        assert_eq!(rate.per_second(109), (12.0, 0.6));
        assert_eq!(rate.per_second(200), (0.0, 0.0));
        assert_eq!(RateWindow::default().per_second(0), (0.0, 0.0));
    }

    #[test]
    fn latencies_are_forgotten_after_a_minute() {
        let mut window = LatencyWindow::default();
        let recorder = LatencyRecorder::default();
        recorder.record(Duration::from_secs(1));
        window.add(5, &recorder.take());
        recorder.record(Duration::from_millis(1));
        window.add(31, &recorder.take());
        assert!(window.percentiles(59).is_some_and(|found| found.p99_ms > 900.0));
        assert!(window.percentiles(61).is_some_and(|found| found.p99_ms < 2.0));
        assert_eq!(window.percentiles(100), None);
    }
}
