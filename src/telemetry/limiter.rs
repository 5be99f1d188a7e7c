//! How often a message is logged that could be logged all the time.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::counting::count_suppressed;

/// Limits the rate of a log message: the first one is due, then one every five seconds.
#[derive(Debug)]
pub struct LogLimiter {
    interval: Duration,
    last: Mutex<Option<Last>>,
}

impl Default for LogLimiter {
    fn default() -> Self {
        Self::every(Duration::from_secs(5))
    }
}

#[derive(Debug)]
struct Last {
    at: Instant,
    suppressed: u64,
}

impl LogLimiter {
    /// One message per `interval` is due.
    pub const fn every(interval: Duration) -> Self {
        Self { interval, last: Mutex::new(None) }
    }

    /// `Some` if a message is due, with the number of suppressed ones since the last.
    pub fn due(&self) -> Option<u64> {
        self.due_at(Instant::now())
    }

    fn due_at(&self, now: Instant) -> Option<u64> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match last.as_mut() {
            Some(last) if now.duration_since(last.at) < self.interval => {
                last.suppressed += 1;
                count_suppressed();
                None
            }
            _ => {
                let suppressed = last.replace(Last { at: now, suppressed: 0 });
                Some(suppressed.map_or(0, |last| last.suppressed))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_messages_the_first_is_due_and_one_every_five_seconds() {
        let (limiter, begin) = (LogLimiter::default(), Instant::now());
        let at = |ms| limiter.due_at(begin + Duration::from_millis(ms));
        assert_eq!(at(0), Some(0));
        assert_eq!((at(1), at(4_999)), (None, None));
        assert_eq!(at(5_000), Some(2));
        assert_eq!(at(60_000), Some(0));
    }
}
