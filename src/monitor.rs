//! What operators see: how many orders come, what becomes of them, what waits, and which process does it.
//!
//! Once a second each process tells the others in a [`report`] what it did. Each API keeps what it was told on its [`board`],
//! which pages and tools read.
//!
//! [`metrics`] is the same for Prometheus, and longer; [`observed`] has the decorators of the ports that measure.
//!
//! Nothing here decides anything, and no order waits for it: what is lost is missing on a page.

pub mod board;
pub mod latency;
pub mod metrics;
pub mod observed;
pub mod report;

use std::time::Duration;

/// A lane stands still when commands wait in it and none is decided for this long. Long enough for a batch on a slow disk, and
/// for a database that fails over within a second or two; short enough to be told within five.
pub const STALLED_AFTER: Duration = Duration::from_secs(4);
