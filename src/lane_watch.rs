//! Lets processes with different `QUEUE_PREFIX` or `LANES` work together: each stores in the database which lanes it uses, and
//! workers serve all lanes that were used lately. So no command is stranded when a setting changes, or differs by mistake.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    domain::lane_set::LaneSet,
    queue::rabbitmq::RabbitMqQueue,
    store::{Installation, StoreError},
    supervise::supervise,
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
    failures: LogLimiter,
}

/// What it did last.
#[derive(Default)]
struct Last {
    stored_at: Option<Instant>,
    /// Other sets that were logged.
    reported: HashSet<LaneSet>,
}

impl LaneWatch {
    /// Reads once before anything is queued, then repeatedly.
    pub async fn start(
        store: Arc<dyn Installation>,
        queue: RabbitMqQueue,
        own: LaneSet,
    ) -> AbortOnDropHandle<()> {
        let watch = Self { store, queue, own, failures: LogLimiter::every(STORE_EVERY) };
        watch.update(&mut Last::default()).await;
        AbortOnDropHandle::new(tokio::spawn(async move {
            supervise("watching the lanes of other processes", || watch.run()).await;
        }))
    }

    async fn run(&self) {
        let mut last = Last::default();
        let mut reads = interval(READ_EVERY);
        reads.set_missed_tick_behavior(MissedTickBehavior::Delay);
        reads.tick().await; // the first tick is immediate
        loop {
            reads.tick().await;
            self.update(&mut last).await;
        }
    }

    async fn update(&self, last: &mut Last) {
        if let Err(error) = self.try_update(last).await
            && let Some(suppressed) = self.failures.due()
        {
            tracing::warn!(%error, suppressed, "could not read which lanes other processes use");
        }
    }

    async fn try_update(&self, last: &mut Last) -> Result<(), StoreError> {
        if last.stored_at.is_none_or(|at| at.elapsed() >= STORE_EVERY) {
            self.store.use_lanes(&self.own).await?;
            last.stored_at = Some(Instant::now());
        }
        let mut sets = self.store.lanes_in_use().await?;
        sets.retain(|set| *set != self.own);
        for other in sets.iter().filter(|set| !last.reported.contains(*set)) {
            tracing::warn!(
                own = %self.own,
                %other,
                "processes of this database use different lanes, or did so within the last two hours; workers serve both. \
                 Unless a setting has just been changed, give all processes the same QUEUE_PREFIX and LANES"
            );
        }
        last.reported = sets.iter().cloned().collect();
        self.queue.serve_lane_sets(sets);
        Ok(())
    }
}
