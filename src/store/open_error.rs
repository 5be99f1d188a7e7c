//! Why a database could not be opened, in sentences that say what to do.

use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL is invalid.
    #[error("{0}")]
    Url(String),
    /// The server or the file refuses the connection.
    #[error("{error}{}", if *.is_encryption { ENCRYPTION_HINT } else { "" })]
    Connect {
        error: String,
        /// Whether it is about TLS.
        is_encryption: bool,
    },
    /// The file cannot be created.
    #[error(transparent)]
    File(#[from] std::io::Error),
    #[error(
        "its tables are not up to date, and a migration failed: {error}{}",
        if *.is_missing_right { RIGHTS_HINT } else { "" }
    )]
    Migration {
        error: String,
        /// Whether this user may not change tables.
        is_missing_right: bool,
    },
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

const ENCRYPTION_HINT: &str = ". To a server on another machine the connection is encrypted and the server's certificate is verified. Name a \
     private CA in DATABASE_URL with ?ssl-ca=/path/ca.pem, or, in a network that nobody else can reach, ask for less with \
     ?ssl-mode=REQUIRED (encrypted, not verified) or ?ssl-mode=DISABLED";

const RIGHTS_HINT: &str = ". Run antre migrate once, with the DATABASE_URL of a user who has SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, \
     INDEX, DROP and REFERENCES on this database; everything else needs SELECT, INSERT, UPDATE and DELETE only";
