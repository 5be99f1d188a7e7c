//! Why the database did not do it. Errors of both databases are classified here and nowhere else.
//!
//! The rule: only what the data itself is to blame for is permanent. Everything else passes, also what nobody has thought
//! of: a full disk, a changed password, a failover. A wrong guess then costs another try, and never an order.

use sqlx::{error::DatabaseError, mysql::MySqlDatabaseError};

use crate::domain::inventory::BooksDoNotBalance;

/// Why the database did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Passes: no connection, no answer in time, or an answer that says nothing about the data.
    #[error("the database does not answer: {0}")]
    Unavailable(String),
    /// Passes: somebody else keeps rows locked for longer than a batch may wait for them.
    #[error("somebody else keeps rows locked: {0}")]
    Locked(String),
    /// Passes, and soon: a deadlock, or batches of several lanes fight for the same idempotency keys.
    #[error("others want the same rows: {0}")]
    Contended(String),
    /// Passes: others list so much that there was no turn for this list in time.
    #[error("too many lists are read at the same time")]
    TooManyLists,
    /// Permanent: the database refuses the data.
    #[error("the database refuses: {0}")]
    Refused(String),
    /// Permanent: what stands in the database cannot be.
    #[error(transparent)]
    BooksDoNotBalance(#[from] BooksDoNotBalance),
    /// Permanent: what stands in the database cannot be.
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

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let text = error.to_string();
        match &error {
            sqlx::Error::Database(database) => match Blame::of(database.as_ref()) {
                Blame::Data => Self::Refused(text),
                Blame::Locks => Self::Locked(text),
                Blame::Company => Self::Contended(text),
                Blame::Server => Self::Unavailable(text),
            },
            // A column that is not what the tables of this program have.
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => Self::Corrupt(text),
            _ => Self::Unavailable(text),
        }
    }
}

/// Whether the connection may be used again after this error. Only where the answer was about the data or about locks: after
/// anything else, the server may be one that has become read-only in a failover, or may not be there any more.
pub(super) fn spares_connection(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(database) => !matches!(Blame::of(database.as_ref()), Blame::Server),
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => true,
        _ => false,
    }
}

/// What an error of a database speaks of.
enum Blame {
    /// The values that were to be written, or what they meet.
    Data,
    /// A lock that was not had in time.
    Locks,
    /// Others who do the same at the same time.
    Company,
    /// The server, or something else that passes.
    Server,
}

impl Blame {
    fn of(error: &dyn DatabaseError) -> Self {
        if let Some(mysql) = error.try_downcast_ref::<MySqlDatabaseError>() {
            return Self::of_mysql(mysql.number());
        }
        // The low byte is the primary code.
        let code = error.code().and_then(|code| code.parse::<u32>().ok());
        code.map_or(Self::Server, |code| Self::of_sqlite(code & 0xff))
    }

    fn of_mysql(number: u16) -> Self {
        match number {
            1205 | 3572 => Self::Locks,
            1213 => Self::Company,
            // NULL where none may be; duplicate; foreign keys.
            1048 | 1062 | 1169 | 1216 | 1217 | 1451 | 1452 | 1557 | 1586 | 1761 | 1762
            // Out of range, too long, not of the type.
            | 1264 | 1265 | 1292 | 1366 | 1367 | 1406 | 1411 | 1690 | 3854
            // A CHECK; a trigger's SIGNAL.
            | 3819 | 1644
            // JSON that is none, or that does not fit.
            | 3140 | 3141 | 3144 | 3146 | 3150 | 3156 | 3157 | 3158 | 3665..=3669 | 3903 | 3904 => Self::Data,
            _ => Self::Server,
        }
    }

    fn of_sqlite(primary: u32) -> Self {
        match primary {
            // TOOBIG, CONSTRAINT (a trigger's RAISE, too), MISMATCH.
            18..=20 => Self::Data,
            // BUSY, LOCKED, IOERR, FULL, READONLY, CANTOPEN, CORRUPT and all others: a whole file is in trouble, not one
            // order. Somebody makes room, or puts a good copy in its place.
            _ => Self::Server,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_errors_of_the_data_are_permanent() {
        let permanent: Vec<u16> =
            (1..=u16::MAX).filter(|number| matches!(Blame::of_mysql(*number), Blame::Data)).collect();
        // Those that once put orders into the dead letters which were answered 202, and some more.
        for passing in [
            1037, 1040, 1041, 1044, 1045, 1053, 1114, 1142, 1146, 1205, 1213, 1226, 1290, 1317, 1461, 1792,
            1836, 1862, 1927, 3024, 3032, 3118, 3572, 4031, 4175,
        ] {
            assert!(!permanent.contains(&passing), "{passing}");
        }
        for of_the_data in [1048, 1062, 1264, 1292, 1406, 1451, 1452, 3819] {
            assert!(permanent.contains(&of_the_data), "{of_the_data}");
        }
        assert!(permanent.len() < 50, "{permanent:?}");
        let of_sqlite: Vec<_> =
            (0..=0xff).filter(|code| matches!(Blame::of_sqlite(*code), Blame::Data)).collect();
        assert_eq!(of_sqlite, [18, 19, 20]);
    }
}
