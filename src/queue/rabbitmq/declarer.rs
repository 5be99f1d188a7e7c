//! Declares lanes, on a separate connection: a declaration that the broker refuses closes its channel, and some errors of
//! one queue close the whole connection. What is published and consumed must not go with them.

use std::sync::Arc;

use lapin::{
    Channel, Connection, ErrorKind,
    options::BasicGetOptions,
    protocol::{AMQPErrorKind, AMQPSoftError},
};
use tokio::{
    sync::{Mutex, Semaphore},
    time::timeout,
};

use super::{
    connection::{BROKER_TIMEOUT, failed, no_answer, with_timeout},
    topology::{Lane, Topology},
};
use crate::queue::QueueError;

/// How many lanes are declared at a time.
const MAX_DECLARING: usize = 64;

pub(super) struct Declarer {
    topology: Arc<Topology>,
    purpose: &'static str,
    connection: Mutex<Option<Arc<Connection>>>,
    declaring: Semaphore,
}

/// Why a lane was not declared.
#[derive(Debug)]
pub(super) enum DeclareError {
    /// The broker refuses this lane, or does not answer for it. Others may be fine.
    Lane(QueueError),
    /// The broker is away.
    Broker(QueueError),
}

impl Declarer {
    /// Connects when it is first needed.
    pub(super) fn new(topology: Arc<Topology>, purpose: &'static str) -> Self {
        let declaring = Semaphore::new(MAX_DECLARING);
        Self { topology, purpose, connection: Mutex::default(), declaring }
    }

    /// Ensures that the lane exists.
    pub(super) async fn declare(&self, lane: &Lane) -> Result<(), DeclareError> {
        let _permit = self.declaring.acquire().await;
        let (connection, channel) = self.channel().await.map_err(DeclareError::Broker)?;
        // The channel closes when it is dropped.
        with_timeout(self.topology.declare_lane(&channel, lane)).await.map_err(|error| {
            match connection.status().connected() {
                true => DeclareError::Lane(error),
                false => DeclareError::Broker(error),
            }
        })
    }

    /// Whether the queue behind a lane answers. To consume one whose Raft server is down closes the connection, so this is
    /// found out on a connection that nothing else uses. `basic.get` gets nothing from a lane, because a lane has a single
    /// active consumer; but only a server that runs can say so.
    pub(super) async fn probe(&self, lane: &Lane) -> Result<(), QueueError> {
        let connection = self.topology.broker().connect("probe of a lane").await?;
        let channel = with_timeout(connection.create_channel()).await?;
        let got = timeout(BROKER_TIMEOUT, channel.basic_get(lane.name(), BasicGetOptions::default())).await;
        match got.map_err(|_| no_answer(BROKER_TIMEOUT))? {
            Err(error) if !is_resource_locked(&error) => Err(failed(error)),
            _ => Ok(()),
        }
    }

    /// A channel for something that may fail.
    pub(super) async fn channel(&self) -> Result<(Arc<Connection>, Channel), QueueError> {
        let connection = self.connection().await?;
        let channel = with_timeout(connection.create_channel()).await?;
        Ok((connection, channel))
    }

    async fn connection(&self) -> Result<Arc<Connection>, QueueError> {
        let mut current = self.connection.lock().await;
        if let Some(connection) = current.as_ref().filter(|connection| connection.status().connected()) {
            return Ok(connection.clone());
        }
        let connection = Arc::new(self.topology.broker().connect(self.purpose).await?);
        let channel = with_timeout(connection.create_channel()).await?;
        with_timeout(self.topology.declare_shared(&channel)).await?;
        *current = Some(connection.clone());
        Ok(connection)
    }
}

fn is_resource_locked(error: &lapin::Error) -> bool {
    let locked = AMQPErrorKind::Soft(AMQPSoftError::RESOURCELOCKED);
    matches!(error.kind(), ErrorKind::ProtocolError(error) if *error.kind() == locked)
}
