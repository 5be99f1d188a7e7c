//! Tasks that must not end before the process does.

use std::{
    any::Any,
    collections::BTreeMap,
    panic::AssertUnwindSafe,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::FutureExt;
use tokio::time::{Instant, sleep};

use crate::{backoff::backoff, telemetry::ms};

/// A task that ran for this long counts as healthy: its next restart waits the shortest delay.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);
const MIN_DELAY: Duration = Duration::from_millis(100);
const MAX_DELAY: Duration = Duration::from_secs(30);

/// The tasks of this process, with the number of their panics.
static PANICS: Mutex<BTreeMap<&'static str, u64>> = Mutex::new(BTreeMap::new());

/// Each task that was started in this process, with the number of its panics.
pub fn panics() -> Vec<(&'static str, u64)> {
    counts().iter().map(|(name, panics)| (*name, *panics)).collect()
}

fn counts() -> MutexGuard<'static, BTreeMap<&'static str, u64>> {
    PANICS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a task until it returns. When it panics, it is started again, with growing delays.
pub async fn supervise<F: Future<Output = ()>>(name: &'static str, task: impl Fn() -> F) {
    counts().entry(name).or_default();
    let mut delays = backoff(MIN_DELAY, MAX_DELAY);
    loop {
        let began = Instant::now();
        let Err(panic) = AssertUnwindSafe(async { task().await }).catch_unwind().await else { return };
        *counts().entry(name).or_default() += 1;
        if began.elapsed() >= HEALTHY_AFTER {
            delays = backoff(MIN_DELAY, MAX_DELAY);
        }
        let delay = delays.next().unwrap_or(MAX_DELAY);
        tracing::error!(
            task = name,
            panic = text_of(&*panic),
            delay_ms = ms(delay),
            "a task panicked and is started again"
        );
        sleep(delay).await;
    }
}

fn text_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text")
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_is_started_again_until_it_returns() {
        let starts = Cell::new(0);
        let task = || async {
            starts.set(starts.get() + 1);
            assert_eq!(starts.get(), 4, "not yet");
        };
        let began = Instant::now();
        supervise("a test", task).await;
        assert_eq!(starts.get(), 4);
        supervise("another test", || async {}).await;
        let panics = panics();
        assert!(panics.contains(&("a test", 3)) && panics.contains(&("another test", 0)), "{panics:?}");
        assert!(began.elapsed() >= Duration::from_millis(100 + 200 + 400), "{:?}", began.elapsed());
    }
}
