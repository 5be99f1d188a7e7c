//! Compares the tables of a database with the migrations of this program: whether it may use them, and how they are brought up
//! to date. One policy for both databases:
//!
//! - Tables that are up to date need only the rights to read and write rows: nothing is locked, created or changed.
//! - Migrations that this program does not know come from a newer one. This program may run if `schema_compatibility` says so.
//! - One process migrates. The others wait for it, up to a limit, and log that they wait.

use std::{collections::BTreeMap, fmt, pin::pin, time::Duration};

use async_trait::async_trait;
use sqlx::{
    MySqlConnection, SqliteConnection,
    migrate::{Migrate, MigrateError, Migrator},
};
use tokio::time::{Instant, timeout};

use super::{
    open_error::OpenError,
    sqlx_error::{failed_migration, is_missing_right},
};

pub(super) static MYSQL: Migrator = sqlx::migrate!("migrations/mysql");
pub(super) static SQLITE: Migrator = sqlx::migrate!("migrations/sqlite");

/// How long a process waits for another one that migrates. Changing a table of many million rows takes minutes.
const MAX_WAIT: Duration = Duration::from_secs(30 * 60);
/// How often a waiting process logs that it waits.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// The state of the migrations of a database.
#[derive(Clone, Debug)]
pub struct Schema {
    migrations: BTreeMap<i64, (String, State)>,
    /// The last migration that a program must know to use the tables. `None`: the tables do not say.
    min_version: Option<i64>,
}

/// The state of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Applied,
    Pending,
    /// Applied with another content than it has in this program.
    Changed,
    /// Begun, and not recorded as ended.
    Unfinished,
    /// Applied by a newer program.
    Unknown,
}

/// Whether this program may use the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Usability {
    /// It may.
    Now,
    /// It may, once its migrations are applied.
    AfterMigration,
    /// It may not; the text says why, and what to do.
    Never(String),
}

impl Schema {
    /// The schema of an empty database.
    pub(super) fn none(migrator: &Migrator) -> Self {
        let pending = |name: &str| (name.to_owned(), State::Pending);
        let migrations = migrator.iter().map(|known| (known.version, pending(&known.description))).collect();
        Self { migrations, min_version: None }
    }

    /// Reads only.
    pub(super) async fn read(migrator: &Migrator, database: &mut impl Tables) -> Result<Self, OpenError> {
        let mut schema = Self::none(migrator);
        let tables = database.tables().await?;
        let exists = |name: &str| tables.iter().any(|table| table == name);
        if exists("schema_compatibility") {
            schema.min_version = database.min_version().await?;
        }
        if !exists("_sqlx_migrations") {
            return Ok(schema);
        }
        for applied in database.list_applied_migrations().await? {
            let known = migrator.iter().find(|known| known.version == applied.version);
            let state = match known {
                None => State::Unknown,
                Some(known) if known.checksum == applied.checksum => State::Applied,
                Some(_) => State::Changed,
            };
            schema.set(applied.version, state);
        }
        if let Some(version) = database.dirty_version().await? {
            schema.set(version, State::Unfinished);
        }
        Ok(schema)
    }

    fn set(&mut self, version: i64, state: State) {
        self.migrations.entry(version).or_insert((String::new(), state)).1 = state;
    }

    /// Whether this program may use the tables.
    pub fn usability(&self) -> Usability {
        if let Some(version) = self.last(State::Unfinished) {
            return Usability::Never(format!(
                "migration {version} was begun, and is not recorded as ended. Check whether its change is in the database: \
                 if it is, UPDATE _sqlx_migrations SET success = 1 WHERE version = {version}; if it is not, DELETE FROM \
                 _sqlx_migrations WHERE version = {version}. Then run antre migrate"
            ));
        }
        if let Some(version) = self.last(State::Changed) {
            return Usability::Never(format!(
                "its migration {version} is not the one that this antre has: another build made these tables"
            ));
        }
        let Some(newest) = self.last(State::Unknown) else {
            return match self.last(State::Pending) {
                Some(_) => Usability::AfterMigration,
                None => Usability::Now,
            };
        };
        let known = self.known();
        match (self.min_version, self.last(State::Pending)) {
            (_, Some(pending)) => Usability::Never(format!(
                "another build made its tables: migration {newest} is applied, which this antre does not know, and \
                 migration {pending} is not, which it needs"
            )),
            (Some(least), None) if least <= known => Usability::Now,
            (Some(least), None) => Usability::Never(format!(
                "a newer antre has changed its tables, and a program that uses them must know at least migration {least}; this \
                 antre ({}) knows {known}. Start the newer one again",
                env!("CARGO_PKG_VERSION")
            )),
            (None, None) => Usability::Never(format!(
                "its tables have migration {newest}, which this antre does not know, and do not say that it may use them"
            )),
        }
    }

    /// The last migration that this program knows.
    fn known(&self) -> i64 {
        let known = self.migrations.iter().filter(|(_, (_, state))| *state != State::Unknown);
        known.map(|(version, _)| *version).max().unwrap_or_default()
    }

    fn last(&self, wanted: State) -> Option<i64> {
        let found = self.migrations.iter().filter(|(_, (_, state))| *state == wanted);
        found.map(|(version, _)| *version).max()
    }
}

/// A line for each migration.
impl fmt::Display for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (version, (name, state)) in &self.migrations {
            let state = match state {
                State::Applied => "applied",
                State::Pending => "pending",
                State::Changed => "applied, but another one than this antre has",
                State::Unfinished => "begun, but not ended",
                State::Unknown => "applied by a newer antre, unknown to this one",
            };
            writeln!(f, "{:>4} {name:<24} {state}", version)?;
        }
        Ok(())
    }
}

/// Applies the pending migrations, while no other process does.
pub(super) async fn bring_up_to_date(
    migrator: &Migrator,
    database: &mut impl Tables,
) -> Result<(), OpenError> {
    // In the usual case nothing is locked. An unfinished migration may be running in another process.
    let schema = Schema::read(migrator, database).await?;
    if schema.last(State::Unfinished).is_none() && is_usable(&schema)? {
        return Ok(());
    }
    lock(database).await?;
    let applied = apply_pending(migrator, database).await;
    let unlocked = database.unlock().await;
    applied?;
    Ok(unlocked?)
}

async fn apply_pending(migrator: &Migrator, database: &mut impl Tables) -> Result<(), OpenError> {
    if is_usable(&Schema::read(migrator, database).await?)? {
        return Ok(()); // the other process did it
    }
    database.ensure_migrations_table().await?;
    for migration in migrator.iter() {
        let is_pending = |schema: &Schema| {
            let state = schema.migrations.get(&migration.version).map(|(_, state)| *state);
            state == Some(State::Pending)
        };
        if !is_pending(&Schema::read(migrator, database).await?) {
            continue;
        }
        if let Err(error) = database.apply(migration).await {
            // SQLite has no lock that spans migrations: a process that began at the same moment may have been first.
            match Schema::read(migrator, database).await {
                Ok(now) if !is_pending(&now) && now.last(State::Unfinished).is_none() => {}
                _ => return Err(error.into()),
            }
        }
    }
    is_usable(&Schema::read(migrator, database).await?)?;
    Ok(())
}

/// Whether the tables are up to date; an error if they are not usable.
fn is_usable(schema: &Schema) -> Result<bool, OpenError> {
    match schema.usability() {
        Usability::Now => Ok(true),
        Usability::AfterMigration => Ok(false),
        Usability::Never(why) => Err(OpenError::Schema(why)),
    }
}

/// Waits until no other process migrates. (sqlx would wait for ever, and silently.)
async fn lock(database: &mut impl Tables) -> Result<(), OpenError> {
    let mut locking = pin!(database.lock());
    let began = Instant::now();
    loop {
        match timeout(REPORT_EVERY, &mut locking).await {
            Ok(locked) => return Ok(locked?),
            Err(_) if began.elapsed() >= MAX_WAIT => return Err(OpenError::MigrationLocked(MAX_WAIT)),
            Err(_) => tracing::warn!(
                seconds = began.elapsed().as_secs(),
                "waiting: another process is bringing the tables up to date, or keeps their migration lock"
            ),
        }
    }
}

/// What is read before a migration.
#[async_trait]
pub(super) trait Tables: Migrate + Send {
    /// The names of the tables.
    async fn tables(&mut self) -> Result<Vec<String>, sqlx::Error>;

    /// What `schema_compatibility` says.
    async fn min_version(&mut self) -> Result<Option<i64>, sqlx::Error>;
}

const MIN_VERSION: &str = "SELECT min_version FROM schema_compatibility";

#[async_trait]
impl Tables for MySqlConnection {
    async fn tables(&mut self) -> Result<Vec<String>, sqlx::Error> {
        let names =
            "SELECT CAST(table_name AS CHAR) FROM information_schema.tables WHERE table_schema = DATABASE()";
        sqlx::query_scalar(names).fetch_all(self).await
    }

    async fn min_version(&mut self) -> Result<Option<i64>, sqlx::Error> {
        sqlx::query_scalar(MIN_VERSION).fetch_optional(self).await
    }
}

#[async_trait]
impl Tables for SqliteConnection {
    async fn tables(&mut self) -> Result<Vec<String>, sqlx::Error> {
        sqlx::query_scalar("SELECT name FROM sqlite_schema WHERE type = 'table'").fetch_all(self).await
    }

    async fn min_version(&mut self) -> Result<Option<i64>, sqlx::Error> {
        sqlx::query_scalar(MIN_VERSION).fetch_optional(self).await
    }
}

impl From<MigrateError> for OpenError {
    fn from(error: MigrateError) -> Self {
        match error {
            MigrateError::Execute(error) if is_missing_right(&error) => failed_migration(error),
            MigrateError::Execute(error) => error.into(),
            MigrateError::ExecuteMigration(error, _) => failed_migration(error),
            other => Self::Schema(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(states: &[State], min_version: Option<i64>) -> Schema {
        let migrations = (1..).zip(states).map(|(version, state)| (version, (String::new(), *state)));
        Schema { migrations: migrations.collect(), min_version }
    }

    fn refusal(states: &[State], min_version: Option<i64>) -> String {
        match schema(states, min_version).usability() {
            Usability::Never(why) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn tables_are_usable_when_they_are_up_to_date() {
        use State::{Applied, Pending};
        assert_eq!(schema(&[Applied, Applied], Some(2)).usability(), Usability::Now);
        assert_eq!(schema(&[Applied, Pending], None).usability(), Usability::AfterMigration);
        assert_eq!(Schema::none(&MYSQL).usability(), Usability::AfterMigration);
        assert_eq!(Schema::none(&SQLITE).usability(), Usability::AfterMigration);
    }

    #[test]
    fn newer_tables_say_which_programs_may_use_them() {
        use State::{Applied, Pending, Unknown};
        assert_eq!(schema(&[Applied, Applied, Unknown], Some(2)).usability(), Usability::Now);
        assert!(refusal(&[Applied, Applied, Unknown], Some(3)).contains("must know at least migration 3"));
        assert!(
            refusal(&[Applied, Applied, Unknown], None).contains("migration 3, which this antre does not")
        );
        assert!(
            refusal(&[Applied, Pending, Unknown], Some(1)).contains("migration 2 is not, which it needs")
        );
    }

    #[test]
    fn a_changed_or_unfinished_migration_is_named() {
        use State::{Applied, Changed, Unfinished};
        assert!(refusal(&[Applied, Changed], Some(1)).contains("migration 2 is not the one"));
        assert!(refusal(&[Applied, Unfinished], Some(1)).contains("migration 2 was begun"));
    }
}
