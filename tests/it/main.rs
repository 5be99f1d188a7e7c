//! Tests from outside, as one test binary: `cargo test --test it`. Those that need MySQL and RabbitMQ are ignored by default;
//! `./test.sh` runs them too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is how a test says no")]

#[macro_use]
mod support;

/// One suite for each port, which every adapter must pass.
mod ports {
    mod migrations;
    mod queue_contract;
    mod store_contract;
}

/// The REST API of one process.
mod api {
    mod bad_input;
    pub(crate) mod buyers;
    mod baskets;
    pub(crate) mod contract;
    mod edge;
    mod http;
    pub(crate) mod life;
    mod one_rule;
    mod order_lists;
    mod products;
    pub(crate) mod race;
    mod routes;
    mod schemathesis;
    mod skus;
    pub(crate) mod stock;
    pub(crate) mod terms;
    mod waiting;
}

/// What an API shows to people.
mod pages {
    mod browser;
    mod http;
}

/// Processes: their command line, their faults, and several of them together.
mod processes {
    pub(crate) mod cli;
    mod cluster;
    mod backup;
    mod compose;
    mod faults;
    mod logs;
    mod rehearse;
    mod secrets;
    mod standstill;
    mod tools;
    #[cfg(feature = "otel")]
    mod traces;
}

mod layers;
mod metrics;
mod readme;
