//! What processes tell each other, and what waits: both adapters do the same.

use std::{sync::Arc, time::Duration};

use antre::{
    clock::{Clock, SystemClock},
    queue::{Depths, LaneDepth, Queue, Reports, memory::MemoryQueue, rabbitmq::RabbitMqQueue},
};
use futures_util::{FutureExt, StreamExt};
use tokio::time::{sleep, timeout};

use super::{rabbitmq_settings, support::*};
use crate::support::servers::servers;

/// A handle for each of two processes.
type Pair<Q> = [Q; 2];

fn in_memory() -> Pair<MemoryQueue> {
    let queue = MemoryQueue::new(10, SystemClock.now());
    [queue.clone(), queue]
}

async fn on_rabbitmq() -> Pair<RabbitMqQueue> {
    let place = servers().await.fresh().await;
    let connect = async || RabbitMqQueue::connect(rabbitmq_settings(&place)).await.unwrap();
    [connect().await, connect().await]
}

#[tokio::test]
async fn reports_in_process() {
    what_is_told_reaches_all_that_listen(in_memory()).await;
    what_nobody_listens_to_is_lost(in_memory()).await;
}

#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn reports_on_rabbitmq() {
    what_is_told_reaches_all_that_listen(on_rabbitmq().await).await;
    what_nobody_listens_to_is_lost(on_rabbitmq().await).await;
}

#[tokio::test]
async fn depths_in_process() {
    the_depth_of_a_lane_is_what_no_worker_has_taken(in_memory()).await;
}

#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn depths_on_rabbitmq() {
    the_depth_of_a_lane_is_what_no_worker_has_taken(on_rabbitmq().await).await;
}

async fn what_is_told_reaches_all_that_listen([one, other]: Pair<impl Reports>) {
    let mut listeners = [one.listen().await.unwrap(), other.listen().await.unwrap()];
    for report in [b"first".to_vec(), vec![0; 100_000]] {
        other.tell(report.clone()).await.unwrap();
        for listener in &mut listeners {
            assert_eq!(in_time(listener.next()).await.as_ref(), Some(&report));
        }
    }
    let [_, mut left] = listeners;
    one.tell(b"second".to_vec()).await.unwrap();
    assert_eq!(in_time(left.next()).await, Some(b"second".to_vec()));
    assert_eq!(left.next().now_or_never(), None);
}

async fn what_nobody_listens_to_is_lost([one, other]: Pair<impl Reports>) {
    one.tell(b"lost".to_vec()).await.unwrap();
    let mut listener = other.listen().await.unwrap();
    one.tell(b"told".to_vec()).await.unwrap();
    assert_eq!(in_time(listener.next()).await, Some(b"told".to_vec()));
}

async fn the_depth_of_a_lane_is_what_no_worker_has_taken<Q: Queue + Depths + Clone + 'static>(
    [queue, asking]: Pair<Q>,
) {
    let depth_becomes = async |expected: LaneDepth| {
        let becomes = async {
            loop {
                let depth = asking.depth(product(1)).await.unwrap();
                if depth == expected {
                    return;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(DEADLINE, becomes).await.unwrap_or_else(|_| panic!("it never becomes {expected:?}"));
    };
    assert_eq!(asking.dead_letters().await.unwrap(), 0);
    depth_becomes(LaneDepth::default()).await;
    let queue: Arc<dyn Queue> = Arc::new(queue);
    let mut api = Api::open(&queue).await;
    let order = api.submit(product(1), 2);
    depth_becomes(LaneDepth { messages: 1, workers: 0 }).await;
    let mut worker = consumer(&queue, &products(1)).await;
    let taken = take(&mut worker, 10).await;
    depth_becomes(LaneDepth { messages: 0, workers: 1 }).await;
    settle(&mut worker, taken).await;
    api.receives_verdicts_on(&[order]).await;
    drop(worker);
    depth_becomes(LaneDepth::default()).await;
}
