//! The queue contract within one process: the embedded mode. What stands in line is lost with the process;
//! nobody was promised anything about it yet.

use std::{
    collections::{HashMap, VecDeque},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::{
    sync::{Notify, broadcast},
    task::yield_now,
};

use crate::{
    clock::now,
    domain::{
        command::Command,
        event::Event,
        ids::{OrderId, ProductId},
    },
    queue::{
        Address, Completion, Consumer, Delivery, Outcome, Ping, Queue, QueueError, Refusal, Reply, ReplySink,
        Submitter,
    },
};

/// How many events the slowest listener may be behind before it loses the oldest ones.
const EVENT_BACKLOG: usize = 16_384;

/// Lanes in memory. Cloning it gives another handle to the same lanes.
#[derive(Clone)]
pub struct MemoryQueue(Arc<Shared>);

struct Shared {
    /// How many commands may wait in one lane.
    lane_capacity: usize,
    opened_at: Timestamp,
    events: broadcast::Sender<Event>,
    state: Mutex<State>,
    /// Something can be taken.
    arrived: Notify,
    /// Nothing waits and nothing is held.
    drained: Notify,
}

#[derive(Default)]
struct State {
    lanes: HashMap<ProductId, Lane>,
    /// Lanes that nobody holds and in which commands wait, the longest waiting first.
    ready: VecDeque<ProductId>,
    reply_sinks: HashMap<Address, Arc<dyn ReplySink>>,
    /// Deliveries held by consumers.
    held: usize,
    last_tag: u64,
}

#[derive(Default)]
struct Lane {
    waiting: VecDeque<(Command, Address)>,
    /// Deliveries that its one consumer has not finished. While there are any, nobody takes from this lane.
    held: usize,
}

impl MemoryQueue {
    /// Lanes in which up to `lane_capacity` commands may wait each.
    pub fn new(lane_capacity: usize) -> Self {
        Self(Arc::new(Shared {
            lane_capacity,
            opened_at: now(),
            events: broadcast::channel(EVENT_BACKLOG).0,
            state: Mutex::default(),
            arrived: Notify::new(),
            drained: Notify::new(),
        }))
    }

    /// What becomes of orders from now on, live. A listener that is too slow is told how many events it lost.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.0.events.subscribe()
    }

    /// Waits until no command is in line or in anybody's hands.
    pub async fn drained(&self) {
        loop {
            let drained = self.0.drained.notified();
            if self.0.state().is_idle() {
                return;
            }
            drained.await;
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics halfway through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts deliveries back to the front of their lanes, in their order.
    fn put_back(&self, mut held: Vec<(u64, HeldDelivery)>) {
        held.sort_unstable_by_key(|(tag, _)| *tag);
        let mut state = self.state();
        for (_, delivery) in held.iter_mut().rev() {
            let lane = state.lanes.entry(delivery.product_id).or_default();
            for command in mem::take(&mut delivery.commands).into_iter().rev() {
                lane.waiting.push_front((command, delivery.reply_to.clone()));
            }
        }
        drop(state);
        self.finish(held.into_iter().map(|(_, delivery)| delivery));
    }

    /// Frees the lanes of finished deliveries.
    fn finish(&self, deliveries: impl IntoIterator<Item = HeldDelivery>) {
        let mut state = self.state();
        for delivery in deliveries {
            state.release(delivery.product_id);
        }
        let (idle, ready) = (state.is_idle(), !state.ready.is_empty());
        drop(state);
        if ready {
            self.arrived.notify_one();
        }
        if idle {
            self.drained.notify_waiters();
        }
    }
}

impl State {
    fn is_idle(&self) -> bool {
        self.held == 0 && self.ready.is_empty()
    }

    fn release(&mut self, product_id: ProductId) {
        let Some(lane) = self.lanes.get_mut(&product_id) else { return };
        lane.held -= 1;
        self.held -= 1;
        if lane.held == 0 && !lane.waiting.is_empty() {
            self.ready.push_back(product_id);
        }
    }

    /// Takes up to `max_commands` (at least one) from the front of a lane, and holds it.
    fn take_lane(&mut self, product_id: ProductId, max_commands: usize, taken: &mut Vec<Delivery>) {
        let Some(lane) = self.lanes.get_mut(&product_id) else { return };
        let count = lane.waiting.len().min(max_commands);
        for (command, reply_to) in lane.waiting.drain(..count) {
            match taken.last_mut() {
                Some(delivery) if delivery.lane() == product_id && delivery.reply_to == reply_to => {
                    delivery.commands.push(command);
                }
                _ => {
                    self.last_tag += 1;
                    lane.held += 1;
                    self.held += 1;
                    taken.push(Delivery { commands: vec![command], reply_to, tag: self.last_tag });
                }
            }
        }
    }
}

#[async_trait]
impl Queue for MemoryQueue {
    async fn submitter(&self, reply_sink: Arc<dyn ReplySink>) -> Result<Arc<dyn Submitter>, QueueError> {
        let mut state = self.0.state();
        let address = Address::from(format!("inbox {}", state.reply_sinks.len() + 1));
        state.reply_sinks.insert(address.clone(), reply_sink.clone());
        drop(state);
        Ok(Arc::new(MemorySubmitter { shared: self.0.clone(), reply_sink, address }))
    }

    async fn consumer(&self) -> Result<Box<dyn Consumer>, QueueError> {
        Ok(Box::new(MemoryConsumer { shared: self.0.clone(), held: HashMap::new() }))
    }
}

struct MemorySubmitter {
    shared: Arc<Shared>,
    reply_sink: Arc<dyn ReplySink>,
    address: Address,
}

impl MemorySubmitter {
    fn put_in(&self, command: Command, lane_capacity: usize) {
        let (id, product_id, is_detached) = (command.id(), command.product_id(), command.is_detached());
        let mut state = self.shared.state();
        let lane = state.lanes.entry(product_id).or_default();
        // The client of a command that waits here has left: its copy takes its place.
        if is_detached && let Some((waiting, _)) = lane.waiting.iter_mut().find(|(one, _)| one.id() == id) {
            *waiting = command;
            drop(state);
            self.reply_sink.deliver(vec![(id, Outcome::Queued)]);
            return;
        }
        if lane.waiting.len() >= lane_capacity {
            drop(state);
            self.reply_sink.deliver(vec![(id, Outcome::Refused(Refusal::LaneFull))]); // whoever submits waits
            return;
        }
        lane.waiting.push_back((command, self.address.clone()));
        if lane.waiting.len() == 1 && lane.held == 0 {
            state.ready.push_back(product_id);
            drop(state);
            self.shared.arrived.notify_one();
        }
        if is_detached {
            self.reply_sink.deliver(vec![(id, Outcome::Queued)]);
        }
    }
}

#[async_trait]
impl Submitter for MemorySubmitter {
    fn submit(&self, command: Command) {
        self.put_in(command, self.shared.lane_capacity);
    }

    /// Beyond the capacity if need be: there is at most one for each client that waited for a command which a worker holds.
    fn submit_surely(&self, command: Command) {
        self.put_in(command, usize::MAX);
    }

    async fn flush(&self) {} // All that was submitted is in its lane.

    async fn open_lane(&self, _: ProductId) -> Result<(), QueueError> {
        Ok(()) // A lane is there as soon as an order stands in it.
    }

    fn may_hold(&self, id: OrderId) -> bool {
        id.created_at() >= self.shared.opened_at && !self.shared.state().is_idle()
    }
}

#[async_trait]
impl Ping for MemorySubmitter {
    async fn ping(&self) -> Result<(), QueueError> {
        Ok(())
    }
}

#[async_trait]
impl Ping for MemoryQueue {
    async fn ping(&self) -> Result<(), QueueError> {
        Ok(())
    }
}

struct MemoryConsumer {
    shared: Arc<Shared>,
    held: HashMap<u64, HeldDelivery>,
}

/// What is needed to give a delivery back.
struct HeldDelivery {
    product_id: ProductId,
    commands: Vec<Command>,
    reply_to: Address,
}

#[async_trait]
impl Consumer for MemoryConsumer {
    async fn serve(&mut self, _: &[ProductId]) -> Result<(), QueueError> {
        Ok(()) // All lanes of the process are served.
    }

    async fn take(&mut self, max_commands: usize) -> Result<Vec<Delivery>, QueueError> {
        loop {
            let arrived = self.shared.arrived.notified();
            let mut taken = Vec::new();
            {
                let mut state = self.shared.state();
                let mut room = max_commands.max(1);
                while room > 0 {
                    let Some(product_id) = state.ready.pop_front() else { break };
                    let first = taken.len();
                    state.take_lane(product_id, room, &mut taken);
                    room -= taken[first..].iter().map(|delivery| delivery.commands.len()).sum::<usize>();
                }
                if !state.ready.is_empty() {
                    self.shared.arrived.notify_one(); // for another consumer
                }
            }
            if !taken.is_empty() {
                self.held.extend(taken.iter().map(|delivery| (delivery.tag, HeldDelivery::from(delivery))));
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
            let _ = self.shared.events.send(event); // nobody has to listen
        }
        let done: Vec<_> = deliveries.iter().filter_map(|delivery| self.held.remove(&delivery.tag)).collect();
        self.shared.finish(done);
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), QueueError> {
        Ok(()) // Nothing is left for later.
    }

    async fn give_back(&mut self, deliveries: Vec<Delivery>) -> Result<(), QueueError> {
        let held = deliveries.iter().filter_map(|one| Some((one.tag, self.held.remove(&one.tag)?)));
        self.shared.put_back(held.collect());
        Ok(())
    }

    /// There is no place for them that outlives the process: the worker's log is what is left.
    async fn dead_letter(&mut self, _: Vec<Command>) -> Result<(), QueueError> {
        Ok(())
    }
}

impl Delivery {
    /// In process, a lane is a product's.
    fn lane(&self) -> ProductId {
        self.commands[0].product_id()
    }
}

impl From<&Delivery> for HeldDelivery {
    fn from(delivery: &Delivery) -> Self {
        Self {
            product_id: delivery.lane(),
            commands: delivery.commands.clone(),
            reply_to: delivery.reply_to.clone(),
        }
    }
}

impl Drop for MemoryConsumer {
    /// Gives back what is held, each lane in its old order.
    fn drop(&mut self) {
        self.shared.put_back(mem::take(&mut self.held).into_iter().collect());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        command::{NewOrder, ReplyMode},
        ids::CommandId,
        order::{Order, OrderState, OrderStatus, Quantity},
    };

    /// Hears nothing.
    struct Deaf;

    impl ReplySink for Deaf {
        fn deliver(&self, _: Vec<(CommandId, Outcome)>) {}
    }

    #[tokio::test]
    async fn it_holds_no_order_when_nothing_is_in_line() {
        let before = OrderId::generate();
        // Ids tell whole milliseconds.
        while now() <= before.created_at() {
            yield_now().await;
        }
        let queue = MemoryQueue::new(1);
        let submitter = queue.submitter(Arc::new(Deaf)).await.unwrap();
        let id = OrderId::generate();
        assert!(!submitter.may_hold(id));
        let (product_id, total) = (ProductId::new(1).unwrap(), Quantity::new(1).unwrap());
        submitter.submit(NewOrder { id, product_id, total, reply: ReplyMode::Detached, key: None }.into());
        assert!(submitter.may_hold(id), "it is in line");
        assert!(!submitter.may_hold(before), "it is older than the line");
        let mut consumer = queue.consumer().await.unwrap();
        consumer.take(1).await.unwrap();
        assert!(submitter.may_hold(id), "it is in somebody's hands");
        drop(consumer);
        assert!(submitter.may_hold(id), "it came back");
        let mut consumer = queue.consumer().await.unwrap();
        let taken = consumer.take(1).await.unwrap();
        consumer.settle(taken, Completion::default()).await.unwrap();
        assert!(!submitter.may_hold(id), "it is decided");
    }

    #[tokio::test]
    async fn events_are_a_live_stream_in_their_order() {
        let queue = MemoryQueue::new(1);
        let event = |status| {
            let (id, product_id) = (OrderId::generate(), ProductId::new(1).unwrap());
            let state = OrderState::Accepted { status, expires_at: now() };
            Event { order: Order { id, product_id, total: Quantity::new(1).unwrap(), state } }
        };
        let mut consumer = queue.consumer().await.unwrap();
        let publish = |events: &[Event]| Completion { events: events.to_vec(), ..Completion::default() };
        // Nobody listens.
        consumer.settle(Vec::new(), publish(&[event(OrderStatus::Reserved)])).await.unwrap();
        let mut listeners = [queue.events(), queue.events()];
        let events = [OrderStatus::Reserved, OrderStatus::Paid, OrderStatus::Cancelled].map(event);
        consumer.settle(Vec::new(), publish(&events)).await.unwrap();
        for listener in &mut listeners {
            for event in &events {
                assert_eq!(listener.recv().await.as_ref(), Ok(event));
            }
            assert!(listener.is_empty());
        }
    }
}
