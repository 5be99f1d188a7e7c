//! What the tests and the benchmark share:
//!
//! - [`servers`] starts MySQL and RabbitMQ in [`containers`], or uses those that environment variables name;
//! - [`processes`] starts a program, waits until it is ready, signals it and waits for its end;
//! - [`reaper`] removes what a run started, even when the run is killed.

pub mod containers;
pub mod error;
pub mod processes;
pub mod reaper;
pub mod servers;
