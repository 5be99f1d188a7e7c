//! What a process tells itself, and what waits in its lanes.

use async_trait::async_trait;
use futures_util::{StreamExt, stream, stream::BoxStream};
use tokio::sync::broadcast;

use super::MemoryQueue;
use crate::{
    domain::ids::ProductId,
    queue::{Depths, LaneDepth, QueueError, Reports},
};

#[async_trait]
impl Reports for MemoryQueue {
    async fn tell(&self, report: Vec<u8>) -> Result<(), QueueError> {
        let _ = self.0.reports.send(report); // perhaps nobody listens
        Ok(())
    }

    async fn listen(&self) -> Result<BoxStream<'static, Vec<u8>>, QueueError> {
        let reports = self.0.reports.subscribe();
        let told = stream::unfold(reports, async |mut reports| {
            loop {
                match reports.recv().await {
                    Ok(report) => return Some((report, reports)),
                    Err(broadcast::error::RecvError::Lagged(_)) => {} // the oldest are lost
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        });
        Ok(told.boxed())
    }
}

#[async_trait]
impl Depths for MemoryQueue {
    /// None: a process keeps no command that cannot be decided.
    async fn dead_letters(&self) -> Result<u64, QueueError> {
        Ok(0)
    }

    async fn depth(&self, product_id: ProductId) -> Result<LaneDepth, QueueError> {
        let state = self.0.state();
        let messages = state.lanes.get(&product_id).map_or(0, |lane| lane.waiting.len() as u64);
        Ok(LaneDepth { messages, workers: state.consumers })
    }
}
