//! How many connections of a pool are in use.

/// The use of one pool of connections, at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolUse {
    /// What the connections are for.
    pub name: &'static str,
    pub in_use: usize,
    /// Open, and not in use.
    pub idle: usize,
    /// How many there may be.
    pub max: usize,
    /// Calls that wait for a connection; `None`: not known.
    pub waiting: Option<usize>,
}
