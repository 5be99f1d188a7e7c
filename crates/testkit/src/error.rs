//! One error for everything that can go wrong while a run is set up: a person reads it, no code tells its kinds apart.

pub type Error = Box<dyn std::error::Error + Send + Sync>;
pub type Result<T, E = Error> = std::result::Result<T, E>;
