//! Starts antre and the servers that it needs, and speaks to them.

pub(crate) mod browser;
pub(crate) mod client;
#[macro_use]
pub(crate) mod harness;
pub(crate) mod mysql_proxy;
pub(crate) mod raw_connection;
pub(crate) mod servers;
pub(crate) mod wait;
