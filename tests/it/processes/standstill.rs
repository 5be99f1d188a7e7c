//! Orders wait and none is decided: readiness and log say so within seconds, and all is green afterwards.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use crate::support::{
    harness::{App, Pair, eventually},
    servers::{Server, servers},
};

/// From the moment in which it begins, with a moment for a busy test machine.
const TOLD_WITHIN: Duration = Duration::from_secs(6);

on_both_pairs!(orders_that_are_held_make_it_unready);

/// Until readiness names the lane of the product.
async fn names_the_lane(app: &App, product: u64) -> serde_json::Value {
    eventually("readiness does not name the lane", async || {
        let answer = app.get("/health/ready").await;
        let lanes = answer.data()["lanes"].as_array().cloned().unwrap_or_default();
        let lane = lanes.into_iter().find(|lane| lane["product_id"] == product)?;
        (answer.status == 503).then_some(lane)
    })
    .await
}

async fn is_ready_again(app: &App) {
    eventually("it does not become ready again", async || {
        let answer = app.get("/health/ready").await;
        (answer.status == 200 && answer.data()["lanes"].is_null()).then_some(())
    })
    .await;
}

/// Another session holds the locks that a decision needs: each part answers, and no order gets a verdict.
async fn orders_that_are_held_make_it_unready(pair: Pair) {
    let app = App::start_with(pair, &[("ORDER_TIMEOUT", "8s")]).await;
    let product = app.create_stocked("Kaos Polos", 100).await;
    assert_eq!(app.order(product, 1).await.status, 201);
    let hold = app.hold_decisions().await;
    let began = Instant::now();
    let orders = join_all((0..15).map(|_| app.order(product, 1)));
    let told = async {
        let lane = names_the_lane(&app, product).await;
        assert!(began.elapsed() < TOLD_WITHIN, "{:?}", began.elapsed());
        assert_eq!(lane["waiting"], 15, "{lane}");
        eventually("the log does not name the lane", async || {
            app.log().contains(&format!("lane {product}: 15 waiting, oldest ")).then_some(())
        })
        .await;
        assert!(began.elapsed() < TOLD_WITHIN, "{:?}", began.elapsed());
    };
    let (orders, ()) = tokio::join!(orders, told);
    assert!(orders.iter().all(|answer| answer.status == 202), "{orders:?}");
    hold.end().await;
    is_ready_again(&app).await;
    eventually("the log does not say that it is over", async || {
        app.log().contains("all lanes go on").then_some(())
    })
    .await;
    assert_eq!(app.order(product, 1).await.status, 201);
}

/// The database stands still for 20 s: an API and a worker of separate processes both say which lanes wait.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn a_database_that_stands_still_is_told_by_api_and_worker() {
    let alone = servers().await.alone().await;
    // Longer than it takes to be told: a client that is answered 202 leaves a second copy of its order.
    let settings = [("ORDER_TIMEOUT", "8s")];
    let worker = App::start_role("worker", &alone.place, &settings).await;
    let api = App::start_role("api", &alone.place, &settings).await;
    let products = join_all((0..2).map(|_| api.create_stocked("Kaos Polos", 1_000))).await;
    for product in &products {
        assert_eq!(api.order(*product, 1).await.status, 201);
    }
    alone.pause(Server::Database).await;
    let began = Instant::now();
    let orders = join_all((0..20).map(|number| api.order(products[number % 2], 1)));
    let told = async {
        for product in &products {
            let lane = names_the_lane(&api, *product).await;
            assert_eq!(lane["waiting"], 10, "{lane}");
        }
        assert!(began.elapsed() < TOLD_WITHIN, "{:?}", began.elapsed());
        for product in &products {
            let lane = names_the_lane(&worker, *product).await;
            assert_eq!(lane["waiting"], 10, "{lane}");
        }
        for process in [&api, &worker] {
            eventually("the log does not name the lanes", async || {
                let log = process.log();
                let named = |id: &u64| log.contains(&format!("lane {id}: 10 waiting, oldest "));
                products.iter().all(named).then_some(())
            })
            .await;
        }
        assert!(began.elapsed() < TOLD_WITHIN, "{:?}", began.elapsed());
    };
    let (orders, ()) = tokio::join!(orders, told);
    assert!(orders.iter().all(|answer| answer.status == 202), "{orders:?}");
    let lasts = Duration::from_secs(20);
    while began.elapsed() < lasts {
        assert_eq!(api.get("/health/ready").await.status, 503);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    alone.unpause(Server::Database).await;
    for answer in &orders {
        assert_eq!(api.verdict(answer.header("location")).await["status"], "reserved");
    }
    for process in [&api, &worker] {
        is_ready_again(process).await;
    }
}

/// Without a worker nobody decides: the API says so, though each of its servers answers.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn an_api_without_a_worker_says_that_orders_wait() {
    let place = servers().await.fresh().await;
    let api = App::start_role("api", &place, &[("ORDER_TIMEOUT", "1s")]).await;
    let product = api.create_stocked("Kaos Polos", 100).await;
    let answer = api.order(product, 1).await;
    assert_eq!(answer.status, 202);
    let lane = names_the_lane(&api, product).await;
    assert!(lane["waiting"] == 1 && lane["oldest_ms"].as_u64().is_some_and(|ms| ms >= 3_000), "{lane}");
    let _worker = App::start_role("worker", &place, &[]).await;
    assert_eq!(api.verdict(answer.header("location")).await["status"], "reserved");
    is_ready_again(&api).await;
}
