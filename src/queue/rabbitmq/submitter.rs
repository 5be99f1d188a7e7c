//! The API's end: gathers orders for each lane, publishes them, and says what is known of them.

use std::{
    collections::HashMap,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use deadpool_lapin::Pool;
use lapin::message::BasicReturnMessage;
use tokio::{
    sync::{Notify, oneshot},
    task::yield_now,
    time::{Instant, sleep},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    failed,
    promised::{Entry, Promised},
    publisher::{Published, Publisher},
    replies::Replies,
    retries,
    topology::{MAX_AGE, Topology},
};
use crate::{
    clock::now,
    domain::{
        command::Command,
        ids::{CommandId, OrderId, ProductId},
        lane_set::LaneNumber,
    },
    queue::{Address, Outcome, Ping, QueueError, Refusal, ReplySink, Submitter, rabbitmq::wire},
    telemetry::Sparse,
};

/// How many commands one message carries at most: some 100 kB, which is one frame, and as many as a worker decides at a
/// time. What a message costs the broker depends little on what is in it.
const MAX_COMMANDS_PER_MESSAGE: usize = 1_000;

/// So many commands make a message that need not wait for the last one's verdicts.
const ENOUGH: usize = 128;

/// How long commands gather at most behind a message that stands in line and is not decided. A worker that is slow, or
/// that serves many lanes, needs longer; then what comes must be queued, too, where it outlives this process.
const MAX_GATHERING: Duration = Duration::from_millis(20);

/// How long a lane in trouble is left alone at first, and at most.
const TROUBLE_PAUSES: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(10)];

/// The API's end.
pub(super) struct RabbitMqSubmitter {
    shared: Arc<Shared>,
    _tasks: [AbortOnDropHandle<()>; 3],
}

struct Shared {
    topology: Arc<Topology>,
    publisher: Publisher,
    replies: Replies,
    reply_sink: Arc<dyn ReplySink>,
    /// Lanes with a publish under way, or in trouble.
    lanes: Mutex<HashMap<LaneNumber, LaneBuffer>>,
    /// Who waits for the verdict on the last command of a message.
    undecided: Mutex<HashMap<CommandId, oneshot::Sender<()>>>,
    promised: Promised,
    not_sent: Sparse,
    foreign: Sparse,
}

/// What gathers for a lane while its last message is under way, until the verdicts on it arrive or there is
/// [enough](ENOUGH). It leaves as one message, so a lone command never waits, and a flood becomes few messages. One publish at
/// a time keeps the lane in order.
///
/// Measured beside leaving with the broker's confirm of the last message, which is earlier: at 1,000 orders a second, where
/// messages of one or two orders made the broker do most of the work, it needs two thirds of the time for them, and half of
/// them are answered in 3.9 instead of 5.2 ms. At full speed there is enough at once.
#[derive(Default)]
struct LaneBuffer {
    entries: Vec<Entry>,
    is_publishing: bool,
    /// Nobody knows whether the publish under way arrived; what comes now is refused instead of waiting behind it.
    is_stuck: bool,
    trouble: Option<Trouble>,
    enough: Arc<Notify>,
}

/// A lane that could not be declared, or that does not answer. Its orders are refused at once until it is time to try again.
struct Trouble {
    until: Instant,
    pause: Duration,
}

impl RabbitMqSubmitter {
    pub(super) async fn start(
        topology: Arc<Topology>,
        publishers: Pool,
        reply_sink: Arc<dyn ReplySink>,
    ) -> Result<Self, QueueError> {
        let shared = Arc::new(Shared {
            publisher: Publisher::new(topology.clone(), publishers),
            replies: Replies::new(topology.clone()),
            topology,
            reply_sink,
            lanes: Mutex::default(),
            undecided: Mutex::default(),
            promised: Promised::new(),
            not_sent: Sparse::default(),
            foreign: Sparse::every(Duration::from_secs(60)),
        });
        let (ready, is_ready) = oneshot::channel();
        let receiving = shared.clone();
        let receiving = async move {
            receiving.replies.receive_forever(ready, |outcomes| receiving.hear(outcomes)).await;
        };
        let tasks = [
            tokio::spawn(receiving),
            tokio::spawn(shared.clone().refuse_while_blocked()),
            tokio::spawn(shared.clone().submit_parked()),
        ];
        let submitter = Self { shared, _tasks: tasks.map(AbortOnDropHandle::new) };
        is_ready.await.map_err(failed)??;
        Ok(submitter)
    }
}

#[async_trait]
impl Submitter for RabbitMqSubmitter {
    fn submit(&self, command: Command) {
        self.shared.put(Entry::new(command));
    }

    fn submit_surely(&self, command: Command) {
        if let Some(entry) = self.shared.promised.admit(command) {
            self.shared.put(entry);
        }
    }

    async fn flush(&self) {
        self.shared.promised.flush().await;
    }

    async fn open_lane(&self, product_id: ProductId) -> Result<(), QueueError> {
        if self.shared.replies.address().is_none() {
            return Err(no_replies()); // nobody waits for a broker that is known to be away
        }
        self.shared.publisher.open_lane(product_id).await
    }

    fn may_hold(&self, id: OrderId) -> bool {
        let age_ms = now().as_millisecond() - id.created_at().as_millisecond();
        age_ms <= MAX_AGE.as_millis() as i64
    }
}

#[async_trait]
impl Ping for RabbitMqSubmitter {
    async fn ping(&self) -> Result<(), QueueError> {
        if self.shared.replies.address().is_none() {
            return Err(no_replies());
        }
        self.shared.publisher.ping().await
    }
}

impl Shared {
    /// Puts a command into its lane's buffer, or refuses it.
    fn put(self: &Arc<Self>, entry: Entry) {
        if self.replies.address().is_none() || self.publisher.is_blocked() {
            return self.refuse(vec![entry], Refusal::QueueUnavailable);
        }
        let lane = self.topology.lane_of(entry.command.product_id());
        let refusal = {
            let mut lanes = self.lanes();
            let gathering = lanes.entry(lane).or_default();
            let now = Instant::now();
            if gathering.is_stuck || gathering.trouble.as_ref().is_some_and(|trouble| trouble.until > now) {
                Refusal::QueueUnavailable
            } else if gathering.entries.len() >= self.topology.lane_capacity() {
                Refusal::LaneFull
            } else {
                gathering.entries.push(entry);
                if !mem::replace(&mut gathering.is_publishing, true) {
                    tokio::spawn(self.clone().publish_lane(lane));
                } else if gathering.entries.len() == ENOUGH {
                    gathering.enough.notify_one();
                }
                return;
            }
        };
        self.refuse(vec![entry], refusal);
    }

    fn lanes(&self) -> MutexGuard<'_, HashMap<LaneNumber, LaneBuffer>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn undecided(&self) -> MutexGuard<'_, HashMap<CommandId, oneshot::Sender<()>>> {
        self.undecided.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that commands were not queued; those that are promised are parked.
    fn refuse(&self, entries: Vec<Entry>, refusal: Refusal) {
        let (promised, refused): (Vec<_>, Vec<_>) = entries.into_iter().partition(Entry::is_promised);
        self.promised.park(promised);
        if !refused.is_empty() {
            let outcome = Outcome::Refused(refusal);
            self.reply_sink.deliver(refused.iter().map(|entry| (entry.command.id(), outcome)).collect());
        }
    }

    /// Says that commands are queued, to those who wait for no more.
    fn confirm(&self, entries: &[Entry]) {
        let detached = entries.iter().map(|entry| &entry.command).filter(|command| command.is_detached());
        let queued: Vec<_> = detached.map(|command| (command.id(), Outcome::Queued)).collect();
        if !queued.is_empty() {
            self.reply_sink.deliver(queued);
            self.promised.kept(entries.iter().filter(|entry| entry.is_promised()).count());
        }
    }

    /// Hands out what became of commands.
    fn hear(&self, outcomes: Vec<(CommandId, Outcome)>) {
        {
            let mut undecided = self.undecided();
            for decided in outcomes.iter().filter_map(|(id, _)| undecided.remove(id)) {
                let _ = decided.send(()); // it may have stopped waiting just now
            }
        }
        let is_foreign =
            |(_, outcome): &(_, Outcome)| *outcome == Outcome::Refused(Refusal::OtherInstallation);
        if outcomes.iter().any(is_foreign)
            && let Some(left_out) = self.foreign.due()
        {
            tracing::error!(
                left_out,
                "a worker of another database took orders of this one and refused them: two installations share this \
                 QUEUE_PREFIX. Give each its own; the orders are among the dead letters"
            );
        }
        self.reply_sink.deliver(outcomes);
    }

    async fn submit_parked(self: Arc<Self>) {
        loop {
            self.promised.unpark().await.into_iter().for_each(|entry| self.put(entry));
        }
    }

    /// What gathers when the broker begins to block waits for a publish that may take as long as that lasts.
    async fn refuse_while_blocked(self: Arc<Self>) {
        let mut blocking = self.publisher.blocking();
        while blocking.wait_for(|is_blocked| *is_blocked).await.is_ok() {
            let gathered = self.lanes().values_mut().flat_map(|lane| mem::take(&mut lane.entries)).collect();
            self.refuse(gathered, Refusal::QueueUnavailable);
            let _ = blocking.wait_for(|is_blocked| !*is_blocked).await;
        }
    }

    /// Publishes what gathers for one lane, message by message, until nothing does.
    async fn publish_lane(self: Arc<Self>, lane: LaneNumber) {
        loop {
            // Requests that have arrived together leave together: their handlers run first. A lone one does not wait.
            yield_now().await;
            let (entries, enough) = {
                let mut lanes = self.lanes();
                let Some(gathering) = lanes.get_mut(&lane) else { return };
                if gathering.entries.is_empty() {
                    gathering.is_publishing = false;
                    if gathering.trouble.is_none() {
                        lanes.remove(&lane);
                    }
                    return;
                }
                let count = gathering.entries.len().min(MAX_COMMANDS_PER_MESSAGE);
                let rest = gathering.entries.split_off(count);
                (mem::replace(&mut gathering.entries, rest), gathering.enough.clone())
            };
            let Some(reply_to) = self.replies.address() else {
                self.refuse(entries, Refusal::QueueUnavailable);
                continue;
            };
            let Some(last) = entries.last().map(|entry| entry.command.id()) else { continue };
            let (decided, is_decided) = oneshot::channel();
            self.undecided().insert(last, decided);
            if self.publish(lane, entries, reply_to).await && !self.has_enough(lane) {
                tokio::select! {
                    _ = is_decided => {}
                    () = enough.notified() => {}
                    () = sleep(MAX_GATHERING) => {}
                }
            }
            self.undecided().remove(&last);
        }
    }

    fn has_enough(&self, lane: LaneNumber) -> bool {
        self.lanes().get(&lane).is_some_and(|gathering| gathering.entries.len() >= ENOUGH)
    }

    /// Publishes one message until it is known what became of it. Returns whether it is queued.
    async fn publish(self: &Arc<Self>, lane: LaneNumber, entries: Vec<Entry>, reply_to: Address) -> bool {
        let payload = wire::encode_commands(entries.iter().map(|entry| &entry.command));
        let was_in_trouble = self.lanes().get(&lane).is_some_and(|gathering| gathering.trouble.is_some());
        let published = match was_in_trouble {
            true => self.publisher.publish_aside(lane, &payload, &reply_to).await,
            false => self.publisher.publish(lane, &payload, &reply_to).await,
        };
        match published {
            Published::Confirmed => {
                self.confirm(&entries);
                self.is_well(lane);
                true
            }
            Published::Nacked => {
                if was_in_trouble {
                    self.is_in_trouble(lane, &not_taken());
                }
                self.refuse(entries, Refusal::LaneFull);
                false
            }
            Published::Returned(returned) => self.take_back(lane, &entries, &returned),
            Published::NoLane(error) => {
                self.is_in_trouble(lane, &error);
                self.refuse(entries, Refusal::QueueUnavailable);
                false
            }
            Published::NotSent(error) => {
                if let Some(left_out) = self.not_sent.due() {
                    let commands = entries.len();
                    tracing::warn!(%error, lane, commands, left_out, "commands were not queued");
                }
                self.refuse(entries, Refusal::QueueUnavailable);
                false
            }
            Published::Unknown(error) => self.publish_again(lane, entries, payload, error).await,
        }
    }

    /// Nobody knows whether the message arrived. It is sent until that is known, and meanwhile the lane takes nothing else:
    /// sending it again is safe, a command that is decided twice gets the stored verdict.
    async fn publish_again(
        self: &Arc<Self>,
        lane: LaneNumber,
        entries: Vec<Entry>,
        payload: Vec<u8>,
        error: QueueError,
    ) -> bool {
        let behind = self.lanes().get_mut(&lane).map(|gathering| {
            gathering.is_stuck = true;
            mem::take(&mut gathering.entries)
        });
        self.refuse(behind.unwrap_or_default(), Refusal::QueueUnavailable);
        let (name, commands) = (self.topology.own_lane(lane), entries.len());
        if let Some(left_out) = self.not_sent.due() {
            let what = "not known whether commands are queued; they are sent again, and the lane takes no others until then";
            tracing::warn!(%error, lane = %name, commands, left_out, "{what}");
        }
        let [min_pause, max_pause] = TROUBLE_PAUSES;
        let (began, mut pauses) = (Instant::now(), retries(max_pause));
        let is_queued = loop {
            sleep(pauses.next().unwrap_or(max_pause).max(min_pause)).await;
            let Some(reply_to) = self.replies.address() else { continue };
            match self.publisher.publish_aside(lane, &payload, &reply_to).await {
                Published::Confirmed => {
                    self.confirm(&entries);
                    break true;
                }
                // Says nothing of the copy that may be queued: whoever waits for it will be told that it is not known.
                Published::Nacked | Published::Returned(_) => {
                    self.is_in_trouble(lane, &not_taken());
                    self.promised.park(entries.into_iter().filter(Entry::is_promised).collect());
                    break false;
                }
                Published::NoLane(error) | Published::NotSent(error) | Published::Unknown(error) => {
                    tracing::debug!(%error, lane = %name, commands, "sending again");
                }
            }
            // Nobody looks for its commands any more.
            if began.elapsed() > MAX_AGE {
                self.promised.park(entries.into_iter().filter(Entry::is_promised).collect());
                break false;
            }
        };
        if let Some(gathering) = self.lanes().get_mut(&lane) {
            gathering.is_stuck = false;
        }
        is_queued
    }

    /// A message that found no lane. lapin hands it out with whichever confirm comes next, so what it says about itself is
    /// what counts, not whose confirm it came with. Returns whether the published entries are queued.
    fn take_back(
        self: &Arc<Self>,
        lane: LaneNumber,
        entries: &[Entry],
        returned: &BasicReturnMessage,
    ) -> bool {
        tracing::warn!(lane = returned.routing_key.as_str(), "a lane was deleted; it will be declared again");
        let kind = returned.delivery.properties.kind().as_ref().map(|kind| kind.as_str());
        let commands = match wire::decode_commands(&returned.delivery.data, kind) {
            Ok(commands) => commands,
            Err(error) => {
                tracing::error!(%error, "a returned message");
                Vec::new()
            }
        };
        let is_own = commands.first().map(Command::id) == entries.first().map(|entry| entry.command.id());
        if is_own {
            self.refuse(entries.to_vec(), Refusal::QueueUnavailable);
            return false;
        }
        self.confirm(entries);
        self.is_well(lane);
        // Who waits for those of the other message hears that they were refused; of the detached ones it was said already
        // that they are queued, so now they have to be.
        let (detached, waiting): (Vec<_>, Vec<_>) = commands.into_iter().partition(Command::is_detached);
        self.refuse(waiting.into_iter().map(Entry::new).collect(), Refusal::QueueUnavailable);
        self.promised.park(detached.into_iter().filter_map(|command| self.promised.admit(command)).collect());
        true
    }

    fn is_in_trouble(&self, lane: LaneNumber, error: &QueueError) {
        let [min_pause, max_pause] = TROUBLE_PAUSES;
        let mut lanes = self.lanes();
        let gathering = lanes.entry(lane).or_default();
        let pause = match &gathering.trouble {
            Some(trouble) => (trouble.pause * 2).min(max_pause),
            None => {
                let lane = self.topology.own_lane(lane);
                tracing::error!(%lane, %error, "a lane does not work; its orders are refused, others are not concerned");
                min_pause
            }
        };
        gathering.trouble = Some(Trouble { until: Instant::now() + pause, pause });
    }

    fn is_well(&self, lane: LaneNumber) {
        let trouble = self.lanes().get_mut(&lane).and_then(|gathering| gathering.trouble.take());
        if trouble.is_some() {
            tracing::info!(lane = %self.topology.own_lane(lane), "the lane takes orders again");
        }
    }
}

fn not_taken() -> QueueError {
    QueueError("its queue takes nothing".to_owned())
}

fn no_replies() -> QueueError {
    QueueError("verdicts cannot be received now".to_owned())
}
