//! Counts what is logged, so that a flood of warnings shows where nobody reads the log.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{Layer, layer::Context};

static WARNINGS: AtomicU64 = AtomicU64::new(0);
static ERRORS: AtomicU64 = AtomicU64::new(0);
static SUPPRESSED: AtomicU64 = AtomicU64::new(0);

/// How many messages were logged, by level.
pub fn message_counts() -> [(&'static str, u64); 2] {
    [("warn", WARNINGS.load(Relaxed)), ("error", ERRORS.load(Relaxed))]
}

/// How many messages were left out because the same was logged a moment ago.
pub fn suppressed_messages() -> u64 {
    SUPPRESSED.load(Relaxed)
}

pub(super) fn count_suppressed() {
    SUPPRESSED.fetch_add(1, Relaxed);
}

/// Counts the messages that the filter lets through.
pub(super) struct Counting;

impl<S: Subscriber> Layer<S> for Counting {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        match *event.metadata().level() {
            Level::WARN => drop(WARNINGS.fetch_add(1, Relaxed)),
            Level::ERROR => drop(ERRORS.fetch_add(1, Relaxed)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::prelude::*;

    use super::*;

    #[test]
    fn warnings_and_errors_are_counted() {
        let before = message_counts().map(|(_, count)| count);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(Counting), || {
            tracing::warn!("a test");
            tracing::error!("a test");
            tracing::error!("a test");
            tracing::info!("a test");
        });
        let after = message_counts().map(|(_, count)| count);
        assert!(after[0] > before[0] && after[1] >= before[1] + 2, "{before:?} {after:?}");
    }
}
