//! The queue contract on RabbitMQ 4: lanes that outlive processes, and any number of APIs and workers. The files follow one
//! command from an API to a worker and its verdict back:
//!
//! 1. [`connection`], [`topology`] and [`wire`]: how processes reach the broker, which queues there are, what messages say;
//! 2. [`submitter`], the API's end, passes the command to [`lane_publisher`], which puts it into its lane's [`lane_buffer`];
//! 3. [`publisher`] publishes a buffer as one message on the [`publish_connection`], after [`declarer`] has declared the
//!    lane, and awaits the broker's confirm; [`outcomes`] tells the API what is known; [`parked`] keeps what may not be
//!    refused and could not be queued;
//! 4. [`consumer`], the worker's end, takes the message from its [`worker_channels`], because [`opener`] has opened the lane;
//! 5. [`settlement`] publishes the verdict and the events, awaits the confirms, and acknowledges the message;
//! 6. [`replies`] receives the verdict in the API's reply queue, and [`outcomes`] delivers it.
//!
//! [`retirement`] removes the lanes of archived products.
//!
//! [`reports`] is for operators: what processes tell each other, and what waits.

mod connection;
mod consumer;
pub mod dead_letters;
mod declarer;
pub mod inspection;
mod lane_buffer;
mod lane_publisher;
mod opener;
mod outcomes;
mod parked;
mod publish_connection;
mod publisher;
mod replies;
mod reports;
mod retirement;
mod settlement;
mod submitter;
mod topology;
mod traffic;
mod wire;
mod worker_channels;

use std::sync::Arc;

use async_trait::async_trait;
use deadpool_lapin::Pool;
use futures_util::stream::BoxStream;

use self::{
    connection::{failed, with_timeout},
    consumer::RabbitMqConsumer,
    opener::LaneFailures,
    publish_connection::PublishConnections,
    reports::ReportChannel,
    submitter::RabbitMqSubmitter,
    topology::Topology,
};
use super::{Archive, Consumer, Depths, LaneDepth, Ping, Queue, QueueError, ReplySink, Reports, Submitter};
use crate::domain::{ids::ProductId, lane_set::LaneSet};

pub use topology::RabbitMqSettings;
pub use traffic::Traffic;

/// Lanes on a RabbitMQ broker.
#[derive(Clone)]
pub struct RabbitMqQueue {
    topology: Arc<Topology>,
    publish_pool: Pool,
    /// For pings.
    connections: Arc<PublishConnections>,
    failures: Arc<LaneFailures>,
    reports: Arc<ReportChannel>,
}

impl RabbitMqQueue {
    /// Connects, and declares what all lanes share.
    pub async fn connect(settings: RabbitMqSettings) -> Result<Self, QueueError> {
        let topology = Arc::new(Topology::new(settings)?);
        let publish_pool = topology.broker().publish_pool()?;
        let connection = publish_pool.get().await.map_err(failed)?;
        let channel = with_timeout(connection.create_channel()).await?;
        with_timeout(topology.declare_shared(&channel)).await?;
        let connections = Arc::new(PublishConnections::new(topology.clone(), publish_pool.clone()));
        let reports = Arc::new(ReportChannel::new(topology.clone()));
        Ok(Self { topology, publish_pool, connections, failures: Arc::default(), reports })
    }

    /// What passes between this process and the broker.
    pub fn traffic(&self) -> Arc<Traffic> {
        self.topology.broker().traffic().clone()
    }

    /// How many connections of the pool on which an API publishes are in use, and how many are idle.
    pub fn publish_connections(&self) -> (usize, usize) {
        let status = self.publish_pool.status();
        (status.size.saturating_sub(status.available), status.available)
    }

    /// From now on workers serve these lanes as well, in place of the sets of an earlier call: other processes use them, or
    /// did so lately.
    pub fn serve_lane_sets(&self, sets: Vec<LaneSet>) {
        self.topology.serve_lane_sets(sets);
    }
}

#[async_trait]
impl Ping for RabbitMqQueue {
    async fn ping(&self) -> Result<(), QueueError> {
        self.connections.ping().await
    }
}

#[async_trait]
impl Queue for RabbitMqQueue {
    async fn submitter(
        &self,
        reply_sink: Arc<dyn ReplySink>,
        archive: Arc<dyn Archive>,
    ) -> Result<Arc<dyn Submitter>, QueueError> {
        let (topology, pool) = (self.topology.clone(), self.publish_pool.clone());
        Ok(Arc::new(RabbitMqSubmitter::start(topology, pool, reply_sink, archive).await?))
    }

    async fn consumer(&self) -> Result<Box<dyn Consumer>, QueueError> {
        Ok(Box::new(RabbitMqConsumer::start(self.topology.clone(), self.failures.clone()).await?))
    }
}

#[async_trait]
impl Reports for RabbitMqQueue {
    async fn tell(&self, report: Vec<u8>) -> Result<(), QueueError> {
        self.reports.tell(report).await
    }

    async fn listen(&self) -> Result<BoxStream<'static, Vec<u8>>, QueueError> {
        self.reports.listen().await
    }
}

#[async_trait]
impl Depths for RabbitMqQueue {
    async fn dead_letters(&self) -> Result<u64, QueueError> {
        self.reports.dead_letters().await
    }

    async fn depth(&self, product_id: ProductId) -> Result<LaneDepth, QueueError> {
        self.reports.depth(product_id).await
    }
}
