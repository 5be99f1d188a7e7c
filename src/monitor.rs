//! What operators see: how many orders come, what becomes of them, what waits, and which process does it.
//!
//! 1. [`activity`] counts what this process does, product by product, and [`undecided`] knows what its worker holds;
//! 2. once a second the [`reporter`] tells it to all processes, as a [`report`];
//! 3. each API keeps what it is told on its [`board`], and reads names and stock from the [`catalogue`], for pages and tools;
//! 4. readiness and log say which lanes stand still: [`progress`], [`standstill`].
//!
//! [`metrics`] is the same for Prometheus, and longer; [`observed`] has the decorators of the ports that measure.
//!
//! Nothing here decides anything, and no order waits for it: what is lost is missing on a page.

pub mod activity;
pub mod board;
pub mod catalogue;
pub mod latency;
pub mod metrics;
pub mod observed;
pub mod progress;
pub mod report;
pub mod reporter;
pub mod standstill;
pub mod undecided;
pub mod vitals;

use std::time::Duration;

/// A lane stands still when commands wait in it and none is decided for this long. Long enough for a batch on a slow disk, and
/// for a database that fails over within a second or two; short enough to be told within five.
pub const STALLED_AFTER: Duration = Duration::from_secs(4);
