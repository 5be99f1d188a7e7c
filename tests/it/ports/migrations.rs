//! Who may start on which tables, and who may change them.

use std::{path::Path, process::Output, sync::Arc};

use antre::{
    domain::{
        ids::{OrderId, ProductId},
        rejection::Rejection,
    },
    store::{Store, mysql::MySqlStore, sqlite::SqliteStore},
};
use sqlx::{
    ConnectOptions, Connection, Executor, MySqlConnection, SqliteConnection,
    migrate::{Migrate, Migrator},
    mysql::MySqlConnectOptions,
    sqlite::SqliteConnectOptions,
};
use tempfile::TempDir;

use crate::{
    processes::cli::{complaint, directory, run},
    support::harness::{App, antre},
    support::servers::{Place, servers},
};

/// A database without tables.
enum Home {
    Sqlite(TempDir),
    MySql(TempDir, Place),
}

impl Home {
    fn sqlite() -> Self {
        Self::Sqlite(directory())
    }

    async fn mysql() -> Self {
        Self::MySql(directory(), servers().await.fresh().await)
    }

    fn directory(&self) -> &Path {
        let (Self::Sqlite(directory) | Self::MySql(directory, _)) = self;
        directory.path()
    }

    fn url(&self) -> String {
        match self {
            Self::Sqlite(directory) => format!("sqlite://{}", directory.path().join("antre.db").display()),
            Self::MySql(_, place) => place.database_url.clone(),
        }
    }

    async fn antre(&self, arguments: &[&str]) -> Output {
        run(self.directory(), arguments, &[("DATABASE_URL", &self.url())]).await
    }

    async fn by_hand(&self, statement: &str) {
        self.try_by_hand(statement).await.unwrap();
    }

    async fn try_by_hand(&self, statement: &str) -> Result<(), sqlx::Error> {
        match self {
            Self::Sqlite(_) => {
                let mut connection = SqliteConnection::connect(&self.url()).await?;
                connection.execute(sqlx::raw_sql(statement)).await?;
                connection.close().await
            }
            Self::MySql(..) => {
                let mut connection = MySqlConnection::connect(&self.url()).await?;
                connection.execute(sqlx::raw_sql(statement)).await?;
                connection.close().await
            }
        }
    }

    async fn count(&self, statement: &str) -> i64 {
        match self {
            Self::Sqlite(_) => {
                let mut connection = SqliteConnection::connect(&self.url()).await.unwrap();
                sqlx::query_scalar(statement).fetch_one(&mut connection).await.unwrap()
            }
            Self::MySql(..) => {
                let mut connection = MySqlConnection::connect(&self.url()).await.unwrap();
                sqlx::query_scalar(statement).fetch_one(&mut connection).await.unwrap()
            }
        }
    }

    /// The tables of an earlier release: the migrations whose versions are lower.
    async fn migrate_below(&self, version: i64) {
        let migrations = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations").join(match self {
            Self::Sqlite(_) => "sqlite",
            Self::MySql(..) => "mysql",
        });
        let mut migrator = Migrator::new(migrations).await.unwrap();
        migrator.migrations.to_mut().retain(|migration| migration.version < version);
        assert!(migrator.iter().count() > 3);
        match self {
            Self::Sqlite(_) => {
                let options = self.url().parse::<SqliteConnectOptions>().unwrap().create_if_missing(true);
                let mut connection = options.connect().await.unwrap();
                migrator.run(&mut connection).await.unwrap();
                connection.close().await.unwrap();
            }
            Self::MySql(..) => {
                let mut connection = MySqlConnection::connect(&self.url()).await.unwrap();
                migrator.run(&mut connection).await.unwrap();
                connection.close().await.unwrap();
            }
        }
    }

    /// As a newer antre would leave it, which has one migration more.
    async fn add_newer_migration(&self) {
        self.by_hand(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
             VALUES (9999, 'of the future', 1, X'00', 1)",
        )
        .await;
    }
}

#[track_caller]
fn said(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

async fn the_status_tells_what_is_applied_and_pending(home: Home) {
    let output = home.antre(&["migrate", "--status"]).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("schema compatibility") && text.contains("pending") && !text.contains("applied"));
    assert!(String::from_utf8(output.stderr).unwrap().contains("antre migrate applies them"));
    assert!(!home.directory().join("antre.db").exists(), "it creates nothing");
    said(&home.antre(&["migrate"]).await);
    let text = said(&home.antre(&["migrate", "--status"]).await);
    assert!(text.contains("applied") && !text.contains("pending"), "{text}");
    assert!(text.ends_with("This antre may run.\n"), "{text}");
}

async fn an_older_program_starts_on_newer_tables_that_say_it_may(home: Home) {
    said(&home.antre(&["migrate"]).await);
    home.add_newer_migration().await;
    said(&home.antre(&["migrate"]).await);
    let text = said(&home.antre(&["migrate", "--status"]).await);
    assert!(text.contains("9999") && text.contains("applied by a newer antre"), "{text}");

    home.by_hand("UPDATE schema_compatibility SET min_version = 9999").await;
    for arguments in [&["migrate"] as &[&str], &["migrate", "--status"]] {
        let output = home.antre(arguments).await;
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("a newer antre has changed its tables"), "{text}");
        assert!(text.contains("must know at least migration 9999"), "{text}");
    }
    home.by_hand("DROP TABLE schema_compatibility").await;
    let text = complaint(&home.antre(&["migrate"]).await, 1);
    assert!(text.contains("migration 9999, which this antre does not know"), "{text}");
}

async fn tables_that_another_build_made_are_refused(home: Home) {
    said(&home.antre(&["migrate"]).await);
    home.by_hand("UPDATE _sqlx_migrations SET checksum = X'00' WHERE version = 2").await;
    let text = complaint(&home.antre(&["migrate"]).await, 1);
    assert!(text.contains("migration 2 is not the one"), "{text}");
}

/// One row of each kind, as releases before the column `rejection_reason` wrote it. `X` stands for one digit of its id.
const WITHOUT_REASON: &str =
    "INSERT INTO orders (id, product_id, total, status, expires_at, rejected_available) VALUES
    (X'X1000000000000000000000000000000', 1, 2, 'reserved', 5, NULL),
    (X'X2000000000000000000000000000000', 1, 2, 'paid', 5, NULL),
    (X'X3000000000000000000000000000000', 1, 2, 'rejected', NULL, NULL),
    (X'X4000000000000000000000000000000', 1, 2, 'rejected', NULL, 0),
    (X'X5000000000000000000000000000000', 1, 2, 'rejected', NULL, 1)";

fn without_reason(digit: u8) -> String {
    WITHOUT_REASON.replace("X'X", &format!("X'{digit}"))
}

/// The rejections of these rows, as the program reads them.
async fn assert_reasons(home: &Home, digit: u8) {
    let store: Arc<dyn Store> = match home {
        Home::Sqlite(_) => Arc::new(SqliteStore::open(&home.url()).await.unwrap()),
        Home::MySql(..) => Arc::new(MySqlStore::open(&home.url()).await.unwrap()),
    };
    let product_id = ProductId::new(1).unwrap();
    let too_few = |available| Some(Rejection::InsufficientStock { product_id, available });
    let rejections = [None, None, Some(Rejection::KeyReused), too_few(0), too_few(1)];
    for (row, rejection) in (1_u128..).zip(rejections) {
        let id = OrderId::from(uuid::Uuid::from_u128((u128::from(digit) << 124) + (row << 120)));
        let order = store.order(id).await.unwrap().unwrap();
        assert_eq!(order.rejection(), rejection, "{id}");
    }
    store.close().await;
}

async fn stored_rejections_get_the_reason_that_they_were_read_with(home: Home) {
    let before = match home {
        Home::Sqlite(_) => 6,
        Home::MySql(..) => 13,
    };
    home.migrate_below(before).await;
    home.by_hand("INSERT INTO products (id, name) VALUES (1, 'Kaos Polos')").await;
    home.by_hand(&without_reason(1)).await;
    said(&home.antre(&["migrate"]).await);
    assert_reasons(&home, 1).await;
    // Which releases may start: those that know orders of several products. Workers that run already go on until they stop.
    let min_version = match home {
        Home::Sqlite(_) => 13,
        Home::MySql(..) => 18,
    };
    let other = format!("SELECT COUNT(*) FROM schema_compatibility WHERE min_version = {min_version}");
    assert_eq!(home.count(&other).await, 1);
    match home {
        Home::Sqlite(_) => assert!(home.try_by_hand(&without_reason(2)).await.is_err()),
        // Its workers run beside new ones during an upgrade.
        Home::MySql(..) => {
            home.by_hand(&without_reason(2)).await;
            assert_reasons(&home, 2).await;
            home.by_hand(
                r#"INSERT INTO orders (id, product_id, total, status, rejected_available)
                   SELECT UNHEX(id), product_id, total, 'rejected', rejected_available
                   FROM JSON_TABLE('[["33000000000000000000000000000000", 1, 2, null],
                                     ["34000000000000000000000000000000", 1, 2, 0],
                                     ["35000000000000000000000000000000", 1, 2, 1]]', '$[*]' COLUMNS (
                       id CHAR(32) PATH '$[0]', product_id BIGINT PATH '$[1]', total INT PATH '$[2]',
                       rejected_available INT PATH '$[3]'
                   )) AS batch;
                   INSERT INTO orders (id, product_id, total, status, expires_at)
                   SELECT UNHEX(id), product_id, total, 'reserved', expires_at
                   FROM JSON_TABLE('[[1, 2, 5, ["31000000000000000000000000000000",
                                                "32000000000000000000000000000000"]]]', '$[*]' COLUMNS (
                       product_id BIGINT PATH '$[0]', total INT PATH '$[1]', expires_at BIGINT PATH '$[2]',
                       NESTED PATH '$[3][*]' COLUMNS (id CHAR(32) PATH '$')
                   )) AS batch"#,
            )
            .await;
            assert_reasons(&home, 3).await;
        }
    }
}

/// Each product with stock gets a movement, so that its ledger begins with what is there.
async fn stock_that_is_there_becomes_the_opening_balance(home: Home) {
    let before = match home {
        Home::Sqlite(_) => 11,
        Home::MySql(..) => 20,
    };
    home.migrate_below(before).await;
    home.by_hand(
        "INSERT INTO products (id, name) VALUES (1, 'Kaos Polos'), (2, 'Topi'), (3, 'Kopi');
         INSERT INTO inventories (product_id, stored_stock, available_stock, reserved_stock)
         VALUES (1, 10, 10, 0), (2, 0, 0, 0), (3, 5, 5, 0)",
    )
    .await;
    said(&home.antre(&["migrate"]).await);
    let opening = "SELECT COUNT(*) FROM movements WHERE kind = 'recount' AND order_count = 0 AND reason = 'opening balance' \
                   AND stock_change = stored_stock AND moved_at > 1700000000000 AND (product_id, stored_stock) IN ((1, 10), (3, 5))";
    assert_eq!(home.count(opening).await, 2);
    assert_eq!(home.count("SELECT COUNT(*) FROM movements").await, 2);
    said(&home.antre(&["audit", "--json"]).await);
}

macro_rules! on_both {
    ($($test:ident,)*) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::Home::sqlite()).await;
            })*
        }
        mod mysql {
            $(#[tokio::test]
            #[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
            async fn $test() {
                super::$test(super::Home::mysql().await).await;
            })*
        }
    };
}

on_both! {
    the_status_tells_what_is_applied_and_pending,
    an_older_program_starts_on_newer_tables_that_say_it_may,
    tables_that_another_build_made_are_refused,
    stored_rejections_get_the_reason_that_they_were_read_with,
    stock_that_is_there_becomes_the_opening_balance,
}

/// A user with these rights on the place's database.
struct User<'a> {
    name: String,
    place: &'a Place,
}

impl<'a> User<'a> {
    async fn with(rights: &str, place: &'a Place) -> Self {
        let options: MySqlConnectOptions = place.database_url.parse().unwrap();
        let database = options.get_database().unwrap().to_owned();
        let name = format!("u{}", &uuid::Uuid::new_v4().simple().to_string()[..20]);
        let user = Self { name, place };
        user.by_root(&format!("CREATE USER '{}'@'%' IDENTIFIED BY 'secret'", user.name)).await;
        user.by_root(&format!("GRANT {rights} ON {database}.* TO '{}'@'%'", user.name)).await;
        user
    }

    async fn by_root(&self, statement: &str) {
        let mut root = MySqlConnection::connect(&self.place.database_url).await.unwrap();
        root.execute(sqlx::raw_sql(statement)).await.unwrap();
    }

    fn url(&self) -> String {
        let (_, behind) = self.place.database_url.split_once('@').unwrap();
        format!("mysql://{}:secret@{behind}", self.name)
    }

    async fn migrate(&self) -> Output {
        run(directory().path(), &["migrate"], &[("DATABASE_URL", &self.url())]).await
    }

    async fn drop(self) {
        self.by_root(&format!("DROP USER '{}'@'%'", self.name)).await;
    }
}

#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn who_only_reads_and_writes_starts_once_an_administrator_has_migrated() {
    let place = servers().await.fresh().await;
    let shop = User::with("SELECT, INSERT, UPDATE, DELETE", &place).await;
    let refused = complaint(&shop.migrate().await, 1);
    for word in ["CREATE command denied", "antre migrate", "CREATE, ALTER, INDEX, DROP and REFERENCES"] {
        assert!(refused.contains(word), "{refused}");
    }
    let admin = "SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, INDEX, DROP, REFERENCES";
    let admin = User::with(admin, &place).await;
    said(&admin.migrate().await);
    said(&shop.migrate().await);
    let app = App::start_role("serve", &place, &[("DATABASE_URL", &shop.url())]).await;
    let product = app.create_stocked("Kaos Polos", 2).await;
    let order = app.order(product, 2).await;
    assert_eq!(order.status, 201, "{order:?}");
    assert_eq!(app.inventory(product).await, [2, 0, 2]);
    drop(app);
    shop.drop().await;
    admin.drop().await;
}

/// One process migrates. Others wait for it, and find it done.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn a_migration_waits_for_the_lock_of_another() {
    let place = servers().await.fresh().await;
    let mut other = MySqlConnection::connect(&place.database_url).await.unwrap();
    other.lock().await.unwrap();
    let directory = directory();
    let mut waiting =
        antre(directory.path()).arg("migrate").env("DATABASE_URL", &place.database_url).spawn().unwrap();
    let waiters =
        "SELECT COUNT(*) FROM information_schema.processlist WHERE db = DATABASE() AND state = 'User lock'";
    loop {
        match sqlx::query_scalar::<_, i64>(waiters).fetch_one(&mut other).await {
            Ok(0) => {}
            Ok(_) => break,
            // The list fails while the statement of any session carries raw bytes, which those of other tests do.
            Err(error) => assert!(error.to_string().contains("3854"), "{error}"),
        }
        assert_eq!(waiting.try_wait().unwrap(), None, "it did not wait");
        tokio::task::yield_now().await;
    }
    other.unlock().await.unwrap();
    assert!(waiting.wait().await.unwrap().success());
}
