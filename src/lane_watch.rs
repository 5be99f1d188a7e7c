//! Keeps processes that differ in `QUEUE_PREFIX` or `LANES` together: each tells the database which lanes it uses, and
//! workers serve all that were used lately. So nothing is stranded when a setting changes, or differs by mistake.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    domain::lane_set::LaneSet,
    queue::rabbitmq::RabbitMqQueue,
    store::{Installation, StoreError},
    telemetry::LogLimiter,
};

/// How often the others are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often the own set is told again.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// What one process knows of the lanes in use.
pub struct LaneWatch {
    store: Arc<dyn Installation>,
    queue: RabbitMqQueue,
    own: LaneSet,
    told_at: Option<Instant>,
    /// Other sets that the log tells of.
    reported: HashSet<LaneSet>,
    failures: LogLimiter,
}

impl LaneWatch {
    /// Looks once before anything is queued, then for ever.
    pub async fn start(
        store: Arc<dyn Installation>,
        queue: RabbitMqQueue,
        own: LaneSet,
    ) -> AbortOnDropHandle<()> {
        let (told_at, reported, failures) = (None, HashSet::new(), LogLimiter::every(TELL_EVERY));
        let mut watch = Self { store, queue, own, told_at, reported, failures };
        watch.look().await;
        AbortOnDropHandle::new(tokio::spawn(async move {
            let mut looks = interval(LOOK_EVERY);
            looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            looks.tick().await; // the first is over at once
            loop {
                looks.tick().await;
                watch.look().await;
            }
        }))
    }

    async fn look(&mut self) {
        if let Err(error) = self.try_to_look().await
            && let Some(suppressed) = self.failures.due()
        {
            tracing::warn!(%error, suppressed, "could not look which lanes other processes use");
        }
    }

    async fn try_to_look(&mut self) -> Result<(), StoreError> {
        if self.told_at.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
            self.store.use_lanes(&self.own).await?;
            self.told_at = Some(Instant::now());
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
