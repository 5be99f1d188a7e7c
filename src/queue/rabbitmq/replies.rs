//! Receives the verdicts for one API, in a reply queue that lives as long as its connection. While there is none, the API
//! refuses commands: nobody would receive their verdicts.

use std::{
    convert::Infallible,
    sync::{Arc, PoisonError, RwLock},
};
use uuid::Uuid;

use futures_util::StreamExt;
use lapin::{
    options::{BasicConsumeOptions, QueueDeclareOptions},
    types::FieldTable,
};
use tokio::{
    sync::oneshot,
    time::{Duration, sleep},
};

use super::{
    connection::{backoff, failed, with_timeout},
    topology::Topology,
    wire::{self, Outcomes, Undecodable},
};
use crate::{
    domain::ids::CommandId,
    queue::{Address, Outcome, QueueError},
    telemetry::LogLimiter,
};

/// The longest delay before a new connection.
const MAX_DELAY: Duration = Duration::from_secs(1);

pub(super) struct Replies {
    topology: Arc<Topology>,
    /// `None` while there is no connection to receive verdicts on.
    address: RwLock<Option<Address>>,
}

impl Replies {
    pub(super) fn new(topology: Arc<Topology>) -> Self {
        Self { topology, address: RwLock::default() }
    }

    pub(super) fn address(&self) -> Option<Address> {
        self.address.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_address(&self, address: Option<Address>) {
        *self.address.write().unwrap_or_else(PoisonError::into_inner) = address;
    }

    /// Delivers what arrives, for ever; without anybody who waits to be told that it is `ready`, whatever fails at first. A connection that ends is replaced, with a reply queue of a new name: the old queue
    /// may still exist, locked by the connection that died.
    pub(super) async fn receive_forever(
        &self,
        mut ready: Option<oneshot::Sender<Result<(), QueueError>>>,
        deliver: impl Fn(Vec<(CommandId, Outcome)>) + Send + Sync,
    ) {
        let instance = Uuid::now_v7().simple().to_string();
        let mut delays = backoff(MAX_DELAY);
        for incarnation in 1.. {
            let name = self.topology.replies_name(&instance, incarnation);
            let Err(error) = self.receive(name.as_str(), &mut ready, &deliver).await;
            if self.address().is_some() {
                self.set_address(None);
                delays = backoff(MAX_DELAY);
            }
            if let Some(ready) = ready.take() {
                let _ = ready.send(Err(error)); // at the start, the caller handles it
                return;
            }
            tracing::warn!(%error, "lost the queue; orders are refused until it is back");
            sleep(delays.next().unwrap_or(MAX_DELAY)).await;
        }
    }

    async fn receive(
        &self,
        name: &str,
        ready: &mut Option<oneshot::Sender<Result<(), QueueError>>>,
        deliver: &(impl Fn(Vec<(CommandId, Outcome)>) + Send + Sync),
    ) -> Result<Infallible, QueueError> {
        let connection = self.topology.broker().connect("api: verdicts").await?;
        let channel = with_timeout(connection.create_channel()).await?;
        // It is deleted with its connection.
        let options =
            QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        with_timeout(channel.queue_declare(name.into(), options, FieldTable::default())).await?;
        // No acks: nobody else could use a verdict that is lost here, and its client reads the order instead.
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let consuming = channel.basic_consume(name.into(), "verdicts".into(), options, FieldTable::default());
        let mut verdicts = with_timeout(consuming).await?;
        self.set_address(Some(name.into()));
        match ready.take() {
            Some(ready) => drop(ready.send(Ok(()))),
            None => tracing::info!("the queue is back"),
        }
        while let Some(delivery) = verdicts.next().await {
            match decode(&delivery.map_err(failed)?) {
                Ok(Outcomes { outcomes, skipped }) => {
                    deliver(outcomes);
                    skipped.iter().for_each(report);
                }
                Err(error) => report(&error),
            }
        }
        Err(QueueError("the broker ended the consumer of verdicts".to_owned()))
    }
}

/// Their clients get no verdict, and read the order instead. Workers of another release send many of them.
fn report(error: &Undecodable) {
    static BAD_VERDICTS: LogLimiter = LogLimiter::every(Duration::from_secs(5));
    if let Some(suppressed) = BAD_VERDICTS.due() {
        tracing::error!(%error, suppressed, "a verdict in the queue of verdicts is left out");
    }
}

fn decode(delivery: &lapin::message::Delivery) -> Result<Outcomes, Undecodable> {
    wire::decode_outcomes(&delivery.data, wire::kind_of(&delivery.properties))
}
