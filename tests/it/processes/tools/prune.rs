//! `antre prune`: what it deletes, what is left, and that it is in nobody's way.

use antre::domain::ids::OrderId;
use futures_util::{StreamExt, stream};
use uuid::{NoContext, Uuid};

use super::{by_hand, json_of, printed, tool};
use crate::{
    processes::cli::{complaint, directory, run},
    support::{
        harness::{App, Pair},
        wait::eventually,
    },
};

on_both_pairs!(
    pruned_orders_are_gone_for_clients_and_books,
    orders_are_pruned_during_a_sale,
    workers_prune_by_themselves,
);

/// The id of an order that was created this many days ago.
fn id_of(days: u64) -> Uuid {
    let now = Uuid::now_v7().get_timestamp().unwrap().to_unix().0;
    let time = uuid::Timestamp::from_unix(NoContext, now - days * 86_400, 0);
    OrderId::with_checksum(Uuid::new_v7(time)).uuid()
}

/// Writes an order of this age by hand, with a key.
async fn insert(app: &App, product: u64, days: u64, status: &str) -> Uuid {
    let id = id_of(days);
    let hex = id.simple();
    by_hand(
        app,
        &format!(
            "INSERT INTO orders (id, product_id, total, status, expires_at) VALUES (X'{hex}', {product}, 1, '{status}', 1);
             INSERT INTO idempotency_keys (idempotency_key, order_id) VALUES ('key-of-{id}', X'{hex}')"
        ),
    )
    .await;
    id
}

async fn pruned_orders_are_gone_for_clients_and_books(pair: Pair) {
    let app = App::start(pair).await;
    let product = app.create_stocked("Kaos Polos", 10).await;
    let (old, newer) =
        (insert(&app, product, 100, "paid").await, insert(&app, product, 80, "cancelled").await);
    let recent = app.order(product, 1).await;
    app.cancel(recent.id()).await;
    let counted = json_of(&tool(&app, &["prune", "--before", "90d", "--dry-run", "--json"]).await, 0);
    assert_eq!((&counted["orders"], &counted["dry_run"]), (&1.into(), &true.into()), "{counted}");
    assert_eq!(app.get(&format!("/api/orders/{old}")).await.status, 200);
    let report = json_of(&tool(&app, &["prune", "--before", "90d", "--json"]).await, 0);
    for (field, rows) in [("orders", 1), ("idempotency_keys", 1), ("aliases", 0)] {
        assert_eq!(report[field], rows, "{report}");
    }
    assert_eq!(report["stopped"], false, "{report}");
    let created_before: jiff::Timestamp = report["created_before"].as_str().unwrap().parse().unwrap();
    let age = jiff::Timestamp::now().duration_since(created_before).as_hours();
    assert!((90 * 24 - 1..=90 * 24 + 1).contains(&age), "{report}");
    let said = printed(&tool(&app, &["prune", "--before", "90d"]).await, 0);
    assert!(said.contains("deleted 0 final orders"), "{said}");
    let gone = app.get(&format!("/api/orders/{old}")).await;
    assert_eq!((gone.status, gone.reason()), (404, "order_not_found"), "{gone:?}");
    assert_eq!(app.get(&format!("/api/orders/{newer}")).await.status, 200);
    assert_eq!(app.get(&format!("/api/orders/{}", recent.id())).await.status, 200);
    // The key of the old one places a new order, that of the other does not.
    let again = app.order_with(product, 1, &[("Idempotency-Key", &format!("key-of-{old}"))]).await;
    assert_eq!(again.status, 201, "{again:?}");
    let again = app.order_with(product, 1, &[("Idempotency-Key", &format!("key-of-{newer}"))]).await;
    assert_eq!((again.status, again.reason()), (409, "order_not_reserved"), "{again:?}");
    printed(&tool(&app, &["audit"]).await, 0);
}

async fn orders_are_pruned_during_a_sale(pair: Pair) {
    const ORDERS: usize = 1_000;
    let app = App::start(pair).await;
    let product = app.create_stocked("Kaos Polos", 500).await;
    let client = (*app).clone();
    let sale = tokio::spawn(async move {
        let orders = stream::iter(0..ORDERS).map(|_| {
            let client = client.clone();
            async move { client.order(product, 1).await.status }
        });
        orders.buffer_unordered(32).collect::<Vec<_>>().await
    });
    let mut pruned = 0;
    while !sale.is_finished() {
        for days in 2..12 {
            insert(&app, product, days, "expired").await;
        }
        let report = json_of(&tool(&app, &["prune", "--before", "1d", "--json"]).await, 0);
        pruned += report["orders"].as_u64().unwrap();
    }
    assert!(pruned >= 10 && pruned.is_multiple_of(10), "{pruned}");
    let statuses = sale.await.unwrap();
    assert_eq!(statuses.iter().filter(|status| **status == 201).count(), 500);
    assert!(statuses.iter().all(|status| [201, 400].contains(status)), "{statuses:?}");
    printed(&tool(&app, &["audit"]).await, 0);
}

async fn workers_prune_by_themselves(pair: Pair) {
    let mut app = App::start_with(pair, &[("RETENTION", "30d")]).await;
    let product = app.create_stocked("Kaos Polos", 10).await;
    let (old, newer) = (insert(&app, product, 40, "paid").await, insert(&app, product, 20, "paid").await);
    app.terminate().await;
    app.restart().await; // it prunes soon after its start
    let path = format!("/api/orders/{old}");
    eventually("the order is still there", async || (app.get(&path).await.status == 404).then_some(())).await;
    assert_eq!(app.get(&format!("/api/orders/{newer}")).await.status, 200);
    let logged = || app.log().contains("deleted orders older than RETENTION").then_some(());
    eventually("the log does not say so", async || logged()).await;
    printed(&tool(&app, &["audit"]).await, 0);
}

#[tokio::test]
async fn an_age_below_a_day_is_refused() {
    let directory = directory();
    for age in ["23h", "0s", "soon"] {
        let said = complaint(&run(directory.path(), &["prune", "--before", age], &[]).await, 2);
        assert!(said.contains("--before") && said.contains(age), "{said}");
        let said = complaint(&run(directory.path(), &[], &[("RETENTION", age)]).await, 2);
        assert!(said.contains("--retention") && said.contains(age), "{said}");
    }
    complaint(&run(directory.path(), &["prune"], &[]).await, 2);
    let said = complaint(&run(directory.path(), &["prune", "--before", "90d"], &[]).await, 1);
    assert!(said.contains("sqlite://antre.db") && said.contains("antre migrate"), "{said}");
}
