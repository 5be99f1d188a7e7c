//! What an API does between HTTP and the ports.

pub mod ordering;
mod pending_replies;
pub mod sold_out;
pub mod batch_loader;
