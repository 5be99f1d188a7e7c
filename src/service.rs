//! What an API does between HTTP and the ports. Handlers call [`catalog`] and [`ordering`], and name neither store nor queue.

mod answers;
pub mod batch_loader;
pub mod catalog;
pub mod dispatcher;
pub mod known_products;
pub mod order_gate;
pub mod ordering;
mod pending_replies;
mod verdict_waits;
