//! Measures batches, and counts what they do.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use jiff::Timestamp;

use crate::{
    clock::Clock,
    domain::{command::Command, decide::BatchResult, ids::ProductId, rules::Rules},
    monitor::{activity::Activity, metrics::WorkerMetrics},
    store::{Decider, StoreError},
};

/// A decider whose batches are measured.
pub struct ObservedDecider {
    pub decider: Arc<dyn Decider>,
    pub metrics: Arc<WorkerMetrics>,
    pub activity: Arc<Activity>,
    pub clock: Arc<dyn Clock>,
}

#[async_trait]
impl Decider for ObservedDecider {
    async fn decide(&self, commands: &[Command], rules: Rules) -> Result<BatchResult, StoreError> {
        let (began, began_at) = (Instant::now(), self.clock.now());
        let decided = self.decider.decide(commands, rules).await;
        match &decided {
            Ok(result) => {
                self.metrics.decided(commands.len(), began.elapsed(), &result.outcomes);
                commands.iter().for_each(|command| self.metrics.waited(age(command, began_at)));
                self.activity.decide(commands, result);
            }
            Err(error) => {
                self.metrics.failed(error);
                self.activity.fail(commands, &error.to_string());
            }
        }
        decided
    }

    async fn unlocked(&self, ids: &[ProductId]) -> Result<Vec<ProductId>, StoreError> {
        self.decider.unlocked(ids).await
    }
}

/// How old a command is. Zero, if the clock of its API is ahead of this one.
fn age(command: &Command, now: Timestamp) -> Duration {
    let created_at = command.id().as_order().created_at();
    Duration::try_from(now.duration_since(created_at)).unwrap_or_default()
}
