//! Opens lanes for a worker, next to its work: declares each lane and consumes it. A lane that fails is tried again after
//! growing delays, and holds up no other lane.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::stream::BoxStream;
use tokio::{
    sync::{Semaphore, mpsc},
    time::sleep,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    connection::backoff,
    declarer::{DeclareError, Declarer},
    topology::Lane,
    worker_channels::{Arrival, WorkerChannels},
};
use crate::queue::QueueError;

/// How many lanes are opened at a time.
const MAX_OPENING: usize = 64;
/// How long a lane that failed is left alone at first, and at most.
const RETRY_DELAYS: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(20)];

/// What this process knows of lanes that failed. It outlives connections.
#[derive(Default)]
pub(super) struct LaneFailures(Mutex<Failures>);

#[derive(Default)]
struct Failures {
    /// Lanes that were consumed when the connection closed, and have not been since: one of them may have closed it. They
    /// are probed before they are consumed.
    suspects: HashSet<Lane>,
    /// Lanes whose failure is in the log.
    reported: HashSet<Lane>,
}

impl LaneFailures {
    fn lock(&self) -> MutexGuard<'_, Failures> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self, lane: &Lane, error: &QueueError) {
        if self.lock().reported.insert(lane.clone()) {
            tracing::error!(%lane, %error, "a lane cannot be served; it is tried again, and others are not concerned");
        }
    }

    fn clear(&self, lane: &Lane) {
        let mut failures = self.lock();
        failures.suspects.remove(lane);
        if failures.reported.remove(lane) {
            tracing::info!(%lane, "serves the lane again");
        }
    }
}

/// What arrives in a lane that was opened; or the consumer cannot go on.
pub(super) type Opened = Result<BoxStream<'static, Arrival>, QueueError>;

/// Opens the lanes of one consumer, and stops when it is dropped.
pub(super) struct Opener {
    shared: Arc<Shared>,
    _stop: DropGuard,
}

struct Shared {
    channels: Arc<WorkerChannels>,
    declarer: Declarer,
    failures: Arc<LaneFailures>,
    opened: mpsc::UnboundedSender<Opened>,
    opening: Semaphore,
    stop: CancellationToken,
}

/// Why a lane is not open.
enum OpenError {
    /// It may be tried again.
    Lane(QueueError),
    /// The broker is away, or the connection for declarations: that is not the lane's failure.
    Broker(QueueError),
    /// The channel on which all lanes are consumed is broken.
    Channel(QueueError),
}

impl From<DeclareError> for OpenError {
    fn from(error: DeclareError) -> Self {
        match error {
            DeclareError::Lane(error) => Self::Lane(error),
            DeclareError::Broker(error) => Self::Broker(error),
        }
    }
}

impl Opener {
    pub(super) fn new(
        channels: Arc<WorkerChannels>,
        declarer: Declarer,
        failures: Arc<LaneFailures>,
        opened: mpsc::UnboundedSender<Opened>,
    ) -> Self {
        let (stop, opening) = (CancellationToken::new(), Semaphore::new(MAX_OPENING));
        let shared = Shared { channels, declarer, failures, opened, opening, stop: stop.clone() };
        Self { shared: Arc::new(shared), _stop: stop.drop_guard() }
    }

    /// Opens lanes, each on a separate task: a future that is dropped between sending `basic.consume` and its answer would
    /// leave an active consumer that nobody reads.
    pub(super) fn open(&self, lanes: impl IntoIterator<Item = Lane>) {
        for lane in lanes {
            tokio::spawn(self.shared.clone().open(lane));
        }
    }

    /// Opens a lane whose consumer the broker has cancelled: its queue was deleted, or lost its leader, or a message was
    /// unsettled for too long.
    pub(super) fn open_again(&self, lane: Lane) {
        self.shared.failures.report(&lane, &QueueError("the broker cancelled its consumer".to_owned()));
        self.shared.failures.lock().suspects.insert(lane.clone());
        self.open([lane]);
    }
}

impl Shared {
    async fn open(self: Arc<Self>, lane: Lane) {
        let [min_delay, max_delay] = RETRY_DELAYS;
        let mut delays = backoff(max_delay);
        while !self.stop.is_cancelled() {
            match self.try_to_open(&lane).await {
                Ok(arrivals) => {
                    self.failures.clear(&lane);
                    let _ = self.opened.send(Ok(arrivals)); // the consumer may have ended
                    return;
                }
                Err(OpenError::Lane(error)) => self.failures.report(&lane, &error),
                Err(OpenError::Broker(error)) => tracing::debug!(%lane, %error, "a lane is not declared yet"),
                Err(OpenError::Channel(error)) => {
                    let _ = self.opened.send(Err(error));
                    return;
                }
            }
            tokio::select! {
                () = sleep(delays.next().unwrap_or(max_delay).max(min_delay)) => {}
                () = self.stop.cancelled() => {}
            }
        }
    }

    async fn try_to_open(&self, lane: &Lane) -> Result<BoxStream<'static, Arrival>, OpenError> {
        let _permit = self.opening.acquire().await;
        self.declarer.declare(lane).await?;
        let is_suspect = self.failures.lock().suspects.contains(lane);
        if is_suspect {
            self.declarer.probe(lane).await.map_err(OpenError::Lane)?;
        }
        // Until it is consumed: a lane that closes the connection is one of those that were being opened.
        self.failures.lock().suspects.insert(lane.clone());
        self.channels.consume(lane).await.map_err(OpenError::Channel)
    }
}
