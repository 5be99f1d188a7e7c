//! Which tables there are beside those that this program knows, whether it may use them, and how they are brought up to
//! date. One policy for both databases:
//!
//! - Tables that are up to date need no right but to read and write them: nothing is locked, created or written.
//! - Migrations that this program does not know come from a newer one. It may run if `schema_compatibility` says so.
//! - One process migrates, the others wait for it: not for ever, and not in silence.

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
/// How often it says that it waits.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// The tables of a database, as far as migrations made them.
#[derive(Clone, Debug)]
pub struct Schema {
    migrations: BTreeMap<i64, (String, State)>,
    /// The last migration that a program must know at least to use the tables. `None`: they do not say.
    min_version: Option<i64>,
}

/// What became of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Applied,
    Pending,
    /// Applied, and another one in this program.
    Changed,
    /// Begun, and nobody wrote that it ended.
    Unfinished,
    /// Applied by a program that is newer.
    Unknown,
}

/// What this program may do with the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Usable {
    /// Use them.
    Now,
    /// Use them once its migrations are applied.
    AfterMigration,
    /// Nothing; the text says why, and what to do.
    Never(String),
}

impl Schema {
    /// Tables that do not exist yet.
    pub(super) fn none(migrator: &Migrator) -> Self {
        let pending = |name: &str| (name.to_owned(), State::Pending);
        let migrations = migrator.iter().map(|known| (known.version, pending(&known.description))).collect();
        Self { migrations, min_version: None }
    }

    /// Looks, and changes nothing.
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

    /// What this program may do with the tables.
    pub fn usable(&self) -> Usable {
        if let Some(version) = self.last(State::Unfinished) {
            return Usable::Never(format!(
                "migration {version} was begun, and nobody wrote that it ended. Look whether its change is in the database: \
                 if it is, UPDATE _sqlx_migrations SET success = 1 WHERE version = {version}; if it is not, DELETE FROM \
                 _sqlx_migrations WHERE version = {version}. Then run antre migrate"
            ));
        }
        if let Some(version) = self.last(State::Changed) {
            return Usable::Never(format!(
                "its migration {version} is not the one that this antre has: another build made these tables"
            ));
        }
        let Some(newest) = self.last(State::Unknown) else {
            return match self.last(State::Pending) {
                Some(_) => Usable::AfterMigration,
                None => Usable::Now,
            };
        };
        let known = self.known();
        match (self.min_version, self.last(State::Pending)) {
            (_, Some(pending)) => Usable::Never(format!(
                "another build made its tables: migration {newest} is applied, which this antre does not know, and \
                 migration {pending} is not, which it needs"
            )),
            (Some(least), None) if least <= known => Usable::Now,
            (Some(least), None) => Usable::Never(format!(
                "a newer antre has changed its tables, and who uses them must know migration {least} at least; this \
                 antre ({}) knows {known}. Start the newer one again",
                env!("CARGO_PKG_VERSION")
            )),
            (None, None) => Usable::Never(format!(
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

/// Applies what is pending, while no other process does.
pub(super) async fn bring_up_to_date(
    migrator: &Migrator,
    database: &mut impl Tables,
) -> Result<(), OpenError> {
    // The usual case, in which nothing is locked. An unfinished one may be under way now, in another process.
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

/// Whether the tables are as they must be; an error when they never will.
fn is_usable(schema: &Schema) -> Result<bool, OpenError> {
    match schema.usable() {
        Usable::Now => Ok(true),
        Usable::AfterMigration => Ok(false),
        Usable::Never(why) => Err(OpenError::Schema(why)),
    }
}

/// Waits until no other process migrates. (sqlx would wait for ever, without a word.)
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

/// What is looked up before a migration.
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
        match schema(states, min_version).usable() {
            Usable::Never(why) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn tables_that_are_up_to_date_are_usable_and_others_once_they_are() {
        use State::{Applied, Pending};
        assert_eq!(schema(&[Applied, Applied], Some(2)).usable(), Usable::Now);
        assert_eq!(schema(&[Applied, Pending], None).usable(), Usable::AfterMigration);
        assert_eq!(Schema::none(&MYSQL).usable(), Usable::AfterMigration);
        assert_eq!(Schema::none(&SQLITE).usable(), Usable::AfterMigration);
    }

    #[test]
    fn newer_tables_say_who_may_use_them() {
        use State::{Applied, Pending, Unknown};
        assert_eq!(schema(&[Applied, Applied, Unknown], Some(2)).usable(), Usable::Now);
        assert!(refusal(&[Applied, Applied, Unknown], Some(3)).contains("must know migration 3 at least"));
        assert!(
            refusal(&[Applied, Applied, Unknown], None).contains("migration 3, which this antre does not")
        );
        assert!(
            refusal(&[Applied, Pending, Unknown], Some(1)).contains("migration 2 is not, which it needs")
        );
    }

    #[test]
    fn a_migration_that_is_another_one_or_half_done_is_named() {
        use State::{Applied, Changed, Unfinished};
        assert!(refusal(&[Applied, Changed], Some(1)).contains("migration 2 is not the one"));
        assert!(refusal(&[Applied, Unfinished], Some(1)).contains("migration 2 was begun"));
    }
}
