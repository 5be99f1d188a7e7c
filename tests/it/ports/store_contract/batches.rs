//! New orders: what a batch of them gets, and what it writes.

use super::*;

suite! {
    every_store: [
        a_stored_order_has_what_was_ordered,
        first_come_first_served_in_every_lane_of_a_batch,
        an_order_gets_all_its_pieces_or_none,
        an_unknown_product_is_rejected_and_the_others_are_decided,
        an_empty_batch_returns_no_verdicts,
        the_largest_numbers_are_exact,
        a_thousand_orders_in_one_batch,
        a_thousand_products_in_one_batch,
    ],
    sql_only: [
        a_batch_that_accepts_nothing_writes_nothing,
        a_batch_that_fails_halfway_leaves_nothing,
    ],
}

/// Until when each is reserved, if it is. This must be the same at every redelivery. The rejection of an order whose client
/// waits is not stored, so a redelivery may reject it with another number.
fn reservations(verdicts: &[Verdict]) -> Vec<Option<Timestamp>> {
    let expiry = |verdict: &Verdict| match verdict {
        Verdict::Reserved { expires_at } => Some(*expires_at),
        _ => None,
    };
    verdicts.iter().map(expiry).collect()
}

async fn a_stored_order_has_what_was_ordered(database: Database) {
    let id = database.product_of(10).await;
    let new = order(id, 3);
    let (before, verdicts, after) =
        (SystemClock.now(), database.decide(slice::from_ref(&new)).await, SystemClock.now());
    let Verdict::Reserved { expires_at } = verdicts[0] else { panic!("{verdicts:?}") };
    let ttl = SignedDuration::try_from(TTL.reservation_ttl).unwrap();
    assert!((before + ttl..=after + ttl).contains(&expires_at), "{expires_at}");
    let state = OrderState::Accepted { status: OrderStatus::Reserved, expires_at };
    let expected = Order { id: new.id, lines: Some(new.lines.clone()), buyer: None, payment: None, state };
    assert_eq!(database.store.order(new.id).await.unwrap(), Some(expected.clone()));
    assert_eq!(database.orders_of(id).await, [expected]);
}

async fn first_come_first_served_in_every_lane_of_a_batch(database: Database) {
    let (shirt, hat, sold_out) =
        (database.product_of(5).await, database.product_of(3).await, database.product_of(0).await);
    let batch = [
        (order(shirt, 3), None),
        (order(hat, 2), None),
        (order(shirt, 3), Some(2)),
        (order(sold_out, 1), Some(0)),
        (order(hat, 2), Some(1)),
        (order(shirt, 2), None),
        (order(shirt, 1), Some(0)),
        (order(hat, 1), None),
    ];
    let orders = batch.clone().map(|(order, _)| order);
    let verdicts = database.decide(&orders).await;
    for ((order, expected), verdict) in batch.iter().zip(&verdicts) {
        match expected {
            Some(available) => assert_eq!(*verdict, rejected(*available), "{order:?}"),
            None => assert!(is_reserved(verdict), "{order:?}: {verdict:?}"),
        }
    }
    assert_eq!(database.pieces(shirt).await, [5, 0, 5]);
    assert_eq!(database.pieces(hat).await, [3, 0, 3]);
    assert_eq!(database.pieces(sold_out).await, [0, 0, 0]);
    database.assert_balanced().await;
    // The order of the lane counts, not the time of creation: here the later order comes first.
    let id = database.product_of(1).await;
    let (earlier, later) = (order(id, 1), order(id, 1));
    assert_eq!(accepted(&database.decide(&[later, earlier]).await), [true, false]);
}

async fn an_order_gets_all_its_pieces_or_none(database: Database) {
    let id = database.product_of(10).await;
    assert_eq!(database.decide(&[order(id, 11)]).await, [rejected(10)]);
    assert_eq!(database.pieces(id).await, [10, 10, 0]);
    assert_eq!(accepted(&database.decide(&[order(id, 10)]).await), [true]);
    assert_eq!(database.decide(&[order(id, 1)]).await, [rejected(0)]);
    assert_eq!(database.pieces(id).await, [10, 0, 10]);
    assert_eq!(database.orders_of(id).await.len(), 1);
}

async fn an_unknown_product_is_rejected_and_the_others_are_decided(database: Database) {
    let id = database.product_of(5).await;
    let unknown = [order(stranger(), 1), detached_order(stranger(), 1)];
    assert_eq!(database.decide(&unknown).await, [Expected::ProductNotFound; 2]);
    let batch = [unknown[0].clone(), order(id, 2), unknown[1].clone(), order(stranger(), 3), order(id, 3)];
    let verdicts = database.decide(&batch).await;
    assert_eq!(accepted(&verdicts), [false, true, false, false, true]);
    assert_eq!([0, 2, 3].map(|index| verdicts[index].clone()), [Expected::ProductNotFound; 3]);
    assert_eq!(database.pieces(id).await, [5, 0, 5]);
    assert_eq!(database.store.order(unknown[1].id).await.unwrap(), None);
    // Redelivered, after the others were stored.
    assert_eq!(database.decide(&batch).await, verdicts);
}

async fn a_batch_that_accepts_nothing_writes_nothing(database: Database) {
    let (shirt, hat) = (database.product_of(2).await, database.product_of(0).await);
    database.decide(&[order(shirt, 1)]).await;
    for (change, table) in
        [("INSERT", "orders"), ("UPDATE", "orders"), ("INSERT", "inventories"), ("UPDATE", "inventories")]
    {
        database.by_hand(&database.home.refuse(change, table)).await.unwrap();
    }
    let batch = [order(shirt, 2), order(hat, 1), order(stranger(), 1), order(shirt, 100)];
    assert_eq!(accepted(&database.store.decide(&commands(&batch), TTL).await.unwrap().verdicts), [false; 4]);
    // The triggers work: an order that would write is refused permanently, and leaves nothing.
    assert_eq!(database.decide(&[order(shirt, 1)]).await, [Verdict::Undecidable]);
    assert_eq!(database.pieces(shirt).await, [2, 1, 1]);
}

async fn a_batch_that_fails_halfway_leaves_nothing(database: Database) {
    let (shirt, hat) = (database.product_of(5).await, database.product_of(5).await);
    // The orders are stored first. Then the update of the stock fails.
    database.by_hand(&database.home.refuse("UPDATE", "inventories")).await.unwrap();
    let batch = [order(shirt, 1), detached_order(hat, 100), order(hat, 2)];
    let refused = database.store.decide(&commands(&batch), TTL).await.unwrap();
    // In the end each is decided alone: the rejection moves no stock, and is stored.
    assert_eq!(refused.verdicts, [Expected::Undecidable, rejected(5), Expected::Undecidable]);
    database.by_hand("DELETE FROM orders").await.unwrap();
    for id in [shirt, hat] {
        assert_eq!(database.orders_of(id).await, []);
        assert_eq!(database.pieces(id).await, [5, 5, 0]);
    }
    database.by_hand("DROP TRIGGER refuse_UPDATE_inventories").await.unwrap();
    assert_eq!(accepted(&database.decide(&batch).await), [true, false, true]);
    database.assert_balanced().await;
}

async fn an_empty_batch_returns_no_verdicts(database: Database) {
    assert!(database.store.decide(&commands(&[]), TTL).await.unwrap().verdicts.is_empty());
}

async fn the_largest_numbers_are_exact(database: Database) {
    let id = database.product_of(Stock::MAX).await;
    let small = database.product_of(Quantity::MAX - 1).await;
    assert_eq!(database.pieces(id).await, [Stock::MAX, Stock::MAX, 0]);
    let verdicts = database
        .decide(&[
            detached_order(small, Quantity::MAX),
            order(id, 1),
            order(id, Quantity::MAX),
            order(id, Quantity::MAX - 1),
            order(id, Quantity::MAX),
        ])
        .await;
    assert_eq!(accepted(&verdicts), [false, true, false, true, false]);
    assert_eq!(
        [0, 2, 4].map(|index| verdicts[index].clone()),
        [Quantity::MAX - 1, Stock::MAX - 1, 0].map(rejected)
    );
    assert_eq!(database.pieces(id).await, [Stock::MAX, 0, Stock::MAX]);
    let recounted = database.store.recount(id, stock(Stock::MAX - 1)).await.unwrap();
    assert_eq!(recounted, Recount::BelowReserved(StockBelowReserved { reserved: Stock::MAX }));
    database.assert_balanced().await;
}

async fn a_thousand_orders_in_one_batch(database: Database) {
    let id = database.product_of(1_500).await;
    let orders: Vec<NewOrder> = (0..1_000).map(|n| order(id, 1 + n % 3)).collect();
    let verdicts = database.decide(&orders).await;
    assert_eq!(pieces_accepted(&orders, &verdicts), 1_500);
    assert_eq!(database.pieces(id).await, [1_500, 0, 1_500]);
    let stored: HashSet<OrderId> = database.orders_of(id).await.iter().map(|order| order.id).collect();
    for (order, verdict) in orders.iter().zip(&verdicts) {
        assert_eq!(stored.contains(&order.id), is_reserved(verdict));
    }
    assert_eq!(reservations(&database.decide(&orders).await), reservations(&verdicts));
    assert_eq!(database.pieces(id).await, [1_500, 0, 1_500]);
}

async fn a_thousand_products_in_one_batch(database: Database) {
    let mut products = Vec::new();
    for _ in 0..100 {
        products.extend(join_all((0..10).map(|_| database.product_of(2))).await);
    }
    products.sort();
    // A third of them has pieces; the others are sold out.
    let stocked: Vec<ProductId> = products.iter().step_by(3).copied().collect();
    let sold_out = products.iter().filter(|id| stocked.binary_search(id).is_err());
    let buyers: Vec<NewOrder> = sold_out.map(|id| order(*id, 2)).collect();
    assert!(database.decide(&buyers).await.iter().all(is_reserved));
    let orders: Vec<NewOrder> = products.iter().rev().map(|id| order(*id, 2)).collect();
    let verdicts = database.decide(&orders).await;
    for (order, verdict) in orders.iter().zip(&verdicts) {
        assert_eq!(is_reserved(verdict), stocked.binary_search(&order.lines.first().product_id).is_ok());
    }
    for id in products {
        assert_eq!(database.pieces(id).await, [2, 0, 2]);
    }
    assert_eq!(reservations(&database.decide(&orders).await), reservations(&verdicts));
}
