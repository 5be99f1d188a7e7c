//! Lists have bounded work, and are in nobody's way.

use super::*;

suite! {
    every_store: [],
    sql_only: [
        a_page_examines_a_bounded_number_of_orders,
    ],
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

/// The order of this number, as [`fill`] makes it.
fn numbered(number: usize) -> OrderId {
    uuid::Uuid::from_u128(number as u128).into()
}

/// Puts paid orders 1 to `count` on record, of one product.
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

/// However rare what it looks for is: a page passes over a bounded number of orders, and the next one goes on behind them.
async fn a_page_examines_a_bounded_number_of_orders(database: Database) {
    let (shirt, hat) = (database.product_of(1).await, database.product_of(1).await);
    fill(&database, shirt, 2 * EXAMINED + 100).await;
    cancel(&database, 2 * EXAMINED + 50).await;
    for product_id in [None, Some(shirt)] {
        let list = async |after, status, limit| {
            let page = database.store.orders(OrderPage { product_id, status, after, limit }).await.unwrap();
            (page.rows.iter().map(|order| order.id).collect::<Vec<_>>(), page.next)
        };
        let cancelled = Some(OrderStatus::Cancelled);
        let (first, second) = (numbered(EXAMINED), numbered(2 * EXAMINED));
        assert_eq!(list(None, cancelled, 10).await, (vec![], Some(first)));
        assert_eq!(list(Some(first), cancelled, 10).await, (vec![], Some(second)));
        assert_eq!(list(Some(second), cancelled, 10).await, (vec![numbered(2 * EXAMINED + 50)], None));
        // A page that is full says where it ends, and so does one that ends with the last row that it may examine.
        let paid = Some(OrderStatus::Paid);
        assert_eq!(list(None, paid, 2).await, (vec![numbered(1), numbered(2)], Some(numbered(2))));
        let (rows, next) = list(None, paid, EXAMINED as u32).await;
        assert_eq!((rows.len(), rows.last(), next), (EXAMINED, Some(&first), Some(first)));
        // Without a filter that passes over orders, pages are as long as they may be.
        let (rows, next) = list(None, None, 2 * EXAMINED as u32).await;
        assert_eq!((rows.len(), next), (2 * EXAMINED, Some(second)));
    }
    let of_hat =
        OrderPage { product_id: Some(hat), status: Some(OrderStatus::Cancelled), after: None, limit: 10 };
    let page = database.store.orders(of_hat).await.unwrap();
    assert_eq!((page.rows, page.next), (vec![], None), "orders of other products are not examined");
}

/// Lists that stand still hold up nobody but lists, and they end: in the database, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn lists_that_stand_still_hold_up_nobody_else() {
    let database = Database::mysql().await;
    let product = database.product_of(1).await;
    let Home::MySql { place } = &database.home else { panic!("it is on MySQL") };
    let mut other = MySqlConnection::connect(&place.database_url).await.unwrap();
    other.execute(sqlx::raw_sql("LOCK TABLES orders WRITE")).await.unwrap();
    let began = Instant::now();
    let page = OrderPage { product_id: None, status: None, after: None, limit: 10 };
    let lists = join_all((0..8).map(|_| database.store.orders(page)));
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
    // Ended by the server: nobody is left behind who waits for the table.
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
