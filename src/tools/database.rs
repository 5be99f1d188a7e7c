//! What tools ask of a database before they use its tables.

use std::sync::Arc;

use crate::{
    settings::Database,
    store::{OpenError, Store, Usability, mysql::MySqlStore, sqlite::SqliteStore},
};

/// An error that says what to do, unless this program may use the tables as they are. Changes nothing.
pub(super) async fn must_have_tables(database: &Database) -> Result<(), String> {
    let schema = match database {
        Database::Sqlite(url) => SqliteStore::schema(url).await,
        Database::MySql(url) => MySqlStore::schema(url).await,
    };
    let schema = schema.map_err(|error| {
        format!("{error}. Check that the database can be reached, and DATABASE_URL (--database-url)")
    })?;
    match schema.usability() {
        Usability::Now => Ok(()),
        Usability::AfterMigration => {
            Err("its tables are missing or not up to date. Check that DATABASE_URL (--database-url) names the right \
                 database, or run antre migrate"
                .to_owned())
        }
        Usability::Never(why) => Err(why),
    }
}

/// The store of a database whose tables are up to date: opening one would change them, which is not for a tool to do.
pub(super) async fn open(database: &Database) -> Result<Arc<dyn Store>, String> {
    let text = |error: OpenError| error.to_string();
    must_have_tables(database).await?;
    Ok(match database {
        Database::Sqlite(url) => Arc::new(SqliteStore::open(url).await.map_err(text)?),
        Database::MySql(url) => Arc::new(MySqlStore::open(url).await.map_err(text)?),
    })
}
