//! The API's end: publishes orders, and receives verdicts in a queue of its own.

use std::{
    collections::{HashMap, HashSet},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};

use async_trait::async_trait;
use backon::{BackoffBuilder, ExponentialBuilder};
use deadpool_lapin::{Object, Pool};
use futures_util::StreamExt;
use lapin::{
    Channel, Confirmation,
    message::BasicReturnMessage,
    options::{BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions},
    types::FieldTable,
};
use tokio::{
    sync::{Notify, Semaphore, oneshot},
    task::yield_now,
    time::sleep,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    failed, properties,
    topology::{Lane, MAX_AGE, Topology},
    within,
};
use crate::{
    command::{Command, CommandId, ReplyMode},
    order::{OrderId, now},
    product::ProductId,
    queue::{
        Address, Inbox, Outcome, Ping, QueueError, Refusal, Submitter,
        message::{self, ORDERS_V1, PRODUCT_V1},
    },
};

/// How many commands one message carries at most: some 100 kB, which is one frame, and as many as a worker decides at a
/// time. What a message costs the broker depends little on what is in it.
const MAX_COMMANDS_PER_MESSAGE: usize = 1_000;

/// So many commands make a message that need not wait for the last one's verdicts.
const ENOUGH: usize = 128;

/// How long commands gather at most behind a message that stands in line and is not decided. A worker that is slow, or
/// that serves many lanes, needs longer; then what comes must stand in line, too, where it outlives this process.
const MAX_GATHERING: Duration = Duration::from_millis(20);

/// How many commands are kept whose clients have left before they were in line.
const MAX_KEPT: usize = 65_536;
/// How long those wait before they are submitted again.
const KEPT_PAUSE: Duration = Duration::from_secs(1);

/// How long a command whose client does not wait is published again while it is not known whether it arrived.
const PATIENCE_WITH_ASYNC: Duration = Duration::from_secs(10);

/// The API's end.
pub(super) struct RabbitMqSubmitter {
    shared: Arc<Shared>,
    _receiving: AbortOnDropHandle<()>,
}

struct Shared {
    topology: Arc<Topology>,
    publishers: Pool,
    inbox: Arc<dyn Inbox>,
    /// Where verdicts find this process; `None` while it has no connection to receive them on.
    reply_to: RwLock<Option<Address>>,
    /// Lanes with a publish under way.
    lanes: Mutex<HashMap<Lane, Gathering>>,
    publishing: tokio::sync::Mutex<Option<Arc<Publishing>>>,
    /// Who waits for the verdict on the last command of a message.
    undecided: Mutex<HashMap<CommandId, oneshot::Sender<()>>>,
    /// Room for commands that are kept until they get in line.
    kept: Arc<Semaphore>,
    /// Commands that are kept instead of refused.
    promised: Mutex<HashSet<CommandId>>,
}

/// What gathers for a lane while its last message is under way, until the verdicts on it arrive or there is
/// [enough](ENOUGH). It leaves as one message, so a lone command never waits, and a flood becomes few messages. One publish at
/// a time keeps the lane in order.
///
/// Measured beside leaving with the broker's confirm of the last message, which is earlier: at 1,000 orders a second, where
/// messages of one or two orders made the broker do most of the work, it needs two thirds of the time for them, and half of
/// them are answered in 3.9 instead of 5.2 ms. At full speed there is enough at once.
#[derive(Default)]
struct Gathering {
    commands: Vec<Command>,
    /// Nobody knows whether the publish under way arrived; what comes now is refused instead of waiting behind it.
    stuck: bool,
    enough: Arc<Notify>,
}

/// A connection to publish on.
struct Publishing {
    connection: Object,
    orders: Channel,
    /// A channel of its own: a declaration that is refused closes its channel.
    declarations: Channel,
    declared: Mutex<HashSet<Lane>>,
}

/// What is known of a publish.
enum Published {
    /// The broker has it.
    Confirmed,
    /// The lane is full.
    Nacked,
    /// It never left.
    NotSent(QueueError),
    /// It left, and the connection died before the confirm.
    Unknown(QueueError),
}

impl RabbitMqSubmitter {
    pub(super) async fn start(
        topology: Arc<Topology>,
        publishers: Pool,
        inbox: Arc<dyn Inbox>,
    ) -> Result<Self, QueueError> {
        let shared = Arc::new(Shared {
            topology,
            publishers,
            inbox,
            reply_to: RwLock::default(),
            lanes: Mutex::default(),
            publishing: tokio::sync::Mutex::default(),
            undecided: Mutex::default(),
            kept: Arc::new(Semaphore::new(MAX_KEPT)),
            promised: Mutex::default(),
        });
        let (ready, is_ready) = oneshot::channel();
        let receiving = tokio::spawn(shared.clone().receive_forever(ready));
        let submitter = Self { shared, _receiving: AbortOnDropHandle::new(receiving) };
        is_ready.await.map_err(failed)??;
        Ok(submitter)
    }
}

#[async_trait]
impl Submitter for RabbitMqSubmitter {
    fn submit(&self, command: Command) {
        self.shared.submit(command);
    }

    fn submit_surely(&self, command: Command) {
        self.shared.promised().insert(command.id());
        self.shared.submit(command);
    }

    async fn flush(&self) {
        while !self.shared.promised().is_empty() {
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn open_lane(&self, product_id: ProductId) -> Result<(), QueueError> {
        if self.shared.reply_to().is_none() {
            return Err(no_replies()); // nobody waits for a broker that is known to be away
        }
        let publishing = self.shared.publishing().await?;
        within(self.shared.declare_lane(&publishing, self.shared.topology.lane_of(product_id))).await?;
        let (exchange, payload) = (self.shared.topology.news_name(), message::encode_product(product_id));
        let (options, properties) = (BasicPublishOptions::default(), properties(PRODUCT_V1));
        within(async {
            publishing.orders.basic_publish(exchange, "".into(), options, &payload, properties).await?.await
        })
        .await
        .map(drop)
    }

    fn may_hold(&self, id: OrderId) -> bool {
        is_young(id.into())
    }
}

#[async_trait]
impl Ping for RabbitMqSubmitter {
    async fn ping(&self) -> Result<(), QueueError> {
        if self.shared.reply_to().is_none() {
            return Err(no_replies());
        }
        let publishing = self.shared.publishing().await?;
        if publishing.connection.status().blocked() {
            return Err(QueueError("the broker blocks publishers: it is short of memory or disk".to_owned()));
        }
        // A round trip, not only a look at the socket.
        within(self.shared.topology.declare_shared(&publishing.declarations)).await
    }
}

impl Shared {
    fn submit(self: &Arc<Self>, command: Command) {
        if self.reply_to().is_none() {
            return self.refuse(vec![command], Refusal::QueueUnavailable);
        }
        let lane = self.topology.lane_of(command.product_id());
        let mut lanes = self.lanes();
        let Some(gathering) = lanes.get_mut(&lane) else {
            lanes.insert(lane, Gathering { commands: vec![command], ..Gathering::default() });
            drop(lanes);
            tokio::spawn(self.clone().publish_lane(lane));
            return;
        };
        let refusal = if gathering.stuck {
            Refusal::QueueUnavailable
        } else if gathering.commands.len() >= self.topology.lane_capacity() {
            Refusal::LaneFull
        } else {
            gathering.commands.push(command);
            if gathering.commands.len() == ENOUGH {
                gathering.enough.notify_one();
            }
            return;
        };
        drop(lanes);
        self.refuse(vec![command], refusal);
    }

    fn reply_to(&self) -> Option<Address> {
        self.reply_to.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_reply_to(&self, address: Option<Address>) {
        *self.reply_to.write().unwrap_or_else(PoisonError::into_inner) = address;
    }

    fn lanes(&self) -> MutexGuard<'_, HashMap<Lane, Gathering>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn undecided(&self) -> MutexGuard<'_, HashMap<CommandId, oneshot::Sender<()>>> {
        self.undecided.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that commands did not get in line.
    fn refuse(self: &Arc<Self>, commands: Vec<Command>, refusal: Refusal) {
        let (kept, refused): (Vec<_>, Vec<_>) = {
            let promised = self.promised();
            commands.into_iter().partition(|command| promised.contains(&command.id()))
        };
        self.tell(refused.iter().map(Command::id), Outcome::Refused(refusal));
        if !kept.is_empty() {
            self.keep(kept);
        }
    }

    fn promised(&self) -> MutexGuard<'_, HashSet<CommandId>> {
        self.promised.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees to it that commands whose clients have left get in line all the same, once they can: many of them were told
    /// that there will be a verdict.
    fn keep(self: &Arc<Self>, commands: Vec<Command>) {
        let commands: Vec<_> =
            commands.into_iter().filter(|command| is_young(command.id())).map(Command::detached).collect();
        let room = u32::try_from(commands.len()).ok();
        let Some(Ok(room)) = room.map(|count| self.kept.clone().try_acquire_many_owned(count)) else {
            tracing::error!(
                commands = commands.len(),
                "too many commands wait for the queue; these never get in line"
            );
            return;
        };
        let shared = self.clone();
        tokio::spawn(async move {
            sleep(KEPT_PAUSE).await;
            while shared.reply_to().is_none() {
                sleep(KEPT_PAUSE).await;
            }
            drop(room);
            commands.into_iter().for_each(|command| shared.submit(command));
        });
    }

    fn tell(&self, ids: impl Iterator<Item = CommandId>, outcome: Outcome) {
        self.inbox.deliver(ids.map(|id| (id, outcome)).collect());
    }

    /// Publishes what gathers for one lane, message by message, until nothing does.
    async fn publish_lane(self: Arc<Self>, lane: Lane) {
        loop {
            // Requests that have arrived together leave together: their handlers run first. A lone one does not wait.
            yield_now().await;
            let (commands, enough) = {
                let mut lanes = self.lanes();
                let Some(gathering) = lanes.get_mut(&lane) else { return };
                gathering.stuck = false;
                if gathering.commands.is_empty() {
                    lanes.remove(&lane);
                    return;
                }
                let rest =
                    gathering.commands.split_off(gathering.commands.len().min(MAX_COMMANDS_PER_MESSAGE));
                (mem::replace(&mut gathering.commands, rest), gathering.enough.clone())
            };
            let Some(last) = commands.last().map(Command::id) else { return };
            let (decided, is_decided) = oneshot::channel();
            self.undecided().insert(last, decided);
            if self.publish_surely(lane, &commands).await && !self.has_enough(lane) {
                tokio::select! {
                    _ = is_decided => {}
                    () = enough.notified() => {}
                    () = sleep(MAX_GATHERING) => {}
                }
            }
            self.undecided().remove(&last);
        }
    }

    fn has_enough(&self, lane: Lane) -> bool {
        self.lanes().get(&lane).is_some_and(|gathering| gathering.commands.len() >= ENOUGH)
    }

    /// Publishes one message until it is known what became of it, or, for the time being, until nobody waits for it any
    /// more. Sending it again is safe: a command that is decided twice gets the verdict on record. Returns whether it
    /// stands in line for sure.
    async fn publish_surely(self: &Arc<Self>, lane: Lane, commands: &[Command]) -> bool {
        let payload = message::encode_commands(commands);
        let mut may_have_arrived = false;
        let mut delays = retries();
        loop {
            let error = match self.publish(lane, &payload).await {
                Published::Confirmed => {
                    let mut of_async =
                        commands.iter().filter(|command| command.is_detached()).map(Command::id).peekable();
                    if of_async.peek().is_some() {
                        let mut promised = self.promised();
                        promised.retain(|id| !commands.iter().any(|command| command.id() == *id));
                        drop(promised);
                        self.tell(of_async, Outcome::InLine);
                    }
                    return true;
                }
                Published::Nacked if !may_have_arrived => {
                    self.refuse(commands.to_vec(), Refusal::LaneFull);
                    return false;
                }
                Published::NotSent(error) if !may_have_arrived => {
                    tracing::warn!(%error, lane, commands = commands.len(), "commands did not get in line");
                    self.refuse(commands.to_vec(), Refusal::QueueUnavailable);
                    return false;
                }
                // Says nothing of the copy that may be in line.
                Published::Nacked => QueueError("the lane is full".to_owned()),
                Published::NotSent(error) | Published::Unknown(error) => error,
            };
            may_have_arrived = true;
            let behind = self.lanes().get_mut(&lane).map(|gathering| {
                gathering.stuck = true;
                mem::take(&mut gathering.commands)
            });
            self.refuse(behind.unwrap_or_default(), Refusal::QueueUnavailable);
            if !commands.iter().any(is_waited_for) {
                tracing::warn!(
                    %error,
                    lane,
                    commands = commands.len(),
                    "commands may be in line; they are sent again later"
                );
                self.keep(commands.to_vec());
                return false;
            }
            tracing::debug!(%error, lane, commands = commands.len(), "publishing again");
            sleep(delays.next().unwrap_or(Duration::from_secs(1))).await;
        }
    }

    async fn publish(self: &Arc<Self>, lane: Lane, payload: &[u8]) -> Published {
        let publishing = match self.publishing().await {
            Ok(publishing) => publishing,
            Err(error) => return Published::NotSent(error),
        };
        let Some(reply_to) = self.reply_to() else {
            return Published::NotSent(no_replies());
        };
        if publishing.connection.status().blocked() {
            return Published::NotSent(QueueError("the broker blocks publishers".to_owned()));
        }
        if let Err(error) = within(self.declare_lane(&publishing, lane)).await {
            return Published::NotSent(error);
        }
        let confirmed = within(async {
            let properties = properties(ORDERS_V1).with_reply_to(reply_to.as_ref().into());
            publishing
                .orders
                .basic_publish(
                    "".into(),
                    self.topology.lane_name(lane),
                    // A lane that somebody deleted returns the message instead of losing it.
                    BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() },
                    payload,
                    properties,
                )
                .await?
                .await
        })
        .await;
        match confirmed {
            Ok(Confirmation::Nack(_)) => Published::Nacked,
            Ok(Confirmation::Ack(None)) => Published::Confirmed,
            Ok(Confirmation::Ack(Some(returned))) => {
                self.take_back(&publishing, &returned);
                Published::Confirmed
            }
            Ok(Confirmation::NotRequested) => {
                Published::Unknown(QueueError("the channel is not in confirm mode".to_owned()))
            }
            Err(error) => {
                // Half a publish may be stuck in this connection: the next one goes elsewhere.
                *self.publishing.lock().await = None;
                Published::Unknown(error)
            }
        }
    }

    /// A message that found no lane. lapin hands it out with whichever confirm comes next, so what it says about
    /// itself is what counts, not whose confirm it came with.
    fn take_back(self: &Arc<Self>, publishing: &Publishing, returned: &BasicReturnMessage) {
        tracing::warn!(lane = returned.routing_key.as_str(), "a lane was deleted; it will be declared again");
        publishing.declared().clear();
        let kind = returned.delivery.properties.kind().as_ref().map(|kind| kind.as_str());
        match message::decode_commands(&returned.delivery.data, kind) {
            Ok(commands) => self.refuse(commands, Refusal::QueueUnavailable),
            Err(error) => tracing::error!(%error, "a returned message"),
        }
    }

    async fn declare_lane(&self, publishing: &Publishing, lane: Lane) -> Result<(), QueueError> {
        if !publishing.declared().contains(&lane) {
            self.topology.declare_lane(&publishing.declarations, lane).await?;
            publishing.declared().insert(lane);
        }
        Ok(())
    }

    /// The connection to publish on, or a new one.
    async fn publishing(&self) -> Result<Arc<Publishing>, QueueError> {
        let mut current = self.publishing.lock().await;
        if let Some(publishing) = current.as_ref().filter(|publishing| publishing.is_usable()) {
            return Ok(publishing.clone());
        }
        *current = None;
        let connection = self.publishers.get().await.map_err(failed)?;
        let (orders, declarations) = within(async {
            Ok::<_, lapin::Error>((connection.create_channel().await?, connection.create_channel().await?))
        })
        .await?;
        within(orders.confirm_select(ConfirmSelectOptions::default())).await?;
        within(self.topology.declare_shared(&declarations)).await?;
        let publishing =
            Arc::new(Publishing { connection, orders, declarations, declared: Mutex::default() });
        *current = Some(publishing.clone());
        Ok(publishing)
    }

    /// Receives verdicts. A connection that ends is made anew, under a new name: the old queue may still be there,
    /// locked by the connection that died.
    async fn receive_forever(self: Arc<Self>, ready: oneshot::Sender<Result<(), QueueError>>) {
        let instance = OrderId::mint().uuid().simple().to_string();
        let mut ready = Some(ready);
        let mut delays = retries();
        for incarnation in 1.. {
            let result = self.receive(&instance, incarnation, &mut ready).await;
            if self.reply_to().is_some() {
                self.set_reply_to(None);
                delays = retries();
            }
            let Err(error) = result;
            if let Some(ready) = ready.take() {
                let _ = ready.send(Err(error)); // at the start, the caller decides
                return;
            }
            tracing::warn!(%error, "lost the queue; orders are refused until it is back");
            sleep(delays.next().unwrap_or(Duration::from_secs(1))).await;
        }
    }

    fn hear(&self, delivery: &lapin::message::Delivery) -> Result<(), message::Undecodable> {
        let kind = delivery.properties.kind().as_ref().map(|kind| kind.as_str());
        let verdicts = message::decode_verdicts(&delivery.data, kind)?;
        {
            let mut undecided = self.undecided();
            for decided in verdicts.iter().filter_map(|(id, _)| undecided.remove(id)) {
                let _ = decided.send(()); // it may have stopped waiting just now
            }
        }
        self.inbox
            .deliver(verdicts.into_iter().map(|(id, verdict)| (id, Outcome::Decided(verdict))).collect());
        Ok(())
    }

    async fn receive(
        &self,
        instance: &str,
        incarnation: u32,
        ready: &mut Option<oneshot::Sender<Result<(), QueueError>>>,
    ) -> Result<std::convert::Infallible, QueueError> {
        let connection = self.topology.connect("api: verdicts").await?;
        let channel = within(connection.create_channel()).await?;
        let name = self.topology.replies_name(instance, incarnation);
        // It dies with its connection, as do those who wait for what is in it.
        let options =
            QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        within(channel.queue_declare(name.clone(), options, FieldTable::default())).await?;
        // No acks: a verdict that is lost here is asked for by GET, and nobody else could use it.
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let mut verdicts =
            within(channel.basic_consume(name.clone(), "verdicts".into(), options, FieldTable::default()))
                .await?;
        self.set_reply_to(Some(name.as_str().into()));
        match ready.take() {
            Some(ready) => drop(ready.send(Ok(()))),
            None => tracing::info!("the queue is back"),
        }
        while let Some(delivery) = verdicts.next().await {
            let delivery = delivery.map_err(failed)?;
            if let Err(error) = self.hear(&delivery) {
                tracing::error!(%error, "a message in the queue of verdicts");
            }
        }
        Err(QueueError("the broker ended the consumer of verdicts".to_owned()))
    }
}

impl Publishing {
    fn is_usable(&self) -> bool {
        self.connection.status().connected()
            && self.orders.status().connected()
            && self.declarations.status().connected()
    }

    fn declared(&self) -> MutexGuard<'_, HashSet<Lane>> {
        self.declared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn no_replies() -> QueueError {
    QueueError("verdicts cannot be received now".to_owned())
}

/// Whether somebody waits for a command, or for it to get in line.
fn is_waited_for(command: &Command) -> bool {
    let least =
        command.id().as_order().created_at().as_millisecond() + PATIENCE_WITH_ASYNC.as_millis() as i64;
    let answer_by = match command.reply() {
        ReplyMode::Until(answer_by) => answer_by.as_millisecond(),
        ReplyMode::Detached => 0,
    };
    answer_by.max(least) >= now().as_millisecond()
}

/// Whether a command may still be in line for all that its client can know.
fn is_young(id: CommandId) -> bool {
    let age_ms = now().as_millisecond() - id.as_order().created_at().as_millisecond();
    age_ms <= MAX_AGE.as_millis() as i64
}

/// Growing delays with jitter, so that many APIs do not come back in step.
fn retries() -> impl Iterator<Item = Duration> + Send {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_secs(1))
        .with_jitter()
        .without_max_times()
        .build()
}
