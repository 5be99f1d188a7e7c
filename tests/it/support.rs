//! What tests use to start antre and the servers that it needs.

#[macro_use]
pub(crate) mod harness;
pub(crate) mod mysql_proxy;
pub(crate) mod servers;
