//! `antre audit`: what agrees, what does not, and that it is in nobody's way.

use futures_util::{StreamExt, stream};
use serde_json::json;

use super::{by_hand, json_of, printed, tool};
use crate::{
    processes::cli::{complaint, directory, run},
    support::harness::{App, Pair},
};

on_both_pairs!(
    books_that_agree_are_found_so,
    a_piece_that_was_moved_by_hand_is_found,
    a_piece_without_a_movement_is_found,
    what_is_left_of_a_deleted_order_is_named,
    an_audit_during_a_sale_finds_nothing_and_disturbs_nobody,
    an_audit_waits_for_no_lock,
);

async fn books_that_agree_are_found_so(pair: Pair) {
    let app = App::start(pair).await;
    let output = tool(&app, &["audit"]).await;
    assert!(printed(&output, 0).contains("0 products, 0 orders"), "{output:?}");
    let (many, none) = (app.create_stocked("Kaos Polos", 10).await, app.create_product("Topi").await);
    let orders = [
        app.order(many, 1).await,
        app.order_with(many, 2, &[("Idempotency-Key", "a-key")]).await,
        app.order(many, 3).await,
    ];
    app.pay(orders[0].id()).await;
    app.cancel(orders[2].id()).await;
    assert_eq!(app.order(none, 1).await.status, 400);
    assert_eq!(app.inventory(many).await, [9, 7, 2]);
    let report = json_of(&tool(&app, &["audit", "--json"]).await, 0);
    let expected = json!([2, 3, 2, 1, 0, 0, []]);
    let fields =
        ["products", "orders", "movements", "idempotency_keys", "aliases", "difference_count", "differences"];
    assert_eq!(json!(fields.map(|field| &report[field])), expected, "{report}");
}

async fn a_piece_that_was_moved_by_hand_is_found(pair: Pair) {
    let app = App::start(pair).await;
    app.create_stocked("Kaos Polos", 5).await;
    let product = app.create_stocked("Topi", 10).await;
    assert_eq!(app.order(product, 3).await.status, 201);
    let move_one = format!(
        "UPDATE inventories SET available_stock = available_stock - 1, reserved_stock = reserved_stock + 1
         WHERE product_id = {product}"
    );
    by_hand(&app, &move_one).await;
    let report = json_of(&tool(&app, &["audit", "--json"]).await, 1);
    assert_eq!(report["difference_count"], 1, "{report}");
    let difference = &report["differences"][0];
    let fields =
        ["kind", "product_id", "stored_stock", "available_stock", "reserved_stock", "reserved_by_orders"];
    let expected = json!(["reserved_differs_from_orders", product, 10, 6, 4, 3]);
    assert_eq!(json!(fields.map(|field| &difference[field])), expected, "{report}");
    let said = printed(&tool(&app, &["audit"]).await, 1);
    let words = [format!("product {product}: reserved_stock is 4"), "3 pieces: 1 more".to_owned()];
    assert!(words.iter().all(|word| said.contains(word)) && said.contains("likely: "), "{said}");
    // What it says to do puts it right.
    let (_, statement) = said.split_once("If the orders are: ").unwrap();
    by_hand(&app, statement.lines().next().unwrap()).await;
    printed(&tool(&app, &["audit"]).await, 0);
    assert_eq!(app.inventory(product).await, [10, 7, 3]);
}

/// As when a worker of a release without movements takes a payment beside newer ones.
async fn a_piece_without_a_movement_is_found(pair: Pair) {
    let app = App::start(pair).await;
    app.create_stocked("Kaos Polos", 5).await;
    let product = app.create_stocked("Topi", 10).await;
    let orders = [app.order(product, 3).await, app.order(product, 2).await];
    assert_eq!(app.pay(orders[0].id()).await.status, 200);
    assert_eq!(app.pay(orders[1].id()).await.status, 200);
    by_hand(&app, "DELETE FROM movements WHERE kind = 'sale' AND stock_change = -3").await;
    let report = json_of(&tool(&app, &["audit", "--json"]).await, 1);
    assert_eq!(report["difference_count"], 1, "{report}");
    let difference = &report["differences"][0];
    let fields = ["kind", "product_id", "stored_stock", "stored_by_movements"];
    let expected = json!(["stored_differs_from_movements", product, 5, 8]);
    assert_eq!(json!(fields.map(|field| &difference[field])), expected, "{report}");
    // What it says to do puts it right.
    let said = printed(&tool(&app, &["audit"]).await, 1);
    assert!(said.contains("the sum of its 2 movements is 8: 3 fewer") && said.contains("likely: "), "{said}");
    let (_, statement) = said.split_once("If the inventory is: ").unwrap();
    by_hand(&app, statement.lines().next().unwrap()).await;
    printed(&tool(&app, &["audit"]).await, 0);
}

async fn what_is_left_of_a_deleted_order_is_named(pair: Pair) {
    let app = App::start(pair).await;
    let product = app.create_stocked("Kaos Polos", 10).await;
    let order = app.order_with(product, 2, &[("Idempotency-Key", "a-key")]).await;
    by_hand(&app, "DELETE FROM orders").await;
    let report = json_of(&tool(&app, &["audit", "--json"]).await, 1);
    let kinds: Vec<_> = report["differences"].as_array().unwrap().iter().map(|one| &one["kind"]).collect();
    assert_eq!(json!(kinds), json!(["reserved_differs_from_orders", "key_without_order"]), "{report}");
    assert!(report["differences"][1]["message"].as_str().unwrap().contains(order.id()), "{report}");
}

async fn an_audit_during_a_sale_finds_nothing_and_disturbs_nobody(pair: Pair) {
    const ORDERS: usize = 2_000;
    let app = App::start(pair).await;
    let product = app.create_stocked("Kaos Polos", 500).await;
    let client = (*app).clone();
    let sale = tokio::spawn(async move {
        stream::iter(0..ORDERS)
            .map(|n| {
                let client = client.clone();
                async move {
                    let answer = client.order(product, 1).await;
                    match answer.status {
                        201 if n % 3 == 0 => assert_eq!(client.cancel(answer.id()).await.status, 200),
                        201 if n % 3 == 1 => assert_eq!(client.pay(answer.id()).await.status, 200),
                        201 | 400 => {}
                        _ => panic!("{answer:?}"),
                    }
                }
            })
            .buffer_unordered(32)
            .count()
            .await
    });
    let mut audits = 0;
    while !sale.is_finished() {
        printed(&tool(&app, &["audit"]).await, 0);
        audits += 1;
    }
    assert_eq!(sale.await.unwrap(), ORDERS);
    assert!(audits > 1, "the sale was over before the second audit");
    app.ledger(product, 500).await;
    printed(&tool(&app, &["audit"]).await, 0);
}

async fn an_audit_waits_for_no_lock(pair: Pair) {
    let app = App::start(pair).await;
    app.create_stocked("Kaos Polos", 10).await;
    let hold = app.hold_decisions().await;
    assert!(printed(&tool(&app, &["audit"]).await, 0).contains("1 product, "));
    hold.end().await;
}

#[tokio::test]
async fn a_database_that_cannot_be_audited_is_named() {
    let directory = directory();
    let said = complaint(&run(directory.path(), &["audit"], &[]).await, 1);
    assert!(said.contains("sqlite://antre.db") && said.contains("antre migrate"), "{said}");
    assert!(!directory.path().join("antre.db").exists());
    let url = "mysql://root:secret@127.0.0.1:1/antre";
    let said = complaint(&run(directory.path(), &["audit"], &[("DATABASE_URL", url)]).await, 1);
    assert!(said.contains("mysql://127.0.0.1:1/antre") && said.contains("DATABASE_URL"), "{said}");
    complaint(&run(directory.path(), &["audit", "--jsn"], &[]).await, 2);
}
