//! The connection on which an API publishes: opened when it is first needed, replaced when it is gone, and watched,
//! because the broker blocks publishers while it is short of memory or disk. [`super::publisher`] publishes on it.

use std::{
    collections::HashSet,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use deadpool_lapin::{Object, Pool};
use futures_util::StreamExt;
use lapin::{
    Channel, Event, ExchangeKind,
    options::{ConfirmSelectOptions, ExchangeDeclareOptions},
    types::FieldTable,
};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    connection::{PUBLISHING, failed, no_answer, with_timeout},
    topology::Topology,
    traffic::Traffic,
};
use crate::{domain::lane_set::LaneNumber, queue::QueueError};

/// How long an answer to a ping counts. Many clients ask for readiness.
const PING_EVERY: Duration = Duration::from_secs(1);
/// How long the broker may take for a ping. Less than readiness waits.
const PING_TIMEOUT: Duration = Duration::from_millis(1_500);

/// The connection of now, and what is known of the broker.
pub(super) struct PublishConnections {
    topology: Arc<Topology>,
    pool: Pool,
    current: tokio::sync::Mutex<Option<Arc<PublishConnection>>>,
    is_blocked: watch::Sender<bool>,
    last_ping: tokio::sync::Mutex<Option<(Instant, Result<(), QueueError>)>>,
}

/// One connection.
pub(super) struct PublishConnection {
    connection: Object,
    /// In confirm mode.
    pub(super) orders: Channel,
    /// A separate channel: a ping waits behind no message.
    pings: Channel,
    declared: Mutex<HashSet<LaneNumber>>,
    _watching: AbortOnDropHandle<()>,
}

impl PublishConnections {
    pub(super) fn new(topology: Arc<Topology>, pool: Pool) -> Self {
        Self {
            topology,
            pool,
            current: tokio::sync::Mutex::default(),
            is_blocked: watch::Sender::new(false),
            last_ping: tokio::sync::Mutex::default(),
        }
    }

    /// Whether the broker blocks publishers now.
    pub(super) fn is_blocked(&self) -> bool {
        *self.is_blocked.borrow()
    }

    /// Changes when the broker begins and ends to block.
    pub(super) fn blocking(&self) -> watch::Receiver<bool> {
        self.is_blocked.subscribe()
    }

    /// The connection to publish on, or a new one.
    pub(super) async fn get(&self) -> Result<Arc<PublishConnection>, QueueError> {
        let mut current = self.current.lock().await;
        if let Some(connection) = current.as_ref().filter(|connection| connection.is_usable()) {
            return Ok(connection.clone());
        }
        *current = None;
        let connection = self.pool.get().await;
        let traffic = self.topology.broker().traffic();
        traffic.connected(PUBLISHING, connection.is_ok());
        let connection = connection.map_err(failed)?;
        let watching = AbortOnDropHandle::new(tokio::spawn(watch_blocking(
            connection.events_listener(),
            self.is_blocked.clone(),
            traffic.clone(),
        )));
        let (orders, pings) = with_timeout(async {
            Ok::<_, lapin::Error>((connection.create_channel().await?, connection.create_channel().await?))
        })
        .await?;
        with_timeout(orders.confirm_select(ConfirmSelectOptions::default())).await?;
        let declared = Mutex::default();
        let new = Arc::new(PublishConnection { connection, orders, pings, declared, _watching: watching });
        *current = Some(new.clone());
        Ok(new)
    }

    /// After a publish without an answer: part of it may be stuck in this connection. The next one uses another, unless
    /// this one still answers.
    pub(super) async fn replace_if_silent(&self, connection: &Arc<PublishConnection>) {
        if self.is_blocked() || connection.ping(&self.topology).await.is_ok() {
            return;
        }
        let mut current = self.current.lock().await;
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, connection)) {
            *current = None;
        }
    }

    /// Whether the broker answers. Asked once a second at most, however many callers want to know.
    pub(super) async fn ping(&self) -> Result<(), QueueError> {
        let mut last = self.last_ping.lock().await;
        if let Some((at, answer)) = last.as_ref()
            && at.elapsed() < PING_EVERY
        {
            return answer.clone();
        }
        let answer = match timeout(PING_TIMEOUT, self.ping_now()).await {
            Ok(answer) => answer,
            Err(_) => Err(no_answer(PING_TIMEOUT)),
        };
        *last = Some((Instant::now(), answer.clone()));
        answer
    }

    async fn ping_now(&self) -> Result<(), QueueError> {
        if self.is_blocked() {
            return Err(blocked());
        }
        self.get().await?.ping(&self.topology).await
    }
}

impl PublishConnection {
    fn is_usable(&self) -> bool {
        let is_connected = self.connection.status().connected();
        is_connected && self.orders.status().connected() && self.pings.status().connected()
    }

    /// A round trip, not only a look at the socket.
    async fn ping(&self, topology: &Topology) -> Result<(), QueueError> {
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let (name, kind) = (topology.new_products_name(), ExchangeKind::Fanout);
        let answer = self.pings.exchange_declare(name, kind, options, FieldTable::default());
        match timeout(PING_TIMEOUT, answer).await {
            Ok(answer) => answer.map_err(failed),
            Err(_) => Err(no_answer(PING_TIMEOUT)),
        }
    }

    /// Lanes that were declared since this connection was opened.
    pub(super) fn declared(&self) -> MutexGuard<'_, HashSet<LaneNumber>> {
        self.declared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn blocked() -> QueueError {
    QueueError("the broker blocks publishers: it is short of memory or disk".to_owned())
}

/// Reports whether the broker blocks the connection, until the connection is gone.
async fn watch_blocking(
    events: impl futures_util::Stream<Item = Event>,
    is_blocked: watch::Sender<bool>,
    traffic: Arc<Traffic>,
) {
    let mut alarm = Alarm { is_blocked, traffic, is_on: false };
    let mut events = pin!(events);
    while let Some(event) = events.next().await {
        match event {
            Event::ConnectionBlocked(reason) => {
                tracing::warn!(%reason, "the broker is short of memory or disk and blocks publishers: orders are refused");
                alarm.set(true);
            }
            Event::ConnectionUnblocked => {
                tracing::info!("the broker takes orders again");
                alarm.set(false);
            }
            Event::Error(_) => return,
            _ => {}
        }
    }
}

/// The broker's alarm on one connection.
struct Alarm {
    is_blocked: watch::Sender<bool>,
    traffic: Arc<Traffic>,
    is_on: bool,
}

impl Alarm {
    fn set(&mut self, is_on: bool) {
        if is_on != self.is_on {
            self.traffic.set_blocked(is_on);
        }
        self.is_on = is_on;
        self.is_blocked.send_replace(is_on);
    }
}

impl Drop for Alarm {
    /// An alarm ends with its connection.
    fn drop(&mut self) {
        if self.is_on {
            self.set(false);
        }
    }
}
