//! `Prefer`: how an order is asked for without waiting, or waiting less.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::{NO_ORDER, is_moved, is_refused, reserved};
use crate::support::harness::{Answer, App, Pair, eventually};

on_both_pairs!(
    a_client_that_does_not_wait_finds_the_verdict,
    a_client_may_wait_less_but_not_longer,
    a_change_is_decided_after_its_client_timed_out,
    unknown_preferences_are_ignored,
    an_error_also_names_the_applied_preferences,
);

async fn a_client_that_does_not_wait_finds_the_verdict(pair: Pair) {
    let app = App::start(pair).await;
    let product = app.create_stocked("Kaos Polos", 5).await;
    let order = async |total| {
        let answer = app.order_with(product, total, &[("Prefer", "respond-async")]).await;
        let applied = (answer.status, &answer.data()["status"], answer.header("preference-applied"));
        assert_eq!(applied, (202, &json!("pending"), "respond-async"), "{answer:?}");
        answer
    };
    for (total, left, verdict) in [(3, 2, "reserved"), (3, 2, "rejected"), (2, 0, "reserved")] {
        let placed = order(total).await;
        let found = app.verdict(placed.header("location")).await;
        assert_eq!((&found["id"], &found["status"]), (&json!(placed.id()), &json!(verdict)));
        if verdict == "rejected" {
            assert_eq!(
                (&found["reason"], &found["available_stock"]),
                (&json!("insufficient_stock"), &json!(left))
            );
        }
        assert_eq!(app.inventory(product).await, [5, left, 5 - left]);
    }
    // Nothing is left: without a key that is said at once, and costs no row. With one, only the lane knows.
    eventually("the gate stays open", async || {
        let answer = app.order_with(product, 1, &[("Prefer", "respond-async")]).await;
        (answer.status == 400).then(|| assert_eq!(answer.data()["available_stock"], 0))
    })
    .await;
    let keyed = async |key| {
        let headers = [("Idempotency-Key", key), ("Prefer", "respond-async")];
        let placed = app.order_with(product, 1, &headers).await;
        assert_eq!(app.verdict(placed.header("location")).await["status"], "rejected");
    };
    // Behind those that were queued while the gate was open: once it is decided, they are.
    keyed("a-key").await;
    let stored = app.all("/api/orders?status=rejected").await.len();
    for _ in 0..10 {
        assert_eq!(app.order_with(product, 1, &[("Prefer", "respond-async")]).await.status, 400);
    }
    keyed("another-key").await;
    // What is certainly wrong is answered at once.
    let answer = app.order_with(product + 1, 1, &[("Prefer", "respond-async")]).await;
    assert_eq!((answer.status, answer.reason()), (404, "product_not_found"));
    assert_eq!(app.all("/api/orders?status=rejected").await.len(), stored + 1);
}

async fn a_client_may_wait_less_but_not_longer(pair: Pair) {
    let app = App::start_with(pair, &[("ORDER_TIMEOUT", "2s")]).await;
    let product = app.create_stocked("Kaos Polos", 100).await;
    let ask = async |prefer: &str| {
        let asked = Instant::now();
        let answer = app.order_with(product, 1, &[("Prefer", prefer)]).await;
        let applied = answer.header("preference-applied").to_owned();
        (answer.status, applied, asked.elapsed())
    };
    for (prefer, applied, status) in [
        ("wait=0", "wait=0", 202),
        ("wait=1", "wait=1", 201),
        ("wait=2", "wait=2", 201),
        ("wait=100", "wait=2", 201),
        ("wait=4294967295", "wait=2", 201),
        ("respond-async, wait=100", "respond-async, wait=2", 201),
        ("respond-async, wait=0", "respond-async, wait=0", 202),
    ] {
        let (found, told, _) = ask(prefer).await;
        assert_eq!((found, told.as_str()), (status, applied), "{prefer}");
    }
    app.lane_served(product).await;
    assert_eq!(app.reservations(product).await.reserved, 7);

    // Nobody decides: the longer the client waits, the later it gets its answer.
    let hold = app.hold_decisions().await;
    for (prefer, applied, seconds) in [
        ("wait=0", "wait=0", 0..1),
        ("respond-async", "respond-async", 0..1),
        ("wait=1", "wait=1", 1..2),
        ("respond-async, wait=1", "respond-async, wait=1", 1..2),
        ("wait=60", "wait=2", 2..4),
    ] {
        let (status, told, took) = ask(prefer).await;
        assert_eq!((status, told.as_str()), (202, applied), "{prefer}");
        assert!(seconds.contains(&took.as_secs()), "{prefer}: {took:?}");
    }
    hold.end().await;
    app.lane_served(product).await;
    assert_eq!(app.reservations(product).await.reserved, 12);
}

async fn a_change_is_decided_after_its_client_timed_out(pair: Pair) {
    let app = App::start_with(pair, &[("ORDER_TIMEOUT", "1s")]).await;
    let product = app.create_stocked("Kaos Polos", 10).await;
    let [paid, cancelled, late] = [
        reserved(&app, product, 1).await,
        reserved(&app, product, 2).await,
        reserved(&app, product, 3).await,
    ];
    let hold = app.hold_decisions().await;
    let is_in_line = |answer: &Answer, order: &str, applied: Option<&str>| {
        let found = (answer.status, answer.id(), &answer.data()["status"]);
        assert_eq!(found, (202, order, &json!("reserved")), "{answer:?}");
        assert_eq!(answer.header("location"), format!("/api/orders/{order}"));
        let told = answer.headers.get("preference-applied").map(|value| value.to_str().unwrap());
        assert_eq!(told, applied);
    };
    let not_to_wait = [("Prefer", "respond-async")];
    is_in_line(&app.change(&paid, "payment", &not_to_wait).await, &paid, Some("respond-async"));
    is_in_line(
        &app.change(&cancelled, "cancellation", &[("Prefer", "wait=0")]).await,
        &cancelled,
        Some("wait=0"),
    );
    // The first in the lane decides, whatever comes behind it.
    is_in_line(&app.change(&paid, "cancellation", &not_to_wait).await, &paid, Some("respond-async"));
    let asked = Instant::now();
    is_in_line(&app.pay(&late).await, &late, None);
    assert!(asked.elapsed() >= Duration::from_secs(1));
    assert_eq!(app.inventory(product).await, [10, 4, 6]);
    hold.end().await;

    for (order, status) in [(&paid, "paid"), (&cancelled, "cancelled"), (&late, "paid")] {
        eventually("it stays reserved", async || {
            let found = app.get(&format!("/api/orders/{order}")).await;
            (found.data()["status"] != "reserved").then(|| assert_eq!(found.data()["status"], status))
        })
        .await;
    }
    assert_eq!(app.inventory(product).await, [6, 6, 0]);
    // What is final is known at once, however long one prefers to wait.
    let again = app.change(&paid, "payment", &not_to_wait).await;
    is_moved(&again, &paid, "paid");
    is_refused(&app.change(&paid, "cancellation", &not_to_wait).await, "order_already_paid", "paid");
}

async fn unknown_preferences_are_ignored(pair: Pair) {
    let app = App::start(pair).await;
    let product = app.create_stocked("Kaos Polos", 1_000).await;
    for prefer in [
        "",
        ",",
        ";",
        "=",
        "return=minimal",
        "handling=strict",
        "wait",
        "wait=",
        "wait=-1",
        "wait=1.5",
        "wait=x",
        "wait=+3",
        "wait=\"3",
        "foo=\"bar, respond-async, wait=3\"",
        "respond-async-please",
        "x=respond-async",
        "\"respond-async\"",
        "wait=\u{e9}",
        "return=representation; wait=0",
    ] {
        let answer = app.order_with(product, 1, &[("Prefer", prefer)]).await;
        let applied = answer.headers.get("preference-applied");
        assert_eq!((answer.status, applied), (201, None), "{prefer}: {answer:?}");
        let paid = app.change(answer.id(), "payment", &[("Prefer", prefer)]).await;
        assert_eq!((paid.status, paid.headers.get("preference-applied")), (200, None), "{prefer}");
    }
    // Beside those that are known they do no harm.
    for (prefer, applied) in [
        ("return=minimal, wait=5, foo; bar=\"baz\"", "wait=5"),
        ("WAIT=5", "wait=5"),
        ("foo,,wait = 5", "wait=5"),
        ("foo=\"a, wait=3; \\\", wait=4\"; bar, wait=5", "wait=5"),
        ("wait=99999999999999999999", "wait=10"),
    ] {
        let answer = app.order_with(product, 1, &[("Prefer", prefer)]).await;
        assert_eq!((answer.status, answer.header("preference-applied")), (201, applied), "{prefer}");
    }
}

async fn an_error_also_names_the_applied_preferences(pair: Pair) {
    // Not whole seconds: the answer rounds up what is granted.
    let app = App::start_with(pair, &[("ORDER_TIMEOUT", "2500ms")]).await;
    let product = app.create_stocked("Kaos Polos", 5).await;
    let [paid, cancelled] = [reserved(&app, product, 1).await, reserved(&app, product, 1).await];
    is_moved(&app.pay(&paid).await, &paid, "paid");
    is_moved(&app.cancel(&cancelled).await, &cancelled, "cancelled");
    let key = ("Idempotency-Key", "a-key");
    assert_eq!(app.order_with(product, 1, &[key]).await.status, 201);
    for (prefer, applied) in [("wait=100", "wait=3"), ("wait=1, respond-async", "respond-async, wait=1")] {
        let wanted = ("Prefer", prefer);
        for (answer, status, reason) in [
            (app.order_with(product, 100, &[wanted]).await, 400, "insufficient_stock"),
            (app.order_with(product + 1, 1, &[wanted]).await, 404, "product_not_found"),
            (app.order_with(product, 2, &[wanted, key]).await, 422, "idempotency_key_reused"),
            (app.change(&cancelled, "payment", &[wanted]).await, 409, "order_not_reserved"),
            (app.change(&paid, "cancellation", &[wanted]).await, 409, "order_already_paid"),
            (app.change(NO_ORDER, "payment", &[wanted]).await, 404, "order_not_found"),
        ] {
            let found = (answer.status, answer.reason(), answer.header("preference-applied"));
            assert_eq!(found, (status, reason, applied), "{answer:?}");
        }
        // What is no request waits for nothing.
        for answer in [
            app.order_with(product, 0, &[wanted]).await,
            app.order_with(product, 1, &[wanted, ("Idempotency-Key", "")]).await,
            app.change("1", "payment", &[wanted]).await,
        ] {
            assert_eq!((answer.status, answer.headers.get("preference-applied")), (400, None), "{answer:?}");
        }
    }
}
