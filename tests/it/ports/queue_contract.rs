//! The queue contract as one suite, run on every adapter: what lanes behind [`Queue`] must do.
//!
//! A consumer serves its lanes before it takes. What has arrived, and in how many deliveries, is the adapter's to say:
//! a broker needs a moment, and gathers orders into messages.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{Arc, Mutex},
    task::Poll,
    time::Duration,
};

use antre::{
    clock::now,
    domain::{
        command::{ChangeOrder, Command, NewOrder, ReplyMode},
        ids::{CommandId, OrderId, ProductId},
        lane_set::{LaneMode, LaneSet},
        order::{Change, OrderStatus, Quantity},
        rejection::Rejection,
        verdict::Verdict,
    },
    queue::{
        Completion, Consumer, Delivery, Outcome, Queue, Refusal, Reply, ReplySink, Submitter,
        memory::MemoryQueue,
        rabbitmq::{RabbitMqQueue, RabbitMqSettings},
    },
};
use jiff::SignedDuration;
use tokio::{
    sync::mpsc,
    task::{JoinSet, yield_now},
    time::{Instant, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::support::servers::{Place, Server, servers};

/// One test for each function and adapter, so that a failure says which of them it was. A function that is not in
/// the list is dead code, and the compiler says so.
macro_rules! suite {
    ($($test:ident,)*) => {
        suite!(in_process, super::Adapter::InProcess, [], $($test,)*);
        suite!(rabbitmq, super::Adapter::rabbitmq("product").await, [#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]], $($test,)*);
        suite!(rabbitmq_hashed, super::Adapter::rabbitmq("hash:3").await, [#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]], $($test,)*);
    };
    ($module:ident, $adapter:expr, $attributes:tt, $($test:ident,)*) => {
        mod $module {
            $(suite!(one $test, $adapter, $attributes);)*
        }
    };
    (one $test:ident, $adapter:expr, [$($attribute:tt)*]) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        $($attribute)*
        async fn $test() {
            super::$test($adapter).await;
        }
    };
}

suite! {
    orders_of_a_lane_are_taken_in_the_order_of_their_arrival,
    verdicts_reach_the_api_that_submitted,
    commands_of_all_kinds_arrive_as_they_were_given,
    who_does_not_wait_hears_that_the_command_stands_in_line,
    one_take_spans_several_lanes,
    a_take_waits_for_an_order,
    a_take_that_is_dropped_takes_nothing,
    a_take_keeps_to_its_limit,
    what_is_not_acknowledged_comes_back_in_its_old_place,
    a_lane_goes_to_the_next_consumer_when_its_own_ends,
    one_consumer_at_a_time_holds_a_lane,
    a_lane_that_is_held_holds_up_no_other,
    a_full_lane_refuses_at_once_and_keeps_what_it_has,
    what_is_given_back_comes_again_in_its_place,
    ten_thousand_orders_are_decided_once_each_in_order,
    an_answer_to_nobody_does_no_harm,
    a_young_order_may_stand_in_line_and_an_ancient_one_may_not,
    a_lane_may_be_opened_and_served_any_number_of_times,
    a_new_lane_is_served_as_soon_as_it_is_opened,
    every_end_says_that_it_works,
}

/// What makes queues.
enum Adapter {
    InProcess,
    RabbitMq { place: Place, lanes: LaneMode },
}

impl Adapter {
    async fn rabbitmq(lanes: &str) -> Self {
        Self::RabbitMq { place: servers().await.fresh().await, lanes: lanes.parse().unwrap() }
    }

    /// Lanes that no test of the suite fills.
    async fn queue(&self) -> Arc<dyn Queue> {
        self.queue_of(20_000).await
    }

    /// Lanes in which so many orders or messages may wait each. Once for a test.
    async fn queue_of(&self, lane_capacity: u32) -> Arc<dyn Queue> {
        match self {
            Self::InProcess => Arc::new(MemoryQueue::new(lane_capacity as usize)),
            Self::RabbitMq { place, lanes } => rabbitmq_queue(place, *lanes, lane_capacity).await,
        }
    }
}

async fn rabbitmq_queue(place: &Place, lanes: LaneMode, lane_capacity: u32) -> Arc<dyn Queue> {
    let lanes = LaneSet { prefix: place.queue_prefix.clone(), mode: lanes };
    let settings = RabbitMqSettings { lanes, lane_capacity, ..rabbitmq_settings(place) };
    Arc::new(RabbitMqQueue::connect(settings).await.unwrap())
}

fn rabbitmq_settings(place: &Place) -> RabbitMqSettings {
    RabbitMqSettings {
        url: place.amqp_url.clone(),
        lanes: LaneSet { prefix: place.queue_prefix.clone(), mode: LaneMode::Product },
        database: uuid::Uuid::nil(),
        lane_capacity: RabbitMqSettings::LANE_CAPACITY,
        events: true,
        consumer_timeout: RabbitMqSettings::CONSUMER_TIMEOUT,
    }
}

/// No test waits longer than this for something to arrive.
const DEADLINE: Duration = Duration::from_secs(30);

async fn in_time<T>(arrival: impl Future<Output = T>) -> T {
    timeout(DEADLINE, arrival).await.expect("it did not arrive in time")
}

/// The first, and only the first, poll.
async fn poll_once<F: Future>(future: &mut Pin<&mut F>) -> Poll<F::Output> {
    poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await
}

fn product(number: u64) -> ProductId {
    ProductId::new(number).unwrap()
}

fn products(count: u64) -> Vec<ProductId> {
    (1..=count).map(product).collect()
}

fn order(product_id: ProductId, total: u32) -> NewOrder {
    let reply = ReplyMode::Until(now() + SignedDuration::from_hours(1));
    NewOrder { id: OrderId::generate(), product_id, total: Quantity::new(total).unwrap(), reply, key: None }
}

/// What these tests decide on an order: something that only this order gets.
fn verdict(order: &NewOrder) -> Verdict {
    match order.total.get() {
        even if even.is_multiple_of(2) => Verdict::Reserved { expires_at: order.id.created_at() },
        odd => Verdict::Rejected(Rejection::InsufficientStock { available: odd }),
    }
}

/// An API that hears what becomes of its orders.
struct Api {
    submitter: Arc<dyn Submitter>,
    outcomes: mpsc::UnboundedReceiver<(CommandId, Outcome)>,
}

struct Ear(mpsc::UnboundedSender<(CommandId, Outcome)>);

impl ReplySink for Ear {
    fn deliver(&self, outcomes: Vec<(CommandId, Outcome)>) {
        for outcome in outcomes {
            let _ = self.0.send(outcome); // the test may be over
        }
    }
}

impl Api {
    async fn open(queue: &Arc<dyn Queue>) -> Self {
        let (ear, outcomes) = mpsc::unbounded_channel();
        let submitter = queue.submitter(Arc::new(Ear(ear))).await.unwrap();
        Self { submitter, outcomes }
    }

    fn submit(&self, product_id: ProductId, total: u32) -> NewOrder {
        let order = order(product_id, total);
        self.submitter.submit(order.clone().into());
        order
    }

    /// So many orders for one product, one after the other.
    fn submit_many(&self, product_id: ProductId, count: u32) -> Vec<NewOrder> {
        (1..=count).map(|total| self.submit(product_id, total)).collect()
    }

    async fn hear(&mut self) -> (CommandId, Outcome) {
        in_time(self.outcomes.recv()).await.unwrap()
    }

    /// Exactly the verdicts on these orders arrive, and nothing else.
    async fn hears_verdicts_on(&mut self, orders: &[NewOrder]) {
        let mut expected: HashMap<CommandId, Outcome> =
            orders.iter().map(|order| (order.id.into(), Outcome::Decided(verdict(order)))).collect();
        while !expected.is_empty() {
            let (id, outcome) = self.hear().await;
            assert_eq!(expected.remove(&id), Some(outcome), "of order {id}");
        }
        self.hears_nothing();
    }

    fn hears_nothing(&mut self) {
        assert_eq!(self.outcomes.try_recv(), Err(mpsc::error::TryRecvError::Empty));
    }
}

async fn consumer(queue: &Arc<dyn Queue>, lanes: &[ProductId]) -> Box<dyn Consumer> {
    let mut consumer = queue.consumer().await.unwrap();
    consumer.serve(lanes).await.unwrap();
    consumer
}

async fn take(consumer: &mut Box<dyn Consumer>, max_orders: usize) -> Vec<Delivery> {
    let taken = in_time(consumer.take(max_orders)).await.unwrap();
    assert!(!taken.is_empty() && taken.iter().all(|delivery| !delivery.commands.is_empty()));
    taken
}

/// Takes until so many orders are in hand. All of them are submitted before: while a lane is held, it may well hand
/// out no more.
async fn hold(consumer: &mut Box<dyn Consumer>, count: usize) -> Vec<Delivery> {
    let mut held = Vec::new();
    while orders_of(&held).len() < count {
        held.extend(take(consumer, usize::MAX).await);
    }
    assert_eq!(orders_of(&held).len(), count);
    held
}

/// Takes and settles until so many orders are done. What comes back because its API is gone does not count again.
async fn work_off(consumer: &mut Box<dyn Consumer>, count: usize) -> Vec<NewOrder> {
    let mut done = Vec::new();
    while done.len() < count {
        let taken = take(consumer, usize::MAX).await;
        done.extend(taken.iter().filter(|delivery| !delivery.reply_to.is_empty()).flat_map(orders_in));
        settle(consumer, taken).await;
    }
    assert_eq!(done.len(), count);
    done
}

fn orders_in(delivery: &Delivery) -> Vec<NewOrder> {
    let order = |command: &Command| match command {
        Command::Place(order) => order.clone(),
        Command::Change(change) => panic!("{change:?}"),
    };
    delivery.commands.iter().map(order).collect()
}

fn orders_of(deliveries: &[Delivery]) -> Vec<NewOrder> {
    deliveries.iter().flat_map(orders_in).collect()
}

/// Tells the verdicts, and lets go.
async fn settle(consumer: &mut Box<dyn Consumer>, deliveries: Vec<Delivery>) {
    let reply = |delivery: &Delivery| Reply {
        to: delivery.reply_to.clone(),
        verdicts: orders_in(delivery).iter().map(|order| (order.id.into(), verdict(order))).collect(),
    };
    let replies = deliveries.iter().map(reply).collect();
    tell(consumer, deliveries, Completion { replies, ..Completion::default() }).await;
}

async fn tell(consumer: &mut Box<dyn Consumer>, deliveries: Vec<Delivery>, completion: Completion) {
    consumer.settle(deliveries, completion).await.unwrap();
    consumer.drain().await.unwrap();
}

fn only(reply: Reply) -> Completion {
    Completion { replies: vec![reply], ..Completion::default() }
}

async fn orders_of_a_lane_are_taken_in_the_order_of_their_arrival(adapter: Adapter) {
    let queue = adapter.queue().await;
    let mut api = Api::open(&queue).await;
    let mut submitted = api.submit_many(product(1), 250);
    let mut consumer = consumer(&queue, &products(1)).await;
    let mut taken = Vec::new();
    while taken.len() < 500 {
        let deliveries = take(&mut consumer, 37).await;
        if taken.is_empty() {
            submitted.extend(api.submit_many(product(1), 250));
        }
        taken.extend(orders_of(&deliveries));
        settle(&mut consumer, deliveries).await;
    }
    assert_eq!(taken, submitted);
    api.hears_verdicts_on(&submitted).await;
}

async fn verdicts_reach_the_api_that_submitted(adapter: Adapter) {
    let queue = adapter.queue().await;
    let mut apis = [Api::open(&queue).await, Api::open(&queue).await];
    let mut submitted = [Vec::new(), Vec::new()];
    for round in 0..60 {
        let (lane, api) = (product(1 + round % 3), (round % 2) as usize);
        submitted[api].push(apis[api].submit(lane, 1 + round as u32));
    }
    let mut consumer = consumer(&queue, &products(3)).await;
    work_off(&mut consumer, 60).await;
    for (api, submitted) in apis.iter_mut().zip(&submitted) {
        api.hears_verdicts_on(submitted).await;
    }
}

async fn commands_of_all_kinds_arrive_as_they_were_given(adapter: Adapter) {
    let queue = adapter.queue().await;
    let mut api = Api::open(&queue).await;
    let reply = ReplyMode::Until(now() + SignedDuration::from_hours(1));
    let change = |change| -> Command {
        let (id, order_id) = (CommandId::generate(), OrderId::generate());
        ChangeOrder { id, order_id, product_id: product(1), change, reply }.into()
    };
    let key = |text: String| Some(text.try_into().unwrap());
    let submitted: Vec<Command> = vec![
        order(product(1), 1).into(),
        change(Change::Pay),
        NewOrder { key: key("a-key".to_owned()), ..order(product(1), 1) }.into(),
        change(Change::Cancel),
        NewOrder { key: key("\"'\\{}".to_owned()), ..order(product(1), 1) }.into(),
        NewOrder { key: key("~".repeat(255)), ..order(product(1), Quantity::MAX) }.into(),
        change(Change::Expire),
    ];
    submitted.iter().for_each(|command| api.submitter.submit(command.clone()));
    let mut consumer = consumer(&queue, &products(1)).await;
    let mut taken = Vec::new();
    while taken.len() < submitted.len() {
        let deliveries = take(&mut consumer, usize::MAX).await;
        for delivery in &deliveries {
            let told = |command: &Command| match command {
                Command::Place(order) => verdict(order),
                Command::Change(_) => Verdict::Status(OrderStatus::Paid),
            };
            let verdicts = delivery.commands.iter().map(|command| (command.id(), told(command))).collect();
            let reply = Reply { to: delivery.reply_to.clone(), verdicts };
            taken.extend(delivery.commands.clone());
            tell(&mut consumer, vec![delivery.clone()], only(reply)).await;
        }
    }
    assert_eq!(taken, submitted);
    let mut heard = HashMap::new();
    for _ in &submitted {
        heard.extend([api.hear().await]);
    }
    for command in &submitted {
        let expected = match command {
            Command::Place(order) => verdict(order),
            Command::Change(_) => Verdict::Status(OrderStatus::Paid),
        };
        assert_eq!(heard[&command.id()], Outcome::Decided(expected));
    }
}

async fn who_does_not_wait_hears_that_the_command_stands_in_line(adapter: Adapter) {
    let queue = adapter.queue().await;
    let mut api = Api::open(&queue).await;
    let patient = api.submit(product(1), 1);
    let impatient: Vec<_> = (0..20)
        .map(|_| {
            let order = order(product(1), 2);
            NewOrder { reply: ReplyMode::Detached, ..order }
        })
        .collect();
    impatient.iter().for_each(|order| api.submitter.submit(order.clone().into()));
    let mut expected: HashSet<CommandId> = impatient.iter().map(|order| order.id.into()).collect();
    while !expected.is_empty() {
        let (id, outcome) = api.hear().await;
        assert_eq!(outcome, Outcome::Queued);
        assert!(expected.remove(&id), "{id}");
    }
    api.hears_nothing();
    // They are in line indeed, behind the patient one, and the verdicts come as ever.
    let mut consumer = consumer(&queue, &products(1)).await;
    let all = [vec![patient], impatient].concat();
    assert_eq!(work_off(&mut consumer, 21).await, all);
    api.hears_verdicts_on(&all).await;
}

async fn one_take_spans_several_lanes(adapter: Adapter) {
    let queue = adapter.queue().await;
    let mut api = Api::open(&queue).await;
    let lanes = products(8);
    let mut consumer = consumer(&queue, &lanes).await;
    let deadline = Instant::now() + DEADLINE;
    let mut widest = 0;
    // A broker may hand out the first order before the others are there: then once more.
    while widest < 4 {
        assert!(Instant::now() < deadline, "never more than {widest} of 8 lanes at once");
        let submitted: Vec<NewOrder> = lanes.iter().map(|lane| api.submit(*lane, 1)).collect();
        let mut done = 0;
        while done < lanes.len() {
            let taken = take(&mut consumer, 1_000).await;
            let spanned: HashSet<ProductId> =
                orders_of(&taken).iter().map(|order| order.product_id).collect();
            widest = widest.max(spanned.len());
            done += orders_of(&taken).len();
            settle(&mut consumer, taken).await;
        }
        api.hears_verdicts_on(&submitted).await;
    }
}

async fn a_take_waits_for_an_order(adapter: Adapter) {
    let queue = adapter.queue().await;
    let api = Api::open(&queue).await;
    let mut consumer = consumer(&queue, &products(2)).await;
    for round in 1..=5 {
        let taken = {
            let mut taking = pin!(consumer.take(10));
            assert!(poll_once(&mut taking).await.is_pending());
            let order = api.submit(product(1 + u64::from(round % 2)), round);
            let taken = in_time(taking).await.unwrap();
            assert_eq!(orders_of(&taken), [order]);
            taken
        };
        settle(&mut consumer, taken).await;
    }
}

async fn a_take_that_is_dropped_takes_nothing(adapter: Adapter) {
    let queue = adapter.queue().await;
    let mut api = Api::open(&queue).await;
    let mut consumer = consumer(&queue, &products(1)).await;
    let (mut submitted, mut taken) = (Vec::new(), Vec::new());
    for total in 1..=100 {
        let deliveries = {
            let mut taking = pin!(consumer.take(3));
            // Dropped before it is asked; while it waits; when it was woken; and, every fourth time, not at all.
            let asked = if total % 4 == 0 { Poll::Pending } else { poll_once(&mut taking).await };
            submitted.push(api.submit(product(1), total));
            match (asked, total % 4) {
                (Poll::Ready(deliveries), _) => Some(deliveries),
                (Poll::Pending, 3) => Some(in_time(taking).await),
                (Poll::Pending, 2) => {
                    yield_now().await;
                    None
                }
                (Poll::Pending, _) => None,
            }
        };
        if let Some(deliveries) = deliveries {
            let deliveries = deliveries.unwrap();
            taken.extend(orders_of(&deliveries));
            settle(&mut consumer, deliveries).await;
        }
    }
    let rest = submitted.len() - taken.len();
    taken.extend(work_off(&mut consumer, rest).await);
    assert_eq!(taken, submitted);
    api.hears_verdicts_on(&submitted).await;
}

async fn a_take_keeps_to_its_limit(adapter: Adapter) {
    let queue = adapter.queue().await;
    let mut api = Api::open(&queue).await;
    let lanes = products(5);
    let mut submitted = Vec::new();
    for lane in &lanes {
        submitted.extend(api.submit_many(*lane, 12));
    }
    let mut consumer = consumer(&queue, &lanes).await;
    let mut taken: Vec<NewOrder> = Vec::new();
    for max_orders in [1, 2, 7, 20].into_iter().cycle() {
        if taken.len() == submitted.len() {
            break;
        }
        let deliveries = take(&mut consumer, max_orders).await;
        let count = orders_of(&deliveries).len();
        // The last delivery may go beyond, but none begins there.
        let before_last = count - deliveries.last().unwrap().commands.len();
        assert!(before_last < max_orders, "{count} orders in {} deliveries", deliveries.len());
        taken.extend(orders_of(&deliveries));
        settle(&mut consumer, deliveries).await;
    }
    for lane in lanes {
        let of_lane = |order: &&NewOrder| order.product_id == lane;
        assert!(taken.iter().filter(of_lane).eq(submitted.iter().filter(of_lane)));
    }
    api.hears_verdicts_on(&submitted).await;
}

async fn what_is_not_acknowledged_comes_back_in_its_old_place(adapter: Adapter) {
    let queue = adapter.queue().await;
    let mut apis = [Api::open(&queue).await, Api::open(&queue).await];
    let mut submitted: Vec<NewOrder> = Vec::new();
    for total in 1..=6 {
        submitted.extend(apis.iter().map(|api| api.submit(product(1), total)));
    }
    let mut first = consumer(&queue, &products(1)).await;
    let mut held = hold(&mut first, 12).await;
    let line = orders_of(&held);
    let done = held.remove(0);
    settle(&mut first, vec![done.clone()]).await;
    // They come while the others are held, and stand behind them. Then the consumer ends without a word.
    for total in 7..=9 {
        submitted.extend(apis.iter().map(|api| api.submit(product(1), total)));
    }
    drop(first);
    let mut second = consumer(&queue, &products(1)).await;
    let taken = work_off(&mut second, 18 - done.commands.len()).await;
    assert_eq!(taken[..12 - done.commands.len()], line[done.commands.len()..]);
    drop(held);
    let all = [orders_in(&done), taken].concat();
    assert_eq!(all.iter().map(|order| order.id).collect::<HashSet<_>>().len(), 18);
    for (at, api) in apis.iter_mut().enumerate() {
        let own: Vec<NewOrder> = submitted.iter().skip(at).step_by(2).cloned().collect();
        let ids: HashSet<OrderId> = own.iter().map(|order| order.id).collect();
        assert!(all.iter().filter(|order| ids.contains(&order.id)).eq(&own));
        api.hears_verdicts_on(&own).await;
    }
}

async fn a_lane_goes_to_the_next_consumer_when_its_own_ends(adapter: Adapter) {
    let queue = adapter.queue().await;
    let mut api = Api::open(&queue).await;
    let lanes = products(4);
    let mut first = consumer(&queue, &lanes).await;
    let submit = |api: &Api| lanes.iter().map(|lane| api.submit(*lane, 2)).collect::<Vec<_>>();
    let submitted = submit(&api);
    work_off(&mut first, 4).await;
    api.hears_verdicts_on(&submitted).await;
    // As long as the first one has the lanes in hand, the second gets nothing of them, old or new. When the first one
    // ends, it gets all of it.
    let mut submitted = submit(&api);
    hold(&mut first, 4).await;
    let mut second = consumer(&queue, &lanes).await;
    let taken = {
        let mut taking = pin!(second.take(1_000));
        assert!(poll_once(&mut taking).await.is_pending());
        submitted.extend(submit(&api));
        assert!(poll_once(&mut taking).await.is_pending());
        drop(first);
        in_time(taking).await.unwrap()
    };
    let mut line = orders_of(&taken);
    settle(&mut second, taken).await;
    line.extend(work_off(&mut second, 8 - line.len()).await);
    for lane in &lanes {
        let of_lane = |order: &&NewOrder| order.product_id == *lane;
        assert!(line.iter().filter(of_lane).eq(submitted.iter().filter(of_lane)), "lane {lane}");
    }
    api.hears_verdicts_on(&submitted).await;
}

/// Who holds which lane, to be found out by all of them at once.
type Held = Arc<Mutex<BTreeMap<ProductId, usize>>>;

async fn one_consumer_at_a_time_holds_a_lane(adapter: Adapter) {
    let queue = adapter.queue().await;
    let lanes = products(6);
    let held = Held::default();
    let stop = CancellationToken::new();
    let mut consumers = JoinSet::new();
    for number in 0..3 {
        let mut consumer = consumer(&queue, &lanes).await;
        let (held, stop) = (held.clone(), stop.clone());
        consumers.spawn(async move {
            loop {
                let deliveries = tokio::select! {
                    () = stop.cancelled() => return,
                    taken = consumer.take(5) => taken.unwrap(),
                };
                let lanes: BTreeSet<ProductId> =
                    orders_of(&deliveries).iter().map(|order| order.product_id).collect();
                for lane in &lanes {
                    let other = held.lock().unwrap().insert(*lane, number);
                    assert_eq!(other, None, "lane {lane} is held by {number} as well");
                }
                for _ in 0..5 {
                    yield_now().await;
                }
                for lane in &lanes {
                    assert_eq!(held.lock().unwrap().remove(lane), Some(number));
                }
                settle(&mut consumer, deliveries).await;
            }
        });
    }
    let mut apis = [Api::open(&queue).await, Api::open(&queue).await];
    for round in 0..6 {
        let mut submitted = [Vec::new(), Vec::new()];
        for total in 1..=25 {
            for (api, submitted) in apis.iter().zip(&mut submitted) {
                submitted.extend(lanes.iter().map(|lane| api.submit(*lane, total + round)));
            }
            yield_now().await;
        }
        for (api, submitted) in apis.iter_mut().zip(&submitted) {
            api.hears_verdicts_on(submitted).await;
        }
    }
    stop.cancel();
    consumers.join_all().await;
}

async fn a_lane_that_is_held_holds_up_no_other(adapter: Adapter) {
    let queue = adapter.queue().await;
    let mut api = Api::open(&queue).await;
    let mut consumer = consumer(&queue, &products(3)).await;
    let first = api.submit(product(1), 1);
    let held = hold(&mut consumer, 1).await;
    let others = [api.submit(product(2), 2), api.submit(product(3), 3)];
    let taken = work_off(&mut consumer, 2).await;
    assert!(others.iter().all(|order| taken.contains(order)));
    api.hears_verdicts_on(&others).await;
    settle(&mut consumer, held).await;
    api.hears_verdicts_on(&[first]).await;
}

async fn a_full_lane_refuses_at_once_and_keeps_what_it_has(adapter: Adapter) {
    const CAPACITY: u32 = 5;
    let queue = adapter.queue_of(CAPACITY).await;
    let mut api = Api::open(&queue).await;
    let (full, other) = (product(1), product(2));
    api.submitter.open_lane(full).await.unwrap();
    // Nobody serves it. At the latest after some thousands it says no: a broker counts messages, and one may carry
    // hundreds of orders.
    let mut submitted = Vec::new();
    let mut refused = Vec::new();
    while refused.is_empty() {
        assert!(submitted.len() < 10_000, "the lane takes everything");
        submitted.push(api.submit(full, 1 + submitted.len() as u32));
        if let Ok(outcome) = timeout(Duration::from_millis(2), api.outcomes.recv()).await {
            refused.push(outcome.unwrap());
        }
    }
    // Another lane is not full.
    let elsewhere = api.submit(other, 1);
    let mut consumer = consumer(&queue, &[full, other]).await;
    // What was not refused stands in line.
    let mut done = Vec::new();
    while done.len() + refused.len() < submitted.len() + 1 {
        tokio::select! {
            outcome = api.hear() => {
                if let (_, Outcome::Refused(_)) = outcome {
                    refused.push(outcome);
                }
            }
            deliveries = take(&mut consumer, 1_000) => {
                done.extend(orders_of(&deliveries));
                settle(&mut consumer, deliveries).await;
            }
        }
    }
    assert!(
        refused.iter().all(|(_, outcome)| *outcome == Outcome::Refused(Refusal::LaneFull)),
        "{refused:?}"
    );
    let refused: HashSet<CommandId> = refused.iter().map(|(id, _)| *id).collect();
    assert!(submitted.len() - refused.len() >= CAPACITY as usize, "{} refused", refused.len());
    let kept = submitted.iter().filter(|order| !refused.contains(&order.id.into()));
    assert!(done.iter().filter(|order| order.product_id == full).eq(kept));
    assert!(done.contains(&elsewhere));
    // There is room again.
    let late = api.submit(full, 1);
    assert_eq!(work_off(&mut consumer, 1).await, [late]);
}

async fn what_is_given_back_comes_again_in_its_place(adapter: Adapter) {
    let queue = adapter.queue().await;
    let mut api = Api::open(&queue).await;
    let mut consumer = consumer(&queue, &products(2)).await;
    let first = api.submit_many(product(1), 2);
    let held = hold(&mut consumer, 2).await;
    let rest = api.submit_many(product(1), 3);
    consumer.requeue(held).await.unwrap();
    let submitted = [first, rest].concat();
    assert_eq!(work_off(&mut consumer, 5).await, submitted);
    api.hears_verdicts_on(&submitted).await;
    // It holds nothing any more: another lane goes on, and nothing comes back at the end.
    let other = [api.submit(product(2), 1)];
    assert_eq!(work_off(&mut consumer, 1).await, other);
    api.hears_verdicts_on(&other).await;
}

async fn ten_thousand_orders_are_decided_once_each_in_order(adapter: Adapter) {
    const ORDERS: usize = 10_000;
    let queue = adapter.queue().await;
    let lanes = products(5);
    let stop = CancellationToken::new();
    let line: Arc<Mutex<BTreeMap<ProductId, Vec<NewOrder>>>> = Arc::default();
    let mut consumers = JoinSet::new();
    for _ in 0..2 {
        let mut consumer = consumer(&queue, &lanes).await;
        let (line, stop) = (line.clone(), stop.clone());
        consumers.spawn(async move {
            loop {
                let deliveries = tokio::select! {
                    () = stop.cancelled() => return,
                    taken = consumer.take(300) => taken.unwrap(),
                };
                for order in orders_of(&deliveries) {
                    line.lock().unwrap().entry(order.product_id).or_default().push(order);
                }
                settle(&mut consumer, deliveries).await;
            }
        });
    }
    let mut apis = JoinSet::new();
    for _ in 0..2 {
        let (mut api, lanes) = (Api::open(&queue).await, lanes.clone());
        apis.spawn(async move {
            let mut submitted = Vec::new();
            for number in 0..ORDERS / 2 {
                submitted.push(api.submit(lanes[number * number % lanes.len()], 1 + number as u32));
                if number % 10 == 0 {
                    yield_now().await;
                }
            }
            api.hears_verdicts_on(&submitted).await;
            (api, submitted)
        });
    }
    let apis = in_time(apis.join_all()).await;
    stop.cancel();
    consumers.join_all().await;
    let line = line.lock().unwrap();
    assert_eq!(line.values().map(Vec::len).sum::<usize>(), ORDERS);
    for (mut api, submitted) in apis {
        api.hears_nothing();
        let own: HashSet<OrderId> = submitted.iter().map(|order| order.id).collect();
        for (lane, line) in line.iter() {
            let expected = submitted.iter().filter(|order| order.product_id == *lane);
            assert!(line.iter().filter(|order| own.contains(&order.id)).eq(expected), "of lane {lane}");
        }
    }
}

async fn an_answer_to_nobody_does_no_harm(adapter: Adapter) {
    let queue = adapter.queue().await;
    let (gone, mut api) = (Api::open(&queue).await, Api::open(&queue).await);
    let mut consumer = consumer(&queue, &products(1)).await;
    gone.submit(product(1), 1);
    let orphans = hold(&mut consumer, 1).await;
    drop(gone);
    let submitted = [api.submit(product(1), 2)];
    // Before and behind an answer to somebody, and to a name that never was.
    settle(&mut consumer, orphans.clone()).await;
    let mut deliveries = take(&mut consumer, 1).await;
    if deliveries[0].reply_to.is_empty() {
        // An adapter that knows that nobody heard it.
        assert_eq!(deliveries[0].commands, [orphans[0].commands[0].clone().detached()]);
        settle(&mut consumer, deliveries).await;
        deliveries = hold(&mut consumer, 1).await;
    }
    let nobody =
        Reply { to: "nobody".into(), verdicts: vec![(submitted[0].id.into(), verdict(&submitted[0]))] };
    tell(&mut consumer, Vec::new(), only(nobody.clone())).await;
    api.hears_nothing();
    let late = Reply { to: orphans[0].reply_to.clone(), ..nobody.clone() };
    let answer = Reply { to: deliveries[0].reply_to.clone(), ..nobody.clone() };
    let replies = vec![nobody, late.clone(), answer, late];
    tell(&mut consumer, deliveries, Completion { replies, ..Completion::default() }).await;
    api.hears_verdicts_on(&submitted).await;
    let submitted = [api.submit(product(1), 3)];
    assert_eq!(work_off(&mut consumer, 1).await, submitted);
    api.hears_verdicts_on(&submitted).await;
}

async fn a_young_order_may_stand_in_line_and_an_ancient_one_may_not(adapter: Adapter) {
    let queue = adapter.queue().await;
    let api = Api::open(&queue).await;
    assert!(api.submitter.may_be_pending(api.submit(product(1), 1).id));
    let day = SignedDuration::from_hours(24);
    for created_at in [0, (now() - day).as_millisecond() as u64] {
        let ancient = uuid::Builder::from_unix_timestamp_millis(created_at, &[7; 10]).into_uuid();
        assert!(!api.submitter.may_be_pending(ancient.into()), "{ancient}");
    }
    assert!(!api.submitter.may_be_pending(uuid::Uuid::new_v4().into()));
}

async fn a_lane_may_be_opened_and_served_any_number_of_times(adapter: Adapter) {
    let queue = adapter.queue().await;
    let (mut api, other) = (Api::open(&queue).await, Api::open(&queue).await);
    let mut consumer = consumer(&queue, &products(2)).await;
    let (one, two) = tokio::join!(api.submitter.open_lane(product(1)), other.submitter.open_lane(product(1)));
    one.and(two).unwrap();
    let mut submitted = vec![api.submit(product(1), 1)];
    // Also while orders stand in it.
    api.submitter.open_lane(product(1)).await.unwrap();
    consumer.serve(&products(2)).await.unwrap();
    consumer.serve(&[]).await.unwrap();
    consumer.serve(&[product(2), product(2)]).await.unwrap();
    submitted.push(api.submit(product(1), 2));
    assert_eq!(work_off(&mut consumer, 2).await, submitted);
    api.hears_verdicts_on(&submitted).await;
}

async fn a_new_lane_is_served_as_soon_as_it_is_opened(adapter: Adapter) {
    let queue = adapter.queue().await;
    let mut api = Api::open(&queue).await;
    let mut consumer = consumer(&queue, &[]).await;
    for number in 1..=5 {
        let (submitted, taken) = {
            let mut taking = pin!(consumer.take(10));
            assert!(poll_once(&mut taking).await.is_pending());
            api.submitter.open_lane(product(number)).await.unwrap();
            (api.submit(product(number), number as u32), in_time(taking).await.unwrap())
        };
        assert_eq!(orders_of(&taken), std::slice::from_ref(&submitted));
        settle(&mut consumer, taken).await;
        api.hears_verdicts_on(&[submitted]).await;
    }
}

async fn every_end_says_that_it_works(adapter: Adapter) {
    let queue = adapter.queue().await;
    queue.ping().await.unwrap();
    Api::open(&queue).await.submitter.ping().await.unwrap();
}

/// What is true of lanes in memory alone.
mod memory {
    use super::*;

    #[tokio::test]
    async fn a_lane_takes_as_many_orders_as_it_says() {
        let queue: Arc<dyn Queue> = Arc::new(MemoryQueue::new(3));
        let mut api = Api::open(&queue).await;
        let submitted = api.submit_many(product(1), 5);
        for refused in &submitted[3..] {
            assert_eq!(api.hear().await, (refused.id.into(), Outcome::Refused(Refusal::LaneFull)));
        }
        api.hears_nothing();
        // What is in a worker's hands does not wait any more; what comes back from them is not refused.
        let mut first = consumer(&queue, &[]).await;
        assert_eq!(orders_of(&take(&mut first, 2).await), submitted[..2]);
        let later = api.submit_many(product(1), 2);
        api.hears_nothing();
        let refused = api.submit(product(1), 3);
        assert_eq!(api.hear().await, (refused.id.into(), Outcome::Refused(Refusal::LaneFull)));
        drop(first);
        let mut second = consumer(&queue, &[]).await;
        assert_eq!(work_off(&mut second, 5).await, [&submitted[..3], &later].concat());
    }

    #[tokio::test]
    async fn a_long_lane_does_not_starve_a_short_one() {
        let queue: Arc<dyn Queue> = Arc::new(MemoryQueue::new(1_000));
        let api = Api::open(&queue).await;
        api.submit_many(product(1), 100);
        let lone = api.submit(product(2), 1);
        let mut consumer = consumer(&queue, &[]).await;
        for _ in 0..2 {
            let taken = take(&mut consumer, 10).await;
            if orders_of(&taken).contains(&lone) {
                return;
            }
            settle(&mut consumer, taken).await;
        }
        panic!("the order of the short lane still waits");
    }
}

/// What is true of the broker alone.
mod broker {
    use futures_util::StreamExt;
    use lapin::{
        options::{BasicAckOptions, BasicConsumeOptions},
        types::{AMQPValue, FieldTable},
    };
    use serde_json::{Value, json};

    use super::*;

    #[tokio::test]
    #[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
    async fn lanes_are_declared_as_they_must_be() {
        let place = servers().await.fresh().await;
        let prefix = &place.queue_prefix;
        let queue = rabbitmq_queue(&place, LaneMode::Product, 7).await;
        let api = Api::open(&queue).await;
        api.submitter.open_lane(product(17)).await.unwrap();
        let _consumers = [consumer(&queue, &[product(17)]).await, consumer(&queue, &[product(17)]).await];
        let subscribed = format!("{prefix}orders.product.17");
        let queues = servers()
            .await
            .queues_when(prefix, |queues| {
                queues.iter().any(|queue| queue.name == subscribed && queue.consumers == 2)
            })
            .await;
        let [dead, lane, replies] = &queues[..] else { panic!("{queues:#?}") };
        assert_eq!(
            (dead.name.as_str(), dead.kind.as_str()),
            (format!("{prefix}orders.dead").as_str(), "quorum")
        );
        assert_eq!((lane.name.as_str(), lane.kind.as_str()), (subscribed.as_str(), "quorum"));
        for queue in [dead, lane] {
            assert!(queue.durable && !queue.exclusive && !queue.auto_delete, "{queue:?}");
        }
        for (argument, value) in [
            ("x-single-active-consumer", json!(true)),
            ("x-max-length", json!(7)),
            ("x-overflow", json!("reject-publish")),
            ("x-dead-letter-exchange", json!("")),
            ("x-dead-letter-routing-key", json!(dead.name)),
            ("x-dead-letter-strategy", json!("at-least-once")),
        ] {
            assert_eq!(lane.arguments.get(argument), Some(&value), "{argument}");
        }
        // Finite: without a limit, what comes back would stand at the end of its lane.
        let limit = lane.arguments.get("x-delivery-limit").and_then(Value::as_i64);
        assert!(limit.is_some_and(|limit| limit > 20), "{limit:?}");
        // It goes with its API.
        assert!(replies.name.starts_with(&format!("{prefix}replies.")) && replies.exclusive, "{replies:?}");
        drop(api);
        servers().await.queues_when(prefix, |queues| queues.len() == 2).await;
    }

    #[tokio::test]
    #[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
    async fn a_dead_letter_is_kept_alone_and_the_others_of_its_message_are_answered() {
        let place = servers().await.fresh().await;
        let queue = rabbitmq_queue(&place, LaneMode::Product, 100).await;
        let mut api = Api::open(&queue).await;
        let mut consumer = consumer(&queue, &products(1)).await;
        let submitted = api.submit_many(product(1), 3);
        let held = hold(&mut consumer, 3).await;
        consumer.dead_letter(vec![submitted[1].clone().into()]).await.unwrap();
        settle(&mut consumer, held).await;
        api.hears_verdicts_on(&submitted).await;
        let queues = servers()
            .await
            .queues_when(&place.queue_prefix, |queues| {
                queues.iter().any(|queue| queue.name.ends_with("orders.dead") && queue.messages_ready == 1)
            })
            .await;
        let lane = queues.iter().find(|queue| queue.name.ends_with("orders.product.1")).unwrap();
        assert_eq!(lane.messages_unacknowledged, 0);
    }

    /// What only an API that is gone would have heard is decided once more, for the record.
    #[tokio::test]
    #[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
    async fn verdicts_that_reach_nobody_come_back() {
        let place = servers().await.fresh().await;
        let queue = rabbitmq_queue(&place, LaneMode::Product, 100).await;
        let [gone, mut api] = [Api::open(&queue).await, Api::open(&queue).await];
        let mut consumer = consumer(&queue, &products(2)).await;
        let lost = [gone.submit(product(1), 1), gone.submit(product(2), 2)];
        let mut held = hold(&mut consumer, 2).await;
        let heard = api.submit(product(1), 3);
        held.extend(hold(&mut consumer, 1).await);
        drop(gone);
        let of_apis = format!("{}replies.", place.queue_prefix);
        servers().await.queues_when(&of_apis, |queues| queues.len() == 1).await;
        settle(&mut consumer, held).await;
        api.hears_verdicts_on(&[heard]).await;

        let mut again = take(&mut consumer, 10).await;
        again.sort_unstable_by_key(|delivery| delivery.commands[0].product_id());
        let detached = lost.map(|order| Command::from(order).detached());
        assert!(detached.iter().all(Command::is_detached));
        assert_eq!([again[0].commands.clone(), again[1].commands.clone()].concat(), detached);
        assert!(again.iter().all(|delivery| delivery.reply_to.is_empty()));
        settle(&mut consumer, again).await;
        let lanes = format!("{}orders.product.", place.queue_prefix);
        servers().await.queues_when(&lanes, |lanes| lanes.iter().all(|lane| lane.messages == 0)).await;
    }

    /// RabbitMQ may forget to remove a consumer that dies while another one outranks it: it is active again when that one
    /// goes, and its lane must not stand still for good.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
    async fn a_lane_gets_over_a_consumer_that_the_broker_forgot_to_remove() {
        // In each, priorities fall in another way: half of them would do.
        const LANES: u64 = 8;
        let place = servers().await.fresh().await;
        let consumer_timeout = Duration::from_secs(5);
        let settings = RabbitMqSettings { consumer_timeout, ..rabbitmq_settings(&place) };
        let queue: Arc<dyn Queue> = Arc::new(RabbitMqQueue::connect(settings).await.unwrap());
        let api = Api::open(&queue).await;
        let mut first = consumer(&queue, &products(LANES)).await;
        products(LANES).into_iter().for_each(|lane| drop(api.submit(lane, 1)));
        hold(&mut first, LANES as usize).await;

        let connection = lapin::Connection::connect(&place.amqp_url, Default::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let mut outranking = Vec::new();
        for lane in products(LANES) {
            let name = format!("{}orders.product.{lane}", place.queue_prefix);
            let mut priority = FieldTable::default();
            priority.insert("x-priority".into(), AMQPValue::LongInt(2_000_000));
            let options = BasicConsumeOptions::default();
            outranking.push(
                channel.basic_consume(name.clone().into(), name.into(), options, priority).await.unwrap(),
            );
        }
        drop(first);
        for consumer in &mut outranking {
            let delivery = in_time(consumer.next()).await.unwrap().unwrap();
            assert!(delivery.redelivered);
            delivery.ack(BasicAckOptions::default()).await.unwrap();
        }
        let mut last = consumer(&queue, &products(LANES)).await;
        let each_has_both =
            |queues: &[crate::support::servers::QueueInfo]| queues.iter().all(|lane| lane.consumers >= 2);
        let lanes = format!("{}orders.product.", place.queue_prefix);
        servers().await.queues_when(&lanes, each_has_both).await;
        connection.close(200, "done".into()).await.unwrap();

        // One order after the other: the broker looks at the clock of a lane only when something happens in it.
        let mut knocking = interval(Duration::from_secs(1));
        let mut served = HashSet::new();
        let serving = async {
            while served.len() < LANES as usize {
                tokio::select! {
                    _ = knocking.tick() => {
                        products(LANES).into_iter().for_each(|lane| drop(api.submit(lane, 2)));
                    }
                    taken = last.take(usize::MAX) => {
                        let taken = taken.unwrap();
                        served.extend(orders_of(&taken).iter().map(|order| order.product_id));
                        settle(&mut last, taken).await;
                    }
                }
            }
        };
        in_time(serving).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
    async fn what_stands_in_line_survives_the_death_of_the_broker() {
        let alone = servers().await.alone().await;
        let queue = rabbitmq_queue(&alone.place, LaneMode::Product, 1_000).await;
        let mut api = Api::open(&queue).await;
        let mut submitted = api.submit_many(product(1), 50);
        // RabbitMQ can forget a queue that it made just before it was killed (seen in 4.3), with all that stood in it:
        // this lane is an old one by the time at which the broker tells of what is in it.
        let told_of =
            |queues: &[crate::support::servers::QueueInfo]| queues.iter().any(|queue| queue.messages > 0);
        servers().await.queues_when(&alone.place.queue_prefix, told_of).await;
        submitted.extend(api.submit_many(product(1), 49));
        // Who does not wait hears when his order stands in line, and with it all that came before.
        let order = order(product(1), 100);
        submitted.push(NewOrder { reply: ReplyMode::Detached, ..order });
        api.submitter.submit(submitted[99].clone().into());
        assert_eq!(api.hear().await, (submitted[99].id.into(), Outcome::Queued));
        alone.restart(Server::Broker).await;
        let mut consumer = consumer(&queue, &products(1)).await;
        assert_eq!(work_off(&mut consumer, 100).await, submitted);
    }
}
