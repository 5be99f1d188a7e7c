//! Lists of orders: pages, filters, and their bounded work, which delays no other statement.

use super::*;

suite! {
    every_store: [
        orders_are_paged_by_creation,
        orders_are_filtered_by_product_and_status,
        orders_are_listed_newest_first_and_since_a_time,
        an_order_is_listed_under_each_of_its_products,
    ],
    sql_only: [
        every_status_finds_its_orders,
        a_page_examines_a_bounded_number_of_orders,
    ],
}

async fn orders_are_paged_by_creation(database: Database) {
    let (shirt, hat) = (database.product_of(100).await, database.product_of(100).await);
    let orders: Vec<NewOrder> = (0..25).map(|n| order(if n % 2 == 0 { shirt } else { hat }, 1)).collect();
    let ids: Vec<OrderId> = orders.iter().map(|order| order.id).collect();
    // Decided in another order than they were created: the newest first.
    for batch in orders.rchunks(4) {
        database.decide(batch).await;
    }
    let page = async |after: Option<OrderId>, limit: u32| {
        let page = OrderPage { after, ..OrderPage::first(limit) };
        let orders = database.store.orders(page).await.unwrap();
        orders.rows.iter().map(|order| order.id).collect::<Vec<_>>()
    };
    assert_eq!(page(None, 10).await, ids[..10]);
    assert_eq!(page(Some(ids[9]), 10).await, ids[10..20]);
    assert_eq!(page(Some(ids[19]), 10).await, ids[20..]);
    assert_eq!(page(Some(ids[24]), 10).await, []);
    assert_eq!(page(None, 1_000).await, ids);
    assert_eq!(page(None, 0).await, []);
    // From behind an id that is not stored.
    assert_eq!(page(Some(SystemClock.order_id()), 10).await, []);
    assert_eq!(page(Some(uuid::Uuid::nil().into()), 1).await, ids[..1]);
    assert_eq!(page(Some(uuid::Uuid::max().into()), 10).await, []);
}

async fn orders_are_filtered_by_product_and_status(database: Database) {
    let (shirt, hat) = (database.product_of(10).await, database.product_of(1).await);
    let reserved = [order(shirt, 1), order(hat, 1), order(shirt, 2)];
    let too_many = [detached_order(shirt, 100), detached_order(hat, 100)];
    database.decide(&[reserved.as_slice(), &too_many].concat()).await;
    let list = async |product_id, status, after: Option<OrderId>, limit| {
        let page = OrderPage { product_id, status, after, ..OrderPage::first(limit) };
        let orders = database.store.orders(page).await.unwrap();
        orders.rows.iter().map(|order| order.id).collect::<Vec<_>>()
    };
    let ids = |orders: &[NewOrder]| orders.iter().map(|order| order.id).collect::<Vec<_>>();
    let (r, x) = (ids(&reserved), ids(&too_many));
    assert_eq!(list(Some(shirt), None, None, 10).await, [r[0], r[2], x[0]]);
    assert_eq!(list(Some(hat), None, None, 10).await, [r[1], x[1]]);
    assert_eq!(list(Some(stranger()), None, None, 10).await, []);
    assert_eq!(list(None, Some(OrderStatus::Reserved), None, 10).await, r);
    assert_eq!(list(None, Some(OrderStatus::Rejected), None, 10).await, x);
    assert_eq!(list(Some(hat), Some(OrderStatus::Rejected), None, 10).await, [x[1]]);
    assert_eq!(list(Some(shirt), Some(OrderStatus::Reserved), Some(r[0]), 10).await, [r[2]]);
    assert_eq!(list(Some(shirt), Some(OrderStatus::Reserved), None, 1).await, [r[0]]);
    for none_yet in [OrderStatus::Paid, OrderStatus::Cancelled, OrderStatus::Expired] {
        assert_eq!(list(None, Some(none_yet), None, 10).await, []);
    }
}

async fn orders_are_listed_newest_first_and_since_a_time(database: Database) {
    let (shirt, hat) = (database.product_of(100).await, database.product_of(100).await);
    let orders: Vec<NewOrder> = (0..25).map(|n| order(if n % 2 == 0 { shirt } else { hat }, 1)).collect();
    let ids: Vec<OrderId> = orders.iter().map(|order| order.id).collect();
    database.decide(&orders).await;
    let newest = |page: OrderPage| OrderPage { direction: Direction::NewestFirst, ..page };
    let list = async |page: OrderPage| {
        let page = database.store.orders(page).await.unwrap();
        (page.rows.iter().map(|order| order.id).collect::<Vec<_>>(), page.next)
    };
    let backwards = |ids: &[OrderId]| ids.iter().rev().copied().collect::<Vec<_>>();
    let (mut found, mut page) = (Vec::new(), newest(OrderPage::first(10)));
    for next in [Some(ids[15]), Some(ids[5]), None] {
        let (rows, behind) = list(page.clone()).await;
        assert_eq!(behind, next);
        found.extend(rows);
        page.after = behind;
    }
    assert_eq!(found, backwards(&ids));
    // A page begins behind any id, and a last page that is full says that it is the last one.
    let oldest = OrderPage { after: Some(ids[5]), ..newest(OrderPage::first(5)) };
    assert_eq!(list(oldest).await, (backwards(&ids[..5]), None));
    let nowhere = OrderPage { after: Some(uuid::Uuid::nil().into()), ..newest(OrderPage::first(5)) };
    assert_eq!(list(nowhere).await, (vec![], None));
    let everywhere = OrderPage { after: Some(uuid::Uuid::max().into()), ..newest(OrderPage::first(100)) };
    assert_eq!(list(everywhere).await, (backwards(&ids), None));

    // Since a time, in both directions, with and without the other filters.
    let since = |page: OrderPage| OrderPage { newer_than: Some(ids[9]), ..page };
    assert_eq!(list(since(OrderPage::first(100))).await, (ids[10..].to_vec(), None));
    assert_eq!(list(since(newest(OrderPage::first(100)))).await, (backwards(&ids[10..]), None));
    assert_eq!(list(since(OrderPage::first(2))).await, (ids[10..12].to_vec(), Some(ids[11])));
    for after in [ids[3], ids[9], ids[20]] {
        let ascending = OrderPage { after: Some(after), ..since(OrderPage::first(100)) };
        let descending = OrderPage { after: Some(after), ..since(newest(OrderPage::first(100))) };
        let at = ids.iter().position(|id| *id == after).unwrap();
        assert_eq!(list(ascending).await.0, ids[at.max(9) + 1..], "from the later of both");
        assert_eq!(list(descending).await.0, backwards(ids.get(10..at).unwrap_or_default()));
    }
    let of_hat: Vec<_> = ids.iter().skip(1).step_by(2).copied().filter(|id| *id > ids[9]).collect();
    let (product_id, status) = (Some(hat), Some(OrderStatus::Reserved));
    for status in [None, status] {
        let page = OrderPage { product_id, status, ..since(newest(OrderPage::first(100))) };
        assert_eq!(list(page.clone()).await, (backwards(&of_hat), None));
        let page = OrderPage { status: status.and(Some(OrderStatus::Paid)), limit: 3, ..page };
        let expected = if status.is_some() { vec![] } else { backwards(&of_hat)[..3].to_vec() };
        assert_eq!(list(page).await.0, expected);
    }
    let future = OrderPage { newer_than: Some(SystemClock.order_id()), ..OrderPage::first(100) };
    assert_eq!(list(future.clone()).await, (vec![], None));
    assert_eq!(list(newest(future)).await, (vec![], None));
}

async fn an_order_is_listed_under_each_of_its_products(database: Database) {
    let (shirt, hat) = (database.product_of(100).await, database.product_of(100).await);
    let basket = |first: ProductId, second: ProductId| {
        let lines = [first, second].map(|id| Line { product_id: id, total: Quantity::new(1).unwrap() });
        NewOrder { lines: lines.to_vec().try_into().unwrap(), ..order(first, 1) }
    };
    // By turns, so that each page is put together from both sorts.
    let orders: Vec<NewOrder> = (0..20)
        .map(|number| match number % 4 {
            0 => order(hat, 1),
            1 => basket(shirt, hat),
            2 => order(shirt, 1),
            _ => basket(hat, shirt),
        })
        .collect();
    assert_eq!(accepted(&database.decide(&orders).await), [true; 20]);
    database.change(&orders[1], PAY).await;
    let of = |product: ProductId| -> Vec<_> {
        let is_of = |order: &&NewOrder| order.lines.products().any(|id| id == product);
        orders.iter().filter(is_of).map(|order| order.id).collect()
    };
    for product in [shirt, hat] {
        let ids = of(product);
        assert_eq!(ids.len(), 15);
        for limit in [1, 4, 100] {
            for direction in [Direction::OldestFirst, Direction::NewestFirst] {
                let expected: Vec<_> = match direction {
                    Direction::OldestFirst => ids.clone(),
                    Direction::NewestFirst => ids.iter().rev().copied().collect(),
                };
                for (status, left_out) in [(None, None), (Some(OrderStatus::Reserved), Some(orders[1].id))] {
                    let filter = OrderPage { product_id: Some(product), status, ..OrderPage::first(limit) };
                    let mut page = OrderPage { direction, ..filter };
                    let mut found = Vec::new();
                    loop {
                        let Page { rows, next } = database.store.orders(page.clone()).await.unwrap();
                        found.extend(rows.iter().map(|order| order.id));
                        page.after = next;
                        if next.is_none() {
                            break;
                        }
                    }
                    let expected: Vec<_> =
                        expected.iter().copied().filter(|id| Some(*id) != left_out).collect();
                    assert_eq!(found, expected, "{page:?}");
                }
            }
        }
    }
}

async fn every_status_finds_its_orders(database: Database) {
    let id = database.product_of(10).await;
    let order = order(id, 1);
    database.decide(slice::from_ref(&order)).await;
    for status in [OrderStatus::Paid, OrderStatus::Cancelled, OrderStatus::Expired] {
        let (word, hex) = (status.as_str(), order.id.uuid().simple());
        database.by_hand(&format!("UPDATE orders SET status = '{word}' WHERE id = X'{hex}'")).await.unwrap();
        let page = OrderPage { status: Some(status), ..OrderPage::first(10) };
        let found = database.store.orders(page).await.unwrap().rows;
        assert_eq!(found.iter().map(|order| order.id).collect::<Vec<_>>(), [order.id]);
        assert_eq!(database.store.order(order.id).await.unwrap().unwrap().status(), status);
    }
}

/// How many orders the store examines for a page at most.
const EXAMINED: usize = 5_000;

/// The numbers from 1 to 100,000 as a table `numbers (n)`.
const NUMBERS: &str =
    "WITH RECURSIVE digits (d) AS (SELECT 0 UNION ALL SELECT d + 1 FROM digits WHERE d < 9),
    numbers (n) AS (
        SELECT a.d + 10 * b.d + 100 * c.d + 1000 * e.d + 10000 * f.d + 1
        FROM digits a, digits b, digits c, digits e, digits f
    )";

/// The id of the order with this number, as [`fill`] inserts it.
fn numbered(number: usize) -> OrderId {
    uuid::Uuid::from_u128(number as u128).into()
}

/// Inserts the paid orders 1 to `count`, all of one product.
async fn fill(database: &Database, product: ProductId, count: usize) {
    let insert = "INSERT INTO orders (id, product_id, total, status, expires_at)";
    let statement = match &database.home {
        Home::Memory { .. } => unreachable!("for SQL only"),
        Home::Sqlite { .. } => format!(
            "{NUMBERS} {insert}
             SELECT unhex(printf('%032x', n)), {product}, 1, 'paid', 1 FROM numbers WHERE n <= {count} ORDER BY n"
        ),
        Home::MySql { .. } => format!(
            "{insert} {NUMBERS}
             SELECT UNHEX(LPAD(HEX(n), 32, '0')), {product}, 1, 'paid', 1 FROM numbers WHERE n <= {count} ORDER BY n"
        ),
    };
    database.by_hand(&statement).await.unwrap();
}

async fn cancel(database: &Database, number: usize) {
    let id = numbered(number).uuid().simple();
    let statement = format!("UPDATE orders SET status = 'cancelled' WHERE id = X'{id}'");
    database.by_hand(&statement).await.unwrap();
}

/// However rare a match is: a page passes over a bounded number of orders, and the next page continues after them.
async fn a_page_examines_a_bounded_number_of_orders(database: Database) {
    let (shirt, hat) = (database.product_of(1).await, database.product_of(1).await);
    fill(&database, shirt, 2 * EXAMINED + 100).await;
    cancel(&database, 2 * EXAMINED + 50).await;
    for product_id in [None, Some(shirt)] {
        let list = async |after, status, limit| {
            let page = OrderPage { product_id, status, after, ..OrderPage::first(limit) };
            let page = database.store.orders(page).await.unwrap();
            (page.rows.iter().map(|order| order.id).collect::<Vec<_>>(), page.next)
        };
        let cancelled = Some(OrderStatus::Cancelled);
        let (first, second) = (numbered(EXAMINED), numbered(2 * EXAMINED));
        assert_eq!(list(None, cancelled, 10).await, (vec![], Some(first)));
        assert_eq!(list(Some(first), cancelled, 10).await, (vec![], Some(second)));
        assert_eq!(list(Some(second), cancelled, 10).await, (vec![numbered(2 * EXAMINED + 50)], None));
        // A full page says where it ends, and so does one that ends with the last row that it may examine.
        let paid = Some(OrderStatus::Paid);
        assert_eq!(list(None, paid, 2).await, (vec![numbered(1), numbered(2)], Some(numbered(2))));
        let (rows, next) = list(None, paid, EXAMINED as u32).await;
        assert_eq!((rows.len(), rows.last(), next), (EXAMINED, Some(&first), Some(first)));
        // Without a filter that passes over orders, a page has as many rows as its limit.
        let (rows, next) = list(None, None, 2 * EXAMINED as u32).await;
        assert_eq!((rows.len(), next), (2 * EXAMINED, Some(second)));

        // The same from the newest on, down to a time.
        let newest = async |after, status, newer_than| {
            let direction = Direction::NewestFirst;
            let page = OrderPage { product_id, status, after, newer_than, direction, ..OrderPage::first(10) };
            let page = database.store.orders(page).await.unwrap();
            (page.rows.iter().map(|order| order.id).collect::<Vec<_>>(), page.next)
        };
        let (last, rare) = (2 * EXAMINED + 100, numbered(2 * EXAMINED + 50));
        let (first, second) = (numbered(last - EXAMINED + 1), numbered(last - 2 * EXAMINED + 1));
        assert_eq!(newest(None, cancelled, None).await, (vec![rare], Some(first)));
        assert_eq!(newest(Some(first), cancelled, None).await, (vec![], Some(second)));
        assert_eq!(newest(Some(second), cancelled, None).await, (vec![], None));
        assert_eq!(newest(None, cancelled, Some(numbered(EXAMINED))).await, (vec![rare], Some(first)));
        assert_eq!(newest(Some(first), cancelled, Some(numbered(EXAMINED))).await, (vec![], None));
        let top: Vec<_> = (0..10).map(|number| numbered(last - number)).collect();
        assert_eq!(newest(None, None, None).await, (top, Some(numbered(last - 9))));
    }
    let cancelled = Some(OrderStatus::Cancelled);
    let of_hat = OrderPage { product_id: Some(hat), status: cancelled, ..OrderPage::first(10) };
    let page = database.store.orders(of_hat).await.unwrap();
    assert_eq!((page.rows, page.next), (vec![], None), "orders of other products are not examined");
}

/// Blocked lists delay only other lists, and they end, in the database too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn blocked_lists_delay_only_lists() {
    let database = Database::mysql().await;
    let product = database.product_of(1).await;
    let Home::MySql { place } = &database.home else { panic!("not on MySQL") };
    let mut other = MySqlConnection::connect(&place.database_url).await.unwrap();
    other.execute(sqlx::raw_sql("LOCK TABLES orders WRITE")).await.unwrap();
    let began = Instant::now();
    let page = OrderPage::first(10);
    let lists = join_all((0..8).map(|_| database.store.orders(page.clone())));
    let others = async {
        for _ in 0..20 {
            database.store.ping().await.unwrap();
            assert!(database.store.product(product).await.unwrap().is_some());
        }
        began.elapsed()
    };
    let (lists, others) = tokio::join!(lists, others);
    assert!(others < Duration::from_secs(1), "{others:?}");
    let mut errors: Vec<_> = lists.into_iter().map(Result::unwrap_err).collect();
    assert!(errors.iter().all(StoreError::is_transient), "{errors:?}");
    errors.retain(|error| matches!(error, StoreError::TooManyLists));
    assert_eq!(errors.len(), 6);
    // The server has ended the statements: none waits for the table.
    let waiting: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM information_schema.processlist
         WHERE db = DATABASE() AND state LIKE 'Waiting for table%'",
    )
    .fetch_one(&mut other)
    .await
    .unwrap();
    assert_eq!(waiting, 0);
    other.execute(sqlx::raw_sql("UNLOCK TABLES")).await.unwrap();
    assert_eq!(database.store.orders(page).await.unwrap().rows, []);
}

/// Each page is a walk along one index, in either direction: the server reads no row that the page may not examine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn a_page_reads_few_rows() {
    const SLACK: i64 = 50;
    // Only the whole server counts rows, so nobody else may use it.
    let alone = servers().await.alone().await;
    let place = alone.place.behind(&alone.place.database_url);
    let database = Database::at(Home::MySql { place }).await;
    let (shirt, hat) = (database.product_of(1).await, database.product_of(1).await);
    fill(&database, shirt, 10 * EXAMINED).await;
    let mut counter = MySqlConnection::connect(&alone.place.database_url).await.unwrap();
    let mut count = async || -> i64 {
        let counts: Vec<(String, String)> = sqlx::query_as("SHOW GLOBAL STATUS LIKE 'Handler\\_read\\_%'")
            .fetch_all(&mut counter)
            .await
            .unwrap();
        assert!(counts.len() >= 7, "{counts:?}");
        counts.iter().map(|(_, count)| count.parse::<i64>().unwrap()).sum()
    };
    let (before, after) = (count().await, count().await);
    let of_counting = after - before;
    let (none, rare) = (None, Some(OrderStatus::Cancelled));
    for direction in [Direction::OldestFirst, Direction::NewestFirst] {
        for (product_id, newer_than, status, most) in [
            (None, None, none, 21),
            (None, Some(numbered(EXAMINED)), none, 21),
            // Those of a product are read again where both of its walks are put together.
            (Some(shirt), None, none, 4 * 21),
            (Some(shirt), Some(numbered(EXAMINED)), none, 4 * 21),
            (Some(hat), None, none, 0),
            (Some(hat), None, rare, 0),
            (None, None, rare, 2 * EXAMINED as i64),
            (Some(shirt), Some(numbered(EXAMINED)), rare, 5 * EXAMINED as i64),
        ] {
            let page = OrderPage { product_id, newer_than, status, direction, ..OrderPage::first(20) };
            let before = count().await;
            database.store.orders(page.clone()).await.unwrap();
            let read = count().await - before - of_counting;
            assert!(read <= most + SLACK, "{read} rows for {page:?}");
        }
    }
}
