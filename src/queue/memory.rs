//! The queue contract within one process, for the embedded mode. All of it is one lock over one state, so it reads as the
//! model of what the contract promises. Commands in lanes are lost with the process; no client was answered 201 for them.

mod reports;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use tokio::{
    sync::{Notify, broadcast},
    task::yield_now,
};

use crate::{
    domain::{
        command::Command,
        event::Event,
        ids::{OrderId, ProductId},
        lane_set::{LaneMode, LaneSet},
    },
    queue::{
        Address, Archive, Completion, Consumer, Delivery, LaneName, Outcome, Ping, Queue, QueueError,
        Refusal, Reply, ReplySink, Submitter,
    },
};

/// How many events the slowest receiver may be behind before it loses the oldest ones.
const EVENT_BACKLOG: usize = 16_384;

/// How many reports the slowest listener may be behind before it loses the oldest ones.
const REPORT_BACKLOG: usize = 16;

/// An order of this age is not pending: it may have been pruned, and no command waits as long.
const MAX_AGE: SignedDuration = SignedDuration::from_hours(24);

/// Lanes in memory. A clone is another handle to the same lanes.
#[derive(Clone)]
pub struct MemoryQueue(Arc<Shared>);

struct Shared {
    /// How many commands may wait in one lane; with changes that clients ask for, twice as many.
    lane_capacity: usize,
    opened_at: Timestamp,
    events: broadcast::Sender<Event>,
    reports: broadcast::Sender<Vec<u8>>,
    state: Mutex<State>,
    /// A lane is ready.
    arrived: Notify,
    /// No command waits, and none is unsettled.
    drained: Notify,
}

#[derive(Default)]
struct State {
    lanes: HashMap<ProductId, Lane>,
    /// Lanes with commands that may be taken, the longest waiting first.
    ready: VecDeque<ProductId>,
    reply_sinks: HashMap<Address, Arc<dyn ReplySink>>,
    /// Unsettled deliveries of all lanes.
    unsettled: usize,
    consumers: u32,
    last_tag: u64,
}

struct Lane {
    name: LaneName,
    waiting: VecDeque<(Command, Address)>,
    /// Unsettled deliveries. While there are any, nothing is taken from this lane.
    unsettled: usize,
}

impl Lane {
    fn new(product_id: ProductId) -> Self {
        let set = LaneSet { prefix: String::new(), mode: LaneMode::Product };
        Self { name: set.name_of(product_id.get()).into(), waiting: VecDeque::new(), unsettled: 0 }
    }
}

impl MemoryQueue {
    /// Lanes in which up to `lane_capacity` commands may wait each. Orders from before `opened_at` are in none of them.
    pub fn new(lane_capacity: usize, opened_at: Timestamp) -> Self {
        Self(Arc::new(Shared {
            lane_capacity,
            opened_at,
            events: broadcast::channel(EVENT_BACKLOG).0,
            reports: broadcast::channel(REPORT_BACKLOG).0,
            state: Mutex::default(),
            arrived: Notify::new(),
            drained: Notify::new(),
        }))
    }

    /// A live stream of events. A receiver that is too slow learns how many events it lost.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.0.events.subscribe()
    }

    /// Waits until no command waits in a lane or is unsettled.
    pub async fn drain(&self) {
        loop {
            let drained = self.0.drained.notified();
            if self.0.state().is_idle() {
                return;
            }
            drained.await;
        }
    }
}

#[async_trait]
impl Queue for MemoryQueue {
    async fn submitter(
        &self,
        reply_sink: Arc<dyn ReplySink>,
        _: Arc<dyn Archive>,
    ) -> Result<Arc<dyn Submitter>, QueueError> {
        let mut state = self.0.state();
        let address = Address::from(format!("sink {}", state.reply_sinks.len() + 1));
        state.reply_sinks.insert(address.clone(), reply_sink.clone());
        drop(state);
        Ok(Arc::new(MemorySubmitter { shared: self.0.clone(), reply_sink, address }))
    }

    async fn consumer(&self) -> Result<Box<dyn Consumer>, QueueError> {
        self.0.state().consumers += 1;
        Ok(Box::new(MemoryConsumer { shared: self.0.clone(), unsettled: BTreeMap::new() }))
    }
}

#[async_trait]
impl Ping for MemoryQueue {
    async fn ping(&self) -> Result<(), QueueError> {
        Ok(())
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics halfway through a change of the state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts deliveries, in the order of their tags, back to the front of their lanes.
    fn requeue(&self, deliveries: Vec<Delivery>) {
        let mut state = self.state();
        for delivery in deliveries.iter().rev() {
            let product_id = delivery.product_id();
            let lane = state.lanes.entry(product_id).or_insert_with(|| Lane::new(product_id));
            for command in delivery.commands.iter().rev() {
                lane.waiting.push_front((command.clone(), delivery.reply_to.clone()));
            }
        }
        drop(state);
        self.release(&deliveries);
    }

    /// Deliveries are not unsettled any more: their lanes may become ready.
    fn release(&self, deliveries: &[Delivery]) {
        let mut state = self.state();
        for delivery in deliveries {
            state.release(delivery.product_id());
        }
        let (is_idle, is_ready) = (state.is_idle(), !state.ready.is_empty());
        drop(state);
        if is_ready {
            self.arrived.notify_one();
        }
        if is_idle {
            self.drained.notify_waiters();
        }
    }
}

impl State {
    fn is_idle(&self) -> bool {
        self.unsettled == 0 && self.ready.is_empty()
    }

    /// Takes up to `max_commands` from all lanes that are ready.
    fn take(&mut self, max_commands: usize) -> Vec<Delivery> {
        let (mut taken, mut room) = (Vec::new(), max_commands.max(1));
        while room > 0
            && let Some(product_id) = self.ready.pop_front()
        {
            room -= self.take_lane(product_id, room, &mut taken);
        }
        taken
    }

    /// Takes up to `max_commands` from the front of a lane. Returns how many.
    fn take_lane(&mut self, product_id: ProductId, max_commands: usize, taken: &mut Vec<Delivery>) -> usize {
        let Some(lane) = self.lanes.get_mut(&product_id) else { return 0 };
        let count = lane.waiting.len().min(max_commands);
        for (command, reply_to) in lane.waiting.drain(..count) {
            match taken.last_mut() {
                // Commands of one lane and one API are one delivery.
                Some(last) if last.product_id() == product_id && last.reply_to == reply_to => {
                    last.commands.push(command);
                }
                _ => {
                    self.last_tag += 1;
                    lane.unsettled += 1;
                    self.unsettled += 1;
                    let (lane, tag) = (lane.name.clone(), self.last_tag);
                    taken.push(Delivery { commands: vec![command], lane, reply_to, tag });
                }
            }
        }
        count
    }

    fn release(&mut self, product_id: ProductId) {
        let Some(lane) = self.lanes.get_mut(&product_id) else { return };
        lane.unsettled -= 1;
        self.unsettled -= 1;
        if lane.unsettled == 0 && !lane.waiting.is_empty() {
            self.ready.push_back(product_id);
        }
    }
}

struct MemorySubmitter {
    shared: Arc<Shared>,
    reply_sink: Arc<dyn ReplySink>,
    address: Address,
}

impl MemorySubmitter {
    fn push(&self, command: Command, lane_capacity: usize) {
        let (id, is_detached) = (command.id(), command.is_detached());
        // The lock is released before the outcome is delivered.
        match self.push_to_lane(command, lane_capacity) {
            Ok(is_ready) => {
                if is_ready {
                    self.shared.arrived.notify_one();
                }
                if is_detached {
                    self.reply_sink.deliver(vec![(id, Outcome::Queued)]);
                }
            }
            Err(refusal) => self.reply_sink.deliver(vec![(id, Outcome::Refused(refusal))]),
        }
    }

    /// Returns whether the lane has become ready.
    fn push_to_lane(&self, command: Command, lane_capacity: usize) -> Result<bool, Refusal> {
        let product_id = command.product_id();
        let mut state = self.shared.state();
        let lane = state.lanes.entry(product_id).or_insert_with(|| Lane::new(product_id));
        if command.is_detached() {
            // The client of a command that waits in the lane has left: the detached copy replaces it.
            let same = |(waiting, _): &&mut (Command, Address)| waiting.id() == command.id();
            if let Some((waiting, _)) = lane.waiting.iter_mut().find(same) {
                *waiting = command;
                return Ok(false);
            }
        }
        if lane.waiting.len() >= lane_capacity {
            return Err(Refusal::LaneFull);
        }
        lane.waiting.push_back((command, self.address.clone()));
        let is_ready = lane.waiting.len() == 1 && lane.unsettled == 0;
        if is_ready {
            state.ready.push_back(product_id);
        }
        Ok(is_ready)
    }
}

#[async_trait]
impl Submitter for MemorySubmitter {
    /// Changes that clients ask for have room of the same size, in addition to that of new orders: whoever has a reservation can pay it,
    /// however many wait for one.
    fn submit(&self, command: Command) {
        let lane_capacity = self.shared.lane_capacity;
        let capacity = if command.is_asked_change() { 2 * lane_capacity } else { lane_capacity };
        self.push(command, capacity);
    }

    /// Ignores the capacity: there is at most one such command for each client that waited for a command with a worker.
    fn submit_or_park(&self, command: Command) {
        self.push(command, usize::MAX);
    }

    fn parked(&self) -> usize {
        0
    }

    async fn drain(&self) {} // Nothing is parked.

    async fn open_lane(&self, _: ProductId) -> Result<(), QueueError> {
        Ok(()) // The first command opens its lane.
    }

    fn may_be_pending(&self, id: OrderId, now: Timestamp) -> bool {
        let created_at = id.created_at();
        created_at >= self.shared.opened_at && created_at > now - MAX_AGE && !self.shared.state().is_idle()
    }
}

#[async_trait]
impl Ping for MemorySubmitter {
    async fn ping(&self) -> Result<(), QueueError> {
        Ok(())
    }
}

struct MemoryConsumer {
    shared: Arc<Shared>,
    /// By tag.
    unsettled: BTreeMap<u64, Delivery>,
}

#[async_trait]
impl Consumer for MemoryConsumer {
    async fn serve(&mut self, _: &[ProductId]) -> Result<(), QueueError> {
        Ok(()) // All lanes of the process are served.
    }

    /// A command that comes later finds a new lane.
    async fn retire(&mut self, products: &[ProductId]) -> Result<(), QueueError> {
        let mut state = self.shared.state();
        for product_id in products {
            let lane = state.lanes.get(product_id);
            if lane.is_some_and(|lane| lane.waiting.is_empty() && lane.unsettled == 0) {
                state.lanes.remove(product_id);
            }
        }
        Ok(())
    }

    async fn take(&mut self, max_commands: usize) -> Result<Vec<Delivery>, QueueError> {
        loop {
            let arrived = self.shared.arrived.notified();
            let (taken, has_more) = {
                let mut state = self.shared.state();
                (state.take(max_commands), !state.ready.is_empty())
            };
            if has_more {
                self.shared.arrived.notify_one(); // for another consumer
            }
            if !taken.is_empty() {
                self.unsettled.extend(taken.iter().map(|delivery| (delivery.tag, delivery.clone())));
                return Ok(taken);
            }
            arrived.await;
            // Requests that have arrived together are taken together: their handlers run first.
            yield_now().await;
        }
    }

    async fn settle(&mut self, deliveries: Vec<Delivery>, completion: Completion) -> Result<(), QueueError> {
        for Reply { to, verdicts } in completion.replies {
            let reply_sink = self.shared.state().reply_sinks.get(&to).cloned();
            if let Some(reply_sink) = reply_sink {
                reply_sink.deliver(
                    verdicts.into_iter().map(|(id, verdict)| (id, Outcome::Decided(verdict))).collect(),
                );
            }
        }
        for event in completion.events {
            let _ = self.shared.events.send(event); // there may be no receiver
        }
        let settled = self.remove(&deliveries);
        self.shared.release(&settled);
        Ok(())
    }

    async fn drain(&mut self) -> Result<(), QueueError> {
        Ok(()) // Deliveries are acknowledged at once.
    }

    async fn requeue(&mut self, deliveries: Vec<Delivery>) -> Result<(), QueueError> {
        let mut deliveries = self.remove(&deliveries);
        deliveries.sort_unstable_by_key(|delivery| delivery.tag);
        self.shared.requeue(deliveries);
        Ok(())
    }

    /// There is no place for them that outlives the process: the worker's log has them.
    async fn dead_letter(&mut self, _: Vec<Command>) -> Result<(), QueueError> {
        Ok(())
    }
}

impl MemoryConsumer {
    /// Those of these deliveries that are unsettled, as they were taken.
    fn remove(&mut self, deliveries: &[Delivery]) -> Vec<Delivery> {
        deliveries.iter().filter_map(|delivery| self.unsettled.remove(&delivery.tag)).collect()
    }
}

impl Drop for MemoryConsumer {
    fn drop(&mut self) {
        self.shared.requeue(mem::take(&mut self.unsettled).into_values().collect());
        self.shared.state().consumers -= 1;
    }
}

impl Delivery {
    /// All commands of a delivery are of one product: a lane in memory is a product's.
    fn product_id(&self) -> ProductId {
        self.commands[0].product_id()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, SystemClock};
    use crate::domain::{
        command::{ChangeOrder, NewOrder, ReplyMode},
        ids::CommandId,
        lines::Lines,
        order::{Change, Order, OrderState, OrderStatus, Quantity},
        origin::Origin,
    };
    use crate::queue::NothingArchived;

    struct Ignore;

    impl ReplySink for Ignore {
        fn deliver(&self, _: Vec<(CommandId, Outcome)>) {}
    }

    /// What arrives.
    #[derive(Default)]
    struct Outcomes(Mutex<Vec<Outcome>>);

    impl ReplySink for Outcomes {
        fn deliver(&self, outcomes: Vec<(CommandId, Outcome)>) {
            self.0.lock().unwrap().extend(outcomes.into_iter().map(|(_, outcome)| outcome));
        }
    }

    #[tokio::test]
    async fn changes_get_past_a_full_lane_and_are_bounded_too() {
        let queue = MemoryQueue::new(3, SystemClock.now());
        let outcomes = Arc::new(Outcomes::default());
        let submitter = queue.submitter(outcomes.clone(), Arc::new(NothingArchived)).await.unwrap();
        let (product_id, total) = (ProductId::new(1).unwrap(), Quantity::new(1).unwrap());
        let reply = ReplyMode::Until(SystemClock.now());
        let order = || NewOrder {
            id: SystemClock.order_id(),
            lines: Lines::one(product_id, total),
            buyer: None,
            reply,
            key: None,
            origin: Origin::default(),
        };
        let change = |change| ChangeOrder {
            id: SystemClock.command_id(),
            order_id: SystemClock.order_id(),
            product_id,
            other_products: [].into(),
            change,
            reply,
            origin: Origin::default(),
        };
        let refused = || outcomes.0.lock().unwrap().len();
        (0..4).for_each(|_| submitter.submit(order().into()));
        assert_eq!(refused(), 1, "the lane is full");
        submitter.submit(change(Change::Expire).into());
        assert_eq!(refused(), 2, "nobody waits for an expiry: the next sweep finds it again");
        for asked in [Change::Pay { reference: None }, Change::Cancel, Change::Extend] {
            submitter.submit(change(asked).into());
        }
        assert_eq!(refused(), 2);
        submitter.submit(change(Change::Cancel).into());
        assert_eq!(*outcomes.0.lock().unwrap(), [const { Outcome::Refused(Refusal::LaneFull) }; 3]);
    }

    #[tokio::test]
    async fn no_order_may_be_pending_when_no_command_waits() {
        let before = SystemClock.order_id();
        // Ids have whole milliseconds.
        while SystemClock.now() <= before.created_at() {
            yield_now().await;
        }
        let queue = MemoryQueue::new(1, SystemClock.now());
        let submitter = queue.submitter(Arc::new(Ignore), Arc::new(NothingArchived)).await.unwrap();
        let id = SystemClock.order_id();
        assert!(!submitter.may_be_pending(id, SystemClock.now()));
        let (product_id, total) = (ProductId::new(1).unwrap(), Quantity::new(1).unwrap());
        submitter.submit(
            NewOrder {
                id,
                lines: Lines::one(product_id, total),
                buyer: None,
                reply: ReplyMode::Detached,
                key: None,
                origin: Origin::default(),
            }
            .into(),
        );
        assert!(submitter.may_be_pending(id, SystemClock.now()), "it waits in its lane");
        assert!(!submitter.may_be_pending(before, SystemClock.now()), "it is older than the queue");
        assert!(!submitter.may_be_pending(id, SystemClock.now() + MAX_AGE), "it may be pruned");
        let mut consumer = queue.consumer().await.unwrap();
        consumer.take(1).await.unwrap();
        assert!(submitter.may_be_pending(id, SystemClock.now()), "it is with a worker");
        drop(consumer);
        assert!(submitter.may_be_pending(id, SystemClock.now()), "it is in its lane again");
        let mut consumer = queue.consumer().await.unwrap();
        let taken = consumer.take(1).await.unwrap();
        consumer.settle(taken, Completion::default()).await.unwrap();
        assert!(!submitter.may_be_pending(id, SystemClock.now()), "it is decided");
    }

    #[tokio::test]
    async fn events_are_a_live_stream_in_their_order() {
        let queue = MemoryQueue::new(1, SystemClock.now());
        let event = |status| {
            let (id, product_id) = (SystemClock.order_id(), ProductId::new(1).unwrap());
            let state = OrderState::Accepted { status, expires_at: SystemClock.now() };
            let lines = Some(Lines::one(product_id, Quantity::new(1).unwrap()));
            Event::of_order(Order { id, lines, buyer: None, payment: None, state })
        };
        let mut consumer = queue.consumer().await.unwrap();
        let publish = |events: &[Event]| Completion { events: events.to_vec(), ..Completion::default() };
        // There is no receiver.
        consumer.settle(Vec::new(), publish(&[event(OrderStatus::Reserved)])).await.unwrap();
        let mut receivers = [queue.events(), queue.events()];
        let events = [OrderStatus::Reserved, OrderStatus::Paid, OrderStatus::Cancelled].map(event);
        consumer.settle(Vec::new(), publish(&events)).await.unwrap();
        for receiver in &mut receivers {
            for event in &events {
                assert_eq!(receiver.recv().await.as_ref(), Ok(event));
            }
            assert!(receiver.is_empty());
        }
    }
}
