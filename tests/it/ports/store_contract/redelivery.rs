//! Orders that are decided again: the stored verdict counts.

use super::*;

suite! {
    every_store: [
        a_redelivered_batch_gets_the_stored_verdicts,
        a_redelivered_reservation_is_not_rejected_when_its_product_is_sold_out,
        a_partly_redelivered_batch_decides_only_the_new_orders,
        an_order_that_is_twice_in_a_batch_is_decided_once,
        a_detached_rejection_is_stored,
        a_detached_copy_stores_the_rejection_of_the_first,
    ],
    sql_only: [
        a_later_status_does_not_change_the_verdict,
    ],
}

async fn a_redelivered_batch_gets_the_stored_verdicts(database: Database) {
    let (shirt, hat) = (database.product_of(5).await, database.product_of(5).await);
    let batch =
        [order(shirt, 3), order(hat, 5), detached_order(shirt, 9), detached_order(hat, 1), order(shirt, 1)];
    let verdicts = database.decide(&batch).await;
    assert_eq!(accepted(&verdicts), [true, true, false, false, true]);
    let (orders, pieces) = (database.orders_of(shirt).await, database.pieces(shirt).await);
    for _ in 0..3 {
        assert_eq!(database.decide(&batch).await, verdicts);
    }
    // In another batch, in another order, with another time to live, and after more pieces came.
    database.store.recount(shirt, stock(100)).await.unwrap().done().unwrap();
    let turned: Vec<NewOrder> = batch.iter().rev().cloned().collect();
    let again = database.store.decide(&commands(&turned), NO_TIME).await.unwrap().verdicts;
    assert_eq!(again, verdicts.iter().rev().cloned().collect::<Vec<_>>());
    assert_eq!(database.orders_of(shirt).await, orders);
    assert_eq!(database.pieces(shirt).await, [100, 96, pieces[2]]);
    database.assert_balanced().await;
}

async fn a_redelivered_reservation_is_not_rejected_when_its_product_is_sold_out(database: Database) {
    let (shirt, hat) = (database.product_of(5).await, database.product_of(5).await);
    let taker = order(shirt, 5);
    let reserved = database.decide(slice::from_ref(&taker)).await;
    assert_eq!(accepted(&reserved), [true]);
    // Alone; with orders that are rejected; with one that is accepted.
    assert_eq!(database.decide(slice::from_ref(&taker)).await, reserved);
    for other in [order(shirt, 1), order(hat, 1), detached_order(shirt, 1), order(stranger(), 1)] {
        let verdicts = database.decide(&[other.clone(), taker.clone()]).await;
        assert_eq!(verdicts[1], reserved[0]);
        assert_eq!(is_reserved(&verdicts[0]), other.lines.first().product_id == hat);
    }
    assert_eq!(database.pieces(shirt).await, [5, 0, 5]);
    assert_eq!(database.pieces(hat).await, [5, 4, 1]);
    database.assert_balanced().await;
}

async fn a_partly_redelivered_batch_decides_only_the_new_orders(database: Database) {
    let (shirt, hat) = (database.product_of(5).await, database.product_of(2).await);
    let old = [order(shirt, 2), order(hat, 2), detached_order(hat, 1)];
    let stored = database.decide(&old).await;
    assert_eq!(accepted(&stored), [true, true, false]);
    let new = [order(shirt, 3), order(hat, 1), order(shirt, 1)];
    let mixed = [&old[0], &new[0], &old[1], &new[1], &old[2], &new[2]].map(Clone::clone);
    let verdicts = database.decide(&mixed).await;
    assert_eq!([0, 2, 4].map(|index| verdicts[index].clone()), stored[..]);
    assert!(is_reserved(&verdicts[1]), "{verdicts:?}");
    assert_eq!([3, 5].map(|index| verdicts[index].clone()), [rejected(0), rejected(0)]);
    assert_eq!(database.pieces(shirt).await, [5, 0, 5]);
    assert_eq!(database.pieces(hat).await, [2, 0, 2]);
    database.assert_balanced().await;
    assert_eq!(database.decide(&mixed).await, verdicts);
}

async fn an_order_that_is_twice_in_a_batch_is_decided_once(database: Database) {
    let id = database.product_of(5).await;
    // There would be enough pieces for the second one.
    let twice = order(id, 2);
    let verdicts = database.decide(&[twice.clone(), twice]).await;
    assert!(is_reserved(&verdicts[0]) && verdicts[0] == verdicts[1], "{verdicts:?}");
    assert_eq!(database.pieces(id).await, [5, 3, 2]);
    // There would not be enough.
    let twice = order(id, 2);
    let verdicts = database.decide(&[twice.clone(), order(id, 100), twice]).await;
    assert!(is_reserved(&verdicts[0]) && verdicts[0] == verdicts[2], "{verdicts:?}");
    assert_eq!(database.pieces(id).await, [5, 1, 4]);
    // Rejected twice, with a waiting client and detached.
    for twice in [order(id, 2), detached_order(id, 2)] {
        assert_eq!(database.decide(&[twice.clone(), twice]).await, [rejected(1); 2]);
    }
    // An order between the two takes what is left.
    let twice = order(id, 2);
    let verdicts = database.decide(&[twice.clone(), order(id, 1), twice]).await;
    assert_eq!([0, 2].map(|index| verdicts[index].clone()), [rejected(1); 2]);
    assert_eq!(database.orders_of(id).await.len(), 4);
    database.assert_balanced().await;
}

async fn a_detached_rejection_is_stored(database: Database) {
    let id = database.product_of(3).await;
    let (in_time, late) = (order(id, 4), detached_order(id, 4));
    assert_eq!(database.decide(&[in_time.clone(), late.clone()]).await, [rejected(3); 2]);
    assert_eq!(database.store.order(in_time.id).await.unwrap(), None);
    let state = OrderState::Rejected(Rejection::InsufficientStock { product_id: id, available: 3 });
    let expected = Order { id: late.id, lines: Some(late.lines.clone()), buyer: None, payment: None, state };
    assert_eq!(database.store.order(late.id).await.unwrap(), Some(expected));
    assert_eq!(database.pieces(id).await, [3, 3, 0]);
    // It stays rejected with the same reason, although now there are enough pieces.
    database.store.recount(id, stock(10)).await.unwrap().done().unwrap();
    assert_eq!(database.decide(&[late]).await, [rejected(3)]);
    assert_eq!(database.pieces(id).await, [10, 10, 0]);
    // The one that is not stored is decided as a new order.
    assert_eq!(accepted(&database.decide(&[in_time]).await), [true]);
    database.assert_balanced().await;
}

/// The client of an order stops waiting: its API submits it again as detached, and one batch has both copies.
async fn a_detached_copy_stores_the_rejection_of_the_first(database: Database) {
    let id = database.product_of(3).await;
    let first = order(id, 4);
    let copy = NewOrder { reply: ReplyMode::Detached, ..first.clone() };
    let batch = [first.clone(), copy.clone(), copy.clone(), order(id, 1)];
    let verdicts = database.decide(&batch).await;
    assert_eq!(verdicts[..3], [rejected(3); 3]);
    assert_eq!(Verdict::on_stored(&database.store.order(first.id).await.unwrap().unwrap()), rejected(3));
    assert_eq!(database.decide(&[copy]).await, [rejected(3)], "the stored verdict, not what is left now");
    assert_eq!(database.pieces(id).await, [3, 2, 1]);
}

async fn a_later_status_does_not_change_the_verdict(database: Database) {
    let id = database.product_of(3).await;
    let paid = order(id, 2);
    let verdict = database.decide(slice::from_ref(&paid)).await;
    for word in ["paid", "cancelled", "expired"] {
        database.by_hand(&format!("UPDATE orders SET status = '{word}'")).await.unwrap();
        assert_eq!(database.decide(slice::from_ref(&paid)).await, verdict);
        assert_eq!(database.store.order(paid.id).await.unwrap().unwrap().status().as_str(), word);
    }
    assert_eq!(database.pieces(id).await, [3, 1, 2]);
}
