use sqlx::Executor;

use super::*;
use crate::{
    clock::{Clock, SystemClock},
    domain::{
        command::{NewOrder, ReplyMode},
        lines::Lines,
        order::Quantity,
        origin::Origin,
        product::ProductName,
    },
    store::{
        Ledger,
        observer::{RetryCause, TransactionPhases},
    },
};

#[tokio::test]
async fn a_list_without_end_is_interrupted_and_its_connection_lists_again() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", directory.path().join("antre.db").display());
    let store = SqliteStore::open(&url).await.unwrap();
    let endless = "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers)
        SELECT n FROM numbers WHERE n < 0";
    let began = Instant::now();
    let mut connection = store.listing().await.unwrap();
    let error = connection.execute(endless).await.unwrap_err();
    let (took, error) = (began.elapsed(), StoreError::from(error));
    assert!(error.is_transient(), "{error}");
    assert!(took >= lists::TIME_LIMIT && took < 2 * lists::TIME_LIMIT, "{took:?}");
    drop(connection);
    for _ in 0..=lists::CONCURRENT_LISTS {
        assert_eq!(store.products(false, None, 10).await.unwrap(), Page::empty());
    }
}

/// A full disk: SQLite rolls back on its own, and the writing connection works again when there is room.
#[tokio::test]
async fn after_a_full_disk_it_writes_again() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", directory.path().join("antre.db").display());
    let store = SqliteStore::open(&url).await.unwrap();
    let name = || ProductName::try_from("k".repeat(100)).unwrap();
    let room = async |pages: u32| {
        let pragma = format!("PRAGMA max_page_count = {pages}");
        store.writer.lock().await.as_mut().unwrap().execute(pragma.as_str()).await.unwrap();
    };
    room(1).await; // as many as there are
    let error = loop {
        if let Err(error) = store.create_product(name()).await {
            break error;
        }
    };
    assert!(error.is_transient(), "{error}");
    for _ in 0..2 {
        assert!(store.create_product(name()).await.unwrap_err().is_transient());
        store.ping().await.unwrap();
    }
    room(100_000).await;
    let product = store.create_product(name()).await.unwrap();
    assert!(store.inventory(product.id).await.unwrap().is_some());
}

#[derive(Default)]
struct Seen(std::sync::Mutex<Vec<String>>);

impl TransactionObserver for Seen {
    fn committed(&self, phases: TransactionPhases) {
        let all = [phases.lock_and_read, phases.decide, phases.write_and_commit];
        assert!(all.iter().all(|phase| *phase > Duration::ZERO), "{phases:?}");
        self.0.lock().unwrap().push("committed".to_owned());
    }

    fn runs_again(&self, cause: RetryCause) {
        self.0.lock().unwrap().push(format!("{cause:?}"));
    }
}

#[tokio::test]
async fn an_observer_learns_of_each_transaction_and_why_one_runs_again() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", directory.path().join("antre.db").display());
    let seen = Arc::new(Seen::default());
    let store = SqliteStore::open(&url).await.unwrap().observed_by(seen.clone());
    let product = store.create_product("Kaos Polos".to_owned().try_into().unwrap()).await.unwrap();
    store.recount(product.id, Stock::new(2).unwrap()).await.unwrap().done().unwrap();
    assert!(seen.0.lock().unwrap().is_empty(), "only batches count");
    let order = Command::from(NewOrder {
        id: SystemClock.order_id(),
        lines: Lines::one(product.id, Quantity::new(1).unwrap()),
        buyer: None,
        reply: ReplyMode::Detached,
        key: None,
        origin: Origin::default(),
    });
    for _ in 0..2 {
        store.decide(std::slice::from_ref(&order), Rules::of_ttl(Duration::from_secs(900))).await.unwrap();
    }
    assert_eq!(
        *seen.0.lock().unwrap(),
        ["committed", "Duplicate", "committed"],
        "the second time it is stored"
    );
}

/// Every page is a walk along an index, between two of its entries: no table is read from its beginning to its end.
#[tokio::test]
async fn each_list_of_orders_walks_along_its_indexes() {
    use crate::{
        domain::{names::Buyer, order::OrderStatus},
        store::page::Direction,
    };
    const ALL: &[&str] = &["SEARCH orders USING PRIMARY KEY (id>?)"];
    const OF_PRODUCT: &[&str] = &[
        "SEARCH orders USING INDEX orders_of_product (product_id=? AND id>?)",
        "SEARCH basket_lines USING PRIMARY KEY (product_id=? AND order_id>?)",
        "SEARCH orders USING PRIMARY KEY (id=?)",
    ];
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", directory.path().join("antre.db").display());
    let store = SqliteStore::open(&url).await.unwrap();
    let mut connection = store.reads.acquire().await.unwrap();
    const OF_BUYER: &[&str] = &[
        "SEARCH orders_of_buyers USING PRIMARY KEY (buyer=? AND order_id>?)",
        "SEARCH orders USING PRIMARY KEY (id=?)",
    ];
    let buyer = Buyer::try_from("buyer-17".to_owned()).ok();
    for (product_id, buyer, expected) in
        [(None, None, ALL), (ProductId::new(1), None, OF_PRODUCT), (None, buyer, OF_BUYER)]
    {
        for (direction, after) in [
            (Direction::OldestFirst, None),
            (Direction::NewestFirst, None),
            (Direction::NewestFirst, Some(Uuid::max().into())),
        ] {
            for status in [None, Some(OrderStatus::Paid)] {
                let buyer = buyer.clone();
                let page = OrderPage { product_id, buyer, status, direction, after, ..OrderPage::first(20) };
                let last_examined = status.map(|_| Uuid::nil());
                let mut statements = vec![BY_ID.orders::<Sqlite>(&page, last_examined)];
                statements.extend(BY_ID.last_examined(&page));
                for statement in statements {
                    let plan = format!("EXPLAIN QUERY PLAN {}", statement.sql());
                    let plan: Vec<(i64, i64, i64, String)> =
                        sqlx::query_as(&plan).fetch_all(&mut *connection).await.unwrap();
                    // A page behind another one also has an upper bound.
                    let steps = plan.into_iter().map(|(.., step)| {
                        step.replace("COVERING ", "").replace(" AND id<?", "").replace(" AND order_id<?", "")
                    });
                    // What is read again are the few rows of a walk.
                    let reads = steps.filter(|step| {
                        step.starts_with("SEARCH ")
                            || step.starts_with("SCAN ") && !step.starts_with("SCAN walk_")
                    });
                    assert_eq!(reads.collect::<Vec<_>>(), expected, "{}", statement.sql());
                }
            }
        }
    }
}
