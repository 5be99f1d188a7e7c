//! The queue contract on RabbitMQ 4: lanes that outlive processes, and any number of APIs and workers.
//!
//! [`topology`] says which queues there are and why each option is set. The API's end is [`submitter`], with what it
//! publishes on ([`publisher`]), receives on ([`replies`]), and owes to clients that were told 202 ([`promised`]). The
//! worker's end is [`consumer`], with how lanes are opened ([`opener`]) and left ([`settlement`]).

mod consumer;
mod declarer;
mod opener;
mod promised;
mod publisher;
mod replies;
mod settlement;
mod submitter;
mod topology;
mod wire;

use std::{fmt::Display, future::Future, pin::pin, sync::Arc, time::Duration};

use async_trait::async_trait;
use backon::{BackoffBuilder, ExponentialBuilder};
use deadpool_lapin::{Manager, Pool, PoolConfig, Runtime, Timeouts};
use lapin::{BasicProperties, ConnectionStatus};
use tokio::time::timeout;

use self::wire::JSON;
use self::{
    consumer::RabbitMqConsumer, opener::LaneTroubles, publisher::Publisher, submitter::RabbitMqSubmitter,
    topology::Topology,
};
use super::{Consumer, Ping, Queue, QueueError, ReplySink, Submitter};

use crate::domain::lane_set::LaneSet;

pub use topology::RabbitMqSettings;

/// How long the broker may take for anything. While it is short of memory or disk it blocks publishers, and lapin
/// writes nothing at all: without a limit a publish would hang as long as that lasts.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many connections publish at most.
const PUBLISHERS: usize = 8;

/// The header of messages to lanes that names the database whose orders they are.
const DATABASE_HEADER: &str = "antre-database";

/// Lanes on a RabbitMQ broker.
#[derive(Clone)]
pub struct RabbitMqQueue {
    topology: Arc<Topology>,
    /// Where APIs publish. They never consume on the same connection: a broker that is short of memory blocks
    /// publishers, and verdicts must still arrive.
    publishers: Pool,
    /// What answers pings.
    publisher: Arc<Publisher>,
    troubles: Arc<LaneTroubles>,
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
        let connection = publishers.get().await.map_err(failed)?;
        let channel = within(connection.create_channel()).await?;
        within(topology.declare_shared(&channel)).await?;
        let publisher = Arc::new(Publisher::new(topology.clone(), publishers.clone()));
        Ok(Self { topology, publishers, publisher, troubles: Arc::default() })
    }

    /// From now on workers serve these lanes as well: other processes use them, or did so lately.
    pub fn serve_also(&self, sets: Vec<LaneSet>) {
        self.topology.serve_also(sets);
    }
}

#[async_trait]
impl Ping for RabbitMqQueue {
    async fn ping(&self) -> Result<(), QueueError> {
        self.publisher.ping().await
    }
}

#[async_trait]
impl Queue for RabbitMqQueue {
    async fn submitter(&self, reply_sink: Arc<dyn ReplySink>) -> Result<Arc<dyn Submitter>, QueueError> {
        let submitter =
            RabbitMqSubmitter::start(self.topology.clone(), self.publishers.clone(), reply_sink).await?;
        Ok(Arc::new(submitter))
    }

    async fn consumer(&self) -> Result<Box<dyn Consumer>, QueueError> {
        Ok(Box::new(RabbitMqConsumer::start(self.topology.clone(), self.troubles.clone()).await?))
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
        Err(_) => Err(silent(PATIENCE)),
    }
}

/// The same, but time does not count while the broker blocks the connection.
async fn within_unless_blocked<T, E: Display>(
    status: &ConnectionStatus,
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T, QueueError> {
    let mut answer = pin!(answer);
    loop {
        match timeout(PATIENCE, answer.as_mut()).await {
            Ok(result) => return result.map_err(failed),
            Err(_) if status.blocked() && status.connected() => {}
            Err(_) => return Err(silent(PATIENCE)),
        }
    }
}

fn silent(patience: Duration) -> QueueError {
    QueueError(format!("no answer within {patience:?}"))
}

/// Growing delays with jitter, so that many processes do not come back in step.
fn retries(max_delay: Duration) -> impl Iterator<Item = Duration> + Send {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(max_delay)
        .with_jitter()
        .without_max_times()
        .build()
}
