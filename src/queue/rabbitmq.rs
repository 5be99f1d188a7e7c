//! The queue contract on RabbitMQ 4: lanes that outlive processes, and any number of APIs and workers.
//!
//! [`topology`] says which queues there are and why each option is set; [`submitter`] is the API's end,
//! [`consumer`] the worker's.

mod consumer;
mod submitter;
mod topology;

use std::{fmt::Display, future::Future, sync::Arc, time::Duration};

use async_trait::async_trait;
use deadpool_lapin::{Manager, Pool, PoolConfig, Runtime, Timeouts};
use lapin::BasicProperties;
use tokio::time::timeout;

use self::{consumer::RabbitMqConsumer, submitter::RabbitMqSubmitter, topology::Topology};
use super::{Consumer, Inbox, Ping, Queue, QueueError, Submitter, message::JSON};

pub use topology::{LaneMode, RabbitMqSettings};

/// A log filter: lapin warns of each message that the broker returns, with its payload byte by byte. What is to be known of
/// it is said here in a line.
pub const PAYLOADS: &str = "lapin::returned_messages=error";

/// How long the broker may take for anything. While it is short of memory or disk it blocks publishers, and lapin
/// writes nothing at all: without a limit a publish would hang as long as that lasts.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many connections publish at most: a submitter keeps one, a ping borrows one.
const PUBLISHERS: usize = 8;

/// Lanes on a RabbitMQ broker.
#[derive(Clone)]
pub struct RabbitMqQueue {
    topology: Arc<Topology>,
    /// Where APIs publish. They never consume on the same connection: a broker that is short of memory blocks
    /// publishers, and verdicts must still arrive.
    publishers: Pool,
}

impl RabbitMqQueue {
    /// Connects, and declares what all lanes share.
    pub async fn connect(settings: RabbitMqSettings) -> Result<Self, QueueError> {
        let topology = Arc::new(Topology::new(settings)?);
        let manager = Manager::new(
            topology.url(),
            || Topology::properties("api: publish"),
            async_rs::Runtime::tokio_current(),
        );
        let limits = Timeouts { wait: Some(PATIENCE), create: Some(PATIENCE), recycle: Some(PATIENCE) };
        let publishers = Pool::builder(manager)
            .config(PoolConfig { max_size: PUBLISHERS, timeouts: limits, ..PoolConfig::default() })
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(failed)?;
        let queue = Self { topology, publishers };
        queue.ping().await?;
        Ok(queue)
    }
}

#[async_trait]
impl Ping for RabbitMqQueue {
    async fn ping(&self) -> Result<(), QueueError> {
        let connection = self.publishers.get().await.map_err(failed)?;
        let channel = within(connection.create_channel()).await?;
        within(self.topology.declare_shared(&channel)).await
    }
}

#[async_trait]
impl Queue for RabbitMqQueue {
    async fn submitter(&self, inbox: Arc<dyn Inbox>) -> Result<Arc<dyn Submitter>, QueueError> {
        let submitter =
            RabbitMqSubmitter::start(self.topology.clone(), self.publishers.clone(), inbox).await?;
        Ok(Arc::new(submitter))
    }

    async fn consumer(&self) -> Result<Box<dyn Consumer>, QueueError> {
        Ok(Box::new(RabbitMqConsumer::start(self.topology.clone()).await?))
    }
}

/// What every message says of itself.
fn properties(kind: &str) -> BasicProperties {
    BasicProperties::default().with_content_type(JSON.into()).with_type(kind.into())
}

fn failed(error: impl Display) -> QueueError {
    QueueError(error.to_string())
}

/// The answer, or an error once [`PATIENCE`] is over.
async fn within<T, E: Display>(answer: impl Future<Output = Result<T, E>>) -> Result<T, QueueError> {
    match timeout(PATIENCE, answer).await {
        Ok(result) => result.map_err(failed),
        Err(_) => Err(QueueError(format!("no answer within {PATIENCE:?}"))),
    }
}
