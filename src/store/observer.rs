//! Who wants to know what becomes of transactions.

use std::time::Duration;

/// Who wants to know. Called for each transaction that decides a batch: it must be quick.
pub trait TransactionObserver: Send + Sync {
    fn committed(&self, phases: TransactionPhases);

    /// A transaction did not commit, and runs again at once.
    fn runs_again(&self, cause: RetryCause);
}

/// How long the parts of one transaction took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransactionPhases {
    /// From the wait for a connection to the last row.
    pub lock_and_read: Duration,
    /// The decision, and the lists of what it changes.
    pub decide: Duration,
    pub write_and_commit: Duration,
}

/// Why a transaction runs again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryCause {
    /// A deadlock, or others wanted the same rows.
    Contended,
    /// An order or a key of the batch is stored already.
    Duplicate,
}
