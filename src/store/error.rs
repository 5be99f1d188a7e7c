//! Why the database did not do it.

use crate::domain::inventory::BooksDoNotBalance;

/// Why the database did not do it. Each adapter classifies its own errors.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Transient: no connection, no answer in time, or an answer that says nothing about the data.
    #[error("the database does not answer: {0}")]
    Unavailable(String),
    /// Transient: another transaction keeps rows locked for longer than a batch may wait for them.
    #[error("somebody else keeps rows locked: {0}")]
    Locked(String),
    /// Transient, and over soon: a deadlock, or batches of several lanes compete for the same idempotency keys.
    #[error("others want the same rows: {0}")]
    Contended(String),
    /// Transient: this list got no permit in time, because others list as much.
    #[error("too many lists are read at the same time")]
    TooManyLists,
    /// Permanent: the database refuses the data.
    #[error("the database refuses: {0}")]
    Refused(String),
    /// Permanent: an inventory in the database is invalid.
    #[error(transparent)]
    BooksDoNotBalance(#[from] BooksDoNotBalance),
    /// Permanent: a row in the database is invalid.
    #[error("the database holds what it must not: {0}")]
    Corrupt(String),
}

impl StoreError {
    /// Whether trying again may help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unavailable(_) | Self::Locked(_) | Self::Contended(_) | Self::TooManyLists => true,
            Self::Refused(_) | Self::BooksDoNotBalance(_) | Self::Corrupt(_) => false,
        }
    }
}
