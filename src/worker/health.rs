//! Whether a worker works: it consumes, and no batch waits long for its verdicts.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// A worker is not healthy while a batch has no verdicts after this time.
const MAX_DECIDING: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub struct WorkerHealth(Mutex<Now>);

#[derive(Debug, Default)]
struct Now {
    is_consuming: bool,
    deciding_since: Option<Instant>,
}

impl WorkerHealth {
    /// Whether it consumes and decides.
    pub fn is_well(&self) -> bool {
        let now = self.now();
        now.is_consuming && now.deciding_since.is_none_or(|since| since.elapsed() <= MAX_DECIDING)
    }

    /// It consumes until this is dropped.
    pub(super) fn consuming(self: &Arc<Self>) -> impl Drop + use<> {
        self.now().is_consuming = true;
        Until(self.clone(), |now| now.is_consuming = false)
    }

    /// It decides a batch until this is dropped.
    pub(super) fn deciding(self: &Arc<Self>) -> impl Drop + use<> {
        self.now().deciding_since = Some(Instant::now());
        Until(self.clone(), |now| now.deciding_since = None)
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Until(Arc<WorkerHealth>, fn(&mut Now));

impl Drop for Until {
    fn drop(&mut self) {
        self.1(&mut self.0.now());
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_is_well_while_it_consumes_and_decides() {
        let health = Arc::new(WorkerHealth::default());
        assert!(!health.is_well());
        let consuming = health.consuming();
        assert!(health.is_well());
        let deciding = health.deciding();
        advance(MAX_DECIDING).await;
        assert!(health.is_well());
        advance(Duration::from_millis(1)).await;
        assert!(!health.is_well());
        drop(deciding);
        assert!(health.is_well());
        drop(consuming);
        assert!(!health.is_well());
    }
}
