//! Buyers: what each may hold of a limited product, and which orders are theirs.

use antre::{
    domain::{lines::Line, names::Buyer, terms::Terms},
    store::Direction,
};

use super::*;

suite! {
    every_store: [
        nobody_gets_more_than_the_limit,
        what_is_given_back_counts_no_more,
        an_order_that_comes_again_counts_once,
        a_basket_is_within_the_limit_of_each_product,
        a_limit_that_is_set_later_counts_what_buyers_hold,
        a_limit_below_what_is_held_takes_nothing_away,
        parallel_orders_of_one_buyer_stay_within_the_limit,
        deleted_orders_count_no_more,
        the_orders_of_a_buyer_are_listed,
        many_buyers_on_either_side_of_a_limit,
    ],
    sql_only: [
        a_row_of_holdings_that_is_gone_stops_no_order,
        a_limit_counts_a_hundred_thousand_orders,
        an_unlimited_product_has_no_holdings,
    ],
}

fn buyer(text: &str) -> Buyer {
    text.to_owned().try_into().unwrap()
}

fn of(text: &str, order: NewOrder) -> NewOrder {
    NewOrder { buyer: Some(buyer(text)), ..order }
}

fn basket(parts: &[(ProductId, u32)]) -> NewOrder {
    let line = |(product_id, total): &(ProductId, u32)| Line {
        product_id: *product_id,
        total: Quantity::new(*total).unwrap(),
    };
    let lines = Lines::try_from(parts.iter().map(line).collect::<Vec<_>>()).unwrap();
    NewOrder { lines, ..order(parts[0].0, 1) }
}

fn limit(product_id: ProductId, limit: u32, held: u32) -> Verdict {
    Verdict::Rejected(Rejection::LimitPerBuyer { product_id, limit, held })
}

fn buyer_required(product_id: ProductId) -> Verdict {
    Verdict::Rejected(Rejection::BuyerRequired { product_id })
}

impl Database {
    async fn set_limit(&self, id: ProductId, limit: Option<u32>) {
        let max_per_buyer = limit.map(|limit| Quantity::new(limit).unwrap());
        let terms = Terms { max_per_buyer, ..Terms::default() };
        assert!(self.store.set_terms(id, terms).await.unwrap());
    }

    /// A product of which each buyer may hold so many.
    async fn limited(&self, pieces: u32, limit: u32) -> ProductId {
        let id = self.product_of(pieces).await;
        self.set_limit(id, Some(limit)).await;
        id
    }

    /// What the buyer holds, as a refusal says it. The limit must be below a million.
    async fn held(&self, id: ProductId, of: &str) -> u32 {
        let verdict = self.decide(&[self::of(of, order(id, 1_000_000))]).await.remove(0);
        let Verdict::Rejected(Rejection::LimitPerBuyer { held, .. }) = verdict else { panic!("{verdict:?}") };
        held
    }

    async fn rows_of_holdings(&self) -> i64 {
        let count = "SELECT COUNT(*) FROM holdings";
        match &self.home {
            Home::MySql { .. } => {
                let mut connection = MySqlConnection::connect(&self.home.url()).await.unwrap();
                sqlx::query_scalar(count).fetch_one(&mut connection).await.unwrap()
            }
            Home::Sqlite { .. } | Home::Memory { .. } => {
                let mut connection = SqliteConnection::connect(&self.home.url()).await.unwrap();
                sqlx::query_scalar(count).fetch_one(&mut connection).await.unwrap()
            }
        }
    }
}

async fn nobody_gets_more_than_the_limit(database: Database) {
    let id = database.limited(10, 3).await;
    let batch = [
        of("a", order(id, 2)),
        of("a", order(id, 2)),
        of("A", order(id, 3)),
        of("a", order(id, 1)),
        order(id, 1),
        of("a", order(id, 1)),
        of("b", order(id, 4)),
    ];
    let verdicts = database.decide(&batch).await;
    assert_eq!(accepted(&verdicts), [true, false, true, true, false, false, false]);
    assert_eq!(verdicts[1], limit(id, 3, 2), "pieces of earlier commands count");
    assert_eq!(verdicts[4], buyer_required(id));
    assert_eq!([&verdicts[5], &verdicts[6]], [&limit(id, 3, 3), &limit(id, 3, 0)]);
    // In the next batch as well, and after a restart.
    assert_eq!(database.decide(&[of("a", order(id, 1))]).await, [limit(id, 3, 3)]);
    let again = database.home.open().await;
    assert_eq!(
        decide(&*again, &[of("A", order(id, 1)), of("a", order(id, 2))]).await,
        vec![limit(id, 3, 3); 2]
    );
    // The limit counts before the stock does, and the stock after it.
    assert!(is_reserved(&database.decide(&[of("c", order(id, 3))]).await[0]));
    assert_eq!(database.decide(&[of("d", order(id, 2))]).await[0], rejected(1));
    assert_eq!(database.decide(&[of("d", order(id, 4))]).await, [limit(id, 3, 0)]);
    assert_eq!(database.pieces(id).await, [10, 1, 9]);
    // A refusal that nobody waits for is stored with its details.
    let detached = of("a", detached_order(id, 1));
    let verdict = database.decide(slice::from_ref(&detached)).await.remove(0);
    let stored = database.store.order(detached.id).await.unwrap().unwrap();
    assert_eq!((Verdict::on_stored(&stored), &stored.buyer), (verdict, &detached.buyer));
    database.assert_balanced().await;
}

async fn what_is_given_back_counts_no_more(database: Database) {
    let id = database.limited(20, 4).await;
    let [cancelled, paid] = [2, 2].map(|total| of("a", order(id, total)));
    database.decide(&[cancelled.clone(), paid.clone()]).await;
    assert_eq!(database.change(&paid, PAY).await, PAID);
    assert_eq!(database.held(id, "a").await, 4, "paid pieces count");
    for _ in 0..2 {
        assert_eq!(database.change(&cancelled, Change::Cancel).await, CANCELLED);
        assert_eq!(database.held(id, "a").await, 2, "and are given back once");
    }
    let due = of("a", order(id, 1));
    let verdicts = database.settle_within(&commands(slice::from_ref(&due)), NO_TIME).await;
    assert!(is_reserved(&verdicts[0]));
    assert_eq!(database.held(id, "a").await, 3);
    assert_eq!(database.change(&due, Change::Expire).await, EXPIRED);
    assert_eq!(database.held(id, "a").await, 2);
    // In one batch: what is given back is there for the next order.
    let [first, second] = [1, 1].map(|total| of("a", order(id, total)));
    database.decide(&[first.clone(), second.clone()]).await;
    let batch = [
        Command::from(of("a", order(id, 1))),
        change_of(&first, Change::Cancel),
        change_of(&second, PAY),
        Command::from(of("a", order(id, 2))),
        Command::from(of("a", order(id, 1))),
        Command::from(of("a", order(id, 1))),
    ];
    let verdicts = database.settle(&batch).await;
    assert_eq!(
        [&verdicts[0], &verdicts[3], &verdicts[5]],
        [&limit(id, 4, 4), &limit(id, 4, 3), &limit(id, 4, 4)]
    );
    assert!(is_reserved(&verdicts[4]));
    database.assert_balanced().await;
}

async fn an_order_that_comes_again_counts_once(database: Database) {
    let id = database.limited(10, 3).await;
    let (plain, with_key) = (of("a", order(id, 1)), keyed(of("a", order(id, 1)), "a-key"));
    let batch = [plain.clone(), with_key.clone()];
    let verdicts = database.decide(&batch).await;
    assert_eq!(accepted(&verdicts), [true, true]);
    for _ in 0..2 {
        assert_eq!(database.decide(&batch).await, verdicts, "redelivered");
        let again = database.decide(&[keyed(of("a", order(id, 1)), "a-key")]).await;
        assert!(matches!(&again[0], Verdict::AlreadyPlaced(order) if order.id == with_key.id), "{again:?}");
        let detached = database.decide(&[keyed(of("a", detached_order(id, 1)), "a-key")]).await;
        assert!(matches!(&detached[0], Verdict::AlreadyPlaced(order) if order.id == with_key.id));
        assert_eq!(database.held(id, "a").await, 2);
    }
    // The buyer is part of what a key stands for.
    for other in [keyed(of("b", order(id, 1)), "a-key"), keyed(order(id, 1), "a-key")] {
        assert_eq!(database.decide(&[other]).await, [KEY_REUSED]);
    }
    // The last piece that is allowed, redelivered: there would be no room for it again.
    let last = of("a", order(id, 1));
    let twice = [last.clone(), last.clone()];
    let verdicts = database.decide(&twice).await;
    assert!(is_reserved(&verdicts[0]) && verdicts[0] == verdicts[1], "{verdicts:?}");
    assert_eq!(database.decide(slice::from_ref(&last)).await, verdicts[..1]);
    let last = NewOrder { reply: ReplyMode::Detached, ..last };
    assert_eq!(database.decide(&[last]).await, verdicts[..1]);
    assert_eq!(database.held(id, "a").await, 3);
    // One that was cancelled is not reserved again by its redelivery.
    database.change(&plain, Change::Cancel).await;
    database.decide(slice::from_ref(&plain)).await;
    assert_eq!(database.held(id, "a").await, 2);
    database.assert_balanced().await;
}

async fn a_basket_is_within_the_limit_of_each_product(database: Database) {
    let (shirt, hat) = (database.limited(10, 2).await, database.limited(10, 3).await);
    let socks = database.product_of(10).await;
    let first = of("a", basket(&[(socks, 5), (hat, 2), (shirt, 1)]));
    let verdicts = database.decide(slice::from_ref(&first)).await;
    assert_eq!(accepted(&verdicts), [true]);
    for (order, verdict) in [
        (of("a", basket(&[(shirt, 1), (hat, 2)])), limit(hat, 3, 2)),
        (of("a", basket(&[(hat, 1), (shirt, 2)])), limit(shirt, 2, 1)),
        (basket(&[(socks, 1), (hat, 1)]), buyer_required(hat)),
    ] {
        assert_eq!(database.decide(&[order]).await, [verdict]);
    }
    // Nothing is held of a basket that is refused because a product is short.
    let short = of("b", basket(&[(shirt, 2), (hat, 3), (socks, 6)]));
    assert_eq!(database.decide(&[short]).await[0], rejected(5));
    assert_eq!([database.held(shirt, "b").await, database.held(hat, "b").await], [0, 0]);
    assert_eq!([database.held(shirt, "a").await, database.held(hat, "a").await], [1, 2]);
    database.change(&first, Change::Cancel).await;
    assert_eq!([database.held(shirt, "a").await, database.held(hat, "a").await], [0, 0]);
    assert!(is_reserved(&database.decide(&[of("a", basket(&[(hat, 3), (shirt, 2)]))]).await[0]));
    database.assert_balanced().await;
}

async fn a_limit_that_is_set_later_counts_what_buyers_hold(database: Database) {
    let (id, other) = (database.product_of(100).await, database.product_of(100).await);
    let [reserved, paid, cancelled] = [1, 2, 4].map(|total| of("a", order(id, total)));
    let basket_first = of("a", basket(&[(id, 8), (other, 1)]));
    let basket_second = of("a", basket(&[(other, 1), (id, 16)]));
    let elsewhere = of("a", order(other, 7));
    let refused = of("a", detached_order(id, 1_000));
    let all = [&reserved, &paid, &cancelled, &basket_first, &basket_second, &elsewhere, &refused];
    database.decide(&all.map(Clone::clone)).await;
    database.decide(&[order(id, 3), of("b", order(id, 5))]).await;
    database.change(&paid, PAY).await;
    database.change(&cancelled, Change::Cancel).await;

    database.set_limit(id, Some(2)).await;
    let held =
        async || [database.held(id, "a").await, database.held(id, "b").await, database.held(id, "c").await];
    assert_eq!(held().await, [1 + 2 + 8 + 16, 5, 0]);
    // From there on it is followed.
    database.change(&basket_second, Change::Cancel).await;
    database.change(&reserved, Change::Cancel).await;
    assert_eq!(held().await, [10, 5, 0]);
    // Another limit does not count the orders again, nor do other terms.
    database.set_limit(id, Some(11)).await;
    assert_eq!(database.decide(&[of("a", order(id, 2))]).await, [limit(id, 11, 10)]);
    assert!(is_reserved(&database.decide(&[of("a", order(id, 1))]).await[0]));
    let paused = Terms { selling: false, max_per_buyer: Quantity::new(11), ..Terms::default() };
    assert!(database.store.set_terms(id, paused).await.unwrap());
    database.set_limit(id, Some(11)).await;
    assert_eq!(held().await, [11, 5, 0]);
    // Without a limit everybody may have all, also without a name; and all of that counts when there is one again.
    database.set_limit(id, None).await;
    let free = [of("b", order(id, 30)), order(id, 1)];
    assert_eq!(accepted(&database.decide(&free).await), [true, true]);
    database.change(&basket_first, PAY).await;
    database.set_limit(id, Some(3)).await;
    assert_eq!(held().await, [11, 35, 0]);
    assert_eq!(database.held_is_free(other).await, [true, true], "of another product nothing is limited");
    database.assert_balanced().await;
}

impl Database {
    async fn held_is_free(&self, id: ProductId) -> [bool; 2] {
        let verdicts = self.decide(&[of("a", order(id, 20)), order(id, 20)]).await;
        [is_reserved(&verdicts[0]), is_reserved(&verdicts[1])]
    }
}

async fn a_limit_below_what_is_held_takes_nothing_away(database: Database) {
    let id = database.limited(20, 10).await;
    let orders = [5, 4].map(|total| of("a", order(id, total)));
    database.decide(&orders).await;
    database.set_limit(id, Some(2)).await;
    assert_eq!(database.decide(&[of("a", order(id, 1))]).await, [limit(id, 2, 9)]);
    assert_eq!(database.change(&orders[0], PAY).await, PAID);
    assert_eq!(database.change(&orders[1], Change::Cancel).await, CANCELLED);
    assert_eq!(database.held(id, "a").await, 5);
    database.assert_balanced().await;
}

/// Each order in a batch of its own, many at once.
async fn parallel_orders_of_one_buyer_stay_within_the_limit(database: Database) {
    let (id, other) = (database.limited(1_000, 2).await, database.limited(1_000, 3).await);
    for round in 0..3 {
        let mut calls = JoinSet::new();
        for number in 0..50 {
            let store = database.store.clone();
            let name = format!("buyer-{round}");
            let order = match number % 3 {
                0 => of(&name, basket(&[(other, 1), (id, 1)])),
                1 => of(&name, basket(&[(id, 1), (other, 1)])),
                _ => of(&name, order(id, 1)),
            };
            calls.spawn(async move { decide(&*store, slice::from_ref(&order)).await.remove(0) });
        }
        let verdicts = calls.join_all().await;
        assert_eq!(accepted(&verdicts).into_iter().filter(|accepted| *accepted).count(), 2);
        assert!(verdicts.iter().all(|verdict| is_reserved(verdict)
            || *verdict == limit(id, 2, 2)
            || matches!(verdict, Verdict::Rejected(Rejection::LimitPerBuyer { .. }))));
        assert_eq!(database.held(id, &format!("buyer-{round}")).await, 2);
    }
    assert_eq!(database.pieces(id).await, [1_000, 994, 6]);
    database.assert_balanced().await;
}

async fn deleted_orders_count_no_more(database: Database) {
    const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);
    let old = |order: NewOrder| {
        let then = SystemClock.now() - SignedDuration::try_from(MONTH).unwrap();
        let unique = order.id.uuid().as_u128() & 0xffff_ffff;
        let id = uuid::Uuid::from_u128(OrderId::first_at(then).uuid().as_u128() | unique);
        NewOrder { id: id.into(), ..order }
    };
    let (id, free) = (database.limited(100, 50).await, database.product_of(100).await);
    let (paid, cancelled) = (old(of("a", order(id, 1))), old(of("a", order(id, 2))));
    let (basket, kept) = (old(of("a", basket(&[(free, 1), (id, 4)]))), old(of("a", order(id, 8))));
    let (plain, other) = (old(of("b", order(id, 16))), old(of("a", order(free, 1))));
    let all = [paid.clone(), cancelled.clone(), basket.clone(), kept.clone(), plain.clone(), other.clone()];
    assert!(accepted(&database.decide(&all).await).iter().all(|accepted| *accepted));
    for order in [&paid, &basket, &plain, &other] {
        database.change(order, PAY).await;
    }
    database.change(&cancelled, Change::Cancel).await;
    let ids: Vec<_> = all.iter().map(|order| order.id).collect();
    let deleted = loop {
        match database.store.delete_orders(&ids).await {
            Ok(deleted) => break deleted,
            Err(error) => assert!(error.is_transient(), "{error}"),
        }
    };
    assert_eq!(deleted.orders, 5, "the reserved one stays");
    assert_eq!([database.held(id, "a").await, database.held(id, "b").await], [8, 0]);
    let listed = database.orders_of_buyer("a").await;
    assert_eq!(listed, [kept.id], "nothing names a deleted order");
    // Counted again, it is the same.
    database.set_limit(id, None).await;
    database.set_limit(id, Some(50)).await;
    assert_eq!([database.held(id, "a").await, database.held(id, "b").await], [8, 0]);
    database.assert_balanced().await;
}

impl Database {
    async fn list(&self, page: OrderPage) -> Vec<OrderId> {
        let (mut ids, mut page) = (Vec::new(), page);
        loop {
            let found = self.store.orders(page.clone()).await.unwrap();
            assert!(found.rows.len() <= page.limit as usize);
            ids.extend(found.rows.iter().map(|order| order.id));
            page.after = found.next;
            if page.after.is_none() {
                return ids;
            }
        }
    }

    async fn orders_of_buyer(&self, of: &str) -> Vec<OrderId> {
        self.list(OrderPage { buyer: Some(buyer(of)), ..OrderPage::first(2) }).await
    }
}

async fn the_orders_of_a_buyer_are_listed(database: Database) {
    let (shirt, hat) = (database.product_of(10).await, database.product_of(10).await);
    let [plain, paid] = [of("a", order(shirt, 1)), of("a", order(hat, 1))];
    let basket = of("a", basket(&[(hat, 1), (shirt, 1)]));
    let refused = of("a", detached_order(shirt, 100));
    let [other, nobody] = [of("A", order(shirt, 1)), order(shirt, 1)];
    // Not detached: it is not stored.
    let unstored = of("a", order(shirt, 100));
    let all = [&plain, &paid, &basket, &refused, &other, &nobody, &unstored];
    database.decide(&all.map(Clone::clone)).await;
    database.change(&paid, PAY).await;
    let mine = [plain.id, paid.id, basket.id, refused.id];
    assert!(mine.is_sorted());
    assert_eq!(database.orders_of_buyer("a").await, mine);
    assert_eq!(database.orders_of_buyer("A").await, [other.id]);
    assert_eq!(database.orders_of_buyer("b").await, []);
    assert_eq!(database.orders_of_buyer("';DROP/**/TABLE/**/orders;--\\\"").await, []);

    let list = async |product_id, status, direction| {
        let page =
            OrderPage { buyer: Some(buyer("a")), product_id, status, direction, ..OrderPage::first(1) };
        database.list(page).await
    };
    use Direction::{NewestFirst, OldestFirst};
    assert_eq!(list(None, None, NewestFirst).await, [refused.id, basket.id, paid.id, plain.id]);
    assert_eq!(list(Some(shirt), None, OldestFirst).await, [plain.id, basket.id, refused.id]);
    assert_eq!(list(Some(hat), None, NewestFirst).await, [basket.id, paid.id]);
    assert_eq!(list(Some(hat), Some(OrderStatus::Paid), OldestFirst).await, [paid.id]);
    assert_eq!(list(None, Some(OrderStatus::Reserved), NewestFirst).await, [basket.id, plain.id]);
    assert_eq!(list(Some(stranger()), None, OldestFirst).await, []);
    let since = OrderPage { buyer: Some(buyer("a")), newer_than: Some(paid.id), ..OrderPage::first(10) };
    assert_eq!(database.list(since).await, [basket.id, refused.id]);
    // Redelivered, it is listed once.
    database.decide(&all.map(Clone::clone)).await;
    assert_eq!(database.orders_of_buyer("a").await, mine);
    let stored = database.store.order(plain.id).await.unwrap().unwrap();
    assert_eq!(stored.buyer, Some(buyer("a")));
}

/// One batch of all that there is: limited, unlimited, with and without a buyer; names that differ in little.
async fn many_buyers_on_either_side_of_a_limit(database: Database) {
    let (limited, free) = (database.limited(10_000, 2).await, database.product_of(10_000).await);
    let long = "9".repeat(128);
    let names = ["a", "A", "a\"b", "a\\b", "[1]", "null", "17", "~", long.as_str()];
    let mut orders = Vec::new();
    for round in 0..4 {
        orders.extend(names.map(|name| of(name, order(limited, 1))));
        orders.extend(names.map(|name| of(name, order(free, 1 + round))));
        orders.push(order(free, 1));
    }
    let verdicts = database.decide(&orders).await;
    for (order, verdict) in orders.iter().zip(&verdicts) {
        let is_free = order.lines.first().product_id == free;
        assert!(!is_free || is_reserved(verdict), "{order:?} {verdict:?}");
    }
    for name in names {
        let mine = orders.iter().zip(&verdicts).filter(|(order, _)| order.buyer == Some(buyer(name)));
        let mine: Vec<_> = mine.filter(|(order, _)| order.lines.first().product_id == limited).collect();
        assert_eq!(
            mine.iter().map(|(_, verdict)| is_reserved(verdict)).collect::<Vec<_>>(),
            [true, true, false, false]
        );
        assert_eq!(database.held(limited, name).await, 2, "{name}");
        assert_eq!(database.orders_of_buyer(name).await.len(), 2 + 4, "{name}");
    }
    database.assert_balanced().await;
}

/// The audit finds it; no order, payment or cancellation waits for that.
async fn a_row_of_holdings_that_is_gone_stops_no_order(database: Database) {
    let id = database.limited(20, 5).await;
    let orders = [2, 3].map(|total| of("a", order(id, total)));
    database.decide(&orders).await;
    database.by_hand("DELETE FROM holdings").await.unwrap();
    assert_eq!(database.change(&orders[0], Change::Cancel).await, CANCELLED);
    assert_eq!(database.change(&orders[1], PAY).await, PAID);
    assert!(is_reserved(&database.decide(&[of("a", order(id, 1))]).await[0]));
    database.by_hand("UPDATE holdings SET pieces = 1").await.unwrap();
    assert_eq!(database.held(id, "a").await, 1);
    // Without the limit and with it again, it is right again.
    database.set_limit(id, None).await;
    database.set_limit(id, Some(5)).await;
    assert_eq!(database.held(id, "a").await, 4);
    database.assert_balanced().await;
}

async fn an_unlimited_product_has_no_holdings(database: Database) {
    let (free, limited) = (database.product_of(20).await, database.limited(20, 5).await);
    let mine = of("a", order(limited, 2));
    database
        .decide(&[of("a", order(free, 2)), mine.clone(), of("b", basket(&[(free, 1), (limited, 1)]))])
        .await;
    assert_eq!(database.rows_of_holdings().await, 2);
    database.change(&mine, Change::Cancel).await;
    assert_eq!(database.rows_of_holdings().await, 1, "who holds nothing has no row");
    database.set_limit(free, Some(9)).await;
    assert_eq!(database.rows_of_holdings().await, 3);
    database.set_limit(limited, None).await;
    assert_eq!(database.rows_of_holdings().await, 2);
    database.set_limit(free, None).await;
    assert_eq!(database.rows_of_holdings().await, 0);
}

/// Setting a limit in the middle of a sale keeps the product's inventory locked for as long as this takes.
async fn a_limit_counts_a_hundred_thousand_orders(database: Database) {
    const ORDERS: u32 = 100_000;
    let id = database.product_of(10).await;
    let (prepare, row_id, name) = match &database.home {
        Home::MySql { .. } => (
            "SET SESSION cte_max_recursion_depth = 1000000;",
            "UNHEX(LPAD(HEX(i), 32, '0'))",
            "CONCAT('buyer-', i DIV 2)",
        ),
        Home::Sqlite { .. } | Home::Memory { .. } => ("", "unhex(printf('%032x', i))", "'buyer-' || (i / 2)"),
    };
    let insert = format!(
        "{prepare} INSERT INTO orders (id, product_id, total, status, expires_at, rejection_reason, buyer)
         WITH RECURSIVE numbers (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM numbers WHERE i < {ORDERS})
         SELECT {row_id}, {id}, 1, 'paid', 0, NULL, {name} FROM numbers"
    );
    database.by_hand(&insert).await.unwrap();
    let began = Instant::now();
    database.set_limit(id, Some(3)).await;
    eprintln!("a limit counts {ORDERS} orders of one product within {:?}", began.elapsed());
    assert_eq!(database.rows_of_holdings().await, i64::from(ORDERS / 2 + 1));
    assert_eq!(database.held(id, "buyer-4711").await, 2);
    assert!(is_reserved(&database.decide(&[of("buyer-4711", order(id, 1))]).await[0]));
    let began = Instant::now();
    database.set_limit(id, None).await;
    eprintln!("they are forgotten within {:?}", began.elapsed());
    assert_eq!(database.rows_of_holdings().await, 0);
}
