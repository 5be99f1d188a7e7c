//! What can only be tested from outside, as one test binary: `cargo test --test it`. The tests that need MySQL and
//! RabbitMQ are ignored by default; `./test.sh` runs them too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is how a test says no")]

#[macro_use]
mod harness;

mod bad_input;
mod cli;
mod cluster;
mod contract;
mod edge;
mod faults;
mod http;
mod layers;
mod life;
mod migrations;
mod mysql_proxy;
mod race;
mod routes;
mod secrets;
mod queue_contract;
mod servers;
mod store_contract;
