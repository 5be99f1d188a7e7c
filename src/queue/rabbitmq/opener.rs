//! Opens lanes beside the work. One lane's trouble is that lane's: it is tried again by itself, and holds up no other.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
use lapin::options::BasicConsumeOptions;
use tokio::{
    sync::{Semaphore, mpsc},
    time::sleep,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    consumer::{Arrival, End},
    declarer::{Declarer, NotDeclared},
    retries,
    topology::Lane,
    within,
};
use crate::queue::QueueError;

/// How many lanes are opened at a time.
const LANES_AT_ONCE: usize = 64;
/// How long a lane is left alone at first, and at most, before it is tried again.
const PAUSES: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(20)];

/// What this process knows of lanes that make trouble. It outlives connections.
#[derive(Default)]
pub(super) struct LaneTroubles(Mutex<Troubles>);

#[derive(Default)]
struct Troubles {
    /// Being consumed when the connection closed, or not yet consumed since: possibly they closed it. They are probed before
    /// they are consumed.
    suspects: HashSet<Lane>,
    /// Those that the log tells of.
    reported: HashSet<Lane>,
}

impl LaneTroubles {
    fn troubles(&self) -> MutexGuard<'_, Troubles> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self, lane: &Lane, error: &QueueError) {
        if self.troubles().reported.insert(lane.clone()) {
            tracing::error!(%lane, %error, "a lane cannot be served; it is tried again, and others are not concerned");
        }
    }

    fn is_served(&self, lane: &Lane) {
        let mut troubles = self.troubles();
        troubles.suspects.remove(lane);
        if troubles.reported.remove(lane) {
            tracing::info!(%lane, "serves the lane again");
        }
    }
}

/// A lane that was opened, or the end of the connection.
pub(super) type Opened = Result<BoxStream<'static, Arrival>, QueueError>;

/// Opens the lanes of one consumer, and ends with it.
pub(super) struct Opener {
    shared: Arc<Shared>,
    _stop: DropGuard,
}

struct Shared {
    end: Arc<End>,
    declarer: Declarer,
    troubles: Arc<LaneTroubles>,
    opened: mpsc::UnboundedSender<Opened>,
    at_once: Semaphore,
    stop: CancellationToken,
}

/// Why a lane is not open.
enum NotOpened {
    /// It may be tried again.
    Lane(QueueError),
    /// The broker is away, or the connection for declarations: that is no lane's trouble.
    Broker(QueueError),
    /// The connection on which all lanes are consumed is of no use any more.
    Consuming(QueueError),
}

impl From<NotDeclared> for NotOpened {
    fn from(error: NotDeclared) -> Self {
        match error {
            NotDeclared::Lane(error) => Self::Lane(error),
            NotDeclared::Broker(error) => Self::Broker(error),
        }
    }
}

impl Opener {
    pub(super) fn new(
        end: Arc<End>,
        declarer: Declarer,
        troubles: Arc<LaneTroubles>,
        opened: mpsc::UnboundedSender<Opened>,
    ) -> Self {
        let (stop, at_once) = (CancellationToken::new(), Semaphore::new(LANES_AT_ONCE));
        let shared = Shared { end, declarer, troubles, opened, at_once, stop: stop.clone() };
        Self { shared: Arc::new(shared), _stop: stop.drop_guard() }
    }

    /// Opens lanes, each on a task of its own: a consumer that is being started when the caller goes away would be left behind,
    /// active and deaf.
    pub(super) fn open(&self, lanes: impl IntoIterator<Item = Lane>) {
        for lane in lanes {
            tokio::spawn(self.shared.clone().open(lane));
        }
    }

    /// Opens a lane whose consumer the broker has cancelled: its queue was deleted, or lost its leader, or a message was held
    /// for too long.
    pub(super) fn open_again(&self, lane: Lane) {
        self.shared.troubles.report(&lane, &QueueError("the broker cancelled its consumer".to_owned()));
        self.shared.troubles.troubles().suspects.insert(lane.clone());
        self.open([lane]);
    }
}

impl Shared {
    async fn open(self: Arc<Self>, lane: Lane) {
        let [min_pause, max_pause] = PAUSES;
        let mut pauses = retries(max_pause);
        while !self.stop.is_cancelled() {
            match self.try_to_open(&lane).await {
                Ok(arrivals) => {
                    self.troubles.is_served(&lane);
                    let _ = self.opened.send(Ok(arrivals)); // the consumer may have ended
                    return;
                }
                Err(NotOpened::Lane(error)) => self.troubles.report(&lane, &error),
                Err(NotOpened::Broker(error)) => tracing::debug!(%lane, %error, "a lane is not declared yet"),
                Err(NotOpened::Consuming(error)) => {
                    let _ = self.opened.send(Err(error));
                    return;
                }
            }
            tokio::select! {
                () = sleep(pauses.next().unwrap_or(max_pause).max(min_pause)) => {}
                () = self.stop.cancelled() => {}
            }
        }
    }

    async fn try_to_open(&self, lane: &Lane) -> Result<BoxStream<'static, Arrival>, NotOpened> {
        let _permit = self.at_once.acquire().await;
        self.declarer.declare(lane).await?;
        let is_suspect = self.troubles.troubles().suspects.contains(lane);
        if is_suspect {
            self.declarer.probe(lane).await.map_err(NotOpened::Lane)?;
        }
        // Until it is consumed: a lane that closes the connection is found among those that were under way.
        self.troubles.troubles().suspects.insert(lane.clone());
        let name = lane.name();
        let arguments = self.end.topology.consumer_arguments(&self.end.worker, lane);
        // The tag is unique on this channel.
        let options = BasicConsumeOptions::default();
        let orders = within(self.end.orders.basic_consume(name.clone(), name, options, arguments))
            .await
            .map_err(NotOpened::Consuming)?;
        let (of_orders, at_end) = (lane.clone(), lane.clone());
        let orders = orders.map(move |delivery| Arrival::Orders(of_orders.clone(), delivery));
        Ok(orders.chain(stream::once(async { Arrival::LaneEnd(at_end) })).boxed())
    }
}
