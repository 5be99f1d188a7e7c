//! Lets processes with different `QUEUE_PREFIX` or `LANES` work together: each stores in the database which lanes it uses, and
//! workers serve all lanes that were used lately. So no command is stranded when a setting changes, or differs by mistake.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    domain::lane_set::LaneSet,
    queue::rabbitmq::RabbitMqQueue,
    store::{Installation, StoreError},
    telemetry::LogLimiter,
};

/// How often the lane sets of other processes are read.
const READ_EVERY: Duration = Duration::from_secs(5);
/// How often the process stores its own set.
const STORE_EVERY: Duration = Duration::from_secs(60);

/// What one process knows about the lanes in use.
pub struct LaneWatch {
    store: Arc<dyn Installation>,
    queue: RabbitMqQueue,
    own: LaneSet,
    stored_at: Option<Instant>,
    /// Other sets that were logged.
    reported: HashSet<LaneSet>,
    failures: LogLimiter,
}

impl LaneWatch {
    /// Reads once before anything is queued, then repeatedly.
    pub async fn start(
        store: Arc<dyn Installation>,
        queue: RabbitMqQueue,
        own: LaneSet,
    ) -> AbortOnDropHandle<()> {
        let (stored_at, reported, failures) = (None, HashSet::new(), LogLimiter::every(STORE_EVERY));
        let mut watch = Self { store, queue, own, stored_at, reported, failures };
        watch.update().await;
        AbortOnDropHandle::new(tokio::spawn(async move {
            let mut reads = interval(READ_EVERY);
            reads.set_missed_tick_behavior(MissedTickBehavior::Delay);
            reads.tick().await; // the first tick is immediate
            loop {
                reads.tick().await;
                watch.update().await;
            }
        }))
    }

    async fn update(&mut self) {
        if let Err(error) = self.try_update().await
            && let Some(suppressed) = self.failures.due()
        {
            tracing::warn!(%error, suppressed, "could not read which lanes other processes use");
        }
    }

    async fn try_update(&mut self) -> Result<(), StoreError> {
        if self.stored_at.is_none_or(|at| at.elapsed() >= STORE_EVERY) {
            self.store.use_lanes(&self.own).await?;
            self.stored_at = Some(Instant::now());
        }
        let mut sets = self.store.lanes_in_use().await?;
        sets.retain(|set| *set != self.own);
        for other in sets.iter().filter(|set| !self.reported.contains(*set)) {
            tracing::warn!(
                own = %self.own,
                %other,
                "processes of this database use different lanes, or did so within the last two hours; workers serve both. \
                 Unless a setting has just been changed, give all processes the same QUEUE_PREFIX and LANES"
            );
        }
        self.reported = sets.iter().cloned().collect();
        self.queue.serve_lane_sets(sets);
        Ok(())
    }
}
