//! Unsettled deliveries: who has them, and where they go when they are not settled.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    pin::pin,
    sync::{Arc, Mutex},
};

use antre::domain::{
    command::NewOrder,
    ids::{OrderId, ProductId},
};
use tokio::task::{JoinSet, yield_now};
use tokio_util::sync::CancellationToken;

use super::{Adapter, support::*};

pub(super) async fn unsettled_deliveries_come_back_in_their_old_place(adapter: Adapter) {
    let queue = adapter.queue().await;
    let mut apis = [Api::open(&queue).await, Api::open(&queue).await];
    let mut submitted: Vec<NewOrder> = Vec::new();
    for total in 1..=6 {
        submitted.extend(apis.iter().map(|api| api.submit(product(1), total)));
    }
    let mut first = consumer(&queue, &products(1)).await;
    let mut unsettled = take_all(&mut first, 12).await;
    let in_order = orders_of(&unsettled);
    let done = unsettled.remove(0);
    settle(&mut first, vec![done.clone()]).await;
    // They arrive while the others are unsettled, and queue behind them. Then the consumer ends.
    for total in 7..=9 {
        submitted.extend(apis.iter().map(|api| api.submit(product(1), total)));
    }
    drop(first);
    let mut second = consumer(&queue, &products(1)).await;
    let taken = settle_all(&mut second, 18 - done.commands.len()).await;
    assert_eq!(taken[..12 - done.commands.len()], in_order[done.commands.len()..]);
    drop(unsettled);
    let all = [orders_in(&done), taken].concat();
    assert_eq!(all.iter().map(|order| order.id).collect::<HashSet<_>>().len(), 18);
    for (at, api) in apis.iter_mut().enumerate() {
        let own: Vec<NewOrder> = submitted.iter().skip(at).step_by(2).cloned().collect();
        let ids: HashSet<OrderId> = own.iter().map(|order| order.id).collect();
        assert!(all.iter().filter(|order| ids.contains(&order.id)).eq(&own));
        api.receives_verdicts_on(&own).await;
    }
}

pub(super) async fn a_lane_moves_to_the_next_consumer_when_its_own_ends(adapter: Adapter) {
    let queue = adapter.queue().await;
    let mut api = Api::open(&queue).await;
    let lanes = products(4);
    let mut first = consumer(&queue, &lanes).await;
    let submit = |api: &Api| lanes.iter().map(|lane| api.submit(*lane, 2)).collect::<Vec<_>>();
    let submitted = submit(&api);
    settle_all(&mut first, 4).await;
    api.receives_verdicts_on(&submitted).await;
    // While the first consumer has unsettled deliveries, the second gets nothing of those lanes, old or new. When the first
    // one ends, the second gets everything.
    let mut submitted = submit(&api);
    take_all(&mut first, 4).await;
    let mut second = consumer(&queue, &lanes).await;
    let taken = {
        let mut taking = pin!(second.take(1_000));
        assert!(poll_once(&mut taking).await.is_pending());
        submitted.extend(submit(&api));
        assert!(poll_once(&mut taking).await.is_pending());
        drop(first);
        in_time(taking).await.unwrap()
    };
    let mut in_order = orders_of(&taken);
    settle(&mut second, taken).await;
    in_order.extend(settle_all(&mut second, 8 - in_order.len()).await);
    for lane in &lanes {
        let of_lane = |order: &&NewOrder| order.lines.first().product_id == *lane;
        assert!(in_order.iter().filter(of_lane).eq(submitted.iter().filter(of_lane)), "lane {lane}");
    }
    api.receives_verdicts_on(&submitted).await;
}

/// Which consumer has unsettled deliveries of which lane.
type Holders = Arc<Mutex<BTreeMap<ProductId, usize>>>;

pub(super) async fn one_consumer_at_a_time_has_a_lane(adapter: Adapter) {
    let queue = adapter.queue().await;
    let lanes = products(6);
    let holders = Holders::default();
    let stop = CancellationToken::new();
    let mut consumers = JoinSet::new();
    for number in 0..3 {
        let mut consumer = consumer(&queue, &lanes).await;
        let (holders, stop) = (holders.clone(), stop.clone());
        consumers.spawn(async move {
            loop {
                let deliveries = tokio::select! {
                    () = stop.cancelled() => return,
                    taken = consumer.take(5) => taken.unwrap(),
                };
                let lanes: BTreeSet<ProductId> =
                    orders_of(&deliveries).iter().map(|order| order.lines.first().product_id).collect();
                for lane in &lanes {
                    let other = holders.lock().unwrap().insert(*lane, number);
                    assert_eq!(other, None, "consumer {number} has lane {lane} as well");
                }
                for _ in 0..5 {
                    yield_now().await;
                }
                for lane in &lanes {
                    assert_eq!(holders.lock().unwrap().remove(lane), Some(number));
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
            api.receives_verdicts_on(submitted).await;
        }
    }
    stop.cancel();
    consumers.join_all().await;
}

pub(super) async fn an_unsettled_lane_holds_up_no_other(adapter: Adapter) {
    let queue = adapter.queue().await;
    let mut api = Api::open(&queue).await;
    let mut consumer = consumer(&queue, &products(3)).await;
    let first = api.submit(product(1), 1);
    let unsettled = take_all(&mut consumer, 1).await;
    let others = [api.submit(product(2), 2), api.submit(product(3), 3)];
    let taken = settle_all(&mut consumer, 2).await;
    assert!(others.iter().all(|order| taken.contains(order)));
    api.receives_verdicts_on(&others).await;
    settle(&mut consumer, unsettled).await;
    api.receives_verdicts_on(&[first]).await;
}

pub(super) async fn requeued_deliveries_come_back_in_their_old_place(adapter: Adapter) {
    let queue = adapter.queue().await;
    let mut api = Api::open(&queue).await;
    let mut consumer = consumer(&queue, &products(2)).await;
    let first = api.submit_many(product(1), 2);
    let unsettled = take_all(&mut consumer, 2).await;
    let rest = api.submit_many(product(1), 3);
    consumer.requeue(unsettled).await.unwrap();
    let submitted = [first, rest].concat();
    assert_eq!(settle_all(&mut consumer, 5).await, submitted);
    api.receives_verdicts_on(&submitted).await;
    // Nothing is unsettled any more: another lane goes on, and nothing comes back at the end.
    let other = [api.submit(product(2), 1)];
    assert_eq!(settle_all(&mut consumer, 1).await, other);
    api.receives_verdicts_on(&other).await;
}
