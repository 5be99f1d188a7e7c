//! What docs/deploying.md says of backups: taken while a sale runs, restored, and complete up to one moment.

use sqlx::{Connection, Executor, SqliteConnection};
use tokio::{task::JoinHandle, time::timeout};
use url::Url;

use crate::support::{
    harness::{App, Client, Pair, TIMEOUT, antre, eventually},
    servers::servers,
};

/// Places orders one after the other until it is aborted.
fn sale(client: &Client, product: u64) -> JoinHandle<()> {
    let client = client.clone();
    tokio::spawn(async move {
        loop {
            assert_eq!(client.order(product, 1).await.status, 201);
        }
    })
}

async fn some_were_placed(app: &App, product: u64, least: u64) {
    eventually("the sale does not go on", async || {
        let [_, _, reserved] = app.inventory(product).await;
        (reserved >= least).then_some(())
    })
    .await;
}

/// Starts antre on the copy: an order from before the backup is there, the books agree, and the next order is taken.
async fn is_whole(restored: &App, product: u64, order: &str, reserved_at_least: u64) {
    assert_eq!(restored.get(&format!("/api/orders/{order}")).await.status, 200);
    let [stored, available, reserved] = restored.inventory(product).await;
    assert!(reserved >= reserved_at_least && available + reserved == stored, "{available} + {reserved}");
    let mut audit = antre(&restored.file(""));
    let settings = restored.settings().iter().map(|(name, value)| (name, value));
    audit.arg("audit").envs(settings);
    let audit = timeout(TIMEOUT, audit.output()).await.expect("the audit does not end").unwrap();
    assert!(audit.status.success(), "{audit:?}");
    assert_eq!(restored.order(product, 1).await.status, 201);
    assert_eq!(restored.pay(order).await.status, 200);
}

#[tokio::test]
async fn a_copy_of_the_sqlite_file_that_is_made_during_a_sale_is_whole() {
    let app = App::start(Pair::Embedded).await;
    let product = app.create_stocked("Kaos Polos", 1_000_000).await;
    let order = app.order(product, 2).await;
    let sale = sale(&app, product);
    some_were_placed(&app, product, 10).await;
    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path().join("antre.db");
    let mut connection =
        SqliteConnection::connect(&format!("sqlite://{}", app.file("antre.db").display())).await.unwrap();
    connection.execute(sqlx::raw_sql(&format!("VACUUM INTO '{}'", copy.display()))).await.unwrap();
    connection.close().await.unwrap();
    assert!(!sale.is_finished(), "an order failed while the copy was made");
    sale.abort();
    let url = format!("sqlite://{}", copy.display());
    let restored = App::start_with(Pair::Embedded, &[("DATABASE_URL", &url)]).await;
    is_whole(&restored, product, order.id(), 10).await;
}

#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn a_dump_of_mysql_that_is_made_during_a_sale_is_whole() {
    let alone = servers().await.alone().await;
    let url = Url::parse(&alone.place.database_url).unwrap();
    let database = url.path().trim_start_matches('/');
    let login = format!("--user={} --password={}", url.username(), url.password().unwrap_or_default());
    let mut app = App::start_role("serve", &alone.place, &[]).await;
    let product = app.create_stocked("Kaos Polos", 1_000_000).await;
    let order = app.order(product, 2).await;
    let sale = sale(&app, product);
    some_were_placed(&app, product, 10).await;
    let options = "--single-transaction --no-tablespaces --set-gtid-purged=OFF";
    alone.database_shell(&format!("mysqldump {login} {options} {database} > /tmp/antre.sql")).await;
    assert!(!sale.is_finished(), "an order failed while the dump was made");
    sale.abort();
    app.terminate().await;
    let copy = format!("{database}_restored");
    alone.database_shell(&format!("mysql {login} --execute='CREATE DATABASE {copy}'")).await;
    alone.database_shell(&format!("mysql {login} {copy} < /tmp/antre.sql && rm /tmp/antre.sql")).await;
    let url = alone.place.database_url.replace(database, &copy);
    let restored = App::start_role("serve", &alone.place.behind(&url), &[]).await;
    is_whole(&restored, product, order.id(), 10).await;
}
