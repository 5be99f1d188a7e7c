//! Where products, inventories and orders are stored, and the one place that decides.
//!
//! [`ports`] says what a database must be able to do, by role. Behind it are [`sqlite`], [`mysql`] and, as
//! the model, [`memory`];
//! `tests/it/ports/store_contract.rs` is the suite that all must pass. The transaction of these two is written once, in
//! `transaction`; each brings the statements.

pub mod audit;
mod error;
mod holdings;
mod json;
pub mod inspection;
mod lane_sets;
mod ledger;
mod lists;
pub mod memory;
mod migrations;
pub mod mysql;
mod mysql_url;
mod observed;
mod observer;
mod open_error;
mod page;
mod pool_use;
mod ports;
pub mod retention;
mod rows;
mod seller;
mod slow_query;
pub mod sqlite;
mod sqlx_error;
mod statements;
mod terms;
mod time_limit;
mod transaction;

pub use error::StoreError;
pub use migrations::{Schema, Usability};
pub use observer::{RetryCause, TransactionObserver, TransactionPhases};
pub use open_error::OpenError;
pub use page::{Direction, Due, OrderPage, Page};
pub use pool_use::PoolUse;
pub use ports::{
    Adjusted, Archival, Catalog, Creation, Decider, Deleted, GivenUp, Health, Installation, Ledger, Orders,
    ProductLane, Recount, Retention, Store, Update,
};
pub use time_limit::TimeLimited;
