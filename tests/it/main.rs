//! What can only be tested from outside, as one test binary: `cargo test --test it`. The tests that need MySQL and
//! RabbitMQ are ignored by default; `./test.sh` runs them too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod contract;
mod queue_contract;
mod servers;
mod store_contract;
