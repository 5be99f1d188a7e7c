//! A product is archived while its orders are under way: each gets one answer, and the lane goes.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use futures_util::future::join_all;
use uuid::Uuid;

use super::{Cluster, all_is_decided, lanes_of};
use crate::support::{
    harness::{Answer, App},
    servers::servers,
};

#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn each_order_of_a_product_that_is_archived_under_load_gets_one_answer_and_its_lane_goes() {
    const CLIENTS: usize = 300;
    let place = servers().await.fresh().await;
    let cluster = Cluster::start(&place, 2, 2, &[]).await;
    let other = cluster.apis[0].create_stocked("Topi", 10).await;
    // Without stock, so that nothing is ever reserved; with a key each, so that each order stands in the lane.
    let product = cluster.apis[0].create_product("Kaos Polos").await;
    let is_archived = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let (api, is_archived) = ((*cluster.apis[number % 2]).clone(), is_archived.clone());
            tokio::spawn(async move {
                let (mut answers, mut late) = (Vec::new(), 0);
                // Some orders more after the archive was answered.
                while late < 3 {
                    late += usize::from(is_archived.load(Ordering::Acquire));
                    let key = Uuid::new_v4().to_string();
                    let prefer = if number % 3 == 0 { "respond-async" } else { "wait=30" };
                    let headers = [("Idempotency-Key", key.as_str()), ("Prefer", prefer)];
                    answers.push(api.order_with(product, 1, &headers).await);
                }
                answers
            })
        })
        .collect();
    // Hundreds are under way.
    servers()
        .await
        .queues_when(&format!("{}orders.product.{product}", place.queue_prefix), |lanes| {
            lanes.iter().any(|lane| lane.messages > 0)
        })
        .await;
    let archived = cluster.apis[0].archive(product).await;
    assert_eq!(archived.status, 200, "{archived:?}");
    is_archived.store(true, Ordering::Release);
    let answers: Vec<Answer> =
        join_all(clients).await.into_iter().flat_map(|answers| answers.unwrap()).collect();
    assert!(answers.len() > 3 * CLIENTS);
    let mut queued = Vec::new();
    for answer in &answers {
        match answer.status {
            202 => queued.push(answer.header("location")),
            400 => assert_eq!(answer.reason(), "insufficient_stock"),
            404 => assert_eq!(answer.reason(), "product_not_found"),
            _ => panic!("{answer:?}"),
        }
    }
    assert!(queued.len() > CLIENTS / 3, "{}", queued.len());
    for location in queued {
        assert_eq!(cluster.apis[1].verdict(location).await["status"], "rejected");
    }
    all_is_decided(&place).await;

    // The lane goes, while orders still arrive, and no worker that comes later opens it again.
    let lane = format!("{}orders.product.{product}", place.queue_prefix);
    servers().await.queues_when(&lane, |lanes| lanes.is_empty()).await;
    let _later = App::start_role("worker", &place, &[]).await;
    let archived = format!("{}orders.archived", place.queue_prefix);
    servers().await.consumers_when(&archived, |consumers| consumers.len() == 3).await;
    for api in &cluster.apis {
        let refused = api.order(product, 1).await;
        assert_eq!((refused.status, refused.reason()), (404, "product_not_found"), "{refused:?}");
        assert_eq!(api.order(other, 1).await.status, 201);
    }
    assert_eq!(lanes_of(&place).await, ["orders.archived", &format!("orders.product.{other}")]);
    all_is_decided(&place).await;
    let removed = "the empty lane of an archived product is removed";
    let logs = cluster.workers.iter().map(|worker| worker.log().matches(removed).count());
    assert_eq!(logs.sum::<usize>(), 1);
}
