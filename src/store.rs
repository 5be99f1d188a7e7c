//! Where products, inventories and orders are stored, and the one place that decides.
//!
//! [`ports`] says what a database must be able to do, by role. Two adapters stand behind it, [`sqlite`] and [`mysql`];
//! `tests/it/ports/store_contract.rs` is the suite that both must pass. The transaction is written once, in `transaction`; an
//! adapter brings the statements.

mod error;
mod lane_sets;
mod lists;
mod migrations;
pub mod mysql;
mod mysql_url;
mod open_error;
mod page;
mod ports;
mod rows;
pub mod sqlite;
mod sqlx_error;
mod time_limit;
mod transaction;

pub use error::StoreError;
pub use migrations::{Schema, Usable};
pub use open_error::OpenError;
pub use page::{Due, OrderPage, Page};
pub use ports::{Catalog, Decided, Decider, Health, Installation, Orders, Recount, Store};
pub use time_limit::TimeLimited;
