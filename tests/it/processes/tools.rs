//! The tools for the operator, as the built program.

mod audit;
mod check;
mod dead;
mod healthcheck;
mod import;
mod manual;
mod lanes;
mod prune;

use std::process::Output;

use serde_json::Value;
use sqlx::{Connection, Executor, MySqlConnection, SqliteConnection};
use tokio::time::timeout;

use crate::{
    processes::cli::{directory, run},
    support::harness::{App, TIMEOUT, antre},
};

/// Runs a tool beside the program, with the same settings, to its end.
pub(crate) async fn tool(app: &App, arguments: &[&str]) -> Output {
    let mut command = antre(&app.file(""));
    let settings = app.settings().iter().map(|(name, value)| (name, value));
    command.args(arguments).envs(settings).env("RUST_LOG", "warn");
    timeout(TIMEOUT, command.output()).await.expect("the tool does not end").unwrap()
}

/// What it printed, once it exited with this code and complained of nothing.
#[track_caller]
fn printed(output: &Output, code: i32) -> String {
    let stdout = String::from_utf8(output.stdout.clone()).unwrap();
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(output.status.code() == Some(code) && stderr.is_empty(), "{:?} {stdout}{stderr}", output.status);
    stdout
}

/// The JSON that it printed.
#[track_caller]
pub(crate) fn json_of(output: &Output, code: i32) -> Value {
    let printed = printed(output, code);
    serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
}

/// What somebody does to the database by hand.
async fn by_hand(app: &App, statement: &str) {
    let url = app.settings().iter().find(|(name, _)| name == "DATABASE_URL").map(|(_, url)| url.clone());
    if let Some(url) = url {
        let mut connection = MySqlConnection::connect(&url).await.unwrap();
        connection.execute(sqlx::raw_sql(statement)).await.unwrap();
        connection.close().await.unwrap();
    } else {
        let url = format!("sqlite://{}", app.file("antre.db").display());
        let mut connection = SqliteConnection::connect(&url).await.unwrap();
        connection.execute(sqlx::raw_sql(statement)).await.unwrap();
        connection.close().await.unwrap();
    }
}

#[tokio::test]
async fn the_help_of_a_tool_shows_its_own_flags() {
    let directory = directory();
    for (tool, shown, hidden) in [
        (
            &["audit"] as &[&str],
            &["DATABASE_URL", "--json"] as &[&str],
            &["AMQP_URL", "LISTEN_ADDR"] as &[&str],
        ),
        (&["check"], &["DATABASE_URL", "AMQP_URL", "--json"], &["LISTEN_ADDR", "EVENTS"]),
        (
            &["healthcheck"],
            &["LISTEN_ADDR", "--url", "--json"],
            &["DATABASE_URL", "AMQP_URL", "ORDER_TIMEOUT"],
        ),
        (&["worker"], &["RETENTION", "EVENTS", "LISTEN_ADDR"], &["ORDER_TIMEOUT", "PUBLIC_URL"]),
        (&["api"], &["ORDER_TIMEOUT", "PUBLIC_URL"], &["RETENTION", "EVENTS"]),
        (&["migrate"], &["DATABASE_URL", "--status"], &["AMQP_URL", "LISTEN_ADDR", "EVENTS"]),
        (&["import"], &["DATABASE_URL", "--recount", "FILE"], &["AMQP_URL", "LISTEN_ADDR"]),
        (&["prune"], &["DATABASE_URL", "--before"], &["AMQP_URL", "RETENTION"]),
        (&["lanes"], &["DATABASE_URL", "AMQP_URL", "LANES", "--json"], &["LISTEN_ADDR", "EVENTS"]),
        (&["dead", "requeue"], &["AMQP_URL", "QUEUE_PREFIX", "--all"], &["LISTEN_ADDR", "RESERVATION_TTL"]),
    ] {
        for arguments in [&[tool, &["--help"]].concat(), &[&["help"], tool].concat()] {
            let output = run(directory.path(), arguments, &[]).await;
            let help = printed(&output, 0);
            assert!(shown.iter().all(|word| help.contains(word)), "{arguments:?}: {help}");
            assert!(!hidden.iter().any(|word| help.contains(word)), "{arguments:?}: {help}");
        }
    }
}
