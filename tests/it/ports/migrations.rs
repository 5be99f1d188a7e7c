//! Who may start on which tables, and who may change them.

use std::{path::Path, process::Output};

use sqlx::{
    Connection, Executor, MySqlConnection, SqliteConnection, migrate::Migrate, mysql::MySqlConnectOptions,
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
        match self {
            Self::Sqlite(_) => {
                let mut connection = SqliteConnection::connect(&self.url()).await.unwrap();
                connection.execute(sqlx::raw_sql(statement)).await.unwrap();
                connection.close().await.unwrap();
            }
            Self::MySql(..) => {
                let mut connection = MySqlConnection::connect(&self.url()).await.unwrap();
                connection.execute(sqlx::raw_sql(statement)).await.unwrap();
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
        assert!(text.contains("must know migration 9999 at least"), "{text}");
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
    while sqlx::query_scalar::<_, i64>(waiters).fetch_one(&mut other).await.unwrap() == 0 {
        assert_eq!(waiting.try_wait().unwrap(), None, "it did not wait");
        tokio::task::yield_now().await;
    }
    other.unlock().await.unwrap();
    assert!(waiting.wait().await.unwrap().success());
}
