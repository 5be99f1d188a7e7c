//! What took long is worth a line: from which duration on is a setting of the log, and no more than a line every five seconds.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::limiter::LogLimiter;

/// Attempts to decide a batch.
pub static BATCHES: SlowLog = SlowLog::new(Duration::from_millis(500));
/// Statements of the database.
pub static QUERIES: SlowLog = SlowLog::new(Duration::from_millis(250));

/// Says which of the slow ones are logged. A static, as the log itself is one.
pub struct SlowLog {
    threshold_us: AtomicU64,
    limiter: LogLimiter,
}

impl SlowLog {
    const fn new(threshold: Duration) -> Self {
        let threshold_us = AtomicU64::new(threshold.as_millis() as u64 * 1_000);
        Self { threshold_us, limiter: LogLimiter::every(Duration::from_secs(5)) }
    }

    pub(super) fn set_threshold(&self, threshold: Duration) {
        let threshold_us = u64::try_from(threshold.as_micros()).unwrap_or(u64::MAX);
        self.threshold_us.store(threshold_us, Ordering::Relaxed);
    }

    /// `Some` if something that took this long is to be logged, with the number of those that were not logged since the last.
    pub fn due(&self, elapsed: Duration) -> Option<u64> {
        let is_slow = elapsed.as_micros() >= u128::from(self.threshold_us.load(Ordering::Relaxed));
        if is_slow { self.limiter.due() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_slow_is_logged_and_not_each_time() {
        let log = SlowLog::new(Duration::from_millis(500));
        let [quick, slow] = [499, 500].map(Duration::from_millis);
        assert_eq!(
            [log.due(quick), log.due(slow), log.due(slow), log.due(quick)],
            [None, Some(0), None, None]
        );
        log.set_threshold(Duration::from_secs(1));
        assert_eq!(log.due(slow), None);
    }
}
