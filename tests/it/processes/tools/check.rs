//! `antre check`: what is well, what is not, and what to do.

use std::{fs, os::unix::fs::PermissionsExt};

use serde_json::Value;
use sqlx::{Connection, Executor, MySqlConnection};

use super::{json_of, printed, tool};
use crate::{
    processes::cli::{complaint, directory, run},
    support::{
        harness::{App, Pair},
        servers::servers,
    },
};

on_both_pairs!(a_process_that_runs_has_no_failure);

async fn a_process_that_runs_has_no_failure(pair: Pair) {
    let app = App::start(pair).await;
    let said = printed(&tool(&app, &["check"]).await, 0);
    assert!(said.lines().all(|line| line.starts_with("ok ") || line.starts_with("warn ")), "{said}");
    assert!(said.contains("tables") && said.contains("up to date") && !said.contains("secret"), "{said}");
    let checks = json_of(&tool(&app, &["check", "--json"]).await, 0);
    assert_eq!(checks.as_array().unwrap().len(), said.lines().count(), "{checks}");
    if matches!(pair, Pair::Servers) {
        for subject in
            ["mysql version", "mysql durability", "mysql rights", "broker version", "broker rights"]
        {
            assert_eq!(
                grades(&checks, subject).iter().find(|grade| **grade != "ok"),
                None,
                "{subject}: {checks}"
            );
            assert!(!grades(&checks, subject).is_empty(), "{subject}: {checks}");
        }
    }
}

fn grades<'a>(checks: &'a Value, subject: &str) -> Vec<&'a str> {
    let checks = checks.as_array().unwrap().iter().filter(|check| check["subject"] == subject);
    checks.map(|check| check["grade"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_check_before_the_first_start_passes_and_creates_nothing() {
    let directory = directory();
    let said = printed(&run(directory.path(), &["check"], &[]).await, 0);
    assert!(said.contains("antre.db does not exist yet"), "{said}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn each_trouble_is_a_line_that_says_what_to_do() {
    let directory = directory();
    let url = "mysql://root:secret@127.0.0.1:1/antre";
    let servers = [("DATABASE_URL", url), ("AMQP_URL", "amqp://root:secret@127.0.0.1:1/%2f")];
    let said = printed(&run(directory.path(), &["check"], &servers).await, 1);
    let failures: Vec<_> = said.lines().filter(|line| line.starts_with("fail ")).collect();
    assert_eq!(failures.len(), 2, "{said}");
    assert!(failures[0].contains("DATABASE_URL") && failures[1].contains("AMQP_URL"), "{said}");
    assert!(failures.iter().all(|line| line.contains("To do: ")) && !said.contains("secret"), "{said}");

    let said = printed(&run(directory.path(), &["check"], &servers[..1]).await, 1);
    assert!(said.contains("AMQP_URL (--amqp-url) is missing"), "{said}");
    let nowhere = [("DATABASE_URL", "sqlite://nowhere/antre.db")];
    let said = printed(&run(directory.path(), &["check"], &nowhere).await, 1);
    assert!(said.contains("fail  database") && said.contains("directory"), "{said}");
    let short = [("RESERVATION_TTL", "5s"), ("ORDER_TIMEOUT", "10s")];
    let said = printed(&run(directory.path(), &["check"], &short).await, 0);
    assert!(said.contains("warn  settings") && said.contains("RESERVATION_TTL"), "{said}");
    complaint(&run(directory.path(), &["check", "everything"], &[]).await, 2);
}

#[tokio::test]
async fn a_file_that_others_may_open_is_a_warning() {
    let app = App::start(Pair::Embedded).await;
    fs::set_permissions(app.file("antre.db"), fs::Permissions::from_mode(0o644)).unwrap();
    let said = printed(&tool(&app, &["check"]).await, 0);
    assert!(said.contains("warn  database") && said.contains("chmod 600"), "{said}");
}

/// The tables exist, and the user of DATABASE_URL may only read.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn a_missing_right_is_named() {
    let place = servers().await.fresh().await;
    let app = App::start_role("serve", &place, &[]).await;
    let (_, database) = place.database_url.rsplit_once('/').unwrap();
    let user = &database[database.len() - 20..];
    let mut root = MySqlConnection::connect(&place.database_url).await.unwrap();
    let statements = format!(
        "CREATE USER '{user}'@'%' IDENTIFIED BY 'secret'; GRANT SELECT ON {database}.* TO '{user}'@'%';
         GRANT INSERT, UPDATE, DELETE ON {database}.products TO '{user}'@'%'"
    );
    root.execute(sqlx::raw_sql(&statements)).await.unwrap();
    let (scheme, rest) = place.database_url.split_once("://").unwrap();
    let (_, host) = rest.rsplit_once('@').unwrap();
    let url = format!("{scheme}://{user}:secret@{host}");
    let settings = [("DATABASE_URL", url.as_str()), ("AMQP_URL", &place.amqp_url)];
    let said = printed(&run(&app.file(""), &["check"], &settings).await, 1);
    let line =
        said.lines().find(|line| line.starts_with("fail  mysql rights")).unwrap_or_else(|| panic!("{said}"));
    assert!(line.contains("INSERT on orders") && line.contains("DELETE on idempotency_keys"), "{said}");
    assert!(!line.contains("products") && !line.contains("SELECT on"), "{said}");
    root.execute(sqlx::raw_sql(&format!("DROP USER '{user}'@'%'"))).await.unwrap();
}
