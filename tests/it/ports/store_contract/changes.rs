//! Payment, cancellation and expiry of reservations, and their events.

use super::*;

suite! {
    every_store: [
        a_payment_takes_the_pieces_out_of_the_warehouse,
        a_cancellation_gives_the_pieces_back,
        an_expiry_before_its_time_changes_nothing,
        the_first_change_wins,
        the_verdict_on_a_change_is_the_whole_order,
        a_change_in_the_wrong_lane_or_of_an_unknown_order_changes_nothing,
        reservations_expire_by_the_clock_of_the_database,
        events_are_in_the_order_of_the_lane,
    ],
    sql_only: [
        due_orders_are_found_longest_overdue_first,
    ],
}

async fn a_payment_takes_the_pieces_out_of_the_warehouse(database: Database) {
    let id = database.product_of(10).await;
    let [order, _] = database.reserve(id, [3, 2]).await;
    let before = database.store.order(order.id).await.unwrap().unwrap();
    for _ in 0..2 {
        assert_eq!(database.change(&order, PAY).await, PAID);
        assert_eq!(database.pieces(id).await, [7, 5, 2]);
    }
    let paid = database.store.order(order.id).await.unwrap().unwrap();
    assert_eq!(paid, Order { payment: paid.payment.clone(), ..before.with_status(OrderStatus::Paid) });
    database.assert_balanced().await;
}

async fn a_cancellation_gives_the_pieces_back(database: Database) {
    let id = database.product_of(10).await;
    let [order, _] = database.reserve(id, [3, 2]).await;
    for _ in 0..2 {
        assert_eq!(database.change(&order, Change::Cancel).await, CANCELLED);
        assert_eq!(database.pieces(id).await, [10, 8, 2]);
    }
    // The next order of the same batch gets the pieces.
    let [last] = database.reserve(id, [8]).await;
    let next = super::order(id, 8);
    let verdicts = database.settle(&[change_of(&last, Change::Cancel), next.into()]).await;
    assert_eq!(verdicts[0], CANCELLED);
    assert!(is_reserved(&verdicts[1]), "{verdicts:?}");
    assert_eq!(database.pieces(id).await, [10, 0, 10]);
    database.assert_balanced().await;
}

async fn an_expiry_before_its_time_changes_nothing(database: Database) {
    let id = database.product_of(10).await;
    let [early] = database.reserve(id, [3]).await;
    assert_eq!(database.change(&early, Change::Expire).await, RESERVED);
    assert_eq!(database.pieces(id).await, [10, 7, 3]);
    let [due] = database.reserve_for(id, [2], NO_TIME).await;
    for _ in 0..2 {
        assert_eq!(database.change(&due, Change::Expire).await, EXPIRED);
        assert_eq!(database.pieces(id).await, [10, 7, 3]);
    }
    assert_eq!(
        [database.status(&early).await, database.status(&due).await],
        [OrderStatus::Reserved, OrderStatus::Expired]
    );
    database.assert_balanced().await;
}

async fn the_first_change_wins(database: Database) {
    let id = database.product_of(100).await;
    let all = [(PAY, PAID), (Change::Cancel, CANCELLED), (Change::Expire, EXPIRED)];
    for (first, verdict) in &all {
        for (second, _) in &all {
            let [apart, together] = database.reserve_for(id, [1, 1], NO_TIME).await;
            assert_eq!(database.change(&apart, first.clone()).await, *verdict);
            let pieces = database.pieces(id).await;
            assert_eq!(database.change(&apart, second.clone()).await, *verdict);
            assert_eq!(database.pieces(id).await, pieces);
            let batch = [change_of(&together, first.clone()), change_of(&together, second.clone())];
            assert_eq!(database.settle(&batch).await, [*verdict; 2]);
        }
    }
    // In three of nine rounds the first change was a payment, of two orders each: six pieces have left the warehouse.
    assert_eq!(database.pieces(id).await, [94, 94, 0]);
    // An order that was never reserved stays rejected.
    let late = detached_order(id, 95);
    assert_eq!(database.decide(slice::from_ref(&late)).await, [rejected(94)]);
    for (change, _) in all {
        assert_eq!(database.change(&late, change).await, REJECTED);
    }
    assert_eq!(database.pieces(id).await, [94, 94, 0]);
    database.assert_balanced().await;
}

async fn the_verdict_on_a_change_is_the_whole_order(database: Database) {
    let id = database.product_of(10).await;
    let [first, second] = database.reserve(id, [3, 2]).await;
    let batch = [
        change_of(&first, Change::Expire),
        change_of(&first, PAY),
        change_of(&second, Change::Cancel),
        change_of(&second, Change::Cancel),
    ];
    let before = database.store.order(first.id).await.unwrap().unwrap();
    let verdicts = database.settle(&batch).await;
    let [paid, cancelled] = [first.id, second.id].map(|id| database.store.order(id));
    let (paid, cancelled) = (paid.await.unwrap().unwrap(), cancelled.await.unwrap().unwrap());
    assert_eq!(verdicts, [before, paid, cancelled.clone(), cancelled].map(Verdict::Current));
    let rejected = detached_order(id, 95);
    database.decide(slice::from_ref(&rejected)).await;
    let rejected = database.store.order(rejected.id).await.unwrap().unwrap();
    let change = ChangeOrder {
        id: SystemClock.command_id(),
        order_id: rejected.id,
        product_id: id,
        other_products: [].into(),
        change: PAY,
        reply: ReplyMode::Until(SystemClock.now()),
        origin: Origin::default(),
    };
    assert_eq!(database.settle(&[change.into()]).await, [Verdict::Current(rejected)]);
}

async fn a_change_in_the_wrong_lane_or_of_an_unknown_order_changes_nothing(database: Database) {
    let (shirt, hat) = (database.product_of(5).await, database.product_of(5).await);
    let [order] = database.reserve(shirt, [2]).await;
    database.reserve(hat, [2]).await;
    let strays = [
        change_of(&super::order(shirt, 1), PAY),
        change_of(&NewOrder { lines: lines(hat, 2), ..order.clone() }, Change::Cancel),
        change_of(&NewOrder { lines: lines(stranger(), 2), ..order.clone() }, PAY),
    ];
    assert_eq!(database.settle(&strays).await, [const { Verdict::OrderNotFound }; 3]);
    assert_eq!(database.pieces(shirt).await, [5, 3, 2]);
    assert_eq!(database.pieces(hat).await, [5, 3, 2]);
    assert_eq!(database.status(&order).await, OrderStatus::Reserved);
}

async fn due_orders_are_found_longest_overdue_first(database: Database) {
    let (shirt, hat) = (database.product_of(100).await, database.product_of(100).await);
    let mut due = Vec::new();
    for (id, seconds) in [(shirt, 20), (hat, 10), (shirt, 30), (hat, 10)] {
        let [order] = database.reserve_for(id, [1], NO_TIME).await;
        let (hex, at) = (order.id.uuid().simple(), 1_734_000_000_000_i64 - seconds * 1_000);
        database.by_hand(&format!("UPDATE orders SET expires_at = {at} WHERE id = X'{hex}'")).await.unwrap();
        due.push(order.id);
    }
    database.reserve_for(shirt, [1], Rules::of_ttl(Duration::from_secs(2))).await;
    let [paid, cancelled] = database.reserve_for(shirt, [1, 1], NO_TIME).await;
    database.change(&paid, PAY).await;
    database.change(&cancelled, Change::Cancel).await;
    assert_eq!(database.decide(&[detached_order(shirt, 1000)]).await, [rejected(96)]);
    let found = async |after, limit| -> (Vec<OrderId>, Option<Due>) {
        let page = database.store.due(after, limit).await.unwrap();
        (page.rows.iter().map(|order| order.id).collect(), page.next)
    };
    let all = [due[2], due[0], due[1], due[3]];
    assert_eq!(found(None, 10).await, (all.to_vec(), None));
    // Page by page; two that are due at the same time are on two pages.
    let (mut pages, mut place) = (Vec::new(), None);
    loop {
        let (rows, next) = found(place, 1).await;
        pages.extend(rows);
        place = next;
        if place.is_none() {
            break;
        }
    }
    assert_eq!(pages, all);
}

/// The database's clock decides when a reservation ends. The reservation of an order whose id is from the future ends no
/// earlier than it begins.
async fn reservations_expire_by_the_clock_of_the_database(database: Database) {
    let id = database.product_of(10).await;
    let before = SystemClock.now();
    let [order] = database.reserve_for(id, [1], Rules::of_ttl(Duration::from_secs(60))).await;
    let expires_at = database.store.order(order.id).await.unwrap().unwrap().expires_at().unwrap();
    let ttl_ms = expires_at.as_millisecond() - before.as_millisecond();
    assert!((60_000 - 5_000..60_000 + 5_000).contains(&ttl_ms), "{ttl_ms} ms: one machine, one clock");
    let mut bytes = SystemClock.order_id().uuid().into_bytes();
    bytes[..6].copy_from_slice(&(SystemClock.now().as_millisecond() + 3_600_000).to_be_bytes()[2..]);
    let ahead = NewOrder { id: uuid::Uuid::from_bytes(bytes).into(), ..super::order(id, 1) };
    let verdict = database.settle_within(&commands(slice::from_ref(&ahead)), NO_TIME).await.remove(0);
    assert_eq!(verdict, Verdict::Reserved { expires_at: ahead.id.created_at() });
}

async fn events_are_in_the_order_of_the_lane(database: Database) {
    let id = database.product_of(5).await;
    let events = async |commands: &[Command]| -> Vec<(OrderId, OrderStatus)> {
        let status = |event: &Event| (event.order.id, event.order.status());
        database.store.decide(commands, NO_TIME).await.unwrap().events.iter().map(status).collect()
    };
    let [a, b, c] = [order(id, 1), order(id, 9), keyed(order(id, 1), "buyer-1")];
    let batch = commands(&[a.clone(), b.clone(), detached_order(id, 9), c.clone(), order(stranger(), 1)]);
    let reserved = [(a.id, OrderStatus::Reserved), (c.id, OrderStatus::Reserved)];
    assert_eq!(events(&batch).await, reserved);
    assert_eq!(events(&batch[..1]).await, reserved[..1], "again, when it is redelivered");
    // The events of a redelivered batch are those of its decision, whatever happened since.
    let changes = [change_of(&c, PAY), change_of(&a, Change::Expire), change_of(&a, PAY)];
    let too_late = (a.id, OrderStatus::Expired);
    let changed = [(c.id, OrderStatus::Paid), (a.id, OrderStatus::Expired), too_late];
    assert_eq!(events(&changes).await, changed);
    assert_eq!(events(&changes).await, changed);
    assert_eq!(events(&batch).await, reserved);
    // An order that is repeated under its key has no second event.
    assert_eq!(events(&commands(&[keyed(order(id, 1), "buyer-1")])).await, []);
    // An order that is placed and cancelled in one batch has both events.
    let d = order(id, 2);
    let life = [d.clone().into(), change_of(&d, Change::Cancel)];
    assert_eq!(events(&life).await, [(d.id, OrderStatus::Reserved), (d.id, OrderStatus::Cancelled)]);
    assert_eq!(database.status(&d).await, OrderStatus::Cancelled);
    database.assert_balanced().await;
}
