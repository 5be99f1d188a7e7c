//! References of payments, late payments, extensions, returns, and orders that are given up while they are pending.

use super::*;

on_both_pairs!(
    a_second_payment_is_told_apart_from_one_that_is_sent_twice,
    what_a_payment_says_is_checked,
    a_late_payment_gets_the_pieces_that_are_still_there,
    an_extension_holds_for_longer,
    a_paid_order_comes_back,
    an_order_that_is_given_up_never_gets_pieces,
);

async fn a_second_payment_is_told_apart_from_one_that_is_sent_twice(pair: Pair) {
    let app = App::start(pair).await;
    let product = app.create_stocked("Kaos Polos", 10).await;
    let (named, unnamed) = (reserved(&app, product, 3).await, reserved(&app, product, 2).await);
    let paid = app.pay_by(&named, "tx-1").await;
    is_moved(&paid, &named, "paid");
    assert_eq!(paid.data()["payment_reference"], "tx-1");
    assert!(paid.data()["paid_at"].is_string(), "{paid:?}");
    for again in [app.pay_by(&named, "tx-1").await, app.pay(&named).await] {
        assert_eq!((again.status, again.data()), (200, paid.data()));
    }
    let double = app.pay_by(&named, "tx-2").await;
    is_refused(&double, "paid_with_another_reference", "paid");
    assert_eq!(double.data()["payment_reference"], "tx-1");
    is_moved(&app.pay(&unnamed).await, &unnamed, "paid");
    let double = app.pay_by(&unnamed, "tx-3").await;
    is_refused(&double, "paid_with_another_reference", "paid");
    assert!(double.data().get("payment_reference").is_none(), "nobody knows it");
    assert_eq!(app.inventory(product).await, [5, 5, 0]);
    // At the same time: one of them counts.
    let order = reserved(&app, product, 1).await;
    let (one, other) = join(app.pay_by(&order, "tx-4"), app.pay_by(&order, "tx-5")).await;
    let mut found = [one.status, other.status];
    found.sort_unstable();
    assert_eq!(found, [200, 409], "{one:?} {other:?}");
}

async fn what_a_payment_says_is_checked(pair: Pair) {
    let app = App::start(pair).await;
    let product = app.create_stocked("Kaos Polos", 10).await;
    let order = reserved(&app, product, 1).await;
    let (payment, back) = (format!("/api/orders/{order}/payment"), format!("/api/orders/{order}/return"));
    for reference in [json!(""), json!("a b"), json!("é"), json!(7), json!("x".repeat(129)), json!(["tx"])] {
        let answer = app.post(&payment, json!({"reference": reference})).await;
        assert_eq!((answer.status, answer.reason()), (400, "invalid_reference"), "{reference}: {answer:?}");
    }
    for (path, body, reason) in [
        (&payment, json!({"referenz": "tx-1"}), "invalid_field"),
        (&payment, json!([]), "invalid_body"),
        (&back, json!({}), "invalid_restock"),
        (&back, json!({"restock": "yes"}), "invalid_restock"),
        (&back, json!({"restock": null}), "invalid_restock"),
        (&back, json!({"restock": true, "total": 1}), "invalid_field"),
    ] {
        let answer = app.post(path, body).await;
        assert_eq!((answer.status, answer.reason()), (400, reason), "{answer:?}");
    }
    for path in [&payment, &back] {
        let answer = app.send(Method::POST, path, |request| request.body("reference=tx-1")).await;
        assert_eq!((answer.status, answer.reason()), (415, "unsupported_media_type"), "{answer:?}");
    }
    assert_eq!(app.inventory(product).await, [10, 9, 1]);
    for none in [json!({"reference": null}), json!(null), json!({})] {
        let answer = app.post(&payment, none).await;
        is_moved(&answer, &order, "paid");
    }
}

async fn a_late_payment_gets_the_pieces_that_are_still_there(pair: Pair) {
    let app = App::start_with(pair, &[("RESERVATION_TTL", "1s")]).await;
    let product = app.create_stocked("Kaos Polos", 4).await;
    let (first, second) = (reserved(&app, product, 2).await, reserved(&app, product, 2).await);
    eventually("they do not expire", async || (app.inventory(product).await == [4, 4, 0]).then_some(()))
        .await;
    let paid = app.pay_by(&first, "tx-1").await;
    is_moved(&paid, &first, "paid");
    assert_eq!(app.inventory(product).await, [2, 2, 0]);
    let other = reserved(&app, product, 1).await;
    is_moved(&app.pay(&other).await, &other, "paid");
    // One piece is left, and the order asks for two.
    is_refused(&app.pay_by(&second, "tx-2").await, "order_expired", "expired");
    assert_eq!(app.stock(product, 10).await.status, 200);
    is_refused(&app.pay_by(&second, "tx-2").await, "order_expired", "expired");
    let found = app.get(&format!("/api/orders/{second}")).await;
    assert_eq!(
        (&found.data()["status"], &found.data()["payment_reference"]),
        (&json!("expired"), &json!("tx-2"))
    );
    assert_eq!(app.inventory(product).await, [10, 10, 0]);
}

async fn an_extension_holds_for_longer(pair: Pair) {
    let app = App::start_with(pair, &[("RESERVATION_TTL", "2s"), ("MAX_HOLD", "4s")]).await;
    let product = app.create_stocked("Kaos Polos", 5).await;
    let (order, other) = (reserved(&app, product, 2).await, reserved(&app, product, 1).await);
    let began = Instant::now();
    let time = |answer: &Answer, name: &str| -> jiff::Timestamp {
        answer.data()[name].as_str().unwrap().parse().unwrap()
    };
    tokio::time::sleep(Duration::from_millis(1_000)).await;
    let mut last = None;
    for _ in 0..3 {
        let extended = app.extend(&order).await;
        is_moved(&extended, &order, "reserved");
        let (created, end) = (time(&extended, "created_at"), time(&extended, "expires_at"));
        assert!(end.duration_since(created) <= jiff::SignedDuration::from_secs(4));
        assert!(last.is_none_or(|last| end >= last));
        last = Some(end);
    }
    eventually("the other does not expire", async || {
        (app.inventory(product).await == [5, 3, 2]).then_some(())
    })
    .await;
    is_refused(&app.extend(&other).await, "order_not_reserved", "expired");
    eventually("it does not expire", async || (app.inventory(product).await == [5, 5, 0]).then_some(()))
        .await;
    assert!(began.elapsed() >= Duration::from_millis(2_900), "{:?}", began.elapsed());
    let paid = reserved(&app, product, 1).await;
    is_moved(&app.pay(&paid).await, &paid, "paid");
    is_refused(&app.extend(&paid).await, "order_already_paid", "paid");
}

async fn a_paid_order_comes_back(pair: Pair) {
    let app = App::start(pair).await;
    let product = app.create_stocked("Kaos Polos", 5).await;
    let [whole, broken] = [reserved(&app, product, 2).await, reserved(&app, product, 3).await];
    is_refused(&app.take_back(&whole, true).await, "order_not_paid", "reserved");
    for order in [&whole, &broken] {
        is_moved(&app.pay_by(order, "tx-1").await, order, "paid");
    }
    assert_eq!(app.order(product, 1).await.status, 400);
    is_moved(&app.take_back(&whole, true).await, &whole, "returned");
    let next = reserved(&app, product, 2).await;
    for restock in [false, true] {
        is_moved(&app.take_back(&broken, restock).await, &broken, "returned");
        assert_eq!(app.inventory(product).await, [2, 0, 2], "said once");
    }
    for order in [&whole, &broken] {
        is_refused(&app.pay_by(order, "tx-1").await, "order_not_reserved", "returned");
        is_refused(&app.cancel(order).await, "order_not_reserved", "returned");
        is_refused(&app.extend(order).await, "order_not_reserved", "returned");
    }
    is_moved(&app.cancel(&next).await, &next, "cancelled");
    is_refused(&app.take_back(&next, true).await, "order_not_paid", "cancelled");
    // The pieces do not fit into the stock.
    let order = reserved(&app, product, 1).await;
    is_moved(&app.pay(&order).await, &order, "paid");
    assert_eq!(app.stock(product, 2_147_483_647).await.status, 200);
    is_refused(&app.take_back(&order, true).await, "stock_too_large", "paid");
    is_moved(&app.take_back(&order, false).await, &order, "returned");
}

async fn an_order_that_is_given_up_never_gets_pieces(pair: Pair) {
    let app = App::start(pair).await;
    let product = app.create_stocked("Kaos Polos", 5).await;
    reserved(&app, product, 1).await;
    let hold = app.hold_decisions().await;
    let placed =
        app.order_with(product, 2, &[("Prefer", "respond-async"), ("Idempotency-Key", "give-up-1")]).await;
    assert_eq!(placed.status, 202);
    // In the embedded mode a hold keeps the only writer of the file: there the client races with the lane.
    let hold = match pair {
        Pair::Servers => Some(hold),
        Pair::Embedded => {
            hold.end().await;
            None
        }
    };
    for _ in 0..2 {
        let cancelled = app.cancel(placed.id()).await;
        is_moved(&cancelled, placed.id(), "cancelled");
        assert!(hold.is_none() || cancelled.data()["expires_at"].is_null(), "{cancelled:?}");
    }
    assert_eq!(app.verdict(placed.header("location")).await["status"], "cancelled");
    is_refused(&app.pay(placed.id()).await, "order_not_reserved", "cancelled");
    if let Some(hold) = hold {
        hold.end().await;
    }
    // Its turn comes, and what it asked for is known then.
    eventually("it has no product", async || {
        let found = app.get(&format!("/api/orders/{}", placed.id())).await;
        assert_eq!(found.data()["status"], "cancelled");
        (found.data()["product_id"] == product).then_some(())
    })
    .await;
    let again = app.order_with(product, 2, &[("Idempotency-Key", "give-up-1")]).await;
    is_refused(&again, "order_not_reserved", "cancelled");
    assert_eq!(app.inventory(product).await, [5, 4, 1]);
    assert_eq!(app.all("/api/orders?status=cancelled").await.len(), 1);
}
