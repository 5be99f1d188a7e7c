//! The lanes of archived products are removed, and no command is lost with them.

use std::sync::{Arc, atomic::Ordering};

use antre::{
    domain::lane_set::LaneMode,
    queue::{Consumer, Delivery},
};

use super::{Adapter, rabbitmq_queue, support::*};
use crate::support::servers::{Place, QueueInfo, servers};

/// Decides and settles whatever arrives, and looks for empty lanes after each batch, until so many orders are settled.
async fn settle_and_retire(consumer: &mut Box<dyn Consumer>, count: usize) {
    let mut settled = 0;
    while settled < count {
        consumer.retire(&products(1)).await.unwrap();
        let deliveries = take(consumer, 7).await;
        consumer.retire(&products(1)).await.unwrap(); // with unsettled ones
        settled += orders_of(&deliveries).len();
        settle(consumer, deliveries).await;
    }
    assert_eq!(settled, count);
}

pub(super) async fn no_command_is_lost_with_the_lane_of_an_archived_product(adapter: Adapter) {
    let queue = adapter.queue().await;
    let archive = Arc::new(TestArchive::default());
    let mut api = Api::open_with(&queue, archive.clone()).await;
    let mut consumer = consumer(&queue, &products(1)).await;
    for round in 0..3 {
        archive.is_known.store(round > 0, Ordering::Relaxed);
        let submitted = api.submit_many(product(1), 100);
        settle_and_retire(&mut consumer, 100).await;
        api.receives_verdicts_on(&submitted).await;
    }
}

/// The queue of the first product's lane.
async fn lane_of(place: &Place) -> Vec<QueueInfo> {
    servers().await.queues(&format!("{}orders.product.1", place.queue_prefix)).await
}

/// Serves until the lane is gone.
async fn remove_lane(consumer: &mut Box<dyn Consumer>, place: &Place) {
    in_time(async {
        loop {
            consumer.retire(&products(1)).await.unwrap();
            tokio::select! {
                deliveries = consumer.take(100) => settle(consumer, deliveries.unwrap()).await,
                lane = lane_of(place) => if lane.is_empty() { return },
            }
        }
    })
    .await;
}

/// Which of the two gets something, and what.
async fn take_from_either(workers: &mut [Box<dyn Consumer>; 2]) -> (usize, Vec<Delivery>) {
    let [first, second] = workers;
    in_time(async {
        tokio::select! {
            taken = first.take(50) => (0, taken.unwrap()),
            taken = second.take(50) => (1, taken.unwrap()),
        }
    })
    .await
}

#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn an_empty_lane_is_removed_by_the_worker_that_serves_it_and_no_other_opens_it_again() {
    let place = servers().await.fresh().await;
    let queue = rabbitmq_queue(&place, LaneMode::Product, 1_000).await;
    let mut api = Api::open(&queue).await;
    let mut workers = [consumer(&queue, &products(2)).await, consumer(&queue, &products(2)).await];
    let submitted = api.submit_many(product(1), 50);
    // One of them has a message, and it keeps the lane. Once it is settled, the other one may be next.
    let mut settled = 0;
    while settled < 50 {
        let (active, deliveries) = take_from_either(&mut workers).await;
        for _ in 0..10 {
            for worker in &mut workers {
                worker.retire(&products(1)).await.unwrap();
            }
            assert_eq!(lane_of(&place).await.len(), 1, "it has unsettled messages");
        }
        settled += orders_of(&deliveries).len();
        settle(&mut workers[active], deliveries).await;
    }
    api.receives_verdicts_on(&submitted).await;
    // Both look for it, and both must read what arrives.
    let [first, second] = &mut workers;
    tokio::join!(remove_lane(first, &place), remove_lane(second, &place));
    let mut third = queue.consumer().await.unwrap();
    for worker in [first, second, &mut third] {
        remove_lane(worker, &place).await;
    }
    let orders = format!("{}orders.", place.queue_prefix);
    let left = servers()
        .await
        .queues_when(&orders, |queues| {
            queues.iter().any(|queue| queue.name.ends_with("archived") && queue.consumers == 3)
        })
        .await;
    let names: Vec<_> = left.iter().filter_map(|queue| queue.name.strip_prefix(&orders)).collect();
    assert_eq!(names, ["archived", "dead", "product.2"]);
    assert!(left.iter().all(|queue| queue.messages == 0), "{left:#?}");
}

/// An API that has not learned of the archive publishes to a lane that is gone.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn a_command_for_a_lane_that_is_gone_is_queued_with_those_of_archived_products() {
    let place = servers().await.fresh().await;
    let queue = rabbitmq_queue(&place, LaneMode::Product, 1_000).await;
    let archive = Arc::new(TestArchive::default());
    let mut api = Api::open_with(&queue, archive.clone()).await;
    let mut worker = consumer(&queue, &products(1)).await;
    let submitted = api.submit_many(product(1), 20);
    settle_all(&mut worker, 20).await;
    api.receives_verdicts_on(&submitted).await;
    remove_lane(&mut worker, &place).await;

    archive.is_archived.store(true, Ordering::Relaxed);
    assert!(!archive.is_known.load(Ordering::Relaxed));
    let submitted = api.submit_many(product(1), 200);
    settle_all(&mut worker, 200).await;
    api.receives_verdicts_on(&submitted).await;
    assert!(archive.is_known.load(Ordering::Relaxed), "the broker returned a message");
    assert_eq!(lane_of(&place).await.len(), 0, "it was not declared again");
}

/// Lanes of several products stay, whichever of them is archived.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn a_lane_that_products_share_is_not_removed() {
    let place = servers().await.fresh().await;
    let queue = rabbitmq_queue(&place, "hash:1".parse().unwrap(), 1_000).await;
    let mut api = Api::open(&queue).await;
    let mut worker = consumer(&queue, &products(2)).await;
    for _ in 0..3 {
        worker.retire(&products(1)).await.unwrap();
        let submitted = api.submit_many(product(2), 10);
        settle_all(&mut worker, 10).await;
        api.receives_verdicts_on(&submitted).await;
    }
    let queues = servers().await.queues(&format!("{}orders.lane", place.queue_prefix)).await;
    assert_eq!(queues.len(), 1);
}
