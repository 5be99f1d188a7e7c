//! The in-memory queue alone.

use std::sync::Arc;

use antre::{
    clock::{Clock, SystemClock},
    queue::{Outcome, Queue, Refusal, memory::MemoryQueue},
};

use super::support::*;

#[tokio::test]
async fn a_lane_takes_as_many_orders_as_its_capacity() {
    let queue: Arc<dyn Queue> = Arc::new(MemoryQueue::new(3, SystemClock.now()));
    let mut api = Api::open(&queue).await;
    let submitted = api.submit_many(product(1), 5);
    for refused in &submitted[3..] {
        assert_eq!(api.receive().await, (refused.id.into(), Outcome::Refused(Refusal::LaneFull)));
    }
    api.receives_nothing();
    // Commands with a worker do not count, and are not refused when they come back.
    let mut first = consumer(&queue, &[]).await;
    assert_eq!(orders_of(&take(&mut first, 2).await), submitted[..2]);
    let later = api.submit_many(product(1), 2);
    api.receives_nothing();
    let refused = api.submit(product(1), 3);
    assert_eq!(api.receive().await, (refused.id.into(), Outcome::Refused(Refusal::LaneFull)));
    drop(first);
    let mut second = consumer(&queue, &[]).await;
    assert_eq!(settle_all(&mut second, 5).await, [&submitted[..3], &later].concat());
}

#[tokio::test]
async fn a_long_lane_does_not_starve_a_short_one() {
    let queue: Arc<dyn Queue> = Arc::new(MemoryQueue::new(1_000, SystemClock.now()));
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
