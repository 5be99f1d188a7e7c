//! The store contract as one suite, run on every adapter: what a database behind [`Store`] must do.
//!
//! Each test gets its own [`Database`]. What the store does not offer, a test does by hand: with SQL statements.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
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
        command::{ChangeOrder, Command, NewOrder, ReplyMode},
        event::{Event, EventKind},
        ids::{IdempotencyKey, OrderId, ProductId},
        inventory::{
            InvalidAdjustment, Inventory, Stock, StockAboveMaximum, StockBelowReserved, StockChange,
        },
        lines::{Line, Lines},
        movement::{Adjustment, LedgerEntry, Movement, MovementKind, MovementReason, MovementSeq},
        order::{Change, Order, OrderState, OrderStatus, Quantity},
        origin::Origin,
        product::{NewProduct, Product, ProductChange, ProductName, ProductState},
        rejection::Rejection,
        rules::{LatePayment, Rules},
        sku::Sku,
        verdict::Verdict,
    },
    store::{
        Adjusted, Archival, Creation, Direction, Due, GivenUp, OrderPage, Page, Recount, Store, StoreError,
        Update, memory::MemoryStore, mysql::MySqlStore, sqlite::SqliteStore,
    },
};
use futures_util::future::join_all;
use jiff::{SignedDuration, Timestamp};
use proptest::{collection::vec, prelude::*, sample::Index, test_runner::TestRunner};
use sqlx::{Connection, Executor, MySqlConnection, SqliteConnection};
use tokio::task::{JoinSet, block_in_place};

use crate::support::servers::{Place, servers};

/// Generates one test for each function and adapter, so that a failure names both. The compiler reports a function that is
/// not in the list as dead code.
///
/// `every_store` runs on all three adapters. `sql_only` needs what only a database has: rows and triggers that the test
/// writes by hand, statements that are cancelled in flight, connections to a file or server.
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

mod archive;
mod baskets;
mod batches;
mod buyers;
mod cancellation;
mod catalog;
mod changes;
mod concurrency;
mod corruption;
mod history;
mod keys;
mod ledger;
mod life;
mod lists;
mod payments;
mod redelivery;
mod retention;
mod terms;

/// The database of one test.
struct Database {
    store: Arc<dyn Store>,
    home: Home,
}

/// Where the database is.
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

    /// Creates a product with this number of pieces.
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

    /// Decides as a worker does: tries again until the database answers.
    async fn decide(&self, orders: &[NewOrder]) -> Vec<Verdict> {
        decide(&*self.store, orders).await
    }

    /// All stored orders of this product, fetched page by page.
    async fn orders_of(&self, id: ProductId) -> Vec<Order> {
        let (mut orders, mut after) = (Vec::new(), None);
        loop {
            let page = OrderPage { product_id: Some(id), after, ..OrderPage::first(1_000) };
            let page = self.store.orders(page).await.unwrap();
            orders.extend(page.rows);
            after = page.next;
            if after.is_none() {
                return orders;
            }
        }
    }

    /// Asserts for every product that its reserved pieces are the sum of its reserved orders, and its stored pieces that of its
    /// movements. The store itself checks with
    /// every inventory that it reads that stored is available plus reserved.
    #[track_caller]
    fn assert_balanced(&self) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            for id in self.store.product_ids().await.unwrap() {
                let [_, _, reserved] = self.pieces(id).await;
                let orders = self.orders_of(id).await;
                let ordered: u64 = orders
                    .into_iter()
                    .filter(|order| order.status() == OrderStatus::Reserved)
                    .flat_map(|order| order.lines.unwrap().as_slice().to_vec())
                    .filter(|line| line.product_id == id)
                    .map(|line| u64::from(line.total.get()))
                    .sum();
                assert_eq!(u64::from(reserved), ordered, "of product {id}, seen from {caller}");
                self.assert_ledger(id).await;
            }
        }
    }

    /// Runs a statement past the store.
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

    /// The statement for a trigger that refuses every such change (INSERT, UPDATE) of the table.
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

/// Late payments are refused, unless a test says otherwise.
const TTL: Rules = refusing_late_payments(Duration::from_secs(900));

const fn refusing_late_payments(reservation_ttl: Duration) -> Rules {
    Rules { late_payment: LatePayment::Refuse, ..Rules::of_ttl(reservation_ttl) }
}

const PAY: Change = Change::Pay { reference: None };

/// No test waits longer than this for a database.
const DEADLINE: Duration = Duration::from_secs(60);

/// By the rules for stored names, which allow more than those for new ones.
fn name(text: &str) -> ProductName {
    ProductName::stored(text.to_owned()).unwrap()
}

fn stock(pieces: u32) -> Stock {
    Stock::new(pieces).unwrap()
}

/// A product that no test creates.
fn stranger() -> ProductId {
    ProductId::new(ProductId::MAX).unwrap()
}

fn lines(product_id: ProductId, total: u32) -> Lines {
    Lines::one(product_id, Quantity::new(total).unwrap())
}

/// An order whose client waits for the verdict.
fn order(product_id: ProductId, total: u32) -> NewOrder {
    let reply = ReplyMode::Until(SystemClock.now());
    NewOrder {
        id: SystemClock.order_id(),
        lines: lines(product_id, total),
        buyer: None,
        reply,
        key: None,
        origin: Origin::default(),
    }
}

/// A detached order.
fn detached_order(product_id: ProductId, total: u32) -> NewOrder {
    NewOrder { reply: ReplyMode::Detached, ..order(product_id, total) }
}

const fn rejected(available: u32) -> Expected {
    Expected::TooFew(available)
}

fn is_reserved(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Reserved { .. })
}

/// For each verdict, whether it accepts the order.
fn accepted(verdicts: &[Verdict]) -> Vec<bool> {
    verdicts.iter().map(is_reserved).collect()
}

/// The total of the accepted orders.
fn pieces_accepted(orders: &[NewOrder], verdicts: &[Verdict]) -> u32 {
    assert_eq!(orders.len(), verdicts.len());
    orders
        .iter()
        .zip(verdicts)
        .filter(|(_, verdict)| is_reserved(verdict))
        .map(|(order, _)| order.lines.first().total.get())
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

/// A time to live with which a reservation is due at once.
const NO_TIME: Rules = refusing_late_payments(Duration::ZERO);

fn change_of(order: &NewOrder, change: Change) -> Command {
    let (id, reply) = (SystemClock.command_id(), ReplyMode::Until(SystemClock.now()));
    ChangeOrder {
        id,
        order_id: order.id,
        product_id: order.lines.first().product_id,
        other_products: order.lines.others().iter().map(|line| line.product_id).collect(),
        change,
        reply,
        origin: Origin::default(),
    }
    .into()
}

fn keyed(order: NewOrder, key: &str) -> NewOrder {
    NewOrder { key: Some(self::key(key)), ..order }
}

fn key(text: &str) -> IdempotencyKey {
    text.to_owned().try_into().unwrap()
}

/// What a verdict must be.
#[derive(Clone, Copy, Debug)]
enum Expected {
    /// Rejected: so many pieces are available.
    TooFew(u32),
    ProductNotFound,
    /// The order, with this status.
    Now(OrderStatus),
    Undecidable,
}

impl PartialEq<Expected> for Verdict {
    fn eq(&self, expected: &Expected) -> bool {
        match expected {
            Expected::TooFew(pieces) => matches!(
                self,
                Self::Rejected(Rejection::InsufficientStock { available, .. }) if available == pieces
            ),
            Expected::ProductNotFound => {
                matches!(self, Self::Rejected(Rejection::ProductNotFound { .. }))
            }
            Expected::Now(status) => matches!(self, Self::Current(order) if order.status() == *status),
            Expected::Undecidable => *self == Self::Undecidable,
        }
    }
}

const PAID: Expected = Expected::Now(OrderStatus::Paid);

const CANCELLED: Expected = Expected::Now(OrderStatus::Cancelled);

const EXPIRED: Expected = Expected::Now(OrderStatus::Expired);

const RESERVED: Expected = Expected::Now(OrderStatus::Reserved);

const REJECTED: Expected = Expected::Now(OrderStatus::Rejected);

const KEY_REUSED: Verdict = Verdict::Rejected(Rejection::KeyReused);

impl Database {
    /// Decides as a worker does: tries again until the database answers.
    async fn settle(&self, commands: &[Command]) -> Vec<Verdict> {
        self.settle_within(commands, TTL).await
    }

    async fn settle_within(&self, commands: &[Command], rules: Rules) -> Vec<Verdict> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match self.store.decide(commands, rules).await {
                Ok(decided) => return decided.verdicts,
                Err(error) => assert!(error.is_transient() && Instant::now() < deadline, "{error}"),
            }
        }
    }

    async fn change(&self, order: &NewOrder, change: Change) -> Verdict {
        self.settle(&[change_of(order, change)]).await.remove(0)
    }

    /// Places one order for each total; all are reserved.
    async fn reserve<const N: usize>(&self, id: ProductId, totals: [u32; N]) -> [NewOrder; N] {
        self.reserve_for(id, totals, TTL).await
    }

    async fn reserve_for<const N: usize>(
        &self,
        id: ProductId,
        totals: [u32; N],
        rules: Rules,
    ) -> [NewOrder; N] {
        let orders = totals.map(|total| order(id, total));
        let verdicts = self.settle_within(&commands(&orders), rules).await;
        assert_eq!(accepted(&verdicts), [true; N]);
        orders
    }

    async fn status(&self, order: &NewOrder) -> OrderStatus {
        self.store.order(order.id).await.unwrap().unwrap().status()
    }
}
