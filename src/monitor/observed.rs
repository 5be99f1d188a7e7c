//! Decorators of the ports, which measure what passes through them. The flow behind them does not know.

pub mod conservation;
mod decider;
mod queue;

pub use decider::ObservedDecider;
pub use queue::ObservedQueue;
