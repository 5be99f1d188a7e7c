//! How a process talks to the broker: named connections that do not recover by themselves, a time limit on every answer,
//! and growing delays between attempts. All other files of this directory build on this one.

use std::{fmt::Display, future::Future, pin::pin, str::FromStr, sync::Arc, time::Duration};

use deadpool_lapin::{Manager, Pool, PoolConfig, Runtime, Timeouts};
use lapin::{Connection, ConnectionProperties, ConnectionStatus, uri::AMQPUri};
use tokio::time::timeout;

use super::traffic::Traffic;
use crate::queue::QueueError;

/// How long the broker may take for any answer. While it is short of memory or disk it blocks publishers, and lapin
/// writes nothing at all: without a limit a publish would hang as long as that lasts.
pub(super) const BROKER_TIMEOUT: Duration = Duration::from_secs(5);

/// How many connections publish at most.
const MAX_PUBLISH_CONNECTIONS: usize = 8;

/// What the connections of the [pool](Broker::publish_pool) are for.
pub(super) const PUBLISHING: &str = "api: publish";

/// Where the broker is.
#[derive(Debug)]
pub(super) struct Broker {
    url: String,
    traffic: Arc<Traffic>,
}

impl Broker {
    /// `amqp://user:password@host:port/vhost`
    pub(super) fn new(url: &str) -> Result<Self, QueueError> {
        // The parser's own error would show the URL, and with it the password.
        let mut uri = AMQPUri::from_str(url)
            .map_err(|_| QueueError("AMQP_URL is not amqp://user:password@host:port/vhost".to_owned()))?;
        // The broker's own 60 s would leave a dead process's lanes unserved for two minutes.
        uri.query.heartbeat.get_or_insert(10);
        uri.query.connection_timeout.get_or_insert(5_000);
        Ok(Self { url: uri.to_string(), traffic: Arc::default() })
    }

    /// A new connection. The broker's management pages show its purpose.
    pub(super) async fn connect(&self, purpose: &'static str) -> Result<Connection, QueueError> {
        let connection = with_timeout(Connection::connect(&self.url, properties(purpose))).await;
        self.traffic.connected(purpose, connection.is_ok());
        connection
    }

    /// What passes between this process and the broker.
    pub(super) fn traffic(&self) -> &Arc<Traffic> {
        &self.traffic
    }

    /// Connections to publish on. APIs never consume on them: a broker that is short of memory blocks publishers, and
    /// verdicts must still arrive.
    pub(super) fn publish_pool(&self) -> Result<Pool, QueueError> {
        let manager =
            Manager::new(self.url.clone(), || properties(PUBLISHING), async_rs::Runtime::tokio_current());
        let limit = Some(BROKER_TIMEOUT);
        let timeouts = Timeouts { wait: limit, create: limit, recycle: limit };
        Pool::builder(manager)
            .config(PoolConfig { max_size: MAX_PUBLISH_CONNECTIONS, timeouts, ..PoolConfig::default() })
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(failed)
    }
}

/// Without automatic recovery: it would hide from a consumer that its messages were redelivered to another one.
fn properties(purpose: &str) -> ConnectionProperties {
    ConnectionProperties::default().with_connection_name(format!("antre {purpose}").into())
}

pub(super) fn failed(error: impl Display) -> QueueError {
    QueueError(error.to_string())
}

pub(super) fn no_answer(limit: Duration) -> QueueError {
    QueueError(format!("no answer within {limit:?}"))
}

/// The answer, or an error after [`BROKER_TIMEOUT`].
pub(super) async fn with_timeout<T, E: Display>(
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T, QueueError> {
    match timeout(BROKER_TIMEOUT, answer).await {
        Ok(result) => result.map_err(failed),
        Err(_) => Err(no_answer(BROKER_TIMEOUT)),
    }
}

/// The same, but time does not count while the broker blocks the connection.
pub(super) async fn with_timeout_unless_blocked<T, E: Display>(
    status: &ConnectionStatus,
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T, QueueError> {
    let mut answer = pin!(answer);
    loop {
        match timeout(BROKER_TIMEOUT, answer.as_mut()).await {
            Ok(result) => return result.map_err(failed),
            Err(_) if status.blocked() && status.connected() => {}
            Err(_) => return Err(no_answer(BROKER_TIMEOUT)),
        }
    }
}

/// Growing delays between attempts to reach the broker.
pub(super) fn backoff(max_delay: Duration) -> impl Iterator<Item = Duration> + Send {
    crate::backoff::backoff(Duration::from_millis(50), max_delay)
}
