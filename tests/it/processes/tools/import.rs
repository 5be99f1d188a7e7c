//! `antre import`: products from a file, once, and never half a file.

use std::fs;

use serde_json::{Value, json};

use super::{json_of, printed, tool};
use crate::support::harness::{App, Pair};

on_both_pairs!(
    products_are_created_with_their_stock_and_can_be_sold,
    a_line_that_is_wrong_stops_all,
    what_exists_is_changed_only_by_a_recount,
    two_imports_at_once_create_each_product_once,
    an_archived_product_stays_as_it_is,
);

async fn import(app: &App, text: &str, flags: &[&str], code: i32) -> Value {
    fs::write(app.file("products.csv"), text).unwrap();
    json_of(&tool(app, &[&["import", "products.csv", "--json"], flags].concat()).await, code)
}

#[track_caller]
fn did(report: &Value, expected: [u64; 3]) {
    let found = ["created", "recounted", "unchanged"].map(|field| report[field].as_u64().unwrap());
    assert_eq!(found, expected, "{report}");
}

async fn id_of(app: &App, sku: &str) -> Option<u64> {
    app.get(&format!("/api/products?sku={sku}")).await.data()[0]["id"].as_u64()
}

const FILE: &str = "sku,name,stock\nKAOS,\"Kaos, polos\",100\nTOPI,Topi,0\n";

async fn products_are_created_with_their_stock_and_can_be_sold(pair: Pair) {
    let app = App::start(pair).await;
    did(&import(&app, FILE, &["--dry-run"], 0).await, [2, 0, 0]);
    assert_eq!(app.all("/api/products").await.len(), 0);
    did(&import(&app, FILE, &[], 0).await, [2, 0, 0]);
    did(&import(&app, FILE, &[], 0).await, [0, 0, 2]);
    let shirt = id_of(&app, "KAOS").await.unwrap();
    assert_eq!(app.get(&format!("/api/products/{shirt}")).await.data()["name"], "Kaos, polos");
    assert_eq!(app.inventory(shirt).await, [100, 100, 0]);
    assert_eq!(app.order(shirt, 100).await.status, 201);
    assert_eq!(app.order(shirt, 1).await.status, 400);
    assert_eq!(app.order(id_of(&app, "TOPI").await.unwrap(), 1).await.status, 400);
    assert!(printed(&tool(&app, &["import", "products.csv"]).await, 0).contains("2 products as in the file"));
    printed(&tool(&app, &["audit"]).await, 0);
}

async fn a_line_that_is_wrong_stops_all(pair: Pair) {
    let app = App::start(pair).await;
    let text = "sku,name,stock\nA,Kaos,1\nB,,1\nC,Topi,many\n";
    let report = import(&app, text, &[], 1).await;
    let lines: Vec<_> = report["errors"].as_array().unwrap().iter().map(|error| &error["line"]).collect();
    assert_eq!(json!(lines), json!([3, 4]), "{report}");
    assert_eq!(app.all("/api/products").await.len(), 0);
    let said = printed(&tool(&app, &["import", "products.csv"]).await, 1);
    assert!(said.contains("line 4: the stock \"many\"") && said.contains("nothing was written"), "{said}");
    let output = tool(&app, &["import", "missing.csv"]).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("missing.csv"), "{said}");
}

async fn what_exists_is_changed_only_by_a_recount(pair: Pair) {
    let app = App::start(pair).await;
    import(&app, FILE, &[], 0).await;
    let (shirt, cap) = (id_of(&app, "KAOS").await.unwrap(), id_of(&app, "TOPI").await.unwrap());
    assert_eq!(app.order(shirt, 60).await.status, 201);
    assert_eq!(app.order(cap, 1).await.status, 400);
    let text = "sku,name,stock\nKAOS,Kaos,50\nTOPI,Topi,3\n";
    let report = import(&app, text, &[], 1).await;
    did(&report, [0, 0, 0]);
    let kinds: Vec<_> = report["differences"].as_array().unwrap().iter().map(|one| &one["kind"]).collect();
    assert_eq!(json!(kinds), json!(["name", "stock", "stock"]), "{report}");
    did(&import(&app, text, &["--recount", "--dry-run"], 1).await, [0, 1, 0]);
    assert_eq!(app.inventory(cap).await, [0, 0, 0]);
    // The shirt's stock cannot be less than what is reserved.
    let report = import(&app, text, &["--recount"], 1).await;
    did(&report, [0, 1, 0]);
    assert_eq!(report["differences"][1]["kind"], "below_reserved", "{report}");
    assert_eq!(app.inventory(shirt).await, [100, 40, 60]);
    assert_eq!(app.order(cap, 3).await.status, 201, "no API still believes that it is sold out");
    did(&import(&app, "sku,name,stock\nKAOS,Kaos,60\n", &["--recount"], 0).await, [0, 1, 0]);
    assert_eq!(app.inventory(shirt).await, [60, 0, 60]);
    printed(&tool(&app, &["audit"]).await, 0);
}

async fn two_imports_at_once_create_each_product_once(pair: Pair) {
    const PRODUCTS: usize = 300;
    let app = App::start(pair).await;
    let lines: String =
        (0..PRODUCTS).map(|number| format!("SKU-{number},Product {number},{number}\n")).collect();
    fs::write(app.file("products.csv"), format!("sku,name,stock\n{lines}")).unwrap();
    let arguments = ["import", "products.csv", "--json"];
    let (one, other) = tokio::join!(tool(&app, &arguments), tool(&app, &arguments));
    let reports = [json_of(&one, 0), json_of(&other, 0)];
    let sum = |field: &str| reports.iter().map(|report| report[field].as_u64().unwrap()).sum::<u64>();
    assert_eq!((sum("created"), sum("unchanged")), (PRODUCTS as u64, PRODUCTS as u64), "{reports:?}");
    assert_eq!(app.all("/api/products").await.len(), PRODUCTS);
}

async fn an_archived_product_stays_as_it_is(pair: Pair) {
    let app = App::start(pair).await;
    import(&app, FILE, &[], 0).await;
    let shirt = id_of(&app, "KAOS").await.unwrap();
    assert_eq!(app.archive(shirt).await.status, 200);
    let text = "sku,name,stock\nKAOS,Kaos,7\nTOPI,Topi,0\n";
    let report = import(&app, text, &["--recount"], 1).await;
    did(&report, [0, 0, 1]);
    assert_eq!(report["differences"].as_array().unwrap().len(), 1, "{report}");
    assert_eq!(report["differences"][0]["kind"], "archived");
    assert_eq!(app.inventory(shirt).await, [100, 100, 0]);
    printed(&tool(&app, &["audit"]).await, 0);
}
