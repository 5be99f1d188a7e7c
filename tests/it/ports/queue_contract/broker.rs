//! RabbitMQ alone: what it declares, dead-letters and keeps.

use std::{collections::HashSet, sync::Arc, time::Duration};

use antre::{
    domain::{
        command::{Command, NewOrder, ReplyMode},
        lane_set::LaneMode,
    },
    queue::{
        Outcome, Queue,
        rabbitmq::{RabbitMqQueue, RabbitMqSettings},
    },
};
use futures_util::StreamExt;
use lapin::{
    options::{BasicAckOptions, BasicConsumeOptions, QueueDeclareOptions, QueueDeleteOptions},
    types::{AMQPValue, FieldTable},
};
use serde_json::{Value, json};
use tokio::time::interval;

use super::{rabbitmq_queue, rabbitmq_settings, support::*};
use crate::support::servers::{QueueInfo, Server, servers};

#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn lanes_are_declared_with_their_options() {
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
    assert_eq!((dead.name.as_str(), dead.kind.as_str()), (format!("{prefix}orders.dead").as_str(), "quorum"));
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
    // Finite: without a limit, requeued messages would go to the end of the lane.
    let limit = lane.arguments.get("x-delivery-limit").and_then(Value::as_i64);
    assert!(limit.is_some_and(|limit| limit > 20), "{limit:?}");
    // The reply queue is deleted with its API.
    assert!(replies.name.starts_with(&format!("{prefix}replies.")) && replies.exclusive, "{replies:?}");
    drop(api);
    servers().await.queues_when(prefix, |queues| queues.len() == 2).await;
}

/// A worker learns of a product whose lane the API cannot declare: it tries the lane itself until it can.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn workers_are_notified_of_a_lane_that_cannot_be_declared() {
    let place = servers().await.fresh().await;
    let queue = rabbitmq_queue(&place, LaneMode::Product, 100).await;
    let mut api = Api::open(&queue).await;
    let mut consumer = consumer(&queue, &[]).await;
    let connection = lapin::Connection::connect(&place.amqp_url, Default::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let lane = format!("{}orders.product.1", place.queue_prefix);
    let different =
        channel.queue_declare(lane.as_str().into(), QueueDeclareOptions::durable(), FieldTable::default());
    different.await.unwrap();
    api.submitter.open_lane(product(1)).await.unwrap_err();
    channel.queue_delete(lane.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    let submitted = api.submit(product(1), 1);
    assert_eq!(settle_all(&mut consumer, 1).await, std::slice::from_ref(&submitted));
    api.receives_verdicts_on(&[submitted]).await;
}

#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn a_dead_letter_is_kept_alone_and_the_other_commands_of_its_message_are_answered() {
    let place = servers().await.fresh().await;
    let queue = rabbitmq_queue(&place, LaneMode::Product, 100).await;
    let mut api = Api::open(&queue).await;
    let mut consumer = consumer(&queue, &products(1)).await;
    let submitted = api.submit_many(product(1), 3);
    let unsettled = take_all(&mut consumer, 3).await;
    consumer.dead_letter(vec![submitted[1].clone().into()]).await.unwrap();
    settle(&mut consumer, unsettled).await;
    api.receives_verdicts_on(&submitted).await;
    let queues = servers()
        .await
        .queues_when(&place.queue_prefix, |queues| {
            queues.iter().any(|queue| queue.name.ends_with("orders.dead") && queue.messages_ready == 1)
        })
        .await;
    let lane = queues.iter().find(|queue| queue.name.ends_with("orders.product.1")).unwrap();
    assert_eq!(lane.messages_unacknowledged, 0);
}

/// The reply is returned, so the commands are decided again, and rejections are stored.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn a_delivery_whose_api_is_gone_is_taken_again_detached() {
    let place = servers().await.fresh().await;
    let queue = rabbitmq_queue(&place, LaneMode::Product, 100).await;
    let [gone, mut api] = [Api::open(&queue).await, Api::open(&queue).await];
    let mut consumer = consumer(&queue, &products(2)).await;
    let lost = [gone.submit(product(1), 1), gone.submit(product(2), 2)];
    let mut unsettled = take_all(&mut consumer, 2).await;
    let received = api.submit(product(1), 3);
    unsettled.extend(take_all(&mut consumer, 1).await);
    drop(gone);
    let of_apis = format!("{}replies.", place.queue_prefix);
    servers().await.queues_when(&of_apis, |queues| queues.len() == 1).await;
    settle(&mut consumer, unsettled).await;
    api.receives_verdicts_on(&[received]).await;

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

/// RabbitMQ may forget to remove a consumer that dies while another one outranks it. It is active again when that one is
/// gone; the consumer timeout ends it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn a_lane_recovers_from_a_consumer_that_the_broker_forgot_to_remove() {
    // The priorities differ from lane to lane: about half of them show the failure.
    const LANES: u64 = 8;
    let place = servers().await.fresh().await;
    let consumer_timeout = Duration::from_secs(5);
    let settings = RabbitMqSettings { consumer_timeout, ..rabbitmq_settings(&place) };
    let queue: Arc<dyn Queue> = Arc::new(RabbitMqQueue::connect(settings).await.unwrap());
    let api = Api::open(&queue).await;
    let mut first = consumer(&queue, &products(LANES)).await;
    products(LANES).into_iter().for_each(|lane| drop(api.submit(lane, 1)));
    take_all(&mut first, LANES as usize).await;

    let connection = lapin::Connection::connect(&place.amqp_url, Default::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let mut outranking = Vec::new();
    for lane in products(LANES) {
        let name = format!("{}orders.product.{lane}", place.queue_prefix);
        let mut priority = FieldTable::default();
        priority.insert("x-priority".into(), AMQPValue::LongInt(2_000_000));
        let options = BasicConsumeOptions::default();
        outranking
            .push(channel.basic_consume(name.clone().into(), name.into(), options, priority).await.unwrap());
    }
    drop(first);
    for consumer in &mut outranking {
        let delivery = in_time(consumer.next()).await.unwrap().unwrap();
        assert!(delivery.redelivered);
        delivery.ack(BasicAckOptions::default()).await.unwrap();
    }
    let mut last = consumer(&queue, &products(LANES)).await;
    let each_has_both = |queues: &[QueueInfo]| queues.iter().all(|lane| lane.consumers >= 2);
    let lanes = format!("{}orders.product.", place.queue_prefix);
    servers().await.queues_when(&lanes, each_has_both).await;
    connection.close(200, "done".into()).await.unwrap();

    // An order every second: the broker checks the timeout of a lane only when something happens in it.
    let mut ticks = interval(Duration::from_secs(1));
    let mut served = HashSet::new();
    let serving = async {
        while served.len() < LANES as usize {
            tokio::select! {
                _ = ticks.tick() => {
                    products(LANES).into_iter().for_each(|lane| drop(api.submit(lane, 2)));
                }
                taken = last.take(usize::MAX) => {
                    let taken = taken.unwrap();
                    served.extend(orders_of(&taken).iter().map(|order| order.lines.first().product_id));
                    settle(&mut last, taken).await;
                }
            }
        }
    };
    in_time(serving).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn queued_commands_survive_the_death_of_the_broker() {
    let alone = servers().await.alone().await;
    let queue = rabbitmq_queue(&alone.place, LaneMode::Product, 1_000).await;
    let mut api = Api::open(&queue).await;
    let mut submitted = api.submit_many(product(1), 50);
    // RabbitMQ can forget a queue that it made just before it was killed (seen in 4.3), with all messages in it. When its
    // management API counts messages, the queue is old enough.
    let has_messages = |queues: &[QueueInfo]| queues.iter().any(|queue| queue.messages > 0);
    servers().await.queues_when(&alone.place.queue_prefix, has_messages).await;
    submitted.extend(api.submit_many(product(1), 49));
    // The API learns when a detached order is queued, and with it all orders before it.
    let order = order(product(1), 100);
    submitted.push(NewOrder { reply: ReplyMode::Detached, ..order });
    api.submitter.submit(submitted[99].clone().into());
    assert_eq!(api.receive().await, (submitted[99].id.into(), Outcome::Queued));
    alone.restart(Server::Broker).await;
    let mut consumer = consumer(&queue, &products(1)).await;
    assert_eq!(settle_all(&mut consumer, 100).await, submitted);
}
