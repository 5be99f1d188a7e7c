//! The queue contract as one suite, run on every adapter.
//!
//! A consumer serves its lanes before it takes. When commands arrive, and in how many deliveries, depends on the adapter: a
//! broker needs a moment, and an API joins commands into messages.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    pin::pin,
    sync::{Arc, Mutex},
    task::Poll,
    time::Duration,
};

use antre::{
    clock::{Clock, SystemClock},
    domain::{
        command::{ChangeOrder, Command, NewOrder, ReplyMode},
        ids::{CommandId, OrderId, ProductId},
        lane_set::{LaneMode, LaneSet},
        lines::Lines,
        order::{Change, Order, OrderState, OrderStatus, Quantity},
        origin::{Origin, TraceContext},
        verdict::Verdict,
    },
    queue::{
        Completion, Outcome, Queue, Refusal, Reply,
        memory::MemoryQueue,
        rabbitmq::{RabbitMqQueue, RabbitMqSettings},
    },
};
use jiff::SignedDuration;
use tokio::{
    task::{JoinSet, yield_now},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use self::{redelivery::*, retirement::*, support::*};
use crate::support::servers::{Place, servers};

mod broker;
mod memory;
mod redelivery;
mod reports;
mod retirement;
mod support;

/// One test for each function and adapter, so that a failure names both. A function that is not in the list is dead code,
/// and the compiler says so.
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
    commands_of_all_kinds_arrive_unchanged,
    a_detached_command_is_reported_as_queued,
    one_take_spans_several_lanes,
    a_take_waits_for_an_order,
    a_take_that_is_dropped_takes_nothing,
    a_take_keeps_to_its_limit,
    unsettled_deliveries_come_back_in_their_old_place,
    a_lane_moves_to_the_next_consumer_when_its_own_ends,
    one_consumer_at_a_time_has_a_lane,
    an_unsettled_lane_holds_up_no_other,
    a_full_lane_refuses_at_once_and_keeps_its_commands,
    requeued_deliveries_come_back_in_their_old_place,
    ten_thousand_orders_are_decided_once_each_in_order,
    a_reply_to_an_api_that_is_gone_does_no_harm,
    a_young_order_may_be_pending_and_an_ancient_one_may_not,
    a_lane_may_be_opened_and_served_any_number_of_times,
    a_new_lane_is_served_as_soon_as_it_is_opened,
    every_part_answers_a_ping,
    no_command_is_lost_with_the_lane_of_an_archived_product,
}

enum Adapter {
    InProcess,
    RabbitMq { place: Place, lanes: LaneMode },
}

impl Adapter {
    async fn rabbitmq(lanes: &str) -> Self {
        Self::RabbitMq { place: servers().await.fresh().await, lanes: lanes.parse().unwrap() }
    }

    /// With lanes that no test of the suite fills.
    async fn queue(&self) -> Arc<dyn Queue> {
        self.queue_of(20_000).await
    }

    /// With lanes in which so many orders or messages may wait each. Call it once in a test.
    async fn queue_of(&self, lane_capacity: u32) -> Arc<dyn Queue> {
        match self {
            Self::InProcess => Arc::new(MemoryQueue::new(lane_capacity as usize, SystemClock.now())),
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
    api.receives_verdicts_on(&submitted).await;
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
    settle_all(&mut consumer, 60).await;
    for (api, submitted) in apis.iter_mut().zip(&submitted) {
        api.receives_verdicts_on(submitted).await;
    }
}

/// Of a request that is part of a trace.
fn origin() -> Origin {
    let trace: TraceContext = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().unwrap();
    Origin {
        request_id: Some("\"~\\".parse().unwrap()),
        trace: Some(Arc::new(trace.with_state(Some("rojo=1")))),
    }
}

async fn commands_of_all_kinds_arrive_unchanged(adapter: Adapter) {
    let queue = adapter.queue().await;
    let mut api = Api::open(&queue).await;
    let reply = ReplyMode::Until(SystemClock.now() + SignedDuration::from_hours(1));
    let change = |change| -> Command {
        let (id, order_id) = (SystemClock.command_id(), SystemClock.order_id());
        ChangeOrder {
            id,
            order_id,
            product_id: product(1),
            other_products: [].into(),
            change,
            reply,
            origin: Origin::default(),
        }
        .into()
    };
    let paid = |change: &ChangeOrder| {
        let expires_at = change.order_id.created_at();
        let state = OrderState::Accepted { status: OrderStatus::Paid, expires_at };
        Order {
            id: change.order_id,
            lines: Some(Lines::one(product(1), Quantity::new(2).unwrap())),
            buyer: None,
            payment: None,
            state,
        }
    };
    let key = |text: String| Some(text.try_into().unwrap());
    let submitted: Vec<Command> = vec![
        order(product(1), 1).into(),
        change(Change::Pay { reference: None }),
        change(Change::Pay { reference: Some("tx-4711".to_owned().try_into().unwrap()) }),
        change(Change::Extend),
        change(Change::Return { restock: true }),
        NewOrder { key: key("a-key".to_owned()), ..order(product(1), 1) }.into(),
        change(Change::Cancel),
        NewOrder { key: key("\"'\\{}".to_owned()), ..order(product(1), 1) }.into(),
        NewOrder { key: key("~".repeat(255)), ..order(product(1), Quantity::MAX) }.into(),
        change(Change::Expire),
        NewOrder { origin: origin(), ..order(product(1), 1) }.into(),
    ];
    submitted.iter().for_each(|command| api.submitter.submit(command.clone()));
    let mut consumer = consumer(&queue, &products(1)).await;
    let mut taken = Vec::new();
    while taken.len() < submitted.len() {
        let deliveries = take(&mut consumer, usize::MAX).await;
        for delivery in &deliveries {
            assert!(delivery.lane.contains("orders."), "{}", delivery.lane);
            let decided = |command: &Command| match command {
                Command::Place(order) => verdict(order),
                Command::Change(change) => Verdict::Current(paid(change)),
            };
            let verdicts = delivery.commands.iter().map(|command| (command.id(), decided(command))).collect();
            let reply = Reply { to: delivery.reply_to.clone(), verdicts };
            taken.extend(delivery.commands.clone());
            settle_with(&mut consumer, vec![delivery.clone()], only(reply)).await;
        }
    }
    assert_eq!(taken, submitted);
    let mut outcomes = HashMap::new();
    for _ in &submitted {
        outcomes.extend([api.receive().await]);
    }
    for command in &submitted {
        let expected = match command {
            Command::Place(order) => verdict(order),
            Command::Change(change) => Verdict::Current(paid(change)),
        };
        assert_eq!(outcomes[&command.id()], Outcome::Decided(expected));
    }
}

async fn a_detached_command_is_reported_as_queued(adapter: Adapter) {
    let queue = adapter.queue().await;
    let mut api = Api::open(&queue).await;
    let waiting = api.submit(product(1), 1);
    let detached: Vec<_> = (0..20)
        .map(|_| {
            let order = order(product(1), 2);
            NewOrder { reply: ReplyMode::Detached, ..order }
        })
        .collect();
    detached.iter().for_each(|order| api.submitter.submit(order.clone().into()));
    let mut expected: HashSet<CommandId> = detached.iter().map(|order| order.id.into()).collect();
    while !expected.is_empty() {
        let (id, outcome) = api.receive().await;
        assert_eq!(outcome, Outcome::Queued);
        assert!(expected.remove(&id), "{id}");
    }
    api.receives_nothing();
    // They are queued, behind the order of the client that waits, and their verdicts arrive as well.
    let mut consumer = consumer(&queue, &products(1)).await;
    let all = [vec![waiting], detached].concat();
    assert_eq!(settle_all(&mut consumer, 21).await, all);
    api.receives_verdicts_on(&all).await;
}

async fn one_take_spans_several_lanes(adapter: Adapter) {
    let queue = adapter.queue().await;
    let mut api = Api::open(&queue).await;
    let lanes = products(8);
    let mut consumer = consumer(&queue, &lanes).await;
    let deadline = Instant::now() + DEADLINE;
    let mut widest = 0;
    // A broker may deliver the first order before the others arrive: then once more.
    while widest < 4 {
        assert!(Instant::now() < deadline, "never more than {widest} of 8 lanes at once");
        let submitted: Vec<NewOrder> = lanes.iter().map(|lane| api.submit(*lane, 1)).collect();
        let mut done = 0;
        while done < lanes.len() {
            let taken = take(&mut consumer, 1_000).await;
            let spanned: HashSet<ProductId> =
                orders_of(&taken).iter().map(|order| order.lines.first().product_id).collect();
            widest = widest.max(spanned.len());
            done += orders_of(&taken).len();
            settle(&mut consumer, taken).await;
        }
        api.receives_verdicts_on(&submitted).await;
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
            // Dropped before it is polled; while it waits; after it was woken; and, every fourth time, not at all.
            let polled = if total % 4 == 0 { Poll::Pending } else { poll_once(&mut taking).await };
            submitted.push(api.submit(product(1), total));
            match (polled, total % 4) {
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
    taken.extend(settle_all(&mut consumer, rest).await);
    assert_eq!(taken, submitted);
    api.receives_verdicts_on(&submitted).await;
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
        // The last delivery may exceed the limit, but none begins beyond it.
        let before_last = count - deliveries.last().unwrap().commands.len();
        assert!(before_last < max_orders, "{count} orders in {} deliveries", deliveries.len());
        taken.extend(orders_of(&deliveries));
        settle(&mut consumer, deliveries).await;
    }
    for lane in lanes {
        let of_lane = |order: &&NewOrder| order.lines.first().product_id == lane;
        assert!(taken.iter().filter(of_lane).eq(submitted.iter().filter(of_lane)));
    }
    api.receives_verdicts_on(&submitted).await;
}

async fn a_full_lane_refuses_at_once_and_keeps_its_commands(adapter: Adapter) {
    const CAPACITY: u32 = 5;
    let queue = adapter.queue_of(CAPACITY).await;
    let mut api = Api::open(&queue).await;
    let (full, other) = (product(1), product(2));
    api.submitter.open_lane(full).await.unwrap();
    // No consumer serves it. It refuses after some thousands at the latest: a broker counts messages, and one may carry
    // hundreds of orders.
    let mut submitted = Vec::new();
    let mut refused = Vec::new();
    while refused.is_empty() {
        assert!(submitted.len() < 10_000, "the lane refuses nothing");
        submitted.push(api.submit(full, 1 + submitted.len() as u32));
        if let Ok(outcome) = timeout(Duration::from_millis(2), api.outcomes.recv()).await {
            refused.push(outcome.unwrap());
        }
    }
    // Another lane is not full.
    let elsewhere = api.submit(other, 1);
    let mut consumer = consumer(&queue, &[full, other]).await;
    // All orders that were not refused are queued.
    let mut done = Vec::new();
    while done.len() + refused.len() < submitted.len() + 1 {
        tokio::select! {
            outcome = api.receive() => {
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
    assert!(done.iter().filter(|order| order.lines.first().product_id == full).eq(kept));
    assert!(done.contains(&elsewhere));
    // The lane has room again.
    let late = api.submit(full, 1);
    assert_eq!(settle_all(&mut consumer, 1).await, [late]);
}

async fn ten_thousand_orders_are_decided_once_each_in_order(adapter: Adapter) {
    const ORDERS: usize = 10_000;
    let queue = adapter.queue().await;
    let lanes = products(5);
    let stop = CancellationToken::new();
    let decided: Arc<Mutex<BTreeMap<ProductId, Vec<NewOrder>>>> = Arc::default();
    let mut consumers = JoinSet::new();
    for _ in 0..2 {
        let mut consumer = consumer(&queue, &lanes).await;
        let (decided, stop) = (decided.clone(), stop.clone());
        consumers.spawn(async move {
            loop {
                let deliveries = tokio::select! {
                    () = stop.cancelled() => return,
                    taken = consumer.take(300) => taken.unwrap(),
                };
                for order in orders_of(&deliveries) {
                    decided.lock().unwrap().entry(order.lines.first().product_id).or_default().push(order);
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
            api.receives_verdicts_on(&submitted).await;
            (api, submitted)
        });
    }
    let apis = in_time(apis.join_all()).await;
    stop.cancel();
    consumers.join_all().await;
    let decided = decided.lock().unwrap();
    assert_eq!(decided.values().map(Vec::len).sum::<usize>(), ORDERS);
    for (mut api, submitted) in apis {
        api.receives_nothing();
        let own: HashSet<OrderId> = submitted.iter().map(|order| order.id).collect();
        for (lane, decided) in decided.iter() {
            let expected = submitted.iter().filter(|order| order.lines.first().product_id == *lane);
            assert!(decided.iter().filter(|order| own.contains(&order.id)).eq(expected), "of lane {lane}");
        }
    }
}

async fn a_reply_to_an_api_that_is_gone_does_no_harm(adapter: Adapter) {
    let queue = adapter.queue().await;
    let (gone, mut api) = (Api::open(&queue).await, Api::open(&queue).await);
    let mut consumer = consumer(&queue, &products(1)).await;
    gone.submit(product(1), 1);
    let orphans = take_all(&mut consumer, 1).await;
    drop(gone);
    let submitted = [api.submit(product(1), 2)];
    // Replies to it come before and behind a reply to an API that exists, together with one to an address that never did.
    settle(&mut consumer, orphans.clone()).await;
    let mut deliveries = take(&mut consumer, 1).await;
    if deliveries[0].reply_to.is_empty() {
        // The adapter knows that nobody received the reply.
        assert_eq!(deliveries[0].commands, [orphans[0].commands[0].clone().detached()]);
        settle(&mut consumer, deliveries).await;
        deliveries = take_all(&mut consumer, 1).await;
    }
    let nobody =
        Reply { to: "nobody".into(), verdicts: vec![(submitted[0].id.into(), verdict(&submitted[0]))] };
    settle_with(&mut consumer, Vec::new(), only(nobody.clone())).await;
    api.receives_nothing();
    let late = Reply { to: orphans[0].reply_to.clone(), ..nobody.clone() };
    let answer = Reply { to: deliveries[0].reply_to.clone(), ..nobody.clone() };
    let replies = vec![nobody, late.clone(), answer, late];
    settle_with(&mut consumer, deliveries, Completion { replies, ..Completion::default() }).await;
    api.receives_verdicts_on(&submitted).await;
    let submitted = [api.submit(product(1), 3)];
    assert_eq!(settle_all(&mut consumer, 1).await, submitted);
    api.receives_verdicts_on(&submitted).await;
}

async fn a_young_order_may_be_pending_and_an_ancient_one_may_not(adapter: Adapter) {
    let queue = adapter.queue().await;
    let api = Api::open(&queue).await;
    assert!(api.submitter.may_be_pending(api.submit(product(1), 1).id, SystemClock.now()));
    let day = SignedDuration::from_hours(24);
    for created_at in [0, (SystemClock.now() - day).as_millisecond() as u64] {
        let ancient = uuid::Builder::from_unix_timestamp_millis(created_at, &[7; 10]).into_uuid();
        assert!(!api.submitter.may_be_pending(ancient.into(), SystemClock.now()), "{ancient}");
    }
    assert!(!api.submitter.may_be_pending(uuid::Uuid::new_v4().into(), SystemClock.now()));
}

async fn a_lane_may_be_opened_and_served_any_number_of_times(adapter: Adapter) {
    let queue = adapter.queue().await;
    let (mut api, other) = (Api::open(&queue).await, Api::open(&queue).await);
    let mut consumer = consumer(&queue, &products(2)).await;
    let (one, two) = tokio::join!(api.submitter.open_lane(product(1)), other.submitter.open_lane(product(1)));
    one.and(two).unwrap();
    let mut submitted = vec![api.submit(product(1), 1)];
    // Also while orders wait in it.
    api.submitter.open_lane(product(1)).await.unwrap();
    consumer.serve(&products(2)).await.unwrap();
    consumer.serve(&[]).await.unwrap();
    consumer.serve(&[product(2), product(2)]).await.unwrap();
    submitted.push(api.submit(product(1), 2));
    assert_eq!(settle_all(&mut consumer, 2).await, submitted);
    api.receives_verdicts_on(&submitted).await;
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
        api.receives_verdicts_on(&[submitted]).await;
    }
}

async fn every_part_answers_a_ping(adapter: Adapter) {
    let queue = adapter.queue().await;
    queue.ping().await.unwrap();
    Api::open(&queue).await.submitter.ping().await.unwrap();
}
