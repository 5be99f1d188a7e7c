//! The store contract as one suite, run on every adapter: what a database behind [`Store`] must do.
//!
//! A test gets a [`Database`] of its own. What it may not do through the store, it does by hand.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    future::{Future, poll_fn},
    pin::pin,
    slice,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use antre::{
    clock::{Clock, SystemClock},
    domain::{
        command::{Command, NewOrder, ReplyMode},
        ids::{OrderId, ProductId},
        inventory::{Inventory, Stock, StockBelowReserved},
        order::{Order, OrderState, OrderStatus, Quantity},
        product::{Product, ProductName},
        rejection::Rejection,
        verdict::Verdict,
    },
    store::{
        OrderPage, Recount, Store, StoreError, memory::MemoryStore, mysql::MySqlStore, sqlite::SqliteStore,
    },
};
use futures_util::future::join_all;
use jiff::{SignedDuration, Timestamp};
use proptest::{collection::vec, prelude::*, sample::Index, test_runner::TestRunner};
use sqlx::{Connection, Executor, MySqlConnection, SqliteConnection};
use tokio::task::{JoinSet, block_in_place};

use crate::support::servers::{Place, servers};

/// One test for each function and adapter, so that a failure says which of them it was. A function that is not in
/// the list is dead code, and the compiler says so.
///
/// `every_store` runs on all three. `sql_only` are tests of what only a database has: rows and triggers that the test writes
/// by hand, statements that are cancelled in flight, connections to a file or server.
macro_rules! suite {
    (every_store: [$($test:ident,)*], sql_only: [$($sql_test:ident,)*],) => {
        mod memory {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    super::$test(super::Database::memory().await).await;
                }
            )*
        }
        mod sqlite {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    super::$test(super::Database::sqlite().await).await;
                }
            )*
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $sql_test() {
                    super::$sql_test(super::Database::sqlite().await).await;
                }
            )*
        }
        mod mysql {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                #[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
                async fn $test() {
                    super::$test(super::Database::mysql().await).await;
                }
            )*
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                #[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
                async fn $sql_test() {
                    super::$sql_test(super::Database::mysql().await).await;
                }
            )*
        }
    };
}

mod life;
mod lists;

suite! {
    every_store: [
        a_new_product_has_no_pieces,
        a_name_comes_back_as_it_went_in,
        products_are_paged_in_the_order_of_their_ids,
        what_is_not_reserved_is_available_after_a_recount,
        a_recount_below_what_is_reserved_changes_nothing,
        nothing_is_known_of_what_does_not_exist,
        an_order_on_record_has_all_that_was_ordered,
        orders_are_paged_in_the_order_of_their_creation,
        orders_are_filtered_by_product_and_status,
        first_come_first_served_in_every_lane_of_a_batch,
        all_pieces_of_an_order_or_none,
        an_unknown_product_is_rejected_amid_others,
        an_empty_batch_is_no_work,
        a_redelivered_batch_gets_the_verdicts_on_record,
        a_reservation_is_not_rejected_when_it_comes_back_to_an_empty_shelf,
        a_batch_half_old_half_new_decides_only_the_new,
        an_order_that_stands_twice_in_a_batch_is_decided_once,
        a_rejection_for_which_nobody_waits_is_stored,
        a_detached_copy_stores_the_rejection_of_the_first,
        the_largest_numbers_are_exact,
        a_thousand_orders_in_one_batch,
        a_thousand_products_in_one_batch,
        many_workers_never_oversell_one_product,
        many_workers_never_oversell_crossing_products,
        the_same_batch_decided_by_many_workers_at_once_is_decided_once,
        recounts_and_orders_do_not_lose_each_other,
        any_history_is_as_the_model_says,
        decisions_cancelled_in_a_crowd_leave_books_that_balance,
        what_is_committed_survives_closing,
        many_may_open_one_database_at_once,
    ],
    sql_only: [
        every_status_finds_its_orders,
        a_batch_that_accepts_nothing_writes_nothing,
        a_batch_that_fails_halfway_leaves_nothing,
        what_became_of_an_order_since_does_not_change_its_verdict,
        a_decision_cancelled_at_any_point_leaves_books_that_balance,
        every_database_has_an_id_of_its_own,
        bad_numbers_written_by_hand_are_refused,
    ],
}

/// A database of its own for one test.
struct Database {
    store: Arc<dyn Store>,
    home: Home,
}

/// Where it is.
enum Home {
    Memory { first: MemoryStore },
    Sqlite { directory: tempfile::TempDir },
    MySql { place: Place },
}

impl Database {
    async fn memory() -> Self {
        Self::at(Home::Memory { first: MemoryStore::new(uuid::Uuid::new_v4(), Arc::new(SystemClock)) }).await
    }

    async fn sqlite() -> Self {
        Self::at(Home::Sqlite { directory: tempfile::tempdir().unwrap() }).await
    }

    async fn mysql() -> Self {
        Self::at(Home::MySql { place: servers().await.fresh().await }).await
    }

    async fn at(home: Home) -> Self {
        Self { store: home.open().await, home }
    }

    /// A product of so many pieces.
    async fn product_of(&self, pieces: u32) -> ProductId {
        let product = self.store.create_product(name("Kaos Polos")).await.unwrap();
        self.store.recount(product.id, stock(pieces)).await.unwrap().done().unwrap();
        product.id
    }

    /// Stored, available and reserved pieces.
    async fn pieces(&self, id: ProductId) -> [u32; 3] {
        let (_, inventory) = self.store.inventory(id).await.unwrap().unwrap();
        [inventory.stored(), inventory.available(), inventory.reserved()]
    }

    /// Decides as a worker does: asks until the database answers.
    async fn decide(&self, orders: &[NewOrder]) -> Vec<Verdict> {
        decide(&*self.store, orders).await
    }

    /// Everything on record for this product, fetched page by page.
    async fn orders_of(&self, id: ProductId) -> Vec<Order> {
        let (mut orders, mut after) = (Vec::new(), None);
        loop {
            let page = OrderPage { product_id: Some(id), status: None, after, limit: 1_000 };
            let page = self.store.orders(page).await.unwrap();
            orders.extend(page.rows);
            after = page.next;
            if after.is_none() {
                return orders;
            }
        }
    }

    /// For every product, what is reserved is what its reserved orders add up to. That stored is available plus
    /// reserved, the store itself checks with every inventory that it reads.
    #[track_caller]
    fn assert_balanced(&self) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            for id in self.store.product_ids().await.unwrap() {
                let [_, _, reserved] = self.pieces(id).await;
                let orders = self.orders_of(id).await;
                let ordered: u64 = orders
                    .iter()
                    .filter(|order| order.status() == OrderStatus::Reserved)
                    .map(|order| u64::from(order.total.get()))
                    .sum();
                assert_eq!(u64::from(reserved), ordered, "of product {id}, seen from {caller}");
            }
        }
    }

    /// Runs a statement behind the store's back.
    async fn by_hand(&self, statement: &str) -> Result<(), sqlx::Error> {
        self.home.execute(statement).await
    }
}

impl Home {
    async fn open(&self) -> Arc<dyn Store> {
        match self {
            Self::Memory { first } => Arc::new(first.open_again()),
            Self::Sqlite { .. } => Arc::new(SqliteStore::open(&self.url()).await.unwrap()),
            Self::MySql { place } => Arc::new(MySqlStore::open(&place.database_url).await.unwrap()),
        }
    }

    fn url(&self) -> String {
        match self {
            Self::Memory { .. } => panic!("no statement runs in memory: the test is for SQL only"),
            Self::Sqlite { directory } => format!("sqlite://{}", directory.path().join("antre.db").display()),
            Self::MySql { place } => place.database_url.clone(),
        }
    }

    async fn execute(&self, statement: &str) -> Result<(), sqlx::Error> {
        let statement = statement.to_owned();
        match self {
            Self::Memory { .. } => panic!("no statement runs in memory: the test is for SQL only"),
            Self::Sqlite { .. } => {
                let mut connection = SqliteConnection::connect(&self.url()).await?;
                connection.execute(sqlx::raw_sql(&statement)).await?;
                connection.close().await
            }
            Self::MySql { .. } => {
                let mut connection = MySqlConnection::connect(&self.url()).await?;
                connection.execute(sqlx::raw_sql(&statement)).await?;
                connection.close().await
            }
        }
    }

    /// A trigger that refuses every such change of that table.
    fn refuse(&self, change: &str, table: &str) -> String {
        match self {
            Self::Memory { .. } => panic!("no trigger runs in memory: the test is for SQL only"),
            Self::Sqlite { .. } => format!(
                "CREATE TRIGGER refuse_{change}_{table} BEFORE {change} ON {table}
                 BEGIN SELECT RAISE(ABORT, 'refused by hand'); END"
            ),
            Self::MySql { .. } => format!(
                "CREATE TRIGGER refuse_{change}_{table} BEFORE {change} ON {table} FOR EACH ROW
                 SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'refused by hand'"
            ),
        }
    }
}

const TTL: Duration = Duration::from_secs(900);
/// No test waits longer than this for a database.
const DEADLINE: Duration = Duration::from_secs(60);

/// With the rules of stored names: they allow more than those of new ones.
fn name(text: &str) -> ProductName {
    ProductName::stored(text.to_owned()).unwrap()
}

fn stock(pieces: u32) -> Stock {
    Stock::new(pieces).unwrap()
}

/// A product that no test ever makes.
fn stranger() -> ProductId {
    ProductId::new(ProductId::MAX).unwrap()
}

/// An order whose client waits for the verdict.
fn order(product_id: ProductId, total: u32) -> NewOrder {
    let reply = ReplyMode::Until(SystemClock.now());
    NewOrder {
        id: SystemClock.order_id(),
        product_id,
        total: Quantity::new(total).unwrap(),
        reply,
        key: None,
    }
}

/// An order for whose verdict nobody waits.
fn detached_order(product_id: ProductId, total: u32) -> NewOrder {
    NewOrder { reply: ReplyMode::Detached, ..order(product_id, total) }
}

fn rejected(available: u32) -> Verdict {
    Verdict::Rejected(Rejection::InsufficientStock { available })
}

fn is_reserved(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Reserved { .. })
}

/// Where the accepted ones stand.
fn accepted(verdicts: &[Verdict]) -> Vec<bool> {
    verdicts.iter().map(is_reserved).collect()
}

/// Until when each is reserved, if it is. This must be the same at every redelivery; a rejection in time is not on
/// record, and the number in it may be another one.
fn reservations(verdicts: &[Verdict]) -> Vec<Option<Timestamp>> {
    let expiry = |verdict: &Verdict| match verdict {
        Verdict::Reserved { expires_at } => Some(*expires_at),
        _ => None,
    };
    verdicts.iter().map(expiry).collect()
}

/// What the accepted ones of these add up to.
fn pieces_accepted(orders: &[NewOrder], verdicts: &[Verdict]) -> u32 {
    assert_eq!(orders.len(), verdicts.len());
    orders
        .iter()
        .zip(verdicts)
        .filter(|(_, verdict)| is_reserved(verdict))
        .map(|(order, _)| order.total.get())
        .sum()
}

fn commands(orders: &[NewOrder]) -> Vec<Command> {
    orders.iter().cloned().map(Command::Place).collect()
}

async fn decide(store: &dyn Store, orders: &[NewOrder]) -> Vec<Verdict> {
    let commands = commands(orders);
    let deadline = Instant::now() + DEADLINE;
    loop {
        match store.decide(&commands, TTL).await {
            Ok(decided) => return decided.verdicts,
            Err(error) => assert!(error.is_transient() && Instant::now() < deadline, "{error}"),
        }
    }
}

async fn a_new_product_has_no_pieces(database: Database) {
    let store = &database.store;
    let shirt = store.create_product(name("Kaos Polos")).await.unwrap();
    let twin = store.create_product(name("Kaos Polos")).await.unwrap();
    assert!(twin.id > shirt.id, "{} after {}", twin.id, shirt.id);
    for product in [shirt, twin] {
        assert_eq!(product.name, name("Kaos Polos"));
        assert_eq!(store.product(product.id).await.unwrap().as_ref(), Some(&product));
        assert_eq!(store.inventory(product.id).await.unwrap(), Some((product, Inventory::EMPTY)));
    }
}

async fn a_name_comes_back_as_it_went_in(database: Database) {
    let store = &database.store;
    let longest = "🦀".repeat(ProductName::MAX_LENGTH);
    let family = "👩‍👩‍👧‍👦 e\u{301} \u{10FFFF}";
    for text in [
        "a",
        "Kaos Polos",
        longest.as_str(),
        family,
        "nul\0inside",
        "\0",
        "\\ ' \" ` % _ ? :x $1",
        "عربي ไทย 漢字",
        "two\nlines\tand\r\u{1b}[0m",
        "ends in a zero-width space\u{200b}",
        "'); DROP TABLE products; --",
        "NULL",
        "{\"json\": [1]}",
    ] {
        let product = store.create_product(name(text)).await.unwrap();
        assert_eq!(product.name.as_str(), text);
        assert_eq!(store.product(product.id).await.unwrap().as_ref(), Some(&product));
        assert_eq!(store.inventory(product.id).await.unwrap().unwrap().0, product);
        assert_eq!(store.recount(product.id, stock(1)).await.unwrap().done().unwrap().0, product);
        assert_eq!(store.products(None, 100).await.unwrap().rows.last(), Some(&product));
    }
}

async fn products_are_paged_in_the_order_of_their_ids(database: Database) {
    let store = &database.store;
    let page = async |after, limit| {
        let page = store.products(after, limit).await.unwrap();
        (page.rows, page.next)
    };
    assert_eq!(page(None, 10).await, (vec![], None));
    assert_eq!(store.product_ids().await.unwrap(), []);
    let mut all: Vec<Product> = Vec::new();
    for number in (0..25).rev() {
        all.push(store.create_product(name(&format!("Product {number}"))).await.unwrap());
    }
    let ids: Vec<ProductId> = all.iter().map(|product| product.id).collect();
    assert!(ids.is_sorted());
    assert_eq!(store.product_ids().await.unwrap(), ids);
    assert_eq!(page(None, 10).await, (all[..10].to_vec(), Some(ids[9])));
    assert_eq!(page(Some(ids[9]), 10).await, (all[10..20].to_vec(), Some(ids[19])));
    assert_eq!(page(Some(ids[19]), 10).await, (all[20..].to_vec(), None));
    assert_eq!(page(Some(ids[24]), 10).await, (vec![], None));
    assert_eq!(page(Some(stranger()), 10).await, (vec![], None));
    assert_eq!(page(None, 25).await, (all.clone(), None));
    assert_eq!(page(None, u32::MAX).await, (all.clone(), None));
    assert_eq!(page(None, 0).await.0, []);
}

async fn what_is_not_reserved_is_available_after_a_recount(database: Database) {
    let id = database.product_of(10).await;
    assert_eq!(database.pieces(id).await, [10, 10, 0]);
    assert_eq!(accepted(&database.decide(&[order(id, 4)]).await), [true]);
    assert_eq!(database.pieces(id).await, [10, 6, 4]);
    // Twice the same is once.
    for (counted, expected) in [(7, [7, 3, 4]), (7, [7, 3, 4]), (4, [4, 0, 4]), (100, [100, 96, 4])] {
        let (product, inventory) = database.store.recount(id, stock(counted)).await.unwrap().done().unwrap();
        assert_eq!((product.id, product.name), (id, name("Kaos Polos")));
        assert_eq!([inventory.stored(), inventory.available(), inventory.reserved()], expected);
        assert_eq!(database.pieces(id).await, expected);
    }
    assert_eq!(accepted(&database.decide(&[order(id, 97), order(id, 96)]).await), [false, true]);
}

async fn a_recount_below_what_is_reserved_changes_nothing(database: Database) {
    let id = database.product_of(10).await;
    database.decide(&[order(id, 4)]).await;
    for counted in [0, 3] {
        let refused = database.store.recount(id, stock(counted)).await.unwrap();
        assert_eq!(refused, Recount::BelowReserved(StockBelowReserved { reserved: 4 }));
        assert_eq!(database.pieces(id).await, [10, 6, 4]);
    }
    // The refused one left no lock behind.
    assert_eq!(accepted(&database.decide(&[order(id, 6)]).await), [true]);
    assert_eq!(database.pieces(id).await, [10, 0, 10]);
}

async fn nothing_is_known_of_what_does_not_exist(database: Database) {
    let known = database.product_of(3).await;
    let store = &database.store;
    for id in [stranger(), ProductId::new(known.get() + 1).unwrap()] {
        assert_eq!(store.product(id).await.unwrap(), None);
        assert_eq!(store.inventory(id).await.unwrap(), None);
        assert_eq!(store.recount(id, stock(5)).await.unwrap(), Recount::NoSuchProduct);
        assert_eq!(database.orders_of(id).await, []);
    }
    for id in [SystemClock.order_id(), uuid::Uuid::nil().into(), uuid::Uuid::max().into()] {
        assert_eq!(store.order(id).await.unwrap(), None);
    }
    assert_eq!(store.product_ids().await.unwrap(), [known]);
    assert_eq!(store.existing(&[stranger(), known]).await.unwrap(), [known]);
    assert_eq!(store.existing(&[stranger()]).await.unwrap(), []);
    store.ping().await.unwrap();
}

async fn an_order_on_record_has_all_that_was_ordered(database: Database) {
    let id = database.product_of(10).await;
    let new = order(id, 3);
    let (before, verdicts, after) =
        (SystemClock.now(), database.decide(slice::from_ref(&new)).await, SystemClock.now());
    let Verdict::Reserved { expires_at } = verdicts[0] else { panic!("{verdicts:?}") };
    let ttl = SignedDuration::try_from(TTL).unwrap();
    assert!((before + ttl..=after + ttl).contains(&expires_at), "{expires_at}");
    let state = OrderState::Accepted { status: OrderStatus::Reserved, expires_at };
    let expected = Order { id: new.id, product_id: id, total: new.total, state };
    assert_eq!(database.store.order(new.id).await.unwrap(), Some(expected));
    assert_eq!(database.orders_of(id).await, [expected]);
}

async fn orders_are_paged_in_the_order_of_their_creation(database: Database) {
    let (shirt, hat) = (database.product_of(100).await, database.product_of(100).await);
    let orders: Vec<NewOrder> = (0..25).map(|n| order(if n % 2 == 0 { shirt } else { hat }, 1)).collect();
    let ids: Vec<OrderId> = orders.iter().map(|order| order.id).collect();
    // Decided in another order than created: the newest first.
    for batch in orders.rchunks(4) {
        database.decide(batch).await;
    }
    let page = async |after: Option<OrderId>, limit: u32| {
        let page = OrderPage { product_id: None, status: None, after, limit };
        let orders = database.store.orders(page).await.unwrap();
        orders.rows.iter().map(|order| order.id).collect::<Vec<_>>()
    };
    assert_eq!(page(None, 10).await, ids[..10]);
    assert_eq!(page(Some(ids[9]), 10).await, ids[10..20]);
    assert_eq!(page(Some(ids[19]), 10).await, ids[20..]);
    assert_eq!(page(Some(ids[24]), 10).await, []);
    assert_eq!(page(None, 1_000).await, ids);
    assert_eq!(page(None, 0).await, []);
    // From behind an id that is not on record.
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
        let orders = database.store.orders(OrderPage { product_id, status, after, limit }).await.unwrap();
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

async fn every_status_finds_its_orders(database: Database) {
    let id = database.product_of(10).await;
    let order = order(id, 1);
    database.decide(slice::from_ref(&order)).await;
    for status in [OrderStatus::Paid, OrderStatus::Cancelled, OrderStatus::Expired] {
        let (word, hex) = (status.as_str(), order.id.uuid().simple());
        database.by_hand(&format!("UPDATE orders SET status = '{word}' WHERE id = X'{hex}'")).await.unwrap();
        let page = OrderPage { product_id: None, status: Some(status), after: None, limit: 10 };
        let found = database.store.orders(page).await.unwrap().rows;
        assert_eq!(found.iter().map(|order| order.id).collect::<Vec<_>>(), [order.id]);
        assert_eq!(database.store.order(order.id).await.unwrap().unwrap().status(), status);
    }
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
    // The line is what counts, not when an order was created: the later one comes first here.
    let id = database.product_of(1).await;
    let (earlier, later) = (order(id, 1), order(id, 1));
    assert_eq!(accepted(&database.decide(&[later, earlier]).await), [true, false]);
}

async fn all_pieces_of_an_order_or_none(database: Database) {
    let id = database.product_of(10).await;
    assert_eq!(database.decide(&[order(id, 11)]).await, [rejected(10)]);
    assert_eq!(database.pieces(id).await, [10, 10, 0]);
    assert_eq!(accepted(&database.decide(&[order(id, 10)]).await), [true]);
    assert_eq!(database.decide(&[order(id, 1)]).await, [rejected(0)]);
    assert_eq!(database.pieces(id).await, [10, 0, 10]);
    assert_eq!(database.orders_of(id).await.len(), 1);
}

async fn an_unknown_product_is_rejected_amid_others(database: Database) {
    let id = database.product_of(5).await;
    let not_found = Verdict::Rejected(Rejection::ProductNotFound);
    let unknown = [order(stranger(), 1), detached_order(stranger(), 1)];
    assert_eq!(database.decide(&unknown).await, [not_found; 2]);
    let batch = [unknown[0].clone(), order(id, 2), unknown[1].clone(), order(stranger(), 3), order(id, 3)];
    let verdicts = database.decide(&batch).await;
    assert_eq!(accepted(&verdicts), [false, true, false, false, true]);
    assert_eq!([verdicts[0], verdicts[2], verdicts[3]], [not_found; 3]);
    assert_eq!(database.pieces(id).await, [5, 0, 5]);
    assert_eq!(database.store.order(unknown[1].id).await.unwrap(), None);
    // Redelivered, with the others on record.
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
    // The triggers do work: what would write is refused, for good, and leaves nothing.
    assert_eq!(database.decide(&[order(shirt, 1)]).await, [Verdict::Undecidable]);
    assert_eq!(database.pieces(shirt).await, [2, 1, 1]);
}

async fn a_batch_that_fails_halfway_leaves_nothing(database: Database) {
    let (shirt, hat) = (database.product_of(5).await, database.product_of(5).await);
    // The orders go on record first. Then the stock cannot be moved.
    database.by_hand(&database.home.refuse("UPDATE", "inventories")).await.unwrap();
    let batch = [order(shirt, 1), detached_order(hat, 100), order(hat, 2)];
    let refused = database.store.decide(&commands(&batch), TTL).await.unwrap();
    // Each by itself in the end: the rejection moves no stock, and is stored.
    assert_eq!(refused.verdicts, [Verdict::Undecidable, rejected(5), Verdict::Undecidable]);
    database.by_hand("DELETE FROM orders").await.unwrap();
    for id in [shirt, hat] {
        assert_eq!(database.orders_of(id).await, []);
        assert_eq!(database.pieces(id).await, [5, 5, 0]);
    }
    database.by_hand("DROP TRIGGER refuse_UPDATE_inventories").await.unwrap();
    assert_eq!(accepted(&database.decide(&batch).await), [true, false, true]);
    database.assert_balanced().await;
}

async fn an_empty_batch_is_no_work(database: Database) {
    assert!(database.store.decide(&commands(&[]), TTL).await.unwrap().verdicts.is_empty());
}

async fn a_redelivered_batch_gets_the_verdicts_on_record(database: Database) {
    let (shirt, hat) = (database.product_of(5).await, database.product_of(5).await);
    let batch =
        [order(shirt, 3), order(hat, 5), detached_order(shirt, 9), detached_order(hat, 1), order(shirt, 1)];
    let verdicts = database.decide(&batch).await;
    assert_eq!(accepted(&verdicts), [true, true, false, false, true]);
    let (orders, pieces) = (database.orders_of(shirt).await, database.pieces(shirt).await);
    for _ in 0..3 {
        assert_eq!(database.decide(&batch).await, verdicts);
    }
    // In other company, in another order, with another time to live, and after more pieces came.
    database.store.recount(shirt, stock(100)).await.unwrap().done().unwrap();
    let turned: Vec<NewOrder> = batch.iter().rev().cloned().collect();
    let again = database.store.decide(&commands(&turned), Duration::ZERO).await.unwrap().verdicts;
    assert_eq!(again, verdicts.iter().rev().copied().collect::<Vec<_>>());
    assert_eq!(database.orders_of(shirt).await, orders);
    assert_eq!(database.pieces(shirt).await, [100, 96, pieces[2]]);
    database.assert_balanced().await;
}

async fn a_reservation_is_not_rejected_when_it_comes_back_to_an_empty_shelf(database: Database) {
    let (shirt, hat) = (database.product_of(5).await, database.product_of(5).await);
    let taker = order(shirt, 5);
    let reserved = database.decide(slice::from_ref(&taker)).await;
    assert_eq!(accepted(&reserved), [true]);
    // Alone; amid orders that are rejected; amid one that is accepted.
    assert_eq!(database.decide(slice::from_ref(&taker)).await, reserved);
    for company in [order(shirt, 1), order(hat, 1), detached_order(shirt, 1), order(stranger(), 1)] {
        let verdicts = database.decide(&[company.clone(), taker.clone()]).await;
        assert_eq!(verdicts[1], reserved[0]);
        assert_eq!(is_reserved(&verdicts[0]), company.product_id == hat);
    }
    assert_eq!(database.pieces(shirt).await, [5, 0, 5]);
    assert_eq!(database.pieces(hat).await, [5, 4, 1]);
    database.assert_balanced().await;
}

async fn a_batch_half_old_half_new_decides_only_the_new(database: Database) {
    let (shirt, hat) = (database.product_of(5).await, database.product_of(2).await);
    let old = [order(shirt, 2), order(hat, 2), detached_order(hat, 1)];
    let on_record = database.decide(&old).await;
    assert_eq!(accepted(&on_record), [true, true, false]);
    let new = [order(shirt, 3), order(hat, 1), order(shirt, 1)];
    let mixed = [&old[0], &new[0], &old[1], &new[1], &old[2], &new[2]].map(Clone::clone);
    let verdicts = database.decide(&mixed).await;
    assert_eq!([verdicts[0], verdicts[2], verdicts[4]], on_record[..]);
    assert!(is_reserved(&verdicts[1]), "{verdicts:?}");
    assert_eq!([verdicts[3], verdicts[5]], [rejected(0), rejected(0)]);
    assert_eq!(database.pieces(shirt).await, [5, 0, 5]);
    assert_eq!(database.pieces(hat).await, [2, 0, 2]);
    database.assert_balanced().await;
    assert_eq!(database.decide(&mixed).await, verdicts);
}

async fn an_order_that_stands_twice_in_a_batch_is_decided_once(database: Database) {
    let id = database.product_of(5).await;
    // There are pieces enough for the second one.
    let twice = order(id, 2);
    let verdicts = database.decide(&[twice.clone(), twice]).await;
    assert!(is_reserved(&verdicts[0]) && verdicts[0] == verdicts[1], "{verdicts:?}");
    assert_eq!(database.pieces(id).await, [5, 3, 2]);
    // There are not.
    let twice = order(id, 2);
    let verdicts = database.decide(&[twice.clone(), order(id, 100), twice]).await;
    assert!(is_reserved(&verdicts[0]) && verdicts[0] == verdicts[2], "{verdicts:?}");
    assert_eq!(database.pieces(id).await, [5, 1, 4]);
    // Rejected twice, in time and late.
    for twice in [order(id, 2), detached_order(id, 2)] {
        assert_eq!(database.decide(&[twice.clone(), twice]).await, [rejected(1); 2]);
    }
    // An order between the two takes what is left.
    let twice = order(id, 2);
    let verdicts = database.decide(&[twice.clone(), order(id, 1), twice]).await;
    assert_eq!([verdicts[0], verdicts[2]], [rejected(1); 2]);
    assert_eq!(database.orders_of(id).await.len(), 4);
    database.assert_balanced().await;
}

async fn a_rejection_for_which_nobody_waits_is_stored(database: Database) {
    let id = database.product_of(3).await;
    let (in_time, late) = (order(id, 4), detached_order(id, 4));
    assert_eq!(database.decide(&[in_time.clone(), late.clone()]).await, [rejected(3); 2]);
    assert_eq!(database.store.order(in_time.id).await.unwrap(), None);
    let state = OrderState::Rejected(Rejection::InsufficientStock { available: 3 });
    let expected = Order { id: late.id, product_id: id, total: late.total, state };
    assert_eq!(database.store.order(late.id).await.unwrap(), Some(expected));
    assert_eq!(database.pieces(id).await, [3, 3, 0]);
    // It stays rejected, with the reason of that day, although now there would be enough.
    database.store.recount(id, stock(10)).await.unwrap().done().unwrap();
    assert_eq!(database.decide(&[late]).await, [rejected(3)]);
    assert_eq!(database.pieces(id).await, [10, 10, 0]);
    // The one of which nothing is on record is decided as if it came for the first time.
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

async fn what_became_of_an_order_since_does_not_change_its_verdict(database: Database) {
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
    assert_eq!([verdicts[0], verdicts[2], verdicts[4]], [Quantity::MAX - 1, Stock::MAX - 1, 0].map(rejected));
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
    let on_record: HashSet<OrderId> = database.orders_of(id).await.iter().map(|order| order.id).collect();
    for (order, verdict) in orders.iter().zip(&verdicts) {
        assert_eq!(on_record.contains(&order.id), is_reserved(verdict));
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
        assert_eq!(is_reserved(verdict), stocked.binary_search(&order.product_id).is_ok());
    }
    for id in products {
        assert_eq!(database.pieces(id).await, [2, 0, 2]);
    }
    assert_eq!(reservations(&database.decide(&orders).await), reservations(&verdicts));
}

/// Each of many workers decides batches of its own.
async fn decide_at_once(store: &Arc<dyn Store>, work: Vec<Vec<Vec<NewOrder>>>) -> HashMap<OrderId, Verdict> {
    let mut workers = JoinSet::new();
    for batches in work {
        let store = store.clone();
        workers.spawn(async move {
            let mut verdicts = Vec::new();
            for batch in batches {
                verdicts.extend(batch.iter().map(|order| order.id).zip(decide(&*store, &batch).await));
            }
            verdicts
        });
    }
    let mut verdicts = HashMap::new();
    for (id, verdict) in workers.join_all().await.into_iter().flatten() {
        // Whoever decided the same order must have said the same.
        assert_eq!(*verdicts.entry(id).or_insert(verdict), verdict, "{id}");
    }
    verdicts
}

/// Exactly the accepted orders are on record, once each, as their verdicts say.
async fn assert_on_record(database: &Database, verdicts: &HashMap<OrderId, Verdict>) {
    let mut on_record = HashMap::new();
    for id in database.store.product_ids().await.unwrap() {
        for order in database.orders_of(id).await {
            assert_eq!(
                on_record.insert(order.id, Verdict::on_stored(&order)),
                None,
                "{order:?} is there twice"
            );
        }
    }
    let accepted = verdicts.iter().filter(|(_, verdict)| is_reserved(verdict));
    assert_eq!(on_record, accepted.map(|(id, verdict)| (*id, *verdict)).collect());
    database.assert_balanced().await;
}

async fn many_workers_never_oversell_one_product(database: Database) {
    let id = database.product_of(300).await;
    let work = (0..8).map(|_| (0..10).map(|_| (0..10).map(|_| order(id, 1)).collect()).collect()).collect();
    let verdicts = decide_at_once(&database.store, work).await;
    assert_eq!(verdicts.len(), 800);
    assert_eq!(verdicts.values().filter(|verdict| is_reserved(verdict)).count(), 300);
    assert_eq!(database.pieces(id).await, [300, 0, 300]);
    assert_on_record(&database, &verdicts).await;
}

async fn many_workers_never_oversell_crossing_products(database: Database) {
    let mut products = Vec::new();
    for _ in 0..6 {
        products.push(database.product_of(60).await);
    }
    // Every worker goes through the products in another order, forwards or backwards, with gaps: what locks its
    // rows in the order in which they come ends in a deadlock.
    let work = (0..8)
        .map(|worker: usize| {
            let mut own = products.clone();
            own.rotate_left(worker % 6);
            if worker % 2 == 1 {
                own.reverse();
            }
            let batch = |round: usize| {
                let gap = round % 6;
                own.iter()
                    .enumerate()
                    .filter(move |(at, _)| *at != gap)
                    .map(|(_, id)| order(*id, 1))
                    .collect()
            };
            (0..12).map(batch).collect()
        })
        .collect();
    let verdicts = decide_at_once(&database.store, work).await;
    assert_eq!(verdicts.len(), 8 * 12 * 5);
    assert_eq!(verdicts.values().filter(|verdict| is_reserved(verdict)).count(), 6 * 60);
    for id in products {
        assert_eq!(database.pieces(id).await, [60, 0, 60]);
    }
    assert_on_record(&database, &verdicts).await;
}

async fn the_same_batch_decided_by_many_workers_at_once_is_decided_once(database: Database) {
    let (shirt, hat) = (database.product_of(50).await, database.product_of(1_000).await);
    // What a failover of the broker can do: several workers have the same messages, cut into other batches.
    let orders: Vec<NewOrder> =
        (0..120).map(|n| if n % 2 == 0 { order(shirt, 1) } else { order(hat, 1) }).collect();
    let work = [120, 40, 30, 24, 7, 120]
        .iter()
        .map(|size| orders.chunks(*size).map(<[_]>::to_vec).collect::<Vec<_>>())
        .collect();
    let verdicts = decide_at_once(&database.store, work).await;
    assert_eq!(verdicts.len(), 120);
    assert_eq!(verdicts.values().filter(|verdict| is_reserved(verdict)).count(), 50 + 60);
    assert_eq!(database.pieces(shirt).await, [50, 0, 50]);
    assert_eq!(database.pieces(hat).await, [1_000, 940, 60]);
    assert_on_record(&database, &verdicts).await;
}

async fn recounts_and_orders_do_not_lose_each_other(database: Database) {
    let id = database.product_of(0).await;
    let seller = tokio::spawn({
        let store = database.store.clone();
        async move {
            let mut last = 0;
            for counted in (10..=400).step_by(10).chain([200, 399, 0, 400]) {
                match store.recount(id, stock(counted)).await {
                    Ok(Recount::Done(_, inventory)) => {
                        assert_eq!(inventory.stored(), counted);
                        last = counted;
                    }
                    Ok(Recount::BelowReserved(below)) => {
                        assert!(counted < below.reserved, "{counted}: {below:?}")
                    }
                    Ok(Recount::NoSuchProduct) => panic!("the product is gone"),
                    Err(error) => assert!(error.is_transient(), "{error}"),
                }
            }
            last
        }
    });
    let work = (0..4).map(|_| (0..30).map(|_| (0..3).map(|_| order(id, 1)).collect()).collect()).collect();
    let verdicts = decide_at_once(&database.store, work).await;
    let counted = seller.await.unwrap();
    let reserved = verdicts.values().filter(|verdict| is_reserved(verdict)).count() as u32;
    assert_eq!(database.pieces(id).await, [counted, counted - reserved, reserved]);
    assert_on_record(&database, &verdicts).await;
}

/// What happens to four products, of which the last does not exist.
#[derive(Clone, Debug)]
enum Step {
    Decide(Vec<Pick>),
    Recount { product: usize, counted: u32 },
}

#[derive(Clone, Debug)]
enum Pick {
    New {
        product: usize,
        total: u32,
        late: bool,
    },
    /// One that was picked before, perhaps in this very batch.
    Again(Index),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let total = prop_oneof![8 => 1_u32..12, 1 => 1..=Quantity::MAX];
    let pick = prop_oneof![
        2 => (0..4_usize, total, any::<bool>()).prop_map(|(product, total, late)| Pick::New { product, total, late }),
        1 => any::<Index>().prop_map(Pick::Again),
    ];
    let counted = prop_oneof![8 => 0_u32..20, 1 => 0..=Stock::MAX];
    let step = prop_oneof![
        3 => vec(pick, 0..12).prop_map(Step::Decide),
        1 => (0..4_usize, counted).prop_map(|(product, counted)| Step::Recount { product, counted }),
    ];
    vec(step, 1..16)
}

/// The rules on plain numbers.
struct Model {
    /// Available and reserved pieces.
    pieces: BTreeMap<ProductId, (u32, u32)>,
    on_record: BTreeMap<OrderId, (ProductId, Verdict)>,
}

impl Model {
    /// What must be said to this batch. When a reservation made now expires is the store's to say.
    fn decide(&mut self, orders: &[NewOrder], expires_at: Option<Timestamp>) -> Vec<Verdict> {
        let mut decided: HashMap<OrderId, Verdict> = HashMap::new();
        let verdict = |order: &NewOrder| {
            if let Some((_, verdict)) = self.on_record.get(&order.id) {
                return *verdict;
            }
            *decided.entry(order.id).or_insert_with(|| {
                let total = order.total.get();
                let Some((available, reserved)) = self.pieces.get_mut(&order.product_id) else {
                    return Verdict::Rejected(Rejection::ProductNotFound);
                };
                let fits = *available >= total;
                let verdict = match expires_at {
                    Some(expires_at) if fits => Verdict::Reserved { expires_at },
                    None if fits => panic!("{order:?} fits, but the store reserved nothing now"),
                    _ => rejected(*available),
                };
                if fits {
                    (*available, *reserved) = (*available - total, *reserved + total);
                }
                if fits || order.reply == ReplyMode::Detached {
                    self.on_record.insert(order.id, (order.product_id, verdict));
                }
                verdict
            })
        };
        orders.iter().map(verdict).collect()
    }

    fn recount(&mut self, id: ProductId, counted: u32) -> Option<Result<(), StockBelowReserved>> {
        let (available, reserved) = self.pieces.get_mut(&id)?;
        Some(match counted.checked_sub(*reserved) {
            None => Err(StockBelowReserved { reserved: *reserved }),
            Some(rest) => {
                *available = rest;
                Ok(())
            }
        })
    }
}

async fn any_history_is_as_the_model_says(database: Database) {
    let config = ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() };
    let runtime = tokio::runtime::Handle::current();
    block_in_place(|| {
        let history = |steps| {
            runtime.block_on(replay(&database, steps));
            Ok(())
        };
        TestRunner::new(config).run(&steps(), history).unwrap_or_else(|error| panic!("{error}"));
    });
}

async fn replay(database: &Database, steps: Vec<Step>) {
    let mut products = Vec::new();
    for _ in 0..3 {
        products.push(database.product_of(0).await);
    }
    let mut model =
        Model { pieces: products.iter().map(|id| (*id, (0, 0))).collect(), on_record: BTreeMap::new() };
    products.push(stranger());
    let mut picked: Vec<NewOrder> = Vec::new();
    for step in steps {
        match step {
            Step::Recount { product, counted } => {
                let found = database.store.recount(products[product], stock(counted)).await.unwrap();
                let expected = model.recount(products[product], counted);
                let found = match found {
                    Recount::Done(..) => Some(Ok(())),
                    Recount::BelowReserved(below) => Some(Err(below)),
                    Recount::NoSuchProduct => None,
                };
                assert_eq!(found, expected);
            }
            Step::Decide(picks) => {
                let mut batch = Vec::new();
                for pick in picks {
                    let order = match pick {
                        Pick::New { product, total, late: false } => order(products[product], total),
                        Pick::New { product, total, late: true } => detached_order(products[product], total),
                        Pick::Again(_) if picked.is_empty() => continue,
                        Pick::Again(index) => index.get(&picked).clone(),
                    };
                    batch.push(order.clone());
                    picked.push(order);
                }
                let found = database.store.decide(&commands(&batch), TTL).await.unwrap().verdicts;
                let expires_at = batch.iter().zip(&found).find_map(|(order, verdict)| match verdict {
                    Verdict::Reserved { expires_at } if !model.on_record.contains_key(&order.id) => {
                        Some(*expires_at)
                    }
                    _ => None,
                });
                assert_eq!(found, model.decide(&batch, expires_at));
            }
        }
        for (id, (available, reserved)) in &model.pieces {
            assert_eq!(database.pieces(*id).await, [available + reserved, *available, *reserved]);
        }
    }
    for id in model.pieces.keys() {
        let expected = model.on_record.iter().filter(|(_, (product, _))| product == id);
        let expected: Vec<_> = expected.map(|(id, (_, verdict))| (*id, *verdict)).collect();
        let found: Vec<_> = database
            .orders_of(*id)
            .await
            .iter()
            .map(|order| (order.id, Verdict::on_stored(&order)))
            .collect();
        assert_eq!(found, expected);
    }
}

/// Polls the future so many times and then drops it: `None`, unless it was ready before. A future that is polled
/// only when it was woken gets a poll for each point at which it waits, so going through the numbers cancels it at
/// every one of them.
async fn cancelled_after<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

async fn a_decision_cancelled_at_any_point_leaves_books_that_balance(database: Database) {
    const PIECES: u32 = 100_000;
    let (shirt, hat) = (database.product_of(PIECES).await, database.product_of(PIECES).await);
    let mut sent = Vec::new();
    let mut cancelled = 0;
    for redelivered in [false, true] {
        for polls in 0.. {
            let batch = [order(hat, 1), order(shirt, 2), detached_order(hat, PIECES + 1)];
            sent.extend(batch.clone());
            if redelivered {
                database.decide(&batch[..1]).await;
            }
            match cancelled_after(polls, database.store.decide(&commands(&batch), TTL)).await {
                Some(decided) => {
                    assert_eq!(accepted(&decided.unwrap().verdicts), [true, true, false]);
                    break;
                }
                None => cancelled += 1,
            }
            // Half of them come back, as they do when a worker dies.
            if polls % 2 == 0 {
                assert_eq!(accepted(&database.decide(&batch).await), [true, true, false]);
                database.assert_balanced().await;
            }
        }
    }
    assert!(cancelled > 4, "cancelled {cancelled} times");
    // This one stands in line behind all of them: what they left undone is settled when it is through.
    database.decide(&[order(shirt, 1), order(hat, 1)]).await;
    database.assert_balanced().await;
    assert_eq!(accepted(&database.decide(&sent).await), [true, true, false].repeat(sent.len() / 3));
    database.assert_balanced().await;
}

async fn decisions_cancelled_in_a_crowd_leave_books_that_balance(database: Database) {
    let (shirt, hat) = (database.product_of(10_000).await, database.product_of(10_000).await);
    let mut sent = Vec::new();
    for _ in 0..12 {
        let mut workers = JoinSet::new();
        for worker in 0..6 {
            let mut batch = vec![order(shirt, 1), order(hat, 1), order(shirt, 1)];
            if worker % 2 == 1 {
                batch.reverse();
            }
            sent.extend(batch.clone());
            let store = database.store.clone();
            workers.spawn(async move { decide(&*store, &batch).await });
        }
        // The first one through is the signal; the others are wherever they are.
        let first = workers.join_next().await.unwrap().unwrap();
        assert_eq!(accepted(&first), [true; 3]);
        workers.abort_all();
        while let Some(ended) = workers.join_next().await {
            assert!(ended.is_ok() || ended.is_err_and(|error| error.is_cancelled()));
        }
    }
    database.decide(&[order(shirt, 1), order(hat, 1)]).await;
    database.assert_balanced().await;
    assert_eq!(accepted(&database.decide(&sent).await), vec![true; sent.len()]);
    database.assert_balanced().await;
}

async fn what_is_committed_survives_closing(database: Database) {
    let id = database.product_of(5).await;
    let batch = [order(id, 3), detached_order(id, 100)];
    let verdicts = database.decide(&batch).await;
    let (product, orders) = (database.store.product(id).await.unwrap(), database.orders_of(id).await);
    database.store.close().await;
    let database = Database::at(database.home).await;
    assert_eq!(database.store.product(id).await.unwrap(), product);
    assert_eq!(database.pieces(id).await, [5, 2, 3]);
    assert_eq!(database.orders_of(id).await, orders);
    assert_eq!(database.decide(&batch).await, verdicts);
    assert!(database.product_of(1).await > id);
}

async fn many_may_open_one_database_at_once(database: Database) {
    let id = database.product_of(30).await;
    let stores = join_all((0..4).map(|_| database.home.open())).await;
    let mut workers = JoinSet::new();
    for store in stores {
        workers.spawn(async move {
            let verdicts = decide(&*store, &std::array::from_fn::<_, 10, _>(|_| order(id, 1))).await;
            store.close().await;
            verdicts
        });
    }
    let verdicts = workers.join_all().await.concat();
    assert_eq!(accepted(&verdicts).iter().filter(|accepted| **accepted).count(), 30);
    assert_eq!(database.pieces(id).await, [30, 0, 30]);
    database.assert_balanced().await;
}

async fn bad_numbers_written_by_hand_are_refused(database: Database) {
    let id = database.product_of(5).await;
    let (reserved, rejected) = (order(id, 2), detached_order(id, 9));
    database.decide(&[reserved.clone(), rejected.clone()]).await;
    let (reserved, rejected) = (reserved.id.uuid().simple(), rejected.id.uuid().simple());
    let new = SystemClock.order_id().uuid().simple();
    let insert = "INSERT INTO orders (id, product_id, total, status, expires_at, rejected_available) VALUES";
    let good = [
        format!("{insert} (X'{new}', {id}, 1, 'reserved', 0, NULL)"),
        format!("DELETE FROM orders WHERE id = X'{new}'"),
        format!("{insert} (X'{new}', {id}, 1, 'rejected', NULL, 0)"),
        format!("DELETE FROM orders WHERE id = X'{new}'"),
    ];
    for statement in good {
        database.by_hand(&statement).await.unwrap();
    }
    let bad = [
        // Oversold, or out of balance.
        format!("UPDATE inventories SET available_stock = -1, reserved_stock = 6 WHERE product_id = {id}"),
        format!("UPDATE inventories SET available_stock = 6, reserved_stock = -1 WHERE product_id = {id}"),
        format!("UPDATE inventories SET available_stock = available_stock - 1 WHERE product_id = {id}"),
        format!("UPDATE inventories SET reserved_stock = reserved_stock + 1 WHERE product_id = {id}"),
        format!("UPDATE inventories SET stored_stock = 4 WHERE product_id = {id}"),
        format!("UPDATE inventories SET stored_stock = NULL WHERE product_id = {id}"),
        format!(
            "UPDATE inventories SET stored_stock = -1, available_stock = -1, reserved_stock = 0 WHERE product_id = {id}"
        ),
        // A product has one inventory, and an inventory a product.
        format!("INSERT INTO inventories (product_id) VALUES ({id})"),
        format!("INSERT INTO inventories (product_id) VALUES ({})", stranger()),
        format!("DELETE FROM products WHERE id = {id}"),
        // Orders that cannot be.
        format!("{insert} (X'{reserved}', {id}, 1, 'reserved', 0, NULL)"),
        format!("{insert} (X'{new}', {id}, 0, 'reserved', 0, NULL)"),
        format!("{insert} (X'{new}', {id}, -1, 'reserved', 0, NULL)"),
        format!("{insert} (X'{new}', {id}, NULL, 'reserved', 0, NULL)"),
        format!("{insert} (X'{new}', {id}, 1, 'pending', 0, NULL)"),
        format!("{insert} (X'{new}', {id}, 1, 'RESERVED', 0, NULL)"),
        format!("{insert} (X'{new}', {id}, 1, NULL, 0, NULL)"),
        format!("{insert} (X'{new}', NULL, 1, 'reserved', 0, NULL)"),
        format!("{insert} (NULL, {id}, 1, 'reserved', 0, NULL)"),
        format!("{insert} (X'{new}', {id}, 1, 'reserved', NULL, NULL)"),
        format!("{insert} (X'{new}', {id}, 1, 'reserved', 0, 0)"),
        format!("{insert} (X'{new}', {id}, 1, 'rejected', 0, 0)"),
        format!("{insert} (X'{new}', {id}, 1, 'paid', 0, 0)"),
        format!("UPDATE orders SET status = 'rejected' WHERE id = X'{reserved}'"),
        format!("UPDATE orders SET status = 'reserved' WHERE id = X'{rejected}'"),
    ];
    for statement in bad {
        let error = database.by_hand(&statement).await.expect_err(&statement);
        assert!(error.as_database_error().is_some(), "{statement}: {error}");
    }
    assert_eq!(database.pieces(id).await, [5, 3, 2]);
    assert_eq!(database.orders_of(id).await.len(), 2);
    database.assert_balanced().await;
}

async fn every_database_has_an_id_of_its_own(database: Database) {
    let id = database.store.installation_id().await.unwrap();
    assert!(!id.is_nil());
    assert_eq!(database.home.open().await.installation_id().await.unwrap(), id, "opened again");
    let other = match &database.home {
        Home::Memory { .. } => Database::memory().await,
        Home::Sqlite { .. } => Database::sqlite().await,
        Home::MySql { .. } => Database::mysql().await,
    };
    assert_ne!(other.store.installation_id().await.unwrap(), id);
    database.by_hand("DELETE FROM installation").await.unwrap();
    let error = database.store.installation_id().await.unwrap_err();
    assert!(error.to_string().contains("table installation"), "{error}");
}
