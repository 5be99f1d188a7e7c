//! Whether a process reaches its database and its broker, asked once a second, so that a report never waits for an answer.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::{Interval, MissedTickBehavior, error::Elapsed, interval, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::report::Vital;
use crate::{clock::Clock, queue::Ping, store::Health, supervise::supervise};

const ASK_EVERY: Duration = Duration::from_secs(1);
/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The servers of a process, as it sees them.
pub struct Vitals {
    database: Arc<Watched>,
    broker: Arc<Watched>,
    _asking: [AbortOnDropHandle<()>; 2],
}

impl Vitals {
    /// Asks from now on.
    pub fn watch(store: Arc<dyn Health>, queue: Arc<dyn Ping>, clock: Arc<dyn Clock>) -> Self {
        let (database, broker) = (Watched::new(clock.clone()), Watched::new(clock));
        let asking_database = tokio::spawn({
            let watched = database.clone();
            async move { supervise("database health", || watched.ask_store_forever(&*store)).await }
        });
        let asking_broker = tokio::spawn({
            let watched = broker.clone();
            async move { supervise("broker health", || watched.ask_queue_forever(&*queue)).await }
        });
        let asking = [asking_database, asking_broker].map(AbortOnDropHandle::new);
        Self { database, broker, _asking: asking }
    }

    pub fn database(&self) -> Vital {
        self.database.vital().clone()
    }

    pub fn broker(&self) -> Vital {
        self.broker.vital().clone()
    }
}

struct Watched {
    clock: Arc<dyn Clock>,
    vital: Mutex<Vital>,
}

impl Watched {
    fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self { clock, vital: Mutex::default() })
    }

    async fn ask_store_forever(&self, store: &dyn Health) {
        let mut asks = asks();
        loop {
            asks.tick().await;
            let began = self.clock.now();
            let answer = timeout(TIMEOUT, store.ping()).await;
            self.note(began, answer.map(|answer| answer.map_err(|error| error.to_string())));
        }
    }

    async fn ask_queue_forever(&self, queue: &dyn Ping) {
        let mut asks = asks();
        loop {
            asks.tick().await;
            let began = self.clock.now();
            let answer = timeout(TIMEOUT, queue.ping()).await;
            self.note(began, answer.map(|answer| answer.map_err(|error| error.to_string())));
        }
    }

    /// What was answered to the question that began then.
    fn note(&self, began: Timestamp, answer: Result<Result<(), String>, Elapsed>) {
        let error = match answer {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error),
            Err(_) => Some(format!("no answer within {} s", TIMEOUT.as_secs())),
        };
        let mut vital = self.vital();
        *vital = match (error, &*vital) {
            (None, _) => Vital::Ok,
            (Some(error), Vital::Unavailable { since, .. }) => Vital::Unavailable { since: *since, error },
            (Some(error), _) => Vital::Unavailable { since: began, error },
        };
    }

    fn vital(&self) -> MutexGuard<'_, Vital> {
        self.vital.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn asks() -> Interval {
    let mut asks = interval(ASK_EVERY);
    asks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    asks
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;
    use crate::{
        clock::SystemClock,
        queue::memory::MemoryQueue,
        store::{Store, memory::MemoryStore},
    };

    #[tokio::test(start_paused = true)]
    async fn a_server_that_does_not_answer_is_unavailable_since_then() {
        let store = Arc::new(MemoryStore::new(uuid::Uuid::nil(), Arc::new(SystemClock)));
        let queue = Arc::new(MemoryQueue::new(1, SystemClock.now()));
        let vitals = Vitals::watch(store.clone(), queue, Arc::new(SystemClock));
        assert_eq!(vitals.database(), Vital::Unknown);
        sleep(Duration::from_millis(100)).await;
        assert_eq!((vitals.database(), vitals.broker()), (Vital::Ok, Vital::Ok));
        store.close().await;
        sleep(ASK_EVERY).await;
        let Vital::Unavailable { since, error } = vitals.database() else { panic!("it is closed") };
        assert!(error.contains("closed"), "{error}");
        sleep(3 * ASK_EVERY).await;
        assert!(matches!(vitals.database(), Vital::Unavailable { since: still, .. } if still == since));
        assert_eq!(vitals.broker(), Vital::Ok);
    }
}
