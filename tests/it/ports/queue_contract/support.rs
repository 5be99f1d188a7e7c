//! What the tests of the queue contract share: an API that submits and receives, a consumer that takes and settles.

use std::{
    collections::HashMap,
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};

use antre::{
    clock::{Clock, SystemClock},
    domain::{
        command::{Command, NewOrder, ReplyMode},
        ids::{CommandId, ProductId},
        lines::Lines,
        order::Quantity,
        origin::Origin,
        rejection::Rejection,
        verdict::Verdict,
    },
    queue::{
        Archive, Completion, Consumer, Delivery, NothingArchived, Outcome, Queue, Reply, ReplySink, Submitter,
    },
};
use async_trait::async_trait;
use jiff::SignedDuration;
use tokio::{sync::mpsc, time::timeout};

/// No test waits longer than this for something to arrive.
pub(super) const DEADLINE: Duration = Duration::from_secs(30);

pub(super) async fn in_time<T>(arrival: impl Future<Output = T>) -> T {
    timeout(DEADLINE, arrival).await.expect("it did not arrive in time")
}

/// The first, and only the first, poll.
pub(super) async fn poll_once<F: Future>(future: &mut Pin<&mut F>) -> Poll<F::Output> {
    poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await
}

pub(super) fn product(number: u64) -> ProductId {
    ProductId::new(number).unwrap()
}

pub(super) fn products(count: u64) -> Vec<ProductId> {
    (1..=count).map(product).collect()
}

pub(super) fn order(product_id: ProductId, total: u32) -> NewOrder {
    let reply = ReplyMode::Until(SystemClock.now() + SignedDuration::from_hours(1));
    NewOrder {
        id: SystemClock.order_id(),
        lines: Lines::one(product_id, Quantity::new(total).unwrap()),
        buyer: None,
        reply,
        key: None,
        origin: Origin::default(),
    }
}

/// The verdict of these tests on an order; no other order gets the same one.
pub(super) fn verdict(order: &NewOrder) -> Verdict {
    match order.lines.first().total.get() {
        even if even.is_multiple_of(2) => Verdict::Reserved { expires_at: order.id.created_at() },
        odd => Verdict::Rejected(Rejection::InsufficientStock {
            product_id: order.lines.first().product_id,
            available: odd,
        }),
    }
}

/// What an API of a test knows of its products: all are archived, or none is.
#[derive(Default)]
pub(super) struct TestArchive {
    pub(super) is_known: AtomicBool,
    /// What it learns when it must look again.
    pub(super) is_archived: AtomicBool,
}

#[async_trait]
impl Archive for TestArchive {
    async fn is_archived(&self, _: ProductId) -> bool {
        self.is_known.load(Ordering::Relaxed)
    }

    fn forget(&self, _: ProductId) {
        self.is_known.store(self.is_archived.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// An API that submits orders and receives their outcomes.
pub(super) struct Api {
    pub(super) submitter: Arc<dyn Submitter>,
    pub(super) outcomes: mpsc::UnboundedReceiver<(CommandId, Outcome)>,
}

pub(super) struct Sink(mpsc::UnboundedSender<(CommandId, Outcome)>);

impl ReplySink for Sink {
    fn deliver(&self, outcomes: Vec<(CommandId, Outcome)>) {
        for outcome in outcomes {
            let _ = self.0.send(outcome); // the test may be over
        }
    }
}

impl Api {
    pub(super) async fn open(queue: &Arc<dyn Queue>) -> Self {
        Self::open_with(queue, Arc::new(NothingArchived)).await
    }

    pub(super) async fn open_with(queue: &Arc<dyn Queue>, archive: Arc<dyn Archive>) -> Self {
        let (sink, outcomes) = mpsc::unbounded_channel();
        let submitter = queue.submitter(Arc::new(Sink(sink)), archive).await.unwrap();
        Self { submitter, outcomes }
    }

    pub(super) fn submit(&self, product_id: ProductId, total: u32) -> NewOrder {
        let order = order(product_id, total);
        self.submitter.submit(order.clone().into());
        order
    }

    /// So many orders for one product, one after the other.
    pub(super) fn submit_many(&self, product_id: ProductId, count: u32) -> Vec<NewOrder> {
        (1..=count).map(|total| self.submit(product_id, total)).collect()
    }

    pub(super) async fn receive(&mut self) -> (CommandId, Outcome) {
        in_time(self.outcomes.recv()).await.unwrap()
    }

    /// Exactly the verdicts on these orders arrive, and nothing else.
    pub(super) async fn receives_verdicts_on(&mut self, orders: &[NewOrder]) {
        let mut expected: HashMap<CommandId, Outcome> =
            orders.iter().map(|order| (order.id.into(), Outcome::Decided(verdict(order)))).collect();
        while !expected.is_empty() {
            let (id, outcome) = self.receive().await;
            assert_eq!(expected.remove(&id), Some(outcome), "of order {id}");
        }
        self.receives_nothing();
    }

    pub(super) fn receives_nothing(&mut self) {
        assert_eq!(self.outcomes.try_recv(), Err(mpsc::error::TryRecvError::Empty));
    }
}

pub(super) async fn consumer(queue: &Arc<dyn Queue>, lanes: &[ProductId]) -> Box<dyn Consumer> {
    let mut consumer = queue.consumer().await.unwrap();
    consumer.serve(lanes).await.unwrap();
    consumer
}

pub(super) async fn take(consumer: &mut Box<dyn Consumer>, max_orders: usize) -> Vec<Delivery> {
    let taken = in_time(consumer.take(max_orders)).await.unwrap();
    assert!(!taken.is_empty() && taken.iter().all(|delivery| !delivery.commands.is_empty()));
    taken
}

/// Takes so many orders, and leaves them unsettled. All are submitted before: while a lane is unsettled, an adapter may
/// deliver no more of it.
pub(super) async fn take_all(consumer: &mut Box<dyn Consumer>, count: usize) -> Vec<Delivery> {
    let mut taken = Vec::new();
    while orders_of(&taken).len() < count {
        taken.extend(take(consumer, usize::MAX).await);
    }
    assert_eq!(orders_of(&taken).len(), count);
    taken
}

/// Takes and settles until so many orders are settled. Orphaned deliveries are not counted twice.
pub(super) async fn settle_all(consumer: &mut Box<dyn Consumer>, count: usize) -> Vec<NewOrder> {
    let mut done = Vec::new();
    while done.len() < count {
        let taken = take(consumer, usize::MAX).await;
        done.extend(taken.iter().filter(|delivery| !delivery.reply_to.is_empty()).flat_map(orders_in));
        settle(consumer, taken).await;
    }
    assert_eq!(done.len(), count);
    done
}

pub(super) fn orders_in(delivery: &Delivery) -> Vec<NewOrder> {
    let order = |command: &Command| match command {
        Command::Place(order) => order.clone(),
        Command::Change(change) => panic!("{change:?}"),
    };
    delivery.commands.iter().map(order).collect()
}

pub(super) fn orders_of(deliveries: &[Delivery]) -> Vec<NewOrder> {
    deliveries.iter().flat_map(orders_in).collect()
}

/// With the verdict on each order.
pub(super) async fn settle(consumer: &mut Box<dyn Consumer>, deliveries: Vec<Delivery>) {
    let reply = |delivery: &Delivery| Reply {
        to: delivery.reply_to.clone(),
        verdicts: orders_in(delivery).iter().map(|order| (order.id.into(), verdict(order))).collect(),
    };
    let replies = deliveries.iter().map(reply).collect();
    settle_with(consumer, deliveries, Completion { replies, ..Completion::default() }).await;
}

pub(super) async fn settle_with(
    consumer: &mut Box<dyn Consumer>,
    deliveries: Vec<Delivery>,
    completion: Completion,
) {
    consumer.settle(deliveries, completion).await.unwrap();
    consumer.drain().await.unwrap();
}

pub(super) fn only(reply: Reply) -> Completion {
    Completion { replies: vec![reply], ..Completion::default() }
}
