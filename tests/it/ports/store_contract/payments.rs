//! What is stored of payments, extensions and returns, and of orders that are given up before their turn.

use super::*;

suite! {
    every_store: [
        a_payment_is_stored_with_its_reference_and_time,
        a_late_payment_gets_the_pieces_of_all_lines_or_none,
        an_extension_is_stored_and_counts,
        a_returned_order_gives_its_pieces_back_if_they_can_be_sold_again,
        an_order_that_was_given_up_is_never_reserved,
        an_order_that_was_given_up_is_one_of_its_product_once_its_turn_came,
        giving_up_and_deciding_at_once_agree,
    ],
    sql_only: [],
}

fn pay(reference: &str) -> Change {
    Change::Pay { reference: Some(reference.to_owned().try_into().unwrap()) }
}

impl Database {
    async fn stored(&self, order: &NewOrder) -> Order {
        self.store.order(order.id).await.unwrap().unwrap()
    }

    /// Decides one change by these rules. The verdict is what is stored then.
    async fn change_by(&self, rules: Rules, order: &NewOrder, change: Change) -> (Order, Vec<EventKind>) {
        let result = self.store.decide(&[change_of(order, change)], rules).await.unwrap();
        let now = self.stored(order).await;
        assert_eq!(result.verdicts, [Verdict::Current(now.clone())]);
        (now, result.events.iter().map(|event| event.kind).collect())
    }
}

async fn a_payment_is_stored_with_its_reference_and_time(database: Database) {
    let id = database.product_of(10).await;
    let [named, unnamed] = database.reserve(id, [3, 2]).await;
    let began = SystemClock.now() - SignedDuration::from_secs(60);
    let (paid, events) = database.change_by(TTL, &named, pay("tx-1")).await;
    assert_eq!(events, [EventKind::Order]);
    let payment = paid.payment.clone().unwrap();
    assert_eq!(payment.reference.as_ref().map(|reference| reference.as_str()), Some("tx-1"));
    assert!(payment.paid_at.is_some_and(|at| at > began), "by the clock of the database");
    for again in [pay("tx-1"), pay("tx-2"), PAY] {
        assert_eq!(database.change_by(TTL, &named, again).await.0, paid);
    }
    let (paid, _) = database.change_by(TTL, &unnamed, PAY).await;
    assert!(paid.payment.is_some_and(|payment| payment.reference.is_none() && payment.paid_at.is_some()));
    assert_eq!(database.pieces(id).await, [5, 5, 0]);
}

async fn a_late_payment_gets_the_pieces_of_all_lines_or_none(database: Database) {
    let (shirt, hat) = (database.product_of(4).await, database.product_of(2).await);
    let accepting = Rules::of_ttl(Duration::from_secs(900));
    let basket = |shirts, hats| {
        let line = |product_id, total| Line { product_id, total: Quantity::new(total).unwrap() };
        let lines = vec![line(shirt, shirts), line(hat, hats)].try_into().unwrap();
        NewOrder { lines, ..order(shirt, 1) }
    };
    let [first, second, third] = [basket(2, 1), basket(1, 1), basket(1, 1)];
    for order in [&first, &second] {
        database.settle_within(&commands(slice::from_ref(order)), NO_TIME).await;
        let expired = database.settle(&[change_of_basket(order, Change::Expire)]).await;
        assert_eq!(expired, [EXPIRED]);
    }
    let late = change_of_basket(&first, pay("tx-1"));
    assert_eq!(database.settle_within(&[late], accepting).await, [PAID]);
    assert_eq!((database.pieces(shirt).await, database.pieces(hat).await), ([2, 2, 0], [1, 1, 0]));
    // The last hat is sold, and the shirt that is left is of no use alone.
    database.reserve(hat, [1]).await;
    let too_late = change_of_basket(&second, pay("tx-2"));
    for _ in 0..2 {
        let decided = database.store.decide(slice::from_ref(&too_late), accepting).await.unwrap();
        let now = database.stored(&second).await;
        assert_eq!(decided.verdicts, [Verdict::Current(now.clone())]);
        assert_eq!(now.status(), OrderStatus::Expired);
        let events: Vec<_> = decided.events.iter().map(|event| (event.kind, &event.order)).collect();
        let [(EventKind::PaymentTooLate, told)] = events[..] else { panic!("{events:?}") };
        assert_eq!(told.payment_reference(), now.payment_reference());
        assert_eq!((database.pieces(shirt).await, database.pieces(hat).await), ([2, 2, 0], [1, 0, 1]));
        // More hats: what was refused stays refused, because its client may know it.
        database.store.recount(hat, stock(5)).await.unwrap().done().unwrap();
        database.store.recount(hat, stock(1)).await.unwrap().done().unwrap();
    }
    database.store.recount(hat, stock(5)).await.unwrap().done().unwrap();
    assert_eq!(database.settle_within(&[too_late], accepting).await, [EXPIRED]);
    // By the other rule, none ever gets any.
    database.settle_within(&commands(slice::from_ref(&third)), NO_TIME).await;
    let all = [Change::Expire, pay("tx-3")].map(|change| change_of_basket(&third, change));
    assert_eq!(database.settle(&all).await, [EXPIRED; 2]);
    assert_eq!(database.pieces(shirt).await, [2, 2, 0]);
}

/// A change of an order of several products.
fn change_of_basket(order: &NewOrder, change: Change) -> Command {
    let Command::Change(command) = change_of(order, change) else { panic!() };
    let other_products = order.lines.products().skip(1).collect();
    ChangeOrder { other_products, ..command }.into()
}

async fn an_extension_is_stored_and_counts(database: Database) {
    let id = database.product_of(10).await;
    let [order] = database.reserve_for(id, [3], NO_TIME).await;
    let before = database.stored(&order).await;
    let (extended, events) = database.change_by(TTL, &order, Change::Extend).await;
    assert!(extended.expires_at() > before.expires_at() && events.is_empty());
    assert_eq!(database.change(&order, Change::Expire).await, RESERVED, "not yet");
    assert!(database.store.due(None, 10).await.unwrap().rows.is_empty());
    // Not for longer than is allowed, and never shorter.
    let short = Rules { max_hold: Duration::from_secs(60), ..TTL };
    assert_eq!(database.change_by(short, &order, Change::Extend).await.0, extended);
    database.change(&order, PAY).await;
    assert_eq!(database.change(&order, Change::Extend).await, PAID);
    database.assert_balanced().await;
}

async fn a_returned_order_gives_its_pieces_back_if_they_can_be_sold_again(database: Database) {
    let id = database.product_of(10).await;
    let [whole, broken] = database.reserve(id, [3, 2]).await;
    assert_eq!(database.change(&whole, Change::Return { restock: true }).await, RESERVED);
    for (order, restock, pieces) in [(&whole, true, [8, 8, 0]), (&broken, false, [8, 8, 0])] {
        database.change(&whole, pay("tx-1")).await;
        database.change(&broken, pay("tx-2")).await;
        let paid = database.stored(order).await;
        for _ in 0..2 {
            let (returned, events) = database.change_by(TTL, order, Change::Return { restock }).await;
            assert_eq!(returned, paid.clone().with_status(OrderStatus::Returned));
            assert_eq!(events, [EventKind::Order]);
        }
        assert_eq!(database.pieces(id).await, pieces);
    }
    database.assert_balanced().await;
}

async fn an_order_that_was_given_up_is_never_reserved(database: Database) {
    let id = database.product_of(3).await;
    for (number, late) in [false, true].into_iter().enumerate() {
        let order = if late { detached_order } else { order }(id, 2);
        let order = keyed(order, &format!("buyer-{number}"));
        let given_up = Order::given_up(order.id);
        assert_eq!(database.store.give_up(order.id).await.unwrap(), GivenUp::Done(given_up.clone()));
        assert_eq!(database.store.give_up(order.id).await.unwrap(), GivenUp::Stored(given_up.clone()));
        assert_eq!(database.stored(&order).await, given_up);
        let known = Order { lines: Some(order.lines.clone()), ..given_up };
        for _ in 0..2 {
            let decided = database.store.decide(&commands(slice::from_ref(&order)), TTL).await.unwrap();
            assert_eq!(decided.verdicts, [Verdict::AlreadyPlaced(known.clone())]);
            assert_eq!(decided.events, [Event::of_order(known.clone())]);
        }
        assert_eq!(database.stored(&order).await, known);
        let again = NewOrder { id: SystemClock.order_id(), ..order };
        assert_eq!(database.decide(&[again]).await, [Verdict::AlreadyPlaced(known)]);
    }
    assert_eq!(database.pieces(id).await, [3, 3, 0]);
    // One that is refused is not stored for it, nor found.
    let refused = order(id, 4);
    database.store.give_up(refused.id).await.unwrap();
    assert!(matches!(database.decide(&[refused]).await[..], [Verdict::AlreadyPlaced(_)]));
    // A decided one is as it was.
    let [reserved] = database.reserve(id, [1]).await;
    let stored = database.stored(&reserved).await;
    assert_eq!(database.store.give_up(reserved.id).await.unwrap(), GivenUp::Stored(stored));
    database.assert_balanced().await;
}

async fn an_order_that_was_given_up_is_one_of_its_product_once_its_turn_came(database: Database) {
    let (shirt, hat) = (database.product_of(3).await, database.product_of(3).await);
    let line = |product_id| Line { product_id, total: Quantity::new(1).unwrap() };
    let lines: Lines = vec![line(shirt), line(hat)].try_into().unwrap();
    let basket = NewOrder { lines, buyer: Some("b-1".to_owned().try_into().unwrap()), ..order(shirt, 1) };
    database.store.give_up(basket.id).await.unwrap();
    assert!(database.orders_of(shirt).await.is_empty(), "nobody knows of which product it is");
    let all = OrderPage::first(10);
    assert_eq!(database.store.orders(all).await.unwrap().rows, [Order::given_up(basket.id)]);
    assert!(database.store.due(None, 10).await.unwrap().rows.is_empty());
    // A change of it is not of this lane, whatever it is.
    assert_eq!(database.change(&order(shirt, 1), PAY).await, Verdict::OrderNotFound);
    assert_eq!(database.settle(&[change_of_basket(&basket, PAY)]).await, [Verdict::OrderNotFound]);
    database.decide(slice::from_ref(&basket)).await;
    for product in [shirt, hat] {
        let [order] = &database.orders_of(product).await[..] else { panic!() };
        assert_eq!(
            (order.id, &order.lines, &order.buyer),
            (basket.id, &Some(basket.lines.clone()), &basket.buyer)
        );
        assert_eq!(database.pieces(product).await, [3, 3, 0]);
    }
    assert_eq!(database.settle(&[change_of_basket(&basket, PAY)]).await, [CANCELLED]);
}

async fn giving_up_and_deciding_at_once_agree(database: Database) {
    const ORDERS: u32 = 40;
    let id = database.product_of(ORDERS).await;
    let orders: Vec<_> = (0..ORDERS)
        .map(|number| {
            let order = order(id, 1);
            if number.is_multiple_of(2) { keyed(order, &format!("buyer-{number}")) } else { order }
        })
        .collect();
    let mut deciding = JoinSet::new();
    for batch in orders.chunks(4).map(<[_]>::to_vec) {
        let store = database.store.clone();
        deciding.spawn(async move { (batch.clone(), decide(&*store, &batch).await) });
    }
    let mut given_up = HashSet::new();
    for order in &orders {
        match database.store.give_up(order.id).await.unwrap() {
            GivenUp::Done(_) => _ = given_up.insert(order.id),
            GivenUp::Stored(order) => assert_eq!(order.status(), OrderStatus::Reserved),
        }
    }
    for (batch, verdicts) in deciding.join_all().await {
        for (order, verdict) in batch.iter().zip(verdicts) {
            let now = database.stored(order).await;
            let cancelled = given_up.contains(&order.id);
            assert_eq!(now.was_given_up(), cancelled);
            assert_eq!(now.lines.as_ref(), Some(&order.lines));
            match verdict {
                Verdict::Reserved { .. } => assert!(!cancelled, "{order:?}"),
                verdict => assert_eq!(verdict, Verdict::AlreadyPlaced(now)),
            }
        }
    }
    let reserved = ORDERS - u32::try_from(given_up.len()).unwrap();
    assert_eq!(database.pieces(id).await, [ORDERS, ORDERS - reserved, reserved]);
    database.assert_balanced().await;
}
