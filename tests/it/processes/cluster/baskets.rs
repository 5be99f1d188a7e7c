//! Orders of several products from many buyers, over several APIs and workers, one of which is killed.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::{sync::Semaphore, task::JoinSet, time::sleep};

use super::{Cluster, all_is_decided, workers_serve};
use crate::{
    processes::tools::{json_of, tool},
    support::servers::servers,
};

const BASKETS: usize = 2_000;
const PIECES: u64 = 400;

/// The products and totals of one buyer: two to five of ten products, in any order.
fn basket(buyer: usize, products: &[u64]) -> Vec<(u64, u64)> {
    let (count, first, step) = (2 + buyer % 4, buyer * 7, [1, 3, 7, 9][buyer / 4 % 4]);
    (0..count).map(|line| (products[(first + line * step) % 10], 1 + (buyer + line) as u64 % 3)).collect()
}

/// The accepted lines of each product add up to its reserved stock, also when a worker dies. No basket is accepted in part.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn two_thousand_baskets_of_ten_products() {
    let place = servers().await.fresh().await;
    let mut cluster = Cluster::start(&place, 2, 3, &[]).await;
    let mut products = Vec::new();
    for n in 0..10 {
        products.push(cluster.apis[0].create_stocked(&format!("Kaos {n}"), PIECES).await);
    }
    workers_serve(&place, products.len(), 3).await;

    let products: Arc<[u64]> = products.into();
    let answered = Arc::new(Semaphore::new(0));
    let mut buyers = JoinSet::new();
    for buyer in 0..BASKETS {
        let (api, products, answered) =
            (cluster.clients()[buyer % 2].clone(), products.clone(), answered.clone());
        buyers.spawn(async move {
            let lines: Vec<Value> = basket(buyer, &products)
                .into_iter()
                .map(|(product, total)| json!({"product_id": product, "total": total}))
                .collect();
            let order = json!({"lines": lines, "buyer": format!("buyer-{buyer}")});
            let key = format!("basket-{buyer}");
            let build =
                |request: reqwest::RequestBuilder| request.header("Idempotency-Key", &key).json(&order);
            let mut answer = api.send(Method::POST, "/api/orders", build).await;
            // After a 503 the order was not taken, and with its key it may be sent again.
            while answer.status == 503 {
                sleep(Duration::from_secs(1)).await;
                answer = api.send(Method::POST, "/api/orders", build).await;
            }
            answered.add_permits(1);
            assert!([201, 202, 400].contains(&answer.status), "{answer:?}");
            (answer.status != 400).then(|| answer.id().to_owned())
        });
    }
    // In the middle of it.
    answered.acquire_many(BASKETS as u32 / 10).await.unwrap().forget();
    cluster.workers[0].kill9().await;
    let taken: Vec<_> = buyers.join_all().await.into_iter().flatten().collect();
    all_is_decided(&place).await;

    let api = &cluster.apis[1];
    let (mut left, mut baskets) = (BTreeMap::<u64, u64>::new(), 0);
    for id in &taken {
        let order = api.get(&format!("/api/orders/{id}")).await;
        if order.data()["status"] == "rejected" {
            continue;
        }
        assert_eq!(order.data()["status"], "reserved", "{order:?}");
        let buyer: usize =
            order.data()["buyer"].as_str().unwrap().trim_start_matches("buyer-").parse().unwrap();
        let lines = order.data()["lines"].as_array().unwrap().iter();
        let lines: Vec<_> = lines
            .map(|line| (line["product_id"].as_u64().unwrap(), line["total"].as_u64().unwrap()))
            .collect();
        assert_eq!(lines, basket(buyer, &products), "the whole basket");
        lines.into_iter().for_each(|(product, total)| *left.entry(product).or_default() += total);
        baskets += 1;
    }
    assert!((500..BASKETS).contains(&baskets), "{baskets} baskets are accepted: that proves nothing");
    for product in products.iter() {
        let reserved = left[product];
        assert!(reserved <= PIECES);
        assert_eq!(api.inventory(*product).await, [PIECES, PIECES - reserved, reserved]);
    }
    let report = json_of(&tool(api, &["audit", "--json"]).await, 0);
    assert_eq!(report["difference_count"], 0, "{report}");
}
