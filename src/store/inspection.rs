//! What a database says of itself, for `antre check`: version, settings, rights and clock. Reads only, and judges nothing.

use std::{
    collections::BTreeMap, fs::OpenOptions, os::unix::fs::PermissionsExt, path::PathBuf, str::FromStr,
};

use sqlx::{ConnectOptions, Connection, MySqlConnection, sqlite::SqliteConnectOptions};

use super::{
    mysql_url::connect_options, open_error::OpenError, rows::TextColumn, sqlx_error::is_missing_right,
};
use crate::clock::{Clock, SystemClock};

/// The server's settings that matter here.
const VARIABLES: [&str; 10] = [
    "version",
    "version_comment",
    "innodb_flush_log_at_trx_commit",
    "sync_binlog",
    "log_bin",
    "innodb_doublewrite",
    "innodb_flush_method",
    "read_only",
    "super_read_only",
    "max_connections",
];

/// Each table and one of its columns.
const TABLES: [(&str, &str); 7] = [
    ("products", "name"),
    ("inventories", "stored_stock"),
    ("orders", "total"),
    ("idempotency_keys", "order_id"),
    ("order_aliases", "order_id"),
    ("installation", "id"),
    ("lane_sets", "used_at"),
];

/// A MySQL server, as its user sees it.
#[derive(Clone, Debug)]
pub struct MySqlInspection {
    /// Settings of the server by name, as it spells them. One that the server does not have is left out.
    pub variables: BTreeMap<String, String>,
    /// "INSERT on orders", for each right that the user of `DATABASE_URL` lacks. Empty while the tables do not exist.
    pub missing_rights: Vec<String>,
    /// How far the server's clock is ahead of this process's, in milliseconds; negative if it is behind.
    pub clock_ahead: i64,
}

/// Asks the server of a `mysql://` URL. `has_tables`: rights on them can be examined.
pub async fn inspect_mysql(url: &str, has_tables: bool) -> Result<MySqlInspection, OpenError> {
    let mut connection = MySqlConnection::connect_with(&connect_options(url)?).await?;
    let variables: Vec<(TextColumn, TextColumn)> =
        sqlx::query_as("SHOW GLOBAL VARIABLES").fetch_all(&mut connection).await?;
    let variables = variables.into_iter().map(|(TextColumn(name), TextColumn(value))| (name, value));
    let variables = variables.filter(|(name, _)| VARIABLES.contains(&name.as_str())).collect();
    let asked = SystemClock.now().as_millisecond();
    let clock = "SELECT TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(3)) DIV 1000";
    let server: i64 = sqlx::query_scalar(clock).fetch_one(&mut connection).await?;
    let clock_ahead = server - (asked + SystemClock.now().as_millisecond()) / 2;
    let missing_rights = if has_tables { missing_rights(&mut connection).await? } else { Vec::new() };
    connection.close().await?;
    Ok(MySqlInspection { variables, missing_rights, clock_ahead })
}

/// To explain a statement needs the rights of the statement, and does not run it.
async fn missing_rights(connection: &mut MySqlConnection) -> Result<Vec<String>, OpenError> {
    let mut missing = Vec::new();
    for (table, column) in TABLES {
        for (right, statement) in [
            ("SELECT", format!("SELECT {column} FROM {table} WHERE FALSE")),
            ("INSERT", format!("INSERT INTO {table} ({column}) VALUES (DEFAULT({column}))")),
            ("UPDATE", format!("UPDATE {table} SET {column} = {column} WHERE FALSE")),
            ("DELETE", format!("DELETE FROM {table} WHERE FALSE")),
        ] {
            match sqlx::query(&format!("EXPLAIN {statement}")).execute(&mut *connection).await {
                Err(error) if is_missing_right(&error) => missing.push(format!("{right} on {table}")),
                // The server looks at rights first; what else it dislikes about the statement does not matter here.
                Err(sqlx::Error::Database(_)) | Ok(_) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(missing)
}

/// An SQLite file.
#[derive(Clone, Debug)]
pub struct SqliteInspection {
    pub file: PathBuf,
    /// `None`: there is no such file yet.
    pub existing: Option<SqliteFile>,
    /// Whether the directory of the file exists.
    pub has_directory: bool,
}

/// An SQLite file that exists.
#[derive(Clone, Debug)]
pub struct SqliteFile {
    /// Its permissions, as `chmod` takes them.
    pub mode: u32,
    /// Why this process may not write it.
    pub not_writable: Option<String>,
    /// The version of SQLite in this program.
    pub version: String,
}

/// Looks at the file of a `sqlite://` URL, and creates none.
pub async fn inspect_sqlite(url: &str) -> Result<SqliteInspection, OpenError> {
    let options = SqliteConnectOptions::from_str(url)?.read_only(true).disable_statement_logging();
    let file = options.get_filename().to_owned();
    let directory = file.parent().filter(|directory| !directory.as_os_str().is_empty());
    let has_directory = directory.is_none_or(|directory| directory.is_dir());
    let existing = match file.metadata() {
        Err(_) => None,
        Ok(metadata) => {
            let not_writable =
                OpenOptions::new().write(true).open(&file).err().map(|error| error.to_string());
            let mut connection = options.connect().await?;
            let version = sqlx::query_scalar("SELECT sqlite_version()").fetch_one(&mut connection).await?;
            connection.close().await?;
            let mode = metadata.permissions().mode() & 0o777;
            Some(SqliteFile { mode, not_writable, version })
        }
    };
    Ok(SqliteInspection { file, existing, has_directory })
}
