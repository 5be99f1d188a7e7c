//! Declares lanes, on a connection of its own: a declaration that the broker refuses closes its channel, and some errors of
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
    PATIENCE, failed, silent,
    topology::{Lane, Topology},
    within,
};
use crate::queue::QueueError;

/// How many lanes are declared at a time.
const AT_ONCE: usize = 64;

pub(super) struct Declarer {
    topology: Arc<Topology>,
    purpose: &'static str,
    connection: Mutex<Option<Arc<Connection>>>,
    at_once: Semaphore,
}

/// Why a lane was not declared.
#[derive(Debug)]
pub(super) enum NotDeclared {
    /// The broker refuses this one, or does not answer for it. Others may be fine.
    Lane(QueueError),
    /// The broker is away.
    Broker(QueueError),
}

impl Declarer {
    /// Connects when it is first needed.
    pub(super) fn new(topology: Arc<Topology>, purpose: &'static str) -> Self {
        Self { topology, purpose, connection: Mutex::default(), at_once: Semaphore::new(AT_ONCE) }
    }

    /// Sees to it that the lane is there.
    pub(super) async fn declare(&self, lane: &Lane) -> Result<(), NotDeclared> {
        let _permit = self.at_once.acquire().await;
        let (connection, channel) = self.channel().await.map_err(NotDeclared::Broker)?;
        // The channel closes when it is dropped.
        within(self.topology.declare_lane(&channel, lane)).await.map_err(|error| {
            match connection.status().connected() {
                true => NotDeclared::Lane(error),
                false => NotDeclared::Broker(error),
            }
        })
    }

    /// Whether the queue behind a lane answers. To consume one whose Raft server is down closes the connection, so this is
    /// found out on a connection that nobody else uses: `basic.get` gets nothing from a lane, because that has a single
    /// active consumer, and only a server that runs says so.
    pub(super) async fn probe(&self, lane: &Lane) -> Result<(), QueueError> {
        let connection = self.topology.connect("probe of a lane").await?;
        let channel = within(connection.create_channel()).await?;
        let got = timeout(PATIENCE, channel.basic_get(lane.name(), BasicGetOptions::default())).await;
        match got.map_err(|_| silent(PATIENCE))? {
            Err(error) if !is_resource_locked(&error) => Err(failed(error)),
            _ => Ok(()),
        }
    }

    /// A channel for something that may go wrong.
    pub(super) async fn channel(&self) -> Result<(Arc<Connection>, Channel), QueueError> {
        let connection = self.connection().await?;
        let channel = within(connection.create_channel()).await?;
        Ok((connection, channel))
    }

    async fn connection(&self) -> Result<Arc<Connection>, QueueError> {
        let mut current = self.connection.lock().await;
        if let Some(connection) = current.as_ref().filter(|connection| connection.status().connected()) {
            return Ok(connection.clone());
        }
        let connection = Arc::new(self.topology.connect(self.purpose).await?);
        let channel = within(connection.create_channel()).await?;
        within(self.topology.declare_shared(&channel)).await?;
        *current = Some(connection.clone());
        Ok(connection)
    }
}

fn is_resource_locked(error: &lapin::Error) -> bool {
    let locked = AMQPErrorKind::Soft(AMQPSoftError::RESOURCELOCKED);
    matches!(error.kind(), ErrorKind::ProtocolError(error) if *error.kind() == locked)
}
