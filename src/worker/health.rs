//! Whether a worker has its consumer. Whether it decides, [`crate::monitor::undecided`] knows.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

#[derive(Debug, Default)]
pub struct WorkerHealth(AtomicBool);

impl WorkerHealth {
    pub fn is_consuming(&self) -> bool {
        self.0.load(Relaxed)
    }

    /// It consumes until this is dropped.
    pub(super) fn consuming(self: &Arc<Self>) -> impl Drop + use<> {
        self.0.store(true, Relaxed);
        Consuming(self.clone())
    }
}

struct Consuming(Arc<WorkerHealth>);

impl Drop for Consuming {
    fn drop(&mut self) {
        self.0.0.store(false, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_consumes_until_its_consumer_ends() {
        let health = Arc::new(WorkerHealth::default());
        assert!(!health.is_consuming());
        let consuming = health.consuming();
        assert!(health.is_consuming());
        drop(consuming);
        assert!(!health.is_consuming());
    }
}
