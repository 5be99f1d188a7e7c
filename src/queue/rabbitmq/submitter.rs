//! The API's end of the queue. It puts commands into their lanes' buffers ([`super::lane_publisher`]), and runs three tasks:
//! one receives verdicts ([`super::replies`]), one submits parked commands again ([`super::parked`]), one empties the
//! buffers while the broker blocks publishers.

use jiff::Timestamp;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use deadpool_lapin::Pool;
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

use super::{
    connection::failed,
    lane_buffer::{Entry, LaneBuffers},
    lane_publisher::LanePublisher,
    outcomes::Outcomes,
    publisher::Publisher,
    replies::Replies,
    topology::{MAX_AGE, Topology},
};
use crate::{
    domain::{
        command::Command,
        ids::{OrderId, ProductId},
    },
    queue::{Archive, Ping, QueueError, Refusal, ReplySink, Submitter},
    supervise::supervise,
    telemetry::LogLimiter,
};

pub(super) struct RabbitMqSubmitter {
    lanes: Arc<LanePublisher>,
    _tasks: [AbortOnDropHandle<()>; 3],
}

impl RabbitMqSubmitter {
    /// Returns when verdicts can be received.
    pub(super) async fn start(
        topology: Arc<Topology>,
        pool: Pool,
        reply_sink: Arc<dyn ReplySink>,
        archive: Arc<dyn Archive>,
    ) -> Result<Self, QueueError> {
        let lanes = Arc::new(LanePublisher {
            publisher: Publisher::new(topology.clone(), pool),
            replies: Replies::new(topology.clone()),
            buffers: LaneBuffers::new(topology.lane_capacity()),
            topology,
            outcomes: Outcomes::new(reply_sink),
            archive,
            not_sent: LogLimiter::default(),
        });
        let (ready, is_ready) = oneshot::channel();
        let tasks = [
            tokio::spawn(receive_replies(lanes.clone(), ready)),
            tokio::spawn(supervised("refusing while the broker blocks", lanes.clone(), refuse_while_blocked)),
            tokio::spawn(supervised("submitting parked commands", lanes.clone(), submit_parked)),
        ];
        let submitter = Self { lanes, _tasks: tasks.map(AbortOnDropHandle::new) };
        is_ready.await.map_err(failed)??;
        Ok(submitter)
    }
}

#[async_trait]
impl Submitter for RabbitMqSubmitter {
    fn submit(&self, command: Command) {
        self.lanes.submit(Entry::new(command));
    }

    fn submit_or_park(&self, command: Command) {
        if let Some(entry) = self.lanes.outcomes.parked.admit(command) {
            self.lanes.submit(entry);
        }
    }

    fn parked(&self) -> usize {
        self.lanes.outcomes.parked.count()
    }

    async fn drain(&self) {
        self.lanes.outcomes.parked.drain().await;
    }

    async fn open_lane(&self, product_id: ProductId) -> Result<(), QueueError> {
        if self.lanes.replies.address().is_none() {
            return Err(no_replies()); // do not wait for a broker that is known to be away
        }
        self.lanes.publisher.open_lane(product_id).await
    }

    fn may_be_pending(&self, id: OrderId, now: Timestamp) -> bool {
        let age_ms = now.as_millisecond() - id.created_at().as_millisecond();
        age_ms <= MAX_AGE.as_millis() as i64
    }
}

#[async_trait]
impl Ping for RabbitMqSubmitter {
    async fn ping(&self) -> Result<(), QueueError> {
        if self.lanes.replies.address().is_none() {
            return Err(no_replies());
        }
        self.lanes.publisher.ping().await
    }
}

async fn supervised<F: Future<Output = ()>>(
    name: &'static str,
    lanes: Arc<LanePublisher>,
    task: impl Fn(Arc<LanePublisher>) -> F,
) {
    supervise(name, || task(lanes.clone())).await;
}

async fn receive_replies(lanes: Arc<LanePublisher>, ready: oneshot::Sender<Result<(), QueueError>>) {
    // For the first start only: after it, nobody waits.
    let ready = Mutex::new(Some(ready));
    supervise("receiving verdicts", || {
        let ready = ready.lock().unwrap_or_else(PoisonError::into_inner).take();
        lanes.replies.receive_forever(ready, |outcomes| lanes.outcomes.deliver(outcomes))
    })
    .await;
}

async fn submit_parked(lanes: Arc<LanePublisher>) {
    loop {
        lanes.outcomes.parked.unpark().await.into_iter().for_each(|entry| lanes.submit(entry));
    }
}

/// Without this, commands that are buffered when the alarm begins would wait behind a publish as long as the alarm lasts.
async fn refuse_while_blocked(lanes: Arc<LanePublisher>) {
    let mut blocking = lanes.publisher.blocking();
    while blocking.wait_for(|is_blocked| *is_blocked).await.is_ok() {
        lanes.outcomes.refuse(lanes.buffers.take_all(), Refusal::QueueUnavailable);
        let _ = blocking.wait_for(|is_blocked| !*is_blocked).await;
    }
}

fn no_replies() -> QueueError {
    QueueError("verdicts cannot be received now".to_owned())
}
