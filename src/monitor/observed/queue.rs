//! Counts what a worker takes from its lanes, and what it gives back.

use std::sync::Arc;

use async_trait::async_trait;

use crate::{
    domain::{command::Command, ids::ProductId},
    monitor::metrics::WorkerMetrics,
    queue::{Archive, Completion, Consumer, Delivery, Ping, Queue, QueueError, ReplySink, Submitter},
};

/// A queue whose consumers are counted.
pub struct ObservedQueue {
    pub queue: Arc<dyn Queue>,
    pub metrics: Arc<WorkerMetrics>,
}

#[async_trait]
impl Ping for ObservedQueue {
    async fn ping(&self) -> Result<(), QueueError> {
        self.queue.ping().await
    }
}

#[async_trait]
impl Queue for ObservedQueue {
    async fn submitter(
        &self,
        reply_sink: Arc<dyn ReplySink>,
        archive: Arc<dyn Archive>,
    ) -> Result<Arc<dyn Submitter>, QueueError> {
        self.queue.submitter(reply_sink, archive).await
    }

    async fn consumer(&self) -> Result<Box<dyn Consumer>, QueueError> {
        let consumer = self.queue.consumer().await?;
        self.metrics.consumer_started();
        Ok(Box::new(ObservedConsumer { consumer, metrics: self.metrics.clone() }))
    }
}

struct ObservedConsumer {
    consumer: Box<dyn Consumer>,
    metrics: Arc<WorkerMetrics>,
}

#[async_trait]
impl Consumer for ObservedConsumer {
    async fn serve(&mut self, products: &[ProductId]) -> Result<(), QueueError> {
        self.consumer.serve(products).await
    }

    async fn retire(&mut self, products: &[ProductId]) -> Result<(), QueueError> {
        self.consumer.retire(products).await
    }

    async fn take(&mut self, max_commands: usize) -> Result<Vec<Delivery>, QueueError> {
        let taken = self.consumer.take(max_commands).await?;
        self.metrics.taken(commands_of(&taken));
        Ok(taken)
    }

    async fn settle(&mut self, deliveries: Vec<Delivery>, completion: Completion) -> Result<(), QueueError> {
        self.consumer.settle(deliveries, completion).await
    }

    async fn drain(&mut self) -> Result<(), QueueError> {
        self.consumer.drain().await
    }

    async fn requeue(&mut self, deliveries: Vec<Delivery>) -> Result<(), QueueError> {
        let commands = commands_of(&deliveries);
        self.consumer.requeue(deliveries).await?;
        self.metrics.requeued(commands);
        Ok(())
    }

    async fn dead_letter(&mut self, commands: Vec<Command>) -> Result<(), QueueError> {
        let count = commands.len();
        self.consumer.dead_letter(commands).await?;
        self.metrics.dead_letters_written(count);
        Ok(())
    }
}

fn commands_of(deliveries: &[Delivery]) -> usize {
    deliveries.iter().map(|delivery| delivery.commands.len()).sum()
}
