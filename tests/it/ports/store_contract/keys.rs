//! Idempotency keys and the aliases of an order.

use super::*;

suite! {
    every_store: [
        one_key_places_one_order,
        a_key_on_another_order_is_refused,
        a_repeated_key_finds_its_order_when_the_product_is_sold_out,
        lanes_that_compete_for_one_key_place_one_order,
        an_order_is_found_under_its_alias,
        a_detached_reuse_of_a_key_is_stored,
    ],
    sql_only: [
        a_key_whose_order_was_deleted_is_free_again,
    ],
}

/// Somebody deletes orders by hand, and leaves the keys.
async fn a_key_whose_order_was_deleted_is_free_again(database: Database) {
    let id = database.product_of(10).await;
    let first = [keyed(order(id, 1), "buyer-1"), keyed(order(id, 1), "buyer-2")];
    assert_eq!(accepted(&database.decide(&first).await), [true; 2]);
    database.by_hand("DELETE FROM orders").await.unwrap();
    // Among others, twice in a batch, and with another total.
    let batch = [order(id, 1), keyed(order(id, 2), "buyer-1"), keyed(order(id, 2), "buyer-1"), order(id, 1)];
    let verdicts = database.decide(&batch).await;
    assert_eq!(accepted(&verdicts), [true, true, false, true]);
    assert!(matches!(&verdicts[2], Verdict::AlreadyPlaced(known) if known.id == batch[1].id));
    let known = database.store.orders_by_key(&[key("buyer-1"), key("buyer-2")]).await.unwrap();
    assert_eq!(
        known.into_iter().map(|(key, order)| (key, order.id)).collect::<Vec<_>>(),
        [(key("buyer-1"), batch[1].id)]
    );
    // Of two at the same time, one gets the key.
    let again = [keyed(order(id, 1), "buyer-2"), keyed(order(id, 1), "buyer-2")];
    let (one, other) = tokio::join!(database.decide(&again[..1]), database.decide(&again[1..]));
    let placed = [&one[0], &other[0]].into_iter().filter(|verdict| is_reserved(verdict)).count();
    assert_eq!(placed, 1, "{one:?} {other:?}");
}

async fn one_key_places_one_order(database: Database) {
    let id = database.product_of(10).await;
    let first = keyed(order(id, 2), "buyer-1");
    let reserved = database.decide(slice::from_ref(&first)).await.remove(0);
    assert!(is_reserved(&reserved));
    let stored = database.store.order(first.id).await.unwrap().unwrap();
    // Again with another id, twice in a batch that has another order; and the first one itself, redelivered.
    let again = || keyed(order(id, 2), "buyer-1");
    let verdicts = database.decide(&[again(), order(id, 1), again(), first.clone()]).await;
    assert_eq!([&verdicts[0], &verdicts[2]], [&Verdict::AlreadyPlaced(stored); 2]);
    assert_eq!(verdicts[3], reserved);
    assert!(is_reserved(&verdicts[1]));
    assert_eq!(database.pieces(id).await, [10, 7, 3]);
    // A new key twice in one batch.
    let [one, two] = [keyed(order(id, 1), "buyer-2"), keyed(order(id, 1), "buyer-2")];
    let verdicts = database.decide(&[one.clone(), two]).await;
    let stored = database.store.order(one.id).await.unwrap().unwrap();
    assert_eq!(verdicts[1], Verdict::AlreadyPlaced(stored));
    // The answer has the current status.
    database.change(&first, PAY).await;
    let paid = database.store.order(first.id).await.unwrap().unwrap();
    assert_eq!(database.decide(&[again()]).await, [Verdict::AlreadyPlaced(paid.clone())]);
    assert_eq!(paid.status(), OrderStatus::Paid);
    // Keys differ by every character.
    let others = ["buyer-10", "Buyer-1", "buyer-1.", &"k".repeat(IdempotencyKey::MAX_LENGTH), "\"\\'%;--"];
    let orders: Vec<_> = others.iter().map(|other| keyed(order(id, 1), other)).collect();
    assert_eq!(accepted(&database.decide(&orders).await), [true; 5]);
    let found = database.store.orders_by_key(&others.map(key)).await.unwrap();
    for (text, order) in others.iter().zip(&orders) {
        assert_eq!(found[&key(text)].id, order.id);
    }
    assert_eq!(found.len(), 5);
    assert!(database.store.orders_by_key(&[key("nobody's")]).await.unwrap().is_empty());
    database.assert_balanced().await;
}

async fn a_key_on_another_order_is_refused(database: Database) {
    let (shirt, hat) = (database.product_of(10).await, database.product_of(10).await);
    let first = keyed(order(shirt, 2), "buyer-1");
    let others = [keyed(order(shirt, 3), "buyer-1"), keyed(order(hat, 2), "buyer-1")];
    let verdicts = database.decide(&[slice::from_ref(&first), &others].concat()).await;
    assert!(is_reserved(&verdicts[0]));
    assert_eq!(verdicts[1..], [KEY_REUSED; 2]);
    assert_eq!(database.decide(&others).await, [KEY_REUSED; 2]);
    assert_eq!(database.pieces(shirt).await, [10, 8, 2]);
    assert_eq!(database.pieces(hat).await, [10, 10, 0]);
    assert_eq!(database.orders_of(shirt).await.len() + database.orders_of(hat).await.len(), 1);
}

async fn a_repeated_key_finds_its_order_when_the_product_is_sold_out(database: Database) {
    let id = database.product_of(2).await;
    let taker = keyed(order(id, 2), "buyer-1");
    assert_eq!(accepted(&database.decide(slice::from_ref(&taker)).await), [true]);
    let stored = database.store.order(taker.id).await.unwrap().unwrap();
    for again in [keyed(order(id, 2), "buyer-1"), keyed(detached_order(id, 2), "buyer-1")] {
        assert_eq!(database.decide(&[again]).await, [Verdict::AlreadyPlaced(stored.clone())]);
    }
    assert_eq!(database.decide(&[keyed(order(id, 1), "buyer-2")]).await, [rejected(0)]);
    // A rejection is not stored while its client waits: the same key may order again when there are pieces.
    database.store.recount(id, stock(3)).await.unwrap().done().unwrap();
    assert_eq!(accepted(&database.decide(&[keyed(order(id, 1), "buyer-2")]).await), [true]);
    // The rejection of a detached order is stored.
    let late = keyed(detached_order(id, 1), "buyer-3");
    assert_eq!(database.decide(slice::from_ref(&late)).await, [rejected(0)]);
    database.store.recount(id, stock(9)).await.unwrap().done().unwrap();
    let stored = database.store.order(late.id).await.unwrap().unwrap();
    assert_eq!(database.decide(&[keyed(order(id, 1), "buyer-3")]).await, [Verdict::AlreadyPlaced(stored)]);
    database.assert_balanced().await;
}

async fn lanes_that_compete_for_one_key_place_one_order(database: Database) {
    const ROUNDS: usize = 15;
    let products =
        [database.product_of(100).await, database.product_of(100).await, database.product_of(100).await];
    for round in 0..ROUNDS {
        // Each lane has both keys, in different orders, so that each waits for a key that another one holds.
        let lanes = products.iter().enumerate().map(|(number, id)| {
            let mut keys = [format!("a{round}"), format!("b{round}")];
            keys.rotate_left(number % 2);
            let batch = keys.map(|text| keyed(order(*id, 1), &text));
            let store = database.store.clone();
            tokio::spawn(async move { decide(&*store, &batch).await })
        });
        let verdicts: Vec<_> = join_all(lanes).await.into_iter().flat_map(Result::unwrap).collect();
        let accepted = verdicts.iter().filter(|verdict| is_reserved(verdict)).count();
        let refused = verdicts.iter().filter(|verdict| **verdict == KEY_REUSED).count();
        assert_eq!((accepted, refused), (2, 4), "{verdicts:?}");
    }
    let mut orders = 0;
    for id in products {
        orders += database.orders_of(id).await.len();
    }
    assert_eq!(orders, 2 * ROUNDS);
    database.assert_balanced().await;
}

async fn an_order_is_found_under_its_alias(database: Database) {
    let id = database.product_of(10).await;
    let first = keyed(order(id, 2), "buyer-1");
    let (in_time, late) = (keyed(order(id, 2), "buyer-1"), keyed(detached_order(id, 2), "buyer-1"));
    let batch = [first.clone(), in_time.clone(), late.clone()];
    let verdicts = database.decide(&batch).await;
    let stored = database.store.order(first.id).await.unwrap().unwrap();
    assert_eq!(verdicts[1..], [1, 2].map(|_| Verdict::AlreadyPlaced(stored.clone())));
    // Also when it is redelivered.
    database.decide(&batch).await;
    assert_eq!(database.store.order(late.id).await.unwrap(), Some(stored.clone()));
    // The client of this one got the stored order as its answer, and never this id.
    assert_eq!(database.store.order(in_time.id).await.unwrap(), None);
    let ids = [first.id, late.id, in_time.id, SystemClock.order_id()];
    let found = database.store.orders_by_id(&ids).await.unwrap();
    assert_eq!(found, [(first.id, stored.clone()), (late.id, stored.clone())].into());
    assert_eq!(database.orders_of(id).await, [stored]);
    assert_eq!(database.pieces(id).await, [10, 8, 2]);
}

async fn a_detached_reuse_of_a_key_is_stored(database: Database) {
    let id = database.product_of(10).await;
    let (first, late) = (keyed(order(id, 2), "buyer-1"), keyed(detached_order(id, 3), "buyer-1"));
    for _ in 0..2 {
        assert_eq!(database.decide(&[first.clone(), late.clone()]).await[1], KEY_REUSED);
        let stored = database.store.order(late.id).await.unwrap().unwrap();
        assert_eq!(stored.state, OrderState::Rejected(Rejection::KeyReused));
        assert_eq!(
            database.store.orders_by_key(&[key("buyer-1")]).await.unwrap()[&key("buyer-1")].id,
            first.id
        );
    }
    database.assert_balanced().await;
}
