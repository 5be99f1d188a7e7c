//! Errors of both databases as errors of the store: nothing else knows MySQL's numbers and SQLite's codes.
//!
//! The rule: only errors that the data itself causes are permanent. All others are transient, unknown ones included: a full
//! disk, a changed password, a failover. A wrong guess then costs another try, and never an order.

use sqlx::{error::DatabaseError, mysql::MySqlDatabaseError};

use super::{error::StoreError, open_error::OpenError, transaction::CommitError};

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let text = error.to_string();
        match &error {
            sqlx::Error::Database(database) => match Cause::of(database.as_ref()) {
                Cause::Data => Self::Refused(text),
                Cause::Lock => Self::Locked(text),
                Cause::Conflict => Self::Contended(text),
                Cause::Server => Self::Unavailable(text),
            },
            // A column that is not what the tables of this program have.
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => Self::Corrupt(text),
            _ => Self::Unavailable(text),
        }
    }
}

impl From<sqlx::Error> for CommitError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            error if is_duplicate(error) => Self::Duplicate,
            _ => Self::Store(error.into()),
        }
    }
}

impl From<sqlx::Error> for OpenError {
    fn from(error: sqlx::Error) -> Self {
        let error = error.to_string();
        let is_encryption = ["certificate", "TLS", "tls"].iter().any(|word| error.contains(word));
        Self::Connect { error, is_encryption }
    }
}

/// Whether a unique index refuses the row.
pub(super) fn is_duplicate(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(DatabaseError::is_unique_violation)
}

/// A migration that failed.
pub(super) fn failed_migration(error: sqlx::Error) -> OpenError {
    OpenError::Migration { is_missing_right: is_missing_right(&error), error: error.to_string() }
}

/// Whether the server says that this user may not do it.
pub(super) fn is_missing_right(error: &sqlx::Error) -> bool {
    let error = error.as_database_error().and_then(|error| error.try_downcast_ref::<MySqlDatabaseError>());
    // Access to the database, to a table, to a column; a privilege of the server.
    error.is_some_and(|error| matches!(error.number(), 1044 | 1142 | 1143 | 1227))
}

/// Whether the connection may be used again after this error. Only where the answer was about the data or about locks: after
/// any other error the server may have become read-only in a failover, or may be gone.
pub(super) fn is_connection_usable(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(database) => !matches!(Cause::of(database.as_ref()), Cause::Server),
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => true,
        _ => false,
    }
}

/// What caused an error of a database.
enum Cause {
    /// The values that a statement writes, or the rows that they meet.
    Data,
    /// A lock that was not released in time.
    Lock,
    /// Another transaction at the same time: a deadlock.
    Conflict,
    /// The server or the file.
    Server,
}

impl Cause {
    fn of(error: &dyn DatabaseError) -> Self {
        if let Some(mysql) = error.try_downcast_ref::<MySqlDatabaseError>() {
            return Self::of_mysql(mysql.number());
        }
        // The low byte is the primary code.
        let code = error.code().and_then(|code| code.parse::<u32>().ok());
        code.map_or(Self::Server, |code| Self::of_sqlite(code & 0xff))
    }

    /// Numbers: <https://dev.mysql.com/doc/mysql-errors/8.4/en/server-error-reference.html>.
    fn of_mysql(number: u16) -> Self {
        match number {
            1205 | 3572 => Self::Lock,
            1213 => Self::Conflict,
            // NULL in a column that is NOT NULL; duplicates; foreign keys.
            1048 | 1062 | 1169 | 1216 | 1217 | 1451 | 1452 | 1557 | 1586 | 1761 | 1762
            // Out of range, too long, of another type.
            | 1264 | 1265 | 1292 | 1366 | 1367 | 1406 | 1411 | 1690 | 3854
            // A CHECK; a trigger's SIGNAL.
            | 3819 | 1644
            // Invalid JSON, or JSON of another shape.
            | 3140 | 3141 | 3144 | 3146 | 3150 | 3156 | 3157 | 3158 | 3665..=3669 | 3903 | 3904 => Self::Data,
            _ => Self::Server,
        }
    }

    /// Codes: <https://www.sqlite.org/rescode.html>.
    fn of_sqlite(primary: u32) -> Self {
        match primary {
            // TOOBIG, CONSTRAINT (a trigger's RAISE, too), MISMATCH.
            18..=20 => Self::Data,
            // BUSY, LOCKED, IOERR, FULL, READONLY, CANTOPEN, CORRUPT and all others concern the whole file, not one order.
            // Somebody makes room, or puts a good copy in its place.
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
            (1..=u16::MAX).filter(|number| matches!(Cause::of_mysql(*number), Cause::Data)).collect();
        // Those that once put orders into the dead letters which were answered 202, and some more.
        for transient in [
            1037, 1040, 1041, 1044, 1045, 1053, 1114, 1142, 1146, 1205, 1213, 1226, 1290, 1317, 1461, 1792,
            1836, 1862, 1927, 3024, 3032, 3118, 3572, 4031, 4175,
        ] {
            assert!(!permanent.contains(&transient), "{transient}");
        }
        for of_the_data in [1048, 1062, 1264, 1292, 1406, 1451, 1452, 3819] {
            assert!(permanent.contains(&of_the_data), "{of_the_data}");
        }
        assert!(permanent.len() < 50, "{permanent:?}");
        let of_sqlite: Vec<_> =
            (0..=0xff).filter(|code| matches!(Cause::of_sqlite(*code), Cause::Data)).collect();
        assert_eq!(of_sqlite, [18, 19, 20]);
    }
}
