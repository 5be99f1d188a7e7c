//! What an API does between HTTP and the ports. Handlers call [`catalog`] and [`ordering`], and name neither store nor queue.

mod answers;
pub mod batch_loader;
pub mod catalog;
pub mod dispatcher;
pub mod known_products;
pub mod ordering;
mod pending_replies;
pub mod sold_out;
mod verdict_waits;
