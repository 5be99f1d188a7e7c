//! Black-box tests: the real program, spoken to over HTTP, signals and its command line.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is how a test says no")]

#[macro_use]
mod harness;

mod bad_input;
mod cli;
mod contract;
mod faults;
mod http;
mod race;
mod routes;
