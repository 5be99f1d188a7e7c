//! Why a database could not be opened, in sentences that say what to do.

use std::time::Duration;

use sqlx::mysql::MySqlDatabaseError;

/// Why a database could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL is not one.
    #[error("{0}")]
    Url(String),
    /// The server or the file does not let us in.
    #[error("{0}{hint}", hint = hint(.0))]
    Connect(#[from] sqlx::Error),
    /// The file cannot be made.
    #[error(transparent)]
    File(#[from] std::io::Error),
    /// A migration failed.
    #[error("its tables are not up to date, and a migration failed: {0}{hint}", hint = right(.0))]
    Migration(#[source] sqlx::Error),
    /// This program cannot use its tables.
    #[error("{0}")]
    Schema(String),
    /// Another process keeps the migration lock.
    #[error(
        "its tables are not up to date, and another process has kept their migration lock for {0:?}: end that process, or wait \
         for it and start again"
    )]
    MigrationLocked(Duration),
}

/// What helps where an encrypted connection is not had.
fn hint(error: &sqlx::Error) -> &'static str {
    let text = error.to_string();
    if ["certificate", "TLS", "tls"].iter().any(|word| text.contains(word)) {
        ". To a server on another machine the connection is encrypted and the server's certificate is verified. Name a \
         private CA in DATABASE_URL with ?ssl-ca=/path/ca.pem, or, in a network that nobody else can reach, ask for less with \
         ?ssl-mode=REQUIRED (encrypted, not verified) or ?ssl-mode=DISABLED"
    } else {
        ""
    }
}

/// What helps who may not change tables.
fn right(error: &sqlx::Error) -> &'static str {
    if is_missing_right(error) {
        ". Run antre migrate once, with the DATABASE_URL of a user who has SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, \
         INDEX, DROP and REFERENCES on this database; everything else needs SELECT, INSERT, UPDATE and DELETE only"
    } else {
        ""
    }
}

/// Whether the server says that this user may not do it.
pub(super) fn is_missing_right(error: &sqlx::Error) -> bool {
    let error = error.as_database_error().and_then(|error| error.try_downcast_ref::<MySqlDatabaseError>());
    // Access to the database, to a table, to a column; a privilege of the server.
    error.is_some_and(|error| matches!(error.number(), 1044 | 1142 | 1143 | 1227))
}
